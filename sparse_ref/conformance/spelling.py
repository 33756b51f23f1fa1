"""A pattern and options in the arguments of real kernels.

Each function answers the keyword arguments that say what is asked, or raises NotImplementedError
with the reason. What a window means to whom stands in `conventions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools
from sparse_ref.conventions.forms import Form
from sparse_ref.conventions.reading import forms_of
from sparse_ref.patterns import Pattern


class Asked(NamedTuple):
    """One call to be spelled: the pattern, the shape (b, h, m, n), the attributes."""

    pattern: Pattern
    b: int
    h: int
    m: int
    n: int
    attributes: dict[str, Any]

    @property
    def start(self) -> int:
        """The position of the first query."""
        given = self.attributes.get("q_start")
        return self.n - self.m if given is None else int(np.max(given))

    def form(self) -> Form:
        """The pattern as a window; NotImplementedError if it is none."""
        if self.pattern.multiset or self.pattern.heads > 1 or self.pattern.batches is not None:
            raise NotImplementedError(f"it has no spelling of {self.pattern!r}")
        found = [form for form in forms_of(self.pattern) if form.window]
        if not found:
            raise NotImplementedError(f"it has no spelling of {self.pattern!r}")
        return found[0]

    def mask(self) -> Bools:
        """The dense mask (1, h, m, n), padding included."""
        if self.pattern.multiset:
            raise NotImplementedError("it has no keys that count several times")
        seen = self.pattern.mask(self.m, self.n, heads=self.h, q_start=self.start)[None]
        lengths = self.attributes.get("kv_lengths")
        if lengths is None:
            return seen
        real = np.arange(self.n) < np.broadcast_to(lengths, self.b)[:, None]
        return np.asarray(seen & real[:, None, None])

    def rest(self, **names: str) -> dict[str, Any]:
        """The other attributes under the kernel's names; refuses what has none."""
        silent = {"q_start", "kv_lengths"}
        for name in set(self.attributes) - silent - set(names):
            raise NotImplementedError(f"it has no {name}=")
        return {
            theirs: self.attributes[name] for name, theirs in names.items()
            if name in self.attributes
        }  # fmt: skip


Spelling = Callable[[Asked], dict[str, Any]]


def _bottom_right(asked: Asked) -> None:
    if asked.start != asked.n - asked.m:
        raise NotImplementedError("its queries are always the last positions")


def _full_length(asked: Asked) -> None:
    if "kv_lengths" in asked.attributes:
        raise NotImplementedError("it has no lengths of keys")


def sdpa(asked: Asked) -> dict[str, Any]:
    """torch.nn.functional.scaled_dot_product_attention: is_causal where it means the same."""
    more: dict[str, Any] = {"enable_gqa": True, **asked.rest(scale="scale", bias="bias")}
    mask, bias = asked.mask(), more.pop("bias", None)
    causal = np.tri(asked.m, asked.n, dtype=bool)
    if bias is not None:
        more["attn_mask"] = np.where(mask, np.asarray(bias, np.float32), np.float32(-np.inf))
    elif mask.all():
        pass
    elif len(mask) == 1 and (mask == causal).all():
        more["is_causal"] = True
    else:
        more["attn_mask"] = mask
    return more


def flash_attn(asked: Asked) -> dict[str, Any]:
    """flash_attn_func: causal, window_size, both aligned to the end of the keys."""
    _bottom_right(asked)
    _full_length(asked)
    form = asked.form()
    sides = tuple(-1 if side is None else side for side in (form.left, form.right))
    more = asked.rest(scale="softmax_scale", softcap="softcap", alibi_slopes="alibi_slopes")
    return {"causal": form.right == 0, "window_size": sides, **more}


def xformers(asked: Asked) -> dict[str, Any]:
    """memory_efficient_attention with a dense bias, which it takes for any mask."""
    more = asked.rest(scale="scale", bias="bias")
    bias = np.asarray(more.pop("bias", 0.0), np.float32)
    shape = (asked.b, asked.h, asked.m, asked.n)
    hidden = np.where(asked.mask(), bias, np.float32(-np.inf))
    return {"attn_bias": np.broadcast_to(hidden, shape).astype(np.float32), **more}


def jax_nn(asked: Asked) -> dict[str, Any]:
    """jax.nn.dot_product_attention: local_window_size and is_causal, or a mask."""
    return {"mask": asked.mask(), **asked.rest(scale="scale", bias="bias")}


def ort_gqa(asked: Asked) -> dict[str, Any]:
    """com.microsoft.GroupQueryAttention's attributes."""
    _bottom_right(asked)
    _full_length(asked)
    form = asked.form()
    if form.right != 0:
        raise NotImplementedError("it is causal")
    window = -1 if form.left is None else form.left + 1
    return {"local_window_size": window, **asked.rest(scale="scale", softcap="softcap",
                                                      sink_logits="head_sink")}  # fmt: skip


def flex(asked: Asked) -> dict[str, Any]:
    """FlexAttention of torch: a block_mask, which `Candidate` makes of the dense mask."""
    return {"mask": asked.mask(), "enable_gqa": True, **asked.rest(scale="scale")}


SPELLINGS: dict[str, Spelling] = {
    one.__name__: one for one in (sdpa, flash_attn, xformers, jax_nn, ort_gqa, flex)
}
