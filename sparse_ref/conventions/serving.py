"""What inference engines call their window."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, Pattern, SlidingWindow

from .forms import chunked, convention, counted, radius, side, total


@convention("vLLM `sliding_window`", counted("sliding_window", "None"), 128)
def vllm(w: int | None) -> Pattern:
    """The vLLM option `sliding_window=w`: w keys, the query included; None is no window.

    >>> vllm(128)
    SlidingWindow(left=127, right=0, dilation=1)
    """
    return total(w, "vLLM writes no window as None")


@convention("SGLang `sliding_window_size`", counted("sliding_window_size", "-1", besides=1), 127)
def sglang(w: int | None) -> Pattern:
    """SGLang `sliding_window_size=w`: besides the query, w + 1 keys; -1 is no window.

    >>> sglang(127) == vllm(128)
    True
    """
    return SlidingWindow(side("w", w), 0)


@convention("llama.cpp `n_swa`, standard", counted("n_swa", "0"), 128)
def llama_cpp(w: int) -> Pattern:
    """The llama.cpp option `n_swa=w` of type STANDARD: masked from distance w on, so w keys.

    0 is no window.

    >>> llama_cpp(128).left, llama_cpp(0)
    (127, Causal())
    """
    w = integer("w", w)
    return SlidingWindow(w - 1, 0) if w else Causal()


@convention("llama.cpp `n_swa`, symmetric", radius("n_swa", 2), 128)
def llama_cpp_symmetric(w: int) -> Pattern:
    """The llama.cpp option `n_swa=w` of type SYMMETRIC: w // 2 on each side.

    >>> llama_cpp_symmetric(128)
    SlidingWindow(left=64, right=64, dilation=1)
    """
    half = integer("w", w, 1) // 2
    return SlidingWindow(half, half)


@convention("llama.cpp `n_swa`, chunked", chunked("n_swa"), 8192)
def llama_cpp_chunked(w: int) -> Pattern:
    """The llama.cpp option `n_swa=w` of type CHUNKED: the past of the query's own chunk.

    >>> llama_cpp_chunked(4)
    Causal() & Chunked(size=4, back=0, ahead=0, origin=0)
    """
    return Causal() & Chunked(integer("w", w, 1))
