"""The demo's picture: one digit, what each layer may see, and what it learnt to look at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure

import sparse_ref as sr

from .network import Array

INK, GREY, PALE, BLUE = "#1f2d3a", "#5d6b78", "#eef2f5", "#2a6a9c"
WARM = LinearSegmentedColormap.from_list("warm", ["#fff6ea", "#f7b267", "#e4572e", "#5c0f1e"])
GREYS = LinearSegmentedColormap.from_list("greys", ["#ffffff", INK])


@dataclass(frozen=True)
class Layer:
    """One row of the picture: a pattern, and probabilities (n, n) averaged over its heads."""

    name: str
    pattern: sr.Pattern
    attention: Array


def averaged(q: Array, k: Array, pattern: sr.Pattern) -> Array:
    """The probabilities of q, k (heads, n, d), averaged over heads."""
    each = [sr.weights(q, k, pattern, head=h).toarray() for h in range(len(q))]
    return np.asarray(np.mean(each, axis=0))


def draw(tokens: Array, label: int, answer: int, layers: list[Layer], credit: str) -> bytes:
    """A PNG of the digit `tokens` (64,), with a row of panels for each layer."""
    side, n = round(len(tokens) ** 0.5), len(tokens)
    figure = Figure(figsize=(13, 10), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the user has chosen
    grid = figure.add_gridspec(
        2, 3, width_ratios=[0.72, 1, 1],
        left=0.045, right=0.93, bottom=0.125, top=0.855, wspace=0.22, hspace=0.32,
    )  # fmt: skip
    figure.text(
        0.045, 0.945, "A Sparse Transformer reads a digit", color=INK, size=21, weight="bold"
    )
    figure.text(
        0.045, 0.912,
        f"{side} x {side} pixels as {n} tokens, row by row; a row of panels is a layer",
        color=GREY, size=12,
    )  # fmt: skip
    pixels = _panel(figure, grid[0, 0], f"the digit: a {label}, read as a {answer}")
    _grid(pixels, tokens.reshape(side, side), GREYS)
    panel = _panel(figure, grid[1, 0], "which pixels get attention")
    image = _grid(panel, _received(layers).reshape(side, side), WARM)
    _scale(figure, panel, image, "times what equal weights would give", location="bottom")
    for row, layer in enumerate(layers):
        allowed = layer.pattern.mask(n, n)[0]
        share = f"{allowed.mean():.0%} of all pairs"
        panel = _tokens(figure, grid[row, 1], f"layer {row + 1} may see: {layer.name}", side, n)
        panel.imshow(allowed, cmap=ListedColormap([PALE, BLUE]), interpolation="nearest")
        panel.text(n - 2, 3, share, color=BLUE, size=11, ha="right", va="center", weight="bold")
        panel = _tokens(figure, grid[row, 2], f"layer {row + 1} looks at", side, n)
        panel.set_facecolor(PALE)
        image = panel.imshow(
            np.where(allowed, layer.attention, np.nan),
            cmap=WARM, norm=PowerNorm(0.6, 0, 1), interpolation="nearest",
        )  # fmt: skip
        _scale(figure, panel, image, "probability", location="right")
    note = (
        "Attention: softmax probabilities of the trained model for this digit, by the oracle in "
        "float64, averaged over the heads of each layer."
    )
    figure.text(
        0.045,
        0.03,
        f"{note}\n{credit[0].upper()}{credit[1:]}.",
        color=GREY,
        size=10,
        linespacing=1.6,
    )
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _received(layers: list[Layer]) -> Array:
    """What each key gets, as a multiple of what it would get from queries that weigh all alike."""
    n = len(layers[0].attention)
    allowed = [layer.pattern.mask(n, n)[0] for layer in layers]
    equal = sum(mask / mask.sum(1, keepdims=True) for mask in allowed)
    got = sum(layer.attention for layer in layers)
    return np.asarray(np.sum(got, axis=0) / np.sum(equal, axis=0))


def _panel(figure: Figure, place: Any, title: str) -> Any:
    panel = figure.add_subplot(place)
    panel.set_title(title, color=INK, size=12.5, loc="left", pad=9)
    panel.tick_params(length=0, labelsize=9, labelcolor=GREY)
    for spine in panel.spines.values():
        spine.set_color("#c5ced6")
    return panel


def _grid(panel: Any, values: Array, colours: LinearSegmentedColormap) -> Any:
    """One small square for each pixel."""
    panel.set(xticks=[], yticks=[], anchor="N")
    lines = np.arange(1, len(values)) - 0.5
    panel.hlines(lines, -0.5, len(values) - 0.5, color="white", lw=0.8)
    panel.vlines(lines, -0.5, len(values) - 0.5, color="white", lw=0.8)
    return panel.imshow(values, cmap=colours, vmin=0, interpolation="nearest")


def _tokens(figure: Figure, place: Any, title: str, side: int, n: int) -> Any:
    """A panel of queries by keys, ticked where a row of pixels begins."""
    panel = _panel(figure, place, title)
    ticks = range(0, n, 2 * side)
    panel.set(xticks=ticks, yticks=ticks)
    panel.set_xlabel("key (token)", color=GREY, size=10)
    panel.set_ylabel("query (token)", color=GREY, size=10)
    return panel


def _scale(figure: Figure, panel: Any, image: Any, label: str, *, location: str) -> None:
    bar = figure.colorbar(image, ax=panel, location=location, fraction=0.046, pad=0.04)
    bar.set_label(label, color=GREY, size=9.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=GREY)
