"""Padding and packing, in the operator's terms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparse_ref as sr

from .op import spelled

PRESENT = sr.Runtime("tokens")


class Views(NamedTuple):
    """A pattern, and it among the keys of a mask, made once: nothing new may be in a traced graph.

    >>> Views.of(sr.Causal()).among
    Causal() & Keys(tokens=Runtime('tokens'))
    """

    pattern: sr.Pattern
    among: sr.Pattern | None  # a pattern with a Runtime has no room for another
    everything: bool

    @classmethod
    def of(cls, pattern: sr.Pattern) -> Views:
        """Of a pattern that the operator takes; any other is refused."""
        taken = '"runtime"' in spelled(pattern)
        among = None if taken else pattern & sr.Keys(PRESENT)
        return cls(pattern, among, pattern == sr.Full())

    def from_first(self, q: Tensor, k: Tensor) -> dict[str, Tensor]:
        """The option by which queries of a cross-attention stand at the first keys."""
        if self.everything or q.shape[2] == k.shape[2]:
            return {}
        return {"q_start": torch.zeros(len(q), dtype=torch.int64, device=q.device)}


def seen(
    views: Views, keys: Tensor, key_length: Tensor | None, key_mask: Tensor | None
) -> tuple[sr.Pattern, dict[str, Any]]:
    """The pattern and the options by which `sparse_attention` sees the keys that are there.

    A mask with all keys in front is a length. Any other becomes a table of the pattern; so does
    every mask in a graph that is compiled or exported, where nobody can look at it.
    """
    b, n = keys.shape[0], keys.shape[2]
    if key_mask is None:
        if key_length is not None and (
            key_length.shape != (b,) or key_length.dtype not in {torch.int32, torch.int64}
        ):
            got = f"{key_length.dtype} {tuple(key_length.shape)}"
            raise ValueError(f"key_length must be an int64 tensor ({b},), got {got}")
        return views.pattern, {} if key_length is None else {"key_length": key_length}
    if key_length is not None:
        raise ValueError("key_length and key_mask must not both be given")
    if key_mask.dtype != torch.bool or key_mask.shape != (b, n):
        got = f"{key_mask.dtype} {tuple(key_mask.shape)}"
        raise ValueError(f"key_mask must be a bool tensor ({b}, {n}), got {got}")
    if not torch.compiler.is_compiling():
        lengths = key_mask.sum(1)
        if torch.equal(key_mask, torch.arange(n, device=keys.device) < lengths[:, None]):
            return views.pattern, {"key_length": lengths}
    if views.among is None:
        raise ValueError("key_mask must have all keys in front where the pattern has a Runtime")
    return views.among, {"tokens": key_mask}


def documents_apart(
    pattern: sr.Pattern, documents: Tensor, x: Tensor
) -> tuple[list[sr.Pattern], Tensor]:
    """The pattern of every row (one if they are alike), and each token's place in its document.

    Of tokens x (b, n, dim).
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "documents cannot be exported: use pattern & Document(Runtime(...)) with "
            "sparse_attention(..., tokens=ids)"
        )
    b, n = x.shape[:2]
    if documents.dtype != torch.int64 or documents.shape not in {(n,), (b, n)}:
        raise ValueError(
            f"documents must be an int64 tensor ({n},) or ({b}, {n}), got {documents.dtype} "
            f"{tuple(documents.shape)}"
        )
    rows = documents.cpu().reshape(-1, n)
    patterns: list[sr.Pattern] = [sr.WithinDocument(pattern, row.numpy()) for row in rows]
    return patterns, torch.stack([places(row) for row in rows]).to(documents.device)


def places(row: Tensor) -> Tensor:
    """How many tokens of its own document stand before each token.

    >>> places(torch.tensor([4, 4, 0, 4, 0]))
    tensor([0, 1, 0, 2, 1])
    """
    _, document = torch.unique(row, return_inverse=True)
    order = document.argsort(stable=True)
    first = document.bincount().cumsum(0).roll(1)
    first[:1] = 0
    found = torch.empty_like(row)
    found[order] = torch.arange(len(row)) - first[document[order]]
    return found
