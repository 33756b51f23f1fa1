"""Static patterns: one predicate on absolute positions, and the readings of it."""

from .algebra import And, Not, Or
from .combinators import Blocked, Permuted, WithinDocument
from .dense import Frame
from .explicit import BlockPattern, RandomKeys, from_mask
from .families import Multi, PerBatch, PerHead
from .lattice import Grid, Neighborhood, Xor
from .pattern import Pattern
from .pictures import Comparison, compare, draw
from .positional import (
    Causal,
    Chunked,
    Full,
    Offsets,
    PrefixLM,
    Sink,
    SlidingWindow,
    Strided,
)
from .serial import from_dict, to_dict
from .tables import IntegerSet, Runtime, Table
from .tokens import Document, Global, Keys, KeyStride, Rows, RowStride, Tokens

__all__ = [
    "And",
    "BlockPattern",
    "Blocked",
    "Causal",
    "Chunked",
    "Comparison",
    "Document",
    "Frame",
    "Full",
    "Global",
    "Grid",
    "IntegerSet",
    "KeyStride",
    "Keys",
    "Multi",
    "Neighborhood",
    "Not",
    "Offsets",
    "Or",
    "Pattern",
    "PerBatch",
    "PerHead",
    "Permuted",
    "PrefixLM",
    "RandomKeys",
    "RowStride",
    "Rows",
    "Runtime",
    "Sink",
    "SlidingWindow",
    "Strided",
    "Table",
    "Tokens",
    "WithinDocument",
    "Xor",
    "compare",
    "draw",
    "from_dict",
    "from_mask",
    "to_dict",
]
