"""Mistakes of one library alone: what makes them needs its own idea of a pattern.

Those that anybody may make stand in the catalogue of `sparse_ref.conformance`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, changed, repeated, right
from sparse_ref.results import Attention

BLOCK = 8  # of the block-sparse layouts
Layout = Any  # bools (heads, blocks, blocks)


def block_pattern(layout: Layout) -> sr.Pattern:
    """Causal, by these blocks; head h uses layout h modulo their number."""
    each = [sr.BlockPattern(one, BLOCK) for one in layout]
    return sr.Causal() & (each[0] if len(each) == 1 else sr.PerHead(each))


def unequal(layout: Layout, lengths: tuple[int, ...]) -> sr.Pattern:
    """A batch of prompts padded on the right: what is past its length sees nothing."""
    whole = block_pattern(layout)
    return sr.PerBatch([whole & sr.Rows(range(length)) for length in lengths])


def phi3(blocks: int, heads: int = 6, local: int = 2, stride: int = 12) -> Layout:
    """The blocks of Phi-3-small, by the formula of its code."""
    step, every = max(1, stride // heads), range(blocks)

    def sees(head: int, q: int, k: int) -> bool:
        return k <= q and (q - k < local or (k + head * step + 1) % stride == 0)

    return np.array([[[sees(h, q, k) for k in every] for q in every] for h in range(heads)])


def _drawn(*, hole: int | None = None, above: bool = False) -> Layout:
    """Five blocks, all that causality allows; row 2 without any, or row 3 with one exchanged."""
    layout = np.tril(np.ones((1, 5, 5), dtype=bool))
    if hole is not None:
        layout[0, hole] = False
    if above:
        layout[0, 3] = [True, False, True, True, True]
    return layout


def _random() -> Layout:
    drawn = np.random.default_rng(3).random((3, 6, 6)) < 0.4
    return np.tril(drawn) | np.eye(6, dtype=bool)


LAYOUTS = {
    "phi-3": (phi3(12), None), "drawn blocks": (_random(), None),
    "empty block row": (_drawn(hole=2), None), "block above": (_drawn(above=True), None),
    "unequal lengths": (phi3(5), (29, 37)),
}  # fmt: skip
BLOCK_PATTERNS = {
    name: block_pattern(layout) if lengths is None else unequal(layout, lengths)
    for name, (layout, lengths) in LAYOUTS.items()
}


def asked_of(pattern: sr.Pattern) -> tuple[Layout, tuple[int, ...] | None]:
    """The blocks, and the lengths of the batch rows where they differ."""
    for name, one in BLOCK_PATTERNS.items():
        if one == pattern:
            return LAYOUTS[name]
    raise NotImplementedError("it has causal blocks only")


def _layout_of(call: Call) -> Layout | None:
    try:
        return asked_of(call.pattern)[0]
    except NotImplementedError:
        return None


def _mean_so_far(call: Call) -> Outcome | None:
    """An empty row gets the mean of the values up to its own position."""
    answer, bound = right(call)
    none = np.isneginf(answer.lse)
    if not none.any() or _layout_of(call) is None:
        return None
    m, n = call.q.shape[2], call.k.shape[2]
    v = repeated(call.v.astype(np.float64), call.q.shape[1])
    means = (v.cumsum(axis=2) / np.arange(1, n + 1)[:, None])[:, :, n - m :]
    out = np.where(none[..., None], means, answer.out)
    off = np.where(none[..., None], 2.0**-16 * np.abs(v).max(), bound.out)
    return Attention(out, answer.lse), Attention(off, np.where(none, np.inf, bound.lse))


def _counted_dense(call: Call) -> Call | None:
    """A row with as many blocks as causality allows sees all that causality allows."""
    layout = _layout_of(call)
    if layout is None:
        return None
    dense = layout.sum(axis=2) == np.arange(1, layout.shape[1] + 1)
    causal = np.tril(np.ones(layout.shape[1:], dtype=bool))
    other = np.where(dense[..., None], causal, layout & causal)
    if (other == (layout & causal)).all():
        return None
    return call._replace(pattern=block_pattern(other))


def _shorter_rows(call: Call) -> Outcome | None:
    """All heads but the first of a shorter batch row: what they get cannot be foretold."""
    try:
        lengths = asked_of(call.pattern)[1]
    except NotImplementedError:
        return None
    if lengths is None:
        return None
    answer, bound = right(call)
    short = np.array(lengths) < max(lengths)
    free = short[:, None, None] & (np.arange(call.q.shape[1]) > 0)[:, None]
    free = free & ~np.isneginf(answer.lse)
    return answer, Attention(
        np.where(free[..., None], np.inf, bound.out), np.where(free, np.inf, bound.lse)
    )


BLOCK_SPARSE = (
    Mistake(
        "empty-mean-so-far", "a query of a block row without blocks gets the mean of the values "
        "up to its own", "", _mean_so_far,
    ),
    Mistake(
        "counted-dense", "a block row with as many blocks as causality allows is taken for dense, "
        "whichever they are", "", changed(_counted_dense),
    ),
    Mistake(
        "offsets-of-longest", "in a batch of unequal lengths every head but the first of a "
        "shorter row is wrong: scores are written at offsets by the longest length, and read at "
        "offsets by the row's own", "", _shorter_rows,
    ),
)  # fmt: skip


def _axes(call: Call) -> list[sr.Neighborhood] | None:
    grid = call.pattern
    if isinstance(grid, sr.Grid) and all(isinstance(x, sr.Neighborhood) for x in grid.patterns):
        return list(grid.patterns)
    return None


def _even(call: Call) -> Call | None:
    axes = _axes(call)
    if axes is None or all(one.kernel % 2 for one in axes):
        return None
    wider = [replace(one, kernel=one.kernel // 2 * 2 + 1) for one in axes]
    return call._replace(pattern=sr.Grid(call.pattern.shape, wider))  # type: ignore[attr-defined]


def _exchanged(call: Call) -> Call | None:
    axes = _axes(call)
    if axes is None or len(axes) != 2 or axes[0] == axes[1]:
        return None
    row, column = np.divmod(np.arange(call.k.shape[2]), axes[1].length)
    both = axes[1](row[:, None], row) & axes[0](column[:, None], column)
    return call._replace(pattern=sr.Tokens(both))


def _nan_as_nothing(call: Call) -> Outcome | None:
    """Where a NaN that nobody may look at meets a row, the row is 0."""
    bad = ~np.isfinite(call.v.astype(np.float64)).all(axis=(2, 3))
    if not bad.any():
        return None
    answer, bound = right(call)
    rows = np.repeat(bad, call.q.shape[1] // call.k.shape[1], axis=1)[..., None]
    free = np.where(rows, np.inf, bound.lse)
    off = np.where(rows[..., None], 0.0, bound.out)
    return Attention(np.where(rows[..., None], 0.0, answer.out), answer.lse), Attention(off, free)


MASKED = (
    Mistake(
        "masked-nan-to-0", "a NaN that nobody may look at makes all rows of its head 0", "",
        _nan_as_nothing,
    ),
)  # fmt: skip

NEIGHBORHOODS = (
    Mistake(
        "neighborhood-even+1", "a neighborhood of an even number of keys has one key more on "
        "every axis", "", changed(_even),
    ),
    Mistake(
        "neighborhood-axes-exchanged", "rows are cut by the width and the kernel of columns, "
        "columns by those of rows", "", changed(_exchanged),
    ),
)  # fmt: skip


def _whole_bucket(call: Call) -> Call | None:
    """Zeros up to a whole bucket are keys like others."""
    pattern = call.pattern
    if not isinstance(pattern, sr.Chunked):
        return None
    more = -call.k.shape[2] % pattern.size
    if not more:
        return None
    k, v = (np.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (call.k, call.v))
    return call._replace(k=k, v=v, attributes={**call.attributes, "q_start": 0})


BUCKETS = (
    Mistake(
        "bucket-padding-seen", "zeros up to a whole bucket are seen by the queries around it", "",
        changed(_whole_bucket),
    ),
)  # fmt: skip
