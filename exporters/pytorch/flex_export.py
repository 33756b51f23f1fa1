"""FlexAttention in an exported program becomes our operator over lists of blocks.

torch.onnx has no translation of FlexAttention. Its higher-order operator is private to torch, so
all that is known of it stands in this file, is looked at before it is believed, and is refused
where it is not as expected. A BlockMask's lists become ours; its mask_mod is replayed, by torch
itself, on the positions of the listed blocks.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from .flex_layouts import Call, Layout, layout
from .flex_scores import as_scores, refuse

TESTED = ("2.13.0",)  # versions of torch whose operator is laid out as `_call` reads it

# It stands in exported programs only: there is nothing to run before its lists are in the file.
torch.library.define(
    "sparse_ref::attention_over_blocks",
    "(Tensor q, Tensor k, Tensor v, str layout, float scale, float softcap) -> (Tensor, Tensor)",
)


@torch.library.register_fake("sparse_ref::attention_over_blocks")  # type: ignore[untyped-decorator]
def _(q: Tensor, k: Tensor, v: Tensor, layout: str, scale: float, softcap: float) -> Any:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=wide)


def flex_to_blocks(program: ExportedProgram) -> tuple[ExportedProgram, dict[str, Layout]]:
    """The program with our operator in place of FlexAttention's, and the layouts it names.

    Raises
    ------
    NotImplementedError
        If torch lays the operator out in a way this file does not know; if a BlockMask depends on
        an input of the model; if a score_mod is none of: nothing, a softcap, a mask.
    """
    calls = _calls(program)
    if not calls:
        return program, {}
    _refuse_inputs(program, calls)
    program = program.run_decompositions({})  # BlockMasks made in forward become plain operators
    layouts: dict[str, Layout] = {}
    names: dict[Any, str] = {}
    constants = _Constants(program)
    for node in _calls(program):
        call = _call(node, constants)
        found = layout(call)
        name = names.setdefault(_content(found), f"flex_{len(names)}")
        layouts[name] = found
        _replace(node, (*node.args[:3], name, call.scale, call.scores.softcap))
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):  # they would keep what made a BlockMask alive
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return program, layouts


def _calls(program: ExportedProgram) -> list[fx.Node]:
    """The calls of FlexAttention's operator, in the order in which they run."""
    kind = torch.ops.higher_order.flex_attention
    return [node for node in program.graph.nodes if node.target is kind]


def _refuse_inputs(program: ExportedProgram, calls: list[fx.Node]) -> None:
    """What a layout is made of must be known when the file is written."""
    given = set(program.graph_signature.user_inputs)
    ahead, seen = [one for call in calls for one in _nodes(call.args[4:])], set[fx.Node]()
    while ahead:
        node = ahead.pop()
        if node.name in given:
            refuse(f"a BlockMask, mask_mod or score_mod depends on the model's input {node.name}")
        if node not in seen:
            seen.add(node)
            ahead.extend(node.all_input_nodes)


def _nodes(x: Any) -> list[fx.Node]:
    if isinstance(x, (tuple, list)):
        return [node for one in x for node in _nodes(one)]
    return [x] if isinstance(x, fx.Node) else []


class _Constants:
    """Values of nodes that depend on no input of the model."""

    def __init__(self, program: ExportedProgram):
        self.module, self.known = program.graph_module, {}
        stored = {**program.state_dict, **program.constants}
        for one in program.graph_signature.input_specs:
            if one.kind != InputKind.USER_INPUT:
                self.known[one.arg.name] = stored.get(one.target)

    def __call__(self, x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(map(self, x))
        if isinstance(x, dict):
            return {key: self(value) for key, value in x.items()}
        if not isinstance(x, fx.Node):
            return x
        if x.name not in self.known:
            self.known[x.name] = self._computed(x)
        return self.known[x.name]

    def _computed(self, x: fx.Node) -> Any:
        if x.op == "get_attr":
            return getattr(self.module, str(x.target))
        assert callable(x.target)
        return x.target(*self(x.args), **self(x.kwargs))


def _call(node: fx.Node, constants: _Constants) -> Call:
    """Read the operator's arguments; refuse what does not look as in the tested versions."""
    args: Any = (*node.args, *((),) * (9 - len(node.args)))
    q, k, _, score_mod, parts, scale, _, score_buffers, mask_buffers = args[:9]
    known = len(args) == 9 and isinstance(parts, tuple) and len(parts) >= 13
    known = known and isinstance(scale, float)
    known = known and all(isinstance(size, int) for size in parts[-3:-1])
    if not known or node.kwargs:
        refuse(
            "torch lays out its flex_attention operator in a new way "
            f"(torch {torch.__version__}; tested: {', '.join(TESTED)})"
        )
    lists = constants(parts[2:6])
    mask_mod, score = constants(parts[-1]), constants(score_mod)
    queries, keys = q.meta["val"], k.meta["val"]
    shape = *queries.shape[:3], keys.shape[2]
    if not all(isinstance(size, int) for size in shape[1:]):
        refuse("with FlexAttention lengths are those of the example: they must not be free")
    return Call(
        shape=shape,
        scale=scale,
        block_size=tuple(parts[-3:-1]),
        partial=(lists[0], lists[1]),
        full=None if lists[2] is None else (lists[2], lists[3]),
        mask_mod=mask_mod,
        mask_buffers=constants(mask_buffers),
        scores=as_scores(score, constants(score_buffers)),
    )


def _content(layout: Layout) -> Any:
    blocks = layout.blocks
    arrays = blocks.indptr, blocks.indices, blocks.tile_ids, blocks.tile_masks
    return layout.batches, blocks.q_len, blocks.kv_len, *(x.tobytes() for x in arrays)


def _replace(node: fx.Node, args: tuple[Any, ...]) -> None:
    """Our operator in place of FlexAttention's, whose log-sum-exp is in units of log 2."""
    graph = node.graph
    with graph.inserting_before(node):
        ours = graph.call_function(torch.ops.sparse_ref.attention_over_blocks.default, args)
        ours.meta["val"] = node.meta["val"][:2]
    for user in list(node.users):
        which: Any = user.args[1]
        if which == 2 and user.users:
            refuse("the maxima of the scores have no place in the file: ask for no max_scores")
        if which < 2:
            with graph.inserting_before(user):
                one = graph.call_function(operator.getitem, (ours, which))
                one.meta["val"] = user.meta["val"]
                if which == 1:
                    one = graph.call_function(torch.ops.aten.mul.Tensor, (one, 1 / math.log(2)))
                    one.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(one)
        graph.erase_node(user)
    graph.erase_node(node)
