"""fla-core's naive references, in plain PyTorch."""

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest


def naive(name, monkeypatch):
    """One of fla-core's naive references, without the Triton that importing the package needs."""
    found = importlib.util.find_spec("fla")
    if found is None:
        pytest.skip("fla-core is not installed")
    pytest.importorskip("einops", reason="einops is not installed")
    for missing in ("fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling"):
        stub = types.ModuleType(missing)
        stub.prepare_chunk_offsets = stub.mean_pooling = None
        monkeypatch.setitem(sys.modules, missing, stub)
    path = Path(found.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_{name}_naive", path)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that flash-attention is missing
        spec.loader.exec_module(module)
    return module
