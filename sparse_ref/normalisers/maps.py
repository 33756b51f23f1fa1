"""Scores to probabilities with exact zeros: sparsemax, 1.5-entmax, alpha-entmax of a vector.

Each is argmax over the simplex of p.z + H(p), H being Tsallis's entropy of order alpha; alpha = 1
would be softmax, alpha = 2 is the Euclidean projection. Source: Peters, Niculae & Martins 2019
(arXiv:1905.05702); sparsemax, Martins & Astudillo 2016 (arXiv:1602.02068).
"""

from __future__ import annotations

import numpy as np

from sparse_ref._arrays import Floats

HALVINGS = 70  # the bracket is at most log n wide: what is left is below float64's spacing


def entmax(z: Floats, alpha: float) -> Floats:
    """alpha-entmax of the finite vector z: exact for 2 and 1.5, else to float64."""
    if alpha == 2:
        return sparsemax(z)
    if alpha == 1.5:
        return entmax15(z)
    return bisected(z, alpha)


def sparsemax(z: Floats) -> Floats:
    """[z - tau]+, tau from the largest k with 1 + k z_(k) > z_(1) + ... + z_(k).

    >>> sparsemax(np.array([1.0, 0.8, 0.1, -1.0])).round(12)
    array([0.6, 0.4, 0. , 0. ])
    """
    z = z - z.max(initial=-np.inf)
    falling, k = np.sort(z)[::-1], np.arange(1, len(z) + 1)
    tau = (np.cumsum(falling) - 1) / k
    return _summing_to_one(np.maximum(z - tau[falling > tau][-1:], 0))


def entmax15(z: Floats) -> Floats:
    """[z/2 - tau]+^2; a support of the k largest has tau = mean - sqrt((1 - k variance) / k).

    >>> entmax15(np.array([1.0, 0.8, 0.1, -1.0])).round(5)
    array([0.52925, 0.39375, 0.077  , 0.     ])
    """
    x = (z - z.max(initial=-np.inf)) / 2
    falling, k = np.sort(x)[::-1], np.arange(1, len(x) + 1)
    mean, square = np.cumsum(falling) / k, np.cumsum(falling**2) / k
    tau = mean - np.sqrt(np.maximum((1 - k * (square - mean**2)) / k, 0))
    return _summing_to_one(np.maximum(x - tau[falling >= tau][-1:], 0) ** 2)


def bisected(z: Floats, alpha: float) -> Floats:
    """[1 + (alpha - 1)(z - w)]+^(1 / (alpha - 1)) with w such that it sums to 1, by bisection.

    Written this way w tends to softmax's log-sum-exp as alpha tends to 1, and nothing cancels.
    The largest probability is between 1/n and 1, which brackets w.
    """
    z = z - z.max(initial=-np.inf)
    low, high = 0.0, -np.expm1((1 - alpha) * np.log(max(len(z), 1))) / (alpha - 1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _tsallis_exp(z - middle, alpha).sum() >= 1:
            low = middle
        else:
            high = middle
    return _summing_to_one(_tsallis_exp(z - low, alpha))


def score_gradient(p: Floats, dp: Floats, alpha: float) -> Floats:
    """The gradient of z: s (dp - sum(s dp) / sum(s)) with s = p^(2 - alpha) on the support."""
    s = slopes(p, alpha)
    return s * (dp - _share(s) @ dp)


def order_gradient(p: Floats, dp: Floats, alpha: float) -> float:
    """The gradient of alpha (Correia, Niculae & Martins 2019, arXiv:1909.00015)."""
    share = _share(slopes(p, alpha))
    entropy = -p * np.log(np.where(p == 0, 1.0, p))
    change = (p - share) / (alpha - 1) ** 2 + (entropy - share * entropy.sum()) / (alpha - 1)
    return float(change @ dp)


def slopes(p: Floats, alpha: float) -> Floats:
    """p^(2 - alpha) on the support, 0 outside: how fast each probability follows its score."""
    return np.where(p == 0, 0.0, np.where(p == 0, 1.0, p) ** (2 - alpha))


def _tsallis_exp(x: Floats, alpha: float) -> Floats:
    """[1 + (alpha - 1) x]+^(1 / (alpha - 1)), which tends to exp(x)."""
    with np.errstate(divide="ignore"):  # log 0: a probability of 0
        return np.exp(np.log1p(np.maximum((alpha - 1) * x, -1)) / (alpha - 1))


def _share(s: Floats) -> Floats:
    return s / s.sum() if s.any() else s


def _summing_to_one(p: Floats) -> Floats:
    """What rounding left over is shared out."""
    return p / p.sum() if p.size else p
