"""`sparse-ref export --to torch`: a pattern as a Python file that needs torch alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def write(arguments: argparse.Namespace, pattern: Any) -> int:
    """Write the file; 0, 2 if an option is wrong, 3 if the pattern has no place in such a file."""
    import sparse_ref as sr
    from exporters import emit
    from exporters.files import write_atomically

    try:
        text = emit(pattern, scale=arguments.scale, softcap=arguments.softcap)
        write_atomically(arguments.out, text.encode())
    except NotImplementedError as error:
        return _failed(error, 3)
    except (OSError, ValueError) as error:
        return _failed(error, 2)
    if arguments.json:
        content = {"file": str(arguments.out), "bytes": len(text.encode()),
                   "pattern": sr.to_dict(pattern)}  # fmt: skip
        print(json.dumps(content))
    else:
        name = arguments.out.stem
        print(f"Written: {arguments.out} ({len(text.encode()) / 1024:.1f} KiB): {pattern!r}")
        print(f"Use it: from {name} import Attention, block_mask, mask_mod_on")
    return 0


def _failed(error: Exception, status: int) -> int:
    print(f"sparse-ref export: {error}", file=sys.stderr)
    return status
