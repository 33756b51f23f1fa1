"""The command `sparse-ref`: each command loads what it needs when it runs; `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sparse_ref import __version__

from . import check, conventions, doctor, export, golden, patterns, show, train, validate, xray
from .command import USAGE, Refusal, declare, positive

ABOUT = """\
Reference semantics for sparse attention: what a pattern means, what attention over it is in
float64, and how far an implementation may be from that.
"""

START = """\
start here:
  python -m sparse_ref            a pattern, a wrong kernel, its diagnosis: the idea in 2 seconds
  sparse-ref demo --steps 50      a transformer trained, exported and checked, in seconds
  sparse-ref train --help         your own texts and labels, to a validated ONNX file

look at patterns:
  sparse-ref show 'Causal() & SlidingWindow(3, 0)'
  sparse-ref show 'conventions.hf(8)' 'conventions.attention_gym(8)'
  sparse-ref conventions 'SlidingWindow(127, 0)'

judge a kernel, fn(q, k, v, pattern) -> out:
  sparse-ref check mykernel:attention --quick
  sparse-ref diagnose mykernel:attention --pattern 'Causal() & SlidingWindow(127, 0)'
  sparse-ref xray model.onnx --expect config.json

take one to ONNX:
  sparse-ref export --pattern 'Causal() & SlidingWindow(255, 0)' -o window.onnx
  sparse-ref validate window.onnx

exit status of all commands: 0 ok, 1 something is wrong, 2 usage, 3 only what is unsupported
`sparse-ref COMMAND --help` has the options and more examples; NO_COLOR turns colours off
"""

DEMO = """\
Train a Sparse Transformer (Child et al. 2019, arXiv:1904.10509) to read handwritten digits, export
it to ONNX, run the file in ONNX Runtime, and hold every number against the NumPy oracle.

A digit is 8 x 8 grey levels, read as 64 tokens. In the first layer a token looks at itself and the
7 before it, in the second one up its column: through both it sees everything that came before.
"""

DEMO_END = """\
writes into DIR:
  digits.onnx    the trained model, runs wherever ONNX runs: nothing needs to be registered
  attention.png  both patterns beside what the trained heads attend to, for one digit

exit status: 0 if every check holds, 1 if one fails, 2 if something to run it with is missing
"""

STEPS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit status.

    >>> main(["--version"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    return _careful(arguments.command, lambda: int(arguments.run(arguments)))


def introduce() -> int:
    """The idea in two seconds, on NumPy alone; 0 if it works."""
    from . import overview

    return _careful("", overview.run)


def _careful(command: str, work: Callable[[], int]) -> int:
    """The exit status of a command; one sentence on stderr where it cannot go on."""
    name = f"sparse-ref {command}".strip()
    try:
        status = work()
        sys.stdout.flush()
    except Refusal as sentence:
        print(f"{name}: {sentence}", file=sys.stderr)
        return sentence.status
    except ImportError as missing:
        package = (missing.name or str(missing)).partition(".")[0]
        print(f"{name} needs {package}: pip install 'sparse-ref[all]'", file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # somebody has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return status


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo

    return demo.run(arguments.out, seed=arguments.seed, steps=arguments.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sparse-ref",
        description=ABOUT,
        epilog=START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparse-ref {__version__}")
    commands = parser.add_subparsers(metavar="command", dest="command")
    for module in (patterns, show, conventions, check, xray, golden, export, validate):
        module.add_to(commands)
    brief = "train, export and validate a sparse transformer on real digits"
    demo = declare(commands, "demo", brief, DEMO, DEMO_END)
    demo.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR",
        help="folder for the files, made if missing (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of the weights and the order of examples (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--steps", type=positive, default=STEPS, metavar="N",
        help="training steps of 32 digits; accuracy is judged from %(default)s on (the default)",
    )  # fmt: skip
    demo.set_defaults(run=_demo)
    train.add_to(commands)
    doctor.add_to(commands)
    return parser
