"""Whether half precision runs on the CPU's AMX tiles, and running it there.

Tiles are used where the CPU and the kernel of the system offer them, and only after a product on
them was right in a process of its own, which may crash. The answer is kept next to the compiled
kernels. SPARSE_REF_AMX=0 turns them off; without them half precision is computed in float32.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from sparse_ref.heads import Problem

from . import _jit
from .arguments import Scores, Slots, Tensors
from .lanes import FEATURES
from .threads import run
from .tile_layouts import Layout
from .vectors import lanes_of

if TYPE_CHECKING:  # they compile nothing, but take their time to load
    from .amx_tiles import BFloat16, Float16

NEEDS = {"bfloat16": "amx-bf16", "float16": "amx-fp16"}
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
PASSED, WRONG = "passed", 3  # what is remembered, how a process ends
CRASHES = (signal.SIGILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE)
PATIENCE = 120.0  # seconds
TRIAL = "from sparse_ref.kernels.amx_trial import main; main({!r})"

_refusals: dict[str, str] = {}
_lock = Lock()


def available() -> dict[str, str]:
    """For each type of half precision "yes", or why its products do not run on AMX tiles.

    >>> list(available())
    ['bfloat16', 'float16']
    """
    return {name: refusal(name) or "yes" for name in NEEDS}


def refusal(name: str) -> str:
    """Why products of a type do not run on AMX tiles; empty if they do."""
    if os.environ.get("SPARSE_REF_AMX") == "0":
        return "turned off by SPARSE_REF_AMX=0"
    with _lock:
        if name not in _refusals:
            _refusals[name] = _lacking(name) or permission() or tried(name)
        return _refusals[name]


def kind_of(*dtypes: Any) -> type[BFloat16 | Float16] | None:
    """The tiles for inputs of these types; None if they are to be computed in float32."""
    names = {np.dtype(x).name for x in dtypes if np.dtype(x).isnative}
    if len(names) != 1 or not names <= set(NEEDS) or refusal(*names):
        return None
    from . import amx_tiles  # noqa: PLC0415 - only where there are tiles

    return amx_tiles.BFloat16 if names == {"bfloat16"} else amx_tiles.Float16


def suits(layout: Layout) -> bool:
    """Whether the blocks of a layout consist of whole tiles."""
    return int(layout.block[1]) % 32 == 0 and lanes_of(32) % 16 == 0


def attend(
    kind: type[BFloat16 | Float16],
    given: Problem,
    x: Tensors,
    layout: Layout,
    how: Scores,
    slots: Slots,
    begins: bool,
    *,
    work: float,
) -> None:
    """Compute a part of a plan, as `tiles.attend` does."""
    from . import amx_blocks  # noqa: PLC0415 - as above

    packed = amx_blocks.packed(kind, x, layout, slots, how.factor)
    k, v = _bits(given.k), _bits(given.v)
    run(amx_blocks.pack, k, v, x.sizes, layout, slots, packed, work=len(packed.k) + len(packed.v))
    run(amx_blocks.attend, x, layout, how._replace(factor=1.0), slots, packed, begins, work=work)


def nbytes(given: Problem, layout: Layout, slots: Slots) -> int:
    """The memory `attend` takes for K and V."""
    from . import amx_blocks  # noqa: PLC0415 - as above

    (_, h, m, d), (_, g, n, e) = given.q.shape, given.v.shape
    blocks, k, v = amx_blocks.room(np.array([h, g, m, n, d, e]), layout, slots)
    return 2 * (k + v) + len(slots.batch) * int(g) * blocks


def _bits(x: NDArray[Any]) -> NDArray[np.uint16]:
    bits = np.require(x, requirements=["C", "A"]).view(np.uint16)
    bits.flags.writeable = False  # one type for the compiler, whatever the caller has
    return bits


def _lacking(name: str) -> str:
    """What the CPU or these kernels do not have."""
    missing = [x for x in ("amx-tile", NEEDS[name]) if not FEATURES.get(x)]
    if missing:
        return f"the CPU, or the system on it, has no {' and no '.join(missing)}"
    if _jit.PLAIN:
        return "the kernels are plain loops (SPARSE_REF_PLAIN, NUMBA_DISABLE_JIT)"
    return ""


def permission() -> str:
    """Ask Linux for the tiles, for all threads of this process; why it refuses, else empty."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "AMX tiles are used on x86-64 Linux only"
    request = ctypes.CDLL(None, use_errno=True).syscall
    numbers = (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if request(*(ctypes.c_long(number) for number in numbers)) == 0:
        return ""
    return f"Linux does not permit AMX tiles ({os.strerror(ctypes.get_errno())})"


def tried(name: str) -> str:
    """How a product in a process of its own went; empty if it was right."""
    kept = _kept(name)
    if kept is not None:
        try:
            found = kept.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            pass
        else:
            return "" if found == PASSED else found
    answer, lasting = _trial(name)
    if kept is not None and lasting:
        new = kept.with_suffix(f".{os.getpid()}")
        try:
            new.write_text(answer or PASSED, encoding="utf-8")
            new.replace(kept)
        except OSError:  # a full disk, or somebody removed the directory
            pass
    return answer


def _kept(name: str) -> Path | None:
    """Where the answer for this machine is kept, if there is a private place."""
    if _jit.CACHE is None:
        return None
    settings = [getattr(_jit.settings, x, None) for x in ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX")]
    machine = [llvmlite.binding.get_host_cpu_name(), sorted(FEATURES.items()), platform.release()]
    found = hashlib.sha256(repr((machine, settings)).encode()).hexdigest()[:16]
    return Path(_jit.CACHE) / f"amx-{name}-{found}.txt"


def _trial(name: str) -> tuple[str, bool]:
    """Run a trial; why it did not pass, and whether another would end as this one did."""
    path = os.pathsep.join(x or str(Path.cwd()) for x in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRIAL.format(name)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, TypeError, ValueError, subprocess.TimeoutExpired) as error:
        return f"the self-test did not run ({type(error).__name__})", False
    if done.returncode == 0 and done.stdout.strip() == PASSED.encode():
        return "", True
    if done.returncode == WRONG:
        return "the self-test gave a wrong product", True
    if done.returncode < 0:
        number = -done.returncode
        return f"the self-test crashed (signal {number})", number in CRASHES
    return f"the self-test failed (exit code {done.returncode})", False
