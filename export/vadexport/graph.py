"""A small builder for ONNX graphs that are written node by node.

The two graphs of a bundle are written by hand, not traced: every node then has a name that says what it is
(``blocks.3/attn/qkv``), static sizes never become shape arithmetic, and no exporter version changes the graph.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

OPSET = 18  # the newest that TensorRT 10.3 reads, and it has the native LayerNormalization
IR_VERSION = 8  # what opset 18 came with; older runtimes refuse newer ones

INT8_MOST = 127  # symmetric: -128 is not used
# x86 without VNNI adds two products of an unsigned and a signed byte in 16 bits, and libraries use that: larger weights
# would saturate there (cosine 0.981 instead of 0.9999). A bit less changes the features by 5e-5.
INT8_MOST_WEIGHT = 64
ONNXRUNTIME = "com.microsoft"  # domain of onnxruntime's own operators

_LARGE = 4096  # bytes of a constant that is worth a reference

_ELEMENT = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
}

Dimension = int | str


class Graph:
    """Nodes, constants, inputs and outputs of one graph.

    Args:
        name: of the graph.
        dtype: floating-point constants are stored in it.
        ranges: name of a linear -> largest absolute input that INT8 is to represent; those linears are quantised.
        own_operator: INT8 products by onnxruntime's own operator, not by Q/DQ pairs that every library reads.
    """

    def __init__(
        self,
        name: str,
        dtype: type[np.floating[Any]] = np.float32,
        ranges: Mapping[str, float] | None = None,
        own_operator: bool = False,
    ) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.ranges = dict(ranges or {})
        self.own_operator = own_operator
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: type[Any], shape: Sequence[Dimension]) -> str:
        """Declare an input; a string in ``shape`` is a dynamic dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, _ELEMENT[np.dtype(dtype)], list(shape)))
        return name

    def output(self, value: str, dtype: type[Any], shape: Sequence[Dimension]) -> None:
        """Declare ``value`` as an output."""
        self._outputs.append(helper.make_tensor_value_info(value, _ELEMENT[np.dtype(dtype)], list(shape)))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Store an array; floating-point values take the graph's ``dtype``."""
        if np.issubdtype(value.dtype, np.floating):
            value = value.astype(self.dtype)
        return self.exact(name, value)

    def exact(self, name: str, value: NDArray[Any]) -> str:
        """Store an array in its own dtype."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output that carries the node's name; ``domain`` is ONNX's own unless it is given."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def reshape(self, value: str, shape: Sequence[int], name: str) -> str:
        """Reshape; 0 keeps a dimension as it is (how the dynamic batch passes through)."""
        target = self.exact("shape_" + "_".join(map(str, shape)), np.asarray(shape, np.int64))
        return self.op("Reshape", value, target, name=name)

    def linear(self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None, name: str) -> str:
        """``value @ weight.T + bias``, with ``weight`` [out, in] as PyTorch keeps it."""
        if name in self.ranges and self.own_operator:
            return self._onnxruntime_product(value, weight, bias, name)
        if name in self.ranges:
            product = self._int8_product(value, weight, name)
        else:
            product = self.op("MatMul", value, self.constant(f"{name}.weight", weight.T), name=f"{name}/matmul")
        if bias is None:
            return product
        return self.op("Add", product, self.constant(f"{name}.bias", bias), name=name)

    def _int8_product(self, value: str, weight: NDArray[Any], name: str) -> str:
        """The same product with explicit quantisation (Q/DQ): symmetric, a scale for the input and one for each row."""
        scale = self.exact(f"{name}.input_scale", np.float32(self.ranges[name] / INT8_MOST))
        zero = self.exact("int8_zero", np.int8(0))
        small = self.op("QuantizeLinear", value, scale, zero, name=f"{name}/input/int8")
        value = self.op("DequantizeLinear", small, scale, zero, name=f"{name}/input/float")
        rows, row_scales = int8_rows(weight)
        stored = self.exact(f"{name}.weight", rows.T)
        scales = self.exact(f"{name}.weight_scale", row_scales)
        zeros = self.exact(f"int8_zeros_{len(rows)}", np.zeros(len(rows), np.int8))
        matrix = self.op("DequantizeLinear", stored, scales, zeros, name=f"{name}/weight/float", axis=1)
        return self.op("MatMul", value, matrix, name=f"{name}/matmul")

    def _onnxruntime_product(self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None, name: str) -> str:
        """The same numbers by com.microsoft.MatMulIntegerToFloat, which adds the bias while it scales the products.

        onnxruntime makes it of Q/DQ pairs too, but leaves the bias a pass over all activations of its own. x86's
        instructions for INT8 multiply unsigned with signed numbers, so inputs are uint8 around 128.
        """
        scale = self.exact(f"{name}.input_scale", np.float32(self.ranges[name] / INT8_MOST))
        zero = self.exact("uint8_zero", np.uint8(INT8_MOST + 1))
        small = self.op("QuantizeLinear", value, scale, zero, name=f"{name}/input/uint8")
        rows, row_scales = int8_rows(weight)
        stored = self.exact(f"{name}.weight", rows.T)
        scales = self.exact(f"{name}.weight_scale", row_scales)
        zeros = self.exact(f"int8_zeros_{len(rows)}", np.zeros(len(rows), np.int8))
        inputs = [small, stored, scale, scales, zero, zeros]
        inputs += [] if bias is None else [self.constant(f"{name}.bias", bias)]
        return self.op("MatMulIntegerToFloat", *inputs, name=name, domain=ONNXRUNTIME)

    def layer_norm(self, value: str, weight: NDArray[Any], bias: NDArray[Any], name: str) -> str:
        """Native LayerNormalization over the last axis, statistics in float32 (epsilon as in CLIP)."""
        scale = self.constant(f"{name}.weight", weight)
        shift = self.constant(f"{name}.bias", bias)
        return self.op("LayerNormalization", value, scale, shift, name=name, axis=-1, epsilon=1e-5)

    def quick_gelu(self, value: str, name: str) -> str:
        """``x * sigmoid(1.702 x)``, CLIP's activation."""
        slope = self.constant("quick_gelu_slope", np.float32(1.702).reshape(()))
        gate = self.op("Sigmoid", self.op("Mul", value, slope, name=f"{name}/scaled"), name=f"{name}/gate")
        return self.op("Mul", value, gate, name=name)

    def gelu(self, value: str, name: str) -> str:
        """``x (1 + erf(x / sqrt 2)) / 2``, written as the libraries know to fuse it; Gelu itself came with opset 20."""
        root = self.constant("gelu_root", np.float32(np.sqrt(2.0)).reshape(()))
        one = self.constant("gelu_one", np.float32(1.0).reshape(()))
        half = self.constant("gelu_half", np.float32(0.5).reshape(()))
        error = self.op("Erf", self.op("Div", value, root, name=f"{name}/scaled"), name=f"{name}/erf")
        whole = self.op("Mul", value, self.op("Add", error, one, name=f"{name}/gate"), name=f"{name}/twice")
        return self.op("Mul", whole, half, name=name)

    def mlp(self, value: str, weights: dict[str, NDArray[Any]], name: str, activation: str = "quickgelu") -> str:
        """``c_fc`` - QuickGELU or GELU - ``c_proj``, the feed-forward network of CLIP's blocks."""
        hidden = self.linear(value, weights["c_fc.weight"], weights["c_fc.bias"], f"{name}/c_fc")
        hidden = (self.quick_gelu if activation == "quickgelu" else self.gelu)(hidden, f"{name}/gelu")
        return self.linear(hidden, weights["c_proj.weight"], weights["c_proj.bias"], f"{name}/c_proj")

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The checked model; ``metadata`` goes into its properties."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._constants.values()))
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = IR_VERSION
        model.producer_name = "vadclip-edge"
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model


def int8_rows(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight [out,in] as int8 and the scale of each row [out]; symmetric, the largest weight of a row is 64."""
    most = np.abs(weight).max(axis=1)
    scales = np.where(most > 0, most / INT8_MOST_WEIGHT, 1.0).astype(np.float32)
    rows = np.rint(weight / scales[:, None])
    return np.clip(rows, -INT8_MOST_WEIGHT, INT8_MOST_WEIGHT).astype(np.int8), scales


def save_beside(model: onnx.ModelProto, path: Path, other: Path) -> None:
    """Write ``model`` with those of its large constants that lie in the file ``other``, in the same folder, read there.

    ONNX calls this external data. Two forms of a graph then take the room of one. ``model`` is left without them.
    """
    with other.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for tensor in model.graph.initializer:
            at = data.find(tensor.raw_data) if len(tensor.raw_data) >= _LARGE else -1
            if at >= 0:
                set_external_data(tensor, other.name, at, len(tensor.raw_data))
                tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def subset(weights: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The entries below ``prefix``, without it."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def node_kinds(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of which kind a graph holds, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())
