"""How a pattern is stored: token CSR and blocks, both in time near the number of non-zeros."""

from .blocks import Blocks, to_blocks
from .csr import to_csr

__all__ = ["Blocks", "to_blocks", "to_csr"]
