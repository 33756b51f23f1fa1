"""Operators of ONNX as kernels: a model of one node for every call, run by ONNX Runtime or another.

For `Candidate(attention_25, spell="onnx25")` and `Candidate(group_query_attention,
spell="ort_gqa")`; other runtimes: `Candidate(Attention(25, run), spell="onnx25")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sessions import opened, refused

REFUSALS = ("InvalidArgument", "InvalidGraph")  # of an operator that is asked too much
Feeds = dict[str, NDArray[Any]]
Runner = Callable[[Any, Feeds], list[Any]]  # a ModelProto, inputs by name -> outputs
INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
GROUPED = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink",
)  # fmt: skip


def model(
    operator: str, names: Sequence[str], outputs: Sequence[str], feeds: Feeds, version: int = 23,
    domain: str = "", **attributes: Any,
) -> Any:  # fmt: skip
    """A ModelProto of one node; inputs that are not fed are left out."""
    from onnx import helper  # noqa: PLC0415

    given = [name if name in feeds else "" for name in names]
    while not given[-1]:
        given.pop()
    node = helper.make_node(operator, given, outputs, domain=domain, **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feeds.items()}
    values = [
        helper.make_tensor_value_info(name, kinds[name], x.shape) for name, x in feeds.items()
    ]
    answers = [helper.make_tensor_value_info(name, kinds[given[0]], None) for name in outputs]
    opsets = [helper.make_opsetid("", version)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    graph = helper.make_graph([node], "attention", values, answers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def in_onnxruntime(made: Any, feeds: Feeds) -> list[Any]:
    """The outputs of ONNX Runtime; what it refuses to load or to run is not supported."""
    ready = session(made)
    return list(refused(lambda: ready.run(None, feeds), *REFUSALS))


def session(made: Any) -> Any:
    """Of a model, in ONNX Runtime, on one thread."""
    return refused(lambda: opened(made.SerializeToString(), threads=1), *REFUSALS)


@dataclass(frozen=True)
class Attention:
    """ai.onnx Attention of an opset, 23 or later.

    >>> import sparse_ref as sr
    >>> mine = sr.Candidate(Attention(23), spell="onnx23")
    >>> sr.check(mine, sr.cases(quick=True, only="window-1/b1h6g2-13x13", options=False)).counts
    {'PASS': 2}
    """

    version: int
    run: Runner = in_onnxruntime

    def __call__(
        self, q: Any, k: Any, v: Any, *, attn_mask: Any = None, nonpad_kv_seqlen: Any = None,
        **attributes: Any,
    ) -> Any:  # fmt: skip
        """The output (b, h, m, e) of q (b, h, m, d), k and v."""
        feeds = {"Q": q, "K": k, "V": v}
        if attn_mask is not None:
            feeds["attn_mask"] = attn_mask if attn_mask.dtype == bool else attn_mask.astype(q.dtype)
        if nonpad_kv_seqlen is not None:
            feeds["nonpad_kv_seqlen"] = nonpad_kv_seqlen
        return self.run(
            model("Attention", INPUTS, ("Y",), feeds, self.version, **attributes), feeds
        )[0]


attention_23, attention_24, attention_25 = (Attention(version) for version in (23, 24, 25))


def group_query_attention(
    q: Any, k: Any, v: Any, *, attention_bias: Any = None, head_sink: Any = None, **attributes: Any
) -> Any:
    """com.microsoft.GroupQueryAttention; keys before the first query are its cache."""
    (b, h, m, d), (_, g, n, e) = q.shape, k.shape[:3] + v.shape[3:]
    past = n - m
    if past < 0 or d != e:
        raise NotImplementedError("it has no more queries than keys, and one size of heads")
    feeds = {
        "query": flat(q), "key": flat(k[:, :, past:]), "value": flat(v[:, :, past:]),
        "past_key": k[:, :, :past].copy(), "past_value": v[:, :, :past].copy(),
        "seqlens_k": np.full(b, n - 1, np.int32),
        "total_sequence_length": np.array([n], np.int32),
    }  # fmt: skip
    for name, x in (("attention_bias", attention_bias), ("head_sink", head_sink)):
        if x is not None:
            feeds[name] = np.asarray(x).astype(q.dtype)
    made = model(
        "GroupQueryAttention", GROUPED, ("output", "present_key", "present_value"), feeds,
        domain="com.microsoft", num_heads=h, kv_num_heads=g, **attributes,
    )  # fmt: skip
    return split(in_onnxruntime(made, feeds)[0], h)


def flat(x: Any) -> Any:
    """(b, h, s, d) as (b, s, h * d)."""
    b, h, s, d = x.shape
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(b, s, h * d)


def split(x: Any, h: int) -> Any:
    """(b, s, h * d) as (b, h, s, d)."""
    b, s, width = x.shape
    return x.reshape(b, s, h, width // h).swapaxes(1, 2)
