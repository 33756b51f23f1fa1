"""`sparse-ref doctor`: what would run here, and why nothing faster does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .command import OK, WRONG, add_outputs, declare, to_json

ABOUT = """\
Say what of this library runs on this machine: versions, threads, the vectors and tiles of the CPU,
where compiled kernels are kept, whether small numbers are flushed to zero, and which way ONNX
Runtime and CUDA would go.
"""

END = """\
examples:
  sparse-ref doctor
  sparse-ref doctor --quick      without the trials: the first time they compile, for a minute or so
  sparse-ref doctor --json       for a bug report

exit status: 0, or 1 if something is broken: a package that cannot be loaded, a cache of compiled
kernels that others could write to, numbers flushed to zero
"""

PACKAGES = (
    "numpy", "scipy", "numba", "llvmlite", "torch", "onnx", "onnxruntime", "onnxscript",
    "ml_dtypes", "matplotlib", "rich", "scikit-learn",
)  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SWITCHES = ("SPARSE_REF_PLAIN", "SPARSE_REF_CACHE", "SPARSE_REF_AMX", "NUMBA_DISABLE_JIT")


class Finding(NamedTuple):
    """One line; `broken` says that something is the matter, not merely missing."""

    topic: str
    name: str
    found: str
    broken: bool = False


def add_to(commands: Any) -> None:
    """The command and its options."""
    parser = declare(commands, "doctor", "what runs on this machine, and why", ABOUT, END)
    parser.add_argument("--quick", action="store_true", help="leave out what has to be compiled")
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything; 1 if something is broken."""
    from . import screen

    looks: list[Callable[[], Iterator[Finding]]] = [_versions, _threads, _kernels]
    if not arguments.quick:
        looks.append(_tiles)
    looks += [_cuda, lambda: _onnx(trial=not arguments.quick), _small_numbers]
    found = [finding for look in looks for finding in _careful(look)]
    broken = [one for one in found if one.broken]
    if arguments.json:
        print(to_json({"ok": not broken, "findings": [one._asdict() for one in found]}))
    elif not arguments.quiet:
        topics = [one.topic for one in found]
        rows = [
            ("" if i and topics[i - 1] == one.topic else one.topic, one.name, one.found)
            for i, one in enumerate(found)
        ]
        screen.table(["", "", ""], rows)
        said = [f"ERROR {one.topic}, {one.name}: {one.found}" for one in broken]
        screen.say("\n".join(["", *(said or ["ok: nothing is broken"])]))
    return WRONG if broken else OK


def _careful(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; if it breaks off, that is a finding too."""
    topic = look.__name__.strip("_<>").replace("_", " ")
    try:
        for finding in look():
            topic = finding.topic
            yield finding
    except ImportError as missing:
        if missing.name and not missing.name.startswith(("sparse_ref", "exporters")):
            yield Finding(topic, "not available", f"{missing.name} is not installed")
        else:
            yield Finding(topic, "cannot be loaded", str(missing), broken=True)
    except Exception as error:  # a broken installation may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(topic, "cannot be loaded", text, broken=True)


def _versions() -> Iterator[Finding]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from sparse_ref import __version__

    yield Finding("versions", "sparse_ref", __version__)
    yield Finding("versions", "python", f"{platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding("versions", name, version(name))
        except PackageNotFoundError:
            yield Finding("versions", name, "not installed")


def _threads() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("threads", "cores", f"{usable} usable of {os.cpu_count()}")
    said = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    yield Finding("threads", "environment", ", ".join(said) or "says nothing of threads")
    from sparse_ref.kernels.threads import available

    yield Finding("threads", "kernels", f"{available()} at most, of plain Python threads")


def _kernels() -> Iterator[Finding]:
    import llvmlite.binding  # type: ignore[import-untyped]

    from sparse_ref.kernels import _cache, _jit
    from sparse_ref.kernels.lanes import BYTES

    how = "plain Numba loops" if _jit.PLAIN else f"vectors of {8 * BYTES} bits"
    cpu = llvmlite.binding.get_host_cpu_name()
    yield Finding("kernels", "compiled for", f"{cpu}, {how}")
    said = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    yield Finding("kernels", "switches", ", ".join(said) or "none set")
    if _jit.CACHE is None:
        asked = os.environ.get("SPARSE_REF_CACHE", "")
        why = "is turned off" if asked == "0" else "must be a folder that only you can write to"
        yield Finding("kernels", "cache", f"none: it {why}", broken=asked not in ("", "0", "1"))
        return
    kept = len(list(_jit.CACHE.glob("*.nbc")))
    private = _cache.private(_jit.CACHE)
    words = "private" if private else "others can write to it: remove it"
    yield Finding(
        "kernels", "cache", f"{_jit.CACHE}, {words}, {kept} compiled functions", not private
    )


def _tiles() -> Iterator[Finding]:
    from sparse_ref.kernels import amx

    for name, state in amx.available().items():
        yield Finding("AMX tiles", name, state)


def _cuda() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        yield Finding("CUDA", "torch", "not installed")
        return
    if torch.cuda.is_available():
        yield Finding("CUDA", "torch", f"{torch.version.cuda}: {torch.cuda.get_device_name()}")
        return
    built = torch.version.cuda
    why = f"built for CUDA {built}, and finds no device" if built else "built without CUDA"
    yield Finding("CUDA", "torch", f"torch {torch.__version__} is {why}")


def _onnx(*, trial: bool) -> Iterator[Finding]:
    import warnings

    try:
        import onnxruntime
    except ImportError:
        yield Finding("ONNX", "runtime", "not installed")
        return
    providers = onnxruntime.get_available_providers()
    yield Finding("ONNX", "providers", ", ".join(providers))
    if not trial:
        yield Finding("ONNX", "path", "not tried (--quick)")
        return
    from exporters.onnx.native import register_kernels

    if sys.stderr.isatty():
        print("trying the kernel in ONNX Runtime; the first time it is compiled", file=sys.stderr)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        registered = register_kernels(onnxruntime.SessionOptions())
    if registered:
        yield Finding(
            "ONNX",
            "path",
            "the compiled kernel, after register_kernels(options); else the operator's body",
        )
    else:
        why = str(said[-1].message) if said else "the kernel cannot be registered"
        yield Finding("ONNX", "path", why)


def _small_numbers() -> Iterator[Finding]:
    """Last, when everything is loaded: a library built with -ffast-math may have turned them off.

    Threads have settings of their own: one that starts now has those of this one.
    """
    import numpy as np

    loaded = [name for name in ("numba", "torch", "onnxruntime") if name in sys.modules]
    after = f"with {', '.join(['numpy', *loaded])} loaded"
    for kind in ("float32", "float64"):
        smallest = np.array([np.finfo(kind).smallest_normal])
        kept = bool((smallest * np.array([0.5], kind) > 0).all())
        words = "kept" if kept else "flushed to zero: a library has changed the CPU's settings"
        yield Finding("small numbers", f"subnormal {kind}", f"{words}, {after}", broken=not kept)
