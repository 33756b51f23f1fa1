"""Measure what README and the docstrings claim: `python tools/bench.py [--json FILE]`.

Ours and the peers run in one process on the same problem, alternately; medians are printed. A peer
that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparse_ref as sr

Row = dict[str, Any]


def seconds(work: Callable[[], object], repeat: int) -> float:
    """The median time of `repeat` calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def extra_memory(work: Callable[[], object]) -> float:
    """The peak of what the call allocates, in MiB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def imports() -> list[Row]:
    """Importing sparse_ref against importing what it needs, each in fresh processes."""
    times = {}
    for code in ("import numpy, scipy.sparse", "import sparse_ref"):
        run = [sys.executable, "-c", code]
        subprocess.run(run, check=True)  # compiled and in the file cache
        times[code] = seconds(lambda run=run: subprocess.run(run, check=True), 11)  # type: ignore[misc]
    base, ours = times.values()
    return [{"case": "import sparse_ref / numpy, scipy.sparse", "s": ours, "ratio": ours / base}]


def layouts() -> list[Row]:
    """Block layouts of a causal window with four sinks, and torch's scan of the same mask."""
    pattern = sr.Causal() & (sr.SlidingWindow(511, 0) | sr.Sink(4))
    rows: list[Row] = []
    for n, repeat in ((4_096, 21), (16_384, 11), (65_536, 7), (1 << 20, 3)):

        def work(n: int = n) -> object:
            return sr.to_blocks(pattern, n, n)

        rows.append(
            {
                "case": f"to_blocks, causal & (window 512 | 4 sinks), n = {n:,}",
                "s": seconds(work, repeat),
                "MiB": extra_memory(work),
            }
        )
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: create_block_mask is left out", file=sys.stderr)
        return rows
    rows.append({"case": "torch create_block_mask (eager), n = 16,384", "s": torch_scan(16_384)})
    return rows


def torch_scan(n: int) -> float:
    """FlexAttention's own way to the same layout: every one of the n * n pairs is asked."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415

    def allowed(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((q - k <= 511) | (k < 4))

    def work() -> object:
        return create_block_mask(allowed, None, None, n, n, device="cpu", BLOCK_SIZE=64)

    return seconds(work, 3)


def main() -> None:
    """Run every measurement and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    rows = imports() + layouts()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"| case ({machine}, Python {platform.python_version()}) | median s | MiB | ratio |")
    print("|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row['s']:.3f}",
            *(f"{row[k]:.2f}" if k in row else "" for k in ("MiB", "ratio")),
        ]
        print(f"| {row['case']} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
