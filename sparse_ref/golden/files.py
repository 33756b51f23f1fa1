"""Files of unknown origin: read whole or refused, in one sentence. Nothing is run or unpickled.

Every file is a plain one in the given directory, of the size and SHA-256 that SHA256SUMS and the
manifest promise; JSON has no duplicate keys; tensors fill a blob without holes or overlaps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

LARGEST = 2**26  # bytes of a file
DEEPEST = 200  # brackets of JSON within each other
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
SUMS = "SHA256SUMS"

Tensors = dict[str, NDArray[Any]]


class GoldenError(ValueError):
    """A golden file that is not what it says it is."""


def refuse(where: object, sentence: str) -> NoReturn:
    raise GoldenError(f"{where}: {sentence}")


def read(directory: Path, name: str, largest: int = LARGEST) -> bytes:
    """The bytes of a plain file of this directory."""
    if name != SUMS and not NAME.fullmatch(name):
        refuse(directory, f"a file name must be lower case letters, digits, . and -, got {name!r}")
    path = directory / name
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            refuse(path, "must be a plain file, got a symbolic link")
        handle = os.open(path, flags)
    except OSError as error:
        refuse(path, f"must be a readable file: {error.strerror}")
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            refuse(path, "must be a plain file")
        if found.st_size > largest:
            refuse(path, f"must have at most {largest} bytes, got {found.st_size}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(largest + 1)
    except OSError as error:
        refuse(path, f"must be a readable file: {error.strerror}")
    finally:
        os.close(handle)
    if len(data) != found.st_size:
        refuse(path, f"must not change while it is read: {found.st_size} bytes, got {len(data)}")
    return data


def sums(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file, by name."""
    where = directory / SUMS
    found: dict[str, str] = {}
    try:
        lines = read(directory, SUMS, 2**16).decode("ascii").split("\n")
    except UnicodeDecodeError:
        refuse(where, "must be ASCII")
    if lines.pop():
        refuse(where, "must end with a line")
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([a-z0-9.-]+)", line)
        if match is None or match[2] in found:
            refuse(where, f"must have lines '<sha256>  <name>' of distinct names, got {line!r}")
        found[match[2]] = match[1]
    return found


def checked(where: object, data: bytes, digest: object) -> bytes:
    """The data, if they have this SHA-256."""
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        refuse(where, f"must have the SHA-256 {digest}, got {got}")
    return data


def parse(where: object, data: bytes) -> Any:
    """JSON, without duplicate keys, NaN, or more brackets than a case has."""

    def pairs(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in found:
            if key in kept:
                refuse(where, f"must not have a key twice, got {key[:60]!r}")
            kept[key] = value
        return kept

    def constant(word: str) -> NoReturn:
        refuse(where, f"must hold finite numbers, got {word}")

    outside = b"".join(re.sub(rb"\\.", b"", data, flags=re.DOTALL).split(b'"')[::2])  # of strings
    steps = (1 if sign in b"[{" else -1 for sign in re.findall(rb"[\[\]{}]", outside))
    most = max(itertools.accumulate(steps), default=0)
    if most > DEEPEST:
        refuse(where, f"must nest at most {DEEPEST} deep, got {most}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except GoldenError:
        raise
    except (ValueError, RecursionError) as error:
        refuse(where, f"must be JSON in UTF-8: {str(error)[:80]}")


def tensors(where: object, data: bytes) -> Tensors:
    """The tensors of a safetensors file, read-only views of its bytes."""
    if len(data) < 8:
        refuse(where, f"must start with 8 bytes of header length, got {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        refuse(where, f"the header must end within the file, got a length of {length}")
    header, body = parse(where, data[8 : 8 + length]), memoryview(data)[8 + length :]
    if not isinstance(header, dict):
        refuse(where, "the header must be an object")
    found, spans = {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(where, name, entry)
        if end > len(body):
            refuse(where, f"{name!r} must end within {len(body)} bytes, got {end}")
        size = dtype.itemsize
        for extent in shape:  # Python's integers do not overflow
            size *= extent
        if end - begin != size or begin % dtype.itemsize:
            refuse(where, f"{name!r} must be {size} aligned bytes, got [{begin}, {end})")
        spans.append((begin, end))
        found[name] = np.frombuffer(body[begin:end], dtype).reshape(shape)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            refuse(where, f"tensors must follow each other, got {begin} where {at} was due")
        at = end
    if at != len(body):
        refuse(where, f"tensors must fill the file's {len(body)} bytes, got {at}")
    return found


def _entry(where: object, name: str, entry: object) -> tuple[np.dtype[Any], list[int], list[int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(where, f"{name[:60]!r} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        refuse(where, f"{name[:60]!r} must be of F64, F32 or F16, got {str(kind)[:20]}")
    for ints in (shape, offsets):
        if not isinstance(ints, list) or not all(
            type(i) is int and 0 <= i <= LARGEST for i in ints
        ):
            refuse(where, f"{name[:60]!r} must have extents and offsets of 0 to {LARGEST}")
    if len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(where, f"{name[:60]!r} must have up to 8 axes and [begin, end) in order")
    return np.dtype(TYPES[kind]), shape, offsets
