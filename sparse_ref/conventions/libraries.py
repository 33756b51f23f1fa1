"""One function for every API, named after it, that takes what one writes there."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, Neighborhood, Pattern, SlidingWindow

from .forms import Form, besides, convention, counted, named, radius, side, sides, total


@convention("Hugging Face `sliding_window`, causal", counted("sliding_window"), 128)
def hf(w: int) -> Pattern:
    """Hugging Face decoders (Mistral, Gemma, Qwen, gpt-oss): w keys, the query included.

    >>> hf(128)
    SlidingWindow(left=127, right=0, dilation=1)
    """
    return total(w, "sliding_window")


@convention("Hugging Face `sliding_window`, bidirectional", radius("sliding_window"), 128)
def hf_bidirectional(w: int) -> Pattern:
    """Hugging Face `create_bidirectional_sliding_window_mask`: w on each side, 2 w + 1 keys.

    >>> hf_bidirectional(2)
    SlidingWindow(left=2, right=2, dilation=1)
    """
    return SlidingWindow(w, w)


@convention("flash-attn `window_size`", sides("window_size=({}, {})"), 127, 0)
def flash_attn(left: int, right: int) -> Pattern:
    """The flash-attn option `window_size=(left, right)`: both besides the query, -1 = unbounded.

    Aligned to the last key since 2.1, as patterns are.

    >>> flash_attn(127, 0) == hf(128)
    True
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("ORT `GroupQueryAttention`", counted("local_window_size"), 128)
def ort_gqa(w: int) -> Pattern:
    """ONNX Runtime `local_window_size=w`: w keys with the query (w + 1 before ORT 1.23); -1 = all.

    >>> ort_gqa(1), ort_gqa(-1)
    (SlidingWindow(left=0, right=0, dilation=1), Causal())
    """
    return Causal() if w == -1 else total(w, "local_window_size")


@convention("ONNX `Attention` 25", sides("left_window_size={}, right_window_size={}"), 127, 0)
def onnx25(left: int, right: int) -> Pattern:
    """ONNX Attention 25 `left_window_size, right_window_size`: besides the query, -1 = unbounded.

    Queries are aligned to the *first* key there, unless a past or key lengths say else.

    >>> onnx25(-1, 0)
    SlidingWindow(left=None, right=0, dilation=1)
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("xFormers `LocalAttentionFromBottomRightMask`",
             sides("window_left={}, window_right={}"), 127, 0)  # fmt: skip
def xformers(left: int, right: int) -> Pattern:
    """The xFormers mask `LocalAttentionFromBottomRightMask(window_left, window_right)`.

    >>> xformers(1, 0)
    SlidingWindow(left=1, right=0, dilation=1)
    """
    return SlidingWindow(left, right)


@convention("Hugging Face Longformer, LED", radius("attention_window", 2), 512)
def longformer(w: int) -> Pattern:
    """Hugging Face Longformer `attention_window=w`: even, half on each side, w + 1 keys.

    >>> longformer(512)
    SlidingWindow(left=256, right=256, dilation=1)
    """
    if integer("w", w) % 2:
        raise ValueError(f"w must be even (half of it on each side), got {w}")
    return SlidingWindow(w // 2, w // 2)


@convention("allenai/longformer, ORT `LongformerAttention`", radius("attention_window"), 256)
def longformer_allenai(w: int) -> Pattern:
    """The code allenai/longformer `attention_window` and ORT's `window`: one-sided, 2 w + 1 keys.

    >>> longformer_allenai(256) == longformer(512)
    True
    """
    return SlidingWindow(w, w)


@convention("GPT-Neo `window_size`", counted("window_size"), 256)
def gpt_neo(w: int) -> Pattern:
    """GPT-Neo `window_size=w`, local layers: w keys, the query included.

    >>> gpt_neo(256).left
    255
    """
    return total(w, "window_size")


@convention("LongT5 `local_radius`", radius("local_radius"), 127)
def longt5(r: int) -> Pattern:
    """LongT5 `local_radius=r`: r on each side, 2 r + 1 keys.

    >>> longt5(127).right
    127
    """
    return SlidingWindow(r, r)


@convention("NATTEN `kernel_size`", lambda f: named("kernel_size", f.kernel), 7, 64)
def natten(k: int, length: int) -> Pattern:
    """NATTEN `kernel_size=k` on an axis: always k keys, the window shifts at the borders.

    >>> natten(7, 64)
    Neighborhood(length=64, kernel=7, dilation=1, stride=1, causal=False)
    """
    return Neighborhood(length, k)


@convention("JAX splash `LocalMask`", sides("window_size=({}, {})"), 127, 0)
def splash(left: int, right: int) -> Pattern:
    """JAX splash attention `LocalMask(shape, (left, right), offset)`: besides the query.

    Aligned to the first key unless offset = kv_len - q_len. None there is -1 here.

    >>> splash(127, 0) == flash_attn(127, 0)
    True
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("Child et al. 2019, the paper", besides("l"), 128)
def child2019_paper(l: int) -> Pattern:  # noqa: E741 - the paper's name
    """Sparse Transformers as written (arXiv:1904.10509): {max(0, i - l), ..., i}, l + 1 keys.

    >>> child2019_paper(2)
    SlidingWindow(left=2, right=0, dilation=1)
    """
    return SlidingWindow(l, 0)


@convention("Child et al. 2019, released code", counted("bandwidth"), 128)
def child2019_code(l: int) -> Pattern:  # noqa: E741
    """The code openai/sparse_attention: l keys, the query included.

    >>> child2019_code(2)
    SlidingWindow(left=1, right=0, dilation=1)
    """
    return total(l, "bandwidth")


@convention("vLLM `sliding_window`", counted("sliding_window"), 128)
def vllm(w: int) -> Pattern:
    """The vLLM option `sliding_window=w`: w keys, the query included.

    >>> vllm(128) == hf(128)
    True
    """
    return total(w, "sliding_window")


@convention("SGLang `sliding_window_size`", besides("sliding_window_size"), 127)
def sglang(w: int) -> Pattern:
    """SGLang `sliding_window_size=w`: besides the query, w + 1 keys.

    >>> sglang(127) == vllm(128)
    True
    """
    return SlidingWindow(w, 0)


@convention("Megatron, Transformer Engine", sides("window_size=({}, {})"), 127, 0)
def megatron(left: int, right: int) -> Pattern:
    """Megatron-Core and Transformer Engine `window_size=(left, right)`: besides the query.

    >>> megatron(127, 0) == hf(128)
    True
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("llama.cpp `n_swa`, standard", counted("n_swa"), 128)
def llama_cpp(w: int) -> Pattern:
    """The llama.cpp option `n_swa=w` of type STANDARD: masked from distance w on, so w keys.

    >>> llama_cpp(128).left
    127
    """
    return total(w, "n_swa")


@convention("attention-gym, local-attention", besides("window_size"), 128)
def attention_gym(w: int) -> Pattern:
    """The attention-gym mask `generate_sliding_window(w)`, local-attention exact: w + 1 keys.

    >>> attention_gym(128).left
    128
    """
    return SlidingWindow(w, 0)


@convention("ModernBERT `local_attention`", radius("local_attention", 2), 128)
def modernbert(w: int) -> Pattern:
    """ModernBERT `local_attention=w`: half on each side, w + 1 keys.

    >>> modernbert(128)
    SlidingWindow(left=64, right=64, dilation=1)
    """
    return longformer(w)


@convention(
    "Llama 4 `attention_chunk_size`", lambda f: named("attention_chunk_size", f.chunk), 8192
)
def llama4(c: int) -> Pattern:
    """Hugging Face Llama 4 `attention_chunk_size=c`: the past of the query's own chunk.

    >>> llama4(4)
    Causal() & Chunked(size=4, back=0, ahead=0, origin=0)
    """
    return Causal() & Chunked(c)


@convention("torch SDPA `is_causal`", lambda f: "is_causal=True" if f == Form(None, 0) else None)
def sdpa() -> Pattern:
    """PyTorch `scaled_dot_product_attention(is_causal=True)`: aligned to the *first* key.

    The same as Causal() where queries and keys are as many.

    >>> sdpa()
    Causal()
    """
    return Causal()
