"""The other sides of the benchmark that run a graph: ONNX Runtime's operators and OpenVINO's.

Ours among them: the portable body of `sparse_ref.SparseAttention`, and the kernel registered for
it, in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import exporters
import sparse_ref as sr

from .peers import Arrays, FellBackError, Form, MissingError, Task, needed

Feeds = dict[str, NDArray[Any]]
BLOCK = 64


class Node(NamedTuple):
    """One operator, what it is fed, and whether heads stand in the last axis of what it answers."""

    operator: str
    domain: str
    feeds: Feeds
    inputs: list[str]  # "" where an optional one is left out
    outputs: list[str]
    attributes: dict[str, Any]
    flat: bool = True


def group_query_attention(task: Task) -> Iterator[Form]:
    """com.microsoft.GroupQueryAttention with its local_window_size, and an empty cache."""
    (_, h, n, d), g = task.q.shape, task.k.shape[1]
    empty = np.zeros((1, g, 0, d), task.k.dtype)
    feeds = _flat(task) | {"past_key": empty, "past_value": empty}
    feeds |= {"seqlens_k": np.array([n - 1], np.int32), "total": np.array([n], np.int32)}
    attributes = {"num_heads": h, "kv_num_heads": g, "local_window_size": _window(task.pattern)}
    outputs = ["y", "present_key", "present_value"]
    node = Node("GroupQueryAttention", "com.microsoft", feeds, [*feeds], outputs, attributes)
    yield _form(node, task)


def multi_head_attention(task: Task) -> Iterator[Form]:
    """com.microsoft.MultiHeadAttention; a pattern that is not full is a bias of -inf."""
    feeds, skipped = _flat(task), []
    if task.pattern != sr.Full():
        bias = np.where(task.mask, 0, -np.inf).astype(task.q.dtype)[None, None]
        feeds, skipped = feeds | {"bias": bias}, ["", ""]
    inputs = ["query", "key", "value", *skipped, *(["bias"] if skipped else [])]
    attributes = {"num_heads": task.q.shape[1]}
    yield _form(Node("MultiHeadAttention", "com.microsoft", feeds, inputs, ["y"], attributes), task)


def attention_23(task: Task) -> Iterator[Form]:
    """The standard's own operator, with a mask of bools where the pattern is not full."""
    feeds = {"Q": task.q, "K": task.k, "V": task.v}
    if task.pattern != sr.Full():
        feeds["mask"] = task.mask
    yield _form(Node("Attention", "", feeds, [*feeds], ["y"], {}, flat=False), task)


def block_sparse(task: Task) -> Iterator[Form]:
    """com.microsoft.SparseAttention: causal blocks; its cache is bound as past and as present."""
    (_, h, n, d), g = task.q.shape, task.k.shape[1]
    blocks = sr.to_blocks(task.pattern, n, n, block_size=BLOCK)
    cache = (1, g, len(blocks.indptr[0][1:]) * BLOCK, d)
    feeds = _flat(task) | {
        "past_key": np.zeros(cache, np.float32), "past_value": np.zeros(cache, np.float32),
        "rows": blocks.indptr.astype(np.int32), "columns": blocks.indices[None].astype(np.int32),
        "total": np.array([n], np.int32), "totals": np.array([n], np.int32),
    }  # fmt: skip
    attributes = {"num_heads": h, "kv_num_heads": g, "sparse_block_size": BLOCK}
    outputs = ["y", "present_key", "present_value"]
    node = Node("SparseAttention", "com.microsoft", feeds, [*feeds], outputs, attributes)
    yield _form(node, task, shared={"present_key": "past_key", "present_value": "past_value"})


def loop_body(task: Task) -> Iterator[Form]:
    """Our operator where nobody registered a kernel: the function body in standard operators."""
    yield run_form(session(exported(task), task.threads), named(task), task)


def registered_kernel(task: Task) -> Iterator[Form]:
    """Our operator with our kernel inside ONNX Runtime."""
    register = getattr(exporters, "register_kernels", None)
    if register is None:
        raise MissingError("exporters.register_kernels does not exist yet")
    options = _options(task.threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    register(options)
    ready = _opened(exported(task), options)
    ran = [op.op_type for part in ready.get_provider_graph_assignment_info()
           for op in part.get_nodes()]  # fmt: skip
    if ran != ["SparseAttention"]:
        raise FellBackError(f"the registered kernel did not run, but {sorted(set(ran))}")
    yield run_form(ready, named(task), task)


def exported(task: Task) -> Any:
    """The model of one node of ours; batch and lengths are free, the layout is a constant."""
    onnx = needed("onnx")
    node_of = needed("exporters.onnx")
    (_, h, m, d), (_, g, n, e) = task.q.shape, task.v.shape
    lists = node_of.block_tensors(sr.to_blocks(task.pattern, m, n, block_size=BLOCK))
    node = node_of.attention_node(
        ["q", "k", "v", *lists], "y", pattern=task.pattern, block_size=(BLOCK, BLOCK),
        scale=d**-0.5,
    )  # fmt: skip
    kind = onnx.helper.np_dtype_to_tensor_dtype(task.q.dtype)
    shapes = {"q": (h, "m", d), "k": (g, "n", d), "v": (g, "n", e), "y": (h, "m", e)}
    values = [
        onnx.helper.make_tensor_value_info(x, kind, ["b", *shape]) for x, shape in shapes.items()
    ]
    constants = [onnx.numpy_helper.from_array(tensor, name) for name, tensor in lists.items()]
    graph = onnx.helper.make_graph([node], "attention", values[:3], values[3:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    return node_of.finish(model, 18)


def openvino(task: Task) -> Iterator[Form]:
    """OpenVINO's ScaledDotProductAttention, in float32, with the pattern as a mask."""
    ov = needed("openvino")
    ops = needed("openvino.opset13")
    values = [ops.parameter(x.shape, np.float32) for x in (task.q, task.k, task.v)]
    feeds = [task.q, task.k, task.v]
    if task.pattern != sr.Full():
        values.append(ops.parameter(task.mask.shape, np.float32))
        feeds.append(np.where(task.mask, 0, -np.inf).astype(np.float32))
    model = ov.Model([ops.scaled_dot_product_attention(*values)], values, "attention")
    settings = {
        "INFERENCE_NUM_THREADS": task.threads, "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    tensors = [ov.Tensor(x, shared_memory=True) for x in feeds]
    yield Form("", lambda: request.infer(tensors, share_outputs=True), lambda found: (
        np.array(found[0]),
    ))  # fmt: skip


def run_form(ready: Any, feeds: Feeds, task: Task, *, flat: bool = False) -> Form:
    """A session's `run`, reading NumPy's memory in place."""
    (_, h, m, _), e = task.q.shape, task.v.shape[-1]

    def arrays(found: Any) -> Arrays:
        y = found[0]
        return (y.reshape(1, m, h, e).transpose(0, 2, 1, 3) if flat else y,)

    return Form("", lambda: ready.run(["y"], feeds), arrays)


def _form(node: Node, task: Task, shared: dict[str, str] | None = None) -> Form:
    onnx, ort = needed("onnx"), needed("onnxruntime")

    def typed(name: str, x: NDArray[Any], shape: Any) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    made = onnx.helper.make_node(
        node.operator, node.inputs, node.outputs, domain=node.domain, **node.attributes
    )
    given = [typed(name, x, x.shape) for name, x in node.feeds.items()]
    graph = onnx.helper.make_graph(
        [made], "attention", given, [typed(name, task.q, None) for name in node.outputs]
    )
    opsets = [onnx.helper.make_opsetid("", 23)]
    opsets += [onnx.helper.make_opsetid(node.domain, 1)] if node.domain else []
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    ready = session(model, task.threads)
    if shared is None:
        return run_form(ready, node.feeds, task, flat=node.flat)
    binding = ready.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in node.feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for present, past in shared.items():
        binding.bind_ortvalue_output(present, values[past])
    once = run_form(ready, {}, task, flat=node.flat)
    return Form(
        "",
        lambda: ready.run_with_iobinding(binding),
        lambda _: once.arrays(binding.copy_outputs_to_cpu()),
    )


def session(model: Any, threads: int) -> Any:
    """An onnx.ModelProto in ONNX Runtime, on the CPU."""
    return _opened(model, _options(threads))


def _opened(model: Any, options: Any) -> Any:
    ort = needed("onnxruntime")
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _options(threads: int) -> Any:
    options = needed("onnxruntime").SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Workers spin while a run lasts, which is fastest for it, and sleep while others are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def named(task: Task) -> Feeds:
    return {"q": task.q, "k": task.k, "v": task.v}


def _flat(task: Task) -> Feeds:
    """Heads in the last axis, as Microsoft's operators want them."""
    sides = {"query": task.q, "key": task.k, "value": task.v}
    return {
        name: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(1, x.shape[2], -1)
        for name, x in sides.items()
    }


def _window(pattern: sr.Pattern) -> int:
    """Keys of a causal window, the query's own included; -1 is all of them."""
    match pattern:
        case sr.And(patterns=(sr.Causal(), sr.SlidingWindow(left=int(left), right=0, dilation=1))):
            return left + 1
        case sr.Causal():
            return -1
        case _:
            raise ValueError(f"pattern must be a causal window, got {pattern!r}")
