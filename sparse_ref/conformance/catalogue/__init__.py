"""The catalogue of known mistakes: as data, each with a public bug of its kind."""

from .answers import ANSWERS
from .gradients import GRADIENTS
from .lattices import LATTICES
from .masks import MASKS
from .rounding import ROUNDING
from .scores import SCORES
from .unseen import UNSEEN

# What is said first comes first where nothing tells two apart.
CATALOGUE = (*MASKS, *LATTICES, *SCORES, *ANSWERS, *UNSEEN, *GRADIENTS, *ROUNDING)

__all__ = ["ANSWERS", "CATALOGUE", "GRADIENTS", "MASKS", "ROUNDING", "SCORES"]
