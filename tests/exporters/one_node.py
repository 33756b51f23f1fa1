"""A model of one attention node, and the three ways to run it."""

from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import sparse_ref as sr
from exporters.onnx import SparseAttention, attention_node, block_tensors, finish

SCALE = 0.5  # exact in float32, as ONNX keeps it


class Sizes(NamedTuple):
    b: int
    h: int
    g: int
    m: int
    n: int
    d: int
    e: int


def model(
    pattern: sr.Pattern,
    size: Sizes,
    *,
    dtype: Any = np.float32,
    block: tuple[int, int] = (16, 8),
    softcap: float | None = None,
    given: tuple[str, ...] = (),
    lists: dict[str, Any] | None = None,
    opset: int = 18,
    lse: str | None = "lse",
) -> Any:
    """The node with free b, m and n; `given` names key_length and sinks if they are inputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if lists is None:
        blocks = sr.to_blocks(pattern, size.m, size.n, block_size=block, heads=size.h)
        lists = block_tensors(blocks)
    optional = [name if name in given else "" for name in ("key_length", "sinks")]
    node = attention_node(
        ["q", "k", "v", *lists, *optional], "y",
        pattern=pattern, block_size=block, scale=SCALE, softcap=softcap, lse=lse,
    )  # fmt: skip
    info, int32 = helper.make_tensor_value_info, 6
    extra = {"key_length": (int32, ["b"]), "sinks": (kind, [size.h])}
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            info("q", kind, ["b", size.h, "m", size.d]),
            info("k", kind, ["b", size.g, "n", size.d]),
            info("v", kind, ["b", size.g, "n", size.e]),
            *(info(name, *extra[name]) for name in given),
        ],
        [
            info("y", kind, ["b", size.h, "m", size.e]),
            *([info(lse, 11 if dtype == np.float64 else 1, ["b", size.h, "m"])] if lse else []),
        ],
        [numpy_helper.from_array(tensor, name) for name, tensor in lists.items()],
    )
    return finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), opset)


def draw(size: Sizes, dtype: Any = np.float32, seed: int = 0) -> dict[str, Any]:
    """q, k and v."""
    rng, (b, h, g, m, n, d, e) = np.random.default_rng(seed), size
    shapes = {"q": (b, h, m, d), "k": (b, g, n, d), "v": (b, g, n, e)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def by_runtime(made: Any, feed: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def by_evaluator(made: Any, feed: dict[str, Any]) -> list[Any]:
    return ReferenceEvaluator(made).run(None, feed)


def by_oracle(made: Any, feed: dict[str, Any]) -> list[Any]:
    return ReferenceEvaluator(made, new_ops=[SparseAttention]).run(None, feed)


WAYS = {
    "body in ONNX Runtime": by_runtime,
    "body in the evaluator": by_evaluator,
    "oracle in the evaluator": by_oracle,
}
