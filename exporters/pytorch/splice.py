"""A model of one attention as a piece of another graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .placeholders import DOMAIN

LISTS = slice(3, 7)  # of the inputs of our operator


class Piece:
    """The nodes and initializers of a model of one attention, under names of their own.

    Parameters
    ----------
    graph : onnx.GraphProto
        Its one node of our operator reads the lists that its other nodes compute.
    outer : dict
        What its inputs and its output are called in the graph that it goes into.
    prefix : str
        Of all other names.
    """

    def __init__(self, graph: Any, outer: dict[str, str], prefix: str):
        self.nodes, self.initializers = list(graph.node), list(graph.initializer)
        self.outer, self.prefix = outer, prefix
        for node in self.nodes:
            self._rename(node)
        for tensor in self.initializers:
            tensor.name = self._name(tensor.name)

    @property
    def attention(self) -> Any:
        """The node of our operator."""
        return next(node for node in self.nodes if node.domain == DOMAIN)

    @property
    def lists(self) -> list[str]:
        """The names of the block lists."""
        return list(self.attention.input[LISTS])

    def share(self, lists: list[str]) -> None:
        """Read these lists instead, and leave out what computed the own ones."""
        self.attention.input[LISTS] = lists
        needed = {self.outer["y"]}
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(_names_read(node))
        self.nodes = [node for node in self.nodes if needed.intersection(node.output)]
        self.initializers = [one for one in self.initializers if one.name in needed]

    def _name(self, name: str) -> str:
        """Neutral tensors of `exporters.finish` are one for all pieces."""
        if not name or name.startswith(f"{DOMAIN}."):
            return name
        return self.outer.get(name, self.prefix + name)

    def _rename(self, node: Any) -> None:
        node.name = node.name and self.prefix + node.name
        for names in (node.input, node.output):
            names[:] = [self._name(name) for name in names]
        for graph in _subgraphs(node):
            for one in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                one.name = self._name(one.name)
            for inner in graph.node:
                self._rename(inner)


def names_read(graph: Any) -> set[str]:
    """Names of values that are read, in the graph itself or inside its nodes, or put out."""
    outputs = {value.name for value in graph.output}
    return outputs.union(*(set(_names_read(node)) for node in graph.node))


def _names_read(node: Any) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        yield from names_read(graph)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
