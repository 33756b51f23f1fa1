"""Measure what README and the docstrings claim: ours and the peers, in one process, in turn.

  python tools/bench.py                              everything, about 15 minutes on an idle machine
  python tools/bench.py --list                       the cases, and what each of them asks
  python tools/bench.py --case window --case decode  some of them
  python tools/bench.py --quick                      fewer runs, shorter curves: a first impression
  python tools/bench.py --json bench.json            every peer's times too, and the machine
  python tools/bench.py --fit                        the planner's constants, from this machine

How to read a row. Every number is the median of alternating runs on the same arrays: float32, 8
heads of size 64, 4,096 tokens, two threads, where the case says nothing else. `ratio` is the peer's
time over ours; the first peer is the one that the target is about, the best one is the fastest of
all that were run. Every peer runs in the fastest of its forms, its layout made in advance, as ours
is (`plan ms` is what that costs, once). GFLOP/s count allowed pairs only, 2 (d + e) each, and are
compared with NumPy's own sgemm; a single query is compared in GB/s with NumPy's own copy. `limit`
is what the products of the allowed pairs alone would take at sgemm's rate (one query: its bytes at
the copy's), with no softmax and no overhead, and the ratio that would be: a target above it cannot
be met on this machine by float32 products.

Rows are printed, and the JSON file written anew, after every case: a run that is stopped keeps what
it has measured.

Outputs are checked in the same run, against the oracle and `sr.error_bound`, on rows that the JSON
names. A wrong output of ours, a peer that computes something else, and a FlexAttention that torch
did not compile are errors (exit status 1), never ratios. A missed target is printed, not an error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.race import Settings

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that the command line names, and answer the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _set_threads(options.threads)
    # What reads thread counts when it is loaded is loaded after they are set.
    from tools.bench_cases import RACES  # noqa: PLC0415
    from tools.bench_limits import LIMITS  # noqa: PLC0415
    from tools.race import Settings  # noqa: PLC0415

    cases = RACES | LIMITS
    if options.list:
        width = max(map(len, cases))
        print("\n".join(f"{name:{width}}  {case.what}" for name, case in cases.items()))
        return 0
    unknown = [name for name in options.case or () if name not in cases]
    if unknown:
        parser.error(f"no case is called {unknown[0]!r}: --list shows them")
    runs = options.runs or (5 if options.quick else 15)
    settings = Settings(runs, options.tokens, options.threads, options.quick)
    chosen = options.case or ([] if options.fit else list(cases))
    from tools.bench_report import Printer  # noqa: PLC0415

    printer = Printer()

    def keep(report: Row) -> None:
        printer.show(report)
        if options.json:
            _write(options.json, json.dumps(report, indent=1) + "\n")

    report = measured(chosen, settings, keep, fit=options.fit)
    printer.finish(report)
    return int(any("error" in row for row in report["races"] + report["limits"]))


def measured(
    names: Iterable[str], settings: Settings, keep: Callable[[Row], None], *, fit: bool = False
) -> Row:
    """Everything that a run finds: machine, settings, races, limits, the fitted constants.

    `keep` is given what there is after every case.
    """
    from tools import measure  # noqa: PLC0415
    from tools.bench_cases import RACES  # noqa: PLC0415
    from tools.bench_limits import LIMITS  # noqa: PLC0415

    machine = measure.machine(settings.runs, settings.threads)
    report: Row = {"machine": machine, "settings": vars(settings), "races": [], "limits": []}
    report["constants"] = None
    for count, name in enumerate(names := list(names), 1):
        print(f"[{count}/{len(names)}] {name}", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()
        if name in RACES:
            race = RACES[name]
            report["races"] += _rows(name, race.what, partial(race.run, settings, machine))
        else:
            limit = LIMITS[name]
            rows = _rows(name, limit.what, partial(limit.rows, settings))
            report["limits"] += [_unasked(row) for row in rows] if settings.tokens else rows
        print(f"  {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        keep(report)  # a run that is stopped has kept all but the case that it was in
    report["constants"] = _fitted() if fit else None
    keep(report)
    return report


def _rows(name: str, what: str, run: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows of a case; what stopped it is its last row, and the other cases go on."""
    from tools.peers import MissingError, said  # noqa: PLC0415

    rows: list[Row] = []
    try:
        rows.extend({"case": name} | row for row in run())
    except MissingError as missing:
        rows.append({"case": name, "what": what, "missing": str(missing)})
    except Exception as error:  # this case has failed, and so has the run: the others go on
        rows.append({"case": name, "what": what, "error": said(error)})
    return rows


def _unasked(row: Row) -> Row:
    """Without its target, which is about other lengths."""
    return {key: value for key, value in row.items() if key not in ("at_most", "met")}


def _write(path: Path, text: str) -> None:
    """The whole file or, if this is stopped, the one before."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _fitted() -> Row:
    """The cost model's constants, measured on this machine."""
    return dict(importlib.import_module("tools.fit").fit())


def _set_threads(count: int) -> None:
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    os.environ.update({f"{name}_NUM_THREADS": str(count) for name in names})
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", action="append", metavar="NAME", help="only this one; may be given again")
    add("--list", action="store_true", help="name the cases and stop")
    add("--quick", action="store_true", help="5 runs instead of 15, and shorter curves")
    add("--runs", type=_positive, metavar="N", help="alternating runs of every side")
    add(
        "--tokens", type=_positive, metavar="N",
        help="other lengths than the cases', to try the tool (a square suits every pattern); "
        "no target is asked then",
    )  # fmt: skip
    add("--threads", type=_positive, default=2, metavar="N", help="of every side (default 2)")
    add("--json", type=Path, metavar="FILE", help="write everything measured, case by case")
    add("--fit", action="store_true", help="fit the planner's cost model; cases only if named")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
