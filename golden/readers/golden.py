"""Golden files with NumPy alone: copy this file; README.md shows its use. 0BSD."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def cases(directory):
    """Every valid case, as the manifest writes it, with its arrays under "tensors"."""
    directory = Path(directory)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format"] != 1:
        raise ValueError(f"format must be 1, got {manifest['format']}")
    blobs = {}
    for name, entry in manifest["blobs"].items():
        data = (directory / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name}: SHA-256 must be {entry['sha256']}")
        start = 8 + int.from_bytes(data[:8], "little")
        for key, x in json.loads(data[8:start]).items():
            begin, end = (start + offset for offset in x["data_offsets"])
            blobs[key] = np.frombuffer(data[begin:end], TYPES[x["dtype"]]).reshape(x["shape"])
    for case in manifest["cases"]:
        if case["result"] == "valid":
            found = {name: blobs[f"{case['id']}/{name}"] for name in case.get("tensors", ())}
            for name, x in case.get("inline", {}).items():
                values = [float.fromhex(word) for word in x["values"].split()]
                found[name] = np.array(values, np.float64).reshape(x["shape"])
            yield case | {"tensors": found}


def counts(case):
    """How often each key counts: 0 for a key not seen. (1 or b, 1 or h, m, n)."""
    runs = ([(a or 1, s) for a, s in re.findall(r"(\d*)(\D)", row)] for row in case["mask"]["rows"])
    rows = ["".join(sign * int(times) for times, sign in row) for row in runs]
    times = [[".#bcdefghijklmnopqrstuvwxyz".index(sign) for sign in row] for row in rows]
    shape = (case["mask"]["batch"], case["mask"]["heads"], *(case["sizes"][x] for x in "mn"))
    return np.array(times, np.int64).reshape(shape)


def passes(got, case, name, kind):
    """Whether an answer is within its bound; kind: float32, float16 or bfloat16."""
    got, want = np.asarray(got, np.float64), case["tensors"][name]
    with np.errstate(invalid="ignore"):
        near = np.abs(got - want) <= case["tensors"][f"bound.{kind}.{name}"]
    exact = (got == want) | (np.isnan(got) & np.isnan(want))
    return got.shape == want.shape and bool(np.all(near | exact))


if __name__ == "__main__":
    for case in cases(sys.argv[1]):
        x = np.concatenate([[0.0], *(np.ravel(x) for x in case["tensors"].values())])
        bits = np.add.accumulate(np.where(np.isfinite(x), x, 0.0))[-1:].astype(">f8").tobytes()
        print(case["id"], counts(case).sum(), len(x) - 1, bits.hex())  # noqa: T201
