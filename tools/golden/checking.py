"""Files on disk against files made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ref.golden.files import Tensors, parse, tensors
from sparse_ref.golden.text import numbers

# exp, log and tanh differ between processors in the last place, and sums with them.
VALUES, BOUNDS = 2.0**-40, 2.0**-18


def problems(made: dict[Path, dict[str, bytes]]) -> list[str]:
    """What is not as it is made again, a sentence each; nothing where all bytes are equal."""
    found = []
    for place, files in made.items():
        for name, data in files.items():
            path = place / name
            if not path.is_file():
                found.append(f"{path}: is missing; run tools/make_golden.py")
            elif path.read_bytes() != data and name.endswith(".safetensors"):
                found += different(path, tensors(path, path.read_bytes()), tensors(path, data))
            elif path.read_bytes() != data and name == "manifest.json":
                found += manifests(path, path.read_bytes(), data)
    return found


def different(where: object, old: Tensors, new: Tensors) -> list[str]:
    """Inputs must be equal, answers and bounds up to the last places."""
    found = [f"{where}: {name} is not in both" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name], new[name]
        part = name.rsplit("/", 1)[-1]
        most = 0.0 if a.dtype == np.float16 else BOUNDS if part.startswith("bound.") else VALUES
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{where}: {name} must be {b.dtype} {b.shape}, got {a.dtype} {a.shape}")
            continue
        with np.errstate(invalid="ignore"):
            scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
            near = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= most * scale)
        if not near.all():
            at = tuple(int(i) for i in np.argwhere(~near)[0])
            found.append(f"{where}: {name}{list(at)} must be {b[at]!r}, got {a[at]!r}")
    return found


def manifests(where: Path, old: bytes, new: bytes) -> list[str]:
    """Cases field by field, numbers as numbers; the hashes of blobs are `load`'s business."""
    a, b = parse(where, old), parse("new", new)
    found = [
        f"{where}: {key} is not as it is made"
        for key in sorted((a.keys() | b.keys()) - {"cases", "blobs"})
        if a.get(key) != b.get(key)
    ]
    ours, theirs = ({case["id"]: case for case in x["cases"]} for x in (a, b))
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = dict(ours.get(name, {})), dict(theirs.get(name, {}))
        values = [_inline(one.pop("inline", {})), _inline(other.pop("inline", {}))]
        if one.get("result") == "withdrawn":
            continue
        if one != other:
            keys = [k for k in one.keys() | other.keys() if one.get(k) != other.get(k)]
            found.append(f"{where}: {name} is not as it is made, in {', '.join(sorted(keys))}")
        found += different(f"{where}: {name}", *values)
    return found


def _inline(parts: dict[str, Any]) -> Tensors:
    """Numbers in the types that a blob would hold them in."""
    return {
        name: numbers(part["values"], math.prod(part["shape"]))
        .reshape(part["shape"])
        .astype(np.float32 if name.startswith("bound.") else np.float64)
        for name, part in parts.items()
    }
