"""The checker is checked first: right kernels pass, planted faults do not, and it says why."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance import Case, Sizes
from sparse_ref.conformance.judging import differences, ratios
from tests import numpy_kernels
from tests.test_bounds import F16, F32

KERNELS = {
    "naive": numpy_kernels.naive, "online": numpy_kernels.online, "blocked": numpy_kernels.blocked,
}  # fmt: skip
QUICK = sr.cases(quick=True)


def candidate(kernel, **more):
    """A NumPy kernel of the tests as an implementation: a mask, and what it takes beside it."""

    def fn(
        q, k, v, pattern, *, scale=None, softcap=None, bias=None, sink_logits=None, q_start=None
    ):
        h, m, n = q.shape[1], q.shape[2], k.shape[2]
        if pattern.multiset:
            raise NotImplementedError("keys that count several times")
        if not n:
            return np.zeros((*q.shape[:3], v.shape[3]), q.dtype)
        mask = pattern.mask(m, n, heads=h, q_start=q_start)[None]
        k, v = (np.repeat(x, h // x.shape[1], axis=1) for x in (k, v))
        unseen = ~mask.any(axis=(1, 2))[0]
        k, v = k.copy(), v.copy()
        k[:, :, unseen] = v[:, :, unseen] = 0
        sink = None if sink_logits is None else np.asarray(sink_logits)[:, None, None]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        weight = F16 if q.dtype == F16 else F32
        return kernel(
            q, k, v, mask, scale=scale, softcap=softcap, bias=bias, sink=sink,
            **{"weight": weight, **more},
        )  # fmt: skip

    return fn


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_right_kernels_pass(kernel):
    report = sr.check(candidate(kernel), QUICK)

    assert report.ok, str(report)
    assert not report.diagnoses
    assert set(report.counts) == {"PASS", "UNSUPPORTED"}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_right_kernels_pass_the_core_suite(kernel):
    report = sr.check(candidate(kernel))

    assert report.ok, str(report)


def test_the_oracle_and_the_compiled_kernels_pass():
    pytest.importorskip("numba")
    rounded = {np.dtype(F32): F32, np.dtype(F16): F16}

    def oracle(q, k, v, pattern, **options):
        out, lse = sr.attention(q, k, v, pattern, **options)
        return out.astype(rounded[q.dtype]), lse.astype(F32)

    for fn in (oracle, sr.kernels.attention):
        report = sr.check(fn, QUICK)
        assert report.counts == {"PASS": len(QUICK)}, str(report)


ONE = [case for case in QUICK if case.id.startswith("causal/b1h6g2-13x13")]
SPOILT = {
    "a NaN": lambda out, lse: (np.where(out == out[0, 0, 5, 0], np.nan, out), lse),
    "no NaN": lambda out, lse: (out[..., :-1], lse),
    "a narrower type": lambda out, lse: (out.astype(F16), lse),
    "an integer type": lambda out, lse: (out.astype(np.int32), lse),
    "heads and queries exchanged": lambda out, lse: (out.swapaxes(1, 2), lse),
    "one element off": lambda out, lse: (out + (np.arange(out.size).reshape(out.shape) == 77), lse),
    "a wrong lse": lambda out, lse: (out, lse + F32(1e-3)),
    "an lse of another shape": lambda out, lse: (out, lse[..., None]),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_planted_faults_fail(fault):
    right = candidate(numpy_kernels.naive)

    def fn(q, k, v, pattern):
        return SPOILT[fault](*right(q, k, v, pattern))

    report = sr.check(fn, ONE)
    assert not report.ok
    assert report.counts == {"FAIL": len(ONE)}


def test_nan_satisfies_nothing():
    want, bound = np.array([1.0, np.nan, -np.inf, 2.0]), np.array([0.5, np.nan, 0.0, np.inf])

    assert ratios(want, want, bound).tolist() == [0, 0, 0, 0]
    assert ratios(np.full(4, np.nan), want, bound).tolist() == [np.inf, 0, np.inf, 0]
    assert ratios(np.array([1.25, 0.0, 0.0, 9.0]), want, bound).tolist() == [0.5, np.inf, np.inf, 0]
    found = differences(
        "out", np.array([[[1.0, 3.0]]]), np.ones((1, 1, 2)), np.full((1, 1, 2), 0.5)
    )
    assert found.first == (0, 0, 1)
    assert (found.wrong, found.total, found.worst) == (1, 2, 4.0)


def test_one_that_writes_to_its_inputs_fails():
    def fn(q, k, v, pattern):
        out = sr.attention(q, k, v, pattern).out.astype(F32)
        q += 1
        return out

    report = sr.check(fn, ONE)
    assert report.results[0].reason == "q must not be written to, and was"


def test_one_that_does_not_end_times_out_and_one_that_crashes_is_an_error():
    import threading

    def waits(q, k, v, pattern):
        threading.Event().wait(60)

    def crashes(q, k, v, pattern):
        raise ZeroDivisionError("a block of 0")

    report = sr.check(waits, ONE[:1], timeout=0.05)
    assert report.results[0].reason == "no answer within 0.05 s"
    assert report.counts == {"TIMEOUT": 1}
    report = sr.check(crashes, ONE[:1])
    assert report.counts == {"ERROR": 1}
    assert report.results[0].reason == "ZeroDivisionError: a block of 0"


def test_what_is_announced_is_no_failure_and_its_absence_is():
    def wide(q, k, v, pattern):
        return sr.attention(q, k, v, sr.Full()).out

    assert sr.check(wide, ONE, xfail={"causal/": "not yet"}).counts == {"XFAIL": len(ONE)}
    right = candidate(numpy_kernels.naive)
    report = sr.check(right, ONE, xfail={"even": "not yet"})
    assert report.counts == {"PASS": 1, "XPASS": 1}
    assert not report.ok


def test_a_leaking_nan_alone_is_acceptable():
    def leaks(q, k, v, pattern, **options):
        out, lse = sr.attention(q, k, np.nan_to_num(v), pattern, **options)
        bad = np.repeat(np.isnan(v).any(axis=2, keepdims=True), q.shape[1] // v.shape[1], axis=1)
        return np.where(bad, np.nan, out).astype(F32), lse.astype(F32)

    planted = [case for case in QUICK if "MaskedNaN" in case.hunts]
    leaking = sum(np.isnan(case.call(0).v).any() for case in planted)
    report = sr.check(leaks, [*ONE, *planted])
    assert report.ok
    assert report.counts["ACCEPTABLE"] == leaking > 1
    assert "a NaN in a masked key or value leaks into" in str(report)


def test_the_report_reads_as_a_person_would_say_it():
    def off_by_one(q, k, v, pattern):
        wider = sr.Causal() & sr.SlidingWindow(5, 0)
        return sr.attention(q, k, v, wider).out.astype(F32)

    window = sr.Causal() & sr.SlidingWindow(4, 0)
    case = Case("mine", window, Sizes(1, 3, 1, 7, 7, 3, 2), "even")
    text = str(sr.check(off_by_one, [case]))

    assert text.splitlines()[0].startswith("sparse-ref check: 1 FAIL; seed ")
    assert "first wrong case: mine/b1h3g1-7x7-d3e2/even/float32" in text
    assert "only queries 5-6 of 7" in text
    assert "+ # # # # # ." in text
    assert "it sees 1 more key on the left" in text
    assert "window-left+1: the window has one key more on the left" in text
    assert "https://github.com/huggingface/transformers/issues/39408" in text


def test_json_and_junit_say_the_same():
    def wide(q, k, v, pattern):
        return sr.attention(q, k, v, sr.Full()).out

    report = sr.check(wide, ONE)
    record = json.loads(report.to_json())
    assert record["counts"] == {"FAIL": len(ONE)}
    assert record["diagnoses"][0]["ids"] == ["causal-lost", "causal-by-blocks"]
    assert [one["id"] for one in record["results"]] == [case.id for case in ONE]
    suite = ElementTree.fromstring(report.to_junit())
    assert suite.attrib["failures"] == str(len(ONE))
    assert suite[0][0].attrib["message"] == "FAIL"
    with pytest.raises(AssertionError, match="causal-lost"):
        report.raise_for_failures()


def test_nothing_right_is_not_ok():
    def refuses(q, k, v, pattern):
        raise NotImplementedError("patterns")

    report = sr.check(refuses, ONE)
    assert not report.ok
    assert "unsupported, 2 cases: patterns" in str(report)


def test_cases_have_ids_of_their_own_and_the_same_values_for_the_same_seed():
    all_ = sr.cases()
    assert len({case.id for case in all_}) == len(all_) >= 900
    assert {case.probe for case in all_} >= {"even", "ramp", "fingerprint", "low", "lower", "steps"}
    assert {case.sizes.n for case in all_} >= {0, 1, 13, 131, 2053, 8209}
    first, again, other = (ONE[1].call(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.q, again.q)
    assert (first.q != other.q).any()
    for case in QUICK:
        for x in case.call(1)[:3]:
            exact = np.nan_to_num(x.astype(np.float64))
            np.testing.assert_array_equal(exact.astype(F16).astype(np.float64), exact)


def test_every_case_is_a_test_of_its_own():
    mark = sr.parametrize(only="window-1/b1h6g2-13x13").args
    assert mark[0] == "case"
    assert len(mark[1]) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtypes": "float32"}, "dtypes must be a list of names, got 'float32'"),
        ({"sizes": [(1, 6, 4, 3, 3, 2, 2)]}, "sizes must have g that divides h, got g = 4, h = 6"),
    ],
)
def test_cases_refuse_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        sr.cases(**options)
