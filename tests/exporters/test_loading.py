"""What `validate_onnx` reads: whole models that say their patterns, and no file beside its own."""

import numpy as np
import onnx
import pytest

import sparse_ref as sr
from tests.exporters.one_node import Sizes, draw, model

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.loading import load
from exporters.onnx.observed import NoPatternError, with_values
from exporters.onnx.running import CPU
from exporters.onnx.validate import validate_onnx

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
SIZE = Sizes(2, 4, 2, 33, 33, 8, 5)


@pytest.fixture(scope="module")
def good():
    return model(WINDOW, SIZE)


def test_a_file_that_says_no_pattern_is_refused():
    graph = helper.make_graph([], "empty", [], [])
    with pytest.raises(NoPatternError, match=r"^model must have a node with sparse_ref\.pattern"):
        validate_onnx(helper.make_model(graph))


def test_an_attention_that_would_not_be_judged_is_refused(good):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    hidden = onnx.NodeProto()
    hidden.CopyFrom(made.graph.node[0])
    hidden.output[0], hidden.output[1] = "z", "z.lse"
    branch = helper.make_graph([hidden], "branch", [], [onnx.ValueInfoProto(name="z")])
    choice = helper.make_node("If", ["c"], ["chosen"], then_branch=branch, else_branch=branch)
    made.graph.node.append(choice)
    with pytest.raises(NoPatternError, match="must have its attention in the main graph"):
        validate_onnx(made)
    made.graph.node.pop()
    del hidden.metadata_props[:]
    made.graph.node.append(hidden)
    with pytest.raises(
        NoPatternError, match=r"^'y\.SparseAttention' must have sparse_ref\.pattern"
    ):
        validate_onnx(made)


@pytest.mark.parametrize("said", ["{}", "not json", '{"kind": "Pattern"}', "[1]"])
def test_metadata_that_is_no_pattern_is_refused(good, said):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    next(x for x in made.graph.node[0].metadata_props if x.key == "sparse_ref.pattern").value = said
    with pytest.raises(ValueError, match=r"^sparse_ref\.pattern of the node 'y\.SparseAttention'"):
        validate_onnx(made)


def with_data(made, folder, location):
    """The model with its lists in a file that it names `location`."""
    made = onnx.ModelProto.FromString(made.SerializeToString())
    tensor = next(one for one in made.graph.initializer if one.name == "tile_masks")
    content = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(len(content)))
    (folder / "model").mkdir()
    path = folder / "model" / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path, content


def test_data_beside_the_file_is_read_into_the_model(good, tmp_path):
    path, content = with_data(good, tmp_path, "lists.bin")
    (path.parent / "lists.bin").write_bytes(content)
    ours, theirs = (
        {one.name: numpy_helper.to_array(one) for one in load(x).graph.initializer}
        for x in (path, good)
    )
    np.testing.assert_array_equal(ours["tile_masks"], theirs["tile_masks"])
    assert validate_onnx(path, cases=[draw(SIZE)], providers=[CPU]).ok


@pytest.mark.parametrize("location", ["../lists.bin", "/etc/passwd", "x/../../lists.bin", ""])
def test_data_outside_the_folder_is_refused(good, tmp_path, location):
    path, content = with_data(good, tmp_path, location)
    (tmp_path / "lists.bin").write_bytes(content)
    (path.parent / "x").mkdir()
    with pytest.raises(ValueError, match=r"^model must keep its data in plain files of its own"):
        validate_onnx(path)


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to"])
def test_links_out_of_the_folder_are_refused(good, tmp_path, how):
    path, content = with_data(good, tmp_path, "lists.bin")
    (tmp_path / "secret.bin").write_bytes(content)
    getattr(path.parent / "lists.bin", how)(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match=r"^model must keep its data in plain files of its own"):
        validate_onnx(path)


def test_data_of_a_function_is_looked_at_too(good, tmp_path):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../w.bin")
    made.functions[0].node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ValueError, match=r"got '\.\./w\.bin' for 'w'"):
        validate_onnx(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match=r"^model must be an ONNX file, got m\.onnx"):
        validate_onnx(tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError):
        validate_onnx(tmp_path / "none.onnx")


def test_run_time_inputs_are_put_into_the_pattern_row_by_row():
    pattern = sr.Causal() & (sr.Document(sr.Runtime("ids")) | sr.PrefixLM(sr.Runtime("prefix")))
    given = {"ids": np.array([[0, 0, 1], [0, 1, 1]]), "prefix": np.array([2])}
    assert with_values(pattern, given, 2) == sr.PerBatch(
        [sr.Causal() & (sr.Document(ids) | sr.PrefixLM(2)) for ids in ([0, 0, 1], [0, 1, 1])]
    )
