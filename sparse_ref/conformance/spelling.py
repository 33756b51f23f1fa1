"""A pattern and options in the arguments of real kernels.

Each function answers the keyword arguments that say what is asked, or raises NotImplementedError
with the reason. What a window means to whom stands in `conventions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Ints
from sparse_ref.conventions.forms import Form
from sparse_ref.conventions.reading import forms_of
from sparse_ref.patterns import Pattern

from .layout import Shape

LONGEST = 200  # characters of a pattern in a refusal


class Asked(NamedTuple):
    """One call to be spelled: the pattern, the shape, the attributes.

    `lengths_said`: the layout says by itself how many keys a row has.
    """

    pattern: Pattern
    shape: Shape
    attributes: dict[str, Any]
    lengths_said: bool = False

    @property
    def lengths(self) -> Ints:
        """How many keys each row has (b,)."""
        given = self.attributes.get("kv_lengths")
        return np.broadcast_to(self.shape.n if given is None else given, self.shape.b)

    @property
    def starts(self) -> Ints:
        """The position of the first query of each row (b,)."""
        given = self.attributes.get("q_start")
        return np.broadcast_to(
            self.shape.n - self.shape.m if given is None else given, self.shape.b
        )

    def form(self) -> Form:
        """The pattern as a window; NotImplementedError if it is none."""
        one = self.pattern
        plain = not one.multiset and one.heads == 1 and one.batches is None
        found = [form for form in forms_of(one) if form.window] if plain else []
        if not found:
            said = repr(one)
            said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
            raise NotImplementedError(f"it has no spelling of {said}")
        return found[0]

    def window(self) -> Form | None:
        """The same, or None."""
        try:
            return self.form()
        except NotImplementedError:
            return None

    def last(self) -> None:
        """Refuses what is not told by the layout: lengths, and queries that are not the last."""
        if "kv_lengths" in self.attributes and not self.lengths_said:
            raise NotImplementedError("it has no lengths of keys")
        if (self.starts != self.lengths - self.shape.m).any():
            raise NotImplementedError("its queries are always the last positions")

    def mask(self) -> Bools:
        """The dense mask (1 or b, h, m, n), padding included."""
        if self.pattern.multiset:
            raise NotImplementedError("it has no keys that count several times")
        b, h, _, m, n = self.shape
        varied = self.pattern.batches is not None or len(set(self.starts.tolist())) > 1
        seen = np.stack([
            self.pattern.mask(m, n, heads=h, q_start=int(start), batch=i)
            for i, start in enumerate(self.starts[: b if varied else 1])
        ]) if b else np.zeros((1, h, m, n), bool)  # fmt: skip
        if "kv_lengths" not in self.attributes:
            return seen
        real = np.arange(n) < self.lengths[:, None]
        return np.asarray(seen & real[:, None, None])

    def rest(self, **names: str) -> dict[str, Any]:
        """The other attributes under the kernel's names; refuses what has none."""
        silent = {"q_start", "kv_lengths", "dlse"}
        for name in set(self.attributes) - silent - set(names):
            raise NotImplementedError(f"it has no {name}=")
        return {
            theirs: self.attributes[name] for name, theirs in names.items()
            if name in self.attributes
        }  # fmt: skip


Spelling = Callable[[Asked], dict[str, Any]]


def sdpa(asked: Asked) -> dict[str, Any]:
    """torch.nn.functional.scaled_dot_product_attention: is_causal where it means the same."""
    more: dict[str, Any] = {"enable_gqa": True, **asked.rest(scale="scale", bias="bias")}
    mask, bias = asked.mask(), more.pop("bias", None)
    causal = np.tri(asked.shape.m, asked.shape.n, dtype=bool)
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
    """flash_attn_func, flash_attn_varlen_func: causal, window_size, aligned to the last key."""
    asked.last()
    form = asked.form()
    sides = tuple(-1 if side is None else side for side in (form.left, form.right))
    more = asked.rest(scale="softmax_scale", softcap="softcap", alibi_slopes="alibi_slopes")
    if "alibi_slopes" in more:
        more["alibi_slopes"] = np.asarray(more["alibi_slopes"], np.float32)
    return {"causal": form.right == 0, "window_size": sides, **more}


def flash_attn_kvcache(asked: Asked) -> dict[str, Any]:
    """flash_attn_with_kvcache on a cache that is filled up to cache_seqlens."""
    more = flash_attn(asked._replace(lengths_said=True))
    return more if asked.lengths_said else more | {"cache_seqlens": asked.lengths.astype(np.int32)}


def xformers(asked: Asked) -> dict[str, Any]:
    """memory_efficient_attention with a dense bias, which it takes for any mask."""
    more = asked.rest(scale="scale", bias="bias")
    bias = np.asarray(more.pop("bias", 0.0), np.float32)
    b, h, _, m, n = asked.shape
    hidden = np.where(asked.mask(), bias, np.float32(-np.inf))
    return {"attn_bias": np.broadcast_to(hidden, (b, h, m, n)).astype(np.float32), **more}


def flashinfer(asked: Asked) -> dict[str, Any]:
    """single_prefill_with_kv_cache: causal with window_left, or a custom_mask of all heads."""
    if asked.shape.b != 1:
        raise NotImplementedError("it takes one sequence")
    more = asked.rest(scale="sm_scale", softcap="logits_soft_cap")
    forms = [] if asked.pattern.heads > 1 or asked.pattern.multiset else forms_of(asked.pattern)
    last = "kv_lengths" not in asked.attributes and asked.starts[0] == asked.shape.n - asked.shape.m
    for form in forms:
        if form.window and form.right == 0 and last:
            return {"causal": True, "window_left": -1 if form.left is None else form.left, **more}
    mask = asked.mask()[0]
    if (mask != mask[:1]).any():
        raise NotImplementedError("it has one mask for all heads")
    return {"custom_mask": mask[0], **more}


def jax_nn(asked: Asked) -> dict[str, Any]:
    """jax.nn.dot_product_attention: is_causal, local_window_size from the top left; or a mask."""
    more = asked.rest(scale="scale", bias="bias")
    if (asked.starts == 0).all() and asked.pattern.heads == 1 and not asked.pattern.multiset:
        for form in forms_of(asked.pattern):
            if form.window and form.right == 0:
                if form.left is not None:
                    more["local_window_size"] = (form.left, 0)
                if "kv_lengths" in asked.attributes:
                    more["key_value_seq_lengths"] = asked.lengths.astype(np.int32)
                return {"is_causal": True, **more}
    return {"mask": asked.mask(), **more}


def ort_gqa(asked: Asked) -> dict[str, Any]:
    """com.microsoft.GroupQueryAttention's attributes and optional inputs."""
    asked.last()
    form = asked.form()
    if form.right != 0:
        raise NotImplementedError("it is causal")
    window = -1 if form.left is None else form.left + 1
    more = asked.rest(scale="scale", softcap="softcap", sink_logits="head_sink",
                      bias="attention_bias")  # fmt: skip
    return {"local_window_size": window, **more}


def onnx23(asked: Asked) -> dict[str, Any]:
    """ai.onnx Attention-23: is_causal from the top left where that says it, else attn_mask."""
    more = asked.rest(scale="scale", softcap="softcap", bias="bias")
    mask, bias = asked.mask(), more.pop("bias", None)
    if bias is not None:
        more["attn_mask"] = np.where(mask, np.asarray(bias, np.float32), np.float32(-np.inf))
    elif (mask == np.tri(asked.shape.m, asked.shape.n, dtype=bool)).all():
        more["is_causal"] = 1
    else:
        more["attn_mask"] = mask
    return more


def onnx24(asked: Asked) -> dict[str, Any]:
    """Attention-24: a cache, whose last positions are the queries, is nonpad_kv_seqlen."""
    last = (asked.starts == asked.lengths - asked.shape.m).all()
    if last and "kv_lengths" in asked.attributes and "bias" not in asked.attributes:
        form = asked.window()
        if form is not None and (form.left, form.right) == (None, 0):
            more = asked.rest(scale="scale", softcap="softcap")
            return {"is_causal": 1, "nonpad_kv_seqlen": asked.lengths.astype(np.int64), **more}
    return onnx23(asked)


def onnx25(asked: Asked) -> dict[str, Any]:
    """Attention-25: left_window_size and right_window_size, from the top left."""
    form = asked.window()
    silent = {"kv_lengths", "bias"} & set(asked.attributes) or asked.starts.any()
    if form is None or silent:
        return onnx24(asked)
    sides = {"left_window_size": form.left, "right_window_size": form.right}
    said: dict[str, Any] = {name: side for name, side in sides.items() if side is not None}
    if form.right == 0:
        said = {**said, "is_causal": 1}
        del said["right_window_size"]
    return said | asked.rest(scale="scale", softcap="softcap")


def flex(asked: Asked) -> dict[str, Any]:
    """FlexAttention of torch: a block_mask, which `Candidate` makes of the dense mask."""
    return {"mask": asked.mask(), "enable_gqa": True, **asked.rest(scale="scale")}


SPELLINGS: dict[str, Spelling] = {
    one.__name__: one
    for one in (
        sdpa, flex, flash_attn, flash_attn_kvcache, xformers, flashinfer, jax_nn, ort_gqa, onnx23,
        onnx24, onnx25,
    )
}  # fmt: skip
