"""A selector and the attention over what it chooses, as an ONNX model of standard operators.

Queries are scored some at a time, so that no matrix of all queries and all keys is ever there. What
each query chooses is one list of the operator: its blocks of queries are single ones.
"""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

import sparse_ref as sr
from sparse_ref import selection
from sparse_ref._arrays import integer

from .graph import Graph
from .interface import element_type, inputs, outputs
from .lookups import Tables
from .nodes import attention_node, finish
from .observed import SELECTION, SENTENCE, VALUES, as_attribute
from .pattern_model import OPSET, inlined
from .request import Request
from .selections_lists import lists_of
from .selections_rules import RULES, Scene

INDEXERS = ("lightning_indexer", "msa")  # score with inputs of their own
LISTS = {  # as many as what of the request; None is one for all
    "topk_keys": "heads", "topk_blocks": "heads", "moba": "heads", "nsa_blocks": "kv_heads",
    "msa": "kv_heads", "lightning_indexer": None,
}  # fmt: skip


def selection_to_onnx(
    selector: str, *, heads: int, kv_heads: int | None = None, head_dim: int,
    value_dim: int | None = None, dtype: str = "float32", scale: float | None = None,
    softcap: float | None = None, index_heads: int | None = None, index_dim: int | None = None,
    visible: sr.Pattern = sr.Causal(), indices: bool = False,  # noqa: B008 - a value
    mode: str = "custom", body: str = "loop", opset: int | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Choose keys from the content, then attend to them, as an onnx.ModelProto.

    Any batch, any number of queries and keys >= 1; the queries are the last of the positions.
    Scores are float32, or float64 from float64. Equal scores are in the order of `sr.selection`,
    spelled out in the graph; but two equal keys may get scores that differ in the last bit, where a
    runtime's matrix product adds up in another order at the edge of its tiles. `validate_onnx`
    judges the file: what it chooses, and the attention over that.

    Parameters
    ----------
    selector : "topk_keys", "topk_blocks", "lightning_indexer", "msa", "moba" or "nsa_blocks"
        A function of `sparse_ref.selection`, whose docstring is the spec.
    heads, kv_heads, head_dim, value_dim, dtype, scale, softcap, opset
        As `to_onnx` takes them; q, k, v and y as well.
    index_heads, index_dim : int
        Of the indexers: the model has inputs index_q [batch, index_heads, q_len, index_dim] and
        index_k [batch, 1, kv_len, index_dim]; `lightning_indexer` also index_weights [batch,
        q_len, index_heads]. `msa` has one index head for each key/value head.
    visible : Pattern
        What a query may see at all, alike for all heads and batch rows, and of any length.
    indices : bool
        Whether there is an output indices, int32 [batch, lists, q_len, most]: what was chosen, as
        `Selection.indices`.
    mode : "custom" or "inline"
    body : "loop" or "gather"
    parameters
        Of the selector: count, block_size and so on.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of this.

    Examples
    --------
    >>> model = selection_to_onnx("moba", heads=4, kv_heads=2, head_dim=8, count=3, block_size=16)
    >>> [one.name for one in model.graph.input], model.ByteSize() < 65536
    (['q', 'k', 'v'], True)
    """
    request = Request(
        visible, heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim,
        dtype=dtype, scale=scale, softcap=softcap, opset=opset,
    )  # fmt: skip
    chosen = _parameters(selector, visible, parameters)
    if mode not in ("custom", "inline"):
        raise ValueError(f"mode must be one of custom, inline, got {mode!r}")
    g = Graph(np.float64 if dtype == "float64" else np.float32)
    g.tables = Tables(g, {})
    extra, scene = _scene(g, request, selector, chosen, index_heads, index_dim)
    lists = LISTS[selector]
    made = lists_of(
        g, scene, partial(RULES[selector], **chosen), count=chosen["count"], heads=request.heads,
        lists=1 if lists is None else getattr(request, lists),
    )  # fmt: skip
    split = request.scale if dtype != "float64" else float(np.float32(request.scale))
    query = g.symbol("q")
    if split != request.scale:  # an attribute is a float32
        query, split = query * np.array(request.scale), 1.0
    node = attention_node(
        [query.name, "k", "v", *(one.name for one in made.lists)], "y",
        pattern=visible, block_size=(1, scene.size), scale=split, softcap=request.softcap,
    )  # fmt: skip
    said = {"selector": selector, **chosen, "visible": sr.to_dict(visible)}
    words = f"{selector}: {inspect.getdoc(getattr(selection, selector))}".partition("\n")[0]
    del node.metadata_props[:]
    for key, value in ((SELECTION, json.dumps(said)), (SENTENCE, words)):
        node.metadata_props.add(key=key, value=value)
    g.scopes[0].append(node)
    answers = outputs(request)
    if indices:
        made.chosen.cast(TensorProto.INT32).op("Identity", called="indices")
        shape = ["batch", None, "q_len", None]
        answers.append(helper.make_tensor_value_info("indices", TensorProto.INT32, shape))
    graph = helper.make_graph(
        g.scopes[0], selector, [*inputs(request), *extra], answers, doc_string=words
    )
    version = opset or OPSET
    imports = [helper.make_opsetid("", version)]
    model = helper.make_model(
        graph, opset_imports=imports, producer_name="sparse_ref",
        ir_version=helper.find_min_ir_version_for(imports),
    )  # fmt: skip
    model = finish(model, version, body)
    if mode != "inline":
        return model
    made_of = {
        "query": query.name, "key": "k", "value": "v", "output": "y", "ours": True, "scale": split,
        "softcap": as_attribute(request.softcap), "lists": [one.name for one in made.lists],
    }  # fmt: skip
    model = inlined(model)
    for key, value in ((SELECTION, json.dumps(said)), (SENTENCE, words)):  # no node is left to
        model.metadata_props.add(key=key, value=value)
    model.metadata_props.add(key=VALUES, value=json.dumps(made_of))
    return model


def _parameters(selector: str, visible: sr.Pattern, given: dict[str, Any]) -> dict[str, Any]:
    """The selector's parameters, checked by itself on a token, with its defaults filled in."""
    if selector not in RULES:
        raise ValueError(f"selector must be one of {', '.join(RULES)}, got {selector!r}")
    choose = getattr(selection, selector)
    names = list(inspect.signature(RULES[selector]).parameters)[1:]
    if unknown := sorted(set(given) - set(names)):
        raise TypeError(f"{selector} takes {', '.join(names)}, got {unknown[0]}")
    if visible.covers is not None or visible.batches or sr.Runtime in _kinds(visible):
        raise ValueError(
            f"visible must carry no length and no run-time input, alike for all batch rows, "
            f"got {visible!r}"
        )
    one = np.ones((1, 1, 1))
    weights = [one[0]] if selector == "lightning_indexer" else []
    choose(one, one, *weights, visible=visible, **given)
    defaults = {
        name: one.default
        for name, one in inspect.signature(choose).parameters.items()
        if name in names and one.default is not inspect.Parameter.empty
    }
    values = defaults | given
    integer("count", values["count"], 1)
    return {x: int(y) if isinstance(y, np.integer) else y for x, y in values.items()}


def _kinds(pattern: sr.Pattern) -> set[type]:
    own = {type(value) for value in vars(pattern).values()}
    return own.union(*(_kinds(child) for child in pattern.children))


def _scene(
    g: Graph, request: Request, selector: str, chosen: dict[str, Any],
    index_heads: int | None, index_dim: int | None,
) -> tuple[list[Any], Scene]:  # fmt: skip
    """The inputs beside q, k and v, and what scores."""
    real = helper.np_dtype_to_tensor_dtype(g.real)
    size = chosen.get("block_size", 1)
    if selector not in INDEXERS:
        for name, value in (("index_heads", index_heads), ("index_dim", index_dim)):
            if value is not None:
                raise ValueError(f"{name} must be None: {selector} scores with q and k")
        q, k = (g.symbol(name).cast(real) for name in "qk")
        return [], Scene(g, q, k, request.heads, request.kv_heads, request.pattern, size)
    h, d = integer("index_heads", index_heads, 1), integer("index_dim", index_dim, 1)
    if selector == "msa" and h != request.kv_heads:
        raise ValueError(f"index_heads must be kv_heads = {request.kv_heads} for msa, got {h}")
    kind, info = element_type(request), helper.make_tensor_value_info
    extra = [
        info("index_q", kind, ["batch", h, "q_len", d]),
        info("index_k", kind, ["batch", 1, "kv_len", d]),
    ]
    weights = None
    if selector == "lightning_indexer":
        extra.append(info("index_weights", kind, ["batch", "q_len", h]))
        weights = g.symbol("index_weights").cast(real)
    q, k = (g.symbol(one.name).cast(real) for one in extra[:2])
    return extra, Scene(g, q, k, h, 1, request.pattern, size, weights)
