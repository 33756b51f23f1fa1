"""Attention on images and videos: windows and axes of a row-major grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sparse_ref._arrays import integer, integers
from sparse_ref.patterns import Chunked, Full, Grid, Neighborhood, Pattern, SlidingWindow

T = TypeVar("T", int, bool)


def swin(shape: Sequence[int], window: int = 7, shift: int = 0) -> Pattern:
    """Swin: non-overlapping windows of the grid, shifted by `shift` in every second layer.

    Liu et al. 2021 (arXiv:2103.14030); the cyclic roll with its region mask is exactly windows
    with another origin and no wrap. An axis not longer than the window is one window, unshifted.
    The code's mask is -100, not -inf, and it attends padding: this pattern does neither.

    Parameters
    ----------
    shape : (height, width), any number of axes
    window : int >= 1; shift : int in [0, window), usually window // 2

    >>> from sparse_ref import draw
    >>> print(draw(swin((4,), window=2, shift=1), 4))
    # . . .
    . # # .
    . # # .
    . . . #
    """
    window = integer("window", window, 1)
    shift = integer("shift", shift, 0, window - 1)
    extents = _shape(shape)
    return Grid(extents, [Chunked(window, origin=shift) if n > window else Full() for n in extents])


def natten(
    shape: Sequence[int] | int,
    kernel: Sequence[int] | int,
    dilation: Sequence[int] | int = 1,
    stride: Sequence[int] | int = 1,
    causal: Sequence[bool] | bool = False,
) -> Pattern:
    """Neighborhood attention on a grid: windows of exactly `kernel` keys an axis.

    Hassani et al. (arXiv:2204.07143, 2209.15001, 2504.16922); natten.functional.na1d/na2d/na3d.

    Parameters
    ----------
    shape : int or ints
        Extents of the grid.
    kernel, dilation, stride : int or one an axis; causal : bool or one an axis

    >>> natten((5, 7), 3).covers, int(natten((5, 7), 3).mask(35, 35).sum())
    (35, 315)
    """
    extents = _shape([shape] if isinstance(shape, int) else shape)
    n = len(extents)
    axes = zip(
        extents,
        _each("kernel", kernel, n),
        _each("dilation", dilation, n),
        _each("stride", stride, n),
        _each("causal", causal, n),
        strict=True,
    )
    return Grid(extents, [Neighborhood(*axis) for axis in axes])


def axial(shape: Sequence[int], axis: int) -> Pattern:
    """Axial attention: the keys on the query's own line along one axis of the grid.

    Ho et al. 2019 (arXiv:1912.12180). Packages sum the outputs of the axes or stack them as
    layers; a union (`|`, criss-cross attention, arXiv:1811.11721) is one softmax over both.

    >>> from sparse_ref import draw
    >>> print(draw(axial((2, 2), axis=0), 4))
    # . # .
    . # . #
    # . # .
    . # . #
    """
    extents = _shape(shape)
    axis = integer("axis", axis, 0, len(extents) - 1)
    return Grid(
        extents, [Full() if a == axis else SlidingWindow(0, 0) for a in range(len(extents))]
    )


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    extents = tuple(integers("shape", shape).tolist())
    if not extents or min(extents) < 1:
        raise ValueError(f"shape must hold extents >= 1, got {extents}")
    return extents


def _each(name: str, value: Sequence[T] | T, axes: int) -> list[T]:
    """One value for every axis."""
    values = list(value) if isinstance(value, Sequence) else [value] * axes
    if len(values) != axes:
        raise ValueError(f"{name} must be one value or one for each of {axes} axes, got {value!r}")
    return values
