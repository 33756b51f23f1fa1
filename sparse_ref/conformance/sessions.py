"""An ONNX file, or a session of ONNX Runtime, as a kernel: what its inputs can say is asked.

Inputs are known by their names. A pattern goes into a mask where there is one; without one the file
has a pattern of its own, and is asked for no other where its node says which (`to_onnx` writes it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ref.patterns import Pattern, from_dict

from .spelling import Asked

NAMES = {  # of an input, in small letters: what is fed to it
    "q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v",
    "mask": "mask", "attn_mask": "mask", "attention_mask": "mask", "attn_bias": "mask",
    "attention_bias": "mask",
    "key_length": "kv_lengths", "kv_lengths": "kv_lengths", "q_start": "q_start",
    "sinks": "sink_logits", "sink_logits": "sink_logits", "head_sink": "sink_logits",
}  # fmt: skip
TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(bool)": "bool", "tensor(int64)": "int64", "tensor(int32)": "int32",
}  # fmt: skip
PATTERN = "sparse_ref.pattern"


class Session:
    """Called with q, k, v and the arrays that `said` answers, by the names of its inputs.

    Arrays are (b, h, s, d), or (b, s, h, d) where `heads_last`; an input of three axes gets heads
    and their entries in one.
    """

    def __init__(self, session: Any, *, heads_last: bool = False, pattern: Pattern | None = None):
        self.session, self.heads_last, self.pattern = session, heads_last, pattern
        given = session.get_inputs()
        roles = [NAMES.get(one.name.lower()) for one in given]
        if not {"q", "k", "v"} & set(roles) and len(given) == 3:
            roles = ["q", "k", "v"]  # as torch names them: in order
        self.inputs = dict(zip(roles, given, strict=True))
        if None in roles or len(self.inputs) < len(given) or not {"q", "k", "v"} <= set(roles):
            raise ValueError(
                "inputs of an ONNX file must be q, k, v and at most mask, "
                f"key_length, q_start, sinks, got {', '.join(one.name for one in given)}"
            )
        for role, axes in (("q", (3, 4)), ("k", (3, 4)), ("v", (3, 4)), ("mask", (2, 4))):
            if role in self.inputs and len(self.inputs[role].shape) not in axes:
                got = f"{self.inputs[role].name} with {len(self.inputs[role].shape)}"
                raise ValueError(f"{role} must have {axes[0]} or {axes[1]} axes, got {got}")
        if self._kind("mask") in ("int64", "int32"):
            raise ValueError("mask must hold truths or floats, got integers, which say neither")

    def __call__(self, q: Any, k: Any, v: Any, **more: Any) -> Any:
        given = zip("qkv", (q, k, v), strict=True)
        feeds = {self.inputs[role].name: self._fed(role, x) for role, x in given}
        names = [one.name for one in self.session.get_outputs()]
        got = dict(zip(names, refused(lambda: self.session.run(None, feeds | more)), strict=True))
        lse = got.pop("lse", None)
        out = next(iter(got.values()))
        if out.ndim == 3:
            heads = q.shape[2 if self.heads_last else 1]
            out = out.reshape(*out.shape[:2], heads, -1)
            out = out if self.heads_last else out.swapaxes(1, 2)
        return out if lse is None else (out, lse)

    def said(self, asked: Asked) -> dict[str, Any]:
        """What is asked as arrays for its inputs; NotImplementedError where it has none for it."""
        own = {"sink_logits": "sink_logits"} if "sink_logits" in self.inputs else {}
        if "mask" in self.inputs and self._kind("mask") != "bool":
            own["bias"] = "bias"
        given = asked.rest(**own)
        if "mask" in self.inputs:
            given["mask"] = self._mask(asked, given.pop("bias", None))
        else:
            self._unmasked(asked)
        if "sink_logits" in self.inputs:
            given.setdefault("sink_logits", np.full(asked.shape.h, -np.inf))  # none
        if "q_start" in self.inputs:
            given["q_start"] = asked.starts
        if "kv_lengths" in self.inputs:
            given["kv_lengths"] = asked.lengths
        return {
            self.inputs[role].name: _fitted(role, x, self.inputs[role].shape, self._kind(role))
            for role, x in given.items()
        }

    def _unmasked(self, asked: Asked) -> None:
        """Refuses what a file without a mask cannot be told."""
        if "kv_lengths" in asked.attributes and "kv_lengths" not in self.inputs:
            raise NotImplementedError("it has no lengths of keys")
        _, h, _, m, n = asked.shape
        if "q_start" not in self.inputs and (asked.starts != n - m).any():
            raise NotImplementedError("its queries are always the last positions")
        if self.pattern is None or self.pattern == asked.pattern:
            return
        short = self.pattern.covers is not None and self.pattern.covers < n
        if short or asked.pattern.batches is not None or self.pattern.batches is not None:
            raise NotImplementedError(f"its pattern is {self.pattern!r}")
        for start in {int(x) for x in asked.starts}:
            mine, wanted = (
                one.counts(m, n, heads=h, q_start=start) for one in (self.pattern, asked.pattern)
            )
            if (mine != wanted).any():
                raise NotImplementedError(f"its pattern is {self.pattern!r}")

    def _mask(self, asked: Asked, bias: Any) -> Any:
        """(b, h, m, n) of truths, or of what is added to the scores."""
        b, h, _, m, n = asked.shape
        mask = asked.mask()
        if self._kind("mask") != "bool":
            mask = np.where(mask, 0.0 if bias is None else bias, -np.inf)
        return np.broadcast_to(mask, (b, h, m, n))

    def _fed(self, role: str, x: Any) -> Any:
        """q, k or v as its input wants it."""
        if x.dtype.name != self._kind(role):
            raise NotImplementedError(f"its {role} is {self._kind(role)}, got {x.dtype.name}")
        shape = self.inputs[role].shape
        if len(shape) == 3:
            if not isinstance(shape[2], int):
                raise NotImplementedError(f"the heads of its {role}, of 3 axes, cannot be told")
            x = x if self.heads_last else x.swapaxes(1, 2)
            x = x.reshape(*x.shape[:2], -1)
        if any(isinstance(a, int) and a != got for a, got in zip(shape, x.shape, strict=True)):
            raise NotImplementedError(f"its {role} has shape {tuple(shape)}, got {x.shape}")
        return np.ascontiguousarray(x)

    def _kind(self, role: str) -> str:
        if role not in self.inputs:
            return ""
        kind = str(self.inputs[role].type)
        return TYPES.get(kind, kind)


def _fitted(role: str, given: Any, shape: list[Any], kind: str) -> Any:
    """An array with the axes of an input; where that has 1 or none, all along it must be alike."""
    x = np.asarray(given)
    more = x.ndim - len(shape)
    x = x.reshape((1,) * -more + x.shape)
    sizes = [1] * more + list(shape)
    for axis, size in enumerate(sizes):
        if size == 1 < x.shape[axis]:
            first = x.take([0], axis)
            if (x != first).any():
                raise NotImplementedError(f"its {role} is one for all along axis {axis}")
            x = first
    if any(isinstance(size, int) and size != got for size, got in zip(sizes, x.shape, strict=True)):
        raise NotImplementedError(f"its {role} has shape {tuple(shape)}, got {x.shape}")
    return np.ascontiguousarray(x.reshape(x.shape[max(more, 0) :]), kind)


def is_file(fn: Any) -> bool:
    """Whether a candidate is the path of a file.

    >>> is_file("attention.onnx"), is_file("module:function")
    (True, False)
    """
    return isinstance(fn, os.PathLike) or (isinstance(fn, str) and fn.endswith(".onnx"))


def is_session(fn: Any) -> bool:
    """Whether it is a session of ONNX Runtime, or does as one."""
    return all(callable(getattr(fn, name, None)) for name in ("run", "get_inputs", "get_outputs"))


def opened(model: Any, device: str | None = None, threads: int = 0) -> Any:
    """A session of ONNX Runtime for a path or the bytes of a model, on "cpu" or "cuda".

    `threads` of one operator; 0: as many as ONNX Runtime takes.
    """
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it would say is in what it raises
    first = [] if device in (None, "cpu") else [f"{str(device).upper()}ExecutionProvider"]
    return refused(
        lambda: onnxruntime.InferenceSession(
            model, options, providers=[*first, "CPUExecutionProvider"]
        )
    )


def session_of(path: Path, *, heads_last: bool = False, device: str | None = None) -> Session:
    """A file as a kernel; its pattern is known where `to_onnx` made it and onnx is there."""
    ready = opened(str(path), device)
    return Session(ready, heads_last=heads_last, pattern=_pattern_of(path))


def _pattern_of(path: Path) -> Pattern | None:
    """The pattern that the nodes of a file say they have, if it is one."""
    try:
        import onnx  # noqa: PLC0415
    except ImportError:
        return None
    nodes = onnx.load(path, load_external_data=False).graph.node
    said = {one.value for node in nodes for one in node.metadata_props if one.key == PATTERN}
    return from_dict(json.loads(said.pop())) if len(said) == 1 else None


def refused(call: Callable[[], Any], *also: str) -> Any:
    """Its result; NotImplementedError where ONNX Runtime has no kernel, or an error of a name."""
    try:
        return call()
    except Exception as error:
        if type(error).__name__ not in ("NotImplemented", *also):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        last = lines[-1].rsplit("Status Message: ", 1)[-1].rsplit(" : ", 1)[-1][:160]
        raise NotImplementedError(f"it refuses: {last}") from None
