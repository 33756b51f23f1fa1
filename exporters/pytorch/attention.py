"""Multi-head attention whose heads see the keys of a pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .cache import KeyValueCache
from .op import sparse_attention
from .positions import alibi_slopes
from .seen import Views, documents_apart, seen

Turn = Callable[[Tensor, Tensor], Tensor]


class KeyValues(NamedTuple):
    """Keys (b, kv_heads, n, head_dim) and values (b, kv_heads, n, dim / heads)."""

    keys: Tensor
    values: Tensor


class SparseAttention(nn.Module):
    """Multi-head attention over the keys that a pattern allows: of itself, or of a memory.

    Parameters
    ----------
    dim : int
        Size of a token's vector, a multiple of `heads`.
    heads : int
    pattern : Pattern
        Which keys each query sees; head h uses `pattern.at(h)`.
    kv_heads : int, default heads
        Heads of key and value, shared by groups of query heads (arXiv:2305.13245); divides `heads`.
    head_dim : int, default dim / heads
        Size of a head's queries and keys; its values have dim / heads.
    dropout : float
        Of the output, as in Child et al. (arXiv:1904.10509). Weights are never stored, and none
        are dropped.
    sinks : bool
        Learn one more score for every head, in the denominator only (arXiv:2309.17453).
    alibi : bool
        Scores fall with distance (arXiv:2108.12409).
    rotary : callable, optional
        (q or k, positions) -> the same turned, such as `Rotary`. Cross-attention does not turn.

    `qkv` holds the three projections, query heads first; `project` is W_p of Child et al.

    Examples
    --------
    >>> layer = SparseAttention(12, 4, sr.Causal() & sr.SlidingWindow(2, 0), kv_heads=2)
    >>> layer(torch.zeros(1, 5, 12)).shape
    torch.Size([1, 5, 12])
    """

    slopes: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: sr.Pattern,
        kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        dropout: float = 0.0,
        sinks: bool = False,
        alibi: bool = False,
        rotary: Turn | None = None,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads = {heads}, got {dim}")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads = {heads}, got {kv_heads}")
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim must be >= 1, got {head_dim}")
        self.pattern, self.heads, self.kv_heads = pattern, heads, kv_heads
        self.value_dim = dim // heads
        self.head_dim = self.value_dim if head_dim is None else head_dim
        self.sizes = [heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.value_dim]
        self.qkv = nn.Linear(dim, sum(self.sizes))
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.rotary = rotary
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None
        self.register_buffer("slopes", alibi_slopes(heads) if alibi else None, persistent=False)

    @property
    def pattern(self) -> sr.Pattern:
        """Which keys each query sees; another may be put in its place."""
        return self.views.pattern

    @pattern.setter
    def pattern(self, pattern: sr.Pattern) -> None:
        self.views = Views.of(pattern)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | KeyValues | None = None,
        *,
        key_length: Tensor | None = None,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(b, m, dim) -> (b, m, dim).

        Parameters
        ----------
        x : (b, m, dim) tensor
        memory : (b, n, dim) tensor or what `remember` made of one, optional
            Whose keys and values are attended to; queries then stand at 0, 1, ...
        key_length : (b,) int64 tensor, optional
            How many keys there are in each row, the others behind them.
        key_mask : (b, n) bool tensor, optional
            Where there are keys, at any places. Positions stay as they are.
        documents : (n,) or (b, n) int64 tensor, optional
            The document of each token; each is attended to as if it were alone, at positions 0, 1,
            ..., and a token of a negative one sees nothing.
        cache : KeyValueCache, optional
            Tokens before these, which are then put behind them; `key_length` counts these alone.
        """
        _checked("x", x, "m", self.qkv.in_features)
        if isinstance(memory, Tensor):
            _checked("memory", memory, "n", self.qkv.in_features)
        if memory is not None and (self.slopes is not None or cache is not None):
            raise ValueError("memory must come without cache, and to an attention without alibi")
        if documents is not None:
            others = memory, key_length, key_mask, cache
            return self._packed(x, documents, *others)  # type: ignore[no-any-return]
        if cache is not None and key_mask is not None:
            raise ValueError("key_mask must be key_length with a cache, got a mask")
        q, (k, v) = self.projected(x, memory, None if cache is None else cache.length[:, None])
        options: dict[str, Any] = {}
        if cache is None:
            pattern, options = seen(self.views, k, key_length, key_mask)
            options |= {} if memory is None else self.views.from_first(q, k)
        else:
            pattern, before = self.pattern, cache.length.clone()
            k, v = cache.append(k, v, key_length)
            if key_length is not None or (before != before[0]).any():
                options = {"q_start": before, "key_length": cache.length}
        return self._out(attend(q, k, v, pattern, self.scores(), **options))

    def remember(self, memory: Tensor) -> KeyValues:
        """Keys and values of a memory (b, n, dim), to attend to many times."""
        wide = self.sizes[0]
        both = nn.functional.linear(memory, self.qkv.weight[wide:], self.qkv.bias[wide:])
        keys, values = torch.split(both, self.sizes[1:], dim=-1)
        return KeyValues(_heads(keys, self.kv_heads), _heads(values, self.kv_heads))

    def projected(
        self, x: Tensor, memory: Tensor | KeyValues | None = None, start: Tensor | int | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Queries, and keys and values, of tokens whose first is at `start`, (b, 1) or 0."""
        if memory is not None:
            wide = self.sizes[0]
            q = nn.functional.linear(x, self.qkv.weight[:wide], self.qkv.bias[:wide])
            return _heads(q, self.heads), (
                memory if isinstance(memory, KeyValues) else self.remember(memory)
            )
        parts = torch.split(self.qkv(x), self.sizes, dim=-1)
        numbers = self.heads, self.kv_heads, self.kv_heads
        q, k, v = (_heads(part, number) for part, number in zip(parts, numbers, strict=True))
        if self.rotary is not None:
            places = torch.arange(x.shape[1], device=x.device)[None] + (
                0 if start is None else start
            )
            q, k = self.rotary(q, places), self.rotary(k, places)
        return q, KeyValues(k, v)

    def scores(self) -> dict[str, Any]:
        """What changes the scores of this attention, as `sparse_attention` takes it."""
        given = {"sink_logits": self.sinks, "alibi_slopes": self.slopes}
        return {name: x for name, x in given.items() if x is not None}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # documents make own patterns
    def _packed(self, x: Tensor, documents: Tensor, *others: Any) -> Tensor:
        if any(one is not None for one in others):
            raise ValueError("documents must come alone: a negative one is padding")
        patterns, places = documents_apart(self.pattern, documents, x)
        q, (k, v) = self.projected(x, start=places - torch.arange(x.shape[1], device=x.device))
        if len(patterns) == 1:
            return self._out(attend(q, k, v, patterns[0], self.scores()))
        each = [
            attend(q[i : i + 1], k[i : i + 1], v[i : i + 1], pattern, self.scores())
            for i, pattern in enumerate(patterns)
        ]
        return self._out(torch.cat(each))

    def _out(self, out: Tensor) -> Tensor:
        projected: Tensor = self.dropout(self.project(out.transpose(1, 2).flatten(2)))
        return projected

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, pattern={self.pattern!r}"


def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: sr.Pattern, scores: dict[str, Any], **options: Any
) -> Tensor:
    """`sparse_attention`, in float32 where q.k could pass the largest float16."""
    if q.dtype == torch.float16:
        return attend(q.float(), k.float(), v.float(), pattern, scores, **options).half()
    if not torch.is_autocast_enabled(q.device.type):
        return sparse_attention(q, k, v, pattern, **scores, **options)
    with torch.autocast(q.device.type, enabled=False):  # what is inside has types of its own
        return sparse_attention(q, k, v, pattern, **scores, **options)


def _checked(name: str, x: Tensor, rows: str, dim: int) -> None:
    if x.dim() != 3 or x.shape[-1] != dim or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"{name} must be a float tensor (b, {rows}, {dim}), got {got}")


def _heads(x: Tensor, number: int) -> Tensor:
    """(b, n, h d) as (b, h, n, d)."""
    b, n, dim = x.shape
    return x.view(b, n, number, dim // number).transpose(1, 2)
