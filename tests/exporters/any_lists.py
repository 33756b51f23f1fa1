"""A model of one attention node whose lists are inputs, in either body, and lists to feed it."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, checker, helper

import sparse_ref as sr
from exporters.onnx import DOMAIN, OP, block_tensors, gather_body, loop_body, register
from exporters.onnx.reference_op import listed_pattern
from exporters.onnx.schema import INPUTS, VERSION

BODIES = {"loop": loop_body, "gather": gather_body}
BLOCKS, CAPS, SCALE = ((2, 3), (4, 2), (1, 1)), (0.0, 1.5), 0.5
Feed = dict[str, Any]


@cache
def model(
    body: str,
    block: tuple[int, int] = (2, 3),
    cap: float = 0.0,
    *,
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
    lse: bool = True,
    scale: float = SCALE,
) -> Any:
    """One node all of whose inputs are the model's, every length free."""
    wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
    kinds = {"T": kind, "I": TensorProto.INT32, "M": TensorProto.UINT8}
    info = helper.make_tensor_value_info
    inputs = [
        info(name, kinds[letter], [f"{name}.{axis}" for axis in range(rank)])
        for name, (letter, rank, _) in INPUTS.items()
    ]
    outputs = [info("Y", kind, ["B", "H", "L", "Ev"]), info("lse", wide, ["B", "H", "L"])][
        : 1 + lse
    ]
    node = helper.make_node(
        OP, list(INPUTS), [one.name for one in outputs], domain=DOMAIN, scale=scale, softcap=cap,
        q_block_size=block[0], k_block_size=block[1],
    )  # fmt: skip
    made = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[BODIES[body](opset, lse, accumulate=wide)],
        ir_version=10,
    )
    register()
    checker.check_model(made, full_check=True)
    return made


def run(made: Any, feed: Feed) -> list[Any]:
    return session(made.SerializeToString()).run(None, feed)


@cache
def session(file: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def feed_of(
    pattern: sr.Pattern,
    b: int,
    h: int,
    g: int,
    m: int,
    n: int,
    *,
    block: tuple[int, int] = (2, 3),
    d: int = 5,
    e: int = 3,
    dtype: Any = np.float32,
) -> Feed:
    """Drawn numbers and the lists of a pattern."""
    rng = np.random.default_rng(0)
    shapes = {"query": (b, h, m, d), "key": (b, g, n, d), "value": (b, g, n, e)}
    return {
        **{name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()},
        **block_tensors(sr.to_blocks(pattern, m, n, block_size=block, heads=h, q_start=0)),
        "key_length": np.array([n], dtype=np.int32),
        "sinks": np.array([-np.inf], dtype=dtype),
    }


def oracle(feed: Feed, cap: float = 0.0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `sr.attention` takes: arrays and pattern, and the rest."""
    q, k, v, indices, count, ids, masks, length, sinks = feed.values()
    (b, h, m, _), n = q.shape, k.shape[2]
    pattern = listed_pattern(indices, count, ids, masks, shape=(b, h, m, n))
    return (q, k, v, pattern), {
        "scale": SCALE, "softcap": cap or None, "q_start": 0,
        "sink_logits": np.broadcast_to(sinks, (h,)),
        "kv_lengths": np.clip(np.broadcast_to(length, (b,)), 0, n),
    }  # fmt: skip


class Drawn(NamedTuple):
    feed: Feed
    block: tuple[int, int]
    cap: float


@st.composite
def problems(draw: Any) -> Drawn:
    """Lists of very unequal lengths, tiles of any kind, lengths and sinks or not; NaN in places."""
    block, cap = draw(st.sampled_from(BLOCKS)), draw(st.sampled_from(CAPS))
    b, g, sharing = (draw(st.integers(1, 3)) for _ in range(3))
    h, rows, columns = g * sharing, draw(st.integers(1, 7)), draw(st.integers(1, 40))
    m, n = (
        count * size - draw(st.integers(0, size - 1))
        for count, size in zip((rows, columns), block, strict=True)
    )
    bp, hp = draw(st.sampled_from([1, b])), draw(st.sampled_from([1, h]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tiles = draw(st.integers(1, 4))
    masks = rng.choice([0, 0, 1, 1, 1, 3], size=(tiles, *block)).astype(np.uint8)
    masks[0] = 1
    longest = draw(st.sampled_from([1, 3, columns]))
    width = min(columns, longest) + draw(st.integers(0, 2))
    count = np.minimum(rng.geometric(0.4, (bp, hp, rows)) - 1, min(columns, longest))
    count[rng.random(count.shape) < 0.2] = min(columns, longest)
    slot = np.arange(width) < count[..., None]
    order = np.argsort(rng.random((bp, hp, rows, columns)), axis=-1)[..., :width]
    order = np.pad(order, [(0, 0)] * 3 + [(0, width - order.shape[-1])], constant_values=columns)
    order = np.sort(
        np.where(slot, order, 2**31 - 1), axis=-1
    )  # what is not counted may be anything
    ids = np.where(slot, rng.integers(tiles, size=slot.shape), -9)
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((b, h, m, 5), (b, g, n, 5), (b, g, n, 3))
    )
    if draw(st.booleans()):
        for x in (k, v):
            x[rng.random(x.shape) < 0.02] = np.nan
    length = draw(hnp.arrays(np.int32, st.sampled_from([1, b]), elements=st.integers(-1, n + 2)))
    sinks = rng.standard_normal(draw(st.sampled_from([1, h]))).astype(np.float32)
    sinks[rng.random(sinks.shape) < 0.5] = -np.inf
    lists = order.astype(np.int32), count.astype(np.int32), ids.astype(np.int32), masks
    return Drawn(dict(zip(INPUTS, (q, k, v, *lists, length, sinks), strict=True)), block, cap)
