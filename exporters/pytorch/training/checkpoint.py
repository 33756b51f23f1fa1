"""A training run on disk: tensors in safetensors, the rest as JSON in the same file's header.

One file that is replaced as a whole, so weights, moments and step always belong together; nothing
in it is code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exporters.files import write_atomically

KEY = "sparse_ref.training"
MOMENTS = "step", "exp_avg", "exp_avg_sq"


class Checkpoint(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]  # plain data


def save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Model, moments of Adam and `state`, which is plain data, into one file."""
    from safetensors.torch import save as serialised

    tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimiser.state.get(parameter, {})
        tensors |= {f"{part}.{name}": moments[part] for part in MOMENTS if part in moments}
    kept = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    content = serialised(kept, {KEY: json.dumps(state, allow_nan=False)})
    write_atomically(path, content)


def load(path: Path) -> Checkpoint:
    """What `save` wrote.

    Raises
    ------
    ValueError
        If the file is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads((file.metadata() or {})[KEY])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a checkpoint of a training run: {error}") from None
    return Checkpoint(tensors, state)


def restore(
    found: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Weights into a model, and moments into its optimiser."""
    weights = {
        name.removeprefix("model."): x
        for name, x in found.tensors.items()
        if name.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the checkpoint must be of this model: {said[:300]}") from None
    if optimiser is None:
        return
    for name, parameter in model.named_parameters():
        moments = {part: found.tensors.get(f"{part}.{name}") for part in MOMENTS}
        if all(x is not None for x in moments.values()):
            optimiser.state[parameter] = {
                part: x.to(parameter.device if part != "step" else "cpu")
                for part, x in moments.items()
                if x is not None
            }
