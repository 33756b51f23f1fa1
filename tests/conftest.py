"""How Hypothesis draws, the same cases in every run; where all tests keep compiled kernels."""

import os
import runpy
from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent


def keep_kernels() -> None:
    """Kernels are compiled once for all workers and files, and the next run.

    In a directory that `make clean` removes, unless others may write there: then as usual. Its
    judge is run by itself, for an import of the kernels would be too late.
    """
    try:
        private = runpy.run_path(str(ROOT / "sparse_ref" / "kernels" / "_cache.py"))["private"]
    except ModuleNotFoundError:  # no Numba
        return
    kept = ROOT / ".kernel_cache"
    kept.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid") and private(kept):
        os.environ.setdefault("SPARSE_REF_CACHE", str(kept))


keep_kernels()

# No deadline and no complaint about slow draws: a busy machine must not fail a test.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# HYPOTHESIS_PROFILE=explore looks for new cases, ten times as many, different in each run.
settings.register_profile(
    "explore", settings.get_profile("ci"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
