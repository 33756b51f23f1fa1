"""Other people's attentions against the oracle: the verdict on each, and what is wrong with it.

  python tools/verdicts.py                     ask everybody installed; the table, in Markdown
  python tools/verdicts.py natten gym          these alone: parts of names
  ... --json DIR                               a file for each, with the whole report
  ... --markdown FILE --html FILE              the table; one page with drawn masks
  ... --from DIR                               of files written before, asking nobody
  ... --list                                   who can be asked

exit status: 0 if the verdicts could be had, whatever they are; 2 for wrong arguments
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # small cases: threads only wait
        os.environ.setdefault(name, "1")

import sparse_ref as sr
from tools import verdicts_contrib, verdicts_grids, verdicts_onnx, verdicts_peers
from tools.verdicts_page import markdown, page
from tools.verdicts_peers import Peer
from tools.verdicts_record import record

MODULES = (verdicts_peers, verdicts_onnx, verdicts_contrib, verdicts_grids)
PEERS = tuple(peer for module in MODULES for peer in module.PEERS)


def ask(peer: Peer) -> dict[str, Any]:
    """One record; ImportError where the library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peers warn of is theirs
        fn = peer.make()
        return record(peer, fn, sr.check(fn, peer.cases()))


def ask_apart(peer: Peer) -> dict[str, Any]:
    """The same in a process of its own: a library that crashes ends no other's verdict."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_ask_named, peer.slug).result()


def _ask_named(slug: str) -> dict[str, Any]:
    return ask(next(peer for peer in PEERS if peer.slug == slug))


def asked(peers: list[Peer], directory: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """A record of everybody who is here, written at once, and a line on everybody who is not."""
    found, missing = [], []
    for peer in peers:
        start = time.perf_counter()
        print(f"{peer.name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            found.append(ask_apart(peer))
        except BrokenProcessPool:
            missing.append(f"{peer.name}: no verdict, its process crashed")
            print("crashed", file=sys.stderr)
        except (ImportError, metadata.PackageNotFoundError) as why:
            missing.append(f"{peer.name}: not asked, {why}")
            print("not installed", file=sys.stderr)
        else:
            took = time.perf_counter() - start
            print(f"{found[-1]['verdict']}, {took:.0f} s", file=sys.stderr)
            if directory is not None:
                _write(
                    directory / f"{peer.slug}.json",
                    json.dumps(found[-1], indent=1, allow_nan=False),
                )
    return found, missing


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def stored(directory: Path) -> list[dict[str, Any]]:
    """The records that were written there, in the order of the peers."""
    order = {peer.name: i for i, peer in enumerate(PEERS)}
    found = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    return sorted(found, key=lambda one: (order.get(one["name"], len(order)), one["name"]))


def main(arguments: list[str] | None = None) -> int:
    """Ask, write, print, and answer the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="DIR")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--from", type=Path, metavar="DIR", dest="source")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{peer.slug}: {peer.asked}" for peer in PEERS))
        return 0
    wanted = [p for p in PEERS if not given.names or any(n in p.slug for n in given.names)]
    if unknown := [n for n in given.names if not any(n in p.slug for p in PEERS)]:
        parser.error(f"names must be parts of those of --list, got {unknown[0]!r}")
    missing: list[str] = []
    if given.source is None:
        found, missing = asked(wanted, given.json)
    else:
        found = stored(given.source)
    if not found:
        parser.error(f"there is nobody to ask: {'; '.join(missing) or given.source}")
    if given.markdown is not None:
        _write(given.markdown, markdown(found))
    if given.html is not None:
        _write(given.html, page(found, f"sparse-ref {sr.__version__}"))
    if given.markdown is None:
        print(markdown(found), end="")
    print("\n".join(missing), end="\n" if missing else "", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
