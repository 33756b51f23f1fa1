"""Our operators in a graph of torch.onnx: placeholders first, nodes with their lists afterwards.

torch.onnx translates one operator at a time and knows nothing of block lists, so it writes a
placeholder that still says the pattern; placeholders become nodes once the graph stands.
"""

from __future__ import annotations

from typing import Any

import torch

DOMAIN = "sparse_ref"
OVER_PATTERN, OVER_BLOCKS = "AttentionOverPattern", "AttentionOverBlocks"
OPTIONAL = "sinks", "q_start", "key_length", "tokens"
SAID = {
    OVER_PATTERN: {
        "pattern": "STRING",
        "dtype": "STRING",
        "scale": "FLOAT",
        "softcap": "FLOAT",
        "heads": "INT",
        "kv_heads": "INT",
        "head_dim": "INT",
        "value_dim": "INT",
        "q_len": "STRING",  # a number, or what torch calls a length that is free
        "kv_len": "STRING",
    },
    OVER_BLOCKS: {"layout": "STRING", "scale": "FLOAT", "softcap": "FLOAT"},
}


def translations() -> dict[Any, Any]:
    """What `torch.onnx.export` takes as its `custom_translation_table`."""
    over_pattern, over_blocks = _placeholder(OVER_PATTERN, OPTIONAL), _placeholder(OVER_BLOCKS, ())

    def attention(
        q: Any, k: Any, v: Any, pattern: str, scale: float, softcap: float = 0.0,
        sinks: Any = None, q_start: Any = None, key_start: Any = None, key_length: Any = None,
        tokens: Any = None, slopes: Any = None,
    ) -> Any:  # fmt: skip
        if slopes is not None:
            raise NotImplementedError("ALiBi cannot be exported: our ONNX operator has no place")
        if key_start is not None:
            raise NotImplementedError(
                "chunks cannot be exported with a cache that has let go of its first keys"
            )
        (_, heads, q_len, head_dim), (_, kv_heads, kv_len, value_dim) = q.shape, v.shape
        return over_pattern(
            q, k, v, sinks, q_start, key_length, tokens, pattern=pattern, scale=scale,
            softcap=softcap, dtype=str(q.dtype), heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            value_dim=value_dim, q_len=str(q_len), kv_len=str(kv_len),
        )  # fmt: skip

    def attention_over_blocks(
        q: Any, k: Any, v: Any, layout: str, scale: float, softcap: float
    ) -> Any:
        return over_blocks(q, k, v, layout=layout, scale=scale, softcap=softcap)

    ours = torch.ops.sparse_ref
    return {
        ours.attention.default: attention,
        ours.attention_over_blocks.default: attention_over_blocks,
    }


def _placeholder(name: str, optional: tuple[str, ...]) -> Any:
    """An operator that onnxscript can write into a graph."""
    from onnx.defs import OpSchema
    from onnxscript import values

    parameter, left_out = OpSchema.FormalParameter, OpSchema.FormalParameterOption.Optional
    reals = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
    letters = {"q_start": "I", "key_length": "I", "tokens": "B"}
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(one, "T") for one in ("q", "k", "v")]
        + [parameter(one, letters.get(one, "T"), param_option=left_out) for one in optional],
        outputs=[parameter("out", "T"), parameter("lse", "L")],
        type_constraints=[
            ("T", reals, ""),
            ("L", ["tensor(float)", "tensor(double)"], ""),
            ("I", ["tensor(int64)"], ""),
            ("B", ["tensor(bool)", "tensor(int64)"], ""),
        ],
        attributes=[
            OpSchema.Attribute(one, getattr(OpSchema.AttrType, kind), "", required=True)
            for one, kind in SAID[name].items()
        ],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)
