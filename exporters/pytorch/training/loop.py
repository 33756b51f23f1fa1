"""The training loop: loss, Adam, warm-up and cosine, clipping, checkpoints that are taken up again.

Everything random in a step comes from its seed and its number, so a run that was interrupted ends
with the bits of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .data import mixed
from .progress import Bar
from .schedule import Settings

KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
POINTS = 200  # of a curve


@dataclass
class History:
    """What was measured: `losses` are means up to a step, `judged` whatever `judge` answered."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    judged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pending: tuple[int, float] = (0, 0.0)  # losses since the last mean, and their sum

    def add(self, step: int, loss: float, every: int) -> None:
        """One more loss; after each `every` steps their mean is kept."""
        count, total = self.pending[0] + 1, self.pending[1] + loss
        if step % every == 0:
            self.losses.append((step, total / count))
            count, total = 0, 0.0
        self.pending = count, total


def fit(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    settings: Settings,
    *,
    judge: Callable[[nn.Module], dict[str, float]] | None = None,
    judge_every: int | None = None,
    path: Path | None = None,
    save_every: int = 100,
    resume: bool = False,
    until: int | None = None,
    about: dict[str, Any] | None = None,
    quiet: bool = False,
) -> History:
    """Train a model in place, for all steps of `settings`.

    Parameters
    ----------
    model : nn.Module
    batch : callable
        `batch(step)`, steps counted from 0. It may draw from torch's global generator.
    loss : callable
        `loss(model, batch)`, a mean.
    settings : Settings
    judge : callable, optional
        `judge(model)`, metrics by name, of data that is held out; asked every `judge_every` steps
        and at the end.
    path : Path, optional
        Of a checkpoint, written every `save_every` steps and at the end.
    resume : bool
        Go on from `path`, if it is there.
    until : int, optional
        Stop after this step, as if interrupted.
    about : dict, optional
        Plain data that a checkpoint must share to be taken up: which data, which model.
    quiet : bool
        No progress on stderr.

    Raises
    ------
    ValueError
        If the checkpoint is of other settings or another model.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> error = lambda model, x: (model(x) - 3 * x).square().mean()
    >>> history = fit(model, lambda step: x, error, Settings(steps=200, peak=0.1), quiet=True)
    >>> round(model.weight.item(), 1)
    3.0
    """
    mine = asdict(settings) | {"about": about or {}}
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.peak, weight_decay=settings.weight_decay
    )
    device = next(model.parameters()).device
    scaler = _scaler(settings, device)
    history, done = History(), 0
    if resume and path is not None and path.exists():
        history, done = _taken_up(path, model, optimiser, scaler, mine)

    def keep(step: int) -> None:
        if path is not None:
            state = {"settings": mine, "step": step, "history": asdict(history),
                     "scaler": scaler.state_dict()}  # fmt: skip
            checkpoint.save(path, model, optimiser, state)

    every = max(1, settings.steps // POINTS)
    last = settings.steps if until is None else min(until, settings.steps)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), Bar(settings.steps, done, quiet=quiet) as bar:
        for step in range(done, last):
            model.train()
            torch.manual_seed(mixed(settings.seed, step))
            value = _step(model, batch(step), loss, optimiser, scaler, settings, step)
            history.add(step + 1, value, every)
            bar.step(value)
            between = step + 1 < settings.steps
            if judge and judge_every and (step + 1) % judge_every == 0 and between:
                history.judged.append((step + 1, _judged(judge, model)))
            if (step + 1) % save_every == 0 and step + 1 < last:
                keep(step + 1)
    if judge and last == settings.steps and done < last:
        history.judged.append((last, _judged(judge, model)))
    if done < last:
        keep(last)
    model.eval()
    return history


def _step(
    model: nn.Module,
    batch: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: Settings,
    step: int,
) -> float:
    """One step of Adam; the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = settings.rate(step)
    kind, device = KINDS.get(settings.precision), next(model.parameters()).device.type
    with torch.autocast(device, kind, enabled=kind is not None):
        value = loss(model, batch)
    found = value.item()
    if not math.isfinite(found):
        raise FloatingPointError(f"the loss of step {step + 1} is {found}: lower the peak rate")
    optimiser.zero_grad()
    scaler.scale(value).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    scaler.step(optimiser)
    scaler.update()
    return found


def _scaler(settings: Settings, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss of float16, and does nothing for the others."""
    half = settings.precision == "float16"
    if half and device.type != "cuda":
        raise ValueError("precision must be 'bfloat16' or 'float32' on a CPU, got 'float16'")
    return torch.amp.GradScaler(device.type, enabled=half)


def _judged(judge: Callable[[nn.Module], dict[str, float]], model: nn.Module) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return judge(model)


def _taken_up(
    path: Path, model: nn.Module, optimiser: Any, scaler: Any, mine: dict[str, Any]
) -> tuple[History, int]:
    """History and step of a checkpoint, its tensors where they belong."""
    found = checkpoint.load(path)
    try:
        theirs, kept = found.state["settings"], found.state["history"]
        history = History(
            [(step, loss) for step, loss in kept["losses"]],
            [(step, metrics) for step, metrics in kept["judged"]],
            tuple(kept["pending"]),
        )
        done = int(found.state["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a checkpoint of `fit`: {error!r}") from None
    _same(path, theirs, mine)
    checkpoint.restore(found, model, optimiser)
    if found.state.get("scaler"):
        scaler.load_state_dict(found.state["scaler"])
    return history, done


def _same(path: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    for name in {**mine, **theirs}:
        one, other = theirs.get(name), mine.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            _same(path, one, other)
        elif one != other:
            raise ValueError(f"{name} must be {one!r} to go on from {path}, got {other!r}")


def next_token_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """The mean loss, in nats, of the tokens that follow; of a batch of (tokens, what follows)."""
    tokens, follows = batch
    logits = model(tokens).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), follows.flatten())


def class_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """The mean loss, in nats, of labels; of a batch of (what the model takes, ..., labels)."""
    *given, labels = batch
    return nn.functional.cross_entropy(model(*given).float(), labels)
