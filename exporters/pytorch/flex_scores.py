"""What a FlexAttention score_mod says, where our operator can say it too: a softcap, a mask.

It is read off the graph that torch made of it, never guessed from samples.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx

aten = torch.ops.aten
MULTIPLY = aten.mul.Tensor, aten.mul.Scalar
DIVIDE = aten.div.Tensor, aten.div.Scalar
COPIES = aten.lift_fresh_copy.default, aten.clone.default, aten.detach.default, aten.alias.default
NEW = aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.new_empty.default
CHOOSE = aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar


class Scores(NamedTuple):
    """A score_mod that is softcap * tanh(score / softcap) (0: none), and maybe hides keys."""

    softcap: float
    hide: bool
    module: fx.GraphModule
    buffers: tuple[Any, ...]

    def seen(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether the key keeps a finite score."""
        score: Tensor = self.module(torch.zeros(()), b, h, q, k, *self.buffers)
        return ~torch.isneginf(score)


def reads(module: fx.GraphModule, argument: int) -> bool:
    """Whether a mod looks at its argument, and not only at the argument's type."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return any(user.target not in NEW for user in inputs[argument].users)


def as_scores(module: fx.GraphModule, buffers: tuple[Any, ...]) -> Scores:
    """Read a score_mod's graph.

    Raises
    ------
    NotImplementedError
        If it is more than a softcap under a mask of -inf.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    constants = dict(zip(inputs[5:], buffers, strict=True))
    (output,) = module.graph.output_node().args
    value, hide = _single(output), False

    def number(x: Any) -> float | None:
        """The number that a literal, a scalar buffer or a full() is."""
        if isinstance(x, fx.Node) and x.op == "get_attr":
            x = getattr(module, str(x.target))
        elif isinstance(x, fx.Node) and x in constants:
            x = constants[x]
        elif isinstance(x, fx.Node) and x.target in {aten.full.default, aten.scalar_tensor.default}:
            x = x.args[-1]
        elif isinstance(x, fx.Node) and x.target in COPIES:
            return number(x.args[0])
        if isinstance(x, Tensor) and x.numel() == 1:
            x = x.item()
        return float(x) if isinstance(x, (int, float)) else None

    while value.target in CHOOSE:
        condition, kept, other = value.args
        if number(kept) == -math.inf:  # where(hidden, -inf, score)
            kept, other = other, kept
        if number(other) != -math.inf or _depends(condition, inputs[0]):
            break
        value, hide = kept, True
    softcap = 0.0 if value is inputs[0] else _softcap(value, inputs[0], number)
    if softcap is None:
        steps = [getattr(node.target, "__name__", node.op) for node in module.graph.nodes]
        middle = ", ".join(step for step in steps if step not in {"placeholder", "output"})
        refuse(f"score_mod must be a softcap, a mask of -inf, or nothing, got {middle}")
    return Scores(softcap, hide, module, buffers)


def _softcap(value: Any, score: fx.Node, number: Any) -> float | None:
    """The c of c * tanh(score / c), which may be written score * (1 / c)."""
    outer = _scaled(value, MULTIPLY, number)
    if outer is None or outer[0].target is not aten.tanh.default:
        return None
    cap, inner = outer[1], outer[0].args[0]
    for kind, power in ((DIVIDE, 1), (MULTIPLY, -1)):
        found = _scaled(inner, kind, number)
        if found is not None and found[0] is score and cap > 0 and found[1]:
            same = abs(found[1] ** power / cap - 1) < 2.0**-23
            return cap if same else None
    return None


def _scaled(node: Any, kinds: Any, number: Any) -> tuple[fx.Node, float] | None:
    """(x, c) of c * x or x * c, or of x / c."""
    if not isinstance(node, fx.Node) or node.target not in kinds:
        return None
    a, b = node.args
    orders = [(a, b)] if kinds is DIVIDE else [(a, b), (b, a)]
    for x, c in orders:
        if isinstance(x, fx.Node) and (factor := number(c)) is not None:
            return x, factor
    return None


def _depends(node: Any, on: fx.Node) -> bool:
    return isinstance(node, fx.Node) and (
        node is on or any(_depends(one, on) for one in node.all_input_nodes)
    )


def _single(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def refuse(sentence: str) -> NoReturn:
    """All that cannot be exported is refused in one form."""
    raise NotImplementedError(f"FlexAttention cannot be exported here: {sentence}")
