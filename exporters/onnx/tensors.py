"""A block layout as the four tensors that the ONNX operator reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref import Blocks


def block_tensors(blocks: Blocks) -> dict[str, NDArray[Any]]:
    """The inputs of `sparse_ref.SparseAttention` that say which keys are seen, in its order.

    Parameters
    ----------
    blocks : Blocks

    Returns
    -------
    dict
        block_indices int32 (1, p, rows, longest)
            Key blocks of every row of query blocks, ascending; -1 past the row's count.
        block_count int32 (1, p, rows)
        tile_ids int32, shaped like block_indices
            Row of tile_masks of every listed block; 0 past the count.
        tile_masks uint8 (tiles, block_size[0], block_size[1])
            Multiplicities; row 0 is all ones.

    p is 1 if all heads share a layout, else the number of heads. `longest` is at least 1.

    Examples
    --------
    >>> from sparse_ref import Causal, to_blocks
    >>> tensors = block_tensors(to_blocks(Causal(), 6, 6, block_size=2))
    >>> tensors["block_indices"][0, 0]
    array([[ 0, -1, -1],
           [ 0,  1, -1],
           [ 0,  1,  2]], dtype=int32)
    >>> tensors["tile_ids"][0, 0]
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 1]], dtype=int32)
    """
    count = np.diff(blocks.indptr, axis=1)
    slot = np.arange(max(1, int(count.max(initial=0))))
    listed = slot < count[..., None]
    indices = np.full(listed.shape, -1, dtype=np.int32)
    ids = np.zeros(listed.shape, dtype=np.int32)
    indices[listed], ids[listed] = blocks.indices, blocks.tile_ids  # CSR order is that of `listed`
    of_head = blocks.head_layout if len(blocks.indptr) > 1 else blocks.head_layout[:1]
    return {
        "block_indices": indices[of_head][None],
        "block_count": count[of_head].astype(np.int32)[None],
        "tile_ids": ids[of_head][None],
        "tile_masks": blocks.tile_masks,
    }
