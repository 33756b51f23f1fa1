"""Half precision on AMX tiles: the instructions, on a model of them the numbers, and the switch.

Few machines have the tiles. The kernel names their instructions through a prefix, so here it runs
on others of the same names: a model in NumPy, which keeps the rules of Intel's manual.
"""

import ctypes
import platform
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.problem import problem
from tests.test_kernels import LARGE, OPTIONS, draw, force

numba = pytest.importorskip("numba")
ml_dtypes = pytest.importorskip("ml_dtypes")
import llvmlite.binding as llvm  # noqa: E402
from llvmlite import ir  # noqa: E402
from numba.core.caching import NullCache  # noqa: E402

from sparse_ref.kernels import _jit, amx, forward  # noqa: E402
from sparse_ref.kernels.arguments import scores, tensors  # noqa: E402
from sparse_ref.kernels.vectors import lanes_of  # noqa: E402

COMPILED = not _jit.PLAIN
modelled = pytest.mark.skipif(
    not COMPILED or lanes_of(32) % 16 != 0, reason="needs compiled panels of 16 lanes"
)
if COMPILED:
    from sparse_ref.kernels import amx_blocks, amx_tiles, amx_trial

PATTERNS = {**LARGE, "counted": sr.RandomKeys(70, 0, 131), "gathered": sr.Strided(5)}
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


class Machine:
    """Tile registers of one thread, and the rules of how they are to be used."""

    def __init__(self):
        self.local, self.broken, self.calls = threading.local(), [], {}

    def need(self, holds, rule):
        if not holds:
            self.broken.append(rule)

    @property
    def tiles(self):
        tiles = getattr(self.local, "tiles", None)
        self.need(tiles is not None, "tiles are configured before they are used")
        return np.zeros((8, 16, 64), np.uint8) if tiles is None else tiles

    def ldtilecfg(self, address):
        sizes = np.frombuffer(ctypes.string_at(address, 64), np.uint8)
        self.need(getattr(self.local, "tiles", None) is None, "tiles were released before")
        self.need(sizes[0] == 1 and not sizes[1:16].any() and not sizes[32:48].any(), "palette 1")
        self.need((sizes[16:32].view("<u2") == 64).all() and (sizes[48:56] == 16).all(), "sizes")
        self.local.tiles = np.full((8, 16, 64), 0xFF, np.uint8)

    def tilerelease(self):
        self.need(self.tiles is not None, "tiles are released once")
        self.local.tiles = None

    def tilezero(self, to):
        self.tiles[to] = 0

    def tileloadd64(self, to, address, row):
        self.tiles[to] = memory(address, row)

    def tilestored64(self, tile, address, row):
        memory(address, row)[:] = self.tiles[tile]

    def tdpbf16ps(self, to, a, b):
        def wide(tile):
            numbers = (tile.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            return normal(numbers)

        self.multiply(to, wide(self.tiles[a]), wide(self.tiles[b]))

    def tdpfp16ps(self, to, a, b):
        left, right = (self.tiles[i].view(np.float16).astype(np.float32) for i in (a, b))
        self.multiply(to, left, right)

    def multiply(self, to, a, b):
        """Even and odd numbers are summed apart, one after another, and then added to the tile."""
        c = self.tiles[to].view(np.float32)
        with np.errstate(all="ignore"):
            left, right = a.T.reshape(16, 2, 16, 1), b.reshape(16, 16, 2).swapaxes(1, 2)
            even, odd = normal(left * right[:, :, None]).sum(axis=0)  # exact products
            c[:] = normal(normal(c) + normal(normal(even) + normal(odd)))


def normal(x):
    """0 where a number is subnormal: DAZ and FTZ."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def memory(address, row):
    """16 rows of 64 bytes, `row` bytes apart."""
    flat = (ctypes.c_uint8 * (15 * row + 64)).from_address(address)
    return np.lib.stride_tricks.as_strided(np.frombuffer(flat, np.uint8), (16, 64), (row, 1))


TILE, ADDRESS, STRIDE = ctypes.c_uint8, ctypes.c_size_t, ctypes.c_int64
SIGNATURES = {
    "ldtilecfg": [ADDRESS],
    "tilerelease": [],
    "tilezero": [TILE],
    "tileloadd64": [TILE, ADDRESS, STRIDE],
    "tilestored64": [TILE, ADDRESS, STRIDE],
    "tdpbf16ps": [TILE, TILE, TILE],
    "tdpfp16ps": [TILE, TILE, TILE],
}
PREFIX = "sparse_ref_model_"
machine = Machine()
callbacks = {}  # what compiled code calls may not be collected


def _callback(name, signature):
    def call(*args):
        try:
            machine.calls[name] = machine.calls.get(name, 0) + 1
            getattr(machine, name)(*args)
        except Exception as error:  # nothing may be raised through compiled code
            machine.broken.append(repr(error))

    return ctypes.CFUNCTYPE(None, *signature)(call)


if COMPILED:
    for _name, _signature in SIGNATURES.items():
        callbacks[_name] = _callback(_name, _signature)
        _address = ctypes.cast(callbacks[_name], ctypes.c_void_p).value
        llvm.add_symbol(PREFIX + _name, _address)
    for _module in (amx_blocks, amx_trial):  # what calls the model is for this process only
        for _one in vars(_module).values():
            if hasattr(_one, "py_func") and _one.py_func.__module__ == _module.__name__:
                _one._cache = NullCache()

    class ModelBFloat16(amx_tiles.BFloat16):
        tiles = PREFIX

    class ModelFloat16(amx_tiles.Float16):
        tiles = PREFIX

    MODELS = {"bfloat16": ModelBFloat16, "float16": ModelFloat16}


@pytest.fixture(params=["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def name(request, monkeypatch):
    """Every test that asks for it runs in both types, on the model; which rules held is asked."""
    force(monkeypatch, "tiles")
    machine.broken.clear()
    machine.calls.clear()
    yield request.param
    assert machine.broken == []
    assert machine.calls.get("ldtilecfg") == machine.calls.get("tilerelease")


def attention(name, q, k, v, pattern, **options):
    """By tiles of the model wherever a part of the plan is for tiles."""
    given = problem(q, k, v, pattern, **options)
    shape = (*given.q.shape[:3], given.v.shape[-1])
    out, lse = (np.full(s, np.nan, np.float32) for s in (shape, shape[:3]))
    x, how, by_tiles = tensors(given, out, lse), scores(given), 0
    for launch in forward.launches(given, out.dtype, None):
        part, slots, begins = launch
        if part.kernel != "tiles":
            forward.into(out, lse, given, [launch])
            continue
        assert amx.suits(part.layout)
        writes, by_tiles = begins and part.covers_rows, by_tiles + 1
        if begins and not writes:
            forward.reset(x, how, part.heads, slots)
        with_tiles = amx_blocks.packed(MODELS[name], x, part.layout, slots, 1.0)
        held = sum(array.nbytes for array in (with_tiles.k, with_tiles.v, with_tiles.state))
        assert held == amx.nbytes(given, part.layout, slots)
        amx.attend(MODELS[name], given, x, part.layout, how, slots, writes, work=1e9)
    assert by_tiles
    return sr.Attention(given.shaped(out.astype(TYPES[name])), given.shaped(lse))


def check(name, q, k, v, pattern, **options):
    """Within the bound wherever the oracle is finite, and elsewhere what the oracle says."""
    with np.errstate(all="ignore"):
        q, k, v = (np.asarray(x).astype(TYPES[name]) for x in (q, k, v))
        got = attention(name, q, k, v, pattern, **options)
        want = sr.attention(q, k, v, pattern, **options)
        bound = sr.error_bound(q, k, v, pattern, arithmetic=name, output=name, **options)
    for ours, exact, limit in zip(got, want, bound, strict=True):
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(ours[~finite].astype(np.float64), exact[~finite])
        error = np.abs(ours[finite].astype(np.float64) - exact[finite])
        worst = np.max(error - limit[finite], initial=0)
        assert worst <= 0, f"error exceeds the bound by {worst}"
    return got


@modelled
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_patterns_of_many_blocks(pattern, name):
    check(name, *draw(67, 131, h=6, d=37, e=19), pattern)


@modelled
def test_options(name):
    pattern = sr.Causal() & (sr.SlidingWindow(50, 0) | sr.Sink(3))
    for option in ("negative-scale", "softcap", "bias", "relative", "sinks", "lengths"):
        check(name, *draw(), pattern, **OPTIONS[option])
    check(name, *draw(), sr.Multi([sr.Causal(), sr.Strided(5)]), **OPTIONS["everything"])


@modelled
@pytest.mark.parametrize(("d", "e"), [(1, 9), (32, 16), (64, 48), (65, 6), (96, 33), (7, 1)])
def test_head_sizes(d, e, name):
    check(name, *draw(65, 67, b=1, d=d, e=e, h=2), sr.Causal())


@modelled
@pytest.mark.parametrize(("m", "n"), [(1, 1), (64, 64), (65, 1), (5, 129), (17, 95)])
def test_sizes_at_the_edge(m, n, name):
    check(name, *draw(m, n, b=1), sr.SlidingWindow(33, 20))


@modelled
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_other(bad, name):
    pattern = sr.SlidingWindow(40, 3)
    q, k, v = draw(e=29)  # more than d: what is left of a product lies where queries are padded
    v[0, 0, [3, 70, 71], 2], v[0, 1, 128] = bad, bad
    check(name, q, k, v, pattern)
    k[1, 0, 77], q[0, 2, 66] = bad, bad
    check(name, q, k, v, pattern)


@modelled
def test_numbers_that_tiles_take_for_zero_count(name):
    power = 130 if name == "bfloat16" else 20
    q, k, v = draw(b=1, h=2, g=1)
    small = np.zeros_like(q), np.zeros_like(k)
    for x, y in zip(small, (q, k), strict=True):
        x[:, :, 3:50] = np.copysign(2.0**-power, y[:, :, 3:50])
    for pattern in (sr.Full(), sr.SlidingWindow(90, 3)):
        check(name, small[0], np.ldexp(k, power - 6), v, pattern, scale=64.0)
        check(name, np.ldexp(q, power - 6), small[1], v, pattern, scale=64.0)
    check(name, q, k, np.where(v > 1, 2.0**-power, v), sr.Causal())


@modelled
def test_bits_depend_on_no_other_row_and_no_memory_layout(name, monkeypatch):
    q, k, v = (x.astype(TYPES[name]) for x in draw(b=3))
    k[2] = 2.0**-130
    want = attention(name, q, k, v, sr.Causal())
    monkeypatch.setattr("sparse_ref.kernels.threads.available", lambda: 3)
    turned = [np.asfortranarray(x) for x in (q, k, v)]
    for x in turned:
        x.flags.writeable = False
    for got in (
        attention(name, *turned, sr.Causal()),
        attention(name, *(x[1:2] for x in (q, k, v)), sr.Causal()),
    ):
        some = slice(1, 2) if len(got.out) == 1 else slice(None)
        np.testing.assert_array_equal(got.out.view("u2"), want.out[some].view("u2"))
        np.testing.assert_array_equal(got.lse, want.lse[some])


@modelled
def test_weights_are_rounded_to_nearest_ties_to_even(name):
    x = np.random.default_rng(3).standard_normal(32 * lanes_of(32)).astype(np.float32)
    x[:4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11
    x[4:8] = 0.0, -0.0, 1.0, 2.0**-20
    pair = np.zeros(len(x) // 2, np.uint32)
    empty = np.zeros(0, np.uint16)
    packed = MODELS[name](empty, empty, np.zeros(0, "u1"), np.zeros(1, int), 1.0, 0, 0)

    @numba.njit
    def run(packed, x, pair):
        amx_tiles.pairs(packed, x, 0, 32, pair, 0)

    run(packed, x, pair)
    got = pair.view(np.uint16).reshape(16, lanes_of(32), 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(got, x.astype(TYPES[name]).view(np.uint16))


@modelled
def test_the_self_test_accepts_the_model_and_no_wrong_product(name, monkeypatch):
    monkeypatch.setattr(amx_trial, "TIMES", 1)
    kind = MODELS[name]
    assert amx_trial.right(kind)
    for step, wrong in (
        (kind.multiply, lambda to, a, b: getattr(Machine, kind.multiply)(machine, to, b, a)),
        ("tilezero", lambda to: None),
        ("tilestored64", lambda tile, at, row: Machine.tilestored64(machine, tile ^ 1, at, row)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(machine, step, wrong)
            assert not amx_trial.right(kind), step


def assembly(kind, cpu, columns):
    """What LLVM makes of a product."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    amx_tiles.function_of(module, kind, columns).linkage = "external"
    parsed = llvm.parse_assembly(str(module))
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    lines = target.create_target_machine(cpu=cpu, opt=3).emit_assembly(parsed).splitlines()
    body = lines[lines.index(f"sparse_ref.llvm.x86.{kind.multiply}.{columns}:") :]
    words = (line.split("#")[0].split() for line in body)
    return [w for w in words if w and not w[0].startswith(".")]


@pytest.mark.skipif(not COMPILED, reason="needs the intrinsics")
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("cpu", ["sapphirerapids", "graniterapids"])
@pytest.mark.parametrize("name", TYPES)
def test_the_instructions(name, cpu, columns):
    if (name, cpu) == ("float16", "sapphirerapids"):
        return  # has no float16 tiles: LLVM would end the process
    kind = {"bfloat16": amx_tiles.BFloat16, "float16": amx_tiles.Float16}[name]
    code = assembly(kind, cpu, columns)
    names = [words[0] for words in code]
    first, last = names.index("ldtilecfg"), names.index("tilerelease")

    assert names.count("ldtilecfg") == names.count("tilerelease") == 1
    assert names.count(kind.multiply) == 3 * columns  # two rows of tiles together, then one
    assert names.count("tilestored") == names.count("tilezero") == 3 * columns
    assert names.count("tileloadd") == 3 + 2 * columns  # nothing is spilled or loaded again
    tiles = [i for i, words in enumerate(code) if any("%tmm" in w for w in words)]
    assert first < min(tiles) <= max(tiles) < last
    assert not [n for n in names if n.startswith(("call", "syscall", "int"))]
    labels = {w[0].rstrip(":") for w in code if w[0].endswith(":")}
    jumps = {w[1] for w in code if w[0].startswith("j")}
    assert all(x in labels or x.startswith(".L") for x in jumps)  # and it is not left


CROSS = """
import os
os.environ |= {"NUMBA_CPU_NAME": CPU, "NUMBA_CPU_FEATURES": "", "SPARSE_REF_CACHE": "0"}
import llvmlite.binding
llvmlite.binding.get_host_cpu_features = lambda: {"avx512f": True}
import numpy as np, numba
from sparse_ref.kernels import amx, amx_tiles
from sparse_ref.kernels.arguments import Scores, Slots, Tensors
from sparse_ref.kernels.tile_layouts import laid
from types import SimpleNamespace

def compiled(kernel, *args, work):
    kernel.compile(tuple(numba.typeof(x) for x in (0, np.zeros(1, np.int64), *args)))
    print(*kernel.inspect_asm().values())

one, none, numbers = np.zeros(1, np.int64), np.zeros(0), np.zeros(9, np.float32)
tile = np.ones((1, 64, 64), np.uint8)
layout = laid(np.array([[0, 1]]), *[np.zeros(1, np.int32)] * 2, tile, (0,), 32, *[one[:0]] * 2)
out, lse = np.zeros((1, 1, 64, 64), np.float32), np.zeros((1, 1, 64), np.float32)
x = Tensors(*[numbers] * 3, *[one] * 3, out, lse, np.array([1, 1, 64, 64, 64, 64]))
how, slots = Scores(1.0, 0.0, none, none, none, one, -1, 1), Slots(one, one, one, one, 0)
given = SimpleNamespace(k=out.astype(np.float16), v=out.astype(np.float16))
amx.run = compiled
amx.attend(getattr(amx_tiles, KIND), given, x, layout, how, slots, True, work=0)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or not COMPILED, reason="compiles for x86-64")
@pytest.mark.parametrize(
    ("cpu", "kind", "instruction"),
    [
        ("sapphirerapids", "BFloat16", "tdpbf16ps"),
        ("graniterapids", "BFloat16", "tdpbf16ps"),
        ("graniterapids", "Float16", "tdpfp16ps"),
    ],
)
def test_the_whole_kernel_compiles_and_only_the_product_uses_tiles(cpu, kind, instruction):
    code = f"CPU, KIND = {cpu!r}, {kind!r}\n{CROSS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    starts = re.split(r"^(\S+):\s*(?:#.*)?$", done.stdout, flags=re.MULTILINE)
    functions, name = {}, ""
    for label, lines in zip(starts[1::2], starts[2::2], strict=True):
        name = name if label.startswith(".L") else label
        functions[name] = functions.get(name, "") + lines
    using = [n for n, lines in functions.items() if re.search(r"tmm|tilecfg|tilerelease", lines)]

    assert using == [f"sparse_ref.llvm.x86.{instruction}.2"]
    words = functions[using[0]].split()
    assert words.count("ldtilecfg") == words.count("tilerelease") == 1
    assert words.count(instruction) >= 6
    assert not [w for w in words if w.startswith("call")]


@pytest.fixture
def switch(monkeypatch, tmp_path):
    """A machine with AMX whose answers a test makes; nothing is known about it yet."""
    here = SimpleNamespace(permitted="", ends=(0, b"passed"), trials=0)

    def run(command, **_):
        here.trials += 1
        if isinstance(here.ends, Exception):
            raise here.ends
        return subprocess.CompletedProcess(command, here.ends[0], here.ends[1], b"")

    monkeypatch.delenv("SPARSE_REF_AMX", raising=False)
    monkeypatch.setattr(amx, "_refusals", {})
    monkeypatch.setattr(amx, "FEATURES", {"amx-tile": True, "amx-bf16": True, "amx-fp16": True})
    monkeypatch.setattr(amx._jit, "PLAIN", False)
    monkeypatch.setattr(amx._jit, "CACHE", tmp_path)
    monkeypatch.setattr(amx, "permission", lambda: here.permitted)
    monkeypatch.setattr(amx.subprocess, "run", run)
    return here


def test_it_is_on_where_the_self_test_passed_and_that_is_remembered(switch, monkeypatch):
    assert amx.available() == {"bfloat16": "yes", "float16": "yes"}
    assert amx.kind_of(*[TYPES["bfloat16"]] * 3).multiply == "tdpbf16ps"
    assert amx.kind_of(*[TYPES["float16"]] * 3).multiply == "tdpfp16ps"
    assert switch.trials == 2
    monkeypatch.setattr(amx, "_refusals", {})  # as in a new process
    switch.ends = (amx.WRONG, b"")
    assert amx.refusal("bfloat16") == ""
    assert switch.trials == 2
    monkeypatch.setattr(amx, "_refusals", {})
    monkeypatch.setattr(amx.platform, "release", lambda: "another kernel")
    assert amx.refusal("bfloat16") == "the self-test gave a wrong product"


def test_mixed_and_other_types_are_computed_in_float32(switch):
    half, brain = TYPES["float16"], TYPES["bfloat16"]
    for types in ((half, brain, half), (np.float32,) * 3, (half, half, np.float32), (">f2",) * 3):
        assert amx.kind_of(*types) is None
    assert switch.trials == 0


ENDS = {
    "crashed": ((-4, b""), "the self-test crashed (signal 4)", 1),
    "wrong": ((amx.WRONG, b""), "the self-test gave a wrong product", 1),
    "killed": ((-9, b""), "the self-test crashed (signal 9)", 2),
    "failed": ((1, b""), "the self-test failed (exit code 1)", 2),
    "silent": ((0, b""), "the self-test failed (exit code 0)", 2),
    "hung": (
        subprocess.TimeoutExpired("python", 1), "the self-test did not run (TimeoutExpired)", 2,
    ),
    "no Python": (FileNotFoundError(), "the self-test did not run (FileNotFoundError)", 2),
}  # fmt: skip


@pytest.mark.parametrize(("ends", "reason", "trials"), ENDS.values(), ids=ENDS)
def test_it_is_off_where_the_self_test_did_not_pass(ends, reason, trials, switch, monkeypatch):
    switch.ends = ends
    for _ in range(2):
        assert amx.refusal("bfloat16") == reason
        assert amx.kind_of(*[TYPES["bfloat16"]] * 3) is None
        monkeypatch.setattr(amx, "_refusals", {})  # as in a new process
    assert switch.trials == trials


def test_it_is_off_where_asked_or_refused_before_anything_is_run(switch, monkeypatch):
    switch.permitted = "Linux does not permit AMX tiles (Operation not permitted)"
    assert set(amx.available().values()) == {switch.permitted}
    monkeypatch.setenv("SPARSE_REF_AMX", "0")
    assert set(amx.available().values()) == {"turned off by SPARSE_REF_AMX=0"}
    monkeypatch.delenv("SPARSE_REF_AMX")
    monkeypatch.setattr(amx, "_refusals", {})
    monkeypatch.setattr(amx, "FEATURES", {"amx-tile": True, "amx-bf16": True})
    switch.permitted = ""
    assert amx.available() == {
        "bfloat16": "yes", "float16": "the CPU, or the system on it, has no amx-fp16",
    }  # fmt: skip
    monkeypatch.setattr(amx._jit, "PLAIN", True)
    monkeypatch.setattr(amx, "_refusals", {})
    assert amx.refusal("bfloat16").startswith("the kernels are plain loops")


@pytest.mark.parametrize("number", [1, 22, 38, 95])
def test_permission_is_asked_of_linux_only_and_may_be_refused(number, monkeypatch):
    asked = []

    def refuse(*numbers):
        asked.append([x.value for x in numbers])
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(amx.sys, "platform", "linux")
    monkeypatch.setattr(amx.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=refuse))
    assert amx.permission().startswith("Linux does not permit AMX tiles (")
    assert asked == [[158, 0x1023, 18]]
    monkeypatch.setattr(amx.platform, "machine", lambda: "aarch64")
    assert amx.permission() == "AMX tiles are used on x86-64 Linux only"
    monkeypatch.setattr(amx.sys, "platform", "darwin")
    assert amx.permission() == "AMX tiles are used on x86-64 Linux only"
    assert len(asked) == 1


def test_an_unwritable_or_damaged_memory_is_as_good_as_none(switch, monkeypatch, tmp_path):
    monkeypatch.setattr(amx._jit, "CACHE", tmp_path / "gone")
    assert amx.refusal("bfloat16") == ""
    monkeypatch.setattr(amx._jit, "CACHE", None)
    monkeypatch.setattr(amx, "_refusals", {})
    assert amx.refusal("bfloat16") == ""
    monkeypatch.setattr(amx._jit, "CACHE", tmp_path)
    monkeypatch.setattr(amx, "_refusals", {})
    amx._kept("bfloat16").write_bytes(b"\xff")
    assert amx.refusal("bfloat16") == ""
    assert switch.trials == 3


def test_where_it_is_off_nothing_of_it_is_loaded():
    code = """
import sys, numpy as np, sparse_ref as sr
q = np.ones((1, 3, 4), dtype=np.float16)
sr.kernels.attention(q, q, q, sr.Causal())
loaded = [x for x in sys.modules if x.startswith("sparse_ref.kernels.amx_")]
assert not loaded, loaded
"""
    env = amx.os.environ | {"SPARSE_REF_AMX": "0"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
