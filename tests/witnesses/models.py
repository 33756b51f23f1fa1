"""One-node ONNX models, and ONNX Runtime to run them."""

import numpy as np


def model(node, feeds, version, domain=""):
    """A model of one node, its inputs typed as what will be fed; outputs are float."""
    from onnx import helper

    def typed(name, x, shape):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x), shape)

    given = [typed(name, x.dtype, x.shape) for name, x in feeds.items()]
    floats = next(x.dtype for x in feeds.values() if x.dtype.kind == "f")
    out = [typed(name, floats, None) for name in node.output if name]
    opsets = [helper.make_opsetid("", version)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    graph = helper.make_graph([node], "one_node", given, out)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(made):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what is refused on purpose is not worth a line
    return ort.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def in_ort(made, feeds):
    return session(made).run(None, feeds)


def flat(x):
    """(b, h, m, d) with heads in the last axis: (b, m, h d)."""
    b, h, m, d = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(b, m, h * d)


def split(x, h):
    """The other way: (b, m, h d) with heads apart."""
    b, m, columns = x.shape
    return x.reshape(b, m, h, columns // h).transpose(0, 2, 1, 3)
