"""Mistakes of the mask: another pattern than the one asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, changed
from sparse_ref.patterns import (
    And,
    Causal,
    Chunked,
    Document,
    Full,
    Global,
    Keys,
    KeyStride,
    Multi,
    Or,
    Pattern,
    PerHead,
    PrefixLM,
    RandomKeys,
    Rows,
    Sink,
    SlidingWindow,
    Strided,
)

from .rewriting import NOTHING, blocked, instead, window


def _starting(start: Callable[[Call], int | None]) -> Callable[[Call], Outcome | None]:
    """The mistake of placing the queries elsewhere."""

    def change(call: Call) -> Call | None:
        at = start(call)
        return None if at is None else call._replace(attributes={**call.attributes, "q_start": at})

    return changed(change)


def _start(call: Call) -> int:
    given = call.attributes.get("q_start")
    return call.k.shape[2] - call.q.shape[2] if given is None else int(given)


def _twice(call: Call) -> Call | None:
    """Each member of a union on its own, so that what two members see counts twice."""

    def parts(pattern: Pattern) -> list[Pattern]:
        if isinstance(pattern, Or):
            return list(pattern.patterns)
        if isinstance(pattern, Global):
            return [Keys(pattern.tokens), Rows(pattern.tokens)]
        if isinstance(pattern, And):
            for i, member in enumerate(pattern.patterns):
                if len(found := parts(member)) > 1:
                    others = [x for j, x in enumerate(pattern.patterns) if j != i]
                    return [_all([one, *others]) for one in found]
        return [pattern]

    if call.pattern.heads > 1 or call.pattern.multiset:
        return None
    found = parts(call.pattern)
    return None if len(found) < 2 else call._replace(pattern=Multi(found))


def _all(patterns: list[Pattern]) -> Pattern:
    joined = patterns[0]
    for one in patterns[1:]:
        joined = joined & one
    return joined


def _without_tail(size: int) -> Callable[[Call], Outcome | None]:
    """The mistake of forgetting the keys past the last whole block."""

    def change(call: Call) -> Call | None:
        n = call.k.shape[2]
        rest = n % size
        if not rest or call.pattern.multiset:
            return None
        return call._replace(pattern=call.pattern & Keys(range(n - rest)))

    return changed(change)


def _first_head(call: Call) -> Call | None:
    return call._replace(pattern=call.pattern.at(0)) if call.pattern.heads > 1 else None


def _next_head(call: Call) -> Call | None:
    one = call.pattern
    if one.heads < 2:
        return None
    return call._replace(pattern=PerHead([one.at((h + 1) % one.heads) for h in range(one.heads)]))


def _complement(call: Call) -> Call | None:
    if call.pattern.multiset:
        return None
    turned = [~call.pattern.at(h) for h in range(call.pattern.heads)]
    return call._replace(pattern=turned[0] if len(turned) == 1 else PerHead(turned))


def _transposed(call: Call) -> Call | None:
    """Queries and keys change places."""
    m, n = call.q.shape[2], call.k.shape[2]
    if m != n or call.pattern.multiset or "q_start" in call.attributes:
        return None
    from sparse_ref.patterns import from_mask  # noqa: PLC0415

    masks = call.pattern.mask(m, n).swapaxes(1, 2)
    if n > 256:
        return None
    return call._replace(pattern=PerHead([from_mask(np.ascontiguousarray(x)) for x in masks]))


def _lengths(by: int | None) -> Callable[[Call], Outcome | None]:
    def change(call: Call) -> Call | None:
        if "kv_lengths" not in call.attributes:
            return None
        attributes = dict(call.attributes)
        if by is None:
            del attributes["kv_lengths"]
        else:
            n = call.k.shape[2]
            attributes["kv_lengths"] = np.clip(np.asarray(attributes["kv_lengths"]) + by, 0, n)
        return call._replace(attributes=attributes)

    return changed(change)


GITHUB = "https://github.com/"
MASKS = tuple(
    Mistake(name, story, link and GITHUB + link, outcome)
    for name, story, link, outcome in (
        ("window-left+1", "the window has one key more on the left",
         "huggingface/transformers/issues/39408", window(left=lambda s: s + 1)),
        ("window-left-1", "the window has one key fewer on the left",
         "vllm-project/vllm/issues/3385", window(left=lambda s: s - 1)),
        ("window-right+1", "the window has one key more on the right",
         "facebookresearch/xformers/issues/923", window(right=lambda s: s + 1)),
        ("window-right-1", "the window has one key fewer on the right",
         "", window(right=lambda s: s - 1)),
        ("window-lost", "the window is ignored",
         "sonos/tract/issues/2323",
         instead(SlidingWindow, lambda one: Full() if one.dilation == 1 else None)),
        ("window-0-unbounded", "a window of 0 is taken for none at all",
         "unslothai/unsloth/pull/8253",
         instead(SlidingWindow, lambda one: Full() if one.left == 0 and one.right == 0 else None)),
        ("window-halved", "the window is half as wide on each side",
         "",
         window(left=lambda s: s // 2, right=lambda s: s // 2)),
        ("window-doubled", "the window is twice as wide on each side",
         "",
         window(left=lambda s: 2 * s, right=lambda s: 2 * s)),
        ("window-mirrored", "left and right of the window are exchanged",
         "",
         instead(SlidingWindow, lambda one: None if one.left == one.right else SlidingWindow(
             one.right, one.left, one.dilation))),
        ("dilation-lost", "the dilation of the window is ignored",
         "",
         instead(SlidingWindow, lambda one: dataclasses.replace(one, dilation=1)
                 if one.dilation > 1 else None)),
        ("window-by-blocks", "the window is cut at blocks of 16, not at tokens",
         "", blocked(SlidingWindow, 16)),
        ("causal-strict", "a query does not see its own position",
         "microsoft/onnxruntime/pull/25927",
         instead(Causal, lambda one: one - SlidingWindow(0, 0))),
        ("causal-leak", "a query sees one position ahead of it",
         "Lightning-AI/litgpt/issues/2182", instead(Causal, lambda one: SlidingWindow(None, 1))),
        ("causal-lost", "the future is not masked",
         "huggingface/transformers/issues/48745", instead(Causal, lambda one: Full())),
        ("causal-by-blocks", "causality holds between blocks of 16 only",
         "", blocked(Causal, 16)),
        ("mask-transposed", "queries and keys of the mask are exchanged",
         "", changed(_transposed)),
        ("mask-inverted", "the mask says who is hidden, and is read as who is seen",
         "lucidrains/x-transformers/issues/160", changed(_complement)),
        ("top-left", "queries start at position 0, not at the end of the keys",
         "microsoft/onnxruntime/issues/29020",
         _starting(lambda call: 0 if "q_start" not in call.attributes and _start(call) else None)),
        ("bottom-right", "queries end with the keys, wherever they are said to start",
         "onnx/onnx/pull/8068",
         _starting(lambda call: call.k.shape[2] - call.q.shape[2]
                   if "q_start" in call.attributes else None)),
        ("position+1", "queries are placed one position too late",
         "huggingface/transformers/issues/37574", _starting(lambda call: _start(call) + 1)),
        ("position-1", "queries are placed one position too early",
         "huggingface/transformers/pull/48280", _starting(lambda call: _start(call) - 1)),
        ("global-rows-lost", "global tokens are seen by all, but do not see all",
         "allenai/longformer/issues/254", instead(Global, lambda one: Keys(one.tokens))),
        ("global-keys-lost", "global tokens see all, but are not seen by all",
         "", instead(Global, lambda one: Rows(one.tokens))),
        ("counted-twice", "a key that two parts of the pattern see counts twice",
         "", changed(_twice)),
        ("sinks-lost", "the first tokens, which all should see, slide out of view",
         "", instead(Sink, lambda one: NOTHING)),
        ("sinks+1", "one token too many is a sink",
         "", instead(Sink, lambda one: Sink(one.count + 1))),
        ("prefix-causal", "the prefix is causal too",
         "", instead(PrefixLM, lambda one: Causal())),
        ("prefix+1", "the prefix is one token longer",
         "bigscience-workshop/Megatron-DeepSpeed/pull/167",
         instead(PrefixLM, lambda one: PrefixLM(one.prefix + 1))),
        ("documents-leak", "packed documents see each other",
         "axolotl-ai-cloud/axolotl/pull/3796", instead(Document, lambda one: Full())),
        ("chunk-shifted", "chunks begin one token late",
         "huggingface/transformers/issues/37351",
         instead(Chunked, lambda one: dataclasses.replace(one, origin=one.origin + 1))),
        ("chunk-as-window", "a chunk is taken for a window of its size",
         "",
         instead(Chunked, lambda one: SlidingWindow(one.size - 1, one.size - 1)
                 if one.back == one.ahead == 0 else None)),
        ("chunk-back-lost", "the chunk before is not seen",
         "",
         instead(Chunked, lambda one: dataclasses.replace(one, back=0) if one.back else None)),
        ("stride-shifted", "the stride counts from the key before the query",
         "",
         instead(Strided, lambda one: Strided(one.stride, (one.phase + 1) % one.stride))),
        ("stride-from-start", "the stride counts from the start, not from the query",
         "",
         instead(Strided, lambda one: KeyStride(one.stride, [one.phase % one.stride]))),
        ("summary-shifted", "the summary columns stand one to the left",
         "",
         instead(KeyStride, lambda one: KeyStride(
             one.period, sorted((int(r) - 1) % one.period for r in one.residues.values)))),
        ("random-lost", "the random keys are not seen",
         "huggingface/transformers/issues/16566", instead(RandomKeys, lambda one: NOTHING)),
        ("random-reseeded", "the random keys are drawn from another seed",
         "huggingface/transformers/pull/23056",
         instead(RandomKeys, lambda one: dataclasses.replace(one, seed=one.seed + 1))),
        ("one-pattern-for-all", "all heads use the pattern of head 0",
         "", changed(_first_head)),
        ("pattern-of-next-head", "every head uses the pattern of the next one",
         "", changed(_next_head)),
        ("multiplicity-lost", "a key that counts several times counts once",
         "",
         changed(lambda call: call._replace(pattern=_union(call.pattern))
                 if call.pattern.multiset else None)),
        ("tail-dropped-16", "keys past the last whole block of 16 are forgotten",
         "pytorch/pytorch/issues/153799", _without_tail(16)),
        ("tail-dropped-64", "keys past the last whole block of 64 are forgotten",
         "pytorch/pytorch/issues/159247", _without_tail(64)),
        ("lengths-lost", "padding keys past kv_lengths are seen",
         "", _lengths(None)),
        ("lengths+1", "one padding key is seen",
         "", _lengths(1)),
        ("lengths-1", "the last key before the padding is not seen",
         "", _lengths(-1)),
    )
)  # fmt: skip


def _union(pattern: Pattern) -> Pattern:
    parts = list(pattern.parts)
    joined = parts[0]
    for part in parts[1:]:
        joined = joined | part
    return joined
