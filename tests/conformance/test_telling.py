"""Mistakes of precision, which wrong answers do not tell apart, and the bits that do."""

import pytest

import sparse_ref as sr
from sparse_ref.conformance.catalogue import ROUNDING
from sparse_ref.conformance.checking import run
from sparse_ref.conformance.precision import Precision
from sparse_ref.conformance.report import Report
from sparse_ref.conformance.telling import fitting, read_in, shown_by
from tests import numpy_kernels
from tests.conformance.test_checking import candidate
from tests.test_bounds import F16, F32

HALF = [case for case in sr.cases(dtypes=("float16",), options=False)
        if case.probe == "random" and "MaskedNaN" not in case.hunts and case.sizes.n in (13, 19)
        ]  # fmt: skip
LOOSE = [mistake.id for mistake in ROUNDING]


def test_scores_in_half_are_named_alone_though_looser_mistakes_fit():
    fn = candidate(numpy_kernels.naive, weight=F32, score=F16)
    report = Report(run(fn, HALF, 3), fn, 3)
    (found,) = report.diagnoses

    assert found.ids == ("float16-scores",)
    read = "  read from outside: scores 11 bits, weights 11, values 11, sums 24; small weights kept"
    assert read in str(report).splitlines()
    assert found.to_dict()["read"] in read


def test_what_every_mistake_shows():
    shown = {name: shown_by(name, "float32") for name in LOOSE}
    assert shown == {
        "tf32-products": (24, 11, 24), "float16-weights": (24, 11, 24),
        "bfloat16-weights": (24, 8, 24), "float16-scores": (11, 24, 24),
        "bfloat16-scores": (8, 24, 24), "float16-sums": (11, 11, 11),
        "bfloat16-sums": (8, 8, 8), "fast-exp-16": (24, None, 24), "fast-exp-12": (24, None, 24),
        "bfloat16-everywhere": (8, 8, 8),
    }  # fmt: skip
    assert shown_by("float16-scores", "float16") == (11, 11, 24)


@pytest.mark.parametrize(
    ("read", "dtype", "left"),
    [
        ((24, 11, 11, 24), "float32", ["tf32-products", "float16-weights"]),
        ((24, 11, 24, 24), "float32",
         ["tf32-products", "float16-weights", "fast-exp-16", "fast-exp-12"]),
        ((24, 8, 24, 24), "float32", ["bfloat16-weights", "fast-exp-16", "fast-exp-12"]),
        ((11, 11, 11, 11), "float16", ["float16-sums"]),
        ((8, 24, 24, 24), "float32", ["bfloat16-scores"]),
        ((8, 24, 24, 11), "float32", LOOSE),  # none: then they stay
    ],
)  # fmt: skip
def test_bits_leave_the_mistakes_that_show_them(read, dtype, left):
    assert fitting(LOOSE, Precision(*read, flushes=False), dtype) == left


def test_what_cannot_be_read_chooses_nothing():
    def refuses(q, k, v, pattern):
        if isinstance(pattern, sr.patterns.Full):
            raise NotImplementedError("it is causal")
        kernel = candidate(numpy_kernels.naive, weight=F32, score=F16)
        return kernel(q, k, v, pattern)

    assert read_in(refuses, "float16") is None
    some = [case for case in HALF if case.name in ("causal", "window")]
    report = Report(run(refuses, some, 3), refuses, 3)
    (found, *_) = report.diagnoses
    assert "float16-scores" in found.ids
    assert len(found.ids) > 3
    assert f"nothing that was asked tells these {len(found.ids)} apart" in str(found)


@pytest.mark.witness
def test_the_half_attention_of_onnx_runtime_rounds_its_scores():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from sparse_ref.conformance.operators import attention_23

    fn = sr.Candidate(attention_23, spell="onnx23")
    report = Report(run(fn, HALF, 3), fn, 3)
    if report.ok:
        pytest.skip("this release keeps its scores")
    assert [found.ids for found in report.diagnoses] == [("float16-scores",)]
