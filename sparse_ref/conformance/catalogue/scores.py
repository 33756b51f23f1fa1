"""Mistakes of the score: its scale, its cap, what is added to it, whose keys it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, changed, repeated
from sparse_ref.results import Gradients


def _option(name: str, change: Callable[[Any, Call], Any]) -> Callable[[Call], Outcome | None]:
    """The mistake of another value of an option that is given; None leaves it out."""

    def other(call: Call) -> Call | None:
        if call.attributes.get(name) is None:
            return None
        attributes = {**call.attributes, name: change(call.attributes[name], call)}
        return call._replace(attributes={k: x for k, x in attributes.items() if x is not None})

    return changed(other)


def _scaled(factor: Callable[[int], float]) -> Callable[[Call], Outcome | None]:
    """The mistake of another default scale, of the head's size."""

    def other(call: Call) -> Call | None:
        if "scale" in call.attributes:
            return None
        scale = factor(call.q.shape[-1])
        return call._replace(attributes={**call.attributes, "scale": scale})

    return changed(other)


def _grouped(order: Callable[[Any, int], Any]) -> Callable[[Call], Outcome | None]:
    """The mistake of another key/value head for a query head."""

    def other(call: Call) -> Call | None:
        k, v = (order(x, call.q.shape[1]) for x in (call.k, call.v))
        same = repeated(call.k, call.q.shape[1])
        return (
            None if k.shape == same.shape and np.array_equal(k, same) else call._replace(k=k, v=v)
        )

    def back(call: Call, found: Gradients) -> Gradients:
        h, g = call.q.shape[1], call.k.shape[1]
        read = order(np.arange(g)[None, :, None, None], h)[0, :, 0, 0]
        sums = [
            np.stack([x[:, read == one].sum(axis=1) for one in range(g)], axis=1)
            for x in (found.dk, found.dv)
        ]
        return found._replace(dk=sums[0], dv=sums[1])

    return changed(other, back)


def _tile(x: Any, heads: int) -> Any:
    return np.tile(x, (1, heads // x.shape[1], 1, 1))


def _next(x: Any, heads: int) -> Any:
    return np.roll(repeated(x, heads), -1, axis=1)


def _first(x: Any, heads: int) -> Any:
    return np.repeat(x[:, :1], heads, axis=1)


def _rows_reversed(call: Call) -> Call | None:
    m = call.q.shape[2]
    return call._replace(q=np.ascontiguousarray(call.q[:, :, ::-1])) if m > 1 else None


def _values_shifted(call: Call) -> Call | None:
    if call.v.shape[2] < 2:
        return None
    return call._replace(v=np.roll(call.v, 1, axis=2))


def _read_back(call: Call, found: Gradients) -> Gradients:
    return found._replace(dq=found.dq[:, :, ::-1])


def _shifted_back(call: Call, found: Gradients) -> Gradients:
    return found._replace(dv=np.roll(found.dv, -1, axis=2))


def _with_last(call: Call, found: Gradients) -> Gradients:
    last = [(0, 0)] * 3 + [(0, 1)]
    return found._replace(dq=np.pad(found.dq, last), dk=np.pad(found.dk, last))


def _without_last(call: Call) -> Call | None:
    """Half of the head's entries, as when a stride is wrong."""
    d = call.q.shape[-1]
    if d < 2:
        return None
    attributes = {"scale": d**-0.5, **call.attributes}
    return call._replace(q=call.q[..., : d - 1], k=call.k[..., : d - 1], attributes=attributes)


def _sign(bias: Any, call: Call) -> Any:
    return -np.asarray(bias)


GITHUB = "https://github.com/"
SCORES = tuple(
    Mistake(name, story, link and GITHUB + link, outcome)
    for name, story, link, outcome in (
        ("scale-lost", "scores are not scaled", "", _scaled(lambda d: 1.0)),
        ("scale-d+1", "the scale is 1 / sqrt(d + 1)", "", _scaled(lambda d: (d + 1) ** -0.5)),
        ("scale-2d", "the scale is that of heads twice the size", "",
         _scaled(lambda d: (2 * d) ** -0.5)),
        ("scale-1/d", "the scale is 1 / d", "", _scaled(lambda d: 1.0 / d)),
        ("scale-ignored", "scale= is ignored", "", _option("scale", lambda x, call: None)),
        ("scale-and-default", "scale= and the default scale are both applied", "",
         _option("scale", lambda x, call: x * call.q.shape[-1] ** -0.5)),
        ("softcap-lost", "the softcap is ignored",
         "vllm-project/vllm-metal/issues/665", _option("softcap", lambda x, call: None)),
        ("softcap-doubled", "the softcap is that of scores in another base", "",
         _option("softcap", lambda x, call: x / np.log(2))),
        ("bias-lost", "bias= is ignored", "", _option("bias", lambda x, call: None)),
        ("bias-scaled", "the bias is scaled as the products are", "",
         _option("bias", lambda x, call: np.asarray(x) * call.q.shape[-1] ** -0.5)),
        ("bias-negated", "the bias is subtracted", "", _option("bias", _sign)),
        ("alibi-lost", "the slopes are ignored", "",
         _option("alibi_slopes", lambda x, call: None)),
        ("alibi-sign", "distance is rewarded, not punished",
         "meta-pytorch/attention-gym/pull/86", _option("alibi_slopes", _sign)),
        ("alibi-next-head", "every head has the slope of the one before",
         "paiml/aprender/pull/2143",
         _option("alibi_slopes", lambda x, call: 2 * np.asarray(x))),
        ("sink-lost", "the sink logit is ignored", "",
         _option("sink_logits", lambda x, call: None)),
        ("sink-zero", "the sink logit is taken for 0", "",
         _option("sink_logits", lambda x, call: np.zeros_like(x))),
        ("sink-shared", "all heads have the sink of head 0", "",
         _option("sink_logits", lambda x, call: np.full_like(x, np.asarray(x)[0]))),
        ("heads-tiled", "key heads are tiled, not repeated: head h reads h mod g",
         "onnx/onnx/pull/7274", _grouped(_tile)),
        ("heads-first", "all heads read key head 0", "apple/axlearn/pull/842", _grouped(_first)),
        ("heads-shifted", "every head reads what the next one should",
         "PSAL-POSTECH/ONNXim/pull/34", _grouped(_next)),
        ("queries-reversed", "queries are read backwards", "", changed(_rows_reversed, _read_back)),
        ("values-shifted", "values stand one key off from their keys", "",
         changed(_values_shifted, _shifted_back)),
        ("last-entry-lost", "the last entry of q and k is not read", "",
         changed(_without_last, _with_last)),
    )
)  # fmt: skip
