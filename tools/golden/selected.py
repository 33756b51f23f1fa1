"""Patterns that the content chooses: what is chosen is written down as lists of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref import selection
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.probes import Sizes
from sparse_ref.patterns import Pattern

from .stream import Stream

DEPTH = 3  # of index heads
SELECTORS: dict[str, Callable[..., selection.Selection]] = {
    "topk_keys": selection.topk_keys, "topk_blocks": selection.topk_blocks, "moba": selection.moba,
    "lightning_indexer": selection.lightning_indexer, "msa": selection.msa, "qsa": selection.qsa,
    "nsa_blocks": selection.nsa_blocks, "h2o": selection.h2o,
}  # fmt: skip


@dataclass(frozen=True)
class Selector:
    """One way to choose, by name and numbers; `visible` is what a query could see at all.

    `index` is the number of index heads (0: one for each key/value head) of a selector that scores
    with arrays of its own, `text` that there is a query for each key.
    """

    name: str
    arguments: dict[str, int | str]
    words: str
    flags: tuple[str, ...]
    visible: Pattern = field(default_factory=sr.Causal)
    index: int | None = None
    text: bool = False

    def draw(self, rng: Stream, s: Sizes, probe: str) -> dict[str, Any]:
        """The arrays that score in place of q and k, with the ties of the probe.

        So small that float32 holds every score exactly.
        """
        if self.index is None:
            return {}
        heads = self.index or s.g
        q = rng.integers(-16, 17, (s.b, heads, s.m, DEPTH)) / 8
        k = rng.integers(-16, 17, (s.b, s.n, DEPTH)) / 8
        if probe == "even":
            q = np.zeros(q.shape)
        if probe == "steps":
            k = k[:, np.arange(s.n) // 4 * 4]
        made = {"index_q": q, "index_k": k}
        if self.name == "lightning_indexer":
            made["index_weights"] = rng.integers(-8, 9, (s.b, s.m, heads)) / 4
        return made

    def __call__(self, call: Call, index: dict[str, Any]) -> selection.Selection:
        """What it chooses of q and k, or of the arrays of the index."""
        placed = ("q_start", "kv_positions")
        given: dict[str, Any] = {x: call.attributes[x] for x in placed if x in call.attributes}
        if not self.text:
            given["visible"] = self.visible
        arrays = index.values() if index else (call.q, call.k)
        return SELECTORS[self.name](*arrays, **self.arguments, **given)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"selector": self.name, **self.arguments, "visible": sr.to_dict(self.visible)}


def chosen(selector: Selector, call: Call, index: dict[str, Any]) -> Pattern:
    """What was chosen, as lists of keys by position: a batch row and a head each have their own."""
    (b, h, m, _), n = call.q.shape, call.k.shape[2]
    made = selector(call, index)
    starts, positions = (
        np.broadcast_to(call.attributes.get(name, default), shape)
        for name, default, shape in (
            ("q_start", n - m, (b,)), ("kv_positions", np.arange(n), (b, n)),
        )
    )  # fmt: skip
    rows, side = [], max(int(starts.max()) + m, int(positions.max()) + 1)
    for i in range(b):
        mask = made.mask(
            m, n, heads=h, q_start=int(starts[i]), kv_positions=positions[i], batch=i
        )  # fmt: skip
        rows.append(
            [sr.Tokens(_by_position(one, int(starts[i]), positions[i], side)) for one in mask]
        )
    heads = [each[0] if all(x == each[0] for x in each) else sr.PerHead(each) for each in rows]
    return heads[0] if all(x == heads[0] for x in heads) else sr.PerBatch(heads)


def _by_position(mask: Any, start: int, positions: Any, side: int) -> Any:
    """Who sees whom, from slots to positions; what is before position 0 is padding."""
    seen = np.zeros((side, side), bool)
    queries = np.arange(start, start + mask.shape[0])
    real, slots = queries >= 0, positions >= 0
    if mask[~real].any() or mask[:, ~slots].any():
        raise ValueError("lists of keys have no rows before position 0")
    seen[np.ix_(queries[real], positions[slots])] = mask[np.ix_(real, slots)]
    return seen
