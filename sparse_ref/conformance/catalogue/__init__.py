"""The catalogue of known mistakes: as data, each with a public bug of its kind."""

from .answers import ANSWERS
from .masks import MASKS
from .rounding import ROUNDING
from .scores import SCORES

# What is said first comes first where nothing tells two apart.
CATALOGUE = (*MASKS, *SCORES, *ANSWERS, *ROUNDING)

__all__ = ["ANSWERS", "CATALOGUE", "MASKS", "ROUNDING", "SCORES"]
