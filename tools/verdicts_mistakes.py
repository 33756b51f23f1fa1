"""ONNX Runtime's SparseAttention: layouts to ask for, and a mistake of its own.

Mistakes that anybody may make stand in the catalogue of `sparse_ref.conformance`; this one
comes of how one runtime stores a batch of unequal lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, right
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
        "offsets-of-longest", "in a batch of unequal lengths every head but the first of a "
        "shorter row is wrong: scores are written at offsets by the longest length, and read at "
        "offsets by the row's own", "", _shorter_rows,
    ),
)  # fmt: skip
