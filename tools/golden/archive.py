"""`golden/` as one archive, the same bytes from the same files."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

SKIPPED = ("__pycache__", "node_modules")


def main(golden: Path, out: Path) -> int:
    """Write the archive, and say its size and SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(golden.rglob("*")):
            if path.is_file() and not set(SKIPPED) & set(path.parts):
                data = path.read_bytes()
                entry = tarfile.TarInfo(f"golden/{path.relative_to(golden).as_posix()}")
                entry.size, entry.mode = len(data), 0o644  # no owner, no time
                tar.addfile(entry, io.BytesIO(data))
    data = buffer.getvalue()
    out.write_bytes(data)
    print(f"{out}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    return 0
