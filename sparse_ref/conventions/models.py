"""What models call their window, in their configuration or paper."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, Pattern, Sink, SlidingWindow

from .forms import Form, chunked, convention, counted, halved, radius, total


@convention("Hugging Face `sliding_window`, causal", counted("sliding_window", "None"), 128)
def hf(w: int | None) -> Pattern:
    """Hugging Face decoders (Mistral, Gemma, Qwen, gpt-oss): w keys, the query included.

    None is no window. A window of 0 or less leaves no key at all there, and is refused here.

    >>> hf(128), hf(None)
    (SlidingWindow(left=127, right=0, dilation=1), Causal())
    """
    return total(w, "with 0 Hugging Face's mask shows no key at all")


@convention("Hugging Face `sliding_window`, bidirectional", radius("sliding_window"), 128)
def hf_bidirectional(w: int) -> Pattern:
    """Hugging Face `create_bidirectional_sliding_window_mask`: w on each side, 2 w + 1 keys.

    >>> hf_bidirectional(2)
    SlidingWindow(left=2, right=2, dilation=1)
    """
    w = integer("w", w)
    return SlidingWindow(w, w)


@convention("Gemma 3 `sliding_window`, bidirectional", radius("sliding_window", 2), 512)
def gemma3_bidirectional(w: int) -> Pattern:
    """Gemma 3 with `use_bidirectional_attention` (EmbeddingGemma): w // 2 on each side.

    An odd w sees as much as w - 1: the configuration replaces it by w // 2 + 1, exclusive.

    >>> gemma3_bidirectional(5) == gemma3_bidirectional(4)
    True
    """
    half = integer("w", w, 1) // 2
    return SlidingWindow(half, half)


@convention("Hugging Face Longformer, LED", radius("attention_window", 2), 512)
def longformer(w: int) -> Pattern:
    """Hugging Face Longformer `attention_window=w`: even, half on each side, w + 1 keys.

    >>> longformer(512)
    SlidingWindow(left=256, right=256, dilation=1)
    """
    return halved(w)


@convention("allenai/longformer, ORT `LongformerAttention`", radius("attention_window"), 256)
def longformer_allenai(w: int) -> Pattern:
    """The code allenai/longformer `attention_window` and ORT's `window`: one-sided, 2 w + 1 keys.

    >>> longformer_allenai(256) == longformer(512)
    True
    """
    w = integer("w", w)
    return SlidingWindow(w, w)


@convention("ModernBERT `local_attention`", radius("local_attention", 2), 128)
def modernbert(w: int) -> Pattern:
    """ModernBERT `local_attention=w`: half on each side, w + 1 keys.

    >>> modernbert(128)
    SlidingWindow(left=64, right=64, dilation=1)
    """
    return halved(w)


@convention("LongT5 `local_radius`", radius("local_radius"), 127)
def longt5(r: int) -> Pattern:
    """LongT5 `local_radius=r`: r on each side, 2 r + 1 keys.

    >>> longt5(127).right
    127
    """
    r = integer("r", r)
    return SlidingWindow(r, r)


@convention("GPT-Neo `window_size`", counted("window_size"), 256)
def gpt_neo(w: int) -> Pattern:
    """GPT-Neo `window_size=w`, local layers: w keys, the query included.

    >>> gpt_neo(256).left
    255
    """
    return total(integer("w", w, None), "with 0 GPT-Neo's mask shows no key at all")


@convention("Llama 4 `attention_chunk_size`", chunked("attention_chunk_size"), 8192)
def llama4(c: int) -> Pattern:
    """Hugging Face Llama 4 `attention_chunk_size=c`: the past of the query's own chunk.

    >>> llama4(4)
    Causal() & Chunked(size=4, back=0, ahead=0, origin=0)
    """
    return Causal() & Chunked(integer("c", c, 1))


@convention("NSA window", counted("window_size"), 512)
def nsa(w: int) -> Pattern:
    """The window branch of Native Sparse Attention (arXiv:2502.11089): w keys, the query included.

    >>> nsa(512) == hf(512)
    True
    """
    return total(integer("w", w, None), "0 would be an empty branch")


def _duo(f: Form) -> str | None:
    if f.sinks is None or f.left is None:
        return None
    return f"sink_size={f.sinks}, recent_size={f.left + 1}"


@convention("DuoAttention, StreamingLLM", _duo, 4, 128)
def duo_attention(sinks: int, recent: int) -> Pattern:
    """DuoAttention's streaming heads `sink_size, recent_size` (`start_size` in StreamingLLM).

    The first keys, and the last `recent`, the query included.

    >>> duo_attention(1, 2)
    Causal() & (Sink(count=1) | SlidingWindow(left=1, right=0, dilation=1))
    """
    window = SlidingWindow(integer("recent", recent, 1) - 1, 0)
    return Causal() & (Sink(integer("sinks", sinks)) | window)


@convention("Child et al. 2019, the paper", counted("l", besides=1), 128)
def child2019_paper(l: int) -> Pattern:  # noqa: E741 - the paper's name
    """Sparse Transformers as written (arXiv:1904.10509): {max(0, i - l), ..., i}, l + 1 keys.

    >>> child2019_paper(2)
    SlidingWindow(left=2, right=0, dilation=1)
    """
    return SlidingWindow(integer("l", l), 0)


@convention("Child et al. 2019, released code", counted("l"), 128)
def child2019_code(l: int) -> Pattern:  # noqa: E741
    """The code openai/sparse_attention: l keys, the query included.

    >>> child2019_code(2)
    SlidingWindow(left=1, right=0, dilation=1)
    """
    return SlidingWindow(integer("l", l, 1) - 1, 0)
