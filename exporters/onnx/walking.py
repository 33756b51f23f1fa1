"""Ways through a stranger's graph: from a softmax to its products, and from these to q, k, v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ACROSS = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Tanh", "Reshape", "Transpose", "Concat",
          "Identity", "Squeeze", "Unsqueeze", "Slice", "Max", "Min", "Clip", "Dropout", "Expand",
          "ScatterND", "IsNaN", "Softmax"}  # fmt: skip
PRODUCTS = {"MatMul", "FusedMatMul", "Einsum", "Gemm"}
MOVES = {"Reshape", "Expand", "Unsqueeze", "Squeeze", "Cast", "Identity", "Mul", "Div", "Tile"}
FAR = 24  # nodes between a product and its softmax


@dataclass(frozen=True)
class Place:
    """An input of a node that q, k or v enters by, and how its axes are laid out.

    `axes` are those of the value in the order (batch, head, token, size): "bhsd", "bshd", "bhds",
    "bsD" with heads and size in one axis, or "Bsd" with batch and heads in one. Where `value` is
    given it is that value, wherever it is used, and not one input.
    """

    node: int
    slot: int
    axes: str
    value: str = ""


class UnreadError(Exception):
    """An attention that was found and cannot be read, with the reason."""


@dataclass
class Graph:
    """The main graph of a model with the shapes of a real run."""

    nodes: list[Any]
    constant: set[str]
    shapes: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        self.made = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.used: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self.used.setdefault(name, []).append(i)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, ())

    def product_before(self, start: int) -> int | None:
        """The product of two computed values whose scores a softmax is of."""
        queue, known = [(start, 0)], {start}
        while queue:
            at, far = queue.pop(0)
            node = self.nodes[at]
            if node.op_type in PRODUCTS:
                if not self.constant & set(node.input[:2]) and len(set(node.input[:2])) == 2:
                    return at
                continue
            if node.op_type not in ACROSS or far > FAR:
                continue
            for name in node.input:
                before = self.made.get(name)
                if before is not None and before not in known and len(self.shape(name)) >= 3:
                    known.add(before)
                    queue.append((before, far + 1))
        return None

    def product_after(self, start: int) -> tuple[int, int] | None:
        """The product that takes the weights of a softmax, and by which input."""
        queue, known = list(self.nodes[start].output[:1]), set()
        while queue:
            name = queue.pop(0)
            for at in self.used.get(name, []):
                node = self.nodes[at]
                if node.op_type in PRODUCTS:
                    return at, list(node.input).index(name)
                if node.op_type in ACROSS - {"Softmax"} and at not in known:
                    known.add(at)
                    queue += node.output
        return None

    def entry(self, at: int, slot: int, *, turned: bool) -> Place:
        """Where q, k or v enters the way to a product: before scales, repeats and transposes.

        `turned` says that its last axis is tokens and the one before it sizes, as of k in q k^T.
        """
        best, seen_turned = None, turned
        while True:
            name = self.nodes[at].input[slot]
            rank = len(self.shape(name))
            if rank == 4:
                best = Place(at, slot, "bhds" if seen_turned else "bhsd")
            elif rank == 3 and (best is None or "B" in best.axes):
                best = Place(at, slot, "Bds" if seen_turned else "Bsd")
            before = self.made.get(name)
            step = None if before is None else self._step(before, name)
            if step is None:
                break
            at, (slot, turns, bshd) = before, step  # type: ignore[assignment]
            if bshd is not None:
                return Place(at, slot, bshd)
            seen_turned ^= turns
        if best is None:
            raise UnreadError(f"{name!r} has no axis of heads, but the shape {self.shape(name)}")
        return best

    def _step(self, at: int, name: str) -> tuple[int, bool, str | None] | None:
        """The input a node takes its values from if it only moves or scales them; turned or not."""
        node, after = self.nodes[at], self.shape(name)
        if node.op_type == "Transpose":
            perm = next((list(one.ints) for one in node.attribute if one.name == "perm"), [])
            rank = len(after)
            if perm == [*range(rank - 2), rank - 1, rank - 2]:
                return 0, True, None
            return (0, False, "bshd") if perm == [0, 2, 3, 1] else None
        if node.op_type not in MOVES:
            return None
        if node.op_type in ("Mul", "Div"):
            for slot, other in ((0, 1), (1, 0)):
                if int(np.prod(self.shape(node.input[other]))) == 1 and (slot, node.op_type) != (
                    1,
                    "Div",
                ):
                    return slot, False, None
            return None
        same = self.shape(node.input[0])[-2:] == after[-2:]
        return (0, False, None) if same and len(self.shape(node.input[0])) >= 3 else None
