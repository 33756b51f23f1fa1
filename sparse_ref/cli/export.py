"""`sparse-ref export`: a pattern as an ONNX file of one attention."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ABOUT = """\
Write an ONNX file that computes attention over a pattern: inputs q [batch, heads, q_len, head_dim],
k and v, output y. One file serves any batch and, where the pattern carries no length, any length.
"""

END = """\
patterns:
  'Causal() & SlidingWindow(255, 0)'
  'recipes.longformer(512, global_tokens=[0])'
  'SlidingWindow(256, 256) | Global(Runtime("global_tokens"))'   a table that is an input
  @pattern.json                                                  what sparse_ref.to_dict wrote

exit status: 0 if the file is written, 2 if the command says no pattern or an option is wrong or the
body needs more than --max-bytes, 3 if
the mode cannot say the pattern
"""


def add_to(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "export",
        help="write a pattern as an ONNX file",
        description=ABOUT,
        epilog=END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pattern", required=True, metavar="PATTERN", help="an expression, JSON, or @FILE")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--to", default="onnx", choices=("onnx", "torch"),
        help="an ONNX file, or a Python file that needs torch alone (of the options below it takes "
        "--scale, --softcap and --json)")  # fmt: skip
    add("--heads", type=int, default=8, metavar="N", help="query heads (default: %(default)s)")
    add("--kv-heads", type=int, metavar="N", help="heads of keys and values (default: heads)")
    add("--head-dim", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--value-dim", type=int, metavar="N", help="default: head dim")
    add("--dtype", default="float32", choices=("float32", "float64", "float16", "bfloat16"))
    add("--scale", type=float, metavar="X", help="default: 1 / sqrt(head dim)")
    add("--softcap", type=float, metavar="X", help="scores become X tanh(score / X)")
    for name, what in (
        ("sinks", "one more score of each head, in the denominator"),
        ("key-length", "how many keys of each batch row there are"),
        ("q-start", "the position of the first query"),
    ):
        add(
            f"--{name}", action="store_true", help=f"add the input {name.replace('-', '_')}: {what}"
        )
    add("--mode", default="custom", choices=("custom", "inline", "standard", "microsoft"))
    add("--body", default="loop", choices=("loop", "gather"), help="default: %(default)s")
    add("--opset", type=int, metavar="N", help="of the standard operators")
    add("--fixed", action="store_true", help="the lengths that the pattern covers, and no other")
    add("--length", type=int, nargs="+", default=[], metavar="N",
        help="say the estimated peak memory of the body at N queries and keys; the longest is "
        "noted in the file")  # fmt: skip
    add("--max-bytes", type=int, metavar="N", help="refuse where the longest needs more")
    add("--json", action="store_true", help="say what was written as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file; 0, 2 or 3."""
    from exporters.files import write_atomically

    from .expressions import parse

    try:
        pattern = parse(_text(arguments.pattern))
    except (OSError, ValueError) as error:
        return _failed(error, 2)
    if arguments.to == "torch":
        from .emit import write

        return write(arguments, pattern)
    from exporters import to_onnx
    from exporters.onnx import estimated_peak

    names = ("heads", "kv_heads", "head_dim", "value_dim", "dtype", "scale", "softcap", "sinks",
             "key_length", "q_start", "mode", "body", "opset", "max_bytes")  # fmt: skip
    options = {name: getattr(arguments, name) for name in names}
    longest = max(arguments.length, default=None)
    try:
        model = to_onnx(pattern, dynamic=not arguments.fixed, length=longest, **options)
        peaks = {n: estimated_peak(model, n) for n in arguments.length}
    except NotImplementedError as error:
        return _failed(error, 3)
    except (TypeError, ValueError) as error:
        return _failed(error, 2)
    content = model.SerializeToString(deterministic=True)
    try:
        write_atomically(arguments.out, content)
    except OSError as error:
        return _failed(error, 2)
    print(_said(arguments, pattern, model, len(content), peaks))
    return 0


def _text(given: str) -> str:
    return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given


def _said(
    arguments: argparse.Namespace, pattern: Any, model: Any, size: int, peaks: dict[int, int]
) -> str:
    import sparse_ref as sr

    opset = next(one.version for one in model.opset_import if not one.domain)
    if arguments.json:
        content = {"file": str(arguments.out), "bytes": size, "mode": arguments.mode,
                   "opset": opset, "pattern": sr.to_dict(pattern),
                   "estimated_peak": peaks}  # fmt: skip
        return json.dumps(content)
    memory = "".join(
        f"Estimated peak at {n} queries and keys, one batch row: {peak / 2**20:.1f} MiB\n"
        for n, peak in peaks.items()
    )
    return (
        f"Written: {arguments.out} ({size / 1024:.1f} KiB), opset {opset}, mode {arguments.mode}: "
        f"{pattern!r}\n{memory}Check it: sparse-ref validate {arguments.out}"
    )


def _failed(error: Exception, status: int) -> int:
    print(f"sparse-ref export: {error}", file=sys.stderr)
    return status
