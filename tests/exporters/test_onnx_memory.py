"""What a body computes and needs for what its lists list: padding, and bytes against a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_ref as sr

onnxruntime = pytest.importorskip("onnxruntime")

from exporters import to_onnx  # noqa: E402
from exporters.onnx import body_peak, estimated_peak  # noqa: E402
from exporters.onnx.memory import working_shape  # noqa: E402
from tests.exporters.any_lists import BODIES, feed_of, model  # noqa: E402

WINDOW = sr.SlidingWindow(4, 4)
GLOBAL = WINDOW | sr.Global([0, 1, 40])
DENSE_HEAD = sr.PerHead([sr.Full(), WINDOW, WINDOW, WINDOW])
PATTERNS = {
    "window": WINDOW,
    "global rows": GLOBAL,
    "a dense head": DENSE_HEAD,
    "strided": sr.Causal() & (WINDOW | sr.Strided(16)),
    "a dense row": sr.Rows([100]),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("body", BODIES)
def test_padding_stays_within_twice_the_listed_tiles(body, name, tmp_path):
    n, h, block = 191, 4, (4, 4)
    feed = feed_of(PATTERNS[name], 2, h, h, n, n, block=block)
    listed = int(feed["block_count"].sum()) * 2 * h // feed["block_count"].shape[1]
    # one block a list is the least that a reduction over keys can be given
    empty = int((feed["block_count"] == 0).sum()) * 2 * h // feed["block_count"].shape[1]
    assert listed <= scored_tiles(model(body, block), feed, tmp_path) <= 2 * listed + empty


def scored_tiles(made, feed, folder):
    """How many tiles of scores ONNX Runtime computed: Exp is taken of them, and of sinks."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "run")
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    ran = onnxruntime.InferenceSession(made.SerializeToString(), options)
    ran.run(None, feed)
    events = json.loads(Path(ran.end_profiling()).read_text())
    shapes = [
        event["args"]["output_type_shape"][0]["float"]
        for event in events
        if event.get("args", {}).get("op_name") == "Exp"
    ]
    tile = feed["tile_masks"][0].size
    scores = [shape for shape in shapes if len(shape) == 6 and shape[-1] > 1]
    assert scores
    return sum(int(np.prod(shape)) for shape in scores) // tile


@pytest.mark.parametrize("name", PATTERNS)
def test_the_estimate_knows_the_parts_of_the_gather_body(name, tmp_path):
    """The shape of the scores is the one that the bytes are counted from."""
    feed = feed_of(PATTERNS[name], 1, 4, 4, 191, 191, block=(4, 4))
    shape = working_shape(feed["block_count"][0].astype(np.int64), "gather")
    heads = 4 // feed["block_count"].shape[1]
    scored = scored_tiles(model("gather", (4, 4)), feed, tmp_path)
    assert scored == shape.parts * shape.longest * heads


@pytest.mark.parametrize("body", BODIES)
def test_the_estimate_grows_with_what_is_listed(body):
    def estimate(pattern, n, **other):
        blocks = sr.to_blocks(pattern, n, n, block_size=16, heads=4)
        return body_peak(blocks, head_dim=32, body=body, **other)

    window = sr.SlidingWindow(32, 32)
    assert estimate(window, 2048) == pytest.approx(4 * estimate(window, 512), rel=0.1)
    assert estimate(sr.Full(), 512) > estimate(window, 512)
    assert estimate(window, 512, dtype="float64") > 1.5 * estimate(window, 512)
    assert estimate(window, 512, batch=3) == pytest.approx(3 * estimate(window, 512), rel=0.1)


@pytest.mark.parametrize("mode", ["custom", "inline"])
@pytest.mark.parametrize("body", BODIES)
def test_a_file_needs_what_its_body_needs_on_the_lists_of_its_pattern(body, mode):
    model = to_onnx(GLOBAL, heads=4, kv_heads=2, head_dim=32, value_dim=16, mode=mode, body=body)
    for m, n in [(1, 1), (1, 191), (700, 700), (33, 700)]:
        blocks = sr.to_blocks(GLOBAL, m, n, heads=4)
        want = body_peak(blocks, head_dim=32, value_dim=16, kv_heads=2, batch=3, body=body)
        assert estimated_peak(model, m, n, batch=3) == max(want, LISTS * blocks_of(m, n))


LISTS = 8 * (10 + 2)  # bytes for every block of the grid, with one layout


def blocks_of(m, n):
    return -(-m // 64) * -(-n // 64)


def test_the_lists_of_a_long_file_weigh_more_than_its_attention():
    model = to_onnx(WINDOW, heads=1, head_dim=1)
    assert estimated_peak(model, 65_536) == LISTS * blocks_of(65_536, 65_536)
    stored = to_onnx(sr.RandomKeys(2, 0, 700), heads=1, head_dim=1)
    blocks = sr.to_blocks(sr.RandomKeys(2, 0, 700), 700, 700)
    assert estimated_peak(stored, 700) == body_peak(blocks, head_dim=1)


def test_batch_rows_that_differ_are_counted_row_by_row():
    rows = [sr.Full(), WINDOW]
    model = to_onnx(sr.PerBatch(rows), heads=1, head_dim=8)
    one, other = (estimated_peak(to_onnx(x, heads=1, head_dim=8), 2048) for x in rows)
    assert other < estimated_peak(model, 2048, batch=2) <= 2 * one
    with pytest.raises(ValueError, match=r"^batch must be the pattern's 2, got 3$"):
        estimated_peak(model, 9, batch=3)


def test_run_time_inputs_are_asked_for():
    model = to_onnx(sr.Document(sr.Runtime("ids")), heads=1, head_dim=64)
    apart = {"ids": np.arange(2048)[None] // 64}
    together = {"ids": np.zeros((1, 2048), dtype=np.int64)}
    few, many = (estimated_peak(model, 2048, given=given) for given in (apart, together))
    assert few < many / 2
    with pytest.raises(ValueError, match=r"^given must hold the run-time input 'ids', on which"):
        estimated_peak(model, 2048)


def test_to_onnx_reports_and_refuses():
    options = {"heads": 4, "head_dim": 8, "body": "gather"}
    model = to_onnx(WINDOW, **options, length=(64, 96))
    needed = estimated_peak(model, 64, 96)
    said = {one.key: one.value for one in model.metadata_props}
    assert json.loads(said["sparse_ref.estimated_peak"]) == {
        "batch": 1, "q_len": 64, "kv_len": 96, "bytes": needed,
    }  # fmt: skip
    to_onnx(WINDOW, **options, length=(64, 96), max_bytes=needed)
    sentence = f"max_bytes must be >= {needed} for the gather body at 64 queries and 96 keys, got 9"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        to_onnx(WINDOW, **options, length=(64, 96), max_bytes=9)
    with pytest.raises(ValueError, match=r"^length must be given with max_bytes for a pattern"):
        to_onnx(WINDOW, **options, max_bytes=9)
    with pytest.raises(ValueError, match=r"at 700 queries and 700 keys, got 9$"):
        to_onnx(sr.RandomKeys(2, 0, 700), **options, max_bytes=9)
    with pytest.raises(NotImplementedError, match=r"^the memory of Attention is not known: modes"):
        to_onnx(WINDOW, heads=1, head_dim=8, mode="standard", length=9)
    with pytest.raises(ValueError, match=r"^body must be one of loop, gather, got 'coo'$"):
        body_peak(sr.to_blocks(WINDOW, 9, 9), head_dim=8, body="coo")


def test_the_command_line_says_it_at_each_length_and_refuses(tmp_path, capsys):
    from sparse_ref.cli import main

    line = ["export", "--pattern", "SlidingWindow(256, 256)", "-o", str(tmp_path / "m.onnx")]
    assert main([*line, "--length", "4096", "8192"]) == 0
    printed = capsys.readouterr().out
    assert "Estimated peak at 4096 queries and keys, one batch row: 16.0 MiB\n" in printed
    assert "Estimated peak at 8192 queries and keys, one batch row: 32.0 MiB\n" in printed
    assert main([*line, "--length", "4096", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimated_peak"] == {"4096": 2**24}
    assert main([*line, "--length", "4096", "--max-bytes", "9"]) == 2
    assert "max_bytes must be >= 16777216 for the loop body" in capsys.readouterr().err


MEASURED = """
import sys, numpy as np
import onnxruntime
from tests.exporters.any_lists import feed_of, model
from tests.exporters.test_onnx_memory import LAYOUTS_AT_LENGTH

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

body, name = sys.argv[1:]
pattern, n = LAYOUTS_AT_LENGTH[name]
feed = feed_of(pattern, 1, 8, 8, n, n, block=(64, 64), d=64, e=64)
options = onnxruntime.SessionOptions()
options.enable_mem_pattern, options.intra_op_num_threads = False, 1
session = onnxruntime.InferenceSession(model(body, (64, 64)).SerializeToString(), options)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak so far is what there is now
before = peak()
session.run(["Y"], feed)
print(peak() - before)
"""
NEAR = sr.SlidingWindow(256, 256)
LAYOUTS_AT_LENGTH = {
    "window": (NEAR, 4096),
    "longformer": (NEAR | sr.Global(range(64)), 4096),
    "longformer 16,384": (NEAR | sr.Global(range(64)), 16384),
    "a dense head": (sr.PerHead([sr.Full()] + [NEAR] * 7), 4096),
    "strided": (sr.Causal() & (sr.SlidingWindow(512, 0) | sr.Strided(64)), 4096),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", LAYOUTS_AT_LENGTH)
@pytest.mark.parametrize("body", BODIES)
def test_the_estimate_is_what_a_run_takes(body, name):
    pattern, n = LAYOUTS_AT_LENGTH[name]
    blocks = sr.to_blocks(pattern, n, n, heads=8)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, body, name], capture_output=True, text=True, check=True
    )
    measured, estimated = int(done.stdout), body_peak(blocks, head_dim=64, body=body)
    assert 0.6 * estimated <= measured <= 1.6 * estimated
    if body == "loop" and n == 4096:
        assert measured <= 40 * 2**20


@pytest.mark.parametrize("name", ["longformer 16,384", "strided 16,384"])
def test_the_gather_body_takes_at_most_three_times_the_listed_keys_and_values(name):
    pattern, n = LAYOUTS_AT_LENGTH[name.replace("strided 16,384", "strided")][0], 16384
    blocks = sr.to_blocks(pattern, n, n, heads=8)
    listed = 8 * len(blocks.indices) * 64 * (64 + 64) * 4
    assert body_peak(blocks, head_dim=64, body="gather") <= 3 * listed
