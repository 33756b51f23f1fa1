"""How the benchmark measures: calls taken in turn, peak memory, and the machine's own speed."""

from __future__ import annotations

import ctypes
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 0.005  # seconds: quicker calls are repeated this long, and their mean taken
PAUSE = 0.02  # seconds: workers of the last side still spin after its call; let them fall asleep
ALONE = 0.3  # seconds: a call without a rival warms up this long, and is then timed as long
PACKAGES = (
    "numpy", "scipy", "numba", "llvmlite", "ml_dtypes", "torch", "onnx", "onnxruntime", "openvino",
)  # fmt: skip

Call = Callable[[], object]


def seconds(call: Call, number: int = 1) -> float:
    """The time of one call, as the mean of `number` in a row."""
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def in_turn(calls: Mapping[str, Call], runs: int) -> dict[str, list[float]]:
    """Seconds of every call, `runs` times, one after the other; each round begins with another."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, math.ceil(SHORTEST / seconds(call)))
    for run in range(runs):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            times[name].append(seconds(calls[name], repeats[name]))
    return times


def median_of(call: Call, runs: int) -> float:
    """The median time of a call that has no rival, so that its workers need not be woken anew."""
    end = time.perf_counter() + ALONE
    took = seconds(call)
    while time.perf_counter() < end:
        took = seconds(call)
    return statistics.median(seconds(call) for _ in range(max(runs, math.ceil(ALONE / took))))


def fresh(code: str, **environment: str) -> Any:
    """What a new Python process prints as JSON when it runs `code`."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


class PeakMemory:
    """The most resident memory, in bytes, that a `with` block added to the process (Linux).

    The kernel's own high-water mark: it sees what NumPy, Numba, torch and ONNX Runtime allocate.
    """

    def __enter__(self) -> PeakMemory:
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # else a call may live on what earlier ones have freed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark starts anew
        self.before = self._now("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.added = max(0, self._now("VmHWM") - self.before)

    @staticmethod
    def _now(field: str) -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise OSError(f"/proc/self/status has no {field}")


def sgemm(runs: int) -> float:
    """GFLOP/s of NumPy's float32 product of two matrices of 2,048 x 2,048."""
    size = 2048
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    out = np.empty_like(a)
    return 2 * size**3 / median_of(lambda: np.matmul(a, b, out=out), runs) / 1e9


def copy(runs: int, threads: int) -> float:
    """GB/s of NumPy's copy of 256 MiB, every thread its part; reads and writes both count."""
    source = np.ones(2**26, dtype=np.float32)
    target = np.empty_like(source)
    parts = list(zip(*(np.array_split(x, threads) for x in (target, source)), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        took = median_of(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)), runs)
    return 2 * source.nbytes / took / 1e9


def machine(runs: int, threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "vectors": [x for x in ("avx2", "avx512f", "amx_tile", "asimd", "sve") if has(x)],
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sgemm_gflops": round(sgemm(runs), 1),
        "copy_gbs": round(copy(runs, threads), 1),
    }


def has(feature: str) -> bool:
    """Whether Linux lists this feature of the CPU."""
    return feature in (_cpuinfo("flags") or _cpuinfo("Features")).split()


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.split("\t")[0] == field)
    return next(values, "")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of this checkout, and whether files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
