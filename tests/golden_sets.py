"""The golden directories of this repository, parts of them, and forged ones with right hashes."""

import hashlib
import json
import shutil
from pathlib import Path

from sparse_ref.golden import load

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "golden"
CORE = ROOT / "sparse_ref" / "golden" / "core"


def seal(place):
    """Make every hash right again, as a forger would."""
    manifest = json.loads((place / "manifest.json").read_text())
    for name, entry in manifest["blobs"].items():
        data = (place / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (place / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(place)


def seal_sums(place):
    names = ["manifest.json", *(p.name for p in place.glob("*.safetensors"))]
    sums = (f"{hashlib.sha256((place / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (place / "SHA256SUMS").write_text("".join(sums))


def few_cases(place):
    """The core's smallest cases, and those of options and odd numbers, as a golden directory."""
    manifest = json.loads((CORE / "manifest.json").read_text())
    families = ("by-hand", "options", "special")
    manifest["cases"] = [case for case in manifest["cases"] if case["family"] in families]
    manifest["count"] = len(manifest["cases"])
    blobs = [f"{family}.safetensors" for family in families[1:]]
    manifest["blobs"] = {name: manifest["blobs"][name] for name in blobs}
    (place / "manifest.json").write_text(json.dumps(manifest))
    for name in blobs:
        shutil.copy(CORE / name, place)
    seal_sums(place)
    assert len(load(place)) > 100
    return place
