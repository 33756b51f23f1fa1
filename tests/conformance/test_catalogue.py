"""Every known mistake is caught and named; what is not in the catalogue is not."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.catalogue import CATALOGUE, GRADIENTS, ROUNDING
from sparse_ref.conformance.checking import run
from sparse_ref.conformance.report import Report
from tests import numpy_kernels
from tests.conformance.test_checking import candidate
from tests.test_bounds import F16, F32

MEANING = [m for m in CATALOGUE if m not in ROUNDING and m not in GRADIENTS]
SUITE = sr.cases(quick=True, dtypes=("float32",))
# What changes nothing that the quick cases ask, but a longer row shows.
LONG_ROWS = {"tail-dropped-64", "padding-seen-64"}
# Acceptable where it is all that is wrong: what is masked and not finite reaches the output.
ACCEPTED = ("masked-nan", "masked-nan-to-0")


def with_mistake(mistake):
    """An implementation that makes one mistake, wherever it can be made, and no other."""

    def fn(q, k, v, pattern, **attributes):
        call = Call(q, k, v, pattern, attributes)
        with np.errstate(all="ignore"):
            outcome = mistake.outcome(call)
            out, lse = call.oracle() if outcome is None else outcome[0]
        return out.astype(q.dtype), np.asarray(lse).astype(F32)

    return fn


def report_on(fn, cases, seed=3):
    return Report(run(fn, cases, seed), fn, seed)


def test_the_catalogue_is_large_and_its_entries_are_distinct():
    assert len(MEANING) >= 40
    assert len(ROUNDING) >= 8
    assert len({mistake.id for mistake in CATALOGUE}) == len(CATALOGUE)
    assert all(not m.link or m.link.startswith("https://github.com/") for m in CATALOGUE)
    assert sum(bool(mistake.link) for mistake in CATALOGUE) >= 35


SAMPLE = ["window-left+1", "top-left", "heads-tiled", "scale-2d", "lse-base-2", "merge-unscaled",
          "empty-mean", "counted-twice"]  # fmt: skip


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(m, id=m.id, marks=() if m.id in SAMPLE else pytest.mark.slow)
        for m in MEANING
        if m.id not in ACCEPTED  # the next test
    ],
)
def test_each_is_caught_and_named_first(mistake):
    cases = SUITE if mistake.id not in LONG_ROWS else sr.cases(dtypes=("float32",), only="67x131")
    report = report_on(with_mistake(mistake), cases)

    assert report.failures, "not caught"
    found = report.diagnoses
    assert found, str(report)
    assert mistake.id in found[0].ids, str(report)
    assert found[0].explains == found[0].of
    assert len(found[0].ids) <= 3


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_leak_of_what_is_masked_is_seen_and_accepted(name):
    (leak,) = (mistake for mistake in MEANING if mistake.id == name)
    report = report_on(with_mistake(leak), SUITE)

    assert report.counts["ACCEPTABLE"] > 1
    assert not report.failures


LISTED = np.tri(6) > 0
LISTED[2] = [True, False, True, True, False, False]
ASKED = {  # what libraries are asked, and the mistake that one of them makes in it
    "neighborhood-even+1": sr.recipes.natten((5, 11), (2, 4)),
    "neighborhood-axes-exchanged": sr.recipes.natten((5, 11), (3, 3)),
    "counted-dense": sr.Causal() & sr.BlockPattern(LISTED, 4),
    "bucket-padding-seen": sr.Chunked(5, back=1, ahead=1),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_mistake_of_one_library_is_named_for_everybody(name):
    (mistake,) = (one for one in MEANING if one.id == name)
    found = sr.diagnose(with_mistake(mistake), ASKED[name])
    assert [one.ids for one in found] == [(name,)]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MEANING, ids=lambda m: m.id)
def test_each_that_can_be_made_on_long_rows_is_caught_there(mistake):
    for n in (2053, 8209):
        cases = [case for case in sr.cases(dtypes=("float32",)) if case.sizes.n == n]
        can = []
        for case in cases:
            with np.errstate(all="ignore"):
                if mistake.outcome(case.call(3)) is not None:
                    can.append(case)
        if can:
            results = run(with_mistake(mistake), can, 3)
            assert any(result.verdict == "FAIL" for result in results), n


ROUNDED = {  # how the kernels of the tests round, and what they are caught by
    "float16-weights": {"weight": F16},
    "float16-scores": {"score": F16},
}


@pytest.mark.parametrize("name", ROUNDED)
def test_lost_bits_are_caught_and_named(name):
    fn = candidate(numpy_kernels.naive, **{"weight": F32, **ROUNDED[name]})
    report = report_on(fn, sr.cases(dtypes=("float32",), only="random/float32", options=False))

    assert report.failures
    assert any(name in found.ids for found in report.diagnoses), str(report)


# Faults that no entry of the catalogue is: on the way in,
INPUTS = {
    "keys rounded to quarters": lambda q, k, v: (q, np.round(4 * k) / 4, v),
    "values rounded to halves": lambda q, k, v: (q, k, np.round(2 * v) / 2),
    "the first value doubled": lambda q, k, v: (q, k, v * (1 + _at(v, 2, 0))),
    "keys negated": lambda q, k, v: (q, -k, v),
    "every second entry of q dropped": lambda q, k, v: (q * _even(q, 3), k, v),
    "value heads exchanged": lambda q, k, v: (q, k, v[:, ::-1] if v.shape[1] > 1 else -v),
    "entries of k rolled": lambda q, k, v: (q, np.roll(k, 1, axis=3), v),
    "a temperature of 0.9": lambda q, k, v: ((q / 0.9).astype(q.dtype), k, v),
    "keys averaged in pairs": lambda q, k, v: (q, (k + np.roll(k, 1, axis=2)) / 2, v),
    "the absolute value of v": lambda q, k, v: (q, k, np.abs(v)),
    "every second query negated": lambda q, k, v: (q * (2 * _even(q, 2) - 1), k, v),
}
# and on the way out.
OUTPUTS = {
    "one entry in 97 off": lambda out, lse: (
        np.where(np.arange(out.size).reshape(out.shape) % 97 == 5, out.dtype.type(0.25), out), lse),
    "the last query repeated": lambda out, lse: (
        out[:, :, np.maximum(np.arange(out.shape[2]), out.shape[2] - 2) if out.shape[2] < 3
            else [*range(out.shape[2] - 2), -1, -1]], lse),
    "1 % too large": lambda out, lse: (out * out.dtype.type(1.01), lse),
    "lse 1 % too large": lambda out, lse: (out, lse * F32(1.01)),
    "squared": lambda out, lse: (out * out, lse),
    "clipped at 0.5": lambda out, lse: (np.clip(out, -0.5, 0.5), lse),
    "the second head lost": lambda out, lse: (out * (1 - _at(out, 1, 1)), lse),
    "its mean removed": lambda out, lse: (out - out.mean(axis=-1, keepdims=True), lse),
    "every second query lost": lambda out, lse: (out * _even(out, 2), lse),
}  # fmt: skip


def _even(x, axis):
    """1 at even indices of an axis, else 0."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return (np.arange(x.shape[axis]) % 2 == 0).astype(x.dtype).reshape(shape)


def _at(x, axis, index):
    """1 at an index of an axis, else 0."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return (np.arange(x.shape[axis]) == index).astype(x.dtype).reshape(shape)


def with_fault(name):
    def fn(q, k, v, pattern, **options):
        kind = q.dtype
        q, k, v = (x.astype(kind) for x in INPUTS.get(name, lambda *x: x)(q, k, v))
        out, lse = sr.attention(q, k, v, pattern, **options)
        return OUTPUTS.get(name, lambda *x: x)(out.astype(kind), lse.astype(F32))

    return fn


@pytest.mark.slow
def test_what_is_not_in_the_catalogue_is_called_unknown():
    faults = [*INPUTS, *OUTPUTS]
    assert len(faults) == 20
    named = {}
    for fault in faults:
        report = report_on(with_fault(fault), SUITE)
        assert report.failures, fault
        if "no known mistake gives these answers" not in str(report):
            named[fault] = report.diagnoses[0].ids
    assert len(named) <= 2, named
