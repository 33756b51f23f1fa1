"""One command: which runtimes run our ONNX files, each compared with the oracle number by number.

  python tools/runtimes.py                the table of README.md, of whatever is installed
  python tools/runtimes.py --json         every file of every runtime, for scripts
  python tools/runtimes.py tract OpenVINO these alone

A file is one pattern in one form; it serves all lengths, 1 to 257 queries and keys, growing,
shrinking and unequal. "works" means that every number of every run is within the error bound.

The last column is not ours: ai.onnx's own Attention, dense, with the pattern as mask or windows.

exit status: 0 if no runtime answers wrongly to a file of ours (to refuse one is no wrong answer),
else 1
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.runners import RUNTIMES, MissingError, RefusedError, Runtime
from tools.runtime_cases import FORMS, PATTERNS, cases, distance, model

LONGEST = 90  # characters of a reason in the table; --json has all of it
THEIRS = "standard"
COLUMNS = {  # headings, and the forms under them
    "local function": ["local function, loop", "local function, gather"],
    "inline, loop": ["inline, loop"],
    "inline, gather": ["inline, gather"],
    "`Attention`, dense": [THEIRS],
}


@dataclass(frozen=True)
class Outcome:
    """One file in one runtime: it works, is refused, or is wrong, with what there is to say."""

    runtime: str
    version: str
    form: str
    pattern: str
    verdict: str
    said: str = ""
    share: float = 0.0  # the largest error over its bound


def outcome(runtime: Runtime, form: str, pattern: str) -> Outcome:
    """Run a pattern's file at all its lengths, and judge every number."""
    about = runtime.name, runtime.version(), form, pattern
    runs = cases(pattern)
    try:
        outputs = runtime.run(model(pattern, form), [case.feed for case in runs])
    except RefusedError as reason:
        return Outcome(*about, "refused", str(reason))
    found = [distance(case, y) for case, y in zip(runs, outputs, strict=True)]
    worst = max(one.share for one in found)
    if worst <= 1:
        return Outcome(*about, "works", share=worst)
    wrong = [case.label for case, one in zip(runs, found, strict=True) if one.share > 1]
    error = max(one.error for one in found)
    how = f"off by {error:.2g}" if error < np.inf else "NaN, or of a wrong shape or type"
    said = f"{how}, at {len(wrong)} of {len(runs)} lengths, first {wrong[0]}"
    return Outcome(*about, "wrong", said, worst)


def outcomes(runtime: Runtime) -> Iterator[Outcome]:
    """Every pattern in every form."""
    for form in FORMS:
        for pattern in PATTERNS:
            yield outcome(runtime, form, pattern)


def table(found: Iterable[Outcome], missing: dict[str, str]) -> str:
    """The outcomes as Markdown, a row for each runtime."""
    rows: dict[str, list[Outcome]] = {}
    for one in found:
        rows.setdefault(f"{one.runtime} {one.version}", []).append(one)
    lines = [_row(["runtime", *COLUMNS]), _row(["---"] * (1 + len(COLUMNS)))]
    for title, all_of_it in rows.items():
        cells = [_cell(all_of_it, forms) for forms in COLUMNS.values()]
        lines.append(_row([title, *cells]))
    blank = [""] * (len(COLUMNS) - 1)
    lines += [_row([name, f"not run: {why}", *blank]) for name, why in missing.items()]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: list[Outcome], forms: list[str]) -> str:
    """The verdict on all patterns in these forms, or each verdict and on which, with reasons."""
    verdicts: dict[str, list[Outcome]] = {}
    for one in found:
        if one.form in forms:
            verdicts.setdefault(one.verdict, []).append(one)
    parts = []
    for verdict, several in sorted(verdicts.items(), key=lambda item: len(item[1])):
        patterns = dict.fromkeys(one.pattern for one in several)
        where = f": {', '.join(patterns)}" if len(verdicts) > 1 else ""
        parts.append(verdict + where + _reasons(several))
    return "; ".join(parts)


def _reasons(several: list[Outcome]) -> str:
    """Why files are refused, each reason once; of wrong numbers the ones that are farthest off."""
    if several[0].verdict == "wrong":
        several = [max(several, key=lambda one: one.share)]
    said = dict.fromkeys(one.said.replace("|", "/")[:LONGEST] for one in several if one.said)
    return f" ({'; '.join(said)})" if said else ""


def main(arguments: list[str] | None = None) -> int:
    """Ask every runtime that is installed, print, and answer the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runtimes", nargs="*", help=", ".join(RUNTIMES))
    parser.add_argument("--json", action="store_true", help="every file, instead of the table")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.runtimes) - set(RUNTIMES)):
        parser.error(f"runtimes must be among {', '.join(RUNTIMES)}, got {unknown[0]!r}")
    found: list[Outcome] = []
    missing: dict[str, str] = {}
    for name in options.runtimes or RUNTIMES:
        try:
            RUNTIMES[name].version()
        except MissingError as why:
            missing[name] = str(why)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        found += outcomes(RUNTIMES[name])
    if options.json:
        rows = [asdict(one) | {"share": min(one.share, 1e308)} for one in found]
        print(json.dumps({"missing": missing, "outcomes": rows}, indent=1))
    else:
        print(table(found, missing))
    return int(any(one.verdict == "wrong" for one in found if one.form != THEIRS))


if __name__ == "__main__":
    sys.exit(main())
