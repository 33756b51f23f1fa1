"""What operators and kernels call their window."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, Neighborhood, Pattern, PrefixLM, SlidingWindow

from .forms import Form, chunked, convention, counted, named, side, sides, total


@convention("flash-attn `window_size`", sides("window_size=({}, {})", "-1"), 127, 0)
def flash_attn(left: int | None, right: int | None) -> Pattern:
    """The flash-attn option `window_size=(left, right)`: both besides the query, -1 = unbounded.

    Aligned to the last key since 2.1, as patterns are. `causal=True` is right = 0.

    >>> flash_attn(127, 0), flash_attn(-1, 0) == SlidingWindow(None, 0)
    (SlidingWindow(left=127, right=0, dilation=1), True)
    """
    below = " (flash-attn takes every negative number for it)"
    return SlidingWindow(side("left", left, below), side("right", right, below))


@convention("ORT `GroupQueryAttention`", counted("local_window_size", "-1"), 128)
def ort_gqa(w: int | None) -> Pattern:
    """ONNX Runtime `local_window_size=w`: w keys with the query (older releases: w + 1); -1 = all.

    Its documentation says `left_window_size`; with 0 no query sees a key.

    >>> ort_gqa(1), ort_gqa(-1)
    (SlidingWindow(left=0, right=0, dilation=1), Causal())
    """
    zero = "with 0 ORT shows no key at all, with -1 all"
    return Causal() if w == -1 else total(w, zero)


@convention(
    "ONNX `Attention` 25",
    sides("left_window_size={}, right_window_size={}", "-1"), 127, 0, first=True,
)  # fmt: skip
def onnx25(left: int | None, right: int | None) -> Pattern:
    """ONNX Attention 25 `left_window_size, right_window_size`: besides the query, -1 = unbounded.

    Queries are aligned to the *first* key there, unless a past or key lengths say else.

    >>> onnx25(-1, 0)
    SlidingWindow(left=None, right=0, dilation=1)
    """
    return SlidingWindow(side("left", left), side("right", right))


def _is_causal(f: Form) -> str | None:
    return {Form(): "is_causal=False", Form(None, 0): "is_causal=True"}.get(f)


@convention("torch SDPA `is_causal`", _is_causal, first=True)
def sdpa() -> Pattern:
    """PyTorch `scaled_dot_product_attention(is_causal=True)`: aligned to the *first* key.

    The same as Causal() where queries and keys are as many; `causal_lower_right` is it always.

    >>> sdpa()
    Causal()
    """
    return Causal()


@convention(
    "xFormers `LocalAttentionFromBottomRightMask`",
    sides("window_left={}, window_right={}", None), 127, 0,
)  # fmt: skip
def xformers(left: int, right: int) -> Pattern:
    """The xFormers mask `LocalAttentionFromBottomRightMask(window_left, window_right)`.

    Both besides the query, and both bounded.

    >>> xformers(1, 0)
    SlidingWindow(left=1, right=0, dilation=1)
    """
    return SlidingWindow(integer("left", left), integer("right", right))


@convention("xFormers `make_local_attention`", counted("window_size"), 128)
def xformers_local(w: int) -> Pattern:
    """The xFormers method `make_local_attention(window_size=w)`: w keys, the query included.

    >>> xformers_local(128) == xformers(127, 0)
    True
    """
    return total(integer("w", w, None), "0 would show no key at all")


@convention("JAX splash `LocalMask`", sides("window_size=({}, {})", "None"), 127, 0, first=True)
def splash(left: int | None, right: int | None) -> Pattern:
    """JAX splash attention `LocalMask(shape, (left, right), offset)`: besides the query.

    None = unbounded. Aligned to the first key unless offset = kv_len - q_len.

    >>> splash(127, 0) == flash_attn(127, 0)
    True
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("Megatron, Transformer Engine", sides("window_size=({}, {})", "-1"), 127, 0)
def megatron(left: int | None, right: int | None) -> Pattern:
    """Megatron-Core and Transformer Engine `window_size=(left, right)`: besides the query.

    >>> megatron(127, 0) == SlidingWindow(127, 0)
    True
    """
    return SlidingWindow(side("left", left), side("right", right))


@convention("NATTEN `kernel_size`", lambda f: named("kernel_size", f.kernel), 7, 64)
def natten(k: int, length: int) -> Pattern:
    """NATTEN `kernel_size=k` on an axis: always k keys, the window shifts at the borders.

    >>> natten(7, 64)
    Neighborhood(length=64, kernel=7, dilation=1, stride=1, causal=False)
    """
    return Neighborhood(length, integer("k", k, 1))


@convention("attention-gym `generate_sliding_window`", counted("window_size", besides=1), 128,
            first=True)  # fmt: skip
def attention_gym(w: int) -> Pattern:
    """The attention-gym mask `generate_sliding_window(w)`: w keys besides the query, w + 1.

    >>> attention_gym(128).left
    128
    """
    return SlidingWindow(integer("w", w), 0)


@convention("attention-gym `generate_prefix_lm_mask`", lambda f: named("prefix_length", f.prefix),
            128, first=True)  # fmt: skip
def attention_gym_prefix(prefix: int) -> Pattern:
    """The attention-gym mask `generate_prefix_lm_mask(prefix_length)`: causal, or in the prefix.

    >>> attention_gym_prefix(3)
    PrefixLM(prefix=3)
    """
    return PrefixLM(integer("prefix", prefix))


@convention("local-attention, `exact_windowsize=True`", counted("window_size", besides=1), 128)
def local_attention(w: int) -> Pattern:
    """The local-attention package with `exact_windowsize=True, causal=True`: w + 1 keys.

    >>> local_attention(128) == attention_gym(128)
    True
    """
    return SlidingWindow(integer("w", w), 0)


@convention("local-attention, default", chunked("window_size", back=1), 128)
def local_attention_buckets(w: int) -> Pattern:
    """The local-attention package by default, causal: the own bucket of w keys and the one before.

    >>> local_attention_buckets(128)
    Causal() & Chunked(size=128, back=1, ahead=0, origin=0)
    """
    return Causal() & Chunked(integer("w", w, 1), back=1)
