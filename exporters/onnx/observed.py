"""The attention nodes of a model: what each was asked to compute, and the values it got."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import helper

import sparse_ref as sr

from .schema import DOMAIN, INPUTS, OP
from .selections_judged import Choice

PATTERN = "sparse_ref.pattern"  # keys of metadata
SELECTION = "sparse_ref.selection"
SENTENCE = "sparse_ref.sentence"
VALUES = "sparse_ref.values"
LISTS = list(INPUTS)[3:7]

Array = NDArray[Any]


class NoPatternError(ValueError):
    """A model that says no pattern."""


@dataclass(frozen=True)
class Observed:
    """One attention of a model: its pattern, and the names of the values around it.

    `kv_len` names the number of keys where key and value are the whole buffer of a cache.
    `only_past` says that there must be no more queries than keys.
    `lists` are the names of block_indices, block_count, tile_ids and tile_masks, if it has them.
    `ours` says that the operator is our own, with the arithmetic that it promises.
    `choice` says how keys are chosen from the content; `pattern` is then what they are chosen from.
    """

    name: str
    operator: str
    pattern: sr.Pattern
    query: str
    key: str
    value: str
    output: str
    scale: float
    softcap: float | None = None
    lse: str | None = None
    sinks: str | None = None
    key_length: str | None = None
    q_start: str | None = None
    kv_len: str | None = None
    only_past: bool = False
    lists: tuple[str, ...] = ()
    ours: bool = False
    choice: Choice | None = None

    @property
    def tensors(self) -> list[str]:
        """The names of all values that judging it takes."""
        names = [self.query, self.key, self.value, self.output, *self.lists]
        names += self.choice.scored if self.choice is not None else ()
        optional = [self.lse, self.sinks, self.key_length, self.q_start, self.kv_len]
        return list(dict.fromkeys([*names, *filter(None, optional), *runtime_names(self.pattern)]))


def observed(model: Any) -> list[Observed]:
    """The attentions of a model, from the metadata of its nodes or, if inlined, its own.

    Raises
    ------
    NoPatternError
        If there is none, or our operator stands somewhere without one.
    ValueError
        If what the metadata says cannot be read.
    """
    found = []
    for node, outside in _nodes(model.graph, outside=True):
        metadata, ours = _metadata(node), (node.domain, node.op_type) == (DOMAIN, OP)
        if not metadata.keys() & {PATTERN, SELECTION} and not ours:
            continue
        if not outside:  # its values are nobody's outputs
            raise NoPatternError(
                f"model must have its attention in the main graph, got {node.name!r} in a subgraph"
            )
        if not metadata.keys() & {PATTERN, SELECTION}:
            raise NoPatternError(f"{node.name!r} must have {PATTERN} in its metadata, got none")
        found.append(_read(node, metadata))
    own = _metadata(model)
    if not found and own.keys() & {PATTERN, SELECTION}:
        found = [_read(None, own)]
    if not found:
        raise NoPatternError(f"model must have a node with {PATTERN} in its metadata, got none")
    return found


def _nodes(graph: Any, *, outside: bool) -> Iterator[tuple[Any, bool]]:
    """Every node, and whether it stands in the main graph."""
    for node in graph.node:
        yield node, outside
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, outside=False)


def say(item: Any, pattern: sr.Pattern, sentence: str, **values: Any) -> None:
    """Write the pattern into the metadata of a node or model, as `observed` reads it.

    `values` are fields of `Observed` that the node itself does not say.
    """
    said = {
        PATTERN: json.dumps(sr.to_dict(pattern), separators=(",", ":")),
        SENTENCE: sentence,
        VALUES: json.dumps({name: value for name, value in values.items() if value is not None}),
    }
    kept = _metadata(item) | said
    del item.metadata_props[:]
    for key, value in kept.items():
        item.metadata_props.add(key=key, value=value)


def _metadata(item: Any) -> dict[str, str]:
    return {one.key: one.value for one in item.metadata_props}


def _read(node: Any, metadata: dict[str, str]) -> Observed:
    """What a node and its metadata say; the metadata goes first."""
    named = f"the node {node.name!r}" if node else "the model"
    key, choice = (SELECTION if SELECTION in metadata else PATTERN), None
    try:
        if key == SELECTION:
            choice = Choice.of(json.loads(metadata[key]))
        pattern = choice.visible if choice else sr.from_dict(json.loads(metadata[key]))
        said = json.loads(metadata.get(VALUES, "{}"))
        own = _of_our_node(node) if node and (node.domain, node.op_type) == (DOMAIN, OP) else {}
        defaults = {"name": node.name if node else "inlined", "operator": _operator(node)}
        said |= {"lists": tuple(said["lists"])} if "lists" in said else {}
        return Observed(pattern=pattern, choice=choice, **(defaults | own | said))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{key} of {named} must be what to_onnx wrote: {error}") from None


def _operator(node: Any) -> str:
    if node is None:
        return "inlined"
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _of_our_node(node: Any) -> dict[str, Any]:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    named = dict(zip(INPUTS, node.input, strict=False))
    return {
        **{name: named[name] for name in ("query", "key", "value")},
        "output": node.output[0],
        "lse": node.output[1] if len(node.output) > 1 else None,
        "scale": attributes["scale"],
        "softcap": attributes["softcap"] or None,
        **{name: named.get(name) or None for name in ("key_length", "sinks")},
        "lists": tuple(named[name] for name in LISTS),
        "ours": True,
    }


def as_attribute(number: float | None) -> float | None:
    """A number as ONNX keeps it in an attribute: in float32."""
    return None if number is None else float(np.float32(number))


def scale_in_file(scale: float, dtype: str) -> float:
    """The scale as a file has it: an attribute, but float64 models multiply beforehand.

    >>> scale_in_file(0.1, "float64") - scale_in_file(0.1, "float16") != 0
    True
    """
    return scale if dtype == "float64" else float(np.float32(scale))


def runtime_names(pattern: sr.Pattern) -> list[str]:
    """The names of the run-time inputs that a pattern reads.

    >>> runtime_names(sr.Causal() & sr.Document(sr.Runtime("ids")))
    ['ids']
    """
    return list(dict.fromkeys(one.name for _, one in _runtimes(pattern)))


def _runtimes(pattern: sr.Pattern) -> Iterator[tuple[str, sr.Runtime]]:
    for field in fields(cast(Any, pattern)):
        value = getattr(pattern, field.name)
        if isinstance(value, sr.Runtime):
            yield field.name, value
    for child in pattern.children:
        yield from _runtimes(child)


def with_values(pattern: sr.Pattern, given: Mapping[str, Array], batch: int) -> sr.Pattern:
    """The pattern with the values of its run-time inputs in place, one for each batch row.

    >>> with_values(sr.Keys(sr.Runtime("seen")), {"seen": np.array([[True, False]])}, 1)
    PerBatch(patterns=(Keys(tokens=range(0, 1)),))
    """
    if not runtime_names(pattern):
        return pattern
    rows = [
        _filled(pattern.for_batch(i), {name: x[i % len(x)] for name, x in given.items()})
        for i in range(batch)
    ]
    return sr.PerBatch(rows) if rows else sr.Full()


def _filled(pattern: sr.Pattern, given: Mapping[str, Array]) -> sr.Pattern:
    changed: dict[str, Any] = {}
    for field in fields(cast(Any, pattern)):
        value = getattr(pattern, field.name)
        if isinstance(value, sr.Runtime):
            got = given[value.name]
            changed[field.name] = int(got) if field.name == "prefix" else got
        elif isinstance(value, sr.Pattern):
            changed[field.name] = _filled(value, given)
        elif field.name == "patterns":
            changed[field.name] = tuple(_filled(one, given) for one in value)
    return replace(cast(Any, pattern), **changed) if changed else pattern
