"""`sparse-ref validate`: an ONNX file against the oracle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ABOUT = """\
Run an ONNX file in ONNX Runtime and compare every attention that says its pattern with the NumPy
oracle and its error bound, on the values that really reached it. Each node is reported with the
execution provider that ran it.
"""

END = """\
exit status: 0 if everything agrees, 1 if something does not, 2 if the file cannot be read, 3 if it
says no pattern or a provider that was asked for cannot run here
"""

SHORT = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def add_to(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "validate",
        help="compare an ONNX file with the oracle",
        description=ABOUT,
        epilog=END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="an ONNX model")
    parser.add_argument(
        "--provider", action="append", metavar="NAME",
        help="cpu, cuda or the full name; may be repeated (default: cpu, and cuda where there is)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Validate the file; 0, 1, 2 or 3."""
    from exporters.onnx.observed import NoPatternError
    from exporters.onnx.validate import validate_onnx

    providers = [SHORT.get(name.lower(), name) for name in arguments.provider or ()]
    try:
        report = validate_onnx(arguments.file, providers=providers or None)
    except NoPatternError as error:
        return _failed(error, 3)
    except (OSError, ValueError) as error:
        return _failed(error, 2)
    print(report.to_json() if arguments.json else report)
    if report.wrong:
        return 1
    return 3 if report.unsupported else 0 if report.ok else 1


def _failed(error: Exception, status: int) -> int:
    print(f"sparse-ref validate: {error}", file=sys.stderr)
    return status
