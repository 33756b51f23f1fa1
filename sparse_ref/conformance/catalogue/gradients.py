"""Mistakes of the backward pass: the answer is right, its gradients are not.

With P the probabilities, dP = dout . v and D = sum P dP over a row, the gradient of a score is
P (dP - D + dlse). Adding D to dlse is therefore leaving D out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, changed, repeated, right, spoilt
from sparse_ref.results import Gradients

from .changes import start


def _scale(call: Call) -> float:
    return float(call.attributes.get("scale", call.q.shape[-1] ** -0.5))


def _unscaled(*names: str) -> Callable[[Call], Outcome | None]:
    """The scale is left out of some of the gradients."""

    def spoil(call: Call, g: Gradients) -> Gradients:
        return g._replace(**{name: getattr(g, name) / _scale(call) for name in names})

    return spoilt(spoil)


def _of_heads(fold: Callable[[Floats, int], Floats]) -> Callable[[Call], Outcome | None]:
    """What every query head adds to dk and dv, brought together wrongly."""

    def outcome(call: Call) -> Outcome | None:
        g, h = call.k.shape[1], call.q.shape[1]
        if call.dout is None or g == h:
            return None
        k, v = (repeated(x, h) for x in (call.k, call.v))
        found = []
        for one, other in zip(right(call), right(call._replace(k=k, v=v)), strict=True):
            found.append(one._replace(dk=fold(other.dk, g), dv=fold(other.dv, g)))
        return found[0], found[1]

    return outcome


def _groups(x: Floats, g: int) -> Floats:
    """Query heads by the group they are in (b, g, h / g, n, d)."""
    b, h, n, d = x.shape
    return x.reshape(b, g, h // g, n, d)


def _upstream(change: Callable[[Call, Floats], Floats | None]) -> Callable[[Call], Outcome | None]:
    """Another gradient of lse, given the one asked for."""

    def other(call: Call) -> Call | None:
        if call.dout is None:
            return None
        given = np.asarray(call.attributes.get("dlse", np.zeros(call.q.shape[:3])), np.float64)
        found = change(call, given)
        attributes = {**call.attributes, "dlse": found}
        return None if found is None else call._replace(attributes=attributes)

    return changed(other)


def _without_mean(call: Call, dlse: Floats) -> Floats:
    attributes = {name: x for name, x in call.attributes.items() if name != "dlse"}
    out = Call(call.q, call.k, call.v, call.pattern, attributes).oracle().out
    return np.asarray(dlse + np.einsum("bhme,bhme->bhm", np.float64(call.dout), out))


def _scores_unshaped(call: Call) -> Outcome | None:
    """The slope of the softcap taken for 1: the gradient of a score goes to q . k as it is."""
    if call.dout is None or "softcap" not in call.attributes or call.k.shape[2] == 0:
        return None
    (b, h, m, _), g, n = call.q.shape, call.k.shape[1], call.k.shape[2]
    bias = np.asarray(call.attributes.get("bias", 0.0), np.float64)
    bias = np.broadcast_to(bias, (h, m, n)).copy()
    parts = []
    for i in range(b):  # a bias is for all rows of a batch: ask for its gradient row by row
        row = slice(i, i + 1)
        own = {**call.attributes, "bias": bias}
        for name in {"q_start", "kv_lengths", "dlse"} & set(own):
            own[name] = own[name][row] if np.ndim(own[name]) else own[name]
        one = [x[row] for x in (call.q, call.k, call.v)]
        parts.append(right(Call(one[0], one[1], one[2], call.pattern, own, call.dout[row])))
    found = []
    for side, answer in enumerate(right(call)):
        score = np.stack([part[side].dbias for part in parts]) * _scale(call)
        q, k = (x.astype(np.float64) for x in (call.q, call.k))
        q, k = (q, k) if side == 0 else (np.abs(q), np.abs(k))
        dq = score @ repeated(k, h)
        dk = _groups(score.swapaxes(2, 3) @ q, g).sum(axis=2)
        found.append(answer._replace(
            dq=dq if side == 0 else dq + answer.dq, dk=dk if side == 0 else dk + answer.dk
        ))  # fmt: skip
    return found[0], found[1]


def _later(call: Call) -> Outcome | None:
    """Columns of the mask (for dk and dv) of queries that stand one position later."""
    if call.dout is None or call.pattern.multiset:
        return None
    moved = call._replace(attributes={**call.attributes, "q_start": start(call) + 1})
    (answer, bound), (other, loose) = right(call), right(moved)
    return answer._replace(dk=other.dk, dv=other.dv), bound._replace(dk=loose.dk, dv=loose.dv)


def _shifted(call: Call, g: Gradients) -> Gradients | None:
    if call.k.shape[2] < 2:
        return None
    return g._replace(dk=np.roll(g.dk, 1, axis=2), dv=np.roll(g.dv, 1, axis=2))


def _unseen(call: Call, g: Gradients) -> Gradients | None:
    """NaN at queries whose gradient is 0 because they see nothing."""
    attributes = {name: x for name, x in call.attributes.items() if name != "dlse"}
    lse = Call(call.q, call.k, call.v, call.pattern, attributes).oracle().lse
    none = np.isneginf(lse)
    if not none.any() or not call.k.shape[2]:
        return None
    return g._replace(dq=np.where(none[..., None], np.nan, g.dq))


def _without_sink(call: Call) -> Call | None:
    if call.dout is None or "sink_logits" not in call.attributes:
        return None
    others = {name: x for name, x in call.attributes.items() if name != "sink_logits"}
    return call._replace(attributes=others)


GITHUB = "https://github.com/"
GRADIENTS = tuple(
    Mistake(name, story, link and GITHUB + link, outcome)
    for name, story, link, outcome in (
        ("vjp-scale-lost", "dq and dk are not scaled", "", _unscaled("dq", "dk")),
        ("vjp-scale-lost-dq", "dq is not scaled", "", _unscaled("dq")),
        ("vjp-scale-lost-dk", "dk is not scaled", "", _unscaled("dk")),
        ("vjp-group-lost", "dk and dv are those of one query head of the group, not their sum",
         "", _of_heads(lambda x, g: _groups(x, g)[:, :, -1])),
        ("vjp-group-averaged", "dk and dv are averaged over the query heads of a group",
         "", _of_heads(lambda x, g: _groups(x, g).mean(axis=2))),
        ("vjp-group-tiled", "dk and dv are summed over heads h mod g, not over groups",
         "ByteDance-Seed/VeOmni/pull/162",
         _of_heads(lambda x, g: _groups(x, x.shape[1] // g).sum(axis=1))),
        ("vjp-mean-lost", "D, the mean of dP over a row, is not subtracted",
         "", _upstream(_without_mean)),
        ("vjp-dlse-ignored", "the gradient that comes in through lse is ignored",
         "", _upstream(lambda call, dlse: 0 * dlse if dlse.any() else None)),
        ("vjp-dlse-negated", "the gradient that comes in through lse is subtracted",
         "", _upstream(lambda call, dlse: -dlse if dlse.any() else None)),
        ("vjp-softcap-slope-lost", "the slope of the softcap is taken for 1", "",
         _scores_unshaped),
        ("vjp-columns-later", "dk and dv are those of queries one position later", "", _later),
        ("vjp-columns-shifted", "dk and dv stand one key off", "", spoilt(_shifted)),
        ("vjp-empty-nan", "a query that sees no key has NaN as its gradient",
         "pytorch/pytorch/pull/196170", spoilt(_unseen)),
        ("vjp-sink-lost", "the backward pass leaves the sink out", "", changed(_without_sink)),
        ("vjp-dv-lost", "dv is 0", "", spoilt(lambda call, g: g._replace(dv=0 * g.dv))),
    )
)  # fmt: skip
