"""A whole model by onnx's ReferenceEvaluator, with the oracle in place of our operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .judged import Verdict, judge
from .loading import tensors
from .observed import Observed
from .reference_op import SparseAttention
from .tapping import constants

ROUNDING = 4.0  # times the error that its own type costs the evaluator
NARROW = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}

Array = NDArray[Any]


class NotRunError(RuntimeError):
    """The evaluator cannot run this model, with its reason."""


def end_to_end(
    shown: Any,
    attentions: list[Observed],
    kinds: Mapping[str, str],
    case: str,
    feed: Mapping[str, Array],
    got: Mapping[str, Array],
) -> Iterator[Verdict]:
    """The evaluator's attentions against the oracle, then a run's outputs against the evaluator.

    `shown` is the model whose outputs are all values that judging takes, `kinds` their element
    types, `got` those values as another runtime computed them. The outputs of a network have no
    bound: they may be as far from the evaluator in float64 as `ROUNDING` times what the model's own
    types cost the evaluator.
    """
    names = [one.name for one in shown.graph.output]
    narrow = dict(zip(names, _evaluated(shown, names, feed), strict=True))
    for one in attentions:
        for verdict in judge(one, {**constants(shown), **feed, **narrow}, kinds, case):
            yield Verdict(**(vars(verdict) | {"what": f"{verdict.what}, evaluator"}))
    judged = {name for one in attentions for name in one.tensors}
    rest = [n for n in names if n in got and n not in judged and narrow[n].dtype.kind == "f"]
    if not rest:
        return
    wide = _evaluated(in_float64(shown), rest, {n: _wide(x) for n, x in feed.items()})
    for name, want in zip(rest, wide, strict=True):
        unit = np.finfo(narrow[name].dtype).eps * np.abs(want).max(initial=0.0)
        own = float(np.abs(narrow[name] - want).max(initial=0.0))
        limit = ROUNDING * max(own, float(unit))
        error = float(np.abs(got[name].astype(np.float64) - want).max(initial=0.0))
        fine = error <= limit
        wrong = None if fine else f"{name} is off by {error:.3g}, rounding explains {limit:.3g}"
        share = error / limit if limit else float("inf") if error else 0.0
        yield Verdict(name, "end to end", case, error, share, wrong)


def _evaluated(model: Any, names: list[str], feed: Mapping[str, Array]) -> list[Array]:
    try:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(model, new_ops=[SparseAttention])
            return list(evaluator.run(names, dict(feed)))
    except Exception as error:  # it raises whatever its operators do
        said = str(error).partition("\n")[0]
        raise NotRunError(f"{type(error).__name__}: {said}") from error


def _wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind in "fV" else x


def in_float64(model: Any) -> Any:
    """A copy of the model that computes everything in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for one in tensors(copy):
        if one.data_type in NARROW:
            one.CopyFrom(numpy_helper.from_array(_wide(numpy_helper.to_array(one)), one.name))
    for info in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if info.type.tensor_type.elem_type in NARROW:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                value = np.asarray(helper.get_attribute_value(attribute), dtype=np.float64)
                tensor = numpy_helper.from_array(value)
                attribute.CopyFrom(helper.make_attribute("value", tensor))
    return copy
