"""The files: tensors and manifest, byte for byte the same for the same values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref.golden.text import hexadecimal

from .flags import entries

FORMAT, BOUND_VERSION, REVISION = 1, 1, 1
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16"}

Tensors = dict[str, NDArray[Any]]
Built = tuple[dict[str, Any], Tensors]  # a case's record, and its tensors


def safetensors(tensors: Tensors) -> bytes:
    """A safetensors file: widest types first, so that all are aligned; then by name.

    >>> data = safetensors({"a": np.array([1.5])})
    >>> data[8 : 8 + data[0]].rstrip()
    b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'
    """
    header: dict[str, Any] = {}
    body = []
    at = 0
    for name, x in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        raw = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes()
        ends = [at, at + len(raw)]
        header[name] = {"dtype": NAMES[x.dtype.name], "shape": [*x.shape], "data_offsets": ends}
        body.append(raw)
        at += len(raw)
    text = compact(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(body)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def directory(
    cases: Iterable[Built], inline: Iterable[str], withdrawn: dict[str, str]
) -> dict[str, bytes]:
    """The files of a golden directory by name: manifest, one blob a family, SHA256SUMS.

    `inline`: the ids of the cases whose tensors stand in the manifest. `withdrawn`: id to reason.
    """
    blobs: dict[str, Tensors] = {}
    records, written = [], set(inline)
    for record, tensors in cases:
        if record["id"] in written:
            parts: dict[str, Any] = {
                name: {"shape": [*x.shape], "values": hexadecimal(x)} for name, x in tensors.items()
            }
            records.append(record | {"inline": parts})
        else:
            named = {f"{record['id']}/{name}": x for name, x in tensors.items()}
            blobs.setdefault(f"{record['family']}.safetensors", {}).update(named)
            records.append(record | {"tensors": [*tensors]})
    gone = [{"id": i, "result": "withdrawn", "reason": why} for i, why in withdrawn.items()]
    records = sorted([*records, *gone], key=lambda record: record["id"])
    files = {name: safetensors(tensors) for name, tensors in sorted(blobs.items())}
    used = {flag for record in records for flag in record.get("flags", ())}
    head = {
        "format": FORMAT,
        "bound_version": BOUND_VERSION,
        "revision": REVISION,
        "license": "CC0-1.0",
        "schema": "schema.json",
        "generator": "sparse-ref, tools/make_golden.py",
        "count": len(records),
        "flags": {name: entry for name, entry in entries().items() if name in used},
        "blobs": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }
    files["manifest.json"] = manifest(head, records).encode()
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files["SHA256SUMS"] = "".join(sums).encode()
    return files


def manifest(head: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """A line for each field, and for each row of a mask: so that it can be read, and compared."""
    lines = []
    for key, value in head.items():
        if isinstance(value, dict):
            parts = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(parts) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    cases = ",\n".join(_record(record) for record in records)
    return "{\n" + ",\n".join(lines) + f',\n "cases": [\n{cases}\n ]\n}}\n'


def _record(record: dict[str, Any]) -> str:
    lines = []
    for key, value in record.items():
        if key == "mask":
            rows = ",\n    ".join(json.dumps(row) for row in value["rows"])
            text = (
                f'{{"batch": {value["batch"]}, "heads": {value["heads"]}, "rows": [\n    {rows}]}}'
            )
        elif key == "inline":
            parts = ",\n    ".join(f"{json.dumps(n)}: {compact(x)}" for n, x in value.items())
            text = f"{{\n    {parts}}}"
        else:
            text = compact(value)
        lines.append(f'   "{key}": {text}')
    return "  {\n" + ",\n".join(lines) + "\n  }"
