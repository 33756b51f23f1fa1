"""ONNX Runtime's CUDA kernels for the operators of our bodies and layouts, as data.

Source: microsoft/onnxruntime, docs/OperatorKernels.md, section "Operators implemented by
CUDAExecutionProvider", at commit 001d12d2623fd411ce0f83d05abb5e82304a3389.
Kernels for opsets before 13 are left out.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "microsoft/onnxruntime docs/OperatorKernels.md at 001d12d2623f"

_GROUPS = {
    "@real": "double float float16",
    "@reals": "bfloat16 double float float16",
    "@words": "int32 int64 uint32 uint64",
    "@integers": "int16 int32 int64 int8 uint16 uint32 uint64 uint8",
    "@any": "bfloat16 bool double float float16 @integers",
}

# Operator | versions | types of each letter of the operator's schema. "13+" is a kernel of version
# 13 alone: it does not match a node whose operator changed in a later opset.
_KERNELS = """
Abs | 13+ | T: @reals @integers
Add | 13 | T: @reals @words
Add | 14+ | T: @reals @integers
And | 7+ | T: bool
Attention | 23 | T1: bfloat16 float float16; T2: bfloat16 float float16; U: @reals bool
Attention | 24+ | T1: bfloat16 float float16; T2: bfloat16 float float16; U: @reals bool
Cast | 13-18 | T1: @any; T2: @any
Cast | 19-20 | T1: @any; T2: @any
Cast | 21-22 | T1: @any; T2: @any
Cast | 23+ | T1: @any; T2: @any
Ceil | 13+ | T: @real
Clip | 13+ | T: @real int64 int8 uint64 uint8
Compress | 11+ | T: @any; T1: bool
Concat | 13+ | T: @any
ConstantOfShape | 9+ | T1: int64; T2: @any
Cos | 7+ | T: @real
CumSum | 14+ | T: @real @words; T2: int32 int64
Div | 13 | T: @reals @words
Div | 14+ | T: @reals @integers
Equal | 13+ | T: bool @real @words
Erf | 13+ | T: @reals
Exp | 13+ | T: @reals
Expand | 13+ | T: @any
Flatten | 13+ | T: @any
Floor | 13+ | T: @real
Gather | 13+ | T: @any; Tind: int32 int64
GatherElements | 13+ | T: @any; Tind: int32 int64
GatherND | 13+ | T: bfloat16 bool @real int64
Gelu | 20+ | T: @reals
Gemm | 13+ | T: @reals
Greater | 13+ | T: @real @words
GreaterOrEqual | 16+ | T: @real @words
Identity | 14-18 | V: @any
Identity | 19+ | V: @any
If | 13-18 | B: bool; V: @any
If | 19+ | B: bool; V: @any
IsInf | 10-19 | T1: double float
IsInf | 20+ | T1: @reals
IsNaN | 13-19 | T1: @reals
IsNaN | 20+ | T1: @reals
LayerNormalization | 17+ | T: @reals; U: float
Less | 13+ | T: @real @words
LessOrEqual | 16+ | T: @real @words
Log | 13+ | T: @real
Loop | 13-18 | I: int64; B: bool; V: @any
Loop | 19+ | I: int64; B: bool; V: @any
MatMul | 13+ | T: @reals
Max | 13+ | T: @reals @words
Min | 13+ | T: @reals @words
Mod | 13+ | T: @reals @words
Mul | 13 | T: @reals @words
Mul | 14+ | T: @reals @integers
Neg | 13+ | T: @reals int16 int32 int64 int8
NonZero | 13+ | T: bool float float16 int32 int64 uint8
Not | 1+ | T: bool
OneHot | 11+ | T1: int32 int64; T2: int32 int64; T3: float float16 int64
Or | 7+ | T: bool
Pad | 13-17 | T: bool @real
Pad | 18+ | T: bool @real
Pow | 15+ | T: @reals int32 int64; T1: @reals int32 int64
Range | 11+ | T: double float int16 int32 int64
Reciprocal | 13+ | T: @real
ReduceL1 | 18+ | T: @real int32
ReduceL2 | 18+ | T: @real int32
ReduceLogSum | 18+ | T: @real
ReduceLogSumExp | 18+ | T: @real
ReduceMax | 18+ | T: @real int32 int64
ReduceMean | 18+ | T: @real int32
ReduceMin | 18+ | T: @real int32 int64 int8 uint8
ReduceProd | 18+ | T: @real int32
ReduceSum | 13+ | T: @reals int32 int64
ReduceSumSquare | 18+ | T: @real
Relu | 14+ | T: @reals
Reshape | 14-18 | T: @any
Reshape | 19-20 | T: @any
Reshape | 21-22 | T: @any
Reshape | 23+ | T: @any
RMSNormalization | 23+ | T: @reals; V: @reals
RotaryEmbedding | 23+ | T: bfloat16 float float16; M: int64
ScatterElements | 16-17 | T: @any; Tind: int32 int64
ScatterElements | 18+ | T: @any; Tind: int32 int64
ScatterND | 16-17 | T: @any
ScatterND | 18+ | T: @any
Shape | 15-18 | T: @any
Shape | 19-20 | T: @any
Shape | 21-22 | T: @any
Shape | 23+ | T: @any
Sigmoid | 13+ | T: @reals
Sign | 13+ | T: @reals @integers
Sin | 7+ | T: @real
Size | 13+ | T: @any
Slice | 13+ | T: @any; Tind: int32 int64
Softmax | 13+ | T: @reals
Split | 13-17 | T: @any
Split | 18+ | T: @any
Sqrt | 13+ | T: @reals
Squeeze | 13-20 | T: @any
Squeeze | 21-22 | T: @any
Squeeze | 23+ | T: @any
Sub | 13 | T: @reals @words
Sub | 14+ | T: @reals @integers
Sum | 13+ | T: @reals
Tanh | 13+ | T: @reals
Tile | 13+ | T: @reals int32 int64
TopK | 11+ | T: @real int32 int64
Transpose | 13-20 | T: @any
Transpose | 21-22 | T: @any
Transpose | 23+ | T: @any
Trilu | 14+ | T: @any
Unsqueeze | 13-20 | T: @any
Unsqueeze | 21-22 | T: @any
Unsqueeze | 23+ | T: @any
Where | 16+ | B: bool; T: @reals int32 int64 uint8
Xor | 7+ | T: bool
com.microsoft.GroupQueryAttention | 1+ | T: bfloat16 float16; M: int32
com.microsoft.SparseAttention | 1+ | T: bfloat16 float16; M: int32
"""


class Kernel(NamedTuple):
    """One kernel: which versions of its operator it runs, and element types by schema letter."""

    first: int
    last: int
    types: dict[str, frozenset[str]]


def _types(text: str) -> frozenset[str]:
    found: set[str] = set()
    for word in text.split():
        found |= _types(_GROUPS[word]) if word in _GROUPS else {word}
    return frozenset(found)


def _parsed(line: str) -> tuple[str, Kernel]:
    name, versions, letters = (part.strip() for part in line.split("|"))
    first, _, last = versions.removesuffix("+").partition("-")
    pairs = (part.split(":") for part in letters.split(";"))
    types = {letter.strip(): _types(words) for letter, words in pairs}
    return name, Kernel(int(first), int(last or first), types)


def kernels() -> dict[str, list[Kernel]]:
    """The kernels of every operator that the table lists, by name.

    >>> [(one.first, one.last) for one in kernels()["Identity"]]
    [(14, 18), (19, 19)]
    """
    table: dict[str, list[Kernel]] = {}
    for line in _KERNELS.strip().splitlines():
        name, kernel = _parsed(line)
        table.setdefault(name, []).append(kernel)
    return table
