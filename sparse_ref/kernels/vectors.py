"""The micro-kernels that tiles and rows are made of: vector intrinsics, or plain loops."""

from . import plain, simd
from ._jit import PLAIN

_chosen = plain if PLAIN else simd

lanes_of = _chosen.lanes_of
width, claim = _chosen.width, _chosen.claim
product, add_product = _chosen.product, _chosen.add_product
select, softcap, softmax = _chosen.select, _chosen.softcap, _chosen.softmax

__all__ = ["add_product", "claim", "lanes_of", "product", "select", "softcap", "softmax", "width"]
