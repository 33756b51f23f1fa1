"""The micro-kernels that tiles and rows are made of: vector intrinsics, or plain loops."""

from . import plain, products, simd
from ._jit import PLAIN

_chosen = plain if PLAIN else simd
_products = plain if PLAIN else products

lanes_of = _chosen.lanes_of
width, claim = _chosen.width, _chosen.claim
product, add_product = _products.product, _products.add_product
select, softcap, softmax = _chosen.select, _chosen.softcap, _chosen.softmax
slopes = _chosen.slopes
weights_by_lane, weights_by_row = _chosen.weights_by_lane, _chosen.weights_by_row

__all__ = [
    "add_product", "claim", "lanes_of", "product", "select", "slopes", "softcap", "softmax",
    "weights_by_lane", "weights_by_row", "width",
]  # fmt: skip
