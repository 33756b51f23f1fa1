"""A pattern as one readable Python file that computes attention over it and needs torch alone."""

from __future__ import annotations

import base64
import inspect
import textwrap
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.patterns.relation import Relation
from sparse_ref.patterns.spans import Span

from . import gather, standalone
from .mask_mods import SIGNATURE, cycle, distinct, written
from .terms import Function

SHORT = 64  # entries of a table that is written out
PICTURE = 16  # positions of the picture of a pattern
IMPORTS = """\
from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
"""
MODULE = '''
SCALE: float | None = {scale}  # None: head_dim ** -0.5
SOFTCAP = {softcap}  # scores become SOFTCAP * tanh(score / SOFTCAP); 0.0: they do not


def block_mask(
    q_len: int, kv_len: int, heads: int = 1, q_start: int | None = None, size: int = 128,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """The BlockMask of the pattern; by default the queries are the last positions."""
    start = kv_len - q_len if q_start is None else q_start
    row, column = torch.arange(0, q_len, size), torch.arange(0, kv_len, size)
    spans = ((row[:, None], size, q_len), (column[None], size, kv_len))
    (q_lo, q_hi), (k_lo, k_hi) = ((lo, (lo + step).clamp(max=end) - 1) for lo, step, end in spans)
    each = [BLOCKS[h % len(BLOCKS)](q_lo + start, q_hi + start, k_lo, k_hi) for h in range(heads)]
    must, may = (torch.stack([x.expand(len(row), len(column)) for x in side])[None]
                 for side in zip(*each))
    whole = (q_hi - q_lo + 1 == size) & (k_hi - k_lo + 1 == size)
    full = must & may & whole
    mod = mask_mod_on(device)

    def moved(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mod(b, h, q + start, k)

    def ordered(x: Tensor) -> tuple[Tensor, Tensor]:
        columns = x.int().argsort(dim=-1, descending=True, stable=True)
        return x.sum(-1).int().to(device), columns.int().to(device)

    return BlockMask.from_kv_blocks(
        *ordered(may & ~full), *ordered(full), BLOCK_SIZE=size, mask_mod=moved,
        seq_lengths=(q_len, kv_len),
    )


class Attention(nn.Module):
    """Attention over the pattern: q (b, h, m, d), k (b, g, n, d), v (b, g, n, e) -> (b, h, m, e).

    g divides h. Query head i has the pattern of head i % {heads}. A query that sees no key gets 0.
    """

    def __init__(self, block_size: int = 128):
        super().__init__()
        self.block_size, self.masks = block_size, dict[Any, BlockMask]()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, q_start: int | None = None) -> Tensor:
        heads = q.shape[1] if len(set(BLOCKS)) > 1 else 1
        key = q.shape[2], k.shape[2], heads, q_start, self.block_size, q.device
        if key not in self.masks:
            self.masks[key] = block_mask(*key)
        mask, scale = self.masks[key], q.shape[-1] ** -0.5 if SCALE is None else SCALE
        if q.device.type == "cpu":  # FlexAttention has no gradients there
            return gathered_attention(q, k, v, mask, Scores(scale, SOFTCAP))[0]
        out: Tensor = compiled_flex()(
            q, k, v, score_mod=softcapped if SOFTCAP else None, block_mask=mask, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out


@functools.cache
def compiled_flex() -> Any:
    return torch.compile(flex_attention)


def softcapped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return SOFTCAP * torch.tanh(score / SOFTCAP)
'''


def emit(pattern: sr.Pattern, *, scale: float | None = None, softcap: float | None = None) -> str:
    r"""The text of a Python file with the pattern's mask_mod, BlockMask and attention module.

    Parameters
    ----------
    pattern : Pattern
        A set, the same for every batch row, of known tables.
    scale : float, default head_dim ** -0.5
    softcap : float > 0, optional
        Scores become softcap * tanh(score / softcap).

    Returns
    -------
    str. The file imports torch only. `mask_mod` is the predicate, `block_mask` makes a BlockMask of
    any length from intervals of positions, not from pairs; `Attention` runs FlexAttention on a
    GPU, and the listed blocks in plain torch, with gradients, on a CPU.

    Raises
    ------
    NotImplementedError
        If the pattern is a multiset, differs by batch row, or holds a `Runtime`.

    Examples
    --------
    >>> text = emit(sr.Causal() & sr.SlidingWindow(2, 0))
    >>> print(text[text.index("    def mask_mod") :].split("\n\n")[0])
        def mask_mod(b, h, q, k):
            return (k <= q) & ((q - k <= 2) & (k - q <= 0))
    """
    if pattern.multiset:
        raise NotImplementedError(f"a BlockMask holds sets, got the multiset {pattern!r}")
    if pattern.batches is not None:
        raise NotImplementedError(f"write each batch row's pattern, for_batch(0), got {pattern!r}")
    counting = _counting(pattern)
    function = Function()
    try:
        _, lines = written(counting, counting.heads, function=function)
        verdicts = [_verdict(one, function) for one in distinct(counting, counting.heads)]
    except TypeError as error:
        raise NotImplementedError(str(error)) from None
    blocks = {one: f"blocks_{i}" for i, one in enumerate(distinct(counting, counting.heads))}
    order = [blocks[counting.at(h)] for h in range(cycle(counting, counting.heads))]
    sections = [
        (_about(pattern) + IMPORTS).rstrip(),
        *_helpers(function),
        "\n".join(_tables(function)),
        _mask_mod(function, lines),
        *(f"def {name}(q_lo, q_hi, k_lo, k_hi):\n{_body(text)}"
          for name, text in zip(blocks.values(), verdicts, strict=True)),
        f"BLOCKS = ({', '.join(order)},)",
        _text_of(gather),
        MODULE.format(scale=scale, softcap=float(softcap or 0.0), heads=len(order)).strip(),
    ]  # fmt: skip
    return "\n\n\n".join(section for section in sections if section) + "\n"


def _about(pattern: sr.Pattern) -> str:
    said = textwrap.fill(f"Attention over {pattern!r}.", 98, subsequent_indent="  ")
    picture = ""
    if pattern.heads == 1:
        n = min(PICTURE, PICTURE if pattern.covers is None else pattern.covers)
        picture = f"\n\nQueries down, keys across, '#' is seen:\n\n{sr.draw(pattern, n)}"
    text = f"{said}{picture}\n\nWritten by sparse-ref {sr.__version__}; needs torch alone.\n"
    return f'"""{text}"""\n\n'


def _helpers(function: Function) -> Iterator[str]:
    """The functions that are called, and those that these call."""
    used = [name.removesuffix("()") for name in sorted(function.helpers)]
    needs = {"listed": ["look", "listed"], "counted": ["cells_of", "counted"]}
    names = dict.fromkeys(one for name in used for one in needs.get(name, [name]))
    for name in names:
        if hasattr(standalone, name):
            yield inspect.getsource(getattr(standalone, name)).rstrip()
    if function.tables:
        yield inspect.getsource(standalone.unpacked).rstrip()


def _tables(function: Function) -> Iterator[str]:
    for name, table in function.tables.items():
        if isinstance(table, tuple):
            *arrays, halvings = table
            inside = ",\n    ".join(map(_literal, arrays))
            yield f"{name.upper()} = (\n    {inside},\n    {halvings},\n)"
            yield f"{name.replace('pairs', 'cells')} = cells_of({name.upper()})"
        else:
            yield f"{name} = {_literal(table)}"


def _literal(table: np.ndarray[Any, Any]) -> str:
    if len(table) <= SHORT:
        return f"torch.tensor({table.tolist()})"
    packed = base64.b64encode(zlib.compress(table.astype("<i8").tobytes(), 9)).decode()
    lines = "\n        ".join(f'"{line}"' for line in textwrap.wrap(packed, 88))
    return f"unpacked(\n        {lines}\n    )"


def _mask_mod(function: Function, lines: list[str]) -> str:
    """A mask_mod whose tables are on a device."""
    placed = []
    for name, table in function.tables.items():
        if isinstance(table, tuple):
            placed.append(f"{name} = tuple(x.to(device) for x in {name.upper()}[:3])")
            placed[-1] += f" + {name.upper()}[3:]"
        else:
            placed.append(f"{name} = globals()[{name!r}].to(device)")
    inner = [SIGNATURE, *(f"    {line}" for line in lines)]
    body = [*placed, *inner, "", "return mask_mod"]
    about = '"""mask_mod(b, h, q, k): whether position q sees position k; tables on a device."""'
    return "def mask_mod_on(device):\n" + _body([about, *body])


def _verdict(one: sr.Pattern, function: Function) -> list[str]:
    """What intervals say of a block: all of its pairs are seen; some may be."""
    q_lo, q_hi, k_lo, k_hi = (function.argument(x) for x in ("q_lo", "q_hi", "k_lo", "k_hi"))
    verdict: Any = one(Span(q_lo, q_hi), Span(k_lo, k_hi))
    lifted = (
        f"torch.tensor({bool(x)})" if isinstance(x, (bool, np.bool_)) else x
        for x in (verdict.must, verdict.may)
    )
    about = '"""Whether all, and whether some, pairs of a block are seen."""'
    return [about, *function.lines(*lifted)]


def _body(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _text_of(module: Any) -> str:
    """What follows the imports of a module."""
    text = inspect.getsource(module)
    return text[text.index("class Items") :].strip()


class Counting(Relation):
    """A relation that is counted in where it is written down."""

    def count(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        name = q_lo.owner.pairs(self).replace("pairs", "cells")
        return q_lo.owner.called("counted", name, q_lo, q_hi, k_lo, k_hi)


def _counting(pattern: sr.Pattern) -> sr.Pattern:
    """The same pattern with relations that count."""
    match pattern:
        case sr.RandomKeys():
            return sr.Tokens(Counting(pattern.relation.rows))
        case sr.Tokens():
            return sr.Tokens(Counting(pattern.csr.rows))
        case sr.BlockPattern():
            return sr.BlockPattern(Counting(pattern.blocks.rows), pattern.block_size)
    return pattern._with(_counting)
