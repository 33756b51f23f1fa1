"""The pytest plugin, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_ref as sr

TESTS = """
import pytest
import sparse_ref as sr

MARK = sr.parametrize(quick=True, only=["window/b1h6g2-13x13", "full/b1h6g2-13x13"], options=False)

def wider(q, k, v, pattern):
    if isinstance(pattern, sr.And):
        pattern = sr.Causal() & sr.SlidingWindow(pattern.patterns[1].left + 1, 0)
    return sr.attention(q, k, v, pattern).out.astype(q.dtype)

def refuses(q, k, v, pattern):
    raise NotImplementedError("not today")

@MARK
def test_wider(case):
    sr.check(wider, [case]).raise_for_failures()

@MARK
def test_refuses(case):
    sr.check(refuses, [case]).raise_for_failures()

@MARK
def test_announced(case):
    sr.check(wider, [case], xfail={"window/": "one key too many"}).raise_for_failures()

@pytest.mark.xfail(reason="known", strict=True)
def test_marked():
    (case,) = sr.cases(quick=True, only="window/b1h6g2-13x13-d5e7/even", options=False)
    sr.check(wider, [case]).raise_for_failures()

def test_without_checks():
    import sys
    assert not {"numba", "torch", "onnx", "onnxruntime", "jax"} & set(sys.modules)
"""
ROOT = Path(sr.__file__).parents[1]


def run(directory, *options):
    """What pytest says of TESTS."""
    (directory / "test_mine.py").write_text(TESTS)
    plugin = ["-p", "no:sparse-ref", "-p", "sparse_ref.conformance.plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider",
               "-c", os.devnull, "--rootdir", str(directory), "-ra", *options]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.parametrize("options", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)])
def test_verdicts_are_outcomes_and_the_diagnosis_is_shown(tmp_path, options):
    text = run(tmp_path, *options)

    assert "2 failed, 5 passed, 4 skipped, 3 xfailed" in text, text
    assert "SKIPPED [4] " in text
    assert "sparse-ref: not today" in text
    assert "XFAIL test_mine.py::test_announced[window/b1h6g2-13x13-d5e7/even/float32]" in text
    assert "sparse-ref: one key too many" in text
    sections = text.count("sparse-ref: what is wrong")
    assert sections == 2
    assert text.count("window-left+1: the window has one key more on the left") == sections
    summary = text.rpartition("= sparse-ref =")[2]
    assert "3 FAIL, 4 PASS, 4 UNSUPPORTED, 2 XFAIL" in summary
    assert "window-left+1: gives the wrong answers of all 3 failing checks" in summary


def test_without_the_plugin_a_failure_is_the_whole_report():
    def wide(q, k, v, pattern):
        return sr.attention(q, k, v, sr.Full()).out.astype(q.dtype)

    case = sr.cases(quick=True, only="causal/b1h6g2-13x13-d5e7/even", options=False)[0]
    with pytest.raises(AssertionError, match="causal-lost"):
        sr.check(wide, [case]).raise_for_failures()
