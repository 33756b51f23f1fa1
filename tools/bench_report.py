"""The benchmark's tables: coloured where a terminal reads them, Markdown everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
RACE = (
    "case", "ours ms", "peer", "ms", "ratio", "target", "best peer", "ms", "ratio",
    "GFLOP/s or GB/s", "share", "limit", "plan ms",
)  # fmt: skip
LIMIT = ("case", "measured", "at most")


def race_cells(row: Row) -> list[str]:
    """One line of the first table: the peer of the target, then the fastest of all."""
    if "ours" not in row:
        return [row["what"], "failed" if "error" in row else "left out"] + [""] * 11
    peers, judge, best = row["peers"], row.get("against"), row.get("best")
    cells = [row["what"], _short(row["ours"]["ms"])]
    cells += [_named(judge, peers), _short(peers[judge]["ms"])] if judge else ["", ""]
    cells += [_ratio(row.get("ratio")), _verdict(_ratio(row["target"]), row.get("met"))]
    if best:
        cells += [_named(best, peers), _short(peers[best]["ms"]), _ratio(row["best_ratio"])]
    else:
        cells += [""] * 3
    if "gbs" in row:
        cells += [f"{row['gbs']:.1f} GB/s", f"{row['copy_share']:.0%} of copy"]
    else:
        asked = f", asked {row['share_target']:.0%}" if "share_target" in row else ""
        share = f"{row['sgemm_share']:.0%} of sgemm{asked}"
        cells += [f"{row['gflops']:.0f} GFLOP/s", _verdict(share, row.get("share_met"))]
    cells.append(_limit(row))
    return [*cells, "" if row["plan_ms"] is None else _short(row["plan_ms"])]


def _limit(row: Row) -> str:
    """What nothing but the products would take, and the ratio that would be."""
    if "limit_ms" not in row:
        return ""
    limit, ratio = f"{_short(row['limit_ms'])} ms", row.get("limit_ratio")
    if ratio is None:
        return limit
    below = row["target"] is not None and ratio < row["target"]
    return f"{limit} = {_ratio(ratio)}{', below the target' if below else ''}"


def limit_cells(row: Row) -> list[str]:
    """One line of the second table."""
    if "value" not in row:
        return [row["what"], "failed" if "error" in row else "left out", ""]
    limit = "" if "at_most" not in row else _verdict(_short(row["at_most"]), row["met"])
    return [row["what"], f"{_short(row['value'])} {row['unit']}".strip(), limit]


class Printer:
    """Prints a report as it grows, row by row; on a terminal a coloured table at the end."""

    def __init__(self) -> None:
        self.printed: dict[str, int] = {}
        self.last = ""

    def show(self, report: Row) -> None:
        """Print what is new: the machine first, then rows."""
        if not self.printed:
            print(machine(report["machine"]), flush=True)
        for name, (head, cells) in TABLES.items():
            rows = report[name][self.printed.get(name, 0) :]
            self.printed[name] = len(report[name])
            if rows:
                lines = markdown(head, [cells(row) for row in rows]).splitlines()
                if self.last != name and self.last:
                    print()
                print("\n".join(lines[2 if self.last == name else 0 :]), flush=True)
                self.last = name

    def finish(self, report: Row) -> None:
        """Print what is left: coloured tables, constants, what was left out and what failed."""
        if self.last:
            print()
        for name, (head, cells) in TABLES.items():
            if report[name] and sys.stdout.isatty():
                _table(head, [cells(row) for row in report[name]])
        if report["constants"] is not None:
            rows = [[k, str(v)] for k, v in sorted(report["constants"].items())]
            _table(("constant", "fitted"), rows)
        for name, reason in left_out(report).items():
            print(f"left out: {name}: {reason}")
        for row in report["races"] + report["limits"]:
            if "error" in row:
                print(f"error: {row['case']}: {row['error']}")


TABLES: dict[str, tuple[Sequence[str], Callable[[Row], list[str]]]] = {
    "races": (RACE, race_cells),
    "limits": (LIMIT, limit_cells),
}


def machine(found: Row) -> str:
    """What it was measured on, in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpu']} ({', '.join(found['vectors'])}), {found['cores']} cores, "
        f"{found['threads']} threads; sgemm {found['sgemm_gflops']} GFLOP/s, "
        f"copy {found['copy_gbs']} GB/s; {found['date']}\n{versions}\n"
    )


def left_out(report: Row) -> dict[str, str]:
    """Every side that could not run, once, and why."""
    found: dict[str, str] = {}
    for row in report["races"] + report["limits"]:
        found |= row.get("left_out", {})
        found |= {row["case"]: row["missing"]} if "missing" in row else {}
    return found


def _table(head: Sequence[str], rows: list[list[str]]) -> None:
    if not sys.stdout.isatty():
        print(markdown(head, rows))
        return
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        print(markdown(head, rows))
        return
    table = Table(*head)
    for cells in rows:
        style = "red" if any(cell.endswith(" MISSED") for cell in cells) else None
        table.add_row(*cells, style=style)
    Console().print(table)


def markdown(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def _named(name: str, peers: Row) -> str:
    how = peers[name]["how"]
    return f"{name} ({how})" if how else name


def _short(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _verdict(text: str, met: bool | None) -> str:
    return text if met is None else f"{text} {'met' if met else 'MISSED'}"
