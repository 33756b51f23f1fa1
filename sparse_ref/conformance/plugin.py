"""A pytest plugin: what `check` found is shown where a test fails, and summed up at the end.

In a test, `sr.check(fn, [case]).raise_for_failures()` skips it where nothing was supported, and is
an expected failure where all that failed was announced with `xfail=`. What failed is a section of
its own with the diagnosis; the end names the mistakes that all failures agree on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from .report import WATCHERS, CheckError, Report

KEY = "sparse-ref"


def pytest_configure(config: pytest.Config) -> None:
    """Reports of checks are watched from here on."""
    WATCHERS.append(_judged)
    config.add_cleanup(lambda: WATCHERS.remove(_judged))


def _judged(report: Report) -> None:
    """Verdicts that pytest has words of its own for."""
    if report.failures or report.ok:
        return
    reasons = list(dict.fromkeys(r.reason for r in report.results if r.reason))
    text = f"{KEY}: {'; '.join(reasons[:3]) or 'nothing was asked'}"
    if "XFAIL" in report.counts:
        pytest.xfail(text)
    pytest.skip(text)


class _Seen:
    """The checks of one test."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def __call__(self, report: Report) -> None:
        self.reports.append(report)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Collect what the test checks, as data that goes through pytest-xdist."""
    seen = _Seen()
    WATCHERS.insert(0, seen)
    try:
        return (yield)
    finally:
        WATCHERS.remove(seen)
        for report in seen.reports:
            named = [i for found in report.diagnoses for i in found.ids] if report.failures else []
            item.user_properties.append((KEY, {"counts": report.counts, "named": named}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The whole report as a section; the message of the exception is its first line."""
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, CheckError):
        error.brief = True
    report = yield
    if isinstance(error, CheckError) and report.failed:
        report.sections.append((f"{KEY}: what is wrong", str(error.report)))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Verdicts of all checks, and the mistakes that explain every failure."""
    records = [
        record
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, record in report.user_properties
        if key == KEY
    ]
    if not records:
        return
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record["counts"])
    terminalreporter.section(KEY)
    terminalreporter.line(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    wrong = [record["named"] for record in records if set(record["counts"]) & {"FAIL", "ERROR"}]
    if wrong:
        common = [name for name in wrong[0] if all(name in named for named in wrong)]
        said = ", ".join(common[:3]) or "no known mistake"
        terminalreporter.line(f"{said}: gives the wrong answers of all {len(wrong)} failing checks")
