"""What every command has in common: how it is declared, how it fails, what its exit status says."""

from __future__ import annotations

import argparse
import json
from typing import Any

OK, WRONG, USAGE, UNSUPPORTED = range(4)


class Refusal(Exception):  # noqa: N818 - it is what a command says, not a fault of the program
    """A command that cannot go on: one sentence for stderr, and the exit status."""

    def __init__(self, sentence: object, status: int = USAGE) -> None:
        super().__init__(" ".join(str(sentence).split()))
        self.status = status


def declare(commands: Any, name: str, brief: str, about: str, end: str) -> Any:
    """A command's parser; `about` and `end` are shown by --help as they are written."""
    return commands.add_parser(
        name,
        help=brief,
        description=about,
        epilog=end,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_outputs(parser: Any) -> None:
    """--json and --quiet, of which one may be given."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="print what was found as JSON")
    choice.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing: the exit status says it"
    )


def positive(text: str) -> int:
    """An integer >= 1, as an option's type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


def seconds(text: str) -> float:
    """A number > 0, as an option's type."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
    return value


def to_json(content: Any) -> str:
    """JSON of plain data, readable."""
    return json.dumps(content, indent=1, allow_nan=False)
