"""Arrays of other libraries from NumPy's and back, and the gradients those libraries take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .case import dtype_named

ARRAYS = ("numpy", "torch", "jax", "dlpack")


class Exchanged:
    """An array of which nothing is known but how DLPack reads it."""

    def __init__(self, array: Any) -> None:
        if array.dtype.name == "bfloat16":
            raise NotImplementedError("NumPy exchanges no bfloat16 through DLPack")
        self._array = np.ascontiguousarray(array)

    def __dlpack__(self, **more: Any) -> Any:
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Framework(NamedTuple):
    """Whose arrays, and where they are put."""

    arrays: str
    device: str | None

    def sent(self, x: Any) -> Any:
        """An array of NumPy's as one of the library's."""
        if self.arrays == "torch":
            import torch  # noqa: PLC0415

            x = np.ascontiguousarray(x)
            if x.dtype.name == "bfloat16":
                return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(self._place())
            return torch.from_numpy(x).to(self._place())
        if self.arrays == "jax":
            import jax  # noqa: PLC0415

            return jax.device_put(x, None if self.device is None else jax.devices(self.device)[0])
        return Exchanged(x) if self.arrays == "dlpack" else x

    def back(self, x: Any) -> Any:
        """An array of the library's as one of NumPy's, in its own type."""
        if self.arrays == "torch":
            x = x.detach().cpu().contiguous()
            if str(x.dtype) == "torch.bfloat16":
                return x.view(_torch().int16).numpy().view(dtype_named("bfloat16"))
            return x.numpy()
        if self.arrays == "dlpack" and not isinstance(x, np.ndarray):
            return np.from_dlpack(x)
        return np.asarray(x)

    def vjp(
        self, called: Callable[..., Any], given: list[Any], above: Callable[[Any], list[Any]]
    ) -> list[Any]:
        """Gradients by q, k and v of called(q, k, v), as the library itself takes them.

        `above` makes the cotangents of what is answered: of out, or of (out, lse).
        """
        if self.arrays == "torch":
            leaves = [x.detach().requires_grad_() for x in given]
            answer = called(*leaves)
            ends = [*answer] if isinstance(answer, (tuple, list)) else [answer]
            return [*_torch().autograd.grad(ends, leaves, above(answer))]
        if self.arrays == "jax":
            import jax  # noqa: PLC0415

            answer, pull = jax.vjp(called, *given)
            cotangents = above(answer)
            return [*pull(tuple(cotangents) if isinstance(answer, tuple) else cotangents[0])]
        raise NotImplementedError(f"arrays of {self.arrays} have no gradients of their own")

    def _place(self) -> str:
        return self.device or "cpu"


def _torch() -> Any:
    import torch  # noqa: PLC0415

    return torch


def block_mask(mask: Any) -> Any:
    """What FlexAttention takes, from a dense mask (1 or b, h, m, n) of torch's."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415

    b, h, m, n = mask.shape
    if not m * n:
        return None  # no pair to look at, and create_block_mask refuses to

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return mask[batch if b > 1 else 0, head, query, key]

    return create_block_mask(seen, b if b > 1 else None, h, m, n, device=str(mask.device))
