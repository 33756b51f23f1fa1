"""The operator `sparse_ref.SparseAttention`, version 1, as onnx knows operators.

Lists and tiles select the keys; beside them only the length of the keys hides any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

DOMAIN = "sparse_ref"
OP = "SparseAttention"
VERSION = 1

TYPES = {  # of the letters below
    "T": ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"],
    "I": ["tensor(int32)"],
    "M": ["tensor(uint8)"],
    "F": ["tensor(float)", "tensor(double)"],
}
INPUTS = {  # name: type, rank, what it is
    "query": ("T", 4, "[B, H, L, E]"),
    "key": ("T", 4, "[B, G, S, E]; G divides H, query head h reads h // (H / G)"),
    "value": ("T", 4, "[B, G, S, Ev]"),
    "block_indices": (
        "I", 4,
        (
            "[Bp, Hp, Lq, KB] with Bp in {1, B}, Hp in {1, H}, Lq = ceil(L / q_block_size) and "
            "KB >= 1: the key blocks of every row of query blocks, ascending, block_count of them"
        ),
    ),
    "block_count": ("I", 3, "[Bp, Hp, Lq]"),
    "tile_ids": ("I", 4, "shaped like block_indices: the row of tile_masks of each listed block"),
    "tile_masks": (
        "M", 3,
        "[M, q_block_size, k_block_size]: how often a key counts, 0 = not seen; row 0 all ones",
    ),
    "key_length": ("I", 1, "[B] or [1]: keys at and past it are not seen"),
    "sinks": ("T", 1, "[H] or [1]: one more score, in the denominator only; -inf is none"),
}  # fmt: skip
OUTPUTS = {
    "Y": ("T", "[B, H, L, Ev]; a query that sees no key gets 0"),
    "lse": ("F", "[B, H, L]: log-sum-exp of the scores, sink included; float64 from float64"),
}
ATTRIBUTES = {
    "q_block_size": (OpSchema.AttrType.INT, "queries of a block, >= 1"),
    "k_block_size": (OpSchema.AttrType.INT, "keys of a block, >= 1"),
    "scale": (OpSchema.AttrType.FLOAT, "factor of the scores, > 0"),
    "softcap": (
        OpSchema.AttrType.FLOAT,
        "scores become softcap * tanh(score / softcap); 0 = off",
    ),
}


def split_scale(scale: float, dtype: Any) -> tuple[float, float]:
    """`scale` as what the attribute can say and what the queries are multiplied by.

    ONNX keeps attributes as float32. That is exact enough for all types but float64, whose queries
    take the whole scale unless float32 has it.

    Examples
    --------
    >>> split_scale(0.125, "float64"), split_scale(0.3, "float32"), split_scale(0.3, "float64")
    ((0.125, 1.0), (0.3, 1.0), (1.0, 0.3))
    """
    exact = np.dtype(dtype) != np.float64 or float(np.float32(scale)) == scale
    return (scale, 1.0) if exact else (1.0, scale)


def register() -> None:
    """Make the operator known to onnx's checker and shape inference; again is harmless."""
    if not defs.has(OP, VERSION, DOMAIN):
        defs.register_schema(_schema())


def _schema() -> Any:
    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption
    optional = {"lse": option.Optional}
    schema: Any = OpSchema(
        OP,
        DOMAIN,
        VERSION,
        doc="Attention over listed blocks of keys, exact to the token by tile masks.",
        inputs=[parameter(name, letter, doc) for name, (letter, _, doc) in INPUTS.items()],
        outputs=[
            parameter(name, letter, doc, param_option=optional.get(name, option.Single))
            for name, (letter, doc) in OUTPUTS.items()
        ],
        type_constraints=[(letter, types, "") for letter, types in TYPES.items()],
        attributes=[
            OpSchema.Attribute(name, kind, doc, required=True)
            for name, (kind, doc) in ATTRIBUTES.items()
        ],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


def _infer(context: Any) -> None:
    """Types and shapes of the outputs; what is known to be wrong is refused here."""
    blocks = _checked_attributes(context)
    shapes = _checked_inputs(context)
    query, key, value, masks = (shapes[name] for name in ("query", "key", "value", "tile_masks"))
    _same("key", key, 3, _known(query, 3))
    h, g = _known(query, 1), _known(key, 1)
    if h and g:
        _require(h % g == 0, f"key must have heads that divide the query's {h}, got {g}")
    _same("value", value, 1, g)
    _same("value", value, 2, _known(key, 2))
    _same("tile_masks", masks, 1, blocks[0])
    _same("tile_masks", masks, 2, blocks[1])
    kind = context.get_input_type(0).tensor_type.elem_type
    out = None if query is None or value is None else [*query[:3], value[3]]
    context.set_output_type(0, _tensor(kind, out))
    if context.get_num_outputs() > 1:
        wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
        context.set_output_type(1, _tensor(wide, None if query is None else query[:3]))


def _checked_attributes(context: Any) -> tuple[int, int]:
    """The block sizes."""
    given = {name: context.get_attribute(name) for name in ATTRIBUTES}
    for name, attribute in given.items():
        _require(attribute is not None, f"attribute {name} must be given")
    values = {name: onnx.helper.get_attribute_value(one) for name, one in given.items()}
    for name in ("q_block_size", "k_block_size"):
        _require(values[name] >= 1, f"{name} must be >= 1, got {values[name]}")
    _require(values["scale"] > 0, f"scale must be > 0, got {values['scale']}")
    _require(values["softcap"] >= 0, f"softcap must be >= 0, got {values['softcap']}")
    return values["q_block_size"], values["k_block_size"]


def _checked_inputs(context: Any) -> dict[str, Any]:
    """The dimensions of every input; None where nothing is known of them."""
    shapes: dict[str, Any] = dict.fromkeys(INPUTS)
    query = context.get_input_type(0).tensor_type.elem_type
    wanted = {"T": query, "I": TensorProto.INT32, "M": TensorProto.UINT8}
    for i, (name, (letter, rank, _)) in enumerate(INPUTS.items()):
        kind = context.get_input_type(i) if i < context.get_num_inputs() else None
        if kind is None:
            continue
        tensor, want = kind.tensor_type, wanted[letter]
        if tensor.elem_type and want:
            got, should = (_named(x) for x in (tensor.elem_type, want))
            _require(tensor.elem_type == want, f"{name} must be {should}, got {got}")
        if tensor.HasField("shape"):
            shapes[name] = list(tensor.shape.dim)
            got_rank = len(shapes[name])
            _require(got_rank == rank, f"{name} must have rank {rank}, got {got_rank}")
    return shapes


def _named(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _known(dims: Any, axis: int) -> int | None:
    """A length that is a number; None if it is a name or unknown."""
    if dims is None or not dims[axis].HasField("dim_value"):
        return None
    return int(dims[axis].dim_value)


def _same(name: str, dims: Any, axis: int, want: int | None) -> None:
    got = _known(dims, axis)
    fine = got == want or None in {got, want}
    _require(fine, f"{name} must have {want} on axis {axis}, got {got}")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InferenceError(f"{DOMAIN}.{OP}: {sentence}")


def _tensor(kind: int, dims: Any) -> Any:
    made = onnx.TypeProto()
    made.tensor_type.elem_type = kind
    if dims is not None:
        made.tensor_type.shape.SetInParent()
        made.tensor_type.shape.dim.extend(dims)
    return made
