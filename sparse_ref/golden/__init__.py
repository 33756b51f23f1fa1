"""Golden files: cases with answers and bounds, readable without this library (golden/SPEC.md).

>>> import sparse_ref as sr
>>> import sparse_ref.golden
>>> golden = sparse_ref.golden.load()
>>> case = golden["windows/window-2/b1h2g1-13x13-d5e3/random"]
>>> print(case.words)
the query's own key and the 2 before it: 3 keys
>>> case.check(lambda q, k, v, pattern: sr.attention(q, k, v, pattern)[:2])
[]
"""

from .cases import GoldenCase
from .entries import Flag
from .files import GoldenError
from .loading import Golden, load

__all__ = ["Flag", "Golden", "GoldenCase", "GoldenError", "load"]
