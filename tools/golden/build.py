"""A plan becomes a case: its inputs from the stream, everything else from the oracle."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.probes import PROBES, Rng
from sparse_ref.golden.text import drawn

from .plan import BATCH, CROSS, GROUPS, LONG, RAGGED, SLOPE, SLOPES, STEP, TALL, TEXT, Plan
from .selected import chosen
from .stream import Stream

TYPES = ("float32", "float16", "bfloat16")
ARRAYS = ("bias", "alibi_slopes", "sink_logits")
DRAWN = 24  # a row up to so long is drawn, a longer one written as runs
SIZE_FLAGS = {
    CROSS: ("TopLeft",), TALL: ("MoreQueries",), GROUPS: ("GroupedHeads",), STEP: ("Decode",),
    BATCH: ("GroupedHeads", "TopLeft"), SLOPE: ("GroupedHeads", "TopLeft"),
    SLOPES: ("TopLeft",), TEXT: ("GroupedHeads",), RAGGED: ("BlockEdge", "TopLeft"),
    LONG: ("LongKeys",),
}  # fmt: skip
PROBE_FLAGS = {
    "even": ("EvenWeights",), "fingerprint": ("Fingerprint",), "low": ("LowScores",),
    "ramp": ("Ramp",), "steps": ("Steps",),
}  # fmt: skip

Tensors = dict[str, NDArray[Any]]


def build(plan: Plan) -> tuple[dict[str, Any], Tensors]:
    """The case as the manifest writes it, without its tensors; and these."""
    rng, s = Stream(plan.id), plan.sizes
    q, k, v = PROBES[plan.probe](cast(Rng, rng), s)
    attributes = {
        name: value(rng, s) if callable(value) else value for name, value in plan.options.items()
    }
    call = Call(q, k, v, plan.pattern, attributes)
    index: Tensors = {}
    if plan.selector is not None:
        index = plan.selector.draw(rng, s, plan.probe)
        call = call._replace(pattern=chosen(plan.selector, call, index))
    counts = seen(call)
    flags = {*plan.flags, *SIZE_FLAGS.get(s, ()), *PROBE_FLAGS.get(plan.probe, ())}
    flags |= plant(plan.plant, call, counts)
    if 0 in (s.b, s.m, s.n):
        flags.add("ZeroSize")
    elif not counts.any(axis=-1).all():
        flags.add("EmptyRows")
    tensors: Tensors = {"q": half(q), "k": half(k), "v": half(v)}
    tensors |= {name: half(attributes[name]) for name in ARRAYS if name in attributes}
    tensors |= {name: half(x) for name, x in index.items()}
    tensors |= _answers(call)
    if plan.above:
        flags |= _gradients(plan, call, rng, tensors)
    record = {
        "id": plan.id,
        "family": plan.family,
        "comment": comment(plan),
        "flags": sorted(flags),
        "result": "valid",
        "pattern": sr.to_dict(call.pattern),
        "words": plan.words,
        "sizes": s._asdict(),
        "probe": plan.probe,
        "attributes": {n: x for n, x in attributes.items() if n not in ARRAYS},
        "mask": {
            "batch": counts.shape[0],
            "heads": counts.shape[1],
            "rows": drawn(counts.reshape(math.prod(counts.shape[:3]), s.n), runs=s.n > DRAWN),
        },
    }
    if plan.selector is not None:
        record["selection"] = plan.selector.to_dict()
    return record, tensors


def comment(plan: Plan) -> str:
    """What is asked beyond the pattern, in one line."""
    said = {
        "": "",
        "hidden": "NaN in every key and value that nobody sees",
        "padding": "NaN in every key and value past the length",
        "seen-key": "key 3 has a NaN: rows that see it are NaN, others are not",
        "seen-value": "column 1 of value 3 is NaN: so is it in the rows that see it",
        "bias-hidden": "the bias is NaN where no pair is allowed",
        "bias-minus-inf": "the bias hides key 3 by -inf; its value is NaN",
        "bias-inf": "the bias of key 3 is +inf: rows that see it are NaN",
        "bias-row-minus-inf": "the bias of query 2 is -inf everywhere: it sees no key",
        "no-sink": "the sink of head 0 is -inf: it has none",
    }[plan.plant]
    given = f"given: {', '.join(plan.options)}" if plan.options else ""
    above = {"": "", "out": "gradients of dout", "out+lse": "gradients of dout and dlse"}
    return "; ".join(part for part in (given, said, above[plan.above]) if part)


def half(x: Any) -> NDArray[np.float16]:
    """As float16, which must hold it exactly; so must bfloat16."""
    x = np.asarray(x, np.float64)
    held = x.astype(np.float16)
    finite = x[np.isfinite(x)]
    steps = np.ldexp(finite, 8 - np.frexp(finite)[1])
    if not np.array_equal(held, x, equal_nan=True) or (steps != np.rint(steps)).any():
        raise ValueError("inputs must be exact in float16 and bfloat16")
    return np.asarray(held, np.float16)


def seen(call: Call) -> NDArray[Any]:
    """How often each key counts, (1 or b, 1 or h, m, n)."""
    (b, h, m, _), n, given = call.q.shape, call.k.shape[2], call.attributes
    vary = [np.asarray(given.get(name, 0)) for name in ("q_start", "kv_lengths")]
    positions = np.asarray(given.get("kv_positions", np.arange(n)))
    apart = call.pattern.batches or any(x.ndim for x in vary) or positions.ndim > 1
    heads = h if call.pattern.heads > 1 else 1
    rows = []
    for i in range(b if apart else 1):
        start, length = (
            None if name not in given else int(np.broadcast_to(given[name], (max(b, 1),))[i])
            for name in ("q_start", "kv_lengths")
        )
        slots = np.broadcast_to(positions, (max(b, 1), n))[i]
        slots = np.where(np.arange(n) < (n if length is None else length), slots, -1)
        rows.append(
            call.pattern.counts(m, n, heads=heads, q_start=start, kv_positions=slots, batch=i)
        )
    return np.stack(rows)


def plant(what: str, call: Call, counts: NDArray[Any]) -> set[str]:
    """What is not finite, put into the inputs in place; and the flag of it."""
    (b, h, m, _), (_, g, n, _) = call.q.shape, call.k.shape
    allowed = np.broadcast_to(counts > 0, (b, h, m, n))
    match what:
        case "hidden" | "padding":
            groups = allowed.reshape(b, g, h // g, m, n).any(axis=(2, 3))
            for x in (call.k, call.v):
                x[~groups] = np.nan
            return {"MaskedNaN"}
        case "seen-key":
            call.k[0, 0, 3, 0] = np.nan
            return {"SeenNaN"}
        case "seen-value":
            call.v[0, 0, 3, 1] = np.nan
            return {"SeenNaN"}
        case "bias-hidden":
            call.attributes["bias"][~allowed[0]] = np.nan
            return {"MaskedNaN"}
        case "bias-minus-inf":
            call.attributes["bias"][..., 3] = -np.inf
            call.v[:, :, 3] = np.nan
            return {"InfiniteScores", "MaskedNaN"}
        case "bias-inf":
            call.attributes["bias"][..., 3] = np.inf
            return {"InfiniteScores"}
        case "bias-row-minus-inf":
            call.attributes["bias"][:, 2] = -np.inf
            return {"InfiniteScores", "EmptyRows"}
        case "no-sink":
            call.attributes["sink_logits"][0] = -np.inf
            return set()
    return set()


def _answers(call: Call) -> Tensors:
    want = call.oracle()
    found: Tensors = {"out": want.out, "lse": want.lse}
    for kind in TYPES:
        bound = call.bound(kind, kind)
        found |= {f"bound.{kind}.out": up(bound.out), f"bound.{kind}.lse": up(bound.lse)}
    return found


def _gradients(plan: Plan, call: Call, rng: Stream, tensors: Tensors) -> set[str]:
    above: Tensors = {"dout": rng.integers(-128, 129, tensors["out"].shape) / 64}
    if "lse" in plan.above:
        above["dlse"] = rng.integers(-128, 129, tensors["lse"].shape) / 64
    tensors |= {name: half(x) for name, x in above.items()}
    given = (call.q, call.k, call.v, call.pattern)
    both = call.attributes | above
    for name, x in sr.attention_vjp(*given, **both)._asdict().items():
        if x is not None:
            tensors[name] = x
    for kind in TYPES:
        bounds = sr.error_bound_vjp(*given, **both, arithmetic=kind, output=kind)
        tensors |= {
            f"bound.{kind}.{n}": up(x) for n, x in bounds._asdict().items() if x is not None
        }
    asked = {"dlse": "GradientLse", "dbias": "GradientBias", "dsink_logits": "GradientSink"}
    return {"Gradients"} | {flag for name, flag in asked.items() if name in tensors}


def up(x: NDArray[Any]) -> NDArray[np.float32]:
    """As float32, rounded up; what is not finite but NaN has no place in a golden file."""
    if np.isinf(x).any():
        raise ValueError("bounds must be finite, or NaN where the answer is")
    near = x.astype(np.float32)
    more = np.nextafter(near, np.float32(np.inf))
    return np.asarray(np.where(near < x, more, near), np.float32)
