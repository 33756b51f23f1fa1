"""An implementation in its own process: its crash is a verdict, and it cannot reach the oracle."""

import pytest

import sparse_ref as sr
from sparse_ref.conformance.calling import has_gradients
from tests.conformance import strange_kernels

ONE = [
    case
    for case in sr.cases(quick=True, options=False)
    if case.name == "causal" and case.sizes.n > 9
]
HERE = "tests.conformance.strange_kernels"


def verdicts(fn, **more):
    """Verdict and reason of each case."""
    report = sr.check(fn, ONE, isolate=True, **more)
    report.fn.close()
    return [(result.verdict, result.reason) for result in report.results]


def test_a_right_one_passes_by_function_or_by_name():
    assert len(ONE) == 4
    for fn in (strange_kernels.right, f"{HERE}:right", sr.fixed(strange_kernels.right).f):
        assert verdicts(fn) == [("PASS", "")] * 4


def test_one_worker_answers_all_and_another_takes_over_after_a_crash():
    fn = sr.conformance.isolated(strange_kernels.segfaults)
    report = sr.check(fn, ONE)
    assert [r.verdict for r in report.results] == ["PASS", "PASS", "ERROR", "ERROR"]
    assert report.results[2].reason == ("its process was killed by SIGSEGV (Segmentation fault)")
    assert sr.check(fn, ONE[:1]).ok
    fn.close()


@pytest.mark.parametrize(
    ("fn", "verdict", "reason"),
    [
        ("exits", "ERROR", "its process ended with status 3"),
        ("aborts", "ERROR", "its process was killed by SIGABRT (Aborted)"),
        ("leaves", "ERROR", "SystemExit: done"),
        ("raises", "ERROR", "ZeroDivisionError: a block of 0"),
        ("refuses", "UNSUPPORTED", "not today"),
    ],
)
def test_what_ends_a_process_is_a_verdict_on_the_case(fn, verdict, reason):
    report = sr.check(getattr(strange_kernels, fn), ONE[:1], isolate=True)
    report.fn.close()
    assert [(r.verdict, r.reason) for r in report.results] == [(verdict, reason)]


def test_one_that_hangs_is_stopped_and_the_next_case_is_asked():
    found = verdicts(strange_kernels.hangs, timeout=2.0)
    assert found == [("PASS", "")] * 2 + [("TIMEOUT", "no answer within 2.0 s")] * 2


def test_the_oracle_is_out_of_its_reach():
    assert {verdict for verdict, _ in verdicts(strange_kernels.tampers)} == {"FAIL"}


def test_what_no_process_can_get_hold_of_is_refused():
    with pytest.raises(ValueError, match="fn must be importable by its name, or picklable"):
        sr.check(lambda q, k, v, pattern: q, ONE, isolate=True)
    with pytest.raises(TypeError, match="fn must be callable where isolate is False, got 'm:f'"):
        sr.check("m:f", ONE)
    with pytest.raises(ValueError, match="fn must be given as module:function, got 'mine'"):
        sr.check("mine", ONE, isolate=True)


def test_gradients_come_from_there_too():
    some = sr.cases(quick=True, only="full/b1h6g2-13x13", options=False, gradients=True)
    report = sr.check(strange_kernels.with_gradients, some, isolate=True)
    report.fn.close()
    assert [case.gradients for case in some] == [False, False, True]
    assert report.counts == {"PASS": 3}


def test_one_that_cannot_be_imported_is_an_error():
    assert not has_gradients(sr.conformance.isolated("tests.conformance.nothing:here"))
    found = verdicts("tests.conformance.nothing:here")
    assert {verdict for verdict, _ in found} == {"ERROR"}
    assert "it cannot be loaded: ModuleNotFoundError" in found[0][1]


def test_one_that_ends_its_process_at_import_is_started_once(tmp_path, monkeypatch):
    log = tmp_path / "log"
    (tmp_path / "fatal_at_import.py").write_text(
        f"open({str(log)!r}, 'a').write('.')\nimport os\nos.abort()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = verdicts("fatal_at_import:f")
    aborted = "it cannot be loaded: its process was killed by SIGABRT (Aborted)"
    assert found == [("ERROR", aborted)] * 4
    assert log.read_text() == "."
