"""`sparse-ref check` and `diagnose`: a kernel against the oracle, case by case."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calls import TYPES, add_function, as_typed, implementation
from .command import OK, UNSUPPORTED, WRONG, Refusal, declare, to_json

if TYPE_CHECKING:
    from sparse_ref.conformance import Budget, Case, Report

CHECK = """\
Hold an implementation of attention against the NumPy oracle, on cases that are made for the
mistakes people make. It is called as

  fn(q, k, v, pattern, **attributes) -> out, or (out, lse)

with NumPy arrays q (batch, heads, q_len, head_dim) and k, v (batch, kv_heads, kv_len, head_dim);
attributes (scale=, softcap=, sink_logits=, ...) are passed only where a case uses them. One that
raises NotImplementedError, or takes no such argument, does not support the case. A kernel whose
pattern is built in, fn(q, k, v), is checked with --pattern. Gradients are asked of one that has
fn.vjp(q, k, v, pattern, dout, **attributes) -> (dq, dk, dv), or takes arrays of torch or jax. An
ONNX file has inputs q, k, v and perhaps mask; one without a mask is checked with --pattern.
"""

DIAGNOSE = """\
Find the known mistakes that give the same wrong answers as an implementation of one pattern, the
likeliest first, each with a public bug of its kind.
"""

EXAMPLES = """\
examples:
  sparse-ref check mykernel:attention --quick
  sparse-ref check mykernel.py:banded --pattern 'conventions.hf(128)'
  sparse-ref check mykernel:attention --only window --dtype float16 --junit report.xml
  sparse-ref check mykernel:attention --isolate --timeout 20
  sparse-ref check attention.onnx --pattern 'Causal() & SlidingWindow(127, 0)'
  sparse-ref check mykernel:top_keys --error 0.05 --recall 0.95
  sparse-ref check flash_attn:flash_attn_func --layout bshd --arrays torch --device cuda \\
                   --dtype-in float16 --spell flash_attn
"""

EXAMPLE = """\
example:
  sparse-ref diagnose mykernel:attention --pattern 'Causal() & SlidingWindow(127, 0)'
"""

END = """\
exit status: 0 if nothing is wrong, 1 if something is, 2 if the command or the function cannot be
used (with --isolate that is an ERROR, and 1), 3 if all that was asked is unsupported
"""


def add_to(commands: Any) -> None:
    """Both commands and their options."""
    brief = "hold a kernel against the oracle, case by case"
    parser = declare(commands, "check", brief, CHECK, f"{EXAMPLES}\n{END}")
    add_function(parser)
    add = parser.add_argument
    add("--pattern", metavar="EXPR", help="ask for this pattern only")
    add("--quick", action="store_true", help="a fifth of the cases")
    add("--only", action="append", metavar="ID", help="cases with this in their id; repeatable")
    add("--dtype", action="append", metavar="TYPE",
        choices=TYPES,
        help=f"{', '.join(TYPES)}; repeatable (default: float32, float16)")  # fmt: skip
    add("--no-options", action="store_true", help="ask for no scale=, softcap=, ...")
    add("--no-gradients", action="store_true", help="ask for no gradients")
    add("--error", type=float, metavar="E",
        help="it skips keys on purpose: the relative error it may have (default: 0.1)")  # fmt: skip
    add("--recall", type=float, metavar="R",
        help="and the share of the attention it must keep (default: 0.9)")  # fmt: skip
    add("--xfail", action="append", default=[], metavar="ID=WHY",
        help="a failure that is known: part of the case's id, and the reason; repeatable",
    )  # fmt: skip
    add("--junit", type=Path, metavar="FILE", help="write JUnit's XML, for a build server")
    parser.set_defaults(run=run_check)

    brief = "name the mistake that a kernel makes"
    parser = declare(commands, "diagnose", brief, DIAGNOSE, f"{EXAMPLE}\n{END}")
    add_function(parser)
    parser.add_argument("--pattern", required=True, metavar="EXPR", help="what it should compute")
    parser.set_defaults(run=run_diagnose)


def run_check(arguments: argparse.Namespace) -> int:
    """Judge; 0, 1 or 3."""
    from sparse_ref.conformance import cases
    from sparse_ref.conformance.calling import has_gradients

    from .given import pattern_of
    from .screen import say

    pattern = None if arguments.pattern is None else pattern_of(arguments.pattern)
    fn = implementation(arguments, pattern)
    chosen = cases(
        pattern=pattern, quick=arguments.quick, only=arguments.only,
        dtypes=arguments.dtype or ("float32", "float16"), options=not arguments.no_options,
        gradients=not arguments.no_gradients and has_gradients(fn),
    )  # fmt: skip
    if not chosen:
        raise Refusal(f"--only must name cases, and {' '.join(arguments.only or ())!r} names none")
    report = _report(arguments, fn, chosen, _known(arguments.xfail), _budget(arguments))
    if arguments.junit is not None:
        _junit(arguments.junit, report)
    if arguments.json:
        print(to_json(report.to_dict()))
    elif not arguments.quiet:
        say("\n".join([str(report), *_advice(arguments, report)]))
    return _status(report)


def run_diagnose(arguments: argparse.Namespace) -> int:
    """Name the mistake; 0 if there is none to be named, else 1 or 3."""
    from sparse_ref.conformance import cases

    from .given import pattern_of
    from .screen import say

    pattern = pattern_of(arguments.pattern)
    fn = implementation(arguments, pattern)
    chosen = cases(pattern=pattern, dtypes=("float32",), options=False)
    report = _report(arguments, fn, chosen, {})
    if arguments.json:
        print(to_json({"seed": report.seed, "counts": report.counts,
                       "diagnoses": [found.to_dict() for found in report.diagnoses]}))  # fmt: skip
    elif not arguments.quiet:
        say(_diagnosis(report))
    return _status(report)


def _report(
    arguments: argparse.Namespace,
    fn: Any,
    chosen: list[Case],
    known: dict[str, str],
    budget: Budget | None = None,
) -> Report:
    import secrets

    from sparse_ref.conformance import Report
    from sparse_ref.conformance.checking import run

    from .progress import progress

    seed = secrets.randbelow(2**31) if arguments.seed is None else abs(arguments.seed)
    with progress(arguments.function, shown=not arguments.quiet) as step:
        results = run(fn, chosen, seed, known, arguments.timeout, step, budget)
    return Report(results, fn, seed)


def _known(given: list[str]) -> dict[str, str]:
    """--xfail ID=WHY."""
    known = {}
    for text in given:
        part, equals, why = text.partition("=")
        if not part or not equals or not why:
            raise Refusal(f"--xfail must be ID=WHY, got {text!r}")
        known[part] = why
    return known


def _budget(arguments: argparse.Namespace) -> Budget | None:
    """--error and --recall, where one of them is given."""
    from sparse_ref.conformance import Budget

    given = {"error": arguments.error, "recall": arguments.recall}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return Budget(**given) if given else None
    except ValueError as error:
        raise Refusal(error) from None


def _junit(path: Path, report: Report) -> None:
    from exporters.files import write_atomically

    try:
        write_atomically(path, report.to_junit().encode())
    except OSError as error:
        raise Refusal(error) from None


def _status(report: Report) -> int:
    if report.failures:
        return WRONG
    if report.ok:
        return OK
    return UNSUPPORTED if set(report.counts) <= {"UNSUPPORTED"} else WRONG


def _advice(arguments: argparse.Namespace, report: Report) -> list[str]:
    """The first failure again in one line, and what to type next."""
    if not report.failures:
        return []
    first = report.failures[0]
    call = f"{as_typed(arguments)} --only {shlex.quote(first.case.id)} --seed {report.seed}"
    asked = f" --pattern {shlex.quote(arguments.pattern)}" if arguments.pattern else ""
    asked += "".join(f" --dtype {kind}" for kind in arguments.dtype or ())
    for name in ("error", "recall"):
        if (value := getattr(arguments, name)) is not None:
            asked += f" --{name} {value:g}"
    lines = ["", f"repeat: sparse-ref check {call}{asked}"]
    if arguments.pattern is None and first.case.name != "given":
        text = shlex.quote(repr(first.case.pattern))
        lines.append(f"next: sparse-ref diagnose {as_typed(arguments)} --pattern {text}")
    return lines


def _diagnosis(report: Report) -> str:
    asked = len(report.results)
    total = ", ".join(f"{count} {name}" for name, count in sorted(report.counts.items()))
    head = f"sparse-ref diagnose: {total} of {asked} cases; seed {report.seed}"
    if not report.failures:
        return f"{head}\nnothing is wrong, so there is nothing to name"
    found = [str(one) for one in report.diagnoses] or ["no known mistake gives these answers"]
    return "\n".join([head, "", *found])
