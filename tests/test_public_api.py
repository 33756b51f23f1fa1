"""The public names: their signatures, their docstrings, and what importing them costs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_ref as sr

OPTIONS = (
    "scale=None, softcap=None, bias=None, alibi_slopes=None, sink_logits=None, kv_lengths=None, "
    "kv_positions=None, q_start=None"
)
SIGNATURES = f"""
Full()
Causal()
SlidingWindow(left, right, dilation=1)
Chunked(size, back=0, ahead=0, origin=0)
Strided(stride, phase=0)
Offsets(offsets)
Keys(tokens)
Rows(tokens)
Global(tokens)
KeyStride(period, residues)
RowStride(period, residues)
Xor(distances)
PrefixLM(prefix)
Sink(count)
Document(ids, key_ids=None)
Neighborhood(length, kernel, dilation=1, stride=1, causal=False)
RandomKeys(count, seed, length, *, exclude=None, causal=False)
BlockPattern(mask, block_size)
Tokens(csr)
from_mask(mask, block_size=None)
Blocked(pattern, block_size)
Grid(shape, patterns)
Permuted(pattern, order)
WithinDocument(pattern, ids)
PerHead(patterns)
PerBatch(patterns)
Multi(patterns)
Runtime(name)
recipes.longformer(window, global_tokens=(), dilation=1)
recipes.bigbird(length, block_size=64, window=3, random=3, seed=0, heads=1)
recipes.sparse_transformer_strided(stride, *, heads='merged', paper=False)
recipes.sparse_transformer_fixed(stride, summary, *, heads='merged', paper=False)
recipes.streaming_llm(sinks=4, window=2000)
recipes.mistral(window=4096)
recipes.gemma3(window=1024, layer=None)
recipes.gpt_oss(window=128, layer=None)
recipes.llama4(chunk=8192, layer=None)
recipes.phi3_small(heads=32, block_size=64, local_blocks=16, vert_stride=8, homo_head=False, \
layer=None)
recipes.longt5(radius=127)
recipes.swin(shape, window=7, shift=0)
recipes.natten(shape, kernel, dilation=1, stride=1, causal=False)
recipes.axial(shape, axis)
recipes.logsparse(length, local=1)
recipes.butterfly(factors, block_size, global_blocks=0)
recipes.longnet(segments, dilations, heads, causal=True)
recipes.tri_shape(length, sinks=128, window=512, last=100)
recipes.vertical_slash(columns, offsets)
recipes.block_diffusion(length, block_size)
recipes.deepspeed_fixed(length, heads=1, block_size=16, local_blocks=4, global_blocks=1, \
causal=False, horizontal=False, patterns=1)
conventions.hf(w)
conventions.hf_bidirectional(w)
conventions.flash_attn(left, right)
conventions.ort_gqa(w)
conventions.onnx25(left, right)
conventions.xformers(left, right)
conventions.longformer(w)
conventions.gpt_neo(w)
conventions.longt5(r)
conventions.natten(k, length)
conventions.splash(left, right)
conventions.child2019_paper(l)
conventions.child2019_code(l)
Pattern.mask(self, q_len, kv_len, *, heads=None, q_start=None, kv_positions=None, batch=0)
Pattern.counts(self, q_len, kv_len, *, heads=None, q_start=None, kv_positions=None, batch=0)
Pattern.at(self, head)
Pattern.rows(self, start, stop, keys=None)
draw(pattern, q_len, kv_len=None)
compare(a, b, q_len, kv_len=None)
reach(patterns, n)
to_csr(pattern, q_len, kv_len, *, head=0, q_start=None, batch=0)
to_blocks(pattern, q_len, kv_len, *, block_size=(64, 64), heads=1, q_start=None, batch=0)
to_dict(pattern)
from_dict(d)
attention(q, k, v, pattern, *, {OPTIONS})
attention_vjp(q, k, v, pattern, dout, *, {OPTIONS}, dlse=None)
kernels.attention(q, k, v, pattern, *, {OPTIONS}, plan=None, max_bytes=None)
kernels.attention_vjp(q, k, v, pattern, dout, *, {OPTIONS}, dlse=None, plan=None, \
max_bytes=None, forward=None)
weights(q, k, pattern, *, {OPTIONS}, head=0, batch=0)
merge(*parts)
error_bound(q, k, v, pattern, *, {OPTIONS}, arithmetic='float32', output='float32')
error_bound_vjp(q, k, v, pattern, dout, *, {OPTIONS}, dlse=None, arithmetic='float32', \
output='float32')
check(fn, cases=None, *, pattern=None, xfail={{}}, timeout=None, isolate=False, budget=None)
read_mask(fn, q_len, kv_len, *, pattern=None, heads=1, kv_heads=None, head_dim=64)
read_precision(fn)
diagnose(fn, pattern)
fixed(f)
golden.load(path=None)
Candidate(fn, layout='bhsd', arrays='numpy', device=None, dtype=None, spell=None, page_size=16)
Arithmetic(score, exp, weight, accumulate, output, exp_ulps=2, flush=True)
RelativeBias(table, left)
""".strip().splitlines()


def resolve(name):
    found = sr
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("line", SIGNATURES, ids=lambda line: line.partition("(")[0])
def test_signatures_are_what_other_peoples_scripts_call(line):
    name, _, wanted = line.partition("(")
    parameters = inspect.signature(resolve(name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]

    assert str(inspect.Signature(bare)) == f"({wanted}"


def public():
    for module in (sr, sr.recipes, sr.conventions, sr.selection, sr.mechanisms, sr.normalisers):
        for name in module.__all__:
            found = getattr(module, name)
            if callable(found):
                yield pytest.param(found, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("found", list(public()))
def test_every_public_name_is_documented_with_an_example(found):
    text = inspect.getdoc(found)

    assert text
    first = text.splitlines()[0]
    assert len(first) > 10
    assert ">>>" in text, f"{found.__name__} has no example"


def test_all_is_what_the_module_offers():
    modules = {name for name, value in vars(sr).items() if inspect.ismodule(value)}
    offered = {name for name in vars(sr) if not name.startswith("_")} - modules
    shelves = {"selection", *sr._SHELVES}

    assert offered | set(sr._JUDGES) == set(sr.__all__) - shelves
    assert all(inspect.ismodule(getattr(sr, name)) for name in shelves)


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_adds_only_the_standard_library_to_numpy_and_scipy_sparse():
    """A fresh process, so that nothing imported by the tests can hide an import."""
    code = "import sys, numpy, scipy.sparse; old = set(sys.modules); import sparse_ref; "
    added = {name.partition(".")[0] for name in fresh(code + "print(*set(sys.modules) - old)")}

    assert added <= {"sparse_ref"} | set(sys.stdlib_module_names)


def test_nothing_optional_is_needed():
    blocked = [
        "numba",
        "torch",
        "onnx",
        "onnxruntime",
        "matplotlib",
        "sklearn",
        "typer",
        "rich",
        "tqdm",
    ]
    code = f"import sys; sys.modules |= dict.fromkeys({blocked}); import sparse_ref; print(1)"

    assert fresh(code) == ["1"]


ROOT = Path(__file__).parent.parent


def test_the_readme_shows_the_conventions_of_the_code():
    assert sr.conventions.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_is_the_changelogs():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.search(rf"## \[?({re.escape(sr.__version__)}|Unreleased)", text)
