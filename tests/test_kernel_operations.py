"""How the kernels behave in a process: interrupts, forks, threads, caches, plans made by others."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import sparse_ref as sr

numba = pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import _cache, halves, lists, plans, rows, validation  # noqa: E402
from sparse_ref.patterns.dense import frame_of  # noqa: E402


def private_directory(path):
    path.mkdir(mode=0o700)
    return path


def in_a_process(*code, **environment):
    """Run code in a fresh interpreter; what it prints, and what it says to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(textwrap.dedent(part) for part in code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("threads", ["1", "2"])
def test_ctrl_c_ends_a_long_call_and_the_process_goes_on(threads):
    """The signal is sent when the workers have started; their results are never merged."""
    code = """
    import os, signal, threading, numpy as np, sparse_ref as sr
    from sparse_ref.kernels import decode, threads
    from sparse_ref.kernels.arguments import scores, tensors
    from sparse_ref.problem import problem
    from tests.test_kernel_decode import attention
    q, one = np.ones((256, 8, 16, 64), np.float32), np.ones((1, 1, 2**14, 64), np.float32)
    k = np.broadcast_to(one, (256, *one.shape[1:]))
    given = problem(q, k, k, sr.Full())
    layout, slots = decode.of_problem(given)
    lse = np.full(q.shape[:3], np.nan, np.float32)
    attention(q[:1], k[:1], k[:1], sr.Full())  # compiles
    threads._pool.cache_clear()
    while threading.active_count() > 1:
        pass
    def interrupt():
        while threading.active_count() < 3:
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        decode.attend(tensors(given, np.empty_like(q), lse), layout, scores(given), slots, work=1e9)
    except KeyboardInterrupt:
        print("interrupted", np.isnan(lse).all())
    while threading.active_count() > 1:
        pass  # a worker that had just been started may end a task later
    print(attention(q[:1], k[:1], k[:1], sr.Full()).out.mean())
    """
    printed, _ = in_a_process(code, NUMBA_NUM_THREADS=threads)

    assert printed.splitlines() == ["interrupted True", "1.0"]


def test_ctrl_c_of_plain_loops_reaches_every_worker():
    """Their counters are not atomic: a worker may overwrite what tells it to stop, once."""
    code = """
    import os, signal, threading, time, numpy as np
    from sparse_ref.kernels import threads
    seen = []
    def kernel(worker, counters):
        while True:
            task = counters[worker]
            if task >= 2**60:
                break
            seen.append(worker)
            if len(seen) == 10:
                os.kill(os.getpid(), signal.SIGINT)
            counters[worker] = task + len(counters)
            time.sleep(0)
    try:
        threads.run(kernel, work=1e9)
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert in_a_process(code, NUMBA_NUM_THREADS="2")[0] == "interrupted"


CALLS = """
    import os, threading, warnings, numpy as np, sparse_ref as sr
    from sparse_ref.kernels import threads
    from tests.test_kernel_decode import attention, draw
    warnings.simplefilter("ignore")
    threads.SMALL, given = 0, draw(3, 9000)
    want = attention(*given, sr.Causal()).out
    def right():
        return (attention(*given, sr.Causal()).out == want).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_parent_and_forked_child_both_compute():
    code = """
    child = os.fork()
    if not child:
        os._exit(0 if right() else 1)
    print(right(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert in_a_process(CALLS, code)[0] == "True 0"


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_many_threads_under_a_threading_layer_in_use(layer):
    """Numba's own layer is started by somebody else; workqueue aborts if two threads enter it."""
    code = """
    import numba
    @numba.njit(parallel=True)
    def total(x):
        s = 0.0
        for i in numba.prange(len(x)):
            s += x[i]
        return s
    try:
        total(np.ones(9))
        print(numba.threading_layer())
    except ValueError:
        print("none")  # this layer is not installed
    got = [None] * 4
    def call(i):
        got[i] = right()
    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for one in callers: one.start()
    for one in callers: one.join()
    print(all(got))
    """
    printed, _ = in_a_process(CALLS, code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")

    assert printed.splitlines() in ([layer, "True"], ["none", "True"])


@pytest.mark.parametrize(
    "switch", ["NUMBA_DISABLE_JIT", pytest.param("SPARSE_REF_PLAIN", marks=pytest.mark.slow)]
)
def test_decoding_without_compiling_and_in_plain_loops(switch):
    """Python checks every index, which compiled code does not."""
    code = """
    import numpy as np, sparse_ref as sr
    from sparse_ref.kernels import vectors
    from tests.test_kernel_decode import check, draw
    for options in ({}, {"softcap": 0.7}, {"sink_logits": np.arange(4.0)},
                    {"bias": np.ones((3, 1)), "alibi_slopes": np.ones(4)},
                    {"kv_positions": np.roll(np.arange(11), 3)}):
        q, k, v = draw(3, 11, b=1, h=4, d=3, e=2)
        check(q, k, v, sr.Multi([sr.Causal(), sr.Strided(2)]), **options)
        v[0, 0, 9, 1] = np.nan
        check(q, k, v, sr.PerHead([sr.Causal(), sr.SlidingWindow(2, 0)]), **options)
    print(vectors.softmax.__module__)
    """
    assert in_a_process(code, **{switch: "1"})[0] == "sparse_ref.kernels.plain"


ONE_KERNEL = """
    import numpy as np
    from sparse_ref.kernels import _jit, halves
    print(halves.rounded(np.array([0.1], np.float32), np.float16)[0])
    stats = getattr(halves.narrow, "stats", None)
    print(_jit.CACHE, sum(stats.cache_hits.values()) if stats else 0)
"""


def test_compiled_kernels_are_kept_for_the_next_process(tmp_path):
    home = private_directory(tmp_path / "home")
    first, second = (
        in_a_process(ONE_KERNEL, XDG_CACHE_HOME=str(home), SPARSE_REF_CACHE="")[0] for _ in "12"
    )
    (kept,) = (home / "sparse_ref").iterdir()

    assert first.splitlines() == ["0.1", f"{kept} 0"]
    assert second.splitlines() == ["0.1", f"{kept} 1"]
    assert kept.stat().st_mode & 0o777 == 0o700
    assert any(kept.glob("*.nbc"))


def test_damaged_files_are_as_good_as_none(tmp_path):
    home = str(private_directory(tmp_path / "home"))
    in_a_process(ONE_KERNEL, SPARSE_REF_CACHE=home)
    for kind in ("*.nbc", "*.nbi"):
        for file in Path(home).glob(f"*/{kind}"):
            file.write_bytes(b"not a pickle")
        printed, _ = in_a_process(ONE_KERNEL, SPARSE_REF_CACHE=home)
        assert printed.splitlines()[0] == "0.1"
        assert printed.endswith(" 0")


@pytest.mark.parametrize("home", ["/dev/null/nowhere", "/proc/nowhere"])
def test_without_a_place_nothing_is_kept_and_nothing_fails(home):
    printed, said = in_a_process(ONE_KERNEL, XDG_CACHE_HOME=home, HOME=home, SPARSE_REF_CACHE="")

    assert printed.splitlines() == ["0.1", "None 0"]
    assert "Warning" not in said
    printed, said = in_a_process(ONE_KERNEL, SPARSE_REF_CACHE=home)
    assert printed.splitlines() == ["0.1", "None 0"]
    assert "SPARSE_REF_CACHE must name a directory that only you can write" in said


def test_nothing_is_kept_where_it_is_not_wanted(tmp_path):
    home = private_directory(tmp_path / "home")
    printed, _ = in_a_process(ONE_KERNEL, XDG_CACHE_HOME=str(home), SPARSE_REF_CACHE="0")

    assert printed.splitlines() == ["0.1", "None 0"]
    assert not any(home.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
def test_a_place_is_private_or_not_used(tmp_path):
    """Numba's files are pickles: who may write them may run code."""
    mine = private_directory(tmp_path / "mine")
    assert _cache.private(mine)
    for mode in (0o750, 0o705, 0o720, 0o777):
        mine.chmod(mode)
        assert not _cache.private(mine), oct(mode)
    mine.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(mine)
    assert not _cache.private(link)
    (tmp_path / "file").touch(mode=0o700)
    assert not _cache.private(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
def test_nobody_else_may_swap_a_directory_on_the_way(tmp_path, monkeypatch):
    """Every directory above counts, up to one that lets nobody else in."""
    shared = tmp_path / "shared"
    shared.mkdir()
    mine = private_directory(shared / "mine")
    real = os.stat

    def others_may(path, *args, **options):
        """As if nothing above were private (pytest's own directories are)."""
        found = real(path, *args, **options)
        if Path(path) in tmp_path.parents or Path(path) == tmp_path:
            return os.stat_result((found.st_mode & ~0o777 | 0o755, *found[1:]))
        return found

    monkeypatch.setattr(os, "stat", others_may)
    for mode, safe in ((0o755, True), (0o775, False), (0o757, False), (0o1777, True)):
        shared.chmod(mode)
        assert _cache.private(mine) is safe, oct(mode)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not _cache.private(mine)


def test_a_cache_is_for_one_state_of_sources_and_switches(tmp_path):
    names = {_cache._fingerprint(x) for x in ((), (True,), (False,), (True, ["nsz"]))}

    assert len(names) == 4
    home = str(private_directory(tmp_path / "home"))
    compiled, plain = (
        in_a_process(ONE_KERNEL, SPARSE_REF_CACHE=home, **env)[0].splitlines()[1].split()[0]
        for env in ({}, {"SPARSE_REF_PLAIN": "1"})
    )
    assert compiled != plain
    assert "None" in in_a_process(ONE_KERNEL, SPARSE_REF_CACHE=home, NUMBA_DISABLE_JIT="1")[0]


def test_numba_s_own_cache_settings_are_left_alone(tmp_path):
    code = "import numba; print(repr(numba.config.CACHE_DIR))"
    elsewhere = private_directory(tmp_path / "numba")
    home = private_directory(tmp_path / "home")
    places = {"SPARSE_REF_CACHE": str(home), "NUMBA_CACHE_DIR": str(elsewhere)}
    printed, _ = in_a_process(ONE_KERNEL, code, **places)

    assert printed.splitlines()[2] == repr(str(elsewhere))
    assert not any(elsewhere.iterdir())


def float32_of(bits):
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def test_every_float16_widens_exactly():
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    got, want = halves.widened(x), x.astype(np.float64)
    number = ~np.isnan(want)

    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))
    back = halves.rounded(got, np.float16)
    np.testing.assert_array_equal(back[number].view(np.uint16), x[number].view(np.uint16))
    assert np.isnan(back[~number]).all()


def test_float32_is_rounded_to_the_nearest_float16_and_ties_to_even():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    near = np.array([-0x1001, -0x1000, -0xFFF, -1, 0, 1, 0xFFF, 0x1000, 0x1001])
    below = np.arange(102 << 23, 114 << 23, 0x1235)  # around float16's subnormals
    bits = np.concatenate([(every[:, None] + near).ravel(), below, below + 2**31]) % 2**32
    x = float32_of(bits)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    got, number = halves.rounded(x, np.float16), ~np.isnan(x)

    np.testing.assert_array_equal(got[number].view(np.uint16), want[number].view(np.uint16))
    assert np.isnan(got[~number]).all()
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))


def test_conversions_take_any_memory_layout():
    x = np.arange(2 * 3 * 5 * 7, dtype=np.float16).reshape(2, 3, 5, 7)
    for y in (
        x.swapaxes(1, 2),
        x[:, ::-1, ::2],
        x[..., :3],
        np.broadcast_to(x[:1], x.shape),
        x[:0],
    ):
        wide = halves.widened(y)
        np.testing.assert_array_equal(wide, y)
        half = halves.rounded(wide, np.float16)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, y)


def made(kernel):
    """A plan that uses one kernel, and its layout."""
    m, n, pattern, heads = 67, 131, sr.SlidingWindow(20, 3), (0, 1, 2, 3)
    plan = kernels.plan(pattern, m, n, heads=4, kv_heads=2, head_dim=8, dtype="float32")
    layout = {
        "tiles": lambda: plan.parts[0].layout,
        "rows": lambda: rows.row_layout([sr.to_csr(pattern, m, n)], heads, [0] * 4),
        "decode": lambda: lists.layout([[pattern] * 4], [frame_of(pattern, m, n)], 2),
    }[kernel]()
    part = plans.Part(kernel, heads, "asked for", layout, 1)
    return dataclasses.replace(plan, parts=(part,)), part


def damaged(layout):
    """One entry after another moved out of its bounds, or a field cut short."""
    for name, x in layout._asdict().items():
        if not isinstance(x, np.ndarray) or not x.size or x.dtype.kind not in "iu" or x.ndim > 3:
            continue
        if name in ("masks", "times", "position", "q_start"):  # any number is allowed
            continue
        for value in (-5, np.iinfo(x.dtype).max):
            for at in (0, x.size // 2, x.size - 1):
                wrong = x.copy()
                wrong.flat[at] = value
                yield f"{name}[{at}] = {value}", layout._replace(**{name: wrong})
        yield f"{name} cut", layout._replace(**{name: x[..., :-1]})


def accepted(plan):
    try:
        validation.validate(plan)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kernel", ["tiles", "rows", "decode"])
def test_a_plan_that_points_out_of_its_arrays_is_refused(kernel):
    plan, part = made(kernel)
    validation.validate(plan)
    wrong = [
        (what, dataclasses.replace(plan, parts=(dataclasses.replace(part, layout=layout),)))
        for what, layout in damaged(part.layout)
    ]
    assert len(wrong) > 10
    assert [what for what, one in wrong if accepted(one)] == []


def test_a_plan_of_foreign_parts_is_refused():
    plan, part = made("tiles")
    foreign = (
        dataclasses.replace(part, kernel="rows"),
        dataclasses.replace(part, kernel="sort"),
        dataclasses.replace(part, layout=tuple(part.layout)),
        "tiles",
    )
    for one in foreign:
        with pytest.raises(ValueError, match="plan must hold"):
            validation.validate(dataclasses.replace(plan, parts=(one,)))


@pytest.mark.parametrize(
    "pattern", [sr.Causal(), sr.Causal() & sr.Strided(16), sr.Sink(3)], ids=repr
)
def test_plans_as_they_are_made_are_accepted(pattern):
    for m, n in ((0, 5), (5, 0), (67, 131), (131, 67), (256, 256)):
        for heads in (1, 4):
            validation.validate(
                kernels.plan(pattern, m, n, heads=heads, kv_heads=1, head_dim=8, dtype="float64")
            )
