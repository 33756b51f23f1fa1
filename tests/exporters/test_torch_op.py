"""The operator's three ways of computing - kernels, listed blocks, FlexAttention - are one."""

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="numba is not installed")

from exporters import saved_bytes, sparse_attention, to_torch  # noqa: E402
from exporters.pytorch import by_blocks, by_flex, by_kernels  # noqa: E402
from exporters.pytorch.given import Options  # noqa: E402
from exporters.pytorch.op import spelled  # noqa: E402

LOCAL, STRIDED = sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)
PATTERNS = {
    "window": LOCAL,
    "rows without keys": sr.Causal() & sr.Keys([2, 3]),
    "keys that count twice": sr.Multi([LOCAL, sr.Causal() & sr.Keys([0])]),
    "heads differ": sr.PerHead([LOCAL, STRIDED - sr.Keys([0]), sr.Full()]),
    "one heavy row": sr.SlidingWindow(20, 20) | sr.Global([0, 100]),
    "listed keys": sr.RandomKeys(5, 0, 200),
}
# heads, key heads, queries, keys, head size, value size: one block, and several that are cut off
SHAPES = {
    "small": (6, 2, 5, 11, 3, 4),
    "blocks": (3, 1, 151, 173, 5, 2),
    "tall": (3, 3, 7, 3, 2, 3),
}
WAYS = {"kernels": by_kernels, "blocks": by_blocks}


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def drawn(h, g, m, n, d, e, dtype=None):
    shapes = (2, h, m, d), (2, g, n, d), (2, g, n, e), (2, h, m, e)
    return [torch.randn(shape, dtype=dtype or torch.float64) for shape in shapes]


def everything(h, m, n):
    """Softcap, sinks, slopes; for each batch row a first query, a first key, a number of keys."""
    sinks, slopes = (torch.randn(h, dtype=torch.float64), torch.rand(h, dtype=torch.float64))
    positions = torch.tensor([[n - m, 3], [0, 2], [n, n - 2]])
    return [0.7, 2.0, sinks, *positions, slopes]


def oracles(given, q, k):
    """The same options as the oracle takes them."""
    arrays = {name: None if x is None else x.numpy() for name, x in
              (("sink_logits", given.sinks), ("alibi_slopes", given.slopes))}  # fmt: skip
    return {"scale": given.scale, "softcap": given.softcap or None, **arrays,
            **given.positions(q, k)}  # fmt: skip


@pytest.mark.parametrize("moved", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_is_the_oracle_forward_and_backward(way, pattern, shape, moved):
    q, k, v, dout = drawn(*shape)
    h, m, n = shape[0], shape[2], shape[3]
    options = everything(h, m, n) if moved else [0.7, 0.0, *[None] * 5]
    given = Options(pattern, *options)
    dlse = torch.randn(2, h, m, dtype=torch.float64)
    arrays, plain = [x.numpy() for x in (q, k, v)], oracles(given, q, k)
    want = sr.attention(*arrays, pattern, **plain)
    out, lse = way.forward(q, k, v, given)
    close = {"rtol": 1e-10, "atol": 1e-11}
    np.testing.assert_allclose(out, want.out, **close)
    np.testing.assert_allclose(lse, want.lse, **close)

    gradients = sr.attention_vjp(*arrays, pattern, dout.numpy(), dlse=dlse.numpy(), **plain)
    *got, dsinks = way.backward(dout, dlse, out, lse, q, k, v, given)
    for x, name in zip(got, ("dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(x, getattr(gradients, name), **close)
    if moved:
        np.testing.assert_allclose(dsinks, gradients.dsink_logits, **close)


@pytest.mark.parametrize("moved", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_flex_attention_is_the_oracle(pattern, moved):
    """What runs on a GPU, run here by eager FlexAttention; positions go another way there too."""
    q, k, v, _ = drawn(6, 2, 51, 73, 16, 16, torch.float32)
    scale, softcap, sinks, _, _, length, slopes = everything(6, 51, 73)
    options = [0.7, 0.0, *[None] * 5]
    if moved:
        options = [scale, softcap, sinks.float(), None, None, length, slopes.float()]
    given = Options(pattern, *options)
    plain = oracles(given, q, k)
    arrays = [x.numpy() for x in (q, k, v)]
    out = by_flex.forward(q, k, v, given).numpy()
    error = np.abs(out - sr.attention(*arrays, pattern, **plain).out)
    assert (error <= sr.error_bound(*arrays, pattern, **plain).out).all()


@pytest.fixture(autouse=True)
def _eager(request, monkeypatch) -> None:
    if "compiled" not in request.node.name:
        monkeypatch.setattr(by_flex, "compiled", lambda _: by_flex._attend)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_nine_patterns_are_nine_compiled_functions():
    """torch.compile keeps eight versions of one function and runs the ninth eager."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    q, k, v, _ = drawn(2, 2, 64, 64, 16, 16, torch.float32)
    for left in range(9):
        pattern = sr.SlidingWindow(left, 0)
        out = by_flex.forward(q, k, v, Options(pattern, 0.25, 0.0, *[None] * 5))
        arrays = [x.numpy() for x in (q, k, v)]
        error = np.abs(out.numpy() - sr.attention(*arrays, pattern).out)
        assert (error <= sr.error_bound(*arrays, pattern).out).all()
    assert counters["stats"]["unique_graphs"] == 9


def test_the_kernels_read_the_tensors_own_memory():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.ones(2, 5, 3, 4, dtype=dtype).transpose(1, 2)
        seen = by_kernels.array(x)
        assert seen.ctypes.data == x.data_ptr()
        assert seen.shape == (2, 3, 5, 4)
        back = by_kernels.tensor(seen)
        assert back.dtype == dtype
        assert back.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_within_the_bound(dtype):
    q, k, v, _ = (x.to(getattr(torch, dtype)) for x in drawn(2, 1, 151, 173, 8, 8))
    out = sparse_attention(q, k, v, LOCAL)
    assert out.dtype == q.dtype
    arrays = [x.double().numpy() for x in (q, k, v)]
    error = np.abs(out.double().numpy() - sr.attention(*arrays, LOCAL).out)
    bound = sr.error_bound(*arrays, LOCAL, arithmetic=dtype, output=dtype).out
    assert (error <= bound).all()


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "blocks"])
def test_finite_differences_and_the_dispatchers_contract(kernels, monkeypatch):
    monkeypatch.setattr(by_kernels, "AVAILABLE", kernels)
    q, k, v, _ = (x.requires_grad_() for x in drawn(4, 2, 3, 5, 3, 2))
    sinks = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: sparse_attention(*x[:3], LOCAL, sink_logits=x[3], softcap=3.0), (q, k, v, sinks)
    )
    target = torch.ops.sparse_ref.attention.default
    torch.library.opcheck(target, (q, k, v, spelled(LOCAL), 0.5))
    starts = (torch.tensor([1, 2]) for _ in range(3))
    torch.library.opcheck(
        target, (q, k, v, spelled(LOCAL), 0.5, 2.0, sinks, *starts, None, torch.rand(4))
    )


def test_one_node_compiles_without_a_break():
    def twice(q, k, v):
        return sparse_attention(sparse_attention(q, k, v, LOCAL).tanh(), k, v, STRIDED)

    q, k, v, _ = (x.requires_grad_() for x in drawn(3, 3, 17, 17, 4, 4, torch.float32))
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(q, k, v).sum(), (q, k, v)) for f in (compiled, twice)]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_twice_in_one_graph():
    x = torch.randn(2, 2, 150, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = x @ torch.eye(8)
        out = sparse_attention(sparse_attention(q, q, q, LOCAL), q, q, STRIDED)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert x.grad.dtype == torch.float32
    y = x.detach().requires_grad_()
    wide = sparse_attention(sparse_attention(y, y, y, LOCAL), y, y, STRIDED)
    wide.square().sum().backward()
    relative = (x.grad - y.grad).norm() / y.grad.norm()
    assert relative < 0.05  # bfloat16 has 8 bits


def test_a_module_of_one_attention_exports_its_log_sum_exp_where_it_is_asked_for():
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from exporters.pytorch import module_to_onnx

    class Both(torch.nn.Module):
        def forward(self, q, k, v):
            return torch.ops.sparse_ref.attention(q, k, v, spelled(LOCAL), 0.5)

    q, k, v, _ = drawn(4, 2, 5, 7, 3, 2, torch.float32)
    model = module_to_onnx(Both(), (q, k, v), block_size=4)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    got = session.run(None, dict(zip(names, (x.numpy() for x in (q, k, v)), strict=True)))
    want = sr.attention(q.numpy(), k.numpy(), v.numpy(), LOCAL, scale=0.5)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    module = to_torch(LOCAL, scale=0.5)
    np.testing.assert_allclose(module(q, k, v), want.out, rtol=1e-5, atol=1e-6)


def test_memory_kept_for_backward_is_far_below_a_masks():
    n, heads, size = 1024, 4, 16
    pattern = sr.recipes.sparse_transformer_fixed(32, 4)
    mask = torch.from_numpy(pattern.mask(n, n)[0])
    project, x = torch.nn.Linear(64, 192), torch.randn(1, n, 64)

    def qkv():
        return project(x).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)

    def eager():
        q, k, v = qkv()
        return (size**-0.5 * q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v

    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls = lambda: sparse_attention(*qkv(), pattern), lambda: sdpa(*qkv(), attn_mask=mask), eager
    ours, fused, dense = (saved_bytes(call, [x, *project.parameters()]) for call in calls)
    floats = n * heads * size * 4 + n * heads  # q, k, v, out and the log-sum-exp
    assert ours == 4 * floats
    assert ours <= 0.6 * fused
    assert ours <= dense / 4
