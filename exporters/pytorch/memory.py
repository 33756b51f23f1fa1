"""How much a forward pass keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(call: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd saves while `call` runs.

    Exact, whatever the allocator does: what stays in memory between forward and backward. A
    storage counts once and whole, however many views of it are saved.

    Parameters
    ----------
    call : callable without arguments
        The forward pass; its result is let go of.
    exclude : tensors, optional
        What is in memory anyway, such as `model.parameters()`.

    Examples
    --------
    >>> x = torch.ones(5, requires_grad=True)
    >>> saved_bytes(lambda: x.exp()), saved_bytes(lambda: x * x), saved_bytes(lambda: x * x, [x])
    (20, 20, 0)
    """
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
    known = {x.untyped_storage().data_ptr() for x in exclude}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = call()
    del result
    return sum(storage.nbytes() for storage in kept.values())
