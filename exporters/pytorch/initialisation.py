"""How the weights of a Sparse Transformer start: Child et al. 2019, section 6, in both readings."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Init = Literal["code", "paper"]

# Weights start with standard deviation factor / sqrt(n_in). The paper prints 0.125 for the factor;
# in the authors' later code (openai/distribution_augmentation) 0.125 is that of the variance.
INITS = {"code": math.sqrt(0.125), "paper": 0.125}
ENDS = "project", "contract"  # what ends a residual


def init_factor(init: Init) -> float:
    """What both readings call 0.125."""
    if init not in INITS:
        raise ValueError(f"init must be 'code' or 'paper', got {init!r}")
    return INITS[init]


def init_linears(module: nn.Module, factor: float, blocks: int) -> None:
    """What ends a residual is scaled by 1 / sqrt(2 N), in a net of N blocks; biases are 0."""
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear):
            scale = 1 / math.sqrt(2 * blocks) if name.endswith(ENDS) and blocks else 1.0
            nn.init.normal_(linear.weight, 0.0, factor * scale / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)
