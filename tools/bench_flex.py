"""What a BlockMask costs: `to_flex` against torch's own scan of all pairs, eager and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import sparse_ref as sr

from . import measure
from .limit import Limit, row
from .peers import needed
from .race import Row, Settings, WrongError

TOKENS = 16_384
EAGER, COMPILED = 1 / 200, 1 / 10  # of the time of create_block_mask
CASES: dict[str, Callable[[int], sr.Pattern]] = {
    "causal window 512": lambda n: sr.Causal() & sr.SlidingWindow(511, 0),
    "causal & (window 64 | strided 64)": lambda n: (
        sr.Causal() & (sr.SlidingWindow(63, 0) | sr.Strided(64))
    ),
    "BigBird (64; 3, 2, 3)": sr.recipes.bigbird,
    "causal & (8 random keys | window 64)": lambda n: (
        sr.Causal() & (sr.RandomKeys(8, 0, n) | sr.SlidingWindow(63, 0))
    ),
}


def to_flex(settings: Settings) -> Iterator[Row]:
    """Each in turn, after a fresh start of torch's compiler; the lists must be equal."""
    torch, flex = needed("torch"), needed("torch.nn.attention.flex_attention")
    exporters = needed("exporters")
    n = settings.tokens or (4096 if settings.quick else TOKENS)
    for name, make in CASES.items():
        pattern = make(n)
        torch._dynamo.reset()
        scan = torch.compile(flex.create_block_mask)
        ours, mod = exporters.to_flex(pattern, n, n), _fastest(pattern, n)
        calls = {
            "ours": partial(exporters.to_flex, pattern, n, n),
            "compiled": partial(scan, mod, None, None, n, n, device="cpu"),
        }
        if not _equal(ours, calls["compiled"]()):
            raise WrongError(f"to_flex lists other blocks than create_block_mask: {name}")
        times = measure.in_turn(calls, settings.runs)
        took = {key: statistics.median(one) for key, one in times.items()}
        eager = partial(flex.create_block_mask, mod, None, None, n, n, device="cpu")
        took["eager"] = measure.seconds(eager)
        for peer, limit in (("eager", EAGER), ("compiled", COMPILED)):
            what = f"to_flex, {name}, n = {n:,}: time over create_block_mask's, {peer}"
            asked = limit if n >= TOKENS else None  # what few tokens cost does not grow with them
            yield row(what, took["ours"] / took[peer], "", asked, seconds=took)


def _fastest(pattern: sr.Pattern, n: int) -> Any:
    """The mask_mod that torch scans fastest: written out, or a table where it searches lists."""
    text = needed("exporters").to_flex(pattern, n, n).mask_mod
    if "listed(" not in text.__doc__:
        return text
    table = needed("torch").from_numpy(pattern.mask(n, n)[0])
    return lambda b, h, q, k: table[q, k]


def _equal(ours: Any, theirs: Any) -> bool:
    names = "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"
    return all(bool((getattr(ours, x) == getattr(theirs, x)).all()) for x in names)


FLEX_LIMITS = (Limit("to-flex", "BlockMasks against torch's scan of all pairs", to_flex),)
