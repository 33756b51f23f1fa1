"""One case, one verdict."""

from __future__ import annotations

import inspect
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats
from sparse_ref.arithmetic import FORMATS, PRESETS
from sparse_ref.results import Attention

from .calling import Answer, AnswerError, Implementation, ask
from .case import Call, Case

VERDICTS = (
    "PASS", "FAIL", "ACCEPTABLE", "APPROXIMATE", "UNSUPPORTED", "ERROR", "TIMEOUT", "XFAIL",
    "XPASS",
)  # fmt: skip


class Wrong(NamedTuple):
    """Where an array is wrong: counts, and its first wrong entry in row-major order."""

    name: str  # "out" or "lse"
    wrong: int
    total: int
    first: tuple[int, ...]
    got: float
    want: float
    bound: float
    rows: NDArray[np.bool_]  # (b, h, m): which rows have a wrong entry
    worst: float  # the largest error over its bound


@dataclass(frozen=True, eq=False)
class Result:
    """What came of one case."""

    case: Case
    verdict: str
    reason: str = ""
    wrong: tuple[Wrong, ...] = ()
    ratio: float = 0.0  # the largest error over its bound, where there was nothing wrong too
    seed: int = 0
    seconds: float = 0.0
    answer: Answer | None = None

    def call(self) -> Call:
        """The call again."""
        return self.case.call(self.seed)


def judge(fn: Implementation, case: Case, seed: int, timeout: float | None = None) -> Result:
    """Run an implementation on a case, and hold its answer against the oracle.

    The implementation goes first, on copies, so that it cannot have seen the answer.
    """
    start = time.perf_counter()
    try:
        call = case.call(seed)
    except ImportError as missing:
        return Result(case, "UNSUPPORTED", f"{missing.name} is not installed", seed=seed)
    try:
        _bind(fn, call)
        answer = _within(
            timeout, lambda: ask(fn, call.q, call.k, call.v, call.pattern, call.attributes)
        )
    except NotImplementedError as refusal:
        return Result(case, "UNSUPPORTED", str(refusal), seed=seed)
    except AnswerError as sentence:
        return Result(case, "FAIL", str(sentence), seed=seed)
    except TimeoutError:
        return Result(case, "TIMEOUT", f"no answer within {timeout} s", seed=seed)
    except Exception as error:  # whatever it is, it is a finding
        return Result(case, "ERROR", f"{type(error).__name__}: {error}", seed=seed)
    seconds = time.perf_counter() - start
    wrong, ratio, reason = compare_answer(call, answer)
    verdict = "FAIL" if wrong or reason else "PASS"
    return Result(case, verdict, reason, wrong, ratio, seed, seconds, answer)


def compare_answer(call: Call, answer: Answer) -> tuple[tuple[Wrong, ...], float, str]:
    """What is wrong with an answer, the largest error over its bound, and a type too narrow."""
    given, got = call.q.dtype.name, answer.out.dtype.name
    if FORMATS[got].bits < FORMATS[given].bits or (got != given and FORMATS[got].bits < 24):
        return (), np.inf, f"out must have the type of q, {given}, got {got}"
    want, bound = call.oracle(), call.bound(given if given in PRESETS else "float32", given)
    found, ratio = [], 0.0
    for name, theirs in zip(("out", "lse"), answer, strict=True):
        if theirs is None:
            continue
        exact, limit = getattr(want, name), getattr(bound, name)
        wrong = differences(name, theirs, exact, limit)
        ratio = max(ratio, ratios(theirs, exact, limit).max(initial=0))
        if wrong is not None:
            found.append(wrong)
    return tuple(found), ratio, ""


def ratios(got: Any, want: Floats, bound: Floats) -> Floats:
    """Error over bound; 0 where it is exact, inf where a NaN or an infinity is not the oracle's."""
    got = np.asarray(got, np.float64)
    exact = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.abs(got - want) / bound
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    return np.asarray(np.where(exact | np.isinf(bound), 0, ratio))


def differences(name: str, got: Any, want: Floats, bound: Floats) -> Wrong | None:
    """Where an array is wrong; None if it is nowhere."""
    ratio = ratios(got, want, bound)
    bad = ratio > 1
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    rows = np.asarray(bad if bad.ndim == 3 else bad.any(axis=-1))
    return Wrong(
        name, int(bad.sum()), bad.size, first, float(got[first]), float(want[first]),
        float(bound[first]), rows, float(ratio.max()),
    )  # fmt: skip


def within(answer: Attention | Answer, target: Attention, limit: Attention) -> bool:
    """Whether an answer is a target within its bound, as far as it goes."""
    return all(
        theirs is None or not (ratios(theirs, exact, most) > 1).any()
        for theirs, exact, most in zip(answer, target, limit, strict=True)
    )


def _bind(fn: Implementation, call: Call) -> None:
    """A function without an argument of an option's name cannot do it."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a built-in says nothing of its arguments
        return
    for name in call.attributes:
        try:
            signature.bind(call.q, call.k, call.v, call.pattern, **{name: None})
        except TypeError:
            raise NotImplementedError(f"it takes no {name}=") from None


def _within(timeout: float | None, work: Any) -> Answer:
    """The result of work(), or TimeoutError; what does not end is left to itself."""
    if timeout is None:
        return work()  # type: ignore[no-any-return]
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((True, work()))
        except BaseException as error:  # raised again below
            done.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if not done:
        raise TimeoutError
    fine, value = done[0]
    if not fine:
        raise value
    return value  # type: ignore[no-any-return]
