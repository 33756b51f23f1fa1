"""What a body computes and needs for what its lists list: padding, and bytes against a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_ref as sr

onnxruntime = pytest.importorskip("onnxruntime")

from exporters.onnx import check_peak, estimated_peak  # noqa: E402
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
        return estimated_peak(blocks, head_dim=32, body=body, **other)

    window = sr.SlidingWindow(32, 32)
    assert estimate(window, 2048) == pytest.approx(4 * estimate(window, 512), rel=0.1)
    assert estimate(sr.Full(), 512) > estimate(window, 512)
    assert estimate(window, 512, dtype="float64") > 1.5 * estimate(window, 512)
    assert estimate(window, 512, batch=3) == pytest.approx(3 * estimate(window, 512), rel=0.1)


def test_a_limit_is_refused_in_one_sentence():
    blocks = sr.to_blocks(sr.Full(), 64, 96, block_size=16)
    needed = check_peak(2**30, blocks, head_dim=8, body="gather")
    assert check_peak(needed, blocks, head_dim=8, body="gather") == needed
    sentence = f"max_bytes must be >= {needed} for the gather body at 64 queries and 96 keys, got 9"
    with pytest.raises(ValueError, match=sentence):
        check_peak(9, blocks, head_dim=8, body="gather")
    with pytest.raises(ValueError, match=r"^body must be one of loop, gather, got 'coo'$"):
        estimated_peak(blocks, head_dim=8, body="coo")


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
    measured, estimated = int(done.stdout), estimated_peak(blocks, head_dim=64, body=body)
    assert 0.6 * estimated <= measured <= 1.6 * estimated
    if body == "loop" and n == 4096:
        assert measured <= 40 * 2**20


@pytest.mark.parametrize("name", ["longformer 16,384", "strided 16,384"])
def test_the_gather_body_takes_at_most_three_times_the_listed_keys_and_values(name):
    pattern, n = LAYOUTS_AT_LENGTH[name.replace("strided 16,384", "strided")][0], 16384
    blocks = sr.to_blocks(pattern, n, n, heads=8)
    listed = 8 * len(blocks.indices) * 64 * (64 + 64) * 4
    assert estimated_peak(blocks, head_dim=64, body="gather") <= 3 * listed
