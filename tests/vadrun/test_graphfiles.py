"""Which files an ONNX graph names: held against what the onnx package writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

from vadrun import graphfiles
from vadrun.graphfiles import GraphError, outside_files


def constant(name: str, location: str | None = None) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.arange(2000, dtype=np.float32), name)
    if location is not None:
        set_external_data(tensor, location, 0, 8000)
        tensor.ClearField("raw_data")
    return tensor


def graph(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    return helper.make_graph(nodes, "graph", [value], [value], tensors)


def test_every_place_in_which_a_graph_can_name_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    inner = graph([], [constant("e", "branch.bin")])
    node = helper.make_node("Constant", [], ["c"], value=constant("c", "../node.bin"))
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph([node], []))
    sparse = helper.make_sparse_tensor(constant("s", "sparse.bin"), constant("i"), [4])
    listed = helper.make_node("Any", [], ["z"], domain="own")
    listed.attribute.append(helper.make_attribute("many", [constant("m", "/etc/passwd")]))
    model = helper.make_model(graph([branch, listed], [constant("a"), constant("b", "weights.bin")]))
    model.graph.sparse_initializer.append(sparse)
    model.functions.append(
        helper.make_function(
            "own", "f", [], ["o"], [helper.make_node("Constant", [], ["o"], value=constant("f", "function.bin"))], []
        )
    )
    model.training_info.add().algorithm.CopyFrom(graph([], [constant("t", "training.bin")]))
    path.write_bytes(model.SerializeToString())
    named = {"branch.bin", "../node.bin", "sparse.bin", "/etc/passwd", "weights.bin", "function.bin", "training.bin"}
    assert outside_files(path) == named


def test_a_whole_graph_names_none(bundles: dict[str, Path]) -> None:
    for name in ("encoder.fp32.onnx", "head.onnx"):
        assert outside_files(bundles["ucf"] / name) == set()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"\x3a\xff\x01abc", "cut off"),
        (b"\x3a", "cut off"),
        (b"\x09abc", "cut off"),
        (b"\xff" * 20, "too long"),
        (b"\x3b\x3c", "no known kind"),
    ],
)
def test_broken_graphs_are_refused(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(raw)
    with pytest.raises(GraphError, match=said):
        outside_files(path)


def test_neither_depth_nor_number_is_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    model = graph([], [])
    for _ in range(30):  # a node, an attribute and a graph each
        model = graph([helper.make_node("If", ["x"], ["y"], then_branch=model)], [])
    path.write_bytes(helper.make_model(model).SerializeToString())
    with pytest.raises(GraphError, match="nests too deep"):
        outside_files(path)
    monkeypatch.setattr(graphfiles, "_MOST_FIELDS", 10)
    path.write_bytes(b"\x0a\x00" * 11)
    with pytest.raises(GraphError, match="too many parts"):
        outside_files(path)
