"""What stands in a manifest becomes a case, once it has the right form."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ref.conformance.probes import Sizes

from .cases import TYPES, GoldenCase
from .files import Tensors, refuse
from .text import numbers

BIGGEST = 2**24  # numbers of a tensor that stands in the manifest, or pairs of a mask
LONGEST = 2**20


class Flag(NamedTuple):
    """What a case is for: the kind of bug, what it is, what it does, and where it was seen."""

    bug: str
    description: str
    effect: str
    links: tuple[str, ...]


def flag_of(where: Path, name: str, entry: Any) -> Flag:
    """A flag from its entry."""
    if not isinstance(entry, dict) or entry.keys() != set(Flag._fields):
        refuse(where, f"flag {name[:60]!r} must have {', '.join(Flag._fields)}")
    for key in Flag._fields[:3]:
        typed(where, f"{key} of flag {name[:60]}", entry[key], str)
    links = _strings(where, f"links of flag {name[:60]}", entry["links"])
    return Flag(entry["bug"], entry["description"], entry["effect"], tuple(links))


_CASE = {
    "id": str, "family": str, "comment": str, "flags": list, "result": str, "pattern": dict,
    "words": str, "sizes": dict, "probe": str, "attributes": dict, "mask": dict,
}  # fmt: skip


def case_of(
    where: Path, entry: dict[str, Any], blobs: Tensors, flags: Container[str]
) -> GoldenCase:
    """A case from its entry, its tensors from the blobs."""
    name = entry["id"][:120]
    keys = entry.keys() - {"selection"}
    if keys not in (_CASE.keys() | {"tensors"}, _CASE.keys() | {"inline"}):
        refuse(where, f"{name} must have {', '.join(_CASE)} and tensors or inline")
    for key, kind in _CASE.items():
        typed(where, f"{key} of {name}", entry[key], kind)
    named = _strings(where, f"flags of {name}", entry["flags"])
    if entry["result"] != "valid" or not all(flag in flags for flag in named):
        refuse(where, f"{name} must be valid or withdrawn, with known flags")
    sizes = _sizes(where, name, entry["sizes"])
    found = {}
    if "inline" in entry:
        found = _inline(where, name, entry["inline"])
    for tensor in _strings(where, f"tensors of {name}", entry.get("tensors", [])):
        if f"{entry['id']}/{tensor}" not in blobs:
            refuse(where, f"{name} must have its tensor {tensor[:60]!r} in a blob")
        found[tensor] = blobs[f"{entry['id']}/{tensor}"]
    _mask(where, name, sizes, entry["mask"])
    _attributes(where, name, sizes, entry["attributes"])
    selection = entry.get("selection")
    if selection is not None:
        _selection(where, name, selection)
    _shapes(where, name, sizes, found)
    return GoldenCase(
        entry["id"], entry["family"], entry["comment"], tuple(named), entry["words"], sizes,
        entry["probe"], found, entry["pattern"], entry["attributes"], entry["mask"], selection,
    )  # fmt: skip


def _sizes(where: Path, name: str, entry: dict[str, Any]) -> Sizes:
    if entry.keys() != set(Sizes._fields) or not all(_within(x, 0) for x in entry.values()):
        refuse(where, f"sizes of {name} must be {', '.join(Sizes._fields)}, below 2**20")
    sizes = Sizes(**entry)
    if not (sizes.d and sizes.g) or sizes.h % sizes.g:
        refuse(where, f"sizes of {name} must have d and g above 0, and g must divide h")
    return sizes


def _mask(where: Path, name: str, s: Sizes, entry: dict[str, Any]) -> None:
    if entry.keys() != {"batch", "heads", "rows"}:
        refuse(where, f"mask of {name} must have batch, heads and rows")
    batch, heads = (typed(where, f"mask of {name}", entry[x], int) for x in ("batch", "heads"))
    if batch not in (1, s.b) or heads not in (1, s.h):
        refuse(where, f"mask of {name} must be for one or for all batch rows and heads")
    rows = batch * heads * s.m
    got = _strings(where, f"mask of {name}", entry["rows"])
    if len(got) != rows or rows * s.n > BIGGEST:
        refuse(where, f"mask of {name} must have {rows} rows, got {len(got)}")


def _attributes(where: Path, name: str, s: Sizes, given: dict[str, Any]) -> None:
    for key, value in given.items():
        match key, value:
            case "scale" | "softcap", int() | float() if not isinstance(value, bool):
                continue
            case "q_start" | "kv_lengths", _ if _row(value, s.b) or _within(value):
                continue
            case "kv_positions", [list(), *_] if len(value) == s.b:
                if all(_row(row, s.n) for row in value):
                    continue
            case "kv_positions", _ if _row(value, s.n):
                continue
        refuse(where, f"{key[:60]} of {name} must be an attribute of the right form")


def _selection(where: Path, name: str, entry: Any) -> None:
    about = f"selection of {name}"
    given = dict(typed(where, about, entry, dict))
    typed(where, f"selector of {about}", given.pop("selector", None), str)
    typed(where, f"visible of {about}", given.pop("visible", None), dict)
    if not all(isinstance(x, str) or _within(x, 0) for x in given.values()):
        refuse(where, f"{about} must have a selector, numbers below 2**20, and visible")


def _row(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(_within(x) for x in value)


def _within(value: Any, least: int = -LONGEST) -> bool:
    return type(value) is int and least <= value < LONGEST


def _shapes(where: Path, name: str, s: Sizes, found: Tensors) -> None:
    """The tensors every case has, in their shapes."""
    out, lse = (s.b, s.h, s.m, s.e), (s.b, s.h, s.m)
    wanted: dict[str, tuple[int, ...]] = {"out": out, "lse": lse}
    wanted |= {"q": (s.b, s.h, s.m, s.d), "k": (s.b, s.g, s.n, s.d), "v": (s.b, s.g, s.n, s.e)}
    for kind in TYPES:
        wanted |= {f"bound.{kind}.out": out, f"bound.{kind}.lse": lse}
    for tensor, shape in wanted.items():
        if tensor not in found or found[tensor].shape != shape:
            refuse(where, f"{name} must have {tensor} of shape {shape}")


def _inline(where: Path, name: str, entry: Any) -> Tensors:
    """Tensors that stand in the manifest as hexadecimal numbers."""
    found: Tensors = {}
    for tensor, part in typed(where, f"inline of {name}", entry, dict).items():
        about = f"{tensor[:60]} of {name}"
        if not isinstance(part, dict) or part.keys() != {"shape", "values"}:
            refuse(where, f"{about} must have shape and values")
        shape, total = typed(where, f"shape of {about}", part["shape"], list), 1
        for extent in shape:
            if not _within(extent, 0):
                refuse(where, f"{about} must have extents below 2**20")
            total *= extent
        if total > BIGGEST or len(shape) > 8:
            refuse(where, f"{about} must have at most {BIGGEST} numbers and 8 axes")
        try:
            values = numbers(typed(where, f"values of {about}", part["values"], str), total)
        except ValueError as error:
            refuse(where, f"{about}: {error}")
        values.setflags(write=False)
        found[tensor] = values.reshape(shape)
    return found


def _strings(where: Path, name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        refuse(where, f"{name} must be a list of strings")
    return value


def typed(where: Path, name: str, value: Any, kind: type) -> Any:
    """The value, if it is of this type of JSON."""
    if type(value) is not kind:
        refuse(where, f"{name} must be a JSON {kind.__name__}, got {type(value).__name__}")
    return value
