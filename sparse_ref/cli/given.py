"""What people hand over: a pattern, the file of a mask, the name of a function."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

from .command import Refusal
from .expressions import parse

MOST = 2**26  # entries of a mask, 8,192 x 8,192: more is no mask that anybody looks at


def pattern_of(text: str) -> sr.Pattern:
    """The pattern of an expression, of JSON, of @FILE with either, or of a mask in @FILE.npy."""
    try:
        if not text.startswith("@"):
            return parse(text)
        path = Path(text[1:])
        if path.suffix == ".npy":
            return sr.from_mask(mask_of(path))
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise Refusal(error) from None


def mask_of(path: Path) -> NDArray[np.bool_]:
    """The bool mask (q_len, kv_len) or (heads, q_len, kv_len) of a .npy file; runs no code.

    The header is read first, so that a file which claims to be large costs nothing. Leading axes
    of length 1, as attention masks have them for batch and heads, are dropped.
    """
    try:
        stored = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise Refusal(f"{path} must be a .npy file with a bool mask: {error}") from None
    while stored.ndim > 2 and stored.shape[0] == 1:
        stored = stored[0]
    if stored.dtype != bool or stored.ndim not in (2, 3) or 0 in stored.shape:
        raise Refusal(
            f"{path} must hold a bool mask (q_len, kv_len) or (heads, q_len, kv_len), "
            f"got {stored.dtype} {stored.shape}"
        )
    if stored.size > MOST:
        raise Refusal(f"{path} must hold at most {MOST:,} entries, got {stored.size:,}")
    return np.array(stored)


def function_of(name: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION or FILE.py:FUNCTION names; the current directory counts."""
    source, colon, path = name.rpartition(":")
    if not colon or not source or not path:
        raise Refusal(f"the function must be given as MODULE:FUNCTION, got {name!r}")
    found: Any = _module(source)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, dir(found), n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Refusal(f"{source} has no {part!r}{hint}") from None
    if not callable(found):
        raise Refusal(f"{name} must be a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _module(source: str) -> Any:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None  # it ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refusal(f"{source} cannot be imported: {_where(error)}") from None
    except SystemExit:
        raise Refusal(f"{source} cannot be imported: it ends the program") from None
    return module


def _where(error: Exception) -> str:
    """What a stranger's module stumbled over, and in which line."""
    text = f"{type(error).__name__}: {error}"
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    file = "" if at is None else at.tb_frame.f_code.co_filename
    if at is None or file.startswith("<") or isinstance(error, FileNotFoundError):
        return text
    return f"{text} ({Path(file).name}, line {at.tb_lineno})"
