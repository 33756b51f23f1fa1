"""`sparse-ref golden verify`: a kernel, or the oracle itself, against the golden files."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import OK, UNSUPPORTED, WRONG, Refusal, add_outputs, declare, to_json

if TYPE_CHECKING:
    from sparse_ref.golden import GoldenCase

ABOUT = """\
Golden files are attention cases with right answers and how far off one may be, for any language:
golden/README.md says how to read them, golden/SPEC.md what they mean. A core set of them comes with
this package.
"""

VERIFY = """\
Run an implementation, fn(q, k, v, pattern, **attributes) -> out or (out, lse), on golden cases and
hold its answers against the stored ones. Files are checked against their SHA-256 first; nothing in
them is run.
"""

END = """\
examples:
  sparse-ref golden verify --self                    the oracle on this machine
  sparse-ref golden verify mykernel:attention
  sparse-ref golden verify mykernel:attention --files golden --flag MaskedNaN

exit status: 0 if every answer is right, 1 if one is not, 2 if files or function cannot be used, 3
if all that was asked is unsupported
"""


def add_to(commands: Any) -> None:
    """The command, its one verb, and its options."""
    brief = "verify a kernel, or the oracle, with the golden files"
    verbs = declare(commands, "golden", brief, ABOUT, END).add_subparsers(
        metavar="verb", dest="verb", required=True
    )
    parser = declare(verbs, "verify", "run the cases and compare", VERIFY, END)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("function", nargs="?", metavar="MODULE:FUNCTION", help="what to verify")
    who.add_argument("--self", action="store_true", help="verify the oracle itself")
    add = parser.add_argument
    add("--files", type=Path, metavar="DIR", help="other golden files than the core set")
    add(
        "--flag", action="append", default=[], metavar="NAME", help="cases of this kind; repeatable"
    )
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"),
        help="what the arrays are given as (default: %(default)s)")  # fmt: skip
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify; 0, 1 or 3."""
    from sparse_ref.conformance.report import sentences
    from sparse_ref.golden import GoldenError, load

    from .given import function_of
    from .progress import progress
    from .screen import say

    fn = _oracle if arguments.self else function_of(arguments.function)
    name = "the oracle" if arguments.self else arguments.function
    try:
        cases = load(arguments.files).of(*arguments.flag)
    except (GoldenError, OSError, ValueError) as error:
        raise Refusal(error) from None
    if not cases:
        raise Refusal(f"no case has all the flags {', '.join(arguments.flag)}")
    found: dict[str, tuple[str, list[str]]] = {}
    with progress(name, shown=not arguments.quiet) as step:
        for done, case in enumerate(cases, start=1):
            found[case.id] = _verdict(case, fn, arguments.dtype, sentences)
            if step is not None:
                step(done, len(cases))
    counts = Counter(verdict for verdict, _ in found.values())
    bad = {at: one for at, one in found.items() if one[0] in ("FAIL", "ERROR")}
    if arguments.json:
        results = [{"id": at, "verdict": v, "wrong": why} for at, (v, why) in found.items()]
        print(to_json({"ok": not bad and counts["PASS"] > 0, "counts": counts, "results": results}))
    elif not arguments.quiet:
        say(_text(name, counts, bad))
    return WRONG if bad else OK if counts["PASS"] else UNSUPPORTED


def _oracle(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
    import sparse_ref as sr

    return sr.attention(q, k, v, pattern, **attributes)[:2]


def _verdict(case: GoldenCase, fn: Any, dtype: str, sentences: Any) -> tuple[str, list[str]]:
    try:
        inspect.signature(fn).bind("q", "k", "v", "pattern", **case.attributes)
    except TypeError as error:
        return "UNSUPPORTED", [f"it cannot be called like this: {error}"]
    except ValueError:  # a built-in says nothing of its arguments
        pass
    try:
        wrong = case.check(fn, dtype)
    except NotImplementedError as error:
        return "UNSUPPORTED", [str(error)]
    except Exception as error:  # whatever a stranger's kernel raises is a finding
        return "ERROR", [f"{type(error).__name__}: {error}"]
    return "FAIL" if wrong else "PASS", [line for one in wrong for line in sentences(one)]


def _text(name: str, counts: Counter[str], bad: dict[str, tuple[str, list[str]]]) -> str:
    total = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    lines = [f"sparse-ref golden verify: {name}: {total}"]
    for at, (verdict, why) in list(bad.items())[:5]:
        lines += ["", f"{verdict} {at}", *(f"  {line}" for line in why)]
    if len(bad) > 5:
        lines.append(f"\nand {len(bad) - 5} more: --json lists them all")
    return "\n".join(lines)
