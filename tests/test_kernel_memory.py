"""`max_bytes`: what does not fit is refused before it is made, and what fits is not."""

import re
import tracemalloc

import numpy as np
import pytest

import sparse_ref as sr
from tests.test_layouts import FAMILIES

pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import choices, forward, orders, plans  # noqa: E402

N = 701
PATTERNS = {
    "causal": sr.Causal(),
    "window": sr.SlidingWindow(100, 3),
    "strided": sr.Causal() & (sr.SlidingWindow(31, 0) | sr.Strided(32)),
    "random": sr.RandomKeys(7, 0, N),
    "multi": sr.Multi([sr.Causal(), sr.SlidingWindow(9, 9)]),
    "heads": sr.PerHead([sr.Causal(), sr.Strided(31)]),
    "permuted": sr.Permuted(sr.SlidingWindow(9, 9), np.random.default_rng(0).permutation(N)),
}


def arrays(n, b=1, h=2, d=8):
    return np.random.default_rng(0).standard_normal((3, b, h, n, d)).astype(np.float32)


def least(call):
    """The least limit a call accepts, by raising it to what every refusal asks for."""
    limit = 0
    for _ in range(50):
        plans._plans.clear()
        try:
            call(limit)
        except ValueError as refused:
            how, needed = re.fullmatch(
                rf"max_bytes must be (at least|more than) the (\d+) needed, got {limit}",
                str(refused),
            ).groups()
            assert int(needed) + (how == "more than") > limit
            limit = int(needed) + (how == "more than")
        else:
            return limit
    raise AssertionError("fifty limits were refused")


@pytest.mark.parametrize("name", PATTERNS)
def test_the_least_limit_is_what_the_plan_and_the_results_take(name):
    q, k, v = arrays(N)
    pattern = PATTERNS[name]
    found = least(lambda limit: kernels.attention(q, k, v, pattern, max_bytes=limit))
    plan = kernels.plan(pattern, N, N, heads=2, kv_heads=2, head_dim=8, dtype="float32")
    results = q.nbytes + q[..., 0].nbytes

    assert found >= results + plan.nbytes
    assert found <= results + plan.nbytes + 2 * (k.nbytes + v.nbytes)  # copies in another order
    same = kernels.attention(q, k, v, pattern, max_bytes=found)
    np.testing.assert_array_equal(same.out, kernels.attention(q, k, v, pattern).out)


@pytest.mark.parametrize("name", ["causal", "random", "heads"])
def test_gradients_take_the_layout_twice(name):
    q, k, v = arrays(N)
    pattern = PATTERNS[name]
    found = least(lambda limit: kernels.attention_vjp(q, k, v, pattern, q, max_bytes=limit))
    plan = kernels.plan(pattern, N, N, heads=2, kv_heads=2, head_dim=8, dtype="float32")

    assert found >= 4 * q.nbytes + 2 * plan.nbytes * 0.9


LONG = 2**17
TOO_LARGE = {
    "dense": sr.Full(),
    "causal": sr.Causal(),
    "random": sr.RandomKeys(128, 0, LONG),
    "far": ~sr.SlidingWindow(64, 64),
    "heads": sr.PerHead([sr.SlidingWindow(9, 0), sr.Causal()]),
    "multi": sr.Multi([sr.SlidingWindow(9, 0), sr.Full()]),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_layout_that_does_not_fit_is_not_made(name, monkeypatch):
    made = []
    monkeypatch.setattr(plans, "Part", lambda *parts: made.append(parts))
    monkeypatch.setattr(choices, "frame_csr", made.append)
    if name not in {"heads", "multi"}:  # their first parts are small
        monkeypatch.setattr(choices, "to_blocks", lambda *_, **__: made.append(1))
    else:
        monkeypatch.undo()
    q, k, v = arrays(LONG, h=2, d=1)
    plans._plans.clear()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"max_bytes must be more than the \d+ needed, got"):
            kernels.attention(q, k, v, TOO_LARGE[name], max_bytes=2**22)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert not made
    assert peak < 2**25  # a quarter kilobyte a token: the layouts would take 2**25 at least


def test_keys_at_positions_of_their_own_are_counted_first(monkeypatch):
    def fail(*_):
        raise AssertionError("pairs were listed")

    q, k, v = arrays(4096, d=1)
    monkeypatch.setattr(forward, "row_layout", fail)
    monkeypatch.setattr("sparse_ref.heads.frame_csr", fail)
    with pytest.raises(ValueError, match=r"max_bytes must be more than the \d+ needed, got"):
        kernels.attention(q, k, v, sr.Causal(), kv_positions=np.arange(4096)[::-1], max_bytes=2**20)


def test_few_queries_have_room_for_their_parts_first(monkeypatch):
    q, k, v = arrays(2**16)
    monkeypatch.setattr(forward.decode, "of_problem", None)
    with pytest.raises(ValueError, match=r"max_bytes must be more than the \d+ needed, got"):
        kernels.attention(q[:, :, :1], k, v, sr.Full(), max_bytes=1000)


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_blocks_are_counted_as_they_are_found(pattern):
    for m, n in ((331, 523), (64, 257)):
        for part in pattern.parts if pattern.heads == 1 and pattern.batches is None else []:
            if part.covers is not None and part.covers < n:
                continue
            q, k = np.arange(m), np.arange(n)
            sides = orders.deal(q, n - m + q), orders.deal(k, k)
            found = orders.find(part, *sides, np.inf)
            assert orders.count(part, *sides, np.inf) == len(found.row)


def test_a_limit_is_an_integer():
    q, k, v = arrays(3)
    with pytest.raises((TypeError, ValueError), match="max_bytes must be"):
        kernels.attention(q, k, v, sr.Full(), max_bytes=-1)
    with pytest.raises((TypeError, ValueError), match="max_bytes must be"):
        kernels.attention_vjp(q, k, v, sr.Full(), q, max_bytes=1.5)
