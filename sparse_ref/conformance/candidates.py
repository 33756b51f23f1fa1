"""A real kernel's call made into an implementation that every judge takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sparse_ref.patterns import Full

from .calling import Signed, options_of
from .case import dtype_named
from .frameworks import ARRAYS, Framework
from .layout import LAYOUTS, Dense, Packed, Shape, lay
from .spelling import SPELLINGS, Asked


@dataclass(frozen=True)
class Candidate:
    """`fn` in the layout, arrays, type and words it wants, as `fn(q, k, v, pattern, **attributes)`.

    Parameters
    ----------
    fn : callable
        Called with q, k, v and, where `spell` is given, the keyword arguments that say what is
        asked; without it with the pattern and the attributes as they are.
    layout : "bhsd", "bshd", "thd" or "paged"
        Batch, heads, sequence, size of the arrays. "thd" packs all sequences, and all documents,
        into one and passes cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, as varlen
        kernels take them. "paged" is "bshd" for q, with k and v in pages (pages, page_size, g, d)
        and cache_seqlens, block_table, as `flash_attn_with_kvcache` takes them.
    arrays : "numpy", "torch", "jax" or "dlpack"
        What is passed and answered; "dlpack": objects that have `__dlpack__` and nothing else.
        Those of torch and jax are differentiated by them, so that such a candidate has gradients;
        others have them if fn.vjp is there.
    device : str, optional
        For torch and jax.
    dtype : str, optional
        What inputs are converted to; the output goes back to what was given.
    spell : str, optional
        Whose arguments: "sdpa", "flex", "flash_attn" (dense and varlen), "flash_attn_kvcache",
        "xformers", "flashinfer", "jax_nn", "ort_gqa". What these cannot say is NotImplementedError.
    page_size : int
        Keys in a page of layout "paged".

    Raises
    ------
    ValueError
        Naming the argument, what it must be and what was got.

    >>> import sparse_ref as sr
    >>> def kernel(q, k, v, *, causal, window_size):  # (b, s, h, d), as flash-attention has it
    ...     mask = sr.SlidingWindow(*(None if x < 0 else x for x in window_size))
    ...     q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    ...     return sr.attention(q, k, v, mask).out.swapaxes(1, 2).astype(np.float32)
    >>> mine = Candidate(kernel, layout="bshd", spell="flash_attn")
    >>> sr.check(mine, sr.cases(quick=True, only="window/", options=False)).counts
    {'PASS': 7}
    """

    fn: Callable[..., Any]
    layout: str = "bhsd"
    arrays: str = "numpy"
    device: str | None = None
    dtype: str | None = None
    spell: str | None = None
    page_size: int = 16
    __signature__ = Signed()

    def __post_init__(self) -> None:
        choices = (("layout", LAYOUTS), ("arrays", ARRAYS), ("spell", (None, *SPELLINGS)))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, allowed))}, "
                    f"got {getattr(self, name)!r}"
                )
        if not self.page_size >= 1:
            raise ValueError(f"page_size must be >= 1, got {self.page_size!r}")

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        call = self._spelled(q, k, pattern, attributes)
        given = [self._to.sent(x) for x in self._laid(call, q, k, v)]
        got = self.fn(*given, **self._all_sent(call))
        out, lse = got[:2] if isinstance(got, (tuple, list)) else (got, None)
        out = call.layout.queries_back(self._whole(self._to.back(out)))
        return out.astype(q.dtype), None if lse is None else self._natural(call, lse)

    @property
    def vjp(self) -> Callable[..., Any]:
        """Its gradients: those of torch or jax, or of fn.vjp."""
        if self.arrays not in ("torch", "jax") and not callable(getattr(self.fn, "vjp", None)):
            raise AttributeError("vjp")
        return self._vjp

    def signature(self) -> inspect.Signature:
        """What may be asked: anything where it is spelled, else what fn takes."""
        if self.spell is not None:
            return inspect.signature(type(self).__call__)
        signature = inspect.signature(self.fn)
        own = {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "cache_seqlens",
               "block_table"}  # fmt: skip
        return signature.replace(
            parameters=[x for x in signature.parameters.values() if x.name not in own]
        )

    @property
    def _to(self) -> Framework:
        return Framework(self.arrays, self.device)

    def _spelled(self, q: Any, k: Any, pattern: Any, attributes: dict[str, Any]) -> _Spelled:
        shape = Shape(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])
        layout = lay(self.layout, pattern, attributes, shape, self.page_size)
        own = dict(layout.arguments)
        if self.spell is None:
            more = {} if layout.pattern is None else {"pattern": layout.pattern}
            return _Spelled(layout, own | more | layout.attributes, None)
        if self.spell == "flashinfer":  # takes no starts of sequences: it is one
            layout, own = lay(self.layout, None, {}, shape, self.page_size), {}
        left = pattern if layout.pattern is None else layout.pattern
        asked = Asked(Full() if left is None else left, shape, attributes, layout.lengths_said)
        more = SPELLINGS[self.spell](asked)
        known = options_of(self.fn)
        for name in more:
            if known is not None and name not in known and name != "mask":
                raise NotImplementedError(f"it takes no {name}=")
        if self.spell == "flex":
            more["block_mask"] = _block_mask(self._to.sent(more.pop("mask")))
        grouped = shape.g if self.spell == "xformers" and shape.g < shape.h else None
        if grouped:
            b, h, g, m, n = shape
            more["attn_bias"] = more["attn_bias"].reshape(b, g, h // g, m, n)
        return _Spelled(layout, own | more, grouped)

    def _laid(self, call: _Spelled, q: Any, k: Any, v: Any) -> list[Any]:
        if self.dtype is not None:
            q, k, v = (x.astype(dtype_named(self.dtype)) for x in (q, k, v))
        laid = [call.layout.queries(q), call.layout.keys(k), call.layout.values(v)]
        if call.grouped is not None:  # (b, s, g, h / g, d), keys the same for all of a group
            b, m, h, d = laid[0].shape
            each = h // call.grouped
            laid[0] = laid[0].reshape(b, m, call.grouped, each, d)
            laid[1:] = [np.repeat(x[:, :, :, None], each, axis=3) for x in laid[1:]]
        return laid

    def _all_sent(self, call: _Spelled) -> dict[str, Any]:
        sent = self._to.sent
        return {name: sent(x) if isinstance(x, np.ndarray) else x for name, x in call.more.items()}

    def _whole(self, out: Any) -> Any:
        """Groups of heads side by side again."""
        if out.ndim != 5:
            return out
        b, m, g, each, e = out.shape
        return out.reshape(b, m, g * each, e)

    def _natural(self, call: _Spelled, lse: Any) -> Any:
        """An lse as (b, h, m), to base e."""
        lse = self._to.back(lse)
        if self.spell == "flashinfer":  # (tokens, h), to base 2
            lse = lse.T * np.log(2).astype(lse.dtype)
        return call.layout.lse_back(lse)

    def _vjp(self, q: Any, k: Any, v: Any, pattern: Any, dout: Any, **attributes: Any) -> Any:
        dlse = attributes.pop("dlse", None)
        call = self._spelled(q, k, pattern, attributes)
        if call.grouped is not None or (dlse is not None and self.layout != "bhsd"):
            raise NotImplementedError("gradients of this layout are not read")
        given, more = self._laid(call, q, k, v), self._all_sent(call)
        above = call.layout.queries(dout)
        if self.arrays in ("torch", "jax"):
            leaves = [self._to.sent(x) for x in given]

            def cotangents(answer: Any) -> list[Any]:
                several = isinstance(answer, (tuple, list))
                if dlse is not None and not several:
                    raise NotImplementedError("it gives no lse")
                ends = [*answer] if several else [answer]
                wanted = [above, dlse if dlse is not None else np.zeros(dout.shape[:3])]
                return [
                    self._to.sent(x.astype(self._to.back(end).dtype).reshape(end.shape))
                    for x, end in zip(wanted, ends, strict=False)
                ]

            found = self._to.vjp(lambda *x: self.fn(*x, **more), leaves, cotangents)
        else:
            extra = {} if dlse is None else {"dlse": dlse}
            found = self.fn.vjp(*map(self._to.sent, [*given, above]), **more, **extra)  # type: ignore[attr-defined]
        dq, dk, dv = (self._to.back(x) for x in found[:3])
        layout = call.layout
        return tuple(
            back(x).astype(like.dtype)
            for back, x, like in (
                (layout.queries_back, dq, q), (layout.keys_back, dk, k), (layout.keys_back, dv, v),
            )
        )  # fmt: skip


class _Spelled(NamedTuple):
    """One call in fn's words: the layout, the keyword arguments, the groups of heads if apart."""

    layout: Dense | Packed
    more: dict[str, Any]
    grouped: int | None


def _block_mask(mask: Any) -> Any:
    """What FlexAttention takes, from a dense mask (1 or b, h, m, n) of torch's."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415

    b, h, m, n = mask.shape
    if not m * n:
        return None  # no pair to look at, and create_block_mask refuses to

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return mask[batch if b > 1 else 0, head, query, key]

    return create_block_mask(seen, b if b > 1 else None, h, m, n, device=str(mask.device))
