"""`python -m sparse_ref`: a pattern, a wrong kernel, its diagnosis. All of it really runs."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import sparse_ref as sr

from .screen import say

WANTED = sr.Causal() & sr.SlidingWindow(left=3, right=0)

HEAD = """\
sparse-ref {version}: what sparse attention means, and whether a kernel computes it.

A pattern says which keys a query sees. A window of 4 keys, in Python and as a picture:

  window = sr.Causal() & sr.SlidingWindow(left=3, right=0)

{picture}

A kernel for it, in NumPy. Can you see the mistake?

{source}
  sr.check(kernel, pattern=window) says:
"""

END = """\
next:
  sparse-ref show 'conventions.hf(4)' 'conventions.attention_gym(4)'   two libraries' window of 4
  sparse-ref check MODULE:FUNCTION --quick                             your own kernel
  sparse-ref xray MODEL.onnx                                           what a file really computes
  sparse-ref patterns                                                  all patterns and recipes
  sparse-ref doctor                                                    what runs on this machine
  sparse-ref --help                                                    everything else"""


def kernel(q: Any, k: Any, v: Any, window: int = 4) -> Any:
    """A banded softmax, as many write it."""
    m, n = q.shape[2], k.shape[2]
    query, key = np.arange(n - m, n)[:, None], np.arange(n)
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores = np.where((key <= query) & (query - key <= window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def run() -> int:
    """Show it; 0, or 1 if the mistake is not found."""
    from sparse_ref.conformance import Sizes, check
    from sparse_ref.conformance.calling import fixed
    from sparse_ref.conformance.case import Case

    sizes = Sizes(1, 2, 2, 7, 7, 4, 3)
    cases = [Case("window", WANTED, sizes, probe) for probe in ("even", "random")]
    report = check(fixed(kernel), cases)
    picture, source = sr.draw(WANTED, 7), _indented(inspect.getsource(kernel), 2)
    say(HEAD.format(version=sr.__version__, picture=_indented(picture, 2), source=source))
    say(_indented(str(report), 2))
    say("\n" + END)
    return 0 if any("window-left+1" in found.ids for found in report.diagnoses) else 1


def _indented(text: str, by: int) -> str:
    return "\n".join(" " * by * bool(line) + line for line in text.split("\n"))
