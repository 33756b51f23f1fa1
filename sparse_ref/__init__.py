"""sparse_ref: the reference for sparse attention."""

from .patterns import *  # noqa: F403

__version__ = "0.1.0"
from .layouts import *  # noqa: F403,E402
