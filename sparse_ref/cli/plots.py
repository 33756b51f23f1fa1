"""Squares of masks as PNG and SVG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .cells import Cells

INK, GREY, LIGHT = "#1f2d3a", "#5d6b78", "#a9b6c1"
COLOURS = {
    ".": "#eef2f5", "o": "#7fb0d3", "#": "#2a6a9c", "-": "#c2447a", "+": "#e8952a", "x": "#7a1f2b",
}  # fmt: skip
SIDE, NARROWEST, GAP = 5.0, 2.6, 0.9  # inches: a panel's longer side, its width, between two
LETTER, LINE = 0.105, 0.22  # inches of a heading's letter, and of its line
TALLEST = 3  # lines of a heading


def plot(
    pictures: Sequence[Cells],
    *,
    titles: Sequence[str],
    headings: Sequence[str],
    note: str,
    meanings: dict[str, str],
    block: int | None,
    kind: str,
) -> bytes:
    """A file with one panel for each picture.

    Parameters
    ----------
    pictures, titles : of equal length
    headings : of str
        Above the panels, each on lines of its own.
    note : str
        Below them.
    meanings : dict
        Of the signs that the legend explains.
    block : int or None
        Tokens between two lines of a grid, where a sign is not larger than that.
    kind : "png" or "svg"
    """
    rows, columns = pictures[0].signs.shape
    scale = SIDE / max(rows, columns, 1)
    width, height = max(columns * scale, NARROWEST), max(rows * scale, 0.6)
    wide = len(pictures) * (width + GAP)
    lines = [line for text in headings for line in _wrapped(text, int(wide / LETTER))]
    size = (wide + 0.4, height + 1.75 + LINE * len(lines))
    figure = Figure(figsize=size, dpi=144, facecolor="white")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the user has chosen
    up, left = 1 / size[1], 0.8 / size[0]
    figure.text(
        left, 1 - 0.2 * up, "\n".join(lines), color=INK, size=11, weight="bold", va="top",
        linespacing=1.4,
    )  # fmt: skip
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        at = left + i * (width + GAP) / size[0]
        panel = figure.add_axes((at, 1.1 * up, width / size[0], height * up))
        _panel(panel, picture, title, block)
    handles = [Patch(color=COLOURS[sign], label=text) for sign, text in meanings.items()]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(left, 0.36 * up), ncols=len(handles),
        frameon=False, fontsize=8.5, labelcolor=GREY, borderpad=0, borderaxespad=0,
        handlelength=1, columnspacing=1.4,
    )  # fmt: skip
    figure.text(left, 0.16 * up, note, color=GREY, size=8.5, va="center")
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "sparse_ref"}):  # the same picture, the same file
        date = {"Date": None} if kind == "svg" else None
        figure.savefig(content, format=kind, metadata=date, bbox_inches="tight", pad_inches=0.2)
    return content.getvalue()


def _wrapped(text: str, letters: int) -> list[str]:
    """The text in lines of so many letters, at most `TALLEST` of them."""
    return textwrap.wrap(text, letters, max_lines=TALLEST, placeholder=" ...")


def _panel(panel: Any, picture: Cells, title: str, block: int | None) -> None:
    """Queries down, keys across."""
    signs, size = picture.signs, picture.size
    rows, columns = signs.shape
    codes = np.zeros(signs.shape, dtype=int)
    for code, sign in enumerate(COLOURS):
        codes[signs == sign] = code
    panel.imshow(
        codes, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=len(COLOURS) - 0.5,
        interpolation="nearest", aspect="equal", extent=(0, columns * size, rows * size, 0),
    )  # fmt: skip
    panel.set_title(title, color=INK, size=10, loc="left", pad=6)
    panel.set_xlabel("key", color=GREY, size=9)
    panel.set_ylabel("query", color=GREY, size=9)
    panel.tick_params(length=0, labelsize=8, labelcolor=GREY)
    panel.locator_params(integer=True, nbins=6)
    panel.spines[:].set_visible(False)  # one would cover a first key that all see
    if max(rows, columns) <= 64 and size != block:
        _lines(panel, size, picture, colour="white", width=0.8)
    if block is not None and size <= block < size * max(rows, columns):
        many = size * max(rows, columns) > 32 * block
        _lines(panel, block, picture, colour=LIGHT if many else INK, width=0.35 if many else 0.7)


def _lines(panel: Any, step: int, picture: Cells, *, colour: str, width: float) -> None:
    rows, columns = (n * picture.size for n in picture.signs.shape)
    panel.hlines(np.arange(step, rows, step), 0, columns, color=colour, lw=width)
    panel.vlines(np.arange(step, columns, step), 0, rows, color=colour, lw=width)
