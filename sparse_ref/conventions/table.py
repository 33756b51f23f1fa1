"""The conventions as a table for people."""

from __future__ import annotations

from sparse_ref.patterns import (
    And,
    Chunked,
    Neighborhood,
    Or,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
)

from .forms import CONVENTIONS


def table() -> str:
    """The conventions as a Markdown table: an API, an example, what is seen, how it is aligned.

    >>> print(table().splitlines()[2])
    | Hugging Face `sliding_window`, causal | `hf(128)` | `SlidingWindow(127, 0)` | 128 | last |
    """
    lines = ["| API | here | pattern | keys seen | queries are the |", "|---|---|---|---|---|"]
    for name, convention in CONVENTIONS.items():
        pattern = convention.build(*convention.example)
        call = f"{name}({', '.join(map(str, convention.example))})"
        end = "first" if convention.first else "last"
        cells = [convention.api, f"`{call}`", f"`{_short(pattern)}`", _seen(pattern), end]
        cells = [cell.replace("|", r"\|") for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(pattern: Pattern) -> str:
    """The pattern as one would type it."""
    text = repr(pattern)
    for default in (", dilation=1", ", stride=1", ", causal=False", ", ahead=0", ", origin=0",
                    ", back=0", "left=", "right=", "size=", "length=", "kernel=", "prefix=",
                    "count="):  # fmt: skip
        text = text.replace(default, "")
    return text


def _seen(pattern: Pattern) -> str:
    """How many keys a query in the middle of a long sequence sees."""
    match pattern:
        case SlidingWindow(left=int(left), right=int(right)):
            return str(left + right + 1)
        case Neighborhood():
            return str(pattern.kernel)
        case PrefixLM():
            return f"its past, {pattern.prefix} at least"
        case And(patterns=(_, Chunked(size=size, back=int(back)))):
            return f"{back * size + 1} to {back * size + size}"
        case And(patterns=(_, Or(patterns=(Sink(count=count), SlidingWindow(left=int(left)))))):
            return str(count + left + 1)
    return "its past"
