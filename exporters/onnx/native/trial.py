"""A trial of the registration, in a process of its own: `python -m exporters.onnx.native.trial`.

Tiny models of every element type run on the kernel and are held against the oracle; what goes wrong
goes wrong here.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

import sparse_ref as sr
from exporters.onnx.pattern_model import pattern_to_onnx

from .register import loaded

TYPES = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-2}  # and how far they may be off


def main(arguments: list[str]) -> None:
    """Run the models; an exception if one is wrong."""
    library = str(loaded("elf" in arguments))
    pattern = sr.Causal() & (sr.SlidingWindow(3, 0) | sr.Sink(2))
    rng = np.random.default_rng(0)
    for name, most in TYPES.items():
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(library)
        model = pattern_to_onnx(pattern, heads=2, kv_heads=1, head_dim=5, dtype=name)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        shapes = {"q": (1, 2, 67, 5), "k": (1, 1, 131, 5), "v": (1, 1, 131, 5)}
        q, k, v = (rng.standard_normal(shape).astype(name) for shape in shapes.values())
        got = session.run(None, {"q": q, "k": k, "v": v})[0]
        error = np.abs(got - sr.attention(q, k, v, pattern).out).max()
        if not error < most:
            raise RuntimeError(f"{name} is off by {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
