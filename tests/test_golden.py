"""Golden files: what they say, and that they can be made again."""

import json
import re
from collections import Counter

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.golden import load, text
from sparse_ref.patterns.explicit import mix
from tests.golden_sets import CORE, GOLDEN, few_cases, seal_sums
from tools.golden import archive, checking, export, lint
from tools.golden.build import build
from tools.golden.files import safetensors
from tools.golden.plan import plans
from tools.golden.stream import Stream, fnv1a


@pytest.fixture(scope="module")
def golden():
    return load(GOLDEN)


@pytest.fixture(scope="module")
def core():
    return load()


def oracle(q, k, v, pattern, **attributes):
    return sr.attention(q, k, v, pattern, **attributes)[:2]


def test_a_case_is_a_picture_words_and_numbers(golden):
    case = golden["by-hand/multi-2/b1h2g1-3x5-d2e1/even"]
    assert text.drawn(case.counts[0, 0]) == ["bbb..", "#bbb.", "##bbb"]
    assert case.words == "causal, and the last 3 keys once more: they count twice"
    assert case.pattern == sr.Multi([sr.Causal(), sr.SlidingWindow(2, 0)])
    values = case.tensors["v"][0, 0, :, 0]
    np.testing.assert_allclose(case.want.out[0, 1, 0, 0], values[:3].sum() / 3, rtol=1e-15)
    np.testing.assert_allclose(case.want.lse[0], [np.log([6, 7, 8])] * 2, rtol=1e-15)


def test_there_are_enough_cases_for_every_flag_in_few_bytes(golden):
    assert len(golden) >= 1500
    assert min(Counter(flag for case in golden for flag in case.flags).values()) >= 3
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 20 * 2**20
    assert sum(path.stat().st_size for path in CORE.iterdir()) <= 2 * 2**20
    for flag in golden.flags.values():
        assert "" not in (flag.description, flag.effect)


def test_the_page_says_the_numbers(golden, core):
    page = (GOLDEN / "README.md").read_text()
    assert f"\n{len(golden):,} cases" in page
    assert f"the {len(core)} most telling" in page
    shown = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    case = golden[shown["id"]]
    assert (shown["words"], shown["flags"]) == (case.words, [*case.flags])
    assert (shown["pattern"], shown["mask"]) == (case._pattern, case._mask)


def test_the_core_set_is_part_of_the_whole(golden, core):
    assert {flag for case in core for flag in case.flags} >= {"MaskedNaN", "Gradients", "Causal"}
    for case in core:
        for name, x in golden[case.id].tensors.items():
            np.testing.assert_array_equal(case.tensors[name], x)


def test_what_is_asked_is_covered(golden):
    patterns = json.dumps([sr.to_dict(case.pattern) for case in golden])
    kinds = {name for name in sr.__all__ if isinstance(getattr(sr, name), type)}
    kinds = {name for name in kinds if issubclass(getattr(sr, name), sr.Pattern)} - {"Pattern"}
    assert set(re.findall(r'"kind": "(\w+)"', patterns)) == kinds
    asked = {name for case in golden for name in case.attributes}
    assert asked == {"scale", "softcap", "bias", "alibi_slopes", "sink_logits", "kv_lengths",
                     "kv_positions", "q_start"}  # fmt: skip
    sizes = {case.sizes for case in golden}
    assert {0, 1, 67} <= {s.m for s in sizes}
    assert {0, 131, 2053} <= {s.n for s in sizes}
    assert {0, 1, 2} <= {s.b for s in sizes}


def test_answers_follow_from_the_masks_alone(golden):
    """Dense, in float64, with nothing of the library but the numbers in the files."""
    checked = 0
    for case in golden:
        if case.family in ("special", "options") and {"SeenNaN", "InfiniteScores"} & {*case.flags}:
            continue
        out, lse = dense(case)
        np.testing.assert_allclose(out, case.want.out, rtol=1e-11, atol=1e-12, err_msg=case.id)
        np.testing.assert_allclose(lse, case.want.lse, rtol=1e-11, atol=1e-12, err_msg=case.id)
        checked += 1
    assert checked > 1500


def dense(case):
    s, given = case.sizes, case.attributes
    q, k, v = (np.nan_to_num(case.tensors[name].astype(np.float64)) for name in "qkv")
    k, v = (np.repeat(x, s.h // s.g, axis=1) for x in (k, v))
    scores = given.get("scale", s.d**-0.5) * q @ np.swapaxes(k, -1, -2)
    if "softcap" in given:
        scores = given["softcap"] * np.tanh(scores / given["softcap"])
    scores = scores + np.nan_to_num(given.get("bias", 0.0))
    if "alibi_slopes" in given:
        start = np.reshape(given.get("q_start", s.n - s.m), (-1, 1, 1, 1))
        where = np.asarray(given.get("kv_positions", np.arange(s.n)))
        far = np.abs(start + np.arange(s.m)[:, None] - where.reshape(-1, 1, 1, s.n))
        scores = scores - given["alibi_slopes"][:, None, None] * far
    counts = np.broadcast_to(case.counts, scores.shape)
    weights = np.where(counts > 0, np.exp(scores) * counts, 0.0)
    total = weights.sum(axis=-1)
    if "sink_logits" in given:
        total = total + np.exp(given["sink_logits"])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((weights / total[..., None]) @ v), np.log(total)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_right_answers_pass(core, dtype):
    def rounded(q, k, v, pattern, **attributes):
        out, lse = oracle(q, k, v, pattern, **attributes)
        return out.astype(dtype), lse.astype(np.float32)

    assert not [case.id for case in core[::3] if case.check(rounded, dtype)]


WRONG = {
    "mean for empty rows": lambda out, lse: (np.where(np.isneginf(lse)[..., None], 1.0, out), lse),
    "lse to base 2": lambda out, lse: (out, lse / np.log(2)),
    "a NaN": lambda out, lse: (
        np.where(np.arange(out.size).reshape(out.shape) == 0, np.nan, out),
        lse,
    ),
    "zeros": lambda out, lse: (np.zeros_like(out), lse),
    "heads tiled": lambda out, lse: (np.roll(out, 1, axis=1), lse),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail(core, name):
    def wrong(q, k, v, pattern, **attributes):
        return WRONG[name](*oracle(q, k, v, pattern, **attributes))

    assert len([case for case in core[::5] if case.check(wrong)]) >= 3


@pytest.mark.slow
def test_the_kernels_of_this_library_pass_every_case(golden):
    def kernel(q, k, v, pattern, **attributes):
        return sr.kernels.attention(q, k, v, pattern, **attributes)[:2]

    assert not [case.id for case in golden if case.check(kernel)]


def test_gradients_are_those_of_the_oracle(core):
    cases = core.of("Gradients")
    for case in cases:
        call, (dout, dlse) = case.call("float64"), case.cotangents
        got = sr.attention_vjp(*call[:4], np.float64(dout), dlse=dlse if dlse is None else
                               np.float64(dlse), **call.attributes)  # fmt: skip
        for x, want, bound in zip(got, case.gradients, case.gradient_bound(), strict=True):
            assert (x is None) == (want is None)
            assert x is None or (np.abs(x - want) <= bound).all()
    assert len(cases) >= 10


def test_a_sample_is_made_again_byte_for_byte_or_nearly(golden):
    for plan in plans()[::149]:
        record, tensors = build(plan)
        case = golden[plan.id]
        assert (record["flags"], record["words"]) == ([*case.flags], case.words)
        held = {
            n: x.astype(np.float32) if plan.inline and "bound" in n else x
            for n, x in case.tensors.items()
        }
        if not plan.inline:
            assert checking.different(plan.id, dict(held), tensors) == []
        assert safetensors(tensors) == safetensors(build(plan)[1])


def test_the_check_sees_a_changed_number():
    _, tensors = build(next(plan for plan in plans() if plan.family == "windows"))
    for name in ("q", "out", "bound.float16.lse"):
        changed = {n: x.copy() for n, x in tensors.items()}
        changed[name].flat[0] += np.float64(2.0**-8)
        assert len(checking.different("", changed, tensors)) == 1
    assert checking.different("", {}, {"out": tensors["out"]}) == [": out is not in both"]


def test_the_streams_are_those_of_the_page(golden):
    page = " ".join((GOLDEN / "SPEC.md").read_text().split())
    words = re.search(r"mix\(0\) = (0x\w+)`, `mix\(1\) = (0x\w+)`", page).groups()
    assert [int(mix(np.array([i], np.uint64))[0]) for i in (0, 1)] == [int(w, 16) for w in words]
    assert int(re.search(r'fnv1a\("a"\) = (0x\w+)', page)[1], 16) == fnv1a(b"a")
    name, q, k = re.search(
        r"`(by-hand/\S+)` begins with q = (.*) and k = (.*), over 64", page
    ).groups()
    drawn = Stream(name).integers(-128, 129, (7,)).tolist()
    assert drawn == [int(x) for x in f"{q}, {k}".split(", ")]
    assert golden[name].tensors["q"].ravel().tolist() == [x / 64 for x in drawn[:4]]


@pytest.mark.parametrize("place", [CORE, pytest.param(GOLDEN, marks=pytest.mark.slow)])
def test_the_files_are_well_formed(place):
    assert lint.problems(place) == []


def test_the_linter_sees_a_wrong_mask_a_lost_flag_and_a_new_field(tmp_path):
    (tmp_path / "core").mkdir()
    place = few_cases(tmp_path / "core")
    manifest = json.loads((place / "manifest.json").read_text())
    case = next(case for case in manifest["cases"] if case["mask"]["rows"][0] == "###..")
    case["mask"]["rows"][0] = "####."
    case["sizes"]["note"] = 1
    manifest["cases"][-1]["flags"] = []
    (place / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(place)
    assert "sizes of" in lint.problems(place)[0]
    del case["sizes"]["note"]
    (place / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(place)
    assert [sentence.split(": ")[1] for sentence in lint.problems(place)] == [
        "the mask must be what the pattern says", "a case must have words, and flags",
    ]  # fmt: skip


def test_a_case_as_npy(core, tmp_path):
    case = core["combined/multi-2/b1h2g1-13x13-d5e3/even"]
    assert export.main(CORE, case.id, onnx=None, npy=tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name == "test_combined__multi_2__b1h2g1_13x13_d5e3__even"
    np.testing.assert_array_equal(np.load(folder / "out.npy"), case.want.out)
    np.testing.assert_array_equal(np.load(folder / "counts.npy"), case.counts)


@pytest.mark.witness
def test_cases_as_onnx_folders_run_in_onnx_runtime(golden, tmp_path):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    names = (
        "windows/window-2/b1h2g1-13x13-d5e3/random",
        "combined/per-head-2/b1h6g3-5x11-d3e2/random",
        "options/window-5+sinks/b2h4g2-7x13-d5e3/random",
        "options/causal+lengths/b2h4g2-7x13-d5e3/random",
    )
    for name in names:
        case = golden[name]
        export.onnx_folder(case, tmp_path / export.folder(case))
        folder = tmp_path / export.folder(case)
        session = ort.InferenceSession(str(folder / "model.onnx"), options)
        puts = {
            put.name: onnx.numpy_helper.to_array(
                onnx.load_tensor(str(folder / "test_data_set_0" / f"input_{i}.pb"))
            )
            for i, put in enumerate(session.get_inputs())
        }
        (got,) = session.run(None, puts)
        assert (np.abs(got - case.want.out) <= case.bound().out).all(), name
        stored = onnx.numpy_helper.to_array(
            onnx.load_tensor(str(folder / "test_data_set_0" / "output_0.pb"))
        )
        assert np.array_equal(stored, case.want.out.astype(np.float32))


def test_a_case_that_a_model_cannot_be_asked_says_why(golden, tmp_path):
    case = golden["options/causal+alibi/b1h2g1-13x13-d5e3/random"]
    with pytest.raises(NotImplementedError, match="a model has no alibi_slopes"):
        export.onnx_folder(case, tmp_path)


def test_the_archive_is_the_same_bytes_twice(tmp_path, capsys):
    for name in ("a.tar", "b.tar"):
        archive.main(GOLDEN, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert capsys.readouterr().out.count("SHA-256") == 2
