"""Golden files without this library: other languages read them, and kernels from the page pass."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sparse_ref.golden import load
from tests.golden_sets import CORE, GOLDEN, few_cases

NODE, COMPILER = shutil.which("node"), shutil.which("g++")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")
CASES = json.loads((GOLDEN / "manifest.json").read_text())["count"]
READERS, STRANGERS = GOLDEN / "readers", GOLDEN / "strangers"


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def compiled(source, out, *options):
    done = run(
        COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", *options, str(source), "-o", str(out)
    )
    assert done.returncode == 0, done.stderr
    return str(out)


@pytest.fixture(scope="module")
def lines():
    """What every reader prints for the core set: an id, pairs, numbers and their sum."""
    spec = importlib.util.spec_from_file_location("golden_reader", READERS / "golden.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    core, cases = load(), list(reader.cases(CORE))
    for case in cases[::29]:
        want = case["tensors"]["out"]
        assert reader.passes(want, case, "out", "float32")
        assert want.size == 0 or not reader.passes(want + 1, case, "out", "float32")
        assert np.array_equal(reader.counts(case), core[case["id"]].counts)
    return run(sys.executable, str(READERS / "golden.py"), str(CORE)).stdout


def test_the_python_reader_reads_every_case(lines):
    assert [line.split()[0] for line in lines.splitlines()] == [case.id for case in load()]


def test_the_readers_are_short():
    length = {p.name: len(p.read_text().splitlines()) for p in READERS.iterdir() if p.is_file()}
    assert max(length["golden.py"], length["golden.mjs"]) <= 60
    assert length["golden.hpp"] <= 200
    for path in [*READERS.iterdir(), *STRANGERS.iterdir()]:
        assert not path.is_file() or max(map(len, path.read_text().splitlines())) <= 100, path


@needs_node
def test_the_javascript_reader_reads_the_same(lines):
    done = run(NODE, str(READERS / "golden.mjs"), str(CORE))
    assert (done.stdout, done.stderr) == (lines, "")


@needs_compiler
def test_the_cpp_reader_reads_the_same(lines, tmp_path):
    program = compiled(READERS / "list.cpp", tmp_path / "list", "-O0")
    assert run(program, str(CORE)).stdout == lines


@needs_compiler
def test_a_cpp_kernel_written_from_the_page_passes_every_case(tmp_path):
    done = run(compiled(STRANGERS / "attention.cpp", tmp_path / "attention", "-O1"), str(GOLDEN))
    assert (done.returncode, done.stdout) == (0, f"{CASES} cases, 0 wrong\n")


@needs_node
def test_a_javascript_kernel_written_from_the_page_passes_every_case():
    done = run(NODE, str(STRANGERS / "attention.mjs"), str(GOLDEN))
    made = int(re.search(r"(\d+) masks made", done.stdout)[1])
    want = f"{CASES} cases, 0 wrong; {made} masks made from patterns\n"
    assert (done.returncode, done.stdout) == (0, want)
    assert made > 1000


PLANTED = {
    "window too long by one": ("most(q - k, left, dilation)", "most(q - k - 1, left, dilation)"),
    "strictly causal": ("Causal: (p, q, k) => k <= q", "Causal: (p, q, k) => k < q"),
    "heads tiled": ("Math.floor(h / (H / G))", "h % G"),
    "queries at the top left": ("a.q_start ?? n - m", "a.q_start ?? 0"),
    "lengths ignored": ("if (j >= perRow(a.kv_lengths ?? n, b)) return -1;", ""),
    "scale missing": ("s = f(scale * s);", ""),
    "softcap after bias": ("if (bias) s = f(s + bias", "if (bias) s = f(s + 1.5 * bias"),
    "counts ignored": ("if (times > 1) s =", "if (times > 99) s ="),
    "sink as a key": ("if (!times) continue;", "if (!times && !sinks) continue;"),
    "lse without the maximum": (": peak + f(Math.log(total))", ": f(Math.log(total))"),
    "NaN for empty rows": (
        "keys.length ? out[row * E + x] / total : 0",
        "out[row * E + x] / total",
    ),
    "no keys dropped": ("if (s !== -Infinity) keys.push", "keys.push"),
    "bias axes ignored": ("(extent === 1 ? 0 : index[x + 4 - shape.length])", "index[x] % extent"),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return few_cases(tmp_path_factory.mktemp("few"))


QUICK = 5  # the others are found in the slow tests


@needs_node
@pytest.mark.parametrize(
    "name",
    [*[*PLANTED][:QUICK], *(pytest.param(n, marks=pytest.mark.slow) for n in [*PLANTED][QUICK:])],
)
def test_a_planted_mistake_in_the_javascript_kernel_is_found(few, name, tmp_path):
    right, wrong = PLANTED[name]
    source = (STRANGERS / "attention.mjs").read_text()
    assert source.count(right) == 1
    path = tmp_path / "strangers" / "attention.mjs"
    path.parent.mkdir()
    path.write_text(source.replace(right, wrong))
    shutil.copytree(READERS, tmp_path / "readers")
    done = run(NODE, str(path), str(few))
    assert done.returncode == 1, done.stderr
    assert "wrong: " in done.stdout


@needs_compiler
@pytest.mark.slow
def test_a_planted_mistake_in_the_cpp_kernel_is_found(tmp_path):
    source = (STRANGERS / "attention.cpp").read_text()
    right = "total = total * shrink + part;"
    assert source.count(right) == 1  # without it, an online softmax forgets to rescale
    path = tmp_path / "strangers" / "attention.cpp"
    path.parent.mkdir()
    path.write_text(source.replace(right, "total = total + part;"))
    shutil.copy(STRANGERS / "pattern.hpp", path.parent)
    shutil.copytree(READERS, tmp_path / "readers")
    done = run(compiled(path, tmp_path / "attention", "-O0"), str(CORE))
    assert done.returncode == 1, done.stderr
    assert "/steps: out" in done.stdout
