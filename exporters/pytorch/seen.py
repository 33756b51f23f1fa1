"""Padding and packing, in the operator's terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sparse_ref as sr

from .op import spelled

PRESENT = sr.Runtime("tokens")


def seen(
    pattern: sr.Pattern, keys: Tensor, key_length: Tensor | None, key_mask: Tensor | None
) -> tuple[sr.Pattern, dict[str, Any]]:
    """The pattern and the options by which `sparse_attention` sees the keys that are there.

    A mask with all keys in front is a length. Any other becomes a table of the pattern; so does
    every mask in a graph that is compiled or exported, where nobody can look at it.
    """
    b, n = keys.shape[0], keys.shape[2]
    if key_mask is None:
        if key_length is not None and key_length.shape != (b,):
            raise ValueError(f"key_length must have shape ({b},), got {tuple(key_length.shape)}")
        return pattern, {} if key_length is None else {"key_length": key_length}
    if key_length is not None:
        raise ValueError("key_length and key_mask must not both be given")
    if key_mask.dtype != torch.bool or key_mask.shape != (b, n):
        got = f"{key_mask.dtype} {tuple(key_mask.shape)}"
        raise ValueError(f"key_mask must be a bool tensor ({b}, {n}), got {got}")
    if not torch.compiler.is_compiling():
        lengths = key_mask.sum(1)
        if torch.equal(key_mask, torch.arange(n, device=keys.device) < lengths[:, None]):
            return pattern, {"key_length": lengths}
    if '"runtime"' in spelled(pattern):
        raise ValueError("key_mask must have all keys in front where the pattern has a Runtime")
    return pattern & sr.Keys(PRESENT), {"tokens": key_mask}


def documents_apart(pattern: sr.Pattern, documents: Tensor) -> tuple[list[sr.Pattern], Tensor]:
    """The pattern of every row (one if they are alike), and each token's place in its document."""
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "documents cannot be exported: use pattern & Document(Runtime(...)) with "
            "sparse_attention(..., tokens=ids)"
        )
    rows = documents.cpu().reshape(-1, documents.shape[-1])
    if rows.dtype != torch.int64 or documents.dim() > 2:
        raise ValueError(
            f"documents must be an int64 tensor (n,) or (b, n), got {documents.dtype} "
            f"{tuple(documents.shape)}"
        )
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
