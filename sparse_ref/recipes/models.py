"""Decoders as they were released: what each layer's attention sees.

`layer=None` is the sparse layer's pattern, an int that layer's (the first is 0).
"""

from __future__ import annotations

import math

from sparse_ref._arrays import integer
from sparse_ref.patterns import Blocked, Causal, Chunked, KeyStride, Pattern, PerHead, SlidingWindow


def mistral(window: int = 4096) -> Pattern:
    """The last `window` keys, the own one included, in all layers (Mistral 7B, arXiv:2310.06825).

    >>> from sparse_ref import draw
    >>> print(draw(mistral(2), 4))
    # . . .
    # # . .
    . # # .
    . . # #
    """
    return SlidingWindow(integer("window", window, 1) - 1, 0)


def gemma3(window: int = 1024, layer: int | None = None) -> Pattern:
    """Five layers with the last `window` keys, then a full one (Gemma 3, arXiv:2503.19786).

    Layers 5, 11, 17, ... are full causal: `(layer + 1) % 6 == 0` in the transformers code. The
    window is 512 in the 1B model, else 1024. Text only: tokens of one image see each other, in
    sliding layers within the window: `SlidingWindow(w - 1, None) & (Causal() | Document(images))`.

    >>> gemma3(512), gemma3(512, layer=5)
    (SlidingWindow(left=511, right=0, dilation=1), Causal())
    """
    return _unless(_every(layer, 6, 5), mistral(window))


def gpt_oss(window: int = 128, layer: int | None = None) -> Pattern:
    """Sliding and full layers in turn, the first one sliding (gpt-oss, arXiv:2508.10925).

    Each head also has a sink *logit* in the softmax: `attention(..., sink_logits=...)`.

    >>> gpt_oss(layer=0), gpt_oss(layer=1)
    (SlidingWindow(left=127, right=0, dilation=1), Causal())
    """
    return _unless(_every(layer, 2, 1), mistral(window))


def llama4(chunk: int = 8192, layer: int | None = None) -> Pattern:
    """Three layers within chunks, then a full one (Llama 4's iRoPE; transformers `llama4`).

    Chunked is not sliding: the first token of a chunk sees itself only. Layers 3, 7, 11, ... are
    full causal, without rotary positions. With left padding the code shifts the chunks' origin:
    `Causal() & Chunked(chunk, origin=pad)`.

    >>> from sparse_ref import draw
    >>> print(draw(llama4(3), 5))
    # . . . .
    # # . . .
    # # # . .
    . . . # .
    . . . # #
    """
    return _unless(_every(layer, 4, 3), Causal() & Chunked(integer("chunk", chunk, 1)))


def phi3_small(
    heads: int = 32,
    block_size: int = 64,
    local_blocks: int = 16,
    vert_stride: int = 8,
    homo_head: bool = False,
    layer: int | None = None,
) -> Pattern:
    """Local blocks and every vert_stride-th block, shifted by head (Phi-3-small, arXiv:2404.14219).

    As `triton_flash_blocksparse_attn.py` of microsoft/Phi-3-small and `blocksparse_attention` of
    vLLM: blocks kb with `qb - kb < local_blocks` or `(kb + head * step + 1) % vert_stride == 0`,
    up to the query's own token; step = 0 if `homo_head`, else max(1, vert_stride // heads).
    `head` is the query head, whatever the sharding. Layers 1, 3, 5, ... are dense.

    >>> from sparse_ref import draw
    >>> print(draw(phi3_small(heads=2, block_size=1, local_blocks=2, vert_stride=3), 6))
    head 0
    # . . . . .
    # # . . . .
    . # # . . .
    . . # # . .
    . . # # # .
    . . # . # #
    head 1
    # . . . . .
    # # . . . .
    . # # . . .
    . # # # . .
    . # . # # .
    . # . . # #
    """
    count, v = integer("heads", heads, 1), integer("vert_stride", vert_stride, 1)
    local = SlidingWindow(integer("local_blocks", local_blocks, 1) - 1, 0)
    if not isinstance(homo_head, bool):
        raise TypeError(f"homo_head must be True or False, got {homo_head!r}")
    step = 0 if homo_head else max(1, v // count)
    distinct = min(count, v // math.gcd(step, v))
    vertical = [KeyStride(v, [(-1 - head * step) % v]) for head in range(distinct)]
    strides = vertical[0] if distinct == 1 else PerHead(vertical)
    return _unless(_every(layer, 2, 1), Causal() & Blocked(local | strides, block_size))


def _every(layer: int | None, period: int, at: int) -> bool:
    """Whether the layer is one of the full ones."""
    return layer is not None and integer("layer", layer, also=" or None") % period == at


def _unless(full: bool, sparse: Pattern) -> Pattern:
    return Causal() if full else sparse
