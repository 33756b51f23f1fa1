"""What must hold of golden files whatever the oracle says."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.golden import Golden, GoldenCase, GoldenError, load

from .build import TYPES, seen

LARGEST = {"golden": 20 * 2**20, "core": 2 * 2**20}
LEAST = {"golden": 1500, "core": 100}
INPUTS = ("bias", "sink_logits", "alibi_slopes", "dout", "dlse", "index_q", "index_k",
          "index_weights")  # fmt: skip
ID = re.compile(r"[a-z]+(-[a-z]+)*/[a-z0-9-]+(\+[a-z0-9-]+)?/b\d+h\d+g\d+-\d+x\d+-d\d+e\d+/[a-z]+")


def problems(directory: Path) -> list[str]:
    """A sentence for everything that is wrong."""
    try:
        golden = load(directory)
    except GoldenError as error:
        return [str(error)]
    found = [*_schema(directory), *_files(directory, golden), *_flags(directory, golden)]
    for case in golden:
        found += [f"{case.id}: {sentence}" for sentence in _case(case)]
    return found


def _schema(directory: Path) -> list[str]:
    """The manifest against golden/schema.json."""
    jsonschema = importlib.import_module("jsonschema")  # it ships no types

    schema = Path(__file__).resolve().parents[2] / "golden" / "schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    manifest = json.loads((directory / "manifest.json").read_text())
    return [
        f"{directory}: {e.json_path} {e.message[:200]}" for e in validator.iter_errors(manifest)
    ]


def _files(directory: Path, golden: Golden) -> list[str]:
    ids = [case.id for case in golden]
    found = [] if ids == sorted(ids) else [f"{directory}: cases must be sorted by id"]
    released = Path(__file__).with_name("released.txt").read_text().split()
    if directory.name == "golden":
        gone = set(released) - set(ids) - set(golden.withdrawn)
        found += [
            f"{directory}: {i} was released: withdraw it, do not remove it" for i in sorted(gone)
        ]
        new = sorted(set(ids) - set(released))
        found += [f"{directory}: {i} must be listed in tools/golden/released.txt" for i in new]
    if len(golden) < LEAST[directory.name]:
        found.append(f"{directory}: must have {LEAST[directory.name]} cases, got {len(golden)}")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if size > LARGEST[directory.name]:
        found.append(f"{directory}: must have at most {LARGEST[directory.name]} bytes, got {size}")
    return found


def _flags(directory: Path, golden: Golden) -> list[str]:
    if directory.name == "core":
        return []
    used = Counter(flag for case in golden for flag in case.flags)
    return [
        f"{flag} must have 3 cases, got {used[flag]}" for flag in golden.flags if used[flag] < 3
    ]


def _case(case: GoldenCase) -> list[str]:
    """One case against itself."""
    found = []
    if not ID.fullmatch(case.id) or not case.id.startswith(f"{case.family}/"):
        found.append("the id must be family/pattern+options/sizes/probe")
    if str(case.sizes) not in case.id:
        found.append(f"the id must name the sizes {case.sizes}")
    if not (case.words and (case.flags or case.family in ("by-hand", "windows", "combined"))):
        found.append("a case must have words, and flags")
    if not np.array_equal(seen(case.call("float16")), case.counts):
        found.append("the mask must be what the pattern says")
    for name, x in case.tensors.items():
        if name.startswith("bound."):
            target = case.tensors[name.split(".", 2)[2]]
            if x.shape != target.shape or (x < 0).any():
                found.append(f"{name} must be >= 0 and have the shape of its tensor")
            finite = np.isfinite(target)
            if not (np.isfinite(x) == (finite | np.isneginf(target))).all():
                found.append(f"{name} must be finite where the answer is, and 0 at -inf")
            if x[np.isneginf(target)].any():
                found.append(f"{name} must be 0 where the answer is -inf")
        elif name in "qkv" or name in INPUTS:
            found += _exact(name, np.asarray(x, np.float64))
    for kind in TYPES[1:]:
        wide, narrow = (case.tensors[f"bound.{t}.out"] for t in (kind, "float32"))
        if (wide < narrow).any():
            found.append(f"bound.{kind}.out must not be below bound.float32.out")
    return found


def _exact(name: str, x: Floats) -> list[str]:
    finite = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        half = finite.astype(np.float16) == finite
    steps = np.ldexp(finite, 8 - np.frexp(finite)[1])
    fine = half.all() and (steps == np.rint(steps)).all()
    return [] if fine else [f"{name} must be exact in float16 and bfloat16"]
