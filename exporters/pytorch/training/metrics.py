"""How good predictions are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def accuracy(labels: Any, predictions: Any) -> float:
    """The share of predictions that are right.

    >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
    """
    labels, predictions = _alike(labels, predictions)
    return float((labels == predictions).mean())


def macro_f1(labels: Any, predictions: Any) -> float:
    """The mean over all classes of 2 right / (predicted + there), rare classes counting alike.

    >>> macro_f1([0, 0, 0, 1], [0, 0, 0, 0])
    0.42857142857142855
    """
    labels, predictions = _alike(labels, predictions)
    scores = []
    for one in np.union1d(labels, predictions):
        right = ((labels == one) & (predictions == one)).sum()
        scores.append(2 * right / ((labels == one).sum() + (predictions == one).sum()))
    return float(np.mean(scores))


def perplexity(nats: float) -> float:
    """Of a mean loss: among how many equally likely tokens it chooses.

    >>> round(perplexity(math.log(5)), 12)
    5.0
    """
    return math.exp(nats)


def bits(nats: float) -> float:
    """Of a mean loss, in bits; per byte, where tokens are bytes.

    >>> bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


def _alike(labels: Any, predictions: Any) -> tuple[Any, Any]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or not labels.size:
        raise ValueError(
            f"labels and predictions must be as many, and some, got {labels.shape} and "
            f"{predictions.shape}"
        )
    return labels, predictions
