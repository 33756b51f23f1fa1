"""The command `sparse-ref`: each command loads what it needs when it runs; `--help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse_ref import __version__

ABOUT = """\
Reference semantics for sparse attention: what a pattern means, what attention over it is in
float64, and how far an implementation may be from that.
"""

START = """\
start here:
  sparse-ref demo                 the whole idea on real data, about a minute
  sparse-ref demo --steps 50      the same in seconds, with a model that has learnt little

in Python:
  >>> import sparse_ref as sr
  >>> print(sr.draw(sr.Causal() & sr.SlidingWindow(left=2, right=0), 4))
  # . . .
  # # . .
  # # # .
  . # # #
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
    arguments = _parser().parse_args(argv)
    try:
        from . import demo
    except ImportError as missing:
        package = (missing.name or str(missing)).partition(".")[0]
        print(f"sparse-ref demo needs {package}: pip install 'sparse-ref[all]'", file=sys.stderr)
        return 2
    return demo.run(arguments.out, seed=arguments.seed, steps=arguments.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sparse-ref",
        description=ABOUT,
        epilog=START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparse-ref {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train, export and validate a sparse transformer on real digits",
        description=DEMO,
        epilog=DEMO_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR",
        help="folder for the files, made if missing (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of the weights and the order of examples (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--steps", type=_positive, default=STEPS, metavar="N",
        help="training steps of 32 digits; accuracy is judged from %(default)s on (the default)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value
