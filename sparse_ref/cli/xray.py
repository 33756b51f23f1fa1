"""`sparse-ref xray`: what a function or an ONNX file really computes, read from outside."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .command import OK, UNSUPPORTED, WRONG, Refusal, add_outputs, declare, positive, to_json

ABOUT = """\
Read what an attention really computes, from outside, head by head: its mask in words and in other
libraries' spelling, alignment, key/value heads, scale, softcap, sinks, soft masks and biases, what
queries that see no key get, and how many bits are kept.

WHAT is a function fn(q, k, v) or fn(q, k, v, pattern) of NumPy arrays (batch, heads, tokens, size),
or the path of an ONNX file, in which every attention is found and read.
"""

END = """\
examples:
  sparse-ref xray mykernels:window --heads 8 --kv-heads 2
  sparse-ref xray mykernels.py:masked --pattern 'Causal() & SlidingWindow(6, 0)'
  sparse-ref xray model.onnx --expect config.json

exit status: 0 if it could be read and nothing differs, 1 if it differs from the pattern or config,
2 if the command is wrong, 3 if there is no attention that can be read
"""

LENGTH = 24


def add_to(commands: Any) -> None:
    """The command and its options."""
    brief = "say what a function or an ONNX file really computes"
    parser = declare(commands, "xray", brief, ABOUT, END)
    add = parser.add_argument
    add("what", metavar="WHAT", help="MODULE:FUNCTION or FILE.py:FUNCTION, or FILE.onnx")
    add("--pattern", metavar="EXPR", help="what the function should compute; passed on to it if "
        "it takes a pattern")  # fmt: skip
    add("--q-len", type=positive, metavar="N", help="queries (default: as many as keys)")
    add("--kv-len", type=positive, metavar="N", help="keys, or tokens of a file's input (default: "
        f"{LENGTH}, or what shows every window of the config)")  # fmt: skip
    add("--heads", type=positive, default=1, metavar="N", help="query heads (default: %(default)s)")
    add("--kv-heads", type=positive, metavar="N", help="heads of keys and values (default: heads)")
    add("--head-dim", type=positive, default=64, metavar="N", help="default: %(default)s")
    add("--expect", type=Path, metavar="CONFIG", help="a Hugging Face config.json to compare with")
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read it; 0, 1 or 3."""
    name = str(arguments.what)
    return _of_function(arguments) if ":" in name and not Path(name).exists() else (
        _of_file(arguments))  # fmt: skip


def _of_function(arguments: argparse.Namespace) -> int:
    from sparse_ref.conformance import AnswerError, fixed
    from sparse_ref.conformance.xray import xray

    from .calls import takes_pattern
    from .given import function_of, pattern_of
    from .screen import say

    if arguments.expect is not None:
        raise Refusal("--expect is for files: a function is compared with --pattern")
    pattern = None if arguments.pattern is None else pattern_of(arguments.pattern)
    fn = function_of(arguments.what)
    if not takes_pattern(fn):
        fn = fixed(fn)
    elif pattern is None:
        raise Refusal(f"{arguments.what} takes a pattern: say which with --pattern")
    n = LENGTH if arguments.kv_len is None else arguments.kv_len
    m = n if arguments.q_len is None else arguments.q_len
    try:
        got = xray(
            fn, m, n, pattern=pattern, heads=arguments.heads, kv_heads=arguments.kv_heads,
            head_dim=arguments.head_dim,
        )  # fmt: skip
    except NotImplementedError as error:
        raise Refusal(f"{arguments.what} does not do this: {error}", UNSUPPORTED) from None
    except AnswerError as error:
        raise Refusal(error, WRONG) from None
    except Exception as error:  # whatever a stranger's function stumbles over
        raise Refusal(f"{arguments.what} fails: {type(error).__name__}: {error}") from None
    if arguments.json:
        print(to_json(got.to_dict()))
    elif not arguments.quiet:
        say(str(got))
    return OK if got.ok else WRONG


def _of_file(arguments: argparse.Namespace) -> int:
    from exporters.onnx.expected import compare_with_config, longest
    from exporters.onnx.xray import xray_onnx

    from .screen import say

    if arguments.pattern is not None:
        raise Refusal("--pattern is for functions: a file is compared with --expect")
    config = None if arguments.expect is None else _config(arguments.expect)
    try:
        shows = 0 if config is None else longest(config)
        length = max(LENGTH, shows) if arguments.kv_len is None else arguments.kv_len
        readings = xray_onnx(arguments.what, length=length)
        differences = [] if config is None else compare_with_config(readings, config)
    except OSError as error:
        raise Refusal(f"{arguments.what} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal(error) from None
    if not readings:
        raise Refusal(f"{arguments.what} has no attention in its main graph", UNSUPPORTED)
    if arguments.json:
        said = {"readings": [one.to_dict() for one in readings], "differences": differences}
        print(to_json(said))
    elif not arguments.quiet:
        say("\n".join([*_merged(readings), *(f"differs: {one}" for one in differences)]))
    if differences and any(one.xray is not None for one in readings):
        return WRONG
    return UNSUPPORTED if any(one.xray is None for one in readings) else OK


def _config(path: Path) -> Any:
    try:
        got = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"--expect must be a config.json: {error}") from None
    if not isinstance(got, dict):
        raise Refusal(f"--expect must hold an object, got {type(got).__name__}")
    return got


def _merged(readings: list[Any]) -> list[str]:
    """Readings as text, equal ones once, under the numbers of their layers."""
    same: dict[str, list[int]] = {}
    for i, one in enumerate(readings):
        same.setdefault(f"{one.operator}\n{str(one).partition(chr(10))[2]}", []).append(i)
    return [
        f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))}: {text}"
        for text, layers in same.items()
    ]
