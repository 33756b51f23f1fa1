"""sparse_ref: the reference for sparse attention."""

from .layouts import *  # noqa: F403
from .patterns import *  # noqa: F403
from .problem import RelativeBias
from .gradients import Gradients, attention_vjp
from .reference import Attention, attention, merge, weights

__version__ = "0.1.0"
