"""Models of FlexAttention on their way into ONNX: the numbers of eager FlexAttention."""

import numpy as np
import onnx
import onnxruntime
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from torch.nn.attention.flex_attention import (  # noqa: E402
    AuxRequest,
    create_block_mask,
    flex_attention,
)

import exporters  # noqa: E402
from exporters.pytorch import module_to_onnx  # noqa: E402

B, H, G, M, N, E, EV = 2, 6, 3, 37, 53, 5, 7
IDS = torch.tensor([0] * 11 + [1] * 19 + [2] * 23)


def of(mask_mod, *, batch=None, heads=None, block=16):
    return create_block_mask(mask_mod, batch, heads, M, N, device="cpu", BLOCK_SIZE=block)


def window(b, h, i, j):
    return (i + 16 >= j) & (i + 16 - j < 9)


def softcap(score, b, h, i, j):
    return 3.0 * torch.tanh(score / 3.0)


def softcap_in_a_window(score, b, h, i, j):
    return torch.where(abs(i - j) > 20, -float("inf"), 0.5 * torch.tanh(score * 2.0))


CASES = {
    "window": lambda: {"block_mask": of(window)},
    "blocks that are no squares": lambda: {"block_mask": of(window, block=(8, 32))},
    "no BlockMask": dict,
    "table": lambda: {"block_mask": of(lambda b, h, i, j: IDS[i] == IDS[j])},
    "heads differ in lists": lambda: {
        "block_mask": of(lambda b, h, i, j: i % (h + 1) == 0, heads=H)
    },
    "heads differ in tiles only": lambda: {
        "block_mask": of(lambda b, h, i, j: (i + 2 * j + h) % 5 == 0)
    },
    "rows without keys": lambda: {"block_mask": of(lambda b, h, i, j: (i > 20) & (j < 5))},
    "softcap": lambda: {"block_mask": of(window), "score_mod": softcap},
    "softcap in a window": lambda: {"score_mod": softcap_in_a_window},
    "scale": lambda: {"block_mask": of(window), "scale": 0.25},
}


def drawn(*shape, n=N):
    generator = torch.Generator().manual_seed(0)
    sizes = (B, H, M, E), (B, G, n, E), (B, G, n, EV)
    return tuple(torch.randn(size, generator=generator) for size in sizes)


class Layers(torch.nn.Module):
    """One FlexAttention a case; the answers side by side."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases

    def forward(self, q, k, v):
        return tuple(flex_attention(q, k, v, enable_gqa=True, **case) for case in self.cases)


def run(model, *inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def nodes(model):
    return [node for node in model.graph.node if node.domain == "sparse_ref"]


def close(got, want):
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def exported():
    torch.set_num_threads(1)
    layers = Layers([make() for make in CASES.values()])
    model = exporters.to_onnx(layers, drawn())
    return layers, model, dict(zip(CASES, run(model, *drawn()), strict=True))


@pytest.mark.parametrize("at", range(len(CASES)), ids=CASES)
def test_the_file_answers_what_eager_flex_attention_answers(exported, at):
    layers, _, got = exported
    want = flex_attention(*drawn(), enable_gqa=True, **layers.cases[at])
    close(got[list(CASES)[at]], want)


def test_a_window_is_the_oracles(exported):
    q, k, v = (x.numpy() for x in drawn())
    want = sr.attention(q, k, v, sr.SlidingWindow(8, 0)).out
    bound = sr.error_bound(q, k, v, sr.SlidingWindow(8, 0)).out
    assert (np.abs(exported[2]["window"] - want) <= bound).all()
    wider = sr.attention(q, k, v, sr.SlidingWindow(9, 0)).out  # the bound tells them apart
    assert not (np.abs(exported[2]["window"] - wider) <= bound).all()


def test_one_node_a_layer_and_equal_lists_once(exported):
    _, model, _ = exported
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in nodes(model)] == ["SparseAttention"] * len(CASES)
    lists = [tuple(node.input[3:7]) for node in nodes(model)]
    assert lists[0] == lists[-1] == lists[7]  # the window, scaled and capped
    assert len(set(lists)) == len(CASES) - 2


def test_the_file_takes_any_batch_and_keeps_nothing_of_torchs_masks(exported):
    layers, model, _ = exported
    inputs = tuple(torch.cat([x, x[:1]]) for x in drawn())
    for got, want in zip(run(model, *inputs), layers(*inputs), strict=True):
        close(got, want)
    read = {name for node in model.graph.node for name in node.input}
    assert {one.name for one in model.graph.initializer} <= read


class Inside(torch.nn.Module):
    """A BlockMask made in forward, of a buffer; and the log-sum-exp."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ids", IDS)

    def forward(self, x, q, k, v):
        mask = of(lambda b, h, i, j: self.ids[i + 16] == self.ids[j])
        out, more = flex_attention(
            q + x, k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True)
        )
        return out, more.lse


def test_a_block_mask_made_in_forward_and_the_log_sum_exp():
    inputs = torch.ones(B, 1, 1, 1), *drawn()
    model = module_to_onnx(Inside(), inputs)
    for got, want in zip(run(model, *inputs), Inside()(*inputs), strict=True):
        close(got, want)
    assert len(nodes(model)[0].output) == 2
    assert "Sort" not in str({node.op_type for node in model.graph.node})


def test_masks_that_differ_by_batch_row_need_a_fixed_batch():
    lengths = torch.tensor([50, 3])
    layers = Layers([{"block_mask": of(lambda b, h, i, j: j < lengths[b], batch=B)}])
    model = module_to_onnx(layers, drawn(), dynamic_shapes=None)
    close(run(model, *drawn())[0], layers(*drawn())[0])

    only_tiles = Layers([{"block_mask": of(lambda b, h, i, j: j < lengths[b])}])
    with pytest.raises(NotImplementedError, match="needs a fixed batch: dynamic_shapes=None"):
        module_to_onnx(only_tiles, drawn())


class Given(torch.nn.Module):
    """A mask_mod that reads an input."""

    def forward(self, ids, q, k, v):
        mask = of(lambda b, h, i, j: ids[0, i] == ids[0, j])
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)


def alibi(score, b, h, i, j):
    return score + 0.1 * (j - i)


def uneven_softcap(score, b, h, i, j):
    return 3.0 * torch.tanh(score / 2.0)


@pytest.mark.parametrize("score_mod", [alibi, uneven_softcap])
def test_scores_that_the_operator_cannot_say_are_refused(score_mod):
    with pytest.raises(
        NotImplementedError, match="score_mod must be a softcap, a mask of -inf, or"
    ):
        module_to_onnx(Layers([{"score_mod": score_mod}]), drawn())


def test_masks_of_inputs_are_refused():
    ids = IDS.expand(B, -1).clone()
    with pytest.raises(NotImplementedError, match="depends on the model's input ids"):
        module_to_onnx(Given(), (ids, *drawn()))


def test_a_new_layout_of_torchs_operator_is_refused(monkeypatch):
    """As if torch had put one more argument into it."""
    from exporters.pytorch import flex_export

    calls = flex_export._calls

    def longer(program):
        found = calls(program)
        for node in found:
            node.args = (*node.args[:4], node.args[4][3:], *node.args[5:])
        return found

    monkeypatch.setattr(flex_export, "_calls", longer)
    with pytest.raises(NotImplementedError, match=r"in a new way \(torch .*; tested: 2.13.0"):
        module_to_onnx(Layers([{}]), drawn())
