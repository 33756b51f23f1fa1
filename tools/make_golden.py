"""Make the golden files, or check them: every value again from the oracle.

python tools/make_golden.py                     write golden/ and the core set of the wheel
python tools/make_golden.py --check             derive every value again and compare (exit 1)
python tools/make_golden.py --archive OUT.tar   the whole of golden/ as one reproducible archive
python tools/make_golden.py --onnx DIR          the same cases as folders for onnx_test_runner
python tools/make_golden.py --npy DIR           the same cases as .npy files, one folder a case
... --only TEXT                                 the cases whose id has this text (--onnx, --npy)
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread adds up in one order

from sparse_ref.golden import load  # noqa: E402 - after the path is set
from tools.golden import archive, checking, export, lint  # noqa: E402 - after the path is set
from tools.golden.build import build  # noqa: E402
from tools.golden.files import Built, directory  # noqa: E402
from tools.golden.plan import WITHDRAWN, in_core, plans  # noqa: E402

GOLDEN = ROOT / "golden"
CORE = ROOT / "sparse_ref" / "golden" / "core"


def built(workers: int) -> list[Built]:
    """Every case, in the order of the ids."""
    if workers == 1:
        return [build(plan) for plan in plans()]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(build, plans(), chunksize=16))


def kept(cases: list[Built]) -> list[Built]:
    """A case that is there already keeps its bits: exp differs between processors in the last."""
    old = {case.id: case.tensors for case in load(GOLDEN)} if GOLDEN.is_dir() else {}
    found = []
    for record, made in cases:
        before = old.get(record["id"], {})
        same = {name: x.astype(made[name].dtype) for name, x in before.items() if name in made}
        found.append((record, made if checking.different(record["id"], same, made) else same))
    return found


def both(cases: list[Built]) -> dict[Path, dict[str, bytes]]:
    """The files of the whole and of the core, by directory."""
    inline = [plan.id for plan in plans() if plan.inline]
    core = {plan.id for plan in plans() if in_core(plan)}
    some = [case for case in cases if case[0]["id"] in core]
    return {GOLDEN: directory(cases, inline, WITHDRAWN), CORE: directory(some, inline, {})}


def write(found: dict[Path, dict[str, bytes]]) -> None:
    """Every file, each whole or not at all; blobs of families that are gone are removed."""
    for place, files in found.items():
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*.safetensors"):
            if old.name not in files:
                old.unlink()
        for name, data in files.items():
            part = place / f"{name}.part"
            part.write_bytes(data)
            part.replace(place / name)
        print(f"{place.relative_to(ROOT)}: {sum(map(len, files.values())):,} bytes")


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--archive", type=Path, metavar="OUT.tar")
    parser.add_argument("--onnx", type=Path, metavar="DIR")
    parser.add_argument("--npy", type=Path, metavar="DIR")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.onnx or given.npy:
        return export.main(GOLDEN, given.only, onnx=given.onnx, npy=given.npy)
    if given.archive:
        return archive.main(GOLDEN, given.archive)
    if given.check:
        problems = [*lint.problems(GOLDEN), *lint.problems(CORE)]
        if not problems:
            problems = checking.problems(both(built(given.workers)))
        print("\n".join(problems) or "golden files: every value derived again, all equal")
        return 1 if problems else 0
    write(both(kept(built(given.workers))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
