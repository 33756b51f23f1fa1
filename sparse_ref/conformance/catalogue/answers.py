"""Mistakes of the softmax and of what comes after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, finished, right
from sparse_ref.patterns import Full, Keys, Pattern, PerHead
from sparse_ref.reference import merge
from sparse_ref.results import Attention


def _hidden(call: Call) -> Pattern:
    """Everything the pattern hides."""
    turned = [~call.pattern.at(h) for h in range(call.pattern.heads)]
    return turned[0] if len(turned) == 1 else PerHead(turned)


def simple(call: Call) -> bool:
    """Whether a mask is all there is to it."""
    return not call.pattern.multiset and not (
        {"kv_lengths", "kv_positions", "bias", "alibi_slopes"} & set(call.attributes)
    )


def _shown(score: float, *, added: bool) -> Callable[[Call], Outcome | None]:
    """What is hidden has a finite number as its score, or added to it."""

    def outcome(call: Call) -> Outcome | None:
        if not simple(call):
            return None
        others = {k: x for k, x in call.attributes.items() if k not in ("sink_logits", "softcap")}
        if added and "softcap" in call.attributes:
            others["softcap"] = call.attributes["softcap"]
        leaked = call._replace(
            q=call.q if added else np.zeros_like(call.q),
            pattern=_hidden(call),
            attributes={**others, "bias": np.full((1, 1), score)},
        )
        return joined([right(call), right(leaked)])

    return outcome


def joined(parts: list[Outcome]) -> Outcome:
    """Parts over disjoint keys: joined by lse; the bound is that of the loosest, twice."""
    with np.errstate(invalid="ignore"):
        answer = merge(*(part for part, _ in parts))
        bounds = [np.stack(x).max(axis=0) for x in zip(*(b for _, b in parts), strict=True)]
    scale = np.stack([np.abs(part.out) for part, _ in parts]).max(axis=0)
    out = 2 * bounds[0] + 4 * bounds[1][..., None] * scale
    return answer, Attention(np.nan_to_num(out, nan=np.inf), 2 * bounds[1] + 1e-30)


def _softcap_after_mask(call: Call) -> Outcome | None:
    """-inf, capped, is -softcap."""
    cap = call.attributes.get("softcap")
    return None if cap is None else _shown(-cap, added=False)(call)


def _halves(call: Call) -> list[Outcome] | None:
    """The answers over the first and the second half of the keys."""
    n = call.k.shape[2]
    if n < 2 or call.pattern.multiset or {"sink_logits", "kv_lengths"} & set(call.attributes):
        return None
    half = Keys(range(n // 2))
    return [
        right(call._replace(pattern=call.pattern & half)),
        right(call._replace(pattern=call.pattern - half)),
    ]


def _averaged(call: Call) -> Outcome | None:
    """Two halves of the keys, joined as if both weighed the same."""
    parts = _halves(call)
    if parts is None:
        return None
    (first, low), (second, high) = parts
    both = np.isfinite(first.lse) & np.isfinite(second.lse)
    only = np.where(np.isfinite(first.lse)[..., None], first.out, second.out)
    out = np.where(both[..., None], (first.out + second.out) / 2, only)
    whole, bound = joined(parts)
    return Attention(out, whole.lse), Attention(low.out + high.out, bound.lse)


def _unrescaled(call: Call) -> Outcome | None:
    """Two halves of the keys, each relative to its own maximum, added up as they are."""
    parts = _halves(call)
    if parts is None:
        return None
    (first, low), (second, high) = parts
    peaks = [_peak(call, i) for i in range(2)]
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = [
            np.where(np.isfinite(p.lse), np.exp(p.lse - peak), 0)
            for p, peak in zip((first, second), peaks, strict=True)
        ]
        total = sums[0] + sums[1]
        out = first.out * sums[0][..., None] + second.out * sums[1][..., None]
        out = np.where(total[..., None] > 0, out / total[..., None], 0)
    whole, bound = joined(parts)
    return Attention(out, whole.lse), Attention(2 * (low.out + high.out) + 1e-6, bound.lse)


def _peak(call: Call, half: int) -> Floats:
    """The largest score of every row over one half of the keys."""
    _, h, m, d = call.q.shape
    n, group = call.k.shape[2], h // call.k.shape[1]
    seen = call.pattern.mask(m, n, heads=h, q_start=call.attributes.get("q_start"))
    cut = slice(0, n // 2) if half == 0 else slice(n // 2, n)
    k = np.repeat(call.k, group, axis=1).astype(np.float64)[:, :, cut]
    s = call.attributes.get("scale", d**-0.5) * (call.q.astype(np.float64) @ k.swapaxes(2, 3))
    if call.attributes.get("softcap") is not None:
        s = call.attributes["softcap"] * np.tanh(s / call.attributes["softcap"])
    return np.asarray(np.where(seen[None, :, :, cut], s, -np.inf).max(axis=-1, initial=-np.inf))


def _after_softmax(call: Call) -> Outcome | None:
    """A softmax over all keys, and the hidden ones left out of the sum."""
    if not simple(call):
        return None
    answer, bound = right(call)
    whole, whole_bound = right(call._replace(pattern=Full()))
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(answer.lse), np.exp(answer.lse - whole.lse), 0)[..., None]
    off = share * np.abs(answer.out) * 2 * (bound.lse + whole_bound.lse)[..., None]
    return Attention(answer.out * share, whole.lse), Attention(bound.out + off, whole_bound.lse)


def _each(change: Callable[[Attention], Attention]) -> Callable[[Call], Outcome | None]:
    return finished(lambda call, answer: change(answer))


def _lse_without_sink(call: Call) -> Outcome | None:
    sinks = call.attributes.get("sink_logits")
    if sinks is None:
        return None
    answer, bound = right(call)
    others = {k: x for k, x in call.attributes.items() if k != "sink_logits"}
    bare, bare_bound = right(call._replace(attributes=others))
    return Attention(answer.out, bare.lse), Attention(bound.out, bare_bound.lse)


def _sink_in_numerator(call: Call) -> Outcome | None:
    """The sink is the score of a key with the first value."""
    if "sink_logits" not in call.attributes or not call.k.shape[2]:
        return None
    answer, bound = right(call)
    sinks = np.asarray(call.attributes["sink_logits"], np.float64)[:, None]
    first = np.asarray(call.v, np.float64)[:, :, :1]
    first = np.repeat(first, call.q.shape[1] // call.k.shape[1], axis=1)
    added = np.exp(sinks - answer.lse)[..., None] * first
    off = 2 * np.abs(added) * bound.lse[..., None]
    return Attention(answer.out + added, answer.lse), Attention(2 * bound.out + off, bound.lse)


def forward(outcome: Callable[[Call], Outcome | None]) -> Callable[[Call], Outcome | None]:
    """Nothing is known of the gradients that come with it."""
    return lambda call: outcome(call) if call.dout is None else None


GITHUB = "https://github.com/"
ANSWERS = tuple(
    Mistake(name, story, link and GITHUB + link, forward(outcome))
    for name, story, link, outcome in (
        ("mask-10", "hidden keys get -10 added to their score, not -inf",
         "ohdearquant/lattice/pull/6", _shown(-10.0, added=True)),
        ("mask-zero", "hidden keys get the score 0 in place of -inf",
         "huggingface/transformers/pull/41443", _shown(0.0, added=False)),
        ("mask-after-softmax", "the mask is applied after the softmax, without normalising again",
         "", _after_softmax),
        ("softcap-after-mask", "the softcap is applied after the mask, and shows what it hides",
         "onnx/onnx/issues/7865", _softcap_after_mask),
        ("merge-average", "two halves of the keys are joined by a plain average",
         "sgl-project/sglang/issues/40903", _averaged),
        ("merge-unscaled", "two halves of the keys are added without rescaling to one maximum",
         "paiml/aprender/issues/2706", _unrescaled),
        ("lse-base-2", "lse is a logarithm to base 2",
         "deepseek-ai/FlashMLA/pull/106",
         _each(lambda a: Attention(a.out, a.lse / np.log(2)))),
        ("lse-without-sink", "lse leaves the sink out", "", _lse_without_sink),
        ("sink-in-numerator", "the sink has a value: the first key's", "",
         _sink_in_numerator),
        ("values-reversed", "the columns of the output stand in reverse", "",
         _each(lambda a: Attention(a.out[..., ::-1], a.lse))),
        ("heads-reversed", "the heads of the output stand in reverse", "",
         _each(lambda a: Attention(a.out[:, ::-1], a.lse[:, ::-1]))),
        ("zeros", "the output is 0",
         "ScalingIntelligence/KernelBench/issues/165",
         _each(lambda a: Attention(0 * np.nan_to_num(a.out), a.lse))),
    )
)  # fmt: skip
