"""The four ways to say one attention in ONNX; each says exactly what was asked, or refuses."""

from __future__ import annotations

from typing import Any

from . import microsoft, standard
from .observed import PATTERN, as_attribute, say, scale_in_file
from .pattern_model import pattern_model
from .request import Request
from .words import sentence

MODES = ("custom", "inline", "standard", "microsoft")


def convert(request: Request, *, mode: str = "custom", body: str = "loop") -> Any:
    """A request as an onnx.ModelProto.

    Parameters
    ----------
    request : Request
    mode : str
        "custom": our operator, with its body in standard operators; "inline": the body alone, for
        runtimes without local functions; "standard": ai.onnx Attention; "microsoft": ONNX Runtime's
        GroupQueryAttention or SparseAttention.
    body : "loop" or "gather"
        Of the modes custom and inline.

    Raises
    ------
    ValueError
        If there is no such mode or body.
    NotImplementedError
        If the mode cannot say the request exactly, with the reason and a mode that can.

    Examples
    --------
    >>> import sparse_ref as sr
    >>> model = convert(Request(sr.Causal(), heads=2, head_dim=8), mode="standard")
    >>> [node.op_type for node in model.graph.node][-1]
    'Attention'
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "standard":
        return standard.convert(request)
    if mode == "microsoft":
        return microsoft.convert(request)
    model = pattern_model(request, body=body, inline=mode == "inline")
    optional = {name: name for name in ("key_length", "q_start") if getattr(request, name)}
    for node in model.graph.node:
        if any(one.key == PATTERN for one in node.metadata_props):
            say(node, request.pattern, sentence(request.pattern), **optional)
    if mode == "inline":  # no node is left to say it
        values: dict[str, Any] = {
            "query": "q",
            "key": "k",
            "value": "v",
            "output": "y",
            "ours": True,
        }
        values |= {
            "scale": scale_in_file(request.scale, request.dtype),
            "softcap": as_attribute(request.softcap),
        }
        values |= {"sinks": "sinks" if request.sinks else None} | optional
        say(model, request.pattern, sentence(request.pattern), **values)
    return model
