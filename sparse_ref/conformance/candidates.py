"""A real kernel's call made into an implementation that every judge takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref.patterns import Full

from .case import dtype_named
from .spelling import SPELLINGS, Asked

LAYOUTS = ("bhsd", "bshd", "thd")
ARRAYS = ("numpy", "torch", "jax", "dlpack")


@dataclass(frozen=True)
class Candidate:
    """`fn` in the layout, arrays, type and words it wants, as `fn(q, k, v, pattern, **attributes)`.

    Parameters
    ----------
    fn : callable
        Called with q, k, v and, where `spell` is given, the keyword arguments that say what is
        asked; without it with the pattern and the attributes as they are.
    layout : "bhsd", "bshd" or "thd"
        Batch, heads, sequence, size of the arrays; "thd" packs all sequences into one and passes
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, as varlen kernels take them.
    arrays : "numpy", "torch", "jax" or "dlpack"
    device : str, optional
        For torch and jax.
    dtype : str, optional
        What inputs are converted to; the output goes back to what was given.
    spell : str, optional
        Whose arguments: "sdpa", "flex", "flash_attn", "xformers", "jax_nn", "ort_gqa". What these
        cannot say is NotImplementedError.

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

    def __post_init__(self) -> None:
        choices = (("layout", LAYOUTS), ("arrays", ARRAYS), ("spell", (None, *SPELLINGS)))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, allowed))}, "
                    f"got {getattr(self, name)!r}"
                )

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        (b, h, m, _), n = q.shape, k.shape[2]
        if self.spell is None:
            more = {} if pattern is None else {"pattern": pattern}
            more |= attributes
        else:
            asked = Asked(Full() if pattern is None else pattern, b, h, m, n, attributes)
            more = SPELLINGS[self.spell](asked)
            if self.spell == "flex":
                more["block_mask"] = _block_mask(self._sent(more.pop("mask")))
        if self.layout == "thd":
            more |= _packed(b, m, n)
        given = [self._sent(self._laid(x)) for x in (q, k, v)]
        sent = {name: self._sent(x) if isinstance(x, np.ndarray) else x for name, x in more.items()}
        got = self.fn(*given, **sent)
        if isinstance(got, tuple):
            out, lse = got[:2]
            return self._unlaid(self._back(out), b).astype(q.dtype), self._back(lse)
        return self._unlaid(self._back(got), b).astype(q.dtype)

    def _laid(self, x: Any) -> Any:
        if self.dtype is not None:
            x = x.astype(dtype_named(self.dtype))
        if self.layout == "bhsd":
            return x
        x = np.ascontiguousarray(x.swapaxes(1, 2))
        return x.reshape(-1, *x.shape[2:]) if self.layout == "thd" else x

    def _unlaid(self, x: Any, b: int) -> Any:
        if self.layout == "bhsd":
            return x
        if self.layout == "thd":
            x = x.reshape(b, -1, *x.shape[1:])
        return x.swapaxes(1, 2)

    def _sent(self, x: Any) -> Any:
        if self.arrays == "torch":
            import torch  # noqa: PLC0415

            if x.dtype.name == "bfloat16":
                bits = torch.from_numpy(np.ascontiguousarray(x).view(np.int16))
                return bits.view(torch.bfloat16).to(self.device or "cpu")
            return torch.from_numpy(np.ascontiguousarray(x)).to(self.device or "cpu")
        if self.arrays == "jax":
            import jax  # noqa: PLC0415

            return jax.device_put(x, None if self.device is None else jax.devices(self.device)[0])
        return x

    def _back(self, x: Any) -> Any:
        if self.arrays == "torch":
            x = x.detach().cpu()
            if str(x.dtype) == "torch.bfloat16":
                return x.float().numpy()
            return x.numpy()
        if self.arrays == "dlpack" and not isinstance(x, np.ndarray):
            return np.from_dlpack(x)
        return np.asarray(x)


def _block_mask(mask: Any) -> Any:
    """What FlexAttention takes, from a dense mask (1 or b, h, m, n) of torch's."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415

    b, h, m, n = mask.shape

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return mask[batch if b > 1 else 0, head, query, key]

    return create_block_mask(seen, b if b > 1 else None, h, m, n, device=str(mask.device))


def _packed(b: int, m: int, n: int) -> dict[str, Any]:
    """Where each of b sequences of one length starts, as varlen kernels are told."""
    return {
        "cu_seqlens_q": np.arange(b + 1, dtype=np.int32) * m,
        "cu_seqlens_k": np.arange(b + 1, dtype=np.int32) * n,
        "max_seqlen_q": m,
        "max_seqlen_k": n,
    }
