"""How far a training is: a bar where somebody watches, else four lines."""

from __future__ import annotations

import sys
from typing import Any

RECENT = 50  # losses in the mean that is shown


class Bar:
    """Of so many steps, some of them done, on stderr."""

    def __init__(self, steps: int, done: int, *, quiet: bool):
        self.steps, self.step_number, self.mean, self.seen = steps, done, 0.0, 0
        self.quiet, self.bar = quiet, None if quiet else _tqdm(steps, done)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, loss: float) -> None:
        """One more step, with its loss."""
        before, self.step_number = self.step_number, self.step_number + 1
        self.seen += 1
        self.mean += (loss - self.mean) / min(self.seen, RECENT)
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix(loss=f"{self.mean:.3f}", refresh=False)
        elif not self.quiet and self.step_number * 4 // self.steps > before * 4 // self.steps:
            said = f"training: step {self.step_number} of {self.steps}, loss {self.mean:.3f}"
            print(said, file=sys.stderr)  # noqa: T201


def _tqdm(steps: int, done: int) -> Any:
    """A bar, or None where nobody watches or tqdm is missing."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=steps, initial=done, desc="training", unit="step")
