"""The X-ray of an ONNX file: what every attention in it really computes, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, inliner

from sparse_ref.conformance.findings import Xray
from sparse_ref.conformance.xray import xray

from .attentions import attentions, inlined
from .cutting import Cut, graph_of
from .loading import load
from .schema import DOMAIN, OP

Array = NDArray[Any]
LENGTH = 24  # of sequences, where nothing else is said


@dataclass(frozen=True)
class Reading:
    """One attention of a file: what it computes, or why that could not be read."""

    name: str
    operator: str
    xray: Xray | None
    unread: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.operator})"]
        body = f"not read: {self.unread}" if self.xray is None else str(self.xray)
        lines += [f"  {line}" for line in (*body.split("\n"), *self.notes)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        said = None if self.xray is None else self.xray.to_dict()
        return {"name": self.name, "operator": self.operator, "xray": said,
                "unread": self.unread, "notes": list(self.notes)}  # fmt: skip


def xray_onnx(
    model: Any, feeds: Mapping[str, Array] | None = None, *, length: int = LENGTH
) -> list[Reading]:
    """What each attention of an ONNX file computes, in the order of the file.

    Found are a softmax between two products, ai.onnx's Attention, ONNX Runtime's
    GroupQueryAttention and MultiHeadAttention, and our own operator, inlined too. Each is cut out
    of the graph where its q, k and v enter, after rotary embeddings and before scales and repeated
    heads; its mask stays, made of the model's own inputs. ONNX Runtime answers the questions of
    `sparse_ref.conformance.xray`.

    Parameters
    ----------
    model : str, path or onnx.ModelProto
    feeds : mapping of names to arrays, optional
        The model's inputs, which masks may depend on; one batch row is read, the first.
    length : int
        Without feeds: the length of sequences. Tokens are then drawn, masks are all ones, a past
        is empty.

    Returns
    -------
    list of Reading, empty if the file has no attention in its main graph.

    Raises
    ------
    ValueError
        If the file is no model, or ONNX Runtime cannot run it on these inputs.

    >>> import sparse_ref as sr
    >>> from exporters import to_onnx
    >>> made = to_onnx(sr.Causal() & sr.SlidingWindow(2, 0), heads=2, head_dim=8, mode="standard")
    >>> print(xray_onnx(made, length=5)[0].xray.heads[0].seen)
    causal window of 3 keys: hf sliding_window=3, flash_attn window_size=(2, 0), ...
    """
    whole = _inlined(load(model))
    given = dict(feeds or {})
    given = {**made_up(whole, length), **given}
    try:
        graph = graph_of(whole, given)
    except Exception as error:  # ONNX Runtime has several
        raise ValueError(f"model must run on these inputs, and does not: {_first(error)}") from None
    found = [*attentions(graph)] or [*inlined(whole, graph)]
    return [_read(whole, one, given) for one in found]


def _read(model: Any, found: Any, feeds: Mapping[str, Array]) -> Reading:
    if isinstance(found, tuple):
        name, operator, reason = found
        return Reading(name, operator, None, reason)
    try:
        cut = Cut(model, found, feeds)
        got = xray(
            cut, found.q_len, found.kv_len, heads=found.heads, kv_heads=found.kv_heads,
            head_dim=found.head_dim,
        )  # fmt: skip
    except Exception as error:  # whatever a stranger's graph brings up is said, not raised
        return Reading(found.name, found.operator, None, _first(error))
    return Reading(found.name, found.operator, got, notes=found.notes)


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _inlined(model: Any) -> Any:
    """The model without functions, but for our operator's."""
    others = [one for one in model.functions if (one.domain, one.name) != (DOMAIN, OP)]
    if not others:
        return model
    ids = [(one.domain, one.name) for one in others]
    return inliner.inline_selected_functions(model, ids)


def made_up(model: Any, length: int = LENGTH) -> dict[str, Array]:
    """Inputs for a model that nothing is known of: one row of drawn tokens, no padding, no past."""
    rng = np.random.default_rng(0)
    own = {one.name for one in model.graph.initializer}
    made = {}
    for one in model.graph.input:
        if one.name in own:
            continue
        tensor = one.type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        kind = np.dtype(np.float32) if kind.name == "bfloat16" else kind
        shape = [_axis(dim, i, one.name, length) for i, dim in enumerate(tensor.shape.dim)]
        name = one.name.lower()
        if "mask" in name or kind.kind == "b":
            made[one.name] = np.ones(shape, kind)
        elif "position" in name and kind.kind == "i":
            made[one.name] = np.broadcast_to(np.arange(shape[-1], dtype=kind), shape).copy()
        elif kind.kind in "iu":
            lengths = "len" in name
            made[one.name] = np.full(shape, length, kind) if lengths else (
                rng.integers(3, 10, shape).astype(kind))  # fmt: skip
        else:
            made[one.name] = rng.standard_normal(shape).astype(kind)
    return made


def _axis(dim: Any, axis: int, name: str, length: int) -> int:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    called = dim.dim_param.lower()
    if "past" in called:
        return 0
    return 1 if "batch" in called or axis == 0 else length
