"""The mask functions of transformers, read as patterns.

transformers says which keys are seen by composed Python functions of (batch, head, q, k). They are
closures, so what they close over says the pattern; one that is not known here is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from typing import Any

import torch

import sparse_ref as sr


def as_pattern(mask_function: Callable[..., Any]) -> sr.Pattern:
    """The pattern that a mask function of transformers says.

    Raises
    ------
    NotImplementedError
        If it is none of: causal, bidirectional, windows, chunks, and their intersections and
        unions.

    Examples
    --------
    >>> from transformers.masking_utils import sliding_window_causal_mask_function
    >>> as_pattern(sliding_window_causal_mask_function(4))
    SlidingWindow(left=3, right=None, dilation=1) & Causal()
    """
    name = mask_function.__qualname__.replace(".<locals>", "")
    read = READERS.get(name)
    if read is None:
        module = mask_function.__module__
        raise NotImplementedError(
            f"mask functions must be of windows and chunks, got {name} of {module}"
        )
    return read(**inspect.getclosurevars(mask_function).nonlocals)


def _all(mask_functions: Any) -> sr.Pattern:
    kept = [one for one in map(as_pattern, mask_functions) if one != sr.Full()]
    return reduce(and_, kept) if kept else sr.Full()


def _one_sequence(packed_sequence_mask: Any) -> sr.Pattern:
    """While a graph is traced transformers always says that rows may be packed."""
    if not torch.compiler.is_compiling():
        raise NotImplementedError("position_ids must not pack several sequences into one row")
    return sr.Full()


def _one_sequence_of(mask_function: Any, position_ids: Any) -> sr.Pattern:
    """Then positions that are one row for the whole batch are those the model counts itself."""
    if position_ids.stride(0):
        raise NotImplementedError(
            "position_ids cannot be exported without attention_mask: they may pack sequences"
        )
    return as_pattern(mask_function)


def _any(mask_functions: Any) -> sr.Pattern:
    return reduce(or_, map(as_pattern, mask_functions))


READERS: dict[str, Callable[..., sr.Pattern]] = {
    "causal_mask_function": sr.Causal,
    "bidirectional_mask_function": sr.Full,
    "and_masks.and_mask": _all,
    "or_masks.or_mask": _any,
    "sliding_window_overlay.inner_mask": lambda sliding_window: sr.SlidingWindow(
        sliding_window - 1, None
    ),
    "sliding_window_bidirectional_overlay.inner_mask": lambda sliding_window: sr.SlidingWindow(
        sliding_window, sliding_window
    ),
    # of Gemma 3
    "_bidirectional_window_overlay.inner_mask": lambda sliding_window: sr.SlidingWindow(
        sliding_window - 1, sliding_window - 1
    ),
    "packed_sequence_mask_function.inner_mask": _one_sequence,
    "remap_positions_for_packed_sequence.inner_mask": _one_sequence_of,
    # chunks begin at the first token that is no padding; positions count from there
    "chunked_overlay.inner_mask": lambda chunk_size, left_padding: sr.Chunked(chunk_size),
}
