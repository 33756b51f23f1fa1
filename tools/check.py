"""The one gate, for people and for CI: lint, types, import contracts, golden files, tests.

Every step runs even when an earlier one failed; the exit status is 1 if any did.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CODE = ["sparse_ref", "exporters", "tools", "tests", "golden"]

# Two pytest workers with one BLAS thread each fill two cores, and one thread always adds up in
# the same order. Numba keeps two, for the tests that compare one thread with two.
WORKERS = "2"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "2",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",  # no test may ask the network
}

Step = tuple[str, list[str]]


def lint_steps() -> list[Step]:
    """Everything but pytest, in the order of how soon it answers."""
    python = [sys.executable, "-m"]
    return [
        ("ruff check", [*python, "ruff", "check", *CODE]),
        ("ruff format", [*python, "ruff", "format", "--check", *CODE]),
        ("import contracts", [str(BIN / "lint-imports"), "--no-logo"]),
        ("mypy --strict", [*python, "mypy"]),
        ("golden files", [sys.executable, str(ROOT / "tools" / "make_golden.py"), "--check"]),
    ]


def pytest_step(*, quick: bool, everything: bool) -> Step:
    """The tests, chosen by marker; examples in docstrings and README always run."""
    marks = "not slow and not witness" if quick else "" if everything else "not slow"
    options = ["-n", WORKERS, "--durations=10", "--durations-min=1", "-m", marks]
    return "pytest", [sys.executable, "-m", "pytest", *options]


def run(step: Step) -> bool:
    """Run one step with its output on ours; True if it succeeded."""
    name, command = step
    print(f"\n--- {name}", flush=True)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=False)
    return done.returncode == 0


def run_all(steps: list[Step]) -> tuple[list[str], str]:
    """Run every step: the names of those that failed, and a table of how long each took."""
    failed, rows = [], []
    for step in steps:
        start = time.perf_counter()
        passed = run(step)
        if not passed:
            failed.append(step[0])
        seconds = time.perf_counter() - start
        rows.append(f"{step[0]:<18} {'ok' if passed else 'FAILED':<6} {seconds:7.1f} s")
    return failed, "\n".join(rows)


def main() -> int:
    """Parse the command line, run the gate and answer its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="about 3 minutes: leave out tests marked slow, and those marked witness, which ask "
        "other libraries (torch, transformers, natten, jax, ...) for their answer",
    )
    size.add_argument(
        "--all", action="store_true", help="run the tests marked slow too (up to 90 minutes)"
    )
    arguments = parser.parse_args()

    failed, table = run_all(lint_steps())
    print(f"\n{table}", flush=True)
    # Last, so that the output ends with pytest's own summary line, which CI reads.
    pytest = pytest_step(quick=arguments.quick, everything=arguments.all)
    if not run(pytest):
        failed.append(pytest[0])
    if failed:
        print(f"check failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
