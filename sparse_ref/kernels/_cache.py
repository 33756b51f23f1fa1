"""Compiled kernels on disk: in a directory that nobody else can write, or nowhere.

Numba's cache files are pickles: whoever writes one runs code in the process that reads it. So the
directory must belong to this user, with no way in for others, and so must every directory on the
way to it, up to one that lets nobody in. Numba's own settings (NUMBA_CACHE_DIR, its locators) are
the whole process's; here the cache of our kernels alone is put where we want it.

A directory is for one state of the sources, versions and settings, which its name is a hash of;
Numba adds signature, bytecode and CPU.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache

SETTINGS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")


def directory(asked: str, *switches: object) -> Path | None:
    """Where kernels are kept: a private directory, made if need be; None if there is none.

    `asked` is the user's choice: a path, "0" for none, "" for the usual place. `switches` is what
    the code depends on besides its sources.
    """
    if asked == "0" or not hasattr(os, "geteuid"):  # no owners and modes to check
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(asked or Path(home, "sparse_ref")).expanduser()
    try:
        path = base / f"kernels-{_fingerprint(switches)}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if private(path) else None
    except (OSError, RuntimeError):  # read-only, no home, no sources
        return None


def private(path: Path) -> bool:
    """Whether only this user (and root) can change what is found at a path."""
    here = path.lstat()
    if not stat.S_ISDIR(here.st_mode) or here.st_uid != os.geteuid() or here.st_mode & 0o077:
        return False
    for above in reversed(path.resolve().parents):
        found = above.stat()
        if found.st_uid not in (0, os.geteuid()):
            return False
        if found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return True
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return False
    return True


def _fingerprint(switches: Sequence[object]) -> str:
    """What compiled code depends on, but for what Numba looks after itself."""
    state = [numba.__version__, llvmlite.__version__, sys.version, *switches]
    state += [getattr(numba.config, name, None) for name in SETTINGS]
    found = hashlib.sha256(repr(state).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        found.update(source.read_bytes())
    return found.hexdigest()[:16]


class Locator:
    """What Numba asks for the place of one function's files."""

    def __init__(self, path: Path, function: Callable[..., Any]) -> None:
        self._py_file, self._line = function.__code__.co_filename, function.__code__.co_firstlineno
        self._path = path

    def ensure_cache_path(self) -> None:
        """It has been made; whoever removed it since goes without a cache."""

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return self._path.name

    def get_disambiguator(self) -> str:
        return str(self._line)


def cache(path: Path, function: Callable[..., Any]) -> Any:
    """The cache of one function, for a dispatcher's `_cache`."""

    class Files(CompileResultCacheImpl):
        def __init__(self, py_func: Callable[..., Any]) -> None:
            self._lineno, self._locator = py_func.__code__.co_firstlineno, Locator(path, py_func)
            name = f"{py_func.__module__.rpartition('.')[2]}.{py_func.__qualname__}"
            self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))

    class Cache(FunctionCache):
        """A file that cannot be read or written is as good as none."""

        _impl_class = Files

        def load_overload(self, *args: Any) -> Any:
            try:
                return super().load_overload(*args)
            except Exception:  # a damaged pickle may raise anything
                return None

        def save_overload(self, *args: Any) -> None:
            try:
                super().save_overload(*args)
            except Exception:  # a full disk, a damaged index
                self.disable()

    return Cache(function)
