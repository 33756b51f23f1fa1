"""One that skips keys on purpose is never right, but may be within what it may lose."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance import Budget

F32 = np.float32
SOME = [
    case for case in sr.cases(quick=True, dtypes=("float32",), options=False)
    if case.name in ("causal", "full") and case.probe == "random" and case.sizes.n > 9
]  # fmt: skip


def dropping(count):
    """The keys of the largest scores but `count`, of those that are seen."""

    def fn(q, k, v, pattern):
        b, h = q.shape[:2]
        out = np.zeros((*q.shape[:3], v.shape[3]))
        for i, j in np.ndindex(b, h):
            group = j // (h // k.shape[1])
            p = sr.weights(q[i], k[i], pattern, head=j).toarray()
            for row in p:
                seen = np.flatnonzero(row)
                row[seen[np.argsort(row[seen])][: min(count, len(seen) - 1)]] = 0
            p /= np.maximum(p.sum(axis=1, keepdims=True), 1e-300)
            out[i, j] = p @ v[i, group]
        return out.astype(F32)

    return fn


def test_what_is_within_the_budget_is_approximate_and_never_passes():
    report = sr.check(dropping(2), SOME, budget=Budget(1.0, 0.5))

    assert report.counts == {"APPROXIMATE": len(SOME)}
    assert report.ok
    losses = [result.loss for result in report.results]
    assert all(0 < loss.error <= 1 and 0.5 <= loss.recall < 1 for loss in losses)
    assert "recall down to 0." in str(report)


def test_more_than_the_budget_fails_and_says_by_how_much():
    report = sr.check(dropping(6), SOME, budget=Budget(1.0, 0.99))

    assert report.counts == {"FAIL": len(SOME)}
    assert "the budget is error 1, recall 0.99" in report.failures[0].reason


def test_the_right_answer_passes_within_any_budget():
    report = sr.check(dropping(0), SOME, budget=Budget(0, 1))
    assert report.counts == {"PASS": len(SOME)}


def test_the_recall_is_that_of_the_weights_that_are_read():
    def recent(q, k, v, pattern):
        return sr.attention(q, k, v, pattern & sr.SlidingWindow(2, None)).out.astype(F32)

    # So many columns that the mean of 3 values is never that of all 9 in each of them.
    sizes = sr.conformance.Sizes(1, 1, 1, 1, 9, 3, 11)
    case = sr.conformance.Case("full", sr.Full(), sizes, "even")
    (result,) = sr.check(recent, [case], budget=Budget(np.inf, 0.3)).results
    assert result.loss.recall == pytest.approx(3 / 9)  # all keys weigh the same
    (result,) = sr.check(recent, [case], budget=Budget(np.inf, 0.4)).results
    assert result.verdict == "FAIL"


def test_a_key_that_nobody_may_see_is_no_approximation():
    def leaks(q, k, v, pattern):
        return sr.attention(q, k, v, pattern | sr.SlidingWindow(0, 1)).out.astype(F32)

    report = sr.check(leaks, [case for case in SOME if case.name == "causal"],
                      budget=Budget(np.inf, 0.0))  # fmt: skip
    assert set(report.counts) == {"FAIL"}
    assert "it reads keys that are hidden" in report.failures[0].reason


def test_nan_is_within_no_budget():
    def fn(q, k, v, pattern):
        return np.full((*q.shape[:3], v.shape[3]), np.nan, F32)

    assert sr.check(fn, SOME, budget=Budget(np.inf, 0.0)).counts == {"FAIL": len(SOME)}


@pytest.mark.parametrize(("error", "recall"), [(-1.0, 0.5), (np.nan, 0.5), (0.1, 1.5)])
def test_a_budget_that_makes_no_sense_is_refused(error, recall):
    with pytest.raises(ValueError, match="must be"):
        Budget(error, recall)
