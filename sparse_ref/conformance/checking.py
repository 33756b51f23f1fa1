"""`check`: every case, one report."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparse_ref.patterns import Pattern
from sparse_ref.selection import Selection

from .budget import Budget
from .calling import Implementation, has_gradients
from .case import Case
from .diagnosis import Diagnosis
from .isolation import isolated
from .judging import Result, judge
from .report import Report
from .suite import cases as suite


def check(
    fn: Implementation | str,
    cases: Iterable[Case] | None = None,
    *,
    pattern: Pattern | Selection | None = None,
    xfail: Mapping[str, str] = {},
    timeout: float | None = None,
    isolate: bool = False,
    budget: Budget | None = None,
) -> Report:
    """Hold an implementation of attention against the oracle, case by case.

    Parameters
    ----------
    fn : callable
        `fn(q, k, v, pattern, **attributes) -> out or (out, lse)`, NumPy in and out, q (b, h, m, d).
        Attributes (scale=, softcap=, bias=, alibi_slopes=, sink_logits=, kv_lengths=, q_start=) are
        passed only where a case uses them; NotImplementedError, or no argument of that name, means
        unsupported. `fixed` makes one of a plain f(q, k, v). One with gradients has
        `fn.vjp(q, k, v, pattern, dout, **attributes) -> (dq, dk, dv)`, or more of `Gradients`;
        `dlse=` is one of the attributes. With `isolate` it may be named, "module:function".
    cases : of Case, optional
        Default `cases(pattern=pattern)`, with gradients if fn has them.
    pattern : Pattern or Selection, optional
        Ask for this one only; see `cases` for the sizes of a selection.
    xfail : dict
        Part of a case's id to the reason why it is known to fail.
    timeout : float, optional
        Seconds for one case.
    isolate : bool
        Run fn in a process of its own, so that a crash is one case's ERROR: see `isolated`.
    budget : Budget, optional
        What fn, which skips keys on purpose, may lose: within it, wrong answers are APPROXIMATE.

    Returns
    -------
    Report: `print(report)` says what is wrong, where it starts, and which known mistake does the
    same; `.ok`, `.raise_for_failures()`, `.diagnoses`, `.to_json()`, `.to_junit()`.

    >>> import sparse_ref as sr
    >>> def mine(q, k, v, pattern):
    ...     return sr.attention(q, k, v, pattern)[:2]
    >>> check(mine, sr.cases(quick=True, only="window", options=False)).ok
    True

    Values are drawn anew at every call of `check`; the report names the seed.
    """
    judged = isolated(fn, timeout) if isolate else fn
    if isinstance(judged, str):
        raise TypeError(f"fn must be callable where isolate is False, got {judged!r}")
    chosen = (
        suite(pattern=pattern, gradients=has_gradients(judged)) if cases is None else list(cases)
    )
    seed = secrets.randbelow(2**31)
    return Report(run(judged, chosen, seed, xfail, timeout, budget=budget), judged, seed)


def diagnose(fn: Implementation, pattern: Pattern | Selection) -> list[Diagnosis]:
    """Known mistakes that an implementation of one pattern makes, the likeliest first.

    Parameters
    ----------
    fn : callable
        As for `check`.
    pattern : Pattern or Selection

    >>> import sparse_ref as sr
    >>> def mine(q, k, v, pattern):  # asked for a window of 3 keys, sees 4
    ...     return sr.attention(q, k, v, sr.Causal() & sr.SlidingWindow(3, 0)).out
    >>> [found.ids for found in diagnose(mine, sr.Causal() & sr.SlidingWindow(2, 0))]
    [('window-left+1',)]
    """
    chosen = suite(pattern=pattern, dtypes=("float32",), options=False)
    return check(fn, chosen).diagnoses


def run(
    fn: Implementation,
    chosen: Sequence[Case],
    seed: int,
    xfail: Mapping[str, str] = {},
    timeout: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    budget: Budget | None = None,
) -> list[Result]:
    """The result of every case, in their order."""
    results = []
    for done, case in enumerate(chosen):
        results.append(_expected(judge(fn, case, seed, timeout, budget), xfail))
        if progress is not None:
            progress(done + 1, len(chosen))
    return results


def _expected(result: Result, xfail: Mapping[str, str]) -> Result:
    """A failure that was announced is XFAIL, its absence XPASS."""
    for part, why in xfail.items():
        if part in result.case.id:
            if result.verdict in ("FAIL", "ERROR", "TIMEOUT"):
                return replace(result, verdict="XFAIL", reason=why)
            if result.verdict == "PASS":
                return replace(result, verdict="XPASS", reason=why)
    return result


def parametrize(cases: Iterable[Case] | None = None, **options: Any) -> Any:
    """`@sr.parametrize()` over a test that takes `case`: every case is a test of its own.

    Parameters
    ----------
    cases : of Case, optional
        Default `cases(**options)`.

    >>> import sparse_ref as sr
    >>> @sr.parametrize(quick=True, only="full/")
    ... def test_mine(case):
    ...     sr.check(mine, [case]).raise_for_failures()
    >>> test_mine.pytestmark[0].args[0]
    'case'
    """
    import pytest  # noqa: PLC0415 - only who asks for it needs it

    chosen = suite(**options) if cases is None else list(cases)
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])
