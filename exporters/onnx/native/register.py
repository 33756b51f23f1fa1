"""`register_kernels`: our kernel inside ONNX Runtime, for the life of this process."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from sparse_ref.kernels._jit import PLAIN

from . import shim
from ._jit import CACHE

TESTED = ("1.24", "1.31", "1.32")  # releases of ONNX Runtime that it has run in
TRIAL = 600  # seconds: compiling comes first, on a machine that may be busy


def register_kernels(session_options: Any, *, without_compiler: bool = False) -> bool:
    """Let sessions made with these options run `sparse_ref.SparseAttention` by the Numba kernel.

    Parameters
    ----------
    session_options : onnxruntime.SessionOptions
    without_compiler : bool
        Where there is no C compiler, write the small library that ONNX Runtime loads byte by byte
        (Linux on x86-64 only).

    Returns
    -------
    bool : whether the kernel is registered. If not, one warning says why, and the operator's body
    in standard operators runs, as it does in every other process: the kernel lives in this one.

    Of all four element types, on the session's own threads, with no copies and without Python's
    lock. A wrong index in an input is an error of the session, never a crash. The first
    registration in a process is tried in another one first.

    Raises
    ------
    TypeError
        If session_options are none.

    >>> import onnxruntime
    >>> options = onnxruntime.SessionOptions()
    >>> register_kernels(options) in (True, False)
    True
    """
    import onnxruntime

    if not isinstance(session_options, onnxruntime.SessionOptions):
        raise TypeError(
            f"session_options must be onnxruntime.SessionOptions, got {session_options!r}"
        )
    try:
        library = _library(without_compiler)
    except RuntimeError as reason:
        warnings.warn(f"the operator's body will run: {reason}", RuntimeWarning, stacklevel=2)
        return False
    session_options.register_custom_ops_library(str(library))
    return True


@cache
def _library(without_compiler: bool) -> Path:
    """The file that ONNX Runtime loads, tried; RuntimeError says why there is none."""
    import onnxruntime

    release = ".".join(onnxruntime.__version__.split(".")[:2])
    if release not in TESTED:
        raise RuntimeError(
            f"the kernel is tested with ONNX Runtime {', '.join(TESTED)}, not {release}"
        )
    if PLAIN:
        raise RuntimeError("kernels are not compiled to vector code here")
    _tried(release, without_compiler)
    return loaded(without_compiler)


def loaded(without_compiler: bool) -> Path:
    """The library, leading to this process's functions."""
    from .entries import register_address

    folder = Path(tempfile.mkdtemp(prefix="sparse_ref-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if without_compiler and shim.compiler() is None:
        return shim.written(folder, register_address())
    return shim.compiled(folder, register_address())


def _tried(release: str, without_compiler: bool) -> None:
    """Run a tiny model in another process, unless that has been done with this very code."""
    mark = None if CACHE is None else CACHE / f"onnxruntime-{release}-{without_compiler}-tried"
    if mark is not None and mark.exists():
        return
    run = [sys.executable, "-m", "exporters.onnx.native.trial", *["elf"] * without_compiler]
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
            timeout=TRIAL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"a trial in another process took more than {TRIAL} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"a trial in another process ended with {done.returncode}: {last}")
    if mark is not None:
        mark.touch()
