"""Content-based selection: choose keys by what they hold, then attend to them.

Every selector answers a `Selection`, which goes wherever a pattern goes. They are built from a few
parts: a score (`scores`), what is picked and what is forced (`picks`), a table of what was chosen
(`inputs`, `selection`). Common to all:

- scores in float64, whatever the input;
- ties go to the smaller index, and a NaN ranks above all numbers, so that attention shows it;
- min(count, visible) are chosen: nothing that a query cannot see, not even where few are visible;
- what was chosen is cut by `visible` again where it is used.

Published methods that are not here are specified, and marked so, in SPECS.md next to this file.
"""

from .antidiagonals import xattention
from .caches import h2o, h2o_masked, tova
from .hashing import lsh
from .indexers import lightning_indexer, msa, qsa
from .mass import threshold, top_p
from .observed import snapkv, vertical_slash
from .pages import quest
from .selection import Selection
from .topk import topk_blocks, topk_keys
from .trained import moba, nsa_blocks

__all__ = [
    "Selection", "h2o", "h2o_masked", "lightning_indexer", "lsh", "moba", "msa", "nsa_blocks",
    "qsa", "quest", "snapkv", "threshold", "top_p", "topk_blocks", "topk_keys", "tova",
    "vertical_slash", "xattention",
]  # fmt: skip
