"""The catalogue's core and expected patterns, each large enough for 257 tokens and not too regular.

Patterns that a model selects while it runs (top-k, pooled blocks, hashes) are no `Pattern` and so
have no file; neither have additive biases.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref import recipes

N = 257  # a prime; where blocks of 16 must fit, 17 of them
BLOCKS, GRID = 272, (16, 17)
RNG = np.random.default_rng(0)
IMAGES = np.where(np.arange(N) % 50 < 20, np.arange(N) // 50, -1)  # -1: text
DOCUMENTS = np.arange(N) // 60
WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)

CORE: dict[str, sr.Pattern] = {
    "full": sr.Full(),
    "causal": sr.Causal(),
    "mistral": recipes.mistral(20),
    "a window both ways": sr.SlidingWindow(9, 9),
    "a window, not symmetric": sr.SlidingWindow(20, 3),
    "a window without a left end": sr.SlidingWindow(None, 5),
    "gemma3, a sliding layer": recipes.gemma3(20, layer=0),
    "gemma3, a full layer": recipes.gemma3(20, layer=5),
    "gemma3 with images": sr.SlidingWindow(20, None) & (sr.Causal() | sr.Document(IMAGES)),
    "gpt_oss, a sliding layer": recipes.gpt_oss(33, layer=0),
    "packed documents": sr.Causal() & sr.Document(DOCUMENTS),
    "positions within documents": sr.WithinDocument(WINDOW | sr.Sink(2), DOCUMENTS),
    "padding on the left": sr.Causal() & sr.Keys(range(5, N)),
    "prefix": sr.PrefixLM(12),
    "images that see themselves": sr.Causal() | sr.Document(IMAGES),
    "causal by blocks": sr.Chunked(16, back=None),
    "llama4": recipes.llama4(24),
    "llama4 by 32": recipes.llama4(32),
    "llama4, padded": sr.Causal() & sr.Chunked(24, origin=5),
    "chunks that look back": sr.Causal() & sr.Chunked(24, back=1, origin=7),
    "chunks both ways": sr.Chunked(17, back=2, ahead=1),
    "earlier chunks only": sr.Chunked(13, back=None, ahead=-1),
    "streaming_llm": recipes.streaming_llm(4, 20),
    "explicit blocks": sr.BlockPattern(RNG.random((17, 17)) < 0.3, 16),
    "explicit pairs": sr.from_mask(RNG.random((N, N)) < 0.2),
    "few explicit pairs": sr.Tokens(RNG.random((N, N)) < 0.01),
    "global tokens": sr.SlidingWindow(9, 9) | sr.Global([0, 100]),
    "nothing": ~sr.Full(),
    "rows that see nothing": sr.Keys([40]) & sr.Causal(),
    "every third row": sr.Rows(range(1, N, 3)) & sr.SlidingWindow(5, 5),
    "heads differ": sr.PerHead([WINDOW, sr.Causal() & sr.Strided(7), sr.Keys([0, 3])]),
    "batch rows differ": sr.PerBatch([WINDOW, sr.PerHead([sr.Causal(), sr.Chunked(9)])]),
    "documents of the run": sr.Causal() & sr.Document(sr.Runtime("ids")),
    "documents of the run in one head": sr.PerHead(
        [sr.Causal() & sr.Document(sr.Runtime("ids")), WINDOW]
    ),
    "global tokens of the run": sr.SlidingWindow(9, 9) | sr.Global(sr.Runtime("seen")),
    "prefixes of the run": sr.PrefixLM(sr.Runtime("prefix")),
}
EXPECTED: dict[str, sr.Pattern] = {
    "longformer": recipes.longformer(20, [0, 77]),
    "longformer, dilated": recipes.longformer(12, [3], dilation=3),
    "bigbird": recipes.bigbird(BLOCKS, block_size=16, heads=4),
    "longt5": recipes.longt5(15),
    "etc": sr.Global(range(9)) | sr.SlidingWindow(13, 13),
    "star": sr.Global([0]) | sr.SlidingWindow(1, 1),
    "sparse_transformer_strided": recipes.sparse_transformer_strided(16),
    "sparse_transformer_strided, heads": recipes.sparse_transformer_strided(16, heads=4),
    "sparse_transformer_fixed": recipes.sparse_transformer_fixed(16, 3),
    "deepspeed_fixed": recipes.deepspeed_fixed(BLOCKS, 4, patterns=4),
    "deepspeed_fixed, horizontal": recipes.deepspeed_fixed(BLOCKS, horizontal=True),
    "deepspeed_variable": recipes.deepspeed_variable(BLOCKS, 4, random_blocks=1, causal=True),
    "deepspeed_bigbird": recipes.deepspeed_bigbird(BLOCKS, 4),
    "deepspeed_bslongformer": recipes.deepspeed_bslongformer(BLOCKS, global_blocks=[0, 5]),
    "deepspeed_sliding": recipes.deepspeed_sliding(BLOCKS),
    "phi3_small": recipes.phi3_small(heads=4, block_size=16, local_blocks=2, vert_stride=5),
    "a dilated window": sr.SlidingWindow(5, 2, dilation=3),
    "natten": recipes.natten(GRID, (5, 3), dilation=(1, 2)),
    "natten, causal": recipes.natten(GRID, (4, 5), stride=(2, 1), causal=(True, False)),
    "one axis of natten": sr.Neighborhood(N, 13),
    "swin": recipes.swin(GRID, window=7, shift=3),
    "axial": recipes.axial(GRID, 0),
    "criss-cross": recipes.axial(GRID, 0) | recipes.axial(GRID, 1),
    "random": sr.RandomKeys(7, 1, N),
    "random and causal": sr.Causal() & (sr.RandomKeys(5, 0, N, causal=True) | WINDOW),
    "not random": sr.Causal() - sr.RandomKeys(9, 3, N, exclude=WINDOW),
    "longnet": recipes.longnet([16, 64], [1, 4], heads=4),
    "longnet, both ways": recipes.longnet([16, 64], [1, 4], heads=4, causal=False),
    "logsparse": recipes.logsparse(N, local=3),
    "butterfly": recipes.butterfly(4, 16, global_blocks=1),
    "xor": sr.Xor([0, 1, 4, 32]),
    "block_diffusion": recipes.block_diffusion(136, 8),
    "tri_shape": recipes.tri_shape(N, sinks=3, window=20, last=9),
    "vertical_slash": recipes.vertical_slash([1, 100], [0, 3, 64]),
    "offsets both ways": sr.Offsets([-2, 0, 5, 70]),
    "strides of rows and keys": sr.KeyStride(5, [4]) & sr.RowStride(2, [0]),
    "blocks of a pattern": sr.Blocked(sr.SlidingWindow(1, 0) | sr.Sink(1), 16),
    "a product": sr.Grid(GRID, (sr.Neighborhood(16, 5), sr.SlidingWindow(1, 1))),
    "permuted": sr.Permuted(sr.SlidingWindow(2, 2), RNG.permutation(N)),
    "a multiset": sr.Multi([WINDOW, sr.Sink(3), WINDOW]),
    "a multiset with a length": sr.Multi([sr.RandomKeys(4, 1, N), sr.SlidingWindow(2, 2)]),
}
CATALOGUE = CORE | EXPECTED

Drawn = tuple[dict[str, Any], sr.Pattern]  # run-time inputs, and the pattern with them in place


def _documents(b: int, n: int, rng: np.random.Generator) -> Drawn:
    ids = np.sort(rng.integers(-1, 4, (b, n)), axis=1)  # -1 is in none
    return {"ids": ids}, sr.PerBatch([sr.Causal() & sr.Document(row) for row in ids])


def _one_head(b: int, n: int, rng: np.random.Generator) -> Drawn:
    given, rows = _documents(b, n, rng)
    return given, sr.PerBatch([sr.PerHead([rows.for_batch(i), WINDOW]) for i in range(b)])


def _globals(b: int, n: int, rng: np.random.Generator) -> Drawn:
    seen = rng.random((b, n)) < 0.05
    return {"seen": seen}, sr.PerBatch([sr.SlidingWindow(9, 9) | sr.Global(row) for row in seen])


def _prefixes(b: int, n: int, rng: np.random.Generator) -> Drawn:
    prefix = rng.integers(0, n + 1, b)
    return {"prefix": prefix}, sr.PerBatch([sr.PrefixLM(int(one)) for one in prefix])


AT_RUN_TIME: dict[str, Callable[..., Drawn]] = {
    "documents of the run": _documents,
    "documents of the run in one head": _one_head,
    "global tokens of the run": _globals,
    "prefixes of the run": _prefixes,
}


def drawn(name: str, b: int, n: int) -> Drawn:
    """The run-time inputs of a pattern for b rows of n positions."""
    draw = AT_RUN_TIME.get(name, lambda *_: ({}, CATALOGUE[name]))
    return draw(b, n, np.random.default_rng(n))
