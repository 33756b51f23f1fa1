"""How a training run goes: all that its result depends on, beside the model and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = "float32", "bfloat16", "float16"


@dataclass(frozen=True)
class Settings:
    """Adam with weight decay, a linear warm-up and a cosine to 0 (Child et al., section 6).

    Parameters
    ----------
    steps : int
        Of the whole run.
    peak : float
        The learning rate after the warm-up.
    warmup : int, default a tenth of the steps
        The paper takes 5,000.
    weight_decay, clip : float
        As in the paper: 0.01, and gradients of norm 1 at most.
    seed : int
        Of all that is random in a step.
    precision : "float32", "bfloat16" or "float16"
        Of activations; weights stay as they are. float16 needs CUDA, and scales its loss.

    Examples
    --------
    >>> settings = Settings(steps=110, peak=1.0, warmup=10)
    >>> [round(settings.rate(step), 3) for step in (0, 9, 60, 110)]
    [0.1, 1.0, 0.5, 0.0]
    """

    steps: int
    peak: float
    warmup: int = -1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.warmup == -1:
            object.__setattr__(self, "warmup", self.steps // 10)
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup must be in [0, {self.steps}], got {self.warmup}")
        for name in ("peak", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.peak * (1 + math.cos(math.pi * done)) / 2
