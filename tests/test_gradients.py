"""The oracle's gradients against finite differences in extended precision, and their laws."""

import mpmath
import numpy as np
import pytest

import sparse_ref as sr
from tests.test_reference import OPTIONS, PATTERNS, draw_inputs

NAMES = ("dq", "dk", "dv", "dbias", "dsink_logits")


def cotangents(b=2, h=3, m=5, e=3):
    rng = np.random.default_rng(7)
    return rng.standard_normal((b, h, m, e)), rng.standard_normal((b, h, m))


def loss(q, k, v, pattern, dout, dlse, options):
    """sum(out * dout) + sum(lse * dlse) in NumPy's long double, over the allowed pairs only."""
    wide = np.longdouble
    (b, h, m, d), (g, n) = q.shape, k.shape[1:3]
    total = wide(0)
    starts = np.broadcast_to(options.get("q_start", n - m), b)
    slots = np.broadcast_to(options.get("kv_positions", np.arange(n)), (b, n))
    lengths = np.broadcast_to(options.get("kv_lengths", n), b)
    bias = np.broadcast_to(options.get("bias", wide(0)), (b, h, m, n))
    for i in range(b):
        slot = np.where(np.arange(n) < lengths[i], slots[i], -1)
        counts = pattern.counts(
            m,
            n,
            heads=h,
            q_start=int(starts[i]),
            kv_positions=slot,
            batch=i if pattern.batches else 0,
        )
        for j in range(h):
            dots = q[i, j].astype(wide) @ k[i, j // (h // g)].astype(wide).T
            s = wide(options.get("scale", wide(d) ** wide(-0.5))) * dots
            if "softcap" in options:
                s = options["softcap"] * np.tanh(s / options["softcap"])
            s = s + bias[i, j]
            if "alibi_slopes" in options:
                p = np.arange(m)[:, None] + starts[i]
                s = s - options["alibi_slopes"][j] * np.abs(p - slot)
            sink = options["sink_logits"][j] if "sink_logits" in options else wide(-np.inf)
            w = np.where(counts[j] > 0, counts[j] * np.exp(s), 0)
            denominator = w.sum(axis=-1) + np.exp(wide(sink))
            some = denominator > 0
            safe = np.where(some, denominator, 1)
            total += ((w @ v[i, j // (h // g)].astype(wide)) / safe[:, None] * dout[i, j]).sum()
            total += (np.where(some, np.log(safe), 0) * dlse[i, j]).sum()
    return total


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_equals_finite_differences_in_extended_precision(pattern, options):
    q, k, v = draw_inputs()
    dout, dlse = cotangents()
    got = sr.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **options)
    rng, step = np.random.default_rng(5), np.longdouble(1e-6)

    inputs = {"dq": q, "dk": k, "dv": v}
    inputs |= {"d" + name: options[name] for name in ("bias", "sink_logits") if name in options}
    for name, x in inputs.items():
        direction = rng.standard_normal(x.shape)
        ends = []
        for sign in (1, -1):
            # not where(): 0 * direction keeps a sink of -inf where it is
            moved = x.astype(np.longdouble) + sign * step * direction
            arrays = [
                moved if n == name else a for n, a in inputs.items() if n in ("dq", "dk", "dv")
            ]
            changed = options if name in ("dq", "dk", "dv") else {**options, name[1:]: moved}
            ends.append(loss(*arrays, pattern, dout, dlse, changed))
        want = float((ends[0] - ends[1]) / (2 * step))
        assert getattr(got, name).shape == x.shape
        assert np.sum(getattr(got, name) * direction) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_a_relative_bias_gets_the_sum_over_its_distances():
    q, k, v = draw_inputs()
    dout, _ = cotangents()
    distance = np.clip(np.arange(7) - (np.arange(5)[:, None] + 2) + 2, 0, 5)
    table = np.random.default_rng(3).standard_normal((3, 6))
    got = sr.attention_vjp(q, k, v, sr.Causal(), dout, bias=sr.RelativeBias(table, 2)).dbias
    dense = sr.attention_vjp(q, k, v, sr.Causal(), dout, bias=table[:, distance]).dbias

    want = np.stack([np.bincount(distance.ravel(), dense[h].ravel(), 6) for h in range(3)])
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


def test_one_pair_by_hand_to_fifty_digits():
    """Two keys, one query: every gradient has a closed form."""
    q, k, v = (np.array(x, dtype=float).reshape(1, -1, 1) for x in ([0.5], [1.0, -2.0], [3.0, 7.0]))
    got = sr.attention_vjp(q, k, v, sr.Full(), np.ones((1, 1, 1)), scale=1.0)
    with mpmath.workdps(50):
        p = 1 / (1 + mpmath.exp(mpmath.mpf(-1.5)))
        dscore = p * (1 - p) * (3 - 7)
        assert abs(got.dq[0, 0, 0] - dscore * 3) < 1e-15
        assert abs(got.dk[0, 0, 0] - dscore / 2) < 1e-15
        assert abs(got.dv[0, 0, 0] - p) < 1e-15


def test_rows_and_keys_without_pairs_have_gradient_zero():
    q, k, v = draw_inputs(m=7)
    dout, dlse = cotangents(m=7)
    k[:, :, 6], v[:, :, 6] = np.nan, np.nan
    got = sr.attention_vjp(q, k, v, sr.Causal() - sr.SlidingWindow(1, 0), dout, dlse=dlse)

    assert not got.dq[:, :, :2].any()
    assert not got.dk[:, :, 5:].any()
    assert not got.dv[:, :, 5:].any()
    assert all(np.isfinite(x).all() for x in got[:3])


def test_a_masked_bias_gets_gradient_zero():
    q, k, v = draw_inputs()
    dout, _ = cotangents()
    bias = np.zeros((5, 7))
    bias[2, 3] = -np.inf
    got = sr.attention_vjp(q, k, v, sr.SlidingWindow(2, 0), dout, bias=bias).dbias

    allowed = sr.SlidingWindow(2, 0).mask(5, 7)[0]
    assert (got != 0).tolist() == (allowed & (bias == 0)).tolist()


def test_bad_cotangents_are_refused():
    q, k, v = draw_inputs()
    dout, dlse = cotangents()
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 3, 5, 3\), got \(2, 3, 5\)"):
        sr.attention_vjp(q, k, v, sr.Full(), dlse)
    with pytest.raises(ValueError, match=r"dlse must have shape \(2, 3, 5\), got \(2, 3, 5, 3\)"):
        sr.attention_vjp(q, k, v, sr.Full(), dout, dlse=dout)
