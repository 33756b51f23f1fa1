"""A real kernel's call made into an implementation that every judge takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ref.patterns import Full

from .calling import Signed, named, options_of
from .case import Call, dtype_named
from .frameworks import ARRAYS, Framework, block_mask
from .layout import LAYOUTS, Dense, Packed, Shape, lay
from .sessions import Session, is_file, is_session, session_of
from .spelling import SPELLINGS, Asked


@dataclass(frozen=True)
class Candidate:
    """`fn` in the layout, arrays, type and words it wants, as `fn(q, k, v, pattern, **attributes)`.

    Parameters
    ----------
    fn : callable, "module:function", path of an ONNX file, or InferenceSession
        A function is called with q, k, v and, where `spell` is given, the keyword arguments that
        say what is asked; without it with the pattern and the attributes as they are. A file, whose
        path ends in .onnx, or a session of ONNX Runtime has inputs q, k, v and perhaps mask,
        key_length, q_start, sinks: see `conformance.sessions`. What these cannot say is
        NotImplementedError; a pattern of its own is named with `check(..., pattern=...)`.
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
        For torch and jax; "cuda" for an ONNX file.
    dtype : str, optional
        What inputs are converted to; the output goes back to what was given.
    spell : str, optional
        Whose arguments: "sdpa", "flex", "flash_attn" (dense and varlen), "flash_attn_kvcache",
        "xformers", "flashinfer", "jax_nn", "ort_gqa", "onnx23", "onnx24", "onnx25". What these
        cannot say is NotImplementedError. Operators that are called so: `conformance.operators`.
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

    fn: Any
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
        if is_file(self.fn) or is_session(self.fn):
            self._check_file()
        elif isinstance(self.fn, str) and not all(self.fn.partition(":")):
            raise ValueError(f"fn must be module:function or a path in .onnx, got {self.fn!r}")
        elif not isinstance(self.fn, str) and not callable(self.fn):
            raise TypeError(f"fn must be callable, got {type(self.fn).__name__}")

    def _check_file(self) -> None:
        for name, allowed in (("layout", LAYOUTS[:2]), ("arrays", ("numpy",)), ("spell", (None,))):
            if getattr(self, name) not in allowed:
                said = " or ".join(map(str, allowed))
                raise ValueError(
                    f"{name} must be {said} with an ONNX file, got {getattr(self, name)!r}"
                )
        if is_file(self.fn) and not Path(self.fn).is_file():
            raise ValueError(f"fn must be the path of an ONNX file, got {str(self.fn)!r}")

    def __reduce__(self) -> Any:  # what was opened stays where it is
        return type(self), tuple(getattr(self, one.name) for one in fields(self))

    @cached_property
    def called(self) -> Any:
        """The function, imported or opened when it is first needed."""
        heads_last = self.layout == "bshd"
        if is_session(self.fn):
            return Session(self.fn, heads_last=heads_last)
        if is_file(self.fn):
            return session_of(Path(self.fn), heads_last=heads_last, device=self.device)
        return named(self.fn) if isinstance(self.fn, str) else self.fn

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        call = self._spelled(q, k, pattern, attributes)
        given = [self._to.sent(x) for x in self._laid(call, q, k, v)]
        got = self.called(*given, **self._all_sent(call))
        out, lse = got[:2] if isinstance(got, (tuple, list)) else (got, None)
        out = call.layout.queries_back(self._whole(self._to.back(out)))
        return out.astype(q.dtype), None if lse is None else self._natural(call, lse)

    @property
    def vjp(self) -> Callable[..., Any]:
        """Its gradients: those of torch or jax, or of fn.vjp."""
        if self.arrays not in ("torch", "jax") and not callable(getattr(self.called, "vjp", None)):
            raise AttributeError("vjp")
        return self._vjp

    def signature(self) -> inspect.Signature:
        """What may be asked: anything where it is spelled, else what fn takes."""
        if self.spell is not None or isinstance(self.called, Session):
            return inspect.signature(type(self).__call__)
        signature = inspect.signature(self.called)
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
        session = self.called if isinstance(self.called, Session) else None
        if session is not None or self.spell is not None:  # others' words are of patterns alone
            pattern = Call(q, k, k, pattern, attributes).lowered().pattern
        layout = lay(self.layout, pattern, attributes, shape, self.page_size)
        own = dict(layout.arguments)
        if session is not None:
            whole = Full() if pattern is None else pattern
            return _Spelled(layout, session.said(Asked(whole, shape, attributes)), None)
        if self.spell is None:
            more = {} if layout.pattern is None else {"pattern": layout.pattern}
            return _Spelled(layout, own | more | layout.attributes, None)
        if self.spell == "flashinfer":  # takes no starts of sequences: it is one
            layout, own = lay(self.layout, None, {}, shape, self.page_size), {}
        left = pattern if layout.pattern is None else layout.pattern
        asked = Asked(Full() if left is None else left, shape, attributes, layout.lengths_said)
        more = SPELLINGS[self.spell](asked)
        known = options_of(self.called)
        for name in more:
            if known is not None and name not in known and name != "mask":
                raise NotImplementedError(f"it takes no {name}=")
        if self.spell == "flex":
            more["block_mask"] = block_mask(self._to.sent(more.pop("mask")))
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

            found = self._to.vjp(lambda *x: self.called(*x, **more), leaves, cotangents)
        else:
            extra = {} if dlse is None else {"dlse": dlse}
            found = self.called.vjp(*map(self._to.sent, [*given, above]), **more, **extra)
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
