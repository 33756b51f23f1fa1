"""Row-major grids of pixels, patches or voxels: windows, neighborhoods, axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_ref._arrays import integer
from sparse_ref.patterns import Chunked, Full, Grid, Neighborhood, Pattern, SlidingWindow


def swin(shape: int | Sequence[int], window: int | Sequence[int] = 7, shift: Any = 0) -> Pattern:
    """Windows of the shifted-window transformer (Swin, Liu et al. 2021, arXiv:2103.14030).

    Odd layers have shift = window // 2, even ones 0. The cyclic roll with its region mask does not
    wrap around: tokens share a window where `(x - shift) // window` agrees on every axis, so border
    windows are smaller. As in the code, a grid whose shortest side is no longer than the window is
    cut into windows of that side, without shift (given one window an axis, as in Video Swin, this
    holds for each axis alone). The code pads the grid to whole windows and attends to the padding,
    and its mask adds -100, not -inf: neither is in the pattern.

    Parameters
    ----------
    shape : ints
        Extents of the grid, rows first; any number of axes (Video Swin: time, rows, columns).
    window, shift : int, or one for each axis; 0 <= shift < window

    >>> from sparse_ref import draw
    >>> print(draw(swin((2, 4), window=2), 8))
    # # . . # # . .
    # # . . # # . .
    . . # # . . # #
    . . # # . . # #
    # # . . # # . .
    # # . . # # . .
    . . # # . . # #
    . . # # . . # #
    """
    extents = _shape(shape)
    sizes = _per_axis("window", window, extents)
    shifts = _per_axis("shift", shift, extents)
    together = not isinstance(window, Sequence)
    axes = []
    for i, (extent, size, moved) in enumerate(zip(extents, sizes, shifts, strict=True)):
        w = integer(f"window[{i}]", size, 1)
        origin = integer(f"shift[{i}]", moved, 0, w - 1)
        side = min(extents) if together else extent
        axes.append(Chunked(side) if side <= w else Chunked(w, origin=origin))
    return Grid(extents, axes)


def natten(
    shape: int | Sequence[int],
    kernel: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> Pattern:
    """Neighborhood attention on a grid (arXiv:2204.07143; dilated 2209.15001; strided 2504.16922).

    One `Neighborhood` an axis, as `natten.functional.na1d`, `na2d`, `na3d` compute: windows shift
    at the borders, so that every query sees `kernel` keys an axis. attn-gym's `generate_natten`
    differs for even kernels and for grids that are not square.

    Parameters
    ----------
    shape : ints
        Extents of the grid, outermost first.
    kernel, dilation, stride : int, or one for each axis
    causal : bool, or one for each axis
        Causal axes cut their window instead of shifting it (time in video).

    >>> from sparse_ref import draw
    >>> print(draw(natten((2, 3), (1, 2)), 6))
    # # . . . .
    # # . . . .
    . # # . . .
    . . . # # .
    . . . # # .
    . . . . # #
    """
    extents = _shape(shape)
    given = {"kernel": kernel, "dilation": dilation, "stride": stride, "causal": causal}
    columns = [_per_axis(name, value, extents) for name, value in given.items()]
    return Grid(extents, [Neighborhood(*axis) for axis in zip(extents, *columns, strict=True)])


def axial(shape: int | Sequence[int], axis: int) -> Pattern:
    """Attention along one axis of a grid (Axial transformers, Ho et al. 2019, arXiv:1912.12180).

    Published models apply the axes in turn, or add their outputs; the union `axial(s, 0) |
    axial(s, 1)` in one softmax is the criss-cross attention of CCNet (arXiv:1811.11721).

    Parameters
    ----------
    shape : ints
        Extents of the grid, outermost first.
    axis : int
        The axis along which tokens see each other; negative ones count from the last.

    >>> from sparse_ref import draw
    >>> print(draw(axial((2, 3), 0), 6))
    # . . # . .
    . # . . # .
    . . # . . #
    # . . # . .
    . # . . # .
    . . # . . #
    """
    extents = _shape(shape)
    along = integer("axis", axis, -len(extents), len(extents) - 1) % len(extents)
    same = SlidingWindow(0, 0)
    return Grid(extents, [Full() if a == along else same for a in range(len(extents))])


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    extents = shape if isinstance(shape, Sequence) else [shape]
    return tuple(integer(f"shape[{i}]", extent, 1) for i, extent in enumerate(extents))


def _per_axis(name: str, value: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """One value for each axis."""
    if not isinstance(value, Sequence):
        return (value,) * len(shape)
    if len(value) != len(shape):
        raise ValueError(f"{name} must be one for each of the {len(shape)} axes, got {len(value)}")
    return tuple(value)
