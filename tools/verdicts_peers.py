"""Other people's attentions, each as an implementation that `sr.check` takes, and what to ask it.

A peer is asked in the words its documentation gives for what a case means; what it has no words
for, or refuses with a message, is UNSUPPORTED. `verdicts_onnx` and `verdicts_grids` hold more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance import Case
from sparse_ref.conformance.layout import Shape
from sparse_ref.conformance.mistakes import Mistake
from sparse_ref.conformance.spelling import Asked


@dataclass(frozen=True)
class Peer:
    """One way of asking one library.

    `known` are mistakes of this library alone, which the catalogue of everybody's has no use for.
    """

    name: str
    package: str
    asked: str  # in which of its own words
    make: Callable[[], Callable[..., Any]]
    cases: Callable[[], list[Case]]
    known: tuple[Mistake, ...] = ()

    @property
    def slug(self) -> str:
        """The name as that of a file."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())

    @property
    def version(self) -> str:
        """Of its package; PackageNotFoundError where that is not installed."""
        return metadata.version(self.package)


def suite(*dtypes: str) -> list[Case]:
    """The cases everybody is asked."""
    return sr.cases(dtypes=dtypes or ("float32", "float16"))


def fitted(cases: Iterable[Case], **fit: Callable[[Any], int]) -> list[Case]:
    """The cases in sizes that a peer can take: each of `fit` makes one extent from all of them."""
    found: dict[str, Case] = {}
    for case in cases:
        sizes = case.sizes
        for name, make in fit.items():
            sizes = sizes._replace(**{name: make(sizes)})
        one = replace(case, sizes=sizes)
        found.setdefault(one.id, one)
    return list(found.values())


def same_heads() -> list[Case]:
    """As many key heads as query heads, values as wide as keys."""
    return fitted(suite("float32"), g=lambda s: s.h, e=lambda s: s.d)


def question(q: Any, k: Any, pattern: sr.Pattern, attributes: dict[str, Any]) -> Asked:
    """What is asked, to be said in other words."""
    b, h, m = q.shape[:3]
    return Asked(pattern, Shape(b, h, k.shape[1], m, k.shape[2]), attributes)


def needed(name: str) -> Any:
    """A module, or ImportError."""
    return importlib.import_module(name)


def sdpa() -> Callable[..., Any]:
    """scaled_dot_product_attention."""
    return sr.Candidate(
        needed("torch").nn.functional.scaled_dot_product_attention, arrays="torch", spell="sdpa"
    )


def sdpa_causal() -> Callable[..., Any]:
    """The same, told is_causal=True whatever the lengths."""
    attend = needed("torch").nn.functional.scaled_dot_product_attention

    def causal(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, is_causal=True, enable_gqa=True)

    return sr.Candidate(sr.fixed(causal), arrays="torch")


def flex() -> Callable[..., Any]:
    """FlexAttention, eager, with a BlockMask; it gives the lse too."""
    module = needed("torch.nn.attention.flex_attention")

    def attend(q: Any, k: Any, v: Any, **options: Any) -> Any:
        request = module.AuxRequest(lse=True)
        out, more = module.flex_attention(q, k, v, return_aux=request, **options)
        return out if more.lse is None else (out, more.lse)

    return sr.Candidate(attend, arrays="torch", spell="flex")


def multihead(*, fast: bool) -> Callable[[], Callable[..., Any]]:
    """nn.MultiheadAttention with projections that change nothing; fast: need_weights=False."""

    def make() -> Callable[..., Any]:
        torch = needed("torch")

        def attend(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
            (b, h, m, d), n = q.shape, k.shape[2]
            asked = question(q, k, pattern, attributes)
            bias = asked.rest(bias="bias").get("bias", 0.0)
            added = np.where(asked.mask(), bias, -np.inf).astype(np.float32)
            layer = torch.nn.MultiheadAttention(h * d, h, bias=False, batch_first=True).eval()
            one = torch.eye(h * d)
            with torch.no_grad():
                layer.in_proj_weight.copy_(torch.cat([one, one, one]))
                layer.out_proj.weight.copy_(one)
                flat = [
                    torch.from_numpy(x.swapaxes(1, 2).reshape(b, x.shape[2], h * d))
                    for x in (q, k, v)
                ]
                mask = torch.from_numpy(np.broadcast_to(added, (b, h, m, n)).copy())
                out, _ = layer(*flat, attn_mask=mask.reshape(b * h, m, n), need_weights=not fast)
            return out.reshape(b, m, h, d).numpy().swapaxes(1, 2)

        return attend

    return make


def eager() -> Callable[..., Any]:
    """The attention of transformers' models where attn_implementation="eager"."""
    torch, llama = needed("torch"), needed("transformers.models.llama.modeling_llama")

    class Module(torch.nn.Module):  # type: ignore[name-defined, misc]
        num_key_value_groups = 1

    def attend(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
        (_, h, _, d), g = q.shape, k.shape[1]
        asked = question(q, k, pattern, attributes)
        given = asked.rest(scale="scale", bias="bias")
        hidden = torch.finfo(torch.float32).min
        mask = np.where(asked.mask(), given.get("bias", 0.0), hidden).astype(np.float32)
        module = Module().eval()
        module.num_key_value_groups = h // g
        out, _ = llama.eager_attention_forward(
            module, *map(torch.from_numpy, (q, k, v)), torch.from_numpy(mask),
            given.get("scale", d**-0.5),
        )  # fmt: skip
        return out.transpose(1, 2).numpy()

    return attend


def jax_nn() -> Callable[..., Any]:
    """jax.nn.dot_product_attention; it gives the lse too."""
    jax = needed("jax")

    def attend(q: Any, k: Any, v: Any, **options: Any) -> Any:
        out, lse = jax.nn.dot_product_attention(q, k, v, return_residual=True, **options)
        return out, lse.swapaxes(1, 2)

    return sr.Candidate(attend, layout="bshd", arrays="jax", spell="jax_nn")


def causal_cases() -> list[Case]:
    """The causal ones, without options."""
    return [case for case in suite("float32") if case.name == "causal" and not case.options]


PEERS = (
    Peer("torch SDPA", "torch", "attn_mask, or is_causal where that says the same", sdpa, suite),
    Peer(
        "torch SDPA, is_causal", "torch", "is_causal=True for every causal question", sdpa_causal,
        causal_cases,
    ),
    Peer("torch FlexAttention", "torch", "a BlockMask, run eagerly", flex, suite),
    Peer(
        "nn.MultiheadAttention", "torch", "a mask of -inf, need_weights=True",
        multihead(fast=False), same_heads,
    ),
    Peer(
        "nn.MultiheadAttention, fast", "torch", "a mask of -inf, need_weights=False",
        multihead(fast=True), same_heads,
    ),
    Peer(
        "transformers, eager", "transformers", "a mask of the least float32", eager,
        lambda: suite("float32"),
    ),
    Peer(
        "jax.nn.dot_product_attention", "jax", "mask=", jax_nn,
        lambda: fitted(suite("float32"), e=lambda s: s.d),
    ),
)  # fmt: skip
