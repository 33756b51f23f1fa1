"""Mistakes of neighborhoods on grids, and of block lists."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from sparse_ref.conformance.mistakes import Mistake
from sparse_ref.patterns import BlockPattern, Grid, Neighborhood, Pattern, Tokens

from .rewriting import instead

LARGEST = 4096  # positions of a grid that is written out pair by pair


def _axes(one: Any) -> list[Neighborhood] | None:
    """The axes of a neighborhood, or of a grid of nothing else."""
    if isinstance(one, Neighborhood):
        return [one]
    axes = list(one.patterns)
    return axes if all(isinstance(axis, Neighborhood) for axis in axes) else None


def _wider(one: Any) -> Pattern | None:
    """An even number of keys reaches as far to the right as to the left."""
    axes = _axes(one)
    wider = [
        replace(axis, kernel=axis.kernel + 1)
        if axis.kernel % 2 == 0 and (axis.kernel + 1) * axis.dilation <= axis.length else axis
        for axis in axes or []
    ]  # fmt: skip
    if wider == (axes or []):
        return None
    return wider[0] if isinstance(one, Neighborhood) else Grid(one.shape, wider)


def _exchanged(one: Any) -> Pattern | None:
    axes = _axes(one)
    if axes is None or len(axes) != 2 or axes[0] == axes[1] or math.prod(one.shape) > LARGEST:
        return None
    row, column = np.divmod(np.arange(math.prod(one.shape)), one.shape[1])
    return Tokens(axes[1](row[:, None], row) & axes[0](column[:, None], column))


def _counted_dense(one: Any) -> Pattern | None:
    """A row of as many blocks as causality allows is taken for all that it allows."""
    columns = one.blocks.rows.indices.max(initial=0) + 1
    listed = one.blocks[np.arange(len(one.blocks))[:, None], np.arange(columns)]
    causal = np.tri(*listed.shape) > 0
    dense = listed.sum(axis=1) == causal.sum(axis=1)
    other = np.where(dense[:, None], causal, listed)
    return None if (other == listed).all() else BlockPattern(other, one.block_size)


LATTICES = tuple(
    Mistake(name, story, "https://github.com/" + link, outcome)
    for name, story, link, outcome in (
        ("neighborhood-even+1", "a neighborhood of an even number of keys has one key more",
         "meta-pytorch/attention-gym/pull/16", instead((Neighborhood, Grid), _wider)),
        ("neighborhood-axes-exchanged", "rows of a grid are cut as columns should be, and back",
         "meta-pytorch/attention-gym/pull/16", instead(Grid, _exchanged)),
        ("counted-dense", "a row of as many blocks as causality allows is taken for dense",
         "microsoft/onnxruntime/pull/21110",
         instead(BlockPattern, _counted_dense)),
    )
)  # fmt: skip
