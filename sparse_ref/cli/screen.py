"""Text on the terminal: coloured by rich where stdout is one, the same text plain elsewhere.

NO_COLOR and FORCE_COLOR are heeded, as rich does.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

STYLES = (
    (r"\b(FAIL|ERROR|TIMEOUT|XPASS)\b", "bold red"),
    (r"\b(PASS|ok)\b", "bold green"),
    (r"\b(UNSUPPORTED|ACCEPTABLE|XFAIL)\b", "yellow"),
    (r"^(first wrong case|also wrong|repeat|next|more):", "bold"),
    (r"https://\S+", "underline"),
    (r"^(\S+)(?=: .*\(explains)", "bold magenta"),
)
PICTURE = re.compile(r"^ *[#.ox+|=-]( [#.ox+|=-])*$")
INK = {
    "#": ("██", "blue"), "o": ("▒▒", "blue"), ".": ("· ", "bright_black"),
    "+": ("++", "black on yellow"), "-": ("--", "white on magenta"), "x": ("××", "white on red"),
    "|": ("│ ", "bright_black"), "=": ("──", "bright_black"),
}  # fmt: skip
WIDTH = 130  # of what is not a terminal


def say(text: str) -> None:
    """Print text; on a terminal pictures and verdicts have colours."""
    console = _console()
    if console is None:
        print(text)
        return
    from rich.text import Text

    painted = Text()
    for i, line in enumerate(text.split("\n")):
        painted.append("\n" * (i > 0))
        painted.append_text(_painted(line, Text))
    console.print(painted, soft_wrap=True)


def columns() -> int:
    """How many characters fit into a line."""
    return shutil.get_terminal_size().columns if _console() is not None else WIDTH


def unicode() -> bool:
    """Whether stdout takes more than ASCII."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: rich's on a terminal, aligned columns elsewhere."""
    rows, console = [list(map(str, row)) for row in rows], _console()
    if console is None:
        lines = [list(heads), *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        for line in lines if any(heads) else lines[1:]:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(heads))
    for i, head in enumerate(heads):
        made.add_column(head, style="bold" if i == 0 else "", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    console.print(made)


def _console() -> Any:
    """A console of rich's if stdout is a terminal, and rich there."""
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(highlight=False)
    return console if console.is_terminal and unicode() else None


def _painted(line: str, text: Any) -> Any:
    """One line in colour."""
    if PICTURE.match(line):
        painted = text(line[: len(line) - len(line.lstrip())])
        for sign in line.split():
            painted.append(*INK[sign])
        return painted
    painted = text(line)
    for expression, style in STYLES:
        painted.highlight_regex(expression, style)
    return painted
