"""The benchmark's own tests: what it calls a ratio, what it leaves out, what it calls an error."""

import dataclasses
import json
from collections import Counter, defaultdict
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import sparse_ref as sr
from tools import bench, bench_cases, bench_limits, bench_report, measure
from tools.peers import FellBackError, Form, MissingError, compiled_once, flex, mask_mods
from tools.race import Race, Settings, Truth, WrongError

MACHINE = {"sgemm_gflops": 100.0, "copy_gbs": 10.0}
TINY = Settings(runs=2, tokens=33)


def oracle(task):
    """A side that is right."""
    arrays = task.q, task.k, task.v, task.pattern

    def answer():
        out = sr.attention(*arrays).out.astype(np.float32)
        if task.dout is None:
            return (out,)
        return (out, *sr.attention_vjp(*arrays, task.dout)[:3])

    yield Form("", answer, tuple)


def of_another_pattern(pattern):
    """A side that is right about something else."""

    def side(task):
        yield from oracle(dataclasses.replace(task, pattern=pattern))

    return side


def missing(task):
    raise MissingError("frobnicate is not installed")


def fell_back(task):
    raise FellBackError("frobnicate ran eagerly")


def window(n):
    return sr.SlidingWindow(5, 2)


def race(**options):
    given = {"pattern": window, "peers": {"oracle": oracle}, "ours": oracle, "kv_heads": 2}
    return Race("tiny", "a tiny case", **given | options)


def only(case, settings=TINY):
    [row] = case.run(settings, MACHINE)
    return row


def test_a_ratio_is_the_peers_time_over_ours():
    row = only(race(target=3.0, tokens=33), Settings(runs=2))

    assert row["against"] == row["best"] == "oracle"
    assert row["ratio"] == pytest.approx(
        row["peers"]["oracle"]["ms"] / row["ours"]["ms"], 0.01, 0.01
    )
    assert row["met"] is (row["ratio"] >= 3.0)
    assert row["ours"]["error_share"] <= 1


def test_other_lengths_than_the_case_s_have_no_target():
    row = only(race(target=3.0, share=0.5))

    assert row["target"] is None
    assert not {"met", "share_met", "share_target"} & set(row)


def test_a_feature_that_this_cpu_lacks_takes_the_target_away():
    assert only(race(target=3.0, tokens=17, needs="frobnicate"), Settings(2))["target"] is None


def test_useful_operations_are_those_of_allowed_pairs():
    row = only(race())
    pairs = 8 * int(window(33).mask(33, 33).sum())

    assert row["pairs"] == pairs
    assert row["gflops"] == pytest.approx(pairs * 2 * 128 / row["ours"]["ms"] / 1e6, abs=0.051)


def test_a_missing_peer_is_named_and_left_out():
    row = only(race(peers={"frobnicate": missing, "oracle": oracle}))

    assert row["left_out"] == {"frobnicate": "frobnicate is not installed"}
    assert list(row["peers"]) == ["oracle"]
    assert row["best"] == "oracle"
    assert not {"error", "ratio", "against"} & set(row)


def test_a_peer_that_falls_back_is_an_error_and_no_ratio():
    row = only(race(peers={"frobnicate": fell_back, "oracle": oracle}))

    assert row["error"] == "frobnicate: FellBackError: frobnicate ran eagerly"
    assert list(row["peers"]) == ["oracle"]
    assert "ratio" not in row


def test_a_peer_of_a_window_one_key_wider_is_an_error():
    row = only(race(peers={"wider": of_another_pattern(sr.SlidingWindow(6, 2))}))

    assert row["error"].startswith("wider: FellBackError: wider computes something else")
    assert row["peers"] == {}


def test_ours_must_be_right():
    with pytest.raises(WrongError, match=r"ours is wrong: its error is \d\S* of sr.error_bound"):
        only(race(ours=of_another_pattern(sr.SlidingWindow(5, 1))))


def test_a_nan_and_a_wrong_empty_row_use_more_than_the_bound():
    task = race(pattern=lambda n: sr.SlidingWindow(2, 2) & sr.Rows(range(1, 99))).task(13, 1)
    truth, right = Truth(task, "float32"), sr.attention(task.q, task.k, task.v, task.pattern).out

    assert truth.says == "13 of 13 rows in each of 8 heads against sr.error_bound"
    assert truth.share(right) == 0
    for wrong in (np.nan, 1e-30):
        planted = right.copy()
        planted[0, 3, 0, 5] = wrong  # row 0 sees no key
        assert truth.share(planted) == np.inf


def test_gradients_are_compared():
    row = only(race(gradients=True))
    assert "dq, dk, dv" in row["checked"]

    def doubled(task):
        [form] = oracle(task)
        yield form._replace(arrays=lambda found: (*found[:3], 2 * found[3]))

    with pytest.raises(WrongError, match="dv of ours is off by 1 of its largest entry"):
        only(race(gradients=True, ours=doubled))


def test_the_fastest_form_runs():
    def forms(task):
        [quick] = oracle(task)

        def nine_times():
            return [quick.call() for _ in range(9)][-1]

        yield Form("slow", nine_times, quick.arrays)
        yield quick._replace(how="quick")

    assert only(race(peers={"two forms": forms}))["peers"]["two forms"]["how"] == "quick"


def test_sides_take_turns_and_another_one_begins_each_round(monkeypatch):
    monkeypatch.setattr(measure, "seconds", lambda call, number=1: float(bool(call()) or 1))
    monkeypatch.setattr(measure, "PAUSE", 0)
    order = []
    times = measure.in_turn({x: lambda x=x: order.append(x) for x in "abc"}, 3)

    assert "".join(order) == "aabbcc" + "abcbcacab"  # twice to warm up, then in turn
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_that_is_freed_again_counts():
    with measure.PeakMemory() as peak:
        np.ones(2**26, dtype=np.uint8).sum()

    assert peak.added == pytest.approx(2**26, rel=0.1)


def test_an_exponent_is_the_slope_in_logarithms():
    points = [{"n": n, "ms": 7 * n**1.5} for n in (1024, 4096, 16_384)]

    assert bench_limits._exponent(points, "ms") == pytest.approx(1.5)


def test_the_limit_is_the_products_alone_at_the_machine_s_rate():
    row = only(race(target=3.0, tokens=33), Settings(runs=2))

    assert row["limit_ms"] == pytest.approx(row["pairs"] * 2 * 128 / 100e6, rel=1e-3)
    assert row["limit_ratio"] == pytest.approx(
        row["peers"]["oracle"]["ms"] / row["limit_ms"], abs=0.01
    )
    one = only(race(queries=1))
    assert one["limit_ms"] == pytest.approx(2 * 2 * 33 * 64 * 4 / 10e6, rel=1e-3)


ROW = {
    "what": "window", "ours": {"ms": 10.0}, "plan_ms": 1.234, "target": 3.5, "met": True,
    "peers": {"Flex": {"ms": 40.0, "how": "block 64"}, "SDPA": {"ms": 25.0, "how": ""}},
    "against": "Flex", "ratio": 4.0, "best": "SDPA", "best_ratio": 2.5,
    "gflops": 50.0, "sgemm_share": 0.5, "share_target": 0.65, "share_met": False,
    "limit_ms": 12.5, "limit_ratio": 3.2,
}  # fmt: skip


def test_the_table():
    lines = [bench_report.race_cells(ROW), bench_report.race_cells({"what": "a | b", "error": "x"})]
    limit = {"what": "memory", "value": 6.5, "unit": "MiB", "at_most": 40, "met": True}

    assert bench_report.markdown(bench_report.RACE, lines) == (
        "| case | ours ms | peer | ms | ratio | target | best peer | ms | ratio"
        " | GFLOP/s or GB/s | share | limit | plan ms |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| window | 10 | Flex (block 64) | 40 | 4.00x | 3.50x met | SDPA | 25 | 2.50x"
        " | 50 GFLOP/s | 50% of sgemm, asked 65% MISSED | 12.5 ms = 3.20x, below the target"
        " | 1.23 |\n"
        "| a \\| b | failed |  |  |  |  |  |  |  |  |  |  |  |\n"
    )
    assert bench_report.limit_cells(limit) == ["memory", "6.5 MiB", "40 met"]


NUMBER, TEXT = {"type": "number"}, {"type": "string"}
SIDE = {
    "type": "object",
    "required": ["how", "ms", "least", "most", "error_share"],
    "properties": dict.fromkeys(("ms", "least", "most", "error_share"), NUMBER),
}
SCHEMA = {
    "type": "object",
    "required": ["machine", "settings", "races", "limits", "constants"],
    "properties": {
        "machine": {
            "required": [
                "cpu", "vectors", "cores", "threads", "system", "versions", "commit", "date",
                "sgemm_gflops", "copy_gbs",
            ],
            "properties": {"versions": {"required": ["python", "numpy"]}, "cores": NUMBER},
        },
        "races": {
            "items": {
                "required": ["case", "what"],
                "if": {"required": ["ours"]},
                "then": {
                    "required": ["q", "k", "dtype", "checked", "left_out", "pairs", "sgemm_share"],
                    "properties": {"ours": SIDE, "peers": {"additionalProperties": SIDE}},
                },
                "else": {"anyOf": [{"required": ["error"]}, {"required": ["missing"]}]},
            }
        },
        "limits": {
            "items": {
                "required": ["case", "what"],
                "properties": {"value": NUMBER, "unit": TEXT, "met": {"type": "boolean"}},
            }
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def machine():
    return measure.machine(1, 1)


@pytest.fixture
def tool(machine, monkeypatch, tmp_path):
    """The command line over three cases of our own; answers status and JSON."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):  # main sets them: give them back afterwards
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    monkeypatch.setattr(measure, "machine", lambda *_: machine)

    def good(settings):
        yield bench_limits.row("good", 2.0, "s", 1.0)

    def run(*arguments, small=("--tokens", "16", "--runs", "1"), **races):
        monkeypatch.setattr(bench_cases, "RACES", races)
        limit = bench_limits.Limit("limit", "a limit", good)
        monkeypatch.setattr(bench_limits, "LIMITS", {"limit": limit})
        file = tmp_path / "bench.json"
        status = bench.main([*arguments, *small, "--json", str(file)])
        return status, json.loads(file.read_text(encoding="utf-8"))

    return run


def test_the_command_runs_everything_and_writes_json(tool, capsys):
    status, report = tool(first=race(), second=race(peers={"frobnicate": missing}))

    assert status == 0
    jsonschema.validate(report, SCHEMA)
    assert [row["case"] for row in report["races"]] == ["first", "second"]
    assert not {"met", "at_most"} & set(report["limits"][0])  # they are about other lengths
    printed, progress = capsys.readouterr()
    assert "left out: frobnicate: frobnicate is not installed\n" in printed
    assert "| good | 2 s |  |\n" in printed
    assert [line.split("  ")[0] for line in progress.splitlines()] == [
        "[1/3] first", "[2/3] second", "[3/3] limit",
    ]  # fmt: skip


def test_the_best_peer_is_named_even_if_the_target_is_about_it():
    alone = ROW | {"peers": {"Flex": ROW["peers"]["Flex"]}, "best": "Flex", "best_ratio": 4.0}

    assert bench_report.race_cells(alone)[6:9] == ["Flex (block 64)", "40", "4.00x"]


def test_a_run_that_is_stopped_keeps_what_it_has_measured(tool, capsys, tmp_path):
    def stop(task):
        assert json.loads((tmp_path / "bench.json").read_text())["races"][0]["case"] == "first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool(first=race(), second=race(ours=stop), third=race())
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))

    jsonschema.validate(report, SCHEMA)
    assert [row["case"] for row in report["races"]] == ["first"]
    assert printed.count("| a tiny case | ") == 1
    assert not list(tmp_path.glob("*.part"))


def test_tables_follow_one_another(tool, capsys):
    tool(first=race(), second=race())
    lines = capsys.readouterr().out.splitlines()[3:]

    assert [line.split("|")[1].strip() if line else "" for line in lines if "left" not in line] == [
        "case", "---", "a tiny case", "a tiny case", "", "case", "---", "good", "",
    ]  # fmt: skip


def test_a_missed_target_is_printed_and_is_no_error(tool, capsys):
    status, report = tool(small=["--quick", "--case", "limit"])

    assert status == 0
    assert report["limits"][0]["met"] is False
    assert report["settings"]["runs"] == 5
    assert "| good | 2 s | 1 MISSED |\n" in capsys.readouterr().out


def test_an_error_in_one_case_leaves_the_others_and_fails_the_run(tool, capsys):
    wrong = race(ours=of_another_pattern(sr.Causal()))
    status, report = tool(first=wrong, second=race(ours=missing), third=race())

    assert status == 1
    jsonschema.validate(report, SCHEMA)
    assert report["races"][0]["error"].startswith("WrongError: ours is wrong")
    assert report["races"][1]["missing"] == "frobnicate is not installed"
    assert "ours" in report["races"][2]
    assert "error: first: WrongError" in capsys.readouterr().out


def test_cases_are_chosen_by_name(tool, capsys):
    _, report = tool("--case", "second", first=race(), second=race())
    assert [row["case"] for row in report["races"]] == ["second"]
    assert report["limits"] == []

    with pytest.raises(SystemExit) as stopped:
        tool("--case", "third", first=race())
    assert stopped.value.code == 2
    assert "no case is called 'third': --list shows them" in capsys.readouterr().err


def test_the_cases_have_names_of_their_own(capsys):
    names = [*bench_cases.RACES, *bench_limits.LIMITS]
    every = [*bench_cases.PATTERNS, *bench_cases.WHOLE, *bench_cases.HALVES, *bench_cases.GRAPHS]

    assert len(set(names)) == len(every) + len(bench_limits.LIMITS)
    assert all(name == case.name for name, case in bench_cases.RACES.items())


def counts(graphs, breaks=0, **inductor):
    return defaultdict(
        Counter,
        stats=Counter(unique_graphs=graphs),
        graph_break=Counter(somewhere=breaks),
        inductor=Counter(inductor),
    )


def test_what_torch_counts_when_it_compiled():
    compiled_once(counts(1, cpp_templated_kernel_counter=1))
    compiled_once(counts(1, fxgraph_cache_hit=1))
    for eager in (
        counts(0),
        counts(1),
        counts(1, breaks=1, cpp_templated_kernel_counter=1),
        counts(2, cpp_templated_kernel_counter=2),
    ):
        with pytest.raises(FellBackError, match="FlexAttention was not compiled"):
            compiled_once(eager)


@pytest.mark.witness
@pytest.mark.filterwarnings("ignore")
def test_an_eager_flex_attention_is_an_error():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with torch.compiler.set_stance("force_eager"), pytest.raises(FellBackError, match="0 graphs"):
        list(flex(race(kv_heads=8).task(128, 1)))


@pytest.mark.witness
@pytest.mark.parametrize("name", [case.name for case in bench_cases.PATTERNS])
def test_the_mask_that_flex_attention_gets(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    task = bench_cases.RACES[name].task(1024, 1)
    i, j = torch.arange(1024)[:, None], torch.arange(1024)

    for spelling, mask_mod in mask_mods(task).items():
        assert np.array_equal(mask_mod(0, 0, i, j).numpy(), task.mask), spelling


WITHOUT_FLEX = [*bench_cases.WHOLE, *bench_cases.HALVES, *bench_cases.GRAPHS]


@pytest.mark.witness
@pytest.mark.parametrize("case", WITHOUT_FLEX, ids=lambda case: case.name)
def test_every_other_peer_computes_what_the_oracle_says(case):
    peers = {name: peer for name, peer in case.peers.items() if peer is not flex}
    row = only(dataclasses.replace(case, peers=peers, ours=oracle), Settings(1, 96, 1))

    assert "error" not in row
    assert set(row["peers"]) | set(row["left_out"]) == set(peers)
