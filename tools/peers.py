"""The other sides of the benchmark in torch: SDPA and compiled FlexAttention.

A peer is a function that makes one or several forms of the same computation, best settings each;
the benchmark times the fastest. `peers_onnx` holds those that run ONNX or OpenVINO graphs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

Arrays = tuple[NDArray[Any], ...]
MaskMod = Callable[..., Any]


class MissingError(Exception):
    """A side cannot run here, and why: the row is made without it."""


class FellBackError(Exception):
    """A side ran, but not the way it is compared as: there is no ratio."""


def said(error: Exception) -> str:
    """An error in one line of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


@dataclass(frozen=True)
class Task:
    """What every side of a case computes; with `dout`, gradients of q, k and v too."""

    pattern: sr.Pattern
    q: NDArray[Any]  # (1, h, m, d)
    k: NDArray[Any]  # (1, g, n, d)
    v: NDArray[Any]
    dout: NDArray[Any] | None = None
    threads: int = 2

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(m, n), of all heads."""
        mask: NDArray[np.bool_] = self.pattern.mask(self.q.shape[2], self.k.shape[2])[0]
        return mask


class Form(NamedTuple):
    """One way a side may be run."""

    how: str  # "" where there is one way only
    call: Callable[[], Any]  # what is timed
    arrays: Callable[[Any], Arrays]  # from its result: out (1, h, m, e), then dq, dk, dv


Peer = Callable[[Task], Iterator[Form]]


def needed(module: str, package: str | None = None) -> Any:
    """The module, if it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise MissingError(f"{name} is not installed ({error})") from error


def sdpa_causal(task: Task) -> Iterator[Form]:
    """Torch's own kernel with is_causal, which counts from the first key."""
    yield _sdpa(task, "", is_causal=True)


def sdpa_dense(task: Task) -> Iterator[Form]:
    yield _sdpa(task, "")


def sdpa_masked(task: Task) -> Iterator[Form]:
    """A dense mask, as bools and as what is added to the scores."""
    torch = needed("torch")
    mask = torch.from_numpy(task.mask)
    zeros = torch.zeros(mask.shape, dtype=_tensor(task.q).dtype)
    yield _sdpa(task, "bool mask", attn_mask=mask)
    yield _sdpa(task, "float mask", attn_mask=zeros.masked_fill(~mask, -torch.inf))


def sdpa_grouped(task: Task) -> Iterator[Form]:
    """Query heads that share keys, every query seeing all of them."""
    yield _sdpa(task, "", enable_gqa=True)


def sdpa_folded(task: Task) -> Iterator[Form]:
    """The same, the heads of a group written as so many queries of one head."""
    _, h, m, d = task.q.shape
    g = task.k.shape[1]
    folded = Task(task.pattern, task.q.reshape(1, g, h // g * m, d), task.k, task.v)
    plain = _sdpa(folded, "")
    yield Form("", plain.call, lambda out: tuple(x.reshape(1, h, m, -1) for x in plain.arrays(out)))


def flex(task: Task) -> Iterator[Form]:
    """FlexAttention, compiled; an eager run is refused.

    Block sizes 64 and 128 and every spelling of the mask are tried. Blocks are found in advance,
    from the dense mask, as `create_block_mask` finds them.
    """
    torch = needed("torch")
    attention = needed("torch.nn.attention.flex_attention")
    counters = importlib.import_module("torch._dynamo.utils").counters
    torch.set_num_threads(task.threads)
    torch._dynamo.reset()  # after 8 compiled forms of one function torch runs it eagerly
    q, k, v = (_tensor(x) for x in (task.q, task.k, task.v))
    dense = torch.from_numpy(task.mask)
    for spelling, mask_mod in mask_mods(task).items():
        for block in (64, 128):
            found = attention.create_block_mask(
                lambda b, h, i, j: dense[i, j], None, None, *dense.shape, "cpu", block
            )
            lists = (found.kv_num_blocks, found.kv_indices)
            full = (found.full_kv_num_blocks, found.full_kv_indices)
            block_mask = attention.BlockMask.from_kv_blocks(
                *lists, *full, block, mask_mod, tuple(dense.shape)
            )
            compiled = torch.compile(attention.flex_attention, fullgraph=True, dynamic=False)

            def call(compiled: Any = compiled, block_mask: Any = block_mask) -> Any:
                with torch.no_grad():
                    return compiled(q, k, v, block_mask=block_mask)

            counters.clear()
            call()
            compiled_once(counters)
            counters.clear()
            call()  # and is not compiled again
            if counters["stats"]:
                raise FellBackError("FlexAttention is compiled anew in every call")
            yield Form(f"block {block}{spelling and ', ' + spelling}", call, lambda x: (_array(x),))


def compiled_once(counters: Any) -> None:
    """Raise unless torch's counters say: one graph, without a break, through Inductor."""
    graphs, inductor = counters["stats"]["unique_graphs"], counters["inductor"]
    built = inductor["cpp_templated_kernel_counter"] + inductor["fxgraph_cache_hit"]
    if graphs != 1 or sum(counters["graph_break"].values()) or not built:
        raise FellBackError(
            f"FlexAttention was not compiled: {graphs} graphs, "
            f"breaks {dict(counters['graph_break'])}, Inductor {dict(inductor)}"
        )


def mask_mods(task: Task) -> dict[str, MaskMod]:
    """The pattern as FlexAttention's users spell it; the name says how, where there is a choice.

    Our predicate itself where it is made of operators, look-ups in tensors where it reads tables.
    """
    pattern, n = task.pattern, task.k.shape[2]
    match pattern:
        case sr.RandomKeys():
            keys = np.nonzero(task.mask)[1].reshape(n, -1)
            return {"dense table": _table(task.mask), "unrolled": _any_of(keys)}
        case sr.Grid(patterns=(sr.Neighborhood(), sr.Neighborhood())):
            return {"our predicate": _predicate(pattern), "clamped": _neighborhood(pattern)}
        case sr.Blocked(pattern=blocks, block_size=int(size)):
            asked = _table(blocks.mask(-(-n // size), -(-n // size))[0])
            return {"": lambda b, h, i, j: asked(b, h, i // size, j // size)}
        case sr.And(patterns=(sr.Causal(), sr.Document(ids=ids))):
            table = needed("torch").from_numpy(np.array(ids.values))
            return {"": lambda b, h, i, j: (j <= i) & (table[i] == table[j])}
        case _:
            return {"": _predicate(pattern)}


def _predicate(pattern: sr.Pattern) -> MaskMod:
    return lambda b, h, i, j: pattern(i, j)


def _table(mask: NDArray[np.bool_]) -> MaskMod:
    table = needed("torch").from_numpy(mask)
    return lambda b, h, i, j: table[i, j]


def _any_of(keys: NDArray[np.int64]) -> MaskMod:
    """One comparison for each of a row's keys."""
    count = keys.shape[1]
    table = needed("torch").from_numpy(keys.ravel())

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        seen = table[i * count] == j
        for one in range(1, count):
            seen = seen | (table[i * count + one] == j)
        return seen

    return mask_mod


def _neighborhood(grid: Any) -> MaskMod:
    """As attn_gym spells it: the window's middle is clamped to where the window fits."""
    (_, width), sides = grid.shape, grid.patterns

    def near(side: Any, i: Any, j: Any) -> Any:
        half = side.kernel // 2
        return (i.clamp(half, side.length - 1 - half) - j).abs() <= half

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return near(sides[0], i // width, j // width) & near(sides[1], i % width, j % width)

    return mask_mod


def _sdpa(task: Task, how: str, **options: Any) -> Form:
    torch = needed("torch")
    torch.set_num_threads(task.threads)
    attend = torch.nn.functional.scaled_dot_product_attention
    leaves = [_tensor(x) for x in (task.q, task.k, task.v)]
    if task.dout is None:

        def forward() -> Any:
            with torch.no_grad():
                return (attend(*leaves, **options),)

        return Form(how, forward, lambda results: tuple(map(_array, results)))
    for leaf in leaves:
        leaf.requires_grad_()
    dout = _tensor(task.dout)

    def both_ways() -> Any:
        out = attend(*leaves, **options)
        return (out, *torch.autograd.grad(out, leaves, dout))

    return Form(how, both_ways, lambda results: tuple(map(_array, results)))


def _tensor(x: NDArray[Any]) -> Any:
    torch = needed("torch")
    if x.dtype.name == "bfloat16":  # NumPy has no such type, torch has no view of ml_dtypes'
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _array(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().to(needed("torch").float32).numpy())
