"""The micro-kernels that tiles and rows are made of: vector intrinsics, or plain loops."""

from . import plain, products, scattered, simd, turning
from ._jit import PLAIN

_chosen = plain if PLAIN else simd
_products, _scattered, _turning = (plain, plain, plain) if PLAIN else (products, scattered, turning)

lanes_of = _chosen.lanes_of
width, claim = _chosen.width, _chosen.claim
product, add_product = _products.product, _products.add_product
dots_1, dots_4 = _scattered.dots_1, _scattered.dots_4
to_lanes, to_rows = _turning.to_lanes, _turning.to_rows
sums_1, sums_4 = _scattered.sums_1, _scattered.sums_4
select, softcap, softmax = _chosen.select, _chosen.softcap, _chosen.softmax
slopes = _chosen.slopes
weights_by_lane, weights_by_row = _chosen.weights_by_lane, _chosen.weights_by_row

__all__ = [
    "add_product", "claim", "dots_1", "dots_4", "lanes_of", "product", "select", "slopes",
    "softcap", "softmax", "sums_1", "sums_4", "to_lanes", "to_rows", "weights_by_lane",
    "weights_by_row", "width",
]  # fmt: skip
