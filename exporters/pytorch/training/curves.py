"""The curves of a training run as a picture."""

from __future__ import annotations

import io
from typing import Any

from .loop import History

INK, GREY, BLUE, ORANGE = "#1f2d3a", "#5d6b78", "#2a6a9c", "#e8952a"


def curves(history: History, title: str, *, loss: str = "training loss, nats") -> bytes:
    """A PNG of the loss and, below it, of every metric that was judged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(name for _, found in history.judged for name in found))
    panels = 1 + len(metrics)
    figure = Figure(figsize=(8, 1 + 2.4 * panels), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the user has chosen
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].set_title(title, color=INK, loc="left", weight="bold", pad=12)
    _line(axes[0], loss, history.losses, BLUE, marker=None)
    for axis, name in zip(axes[1:], metrics, strict=True):
        points = [(step, found[name]) for step, found in history.judged if name in found]
        _line(axis, name, points, ORANGE, marker="o")
    axes[-1].set_xlabel("step", color=GREY)
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.2)
    return content.getvalue()


def _line(axis: Any, name: str, points: list[tuple[int, float]], colour: str, marker: Any) -> None:
    axis.plot(*zip(*points, strict=True) if points else ([], []), color=colour, marker=marker, ms=4)
    axis.set_ylabel(name, color=GREY)
    axis.grid(color="#eef2f5")
    axis.tick_params(length=0, labelcolor=GREY)
    for spine in axis.spines.values():
        spine.set_color("#c5ced6")
    if points:
        step, last = points[-1]
        axis.annotate(f"{last:.3f}", (step, last), (4, 0), textcoords="offset points",
                      color=colour, va="center", fontsize=9)  # fmt: skip
