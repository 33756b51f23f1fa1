"""A pattern evaluated in a graph: its predicate, called on Symbols or on Spans of them."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace
from typing import Any

from onnx import TensorProto

import sparse_ref as sr
from sparse_ref.patterns.relation import Relation

from .graph import Graph, Symbol


def evaluate(graph: Graph, pattern: sr.Pattern, q: Symbol, k: Symbol) -> Symbol:
    """Whether the queries at positions q may attend to the keys at positions k.

    Parameters
    ----------
    graph : Graph
        Its `tables` are `Tables`, with every run-time input of the pattern.
    pattern : Pattern
        Of one head and one batch row; of a multiset, the support.
    q, k : Symbol of int64
        They broadcast against each other.

    Returns
    -------
    Symbol of bool that broadcasts to their shape: one element where the answer is a constant.
    """
    return graph.lift(bound(pattern)(q, k))


def counted(graph: Graph, pattern: sr.Pattern, q: Symbol, k: Symbol) -> Symbol:
    """How often each pair counts, as int32: `evaluate` for multisets."""
    several = [evaluate(graph, part, q, k).cast(TensorProto.INT32) for part in pattern.parts]
    return functools.reduce(operator.add, several)


def bound(pattern: sr.Pattern) -> sr.Pattern:
    """The same pattern with tables that Spans of Symbols can ask."""
    match pattern:
        case sr.Keys() | sr.Rows() | sr.Global() if isinstance(pattern.tokens, sr.Runtime):
            return replace(pattern, tokens=_Flags(pattern.tokens.name))
        case sr.RandomKeys():
            return sr.Tokens(_Counted(pattern.relation.rows))
        case sr.Tokens():
            return sr.Tokens(_Counted(pattern.csr.rows))
        case sr.BlockPattern():
            return sr.BlockPattern(_Counted(pattern.blocks.rows), pattern.block_size)
    return pattern._with(bound)


def parted(pattern: sr.Pattern) -> sr.Pattern:
    """An equal pattern whose parts under & | ~ depend on as little as they can.

    `Global` of queries or keys becomes the one or the other, and so on: on most tiles one of them
    is settled, and a part of keys alone repeats down every column.
    """
    match pattern:
        case sr.Global(tokens):
            return sr.Rows(tokens) | sr.Keys(tokens)
        case sr.PrefixLM(int(prefix)):
            return sr.Causal() | sr.Sink(prefix)
        case sr.Blocked(inner, size):
            return _through(parted(inner), size)
        case sr.And() | sr.Or():
            return type(pattern)(tuple(parted(one) for one in pattern.patterns))
        case sr.Not(inner):
            return ~parted(inner)
    return pattern


def _through(pattern: sr.Pattern, size: int) -> sr.Pattern:
    """`Blocked` of an expression as the expression of `Blocked`s."""
    match pattern:
        case sr.And() | sr.Or():
            return type(pattern)(tuple(_through(one, size) for one in pattern.patterns))
        case sr.Not(inner):
            return ~_through(inner, size)
    return sr.Blocked(pattern, size)


class _Flags(sr.Runtime):
    """A run-time table of truths, whose range over a Span is a verdict."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) == 1


class _Counted(Relation):
    """A relation that counts in a graph, for Spans of Symbols."""

    def count(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        if not isinstance(q_lo, Symbol):
            return super().count(q_lo, q_hi, k_lo, k_hi)
        return q_lo.graph.tables[self].count(q_lo, q_hi, k_lo, k_hi)
