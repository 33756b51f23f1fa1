"""Placeholders of a whole graph as our nodes; layers of one pattern share their lists.

Where all lengths are numbers the lists are stored. Where one is free, or padding moves queries,
they are computed by nodes that come from `exporters.to_onnx(pattern)`.
"""

from __future__ import annotations

from typing import Any

import sparse_ref as sr

from .flex_layouts import Layout
from .op import unspelled
from .placeholders import DOMAIN, OPTIONAL, OVER_BLOCKS, OVER_PATTERN
from .splice import Piece, names_read


def replace_placeholders(
    model: Any, layouts: dict[str, Layout], block_size: int, opset: int
) -> None:
    """Every placeholder of a model as our node, in place."""
    graph = model.graph
    writer = _Writer(graph, layouts, block_size, opset)
    nodes = [one for node in graph.node for one in writer.nodes(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = names_read(graph)
    for tensor in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(tensor)  # what said a mask before
    for info in [one for one in graph.value_info if one.name not in used]:
        graph.value_info.remove(info)


class _Writer:
    """Writes nodes for placeholders, and remembers which lists are there already."""

    def __init__(self, graph: Any, layouts: dict[str, Layout], block_size: int, opset: int):
        self.graph, self.layouts = graph, layouts
        self.block_size, self.opset = block_size, opset
        self.used = names_read(graph)
        self.known: dict[Any, list[str]] = {}

    def nodes(self, node: Any) -> list[Any]:
        """What stands in the place of a node: itself, if it is no placeholder."""
        from onnx import helper

        if node.domain != DOMAIN or node.op_type not in {OVER_PATTERN, OVER_BLOCKS}:
            return [node]
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        said = {key: x.decode() if isinstance(x, bytes) else x for key, x in said.items()}
        if node.op_type == OVER_BLOCKS:
            return [self._over_blocks(node, said)]
        left_out = [""] * len(OPTIONAL)
        given = dict(zip(OPTIONAL, [*node.input[3:], *left_out], strict=False))
        fixed = said["q_len"].isdecimal() and said["kv_len"].isdecimal()
        moves = given["q_start"] or given["tokens"]
        if fixed and not moves and said["dtype"] != "DOUBLE":
            return self._stored(node, said, given)
        return self._computed(node, said, given)

    def _over_blocks(self, node: Any, said: dict[str, Any]) -> Any:
        import exporters

        layout = self.layouts[said["layout"]]
        if said["layout"] not in self.known:
            tensors = exporters.block_tensors(layout.blocks)
            for name in ("block_indices", "block_count", "tile_ids"):
                rows = tensors[name]
                tensors[name] = rows.reshape(layout.batches, -1, *rows.shape[2:])
            self._keep(said["layout"], tensors)
        lse = self._lse(node)
        ours = exporters.attention_node(
            [*node.input, *self.known[said["layout"]]], node.output[0], pattern=sr.Full(),
            block_size=layout.blocks.block_size, scale=said["scale"],
            softcap=said["softcap"] or None, lse=lse,
        )  # fmt: skip
        del ours.metadata_props[:]  # the lists alone know what a mask_mod was
        ours.metadata_props.add(key="sparse_ref.sentence", value="A BlockMask of FlexAttention.")
        return ours

    def _stored(self, node: Any, said: dict[str, Any], given: dict[str, str]) -> list[Any]:
        from onnx import TensorProto, helper

        import exporters

        pattern = unspelled(said["pattern"])
        lengths = int(said["q_len"]), int(said["kv_len"])
        key = said["pattern"], said["heads"], *lengths
        if key not in self.known:
            size, heads = self.block_size, said["heads"]
            blocks = sr.to_blocks(pattern, *lengths, block_size=size, heads=heads)
            self._keep(key, exporters.block_tensors(blocks))
        length, casts = given["key_length"], []
        if length:
            narrow = f"{node.output[0]}.key_length"
            casts = [helper.make_node("Cast", [length], [narrow], to=TensorProto.INT32)]
            length = narrow
        ours = exporters.attention_node(
            [*node.input[:3], *self.known[key], length, given["sinks"]], node.output[0],
            pattern=pattern, block_size=(self.block_size, self.block_size), scale=said["scale"],
            softcap=said["softcap"] or None, lse=self._lse(node),
        )  # fmt: skip
        return [*casts, ours]

    def _lse(self, node: Any) -> str | None:
        """The name of the log-sum-exp, where somebody reads it."""
        name = node.output[1] if len(node.output) > 1 else ""
        return name if name in self.used else None

    def _keep(self, key: Any, tensors: dict[str, Any]) -> None:
        """Lists as initializers."""
        from onnx import numpy_helper

        self.known[key] = [f"pattern_{len(self.known)}.{name}" for name in tensors]
        self.graph.initializer.extend(
            numpy_helper.from_array(tensor, name)
            for name, tensor in zip(self.known[key], tensors.values(), strict=True)
        )

    def _computed(self, node: Any, said: dict[str, Any], given: dict[str, str]) -> list[Any]:
        import exporters

        wanted = {name: bool(given[name]) for name in ("sinks", "q_start", "key_length")}
        model = exporters.to_onnx(
            unspelled(said["pattern"]), heads=said["heads"], kv_heads=said["kv_heads"],
            head_dim=said["head_dim"], value_dim=said["value_dim"], scale=said["scale"],
            softcap=said["softcap"] or None, dtype=DTYPES[said["dtype"]], opset=self.opset,
            **wanted,
        )  # fmt: skip
        outer = dict(zip("qkv", node.input[:3], strict=True)) | {"y": node.output[0]} | given
        piece = Piece(model.graph, outer, f"{node.output[0]}.")
        lengths = said["q_len"], said["kv_len"]
        key = said["pattern"], said["heads"], lengths, given["q_start"], given["tokens"]
        if key in self.known:
            piece.share(self.known[key])
        self.known[key] = piece.lists
        if lse := self._lse(node):
            piece.attention.output.append(lse)
        present = {one.name for one in self.graph.initializer}
        self.graph.initializer.extend(x for x in piece.initializers if x.name not in present)
        return piece.nodes


DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
}
