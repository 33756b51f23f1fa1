"""Attention patterns of released models; `layer=None` is the sparse layer, an int that layer."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import (
    Blocked,
    Causal,
    Chunked,
    KeyStride,
    Pattern,
    PerHead,
    SlidingWindow,
)


def _alternating(sparse: Pattern, dense_every: int, layer: int | None) -> Pattern:
    """Causal on every `dense_every`-th layer, counted from 1; the sparse pattern on the others."""
    if layer is None:
        return sparse
    return sparse if (integer("layer", layer) + 1) % dense_every else Causal()


def mistral(window: int = 4096) -> Pattern:
    """Mistral 7B: the query and the window - 1 keys before it, in every layer.

    Jiang et al. 2023 (arXiv:2310.06825); Hugging Face `sliding_window`.

    >>> from sparse_ref import draw
    >>> print(draw(mistral(2), 4))
    # . . .
    # # . .
    . # # .
    . . # #
    """
    return SlidingWindow(integer("window", window, 1) - 1, 0)


def gemma3(window: int = 1024, layer: int | None = None) -> Pattern:
    """Gemma 3: five layers with a window of keys, then a causal one (layers 5, 11, ...).

    Gemma Team 2025 (arXiv:2503.19786); Hugging Face `gemma3_text`. Text only: image tokens see
    their whole image, `... & (Causal() | Document(image_ids))` in both kinds of layers.

    >>> gemma3(512, layer=4), gemma3(512, layer=5)
    (SlidingWindow(left=511, right=0, dilation=1), Causal())
    """
    return _alternating(mistral(window), 6, layer)


def gpt_oss(window: int = 128, layer: int | None = None) -> Pattern:
    """gpt-oss: layers 0, 2, ... with a window, layers 1, 3, ... causal; all with sink logits.

    OpenAI 2025 (arXiv:2508.10925); Hugging Face `gpt_oss`. The sinks are an argument of attention,
    `sink_logits`, not a pattern.

    >>> gpt_oss(layer=0), gpt_oss(layer=1)
    (SlidingWindow(left=127, right=0, dilation=1), Causal())
    """
    return _alternating(mistral(window), 2, layer)


def llama4(chunk: int = 8192, layer: int | None = None) -> Pattern:
    """Llama 4: three layers that see their own chunk's past, then a causal one without positions.

    Meta 2025 (iRoPE); Hugging Face `attention_chunk_size`. The first token of a chunk sees only
    itself. Left padding moves the chunks: `Chunked(chunk, origin=pad)`.

    >>> from sparse_ref import draw
    >>> print(draw(llama4(2), 5))
    # . . . .
    # # . . .
    . . # . .
    . . # # .
    . . . . #
    >>> llama4(layer=3)
    Causal()
    """
    return _alternating(Causal() & Chunked(chunk), 4, layer)


def phi3_small(
    heads: int = 32,
    block_size: int = 64,
    local_blocks: int = 16,
    vert_stride: int = 8,
    homo_head: bool = False,
    layer: int | None = None,
) -> Pattern:
    """Phi-3-small: local blocks and every vert_stride-th block, another one for each head.

    Abdin et al. 2024 (arXiv:2404.14219); microsoft/Phi-3-small-8k and vLLM's blocksparse helpers:
    `(k_block + head * step + 1) % vert_stride == 0` with step = max(1, vert_stride // heads), 0 if
    `homo_head`. Layers 1, 3, ... are dense causal.

    >>> from sparse_ref import draw
    >>> print(draw(phi3_small(2, 1, 1, 2).at(0), 5))
    # . . . .
    . # . . .
    . # # . .
    . # . # .
    . # . # #
    """
    heads, stride = integer("heads", heads, 1), integer("vert_stride", vert_stride, 1)
    local = SlidingWindow(integer("local_blocks", local_blocks, 1) - 1, 0)
    step = 0 if homo_head else max(1, stride // heads)

    def head(h: int) -> Pattern:
        columns = Causal() & KeyStride(stride, [(-1 - h * step) % stride])
        return Causal() & Blocked(local | columns, block_size)

    distinct = {head(h): None for h in range(heads)}
    repeats = all(head(h) == head(h % len(distinct)) for h in range(heads))
    several = list(distinct) if repeats else [head(h) for h in range(heads)]
    return _alternating(several[0] if len(several) == 1 else PerHead(several), 2, layer)
