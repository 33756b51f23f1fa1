"""Code that remembers, tampers, or leaves its output unwritten does not pass."""

import sys

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.results import Attention

F32 = np.float32
SOME = [
    case for case in sr.cases(quick=True, dtypes=("float32",))
    if case.name in ("causal", "window") and case.sizes.n > 9 and "+nan" not in case.id
    and set(case.options) <= {"bias"}
]  # fmt: skip


def right(q, k, v, pattern, bias=None):
    return sr.attention(q, k, v, pattern, bias=bias).out.astype(F32)


def remembering(key):
    """Answers what it answered to the first call that looked the same."""
    known = {}

    def fn(q, k, v, pattern, bias=None):
        return known.setdefault(key(q, k, v, pattern), right(q, k, v, pattern, bias)).copy()

    return fn


@pytest.mark.parametrize(
    "key",
    [
        lambda q, k, v, pattern: (q.shape, k.shape),
        lambda q, k, v, pattern: (q.shape, k.shape, pattern),
        lambda q, k, v, pattern: (q.shape, pattern, q.tobytes()),
    ],
    ids=["shapes", "patterns", "queries"],
)
def test_what_it_remembers_is_no_answer(key):
    every_probe = sr.cases(dtypes=("float32",), only="window/b1h6g2-13x13", options=False)
    report = sr.check(remembering(key), every_probe)
    assert report.counts["FAIL"] >= 2


def test_values_are_new_at_every_check():
    seen = []

    def fn(q, k, v, pattern):
        seen.append(v.tobytes())
        return right(q, k, v, pattern)

    one = [case for case in SOME if case.probe == "random" and not case.options][:1]
    assert sr.check(fn, one).ok
    assert sr.check(fn, one).ok
    assert len(set(seen)) == 2


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_one_that_writes_to_what_it_is_given_fails(name):
    def fn(q, k, v, pattern, bias):
        out = right(q, k, v, pattern, bias)
        {"q": q, "k": k, "v": v, "bias": bias}[name][..., -1] += 1
        return out

    case = next(case for case in SOME if "bias" in case.options)
    assert sr.check(fn, [case]).results[0].reason == f"{name} must not be written to, and was"


def test_the_pattern_that_it_changes_is_not_the_one_that_is_judged():
    def fn(q, k, v, pattern):
        for one in pattern.patterns:
            if isinstance(one, sr.SlidingWindow):
                object.__setattr__(one, "left", 11)
        return right(q, k, v, pattern)

    some = [case for case in SOME if case.name == "window" and not case.options]
    assert set(sr.check(fn, some).counts) == {"FAIL"}
    assert sr.check(right, some).counts == {"PASS": len(some)}


def test_an_output_that_is_not_written_holds_nan():
    last = []

    def fn(q, k, v, pattern):
        out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
        last.append(np.isnan(out).any())
        return right(q, k, v, pattern)

    assert sr.check(fn, SOME[:4]).ok
    assert all(last[:4])

    def unwritten(q, k, v, pattern):
        out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
        out[:, :, :-1] = right(q, k, v, pattern)[:, :, :-1]
        return out

    assert set(sr.check(unwritten, SOME[:4]).counts) == {"FAIL"}


def test_the_answer_is_not_there_yet_when_it_is_asked():
    found = []

    def fn(q, k, v, pattern):
        frame = sys._getframe(1)
        while frame is not None:
            found.extend(x for x in frame.f_locals.values() if isinstance(x, Attention))
            frame = frame.f_back
        return right(q, k, v, pattern)

    assert sr.check(fn, SOME[:2]).ok
    assert not found
