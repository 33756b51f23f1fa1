"""Kernels that the error bounds must hold for, ours and others', on the same random cases.

The oracle and the bound of a case serve all kernels, so that many elements are checked in little
time. `python -m tests.bound_kernels 1e8 1e7` prints what was found, forward and backward.
"""

import sys
from collections import defaultdict

import numpy as np

import sparse_ref as sr
from tests import numpy_gradients, numpy_kernels
from tests.test_bounds import FAMILIES, draw, excess, inputs

LENGTHS, SIZES = (17, 64, 129, 301, 520), (8, 33, 64, 128)
SETTINGS = {  # inputs and output, and the weights of the NumPy kernels
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "float16, float32 inside": ("float16", "float32"),
}
# ONNX Runtime's CPU stores float16 scores before the softmax, and so is judged as what does.
STORED_SCORES = sr.Arithmetic("float16", "float32", "float16", "float32", "float16")


class Case:
    """Inputs, the oracle's answer, and the bound of each arithmetic asked for."""

    def __init__(self, rng, family, setting):
        self.kind, self.weight = SETTINGS[setting]
        n, d = int(rng.choice(LENGTHS)), int(rng.choice(SIZES))
        self.scale = d**-0.5
        self.pattern = sr.Causal() & sr.SlidingWindow(int(rng.integers(n)), 0)
        self.q, self.k, self.v = inputs(rng, family, 1, n, d, self.kind)
        self.dout = draw(rng, family, (1, n, d)).astype(self.kind)
        self.mask = self.pattern.mask(n, n)
        self.bounds = {}

    @property
    def qkv(self):
        return self.q, self.k, self.v

    def bound(self, arithmetic):
        if arithmetic not in self.bounds:
            self.bounds[arithmetic] = sr.error_bound(
                *self.qkv, self.pattern, arithmetic=arithmetic, output=self.kind
            )
        return self.bounds[arithmetic]


def plain(kernel):
    """One of the NumPy kernels."""
    return lambda case: kernel(*case.qkv, case.mask, scale=case.scale, weight=case.weight)


def in_torch(case):
    import torch

    attend = torch.nn.functional.scaled_dot_product_attention
    given = (torch.from_numpy(x)[None] for x in case.qkv)
    return attend(*given, attn_mask=torch.from_numpy(case.mask))[0].numpy(), None


def in_onnxruntime(case):
    """The standard's Attention, version 23."""
    from onnx import helper

    from tests.witnesses.models import model, session

    feeds = dict(zip("QKV", (x[None] for x in case.qkv), strict=True)) | {"mask": case.mask}
    if case.kind not in SESSIONS:
        made = model(helper.make_node("Attention", [*feeds], ["Y"]), feeds, 23)
        for value in made.graph.input:
            for i, axis in enumerate(value.type.tensor_type.shape.dim):
                axis.dim_param = f"{value.name}{i}"
        SESSIONS[case.kind] = session(made)
    return SESSIONS[case.kind].run(None, feeds)[0][0], None


SESSIONS = {}
KERNELS = {
    "naive": plain(numpy_kernels.naive), "online": plain(numpy_kernels.online),
    "blocked": plain(numpy_kernels.blocked), "torch": in_torch, "onnxruntime": in_onnxruntime,
    "numba": lambda case: sr.kernels.attention(*case.qkv, case.pattern),
}  # fmt: skip


def gradients_plain(kernel):
    """One of the NumPy kernels backward."""

    def run(case):
        none = np.zeros(case.dout.shape[:2])
        return kernel(
            *case.qkv, case.mask, case.dout, none, scale=case.scale, weight=case.weight
        )  # fmt: skip

    return run


def gradients_in_torch(case):
    import torch

    leaves = [torch.from_numpy(x)[None].requires_grad_() for x in case.qkv]
    attend = torch.nn.functional.scaled_dot_product_attention
    attend(*leaves, attn_mask=torch.from_numpy(case.mask)).backward(
        torch.from_numpy(case.dout)[None]
    )
    return [leaf.grad[0].numpy() for leaf in leaves]


GRADIENTS = {
    "naive": gradients_plain(numpy_gradients.naive),
    "from-lse": gradients_plain(numpy_gradients.from_lse),
    "torch": gradients_in_torch,
    "numba": lambda case: sr.kernels.attention_vjp(*case.qkv, case.pattern, case.dout),
}


def cases(seed):
    """Without end: every family in every setting in turn."""
    rng = np.random.default_rng(seed)
    while True:
        for family in FAMILIES:
            for setting in SETTINGS:
                yield setting, Case(rng, family, setting)


def forward(seed, elements):
    """By (kernel, setting): error over bound of `elements` of out and lse in all, and more."""
    result, size = defaultdict(list), 0
    for setting, case in cases(seed):
        want = sr.attention(*case.qkv, case.pattern)
        for name, kernel in KERNELS.items():
            if case.weight != case.kind and name not in ("naive", "online", "blocked"):
                continue
            stores = name == "onnxruntime" and case.kind == "float16"
            bound = case.bound(STORED_SCORES if stores else case.weight)
            for got, exact, limit in zip(kernel(case), want, bound, strict=True):
                if got is not None:
                    result[name, setting].append(excess(got, exact, limit).astype(np.float32))
                    size += exact.size
        if size >= elements:
            return {key: np.concatenate(parts) for key, parts in result.items()}
    raise AssertionError


def backward(seed, elements):
    """The same of dq, dk and dv."""
    result, size = defaultdict(list), 0
    for setting, case in cases(seed):
        given = (*case.qkv, case.pattern, case.dout)
        want = sr.attention_vjp(*given)
        bound = sr.error_bound_vjp(*given, arithmetic=case.weight, output=case.kind)
        for name, kernel in GRADIENTS.items():
            if case.weight != case.kind and name not in ("naive", "from-lse"):
                continue
            for got, exact, limit in zip(kernel(case)[:3], want[:3], bound[:3], strict=True):
                result[name, setting].append(excess(got, exact, limit).astype(np.float32))
                size += exact.size
        if size >= elements:
            return {key: np.concatenate(parts) for key, parts in result.items()}
    raise AssertionError


if __name__ == "__main__":
    for title, found in (("forward", forward), ("backward", backward)):
        ratios = found(7, float(sys.argv[1 if title == "forward" else 2]))
        print(f"{title}: {sum(x.size for x in ratios.values()):,} elements")  # noqa: T201
        for (name, setting), ratio in sorted(ratios.items()):
            print(  # noqa: T201
                f"  {name:12} {setting:24} {ratio.size:11,} elements, {int((ratio > 1).sum())} "
                f"beyond, worst {ratio.max():.3f}, 99.9 %: {np.quantile(ratio, 0.999):.4f}",
                flush=True,
            )
