"""What a file chose, held against `sparse_ref.selection` on the values that scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr
from sparse_ref import selection
from sparse_ref.selection.trained import importance

from .reference_op import listed_pattern

Array = NDArray[Any]
SCORED = {
    "topk_keys": ("q", "k"), "topk_blocks": ("q", "k"), "moba": ("q", "k"),
    "nsa_blocks": ("q", "k"), "msa": ("index_q", "index_k"),
    "lightning_indexer": ("index_q", "index_k", "index_weights"),
}  # fmt: skip
EXACT = 2.0**24  # whole numbers below it are exact in float32


class Choice(NamedTuple):
    """A selector as the metadata of a file says it."""

    selector: str
    parameters: dict[str, Any]
    visible: sr.Pattern

    @classmethod
    def of(cls, said: dict[str, Any]) -> Choice:
        """From the JSON of `sparse_ref.selection`; ValueError where it is none."""
        given = dict(said)
        name, visible = given.pop("selector"), sr.from_dict(given.pop("visible"))
        if name not in SCORED:
            raise ValueError(f"selector must be one of {', '.join(SCORED)}, got {name!r}")
        return cls(name, given, visible)

    def __str__(self) -> str:
        numbers = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"what {self.selector} chooses ({numbers}) of {self.visible!r}"

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of the values that score: queries, keys, and weights if there are any."""
        return SCORED[self.selector]

    def made(self, got: Mapping[str, Array]) -> sr.Selection:
        """What is right to choose."""
        choose = getattr(selection, self.selector)
        answer = choose(*(got[x] for x in self.scored), visible=self.visible, **self.parameters)
        assert isinstance(answer, sr.Selection)
        return answer


def chosen(
    choice: Choice,
    got: Mapping[str, Array],
    lists: tuple[str, ...],
    shape: tuple[int, int, int, int],
) -> tuple[sr.Pattern, int, str | None]:
    """What the lists of a file show each query, how many rows chose wrongly, and the first of them.

    A row is right if it sees the keys that the selector chooses, or others that score the same up
    to what float32 rounds (float64 in a file of that type): never where scores are exact.
    """
    (b, h, m, n), listed = shape, [got[name] for name in lists]
    columns = -(-n // listed[3].shape[2])
    inside = listed[0][np.arange(listed[0].shape[-1]) < listed[1][..., None]]
    if inside.size and not 0 <= inside.min() <= inside.max() < columns:
        return sr.Full(), b * h * m, f"a list must have blocks below {columns}"
    said = listed_pattern(*listed, shape=shape)
    want = choice.made(got)
    off, first = 0, None
    for i in range(b):
        asked = want.mask(m, n, heads=h, batch=i)
        answered = said.for_batch(i).counts(m, n, heads=h, q_start=0)
        for head, t in np.argwhere((asked != answered).any(axis=2)).tolist():
            row = _Row(choice, want, got, (i, head, t), h)
            if reason := row.wrong(answered[head, t], asked[head, t]):
                off, first = off + 1, first or f"batch {i}, head {head}, query {t} {reason}"
    return said, off, first


class _Row:
    """One query of one head whose keys are not those of the selector."""

    def __init__(
        self, choice: Choice, want: sr.Selection, got: Mapping[str, Array],
        at: tuple[int, int, int], heads: int,
    ) -> None:  # fmt: skip
        i, head, t = at
        self.choice, self.want, self.size = choice, want, want.key_block
        arrays = [got[x] for x in choice.scored]
        self.eps = float(np.finfo(np.result_type(arrays[0].dtype, np.float32)).eps)
        q, k = (x[i].astype(np.float64) for x in arrays[:2])
        lists = want.indices.shape[1]
        each, one = len(q) // lists, head * lists // heads
        self.q = q[one * each : (one + 1) * each, t]
        self.k = k[one * each // (len(q) // len(k))]
        self.weights = arrays[2][i, t].astype(np.float64) if len(arrays) > 2 else None
        self.keys = np.arange(len(self.k))
        self.p = len(self.k) - q.shape[1] + t
        self.seen = np.broadcast_to(choice.visible(np.int64(self.p), self.keys), len(self.k))

    def wrong(self, answered: Array, asked: Array) -> str | None:
        """Why another choice is no right one, in words; None if it is."""
        own, right = (
            {int(x) for x in np.unique(self.keys[row > 0] // self.size)}
            for row in (answered, asked)
        )
        within = np.isin(self.keys // self.size, [*own]) & self.seen
        if not np.array_equal(answered, within):
            return "sees other keys of a block than those that it could see"
        missing, extra = sorted(right - own), sorted(own - right)
        what = "keys" if self.size == 1 else "blocks"
        differs = f"lacks the {what} {missing}, and has {extra} instead"
        if len(own) != len(right) or set(missing) & self._forced():
            return differs
        scores, slack = self._scores()
        exact = not slack.any()
        near = all(scores[x] - scores[y] <= slack[x] + slack[y] for x in missing for y in extra)
        return None if near and not exact else differs

    def _forced(self) -> set[int]:
        """The blocks that come first, whatever they score."""
        if self.want.always is None:
            return set()
        first = np.broadcast_to(self.want.always(np.int64(self.p), self.keys), len(self.k))
        return {int(x) for x in np.unique(self.keys[first & self.seen] // self.size)}

    def _scores(self) -> tuple[Array, Array]:
        """What each key or block scores, in float64, and how far a file may be from it."""
        given, eps, d = self.choice.parameters, self.eps, self.q.shape[1]
        if self.choice.selector == "nsa_blocks":
            return self._importance(**given)
        dots, sizes = self.q @ self.k.T, np.abs(self.q) @ np.abs(self.k).T
        if self.weights is not None:
            dots, sizes = np.maximum(dots, 0), sizes * np.abs(self.weights)[:, None]
            dots = dots * self.weights[:, None]
        dots, sizes = dots.sum(axis=0), sizes.sum(axis=0)
        slack = (d + len(self.q) + self.size + 3) * eps * sizes
        if self._whole() and 64 * self.size**2 * sizes.max(initial=0) < EXACT:
            slack = np.zeros_like(slack)
        if self.size == 1:
            return dots, slack
        number = int(self.keys[-1]) // self.size + 1
        best = np.full(number, -np.inf)
        total, loose = np.zeros(number), np.zeros(number)
        block = self.keys[self.seen] // self.size
        np.maximum.at(best, block, dots[self.seen])
        np.add.at(total, block, dots[self.seen])
        np.maximum.at(loose, block, slack[self.seen])
        count = np.bincount(block, minlength=number)
        greatest = self.choice.selector == "msa" or given.get("pool") == "max"
        return (best if greatest else total / np.maximum(count, 1)), loose

    def _whole(self) -> bool:
        """Whether all that scores is a multiple of 1/4, so that sums of products are exact."""
        arrays = [self.q, self.k, *([] if self.weights is None else [self.weights])]
        return all((4 * x == np.rint(4 * x)).all() for x in arrays)

    def _importance(
        self, window: int, stride: int, scale: float | None = None, **others: Any
    ) -> tuple[Array, Array]:
        """The share of every block in the softmax over the means of windows of keys."""
        n, d = self.k.shape
        starts = np.arange(0, n - window + 1, stride)
        at = starts[:, None] + np.arange(window)
        factor = d**-0.5 if scale is None else scale
        means, size = self.k[at].mean(axis=1), np.abs(self.k[at]).mean(axis=1)
        scores = np.where(self.seen[at].all(axis=1), factor * (self.q @ means.T), -np.inf)
        error = (d + window + 4) * self.eps * abs(factor) * (np.abs(self.q) @ size.T)
        peak = scores.max(axis=1, initial=-np.inf, keepdims=True)
        p = np.exp(scores - np.where(np.isinf(peak), 0, peak))
        p = p / np.maximum(p.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        numbers = np.arange(-(-n // self.size))
        parts = importance(p, numbers, self.size // stride, window // stride).sum(axis=0)
        off = 2 * error.max(initial=0) + (len(starts) + window + len(self.q) + 8) * self.eps
        return parts, off * parts + np.finfo(np.float32).tiny
