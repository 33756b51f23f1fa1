"""`load`: a directory of golden files, checked, as cases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from .cases import GoldenCase
from .entries import Flag, case_of, flag_of, typed
from .files import Tensors, checked, parse, read, refuse, sums, tensors

FORMAT = 1
CORE = Path(__file__).parent / "core"
KEYS = {
    "format": int, "bound_version": int, "revision": int, "license": str, "schema": str,
    "generator": str, "count": int, "flags": dict, "blobs": dict, "cases": list,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Golden(Sequence[GoldenCase]):
    """The cases, in the order of their ids; `golden[id]` is one of them.

    `flags` says what each flag is for, `withdrawn` names the cases that were wrong, and why.
    """

    path: Path
    bound_version: int
    flags: dict[str, Flag]
    cases: tuple[GoldenCase, ...]
    withdrawn: dict[str, str]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[GoldenCase]:
        return iter(self.cases)

    @overload
    def __getitem__(self, at: int | str) -> GoldenCase: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[GoldenCase, ...]: ...
    def __getitem__(self, at: int | str | slice) -> GoldenCase | tuple[GoldenCase, ...]:
        """A case by its place or by its id."""
        if not isinstance(at, str):
            return self.cases[at]
        for case in self.cases:
            if case.id == at:
                return case
        raise KeyError(at)

    def of(self, *flags: str) -> list[GoldenCase]:
        """The cases that have every one of these flags."""
        for flag in flags:
            if flag not in self.flags:
                raise ValueError(f"flags must be of {', '.join(self.flags)}, got {flag!r}")
        return [case for case in self.cases if set(flags) <= set(case.flags)]


def load(path: str | os.PathLike[str] | None = None) -> Golden:
    """The golden cases of a directory; by default the core set that comes with the library.

    Parameters
    ----------
    path : path of a directory, optional
        One that holds manifest.json, its blobs and SHA256SUMS, such as `golden/` of the repository.

    Raises
    ------
    GoldenError
        In one sentence, if a file is missing, damaged or not what it says it is. Nothing in a
        golden file is run.

    >>> golden = load()
    >>> {case.family for case in golden.of("MaskedNaN")}
    {'special'}
    """
    directory = Path(CORE if path is None else path)
    where = directory / "manifest.json"
    listed = sums(directory)
    data = checked(where, read(directory, "manifest.json"), listed.get("manifest.json"))
    manifest = parse(where, data)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        refuse(where, f"format must be {FORMAT}")
    if manifest.keys() != KEYS.keys():
        refuse(where, f"must have the keys {', '.join(sorted(KEYS))}")
    for key, kind in KEYS.items():
        typed(where, key, manifest[key], kind)
    flags = {name: flag_of(where, name, entry) for name, entry in manifest["flags"].items()}
    blobs: Tensors = {}
    for name, entry in manifest["blobs"].items():
        blob = directory / name
        if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
            refuse(where, f"blob {name[:60]!r} must have bytes and sha256")
        content = checked(blob, read(directory, name), entry["sha256"])
        if len(content) != entry["bytes"] or listed.get(name) != entry["sha256"]:
            refuse(blob, "must have the size and the SHA-256 that manifest and SHA256SUMS name")
        blobs |= tensors(blob, content)
    cases, withdrawn = [], {}
    for entry in manifest["cases"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            refuse(where, "a case must have an id")
        if entry.get("result") == "withdrawn":
            withdrawn[entry["id"]] = str(entry.get("reason"))
        else:
            cases.append(case_of(where, entry, blobs, flags))
    ids = [case.id for case in cases] + list(withdrawn)
    if len(set(ids)) != len(ids) or len(ids) != manifest["count"]:
        refuse(where, f"must have {manifest['count']} cases of distinct ids, got {len(set(ids))}")
    return Golden(directory, manifest["bound_version"], flags, tuple(cases), withdrawn)
