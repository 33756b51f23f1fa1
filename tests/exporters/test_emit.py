"""Emitted files: torch alone computes the attention that the oracle defines."""

import json
import subprocess
import sys

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.cli import main

torch = pytest.importorskip("torch")

from exporters import emit, to_flex  # noqa: E402

N = 171
IDS = np.repeat([0, 1, -1, 2], [50, 40, 30, 51])
PATTERNS = {
    "everything": sr.Full(),
    "nothing": sr.Causal() - sr.Causal(),
    "window and stride": sr.Causal() & (sr.SlidingWindow(20, 0) | sr.Strided(17)),
    "bigbird": sr.recipes.bigbird(N, 16, heads=3),
    "phi3": sr.recipes.phi3_small(8, 16, 4, 4),
    "swin": sr.recipes.swin((12, 15), 7, 3),
    "random keys": sr.Causal() & sr.RandomKeys(8, 0, N),
    "permuted": sr.Permuted(sr.SlidingWindow(9, 9), np.random.default_rng(0).permutation(N)),
    "documents": sr.Document(IDS) & sr.Causal(),
    "many tokens": sr.Global(np.flatnonzero(np.random.default_rng(1).random(N) < 0.3)),
    "tokens that are not": sr.Causal() - sr.Keys([1, 7, 8]),
}
# The file is run by a Python that finds torch and NumPy, but neither sparse_ref nor exporters.
ALONE = """
import importlib.util, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sparse_ref", "exporters", "numba", "scipy"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np, torch
torch.set_num_threads(1)
for file, given, answer in zip(*[iter(sys.argv[1:])] * 3):
    spec = importlib.util.spec_from_file_location("attention", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention"] = module
    spec.loader.exec_module(module)
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in np.load(given).values())
    out = module.Attention(32)(q, k, v)
    out.square().sum().backward()
    heads, (m, n) = q.shape[1], (q.shape[2], k.shape[2])
    mask = module.block_mask(m, n, heads, size=32)
    shapes = (1, 1), (heads, (-1, 1, 1)), (m, (-1, 1)), (n, -1)
    grid = (torch.arange(size).view(shape) for size, shape in shapes)
    seen = mask.mask_mod(*grid).expand(heads, m, n)
    np.savez(
        answer, out=out.detach(), dq=q.grad, dk=k.grad, dv=v.grad, seen=seen, listed=mask.to_dense()
    )
assert not {"sparse_ref", "exporters"} & set(sys.modules)
"""


def test_files_run_where_sparse_ref_cannot_be_imported(tmp_path):
    rng, arguments = np.random.default_rng(0), []
    inputs = {}
    for i, (name, pattern) in enumerate(PATTERNS.items()):
        file, given, answer = (tmp_path / f"{i}{end}" for end in (".py", ".npz", ".out.npz"))
        file.write_text(emit(pattern, scale=0.3, softcap=4.0))
        inputs[name] = [rng.standard_normal((2, h, m, d)) for h, m, d in
                        ((8, 37, 8), (2, N, 8), (2, N, 5))]  # fmt: skip
        np.savez(given, *inputs[name])
        arguments += [file, given, answer]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *arguments], check=True, cwd=tmp_path)

    for i, (name, pattern) in enumerate(PATTERNS.items()):
        got, qkv = np.load(tmp_path / f"{i}.out.npz"), inputs[name]
        assert np.array_equal(got["seen"], pattern.mask(37, N, heads=8)), name
        options = {"scale": 0.3, "softcap": 4.0}
        want = sr.attention(*qkv, pattern, **options).out
        np.testing.assert_allclose(got["out"], want, rtol=1e-9, atol=1e-11, err_msg=name)
        gradients = sr.attention_vjp(*qkv, pattern, 2 * want, **options)
        for one in ("dq", "dk", "dv"):
            expected = getattr(gradients, one)
            np.testing.assert_allclose(got[one], expected, rtol=1e-7, atol=1e-9, err_msg=name)
        heads = 8 if len({pattern.at(h) for h in range(8)}) > 1 else 1
        exact = to_flex(pattern, 37, N, heads=heads, block_size=32).to_dense().numpy()
        assert (got["listed"][:, :heads] >= exact).all(), name


@pytest.mark.parametrize("name", ["window and stride", "phi3", "everything"])
def test_intervals_find_the_blocks_exactly_where_they_can(name):
    pattern = PATTERNS[name]
    scope = {"__name__": "attention"}
    exec(compile(emit(pattern), name, "exec"), scope)
    got = scope["block_mask"](N, N, 8, size=16)
    want = to_flex(pattern, N, N, heads=8, block_size=16)
    for one in ("kv_num_blocks", "full_kv_num_blocks"):
        expected = getattr(want, one).expand(1, 8, -1)
        assert torch.equal(getattr(got, one), expected)


def test_the_file_reads_like_one_that_was_written():
    text = emit(sr.Causal() & sr.SlidingWindow(1, 0), softcap=30.0)
    assert text.startswith('"""Attention over Causal() & SlidingWindow(left=1, right=0')
    assert "# # . ." in text
    assert "        return (k <= q) & ((q - k <= 1) & (k - q <= 0))\n" in text
    assert "SOFTCAP = 30.0" in text
    assert "import sparse_ref" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_line_writes_it(tmp_path, capsys):
    file = tmp_path / "attention.py"
    pattern = "Causal() & SlidingWindow(255, 0)"
    command = ["export", "--to", "torch", "--pattern", pattern, "-o", str(file)]
    assert main([*command, "--softcap", "30"]) == 0
    assert f"Written: {file}" in capsys.readouterr().out
    assert file.read_text() == emit(sr.Causal() & sr.SlidingWindow(255, 0), softcap=30.0)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == file.stat().st_size


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("Multi([Causal(), Causal()])", "a BlockMask holds sets, got the multiset"),
        ('Document(Runtime("ids"))', "ids is an input of an exported graph"),
        ("PerBatch([Causal(), Full()])", "write each batch row's pattern"),
    ],
)
def test_what_a_file_cannot_say_is_refused(pattern, sentence, tmp_path, capsys):
    file = tmp_path / "attention.py"
    assert main(["export", "--to", "torch", "--pattern", pattern, "-o", str(file)]) == 3
    assert sentence in capsys.readouterr().err
    assert not file.exists()
