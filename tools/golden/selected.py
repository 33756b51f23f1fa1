"""Patterns that the content chooses: what is chosen is written down as lists of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref import selection
from sparse_ref.conformance.case import Call
from sparse_ref.patterns import Pattern

SELECTORS: dict[str, Callable[..., selection.Selection]] = {
    "topk_keys": selection.topk_keys, "topk_blocks": selection.topk_blocks, "moba": selection.moba,
}  # fmt: skip


@dataclass(frozen=True)
class Selector:
    """One way to choose, by name and numbers; `visible` is what a query could see at all."""

    name: str
    arguments: dict[str, int | str]
    words: str
    flags: tuple[str, ...]
    visible: Pattern = field(default_factory=sr.Causal)

    def __call__(self, call: Call) -> selection.Selection:
        """What it chooses of q and k."""
        given = {x: call.attributes[x] for x in ("q_start", "kv_positions") if x in call.attributes}
        return SELECTORS[self.name](
            call.q, call.k, **self.arguments, visible=self.visible, **given
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"selector": self.name, **self.arguments, "visible": sr.to_dict(self.visible)}


def chosen(selector: Selector, call: Call) -> Pattern:
    """What was chosen, as lists of keys by position: a batch row and a head each have their own."""
    (b, h, m, _), n = call.q.shape, call.k.shape[2]
    made = selector(call)
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


TIES = "SelectionTies"  # with the probes that make them
FORCED = ("Selection", "SelectionForced")
NAMED = {
    "topk-keys-3": Selector(
        "topk_keys", {"count": 3}, "of the keys up to its own, the 3 of greatest q . k",
        ("Selection",),
    ),
    "topk-keys-64": Selector(
        "topk_keys", {"count": 64}, "of the keys up to its own, the 64 of greatest q . k: all",
        ("Selection",),
    ),
    "topk-keys-both": Selector(
        "topk_keys", {"count": 4}, "of all keys, the 4 of greatest q . k", ("Selection",),
        sr.Full(),
    ),
    "topk-keys-window": Selector(
        "topk_keys", {"count": 2}, "of its own key and the 5 before, the 2 of greatest q . k",
        ("Selection",), sr.Causal() & sr.SlidingWindow(5, 0),
    ),
    "topk-keys-0": Selector("topk_keys", {"count": 0}, "no key", ("Selection",)),
    "topk-blocks-mean": Selector(
        "topk_blocks", {"count": 2, "block_size": 4, "pool": "mean"},
        "up to its own key, the 2 blocks of 4 keys whose mean q . k is greatest",
        ("Selection", "SelectionBlocks"),
    ),
    "topk-blocks-max": Selector(
        "topk_blocks", {"count": 2, "block_size": 3, "pool": "max"},
        "up to its own key, the 2 blocks of 3 keys with the greatest q . k",
        ("Selection", "SelectionBlocks"),
    ),
    "moba-1": Selector(
        "moba", {"count": 1, "block_size": 4}, "up to its own key, its own block of 4 keys",
        (*FORCED, "SelectionBlocks"),
    ),
    "moba-2": Selector(
        "moba", {"count": 2, "block_size": 4},
        "up to its own key, its own block of 4 keys, and the other of greatest mean q . k",
        (*FORCED, "SelectionBlocks"),
    ),
    "moba-9": Selector(
        "moba", {"count": 9, "block_size": 4},
        "up to its own key, the 9 blocks of 4 keys of greatest mean q . k, its own first: all",
        (*FORCED, "SelectionBlocks"),
    ),
}  # fmt: skip
