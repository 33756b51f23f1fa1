"""What patterns look things up in, inside a graph: tables, run-time inputs, explicit pairs.

All are total, as in NumPy: outside the table the answer is its fill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

import sparse_ref as sr
from sparse_ref.patterns.relation import Relation

from .graph import Graph, Symbol

LEVELS = 8  # windows of 1, 2, ..., 128 entries; what is wider gets the range of the whole table
CELL = 64  # queries and keys of a cell in which pairs are counted


class Tables:
    """The tables of one graph, written where all its subgraphs see them, each once.

    Parameters
    ----------
    graph : Graph
    given : dict of str to Symbol
        Run-time inputs by name: int64 [rows, positions], or [rows] for a single number.
    row : Symbol, optional
        The batch row of the positions that are asked about, broadcasting with them; a run-time
        input of one row serves all.
    """

    def __init__(self, graph: Graph, given: dict[str, Symbol], row: Symbol | None = None):
        self.graph, self.given, self.row = graph, given, row
        self.made: dict[Any, Any] = {}

    def __getitem__(self, what: Any) -> Any:
        if what not in self.made:
            with self.graph.outside():
                self.made[what] = self._make(what)
        return self.made[what]

    def _make(self, what: Any) -> Any:
        g = self.graph
        if isinstance(what, Relation):
            return Pairs(g, what)
        if isinstance(what, sr.Runtime):
            return Entries(self, self.given[what.name], fill=-1)
        values = g.lift(what.values).reshape(1, -1)
        return Entries(self, values, what.fill, shared=True)

    def number(self, name: str) -> Symbol:
        """The run-time input of one number, of each position's batch row."""
        values = self.given[name]
        return values.op("Gather", self.row_of(values))

    def row_of(self, values: Symbol) -> Symbol:
        """Which row of an input belongs to each position."""
        assert self.row is not None, "a run-time input needs batch rows"
        return self.row.op("Min", values.size(0) - 1)


class Entries:
    """Rows of integers over the positions 0, 1, ..., and the fill everywhere else."""

    def __init__(self, tables: Tables, values: Symbol, fill: int, *, shared: bool = False):
        g = self.graph = tables.graph
        self.tables, self.shared = tables, shared
        edge = g.op("Expand", fill, g.vector(values.size(0), 1))
        self.values = g.op("Concat", edge, values, edge, axis=1)  # the fill at -1 and at the end
        self.width = self.values.size(1)
        self._ranges: Symbol | None = None

    def at(self, index: Symbol) -> Symbol:
        """The entry of every position."""
        return self._pick(self.values, self._column(index))

    def extent(self, lo: Symbol, hi: Symbol) -> tuple[Symbol, Symbol]:
        """The least and the greatest entry over lo..hi, or over all where that is wide."""
        first, last = self._column(lo), self._column(hi)
        count = (last - first + 1).op("Min", 2**LEVELS + 1)
        counts = np.arange(2**LEVELS + 2)
        exact = np.frexp(np.maximum(counts, 1))[1].astype(np.int64) - 1
        fitting = np.where(counts > 2**LEVELS, LEVELS, exact.clip(max=LEVELS - 1))
        level, step = (self.graph.lift(x).op("Gather", count) for x in (fitting, 2**fitting))
        at = [level * self.width + x for x in (first, (last - step + 1).op("Max", first))]
        windows = self._windows()
        least = [self._pick(windows, x, LEVELS + 1) for x in at]
        negated = self.values.op("Size") * (LEVELS + 1)
        greatest = [self._pick(windows, x + negated, LEVELS + 1) for x in at]
        return least[0].op("Min", least[1]), -greatest[0].op("Min", greatest[1])

    def _column(self, position: Symbol) -> Symbol:
        return (position + 1).op("Max", 0).op("Min", self.width - 1)

    def _pick(self, values: Symbol, at: Symbol, copies: int = 1) -> Symbol:
        """Entries of flat rows, `copies` tables long."""
        if not self.shared:
            at = at + self.tables.row_of(self.values) * (self.width * copies)
        return values.reshape(-1).op("Gather", at)

    def _windows(self) -> Symbol:
        """Minimum over windows of 1, 2, 4, ... entries from each, then over all: [2, rows, ...].

        First of the entries, then of what is left when they change their sign: for maxima.
        """
        if self._ranges is None:
            g = self.graph
            with g.outside():
                both = g.op("Concat", self.values, -self.values, axis=0)
                levels, position = [both], g.range(self.width)
                for j in range(LEVELS - 1):
                    later = (position + 2**j).op("Min", self.width - 1)
                    levels.append(levels[-1].op("Min", levels[-1].op("Gather", later, axis=1)))
                whole = both.op("ReduceMin", [1], keepdims=1).op("Expand", both.op("Shape"))
                self._ranges = g.op("Concat", *levels, whole, axis=1)
        return self._ranges


class Pairs:
    """An explicit set of pairs: dense in the running graph, listed in the file."""

    def __init__(self, graph: Graph, relation: Relation):
        self.graph, self.relation = graph, relation
        self.height, self.width = len(relation), int(relation.rows.indices.max(initial=0)) + 1
        if self.height * self.width >= 2**31:
            raise ValueError(
                f"pattern must list keys within 2**31 pairs where the graph evaluates it, got "
                f"{self.height} x {self.width}"
            )
        self._dense: Symbol | None = None

    def has(self, q: Symbol, k: Symbol) -> Symbol:
        """Whether each pair is one of them."""
        inside = (q >= 0) & (q < self.height) & (k >= 0) & (k < self.width)
        flat = inside.where(q * self.width + k, self.height * self.width)
        return self._table().op("Gather", flat).cast(TensorProto.BOOL)

    def count(self, q_lo: Symbol, q_hi: Symbol, k_lo: Symbol, k_hi: Symbol) -> Symbol:
        """0 or the area where cells tell that no pair or every pair is there, else more than it."""
        q_cells, k_cells = ((lo // CELL, hi // CELL + 1) for lo, hi in ((q_lo, q_hi), (k_lo, k_hi)))
        some, all_ = (self._sum(sums, q_cells, k_cells) for sums in self._cells())
        cells = (q_cells[1] - q_cells[0]) * (k_cells[1] - k_cells[0])
        area = (q_hi - q_lo + 1) * (k_hi - k_lo + 1)
        return (some > 0).where((all_ == cells).where(area, area + 1), 0)

    def _table(self) -> Symbol:
        """One byte a pair, and a last one for everything outside."""
        if self._dense is None:
            g, rows = self.graph, self.relation.rows
            flat = (rows.row_of * self.width + rows.indices).astype(np.int32)
            zero = numpy_helper.from_array(np.zeros(1, dtype=np.uint8))
            with g.outside():
                empty = g.op("ConstantOfShape", [self.height * self.width + 1], value=zero)
                ones = np.ones(len(flat), dtype=np.uint8)
                self._dense = empty.op("ScatterElements", flat, ones, axis=0)
        return self._dense

    def _cells(self) -> tuple[Symbol, Symbol]:
        """Sums over the cells before each: cells with a pair, and cells with all pairs."""
        rows = self.relation.rows
        shape = -(-self.height // CELL), -(-self.width // CELL)
        cell = np.ravel_multi_index((rows.row_of // CELL, rows.indices // CELL), shape)
        pairs = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        sums = [
            np.pad(which.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            for which in (pairs > 0, pairs == CELL * CELL)
        ]
        self.cells = shape
        return self.graph.lift(sums[0]), self.graph.lift(sums[1])

    def _sum(self, sums: Symbol, q: tuple[Symbol, Symbol], k: tuple[Symbol, Symbol]) -> Symbol:
        """Over the cells q[0] .. q[1] - 1 by k[0] .. k[1] - 1."""
        (up, down), (left, right) = (
            tuple(x.op("Max", 0).op("Min", end) for x in side)
            for side, end in zip((q, k), self.cells, strict=True)
        )
        flat, stride = sums.reshape(-1), self.cells[1] + 1

        def before(row: Symbol, column: Symbol) -> Symbol:
            return flat.op("Gather", row * stride + column)

        return (before(down, right) - before(up, right)) - (before(down, left) - before(up, left))
