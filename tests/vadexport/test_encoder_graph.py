from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.golden import Golden
from vadclip.images import normalise
from vadexport.encoder_graph import encoder_graph
from vadexport.graph import node_kinds

Arrays = dict[str, np.ndarray]


def visual(model: Any) -> Arrays:
    prefix = "clipmodel.visual."
    return {k[len(prefix) :]: v.numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}


def run(graph: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"frames": frames})[0])


def vit_b_16_shaped(width: int = 24, heads: int = 12, layers: int = 12) -> Arrays:
    """ViT-B/16's layers, heads and tokens, but narrow: the nodes of its graph do not depend on the width."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * 0.1

    weights = {
        "conv1.weight": array(width, 3, 16, 16),
        "class_embedding": array(width),
        "positional_embedding": array(197, width),
        "ln_pre.weight": array(width),
        "ln_pre.bias": array(width),
        "ln_post.weight": array(width),
        "ln_post.bias": array(width),
        "proj": array(width, 16),
    }
    for index in range(layers):
        name = f"transformer.resblocks.{index}."
        weights |= {
            f"{name}ln_1.weight": array(width),
            f"{name}ln_1.bias": array(width),
            f"{name}ln_2.weight": array(width),
            f"{name}ln_2.bias": array(width),
            f"{name}attn.in_proj_weight": array(3 * width, width),
            f"{name}attn.in_proj_bias": array(3 * width),
            f"{name}attn.out_proj.weight": array(width, width),
            f"{name}attn.out_proj.bias": array(width),
            f"{name}mlp.c_fc.weight": array(4 * width, width),
            f"{name}mlp.c_fc.bias": array(4 * width),
            f"{name}mlp.c_proj.weight": array(width, 4 * width),
            f"{name}mlp.c_proj.bias": array(width),
        }
    return weights


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_the_graph_gives_pytorchs_features(golden: Golden, precision: str, limit: float) -> None:
    model = golden.load()
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.encode_image(normalise(frames)).numpy()
    features = run(encoder_graph(visual(model), model.config.clip.vision_heads, precision), frames)
    assert features.dtype == np.float32
    assert np.abs(features - expected).max() < limit * np.abs(expected).max()


def test_several_heads(golden: Golden) -> None:
    from vadclip.untrained import SMALL, untrained

    model = untrained("ucf", SMALL, embed_dim=64)
    frames = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.encode_image(normalise(frames)).numpy()
    assert SMALL.vision_heads > 1
    np.testing.assert_allclose(run(encoder_graph(visual(model), 2), frames), expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_gelu_and_other_heads(precision: str, limit: float) -> None:
    """A CLIP of LAION's kind: the exact GELU, here with heads of 16; its weights tell neither."""
    from vadclip.untrained import SMALL, untrained

    config = replace(SMALL, activation="gelu", vision_heads=8)
    model = untrained("ucf", config, embed_dim=64)
    with torch.no_grad():
        for block in model.clipmodel.visual.transformer.resblocks:
            block.mlp.c_fc.weight.mul_(8)
    frames = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.encode_image(normalise(frames)).numpy()
    graph = encoder_graph(visual(model), 8, precision, activation="gelu")
    assert {"Erf"} <= set(node_kinds(graph)) and "Sigmoid" not in node_kinds(graph)
    assert np.abs(run(graph, frames) - expected).max() < limit * np.abs(expected).max()
    for other in (encoder_graph(visual(model), 8), encoder_graph(visual(model), 2, activation="gelu")):
        assert np.abs(run(other, frames) - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic_and_images_do_not_mix(batch: int) -> None:
    graph = encoder_graph(vit_b_16_shaped(layers=2), 12)
    frames = np.random.default_rng(2).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    together = run(graph, frames)
    alone = np.concatenate([run(graph, frame[None]) for frame in frames])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vit_b_16_is_as_clean_as_hand_made(precision: str) -> None:
    graph = encoder_graph(vit_b_16_shaped(), 12, precision)
    kinds = node_kinds(graph)
    assert len(graph.graph.node) <= 340
    assert kinds["LayerNormalization"] == 26  # native, two a block, one before and one after
    assert not set(kinds) & {"Shape", "Slice", "Unsqueeze", "Squeeze", "Expand", "ConstantOfShape", "Pow", "Sqrt"}
    assert graph.opset_import[0].version == 18
    assert {node.name for node in graph.graph.node} == {node.output[0] for node in graph.graph.node}


def test_attention_is_matmul_softmax_matmul_with_the_scale_before() -> None:
    graph = encoder_graph(vit_b_16_shaped(), 12)
    maker = {node.output[0]: node for node in graph.graph.node}
    softmaxes = [node for node in graph.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 12
    for softmax in softmaxes:
        assert maker[softmax.input[0]].op_type == "MatMul"
        (user,) = [node for node in graph.graph.node if softmax.output[0] in node.input]
        assert user.op_type == "MatMul"


def test_half_precision_is_in_the_types() -> None:
    graph = encoder_graph(vit_b_16_shaped(), 12, "fp16")
    floats = {
        constant.name: constant.data_type
        for constant in graph.graph.initializer
        if constant.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    # The patch embedding with the folded normalisation is the only float32 part.
    assert {name for name, kind in floats.items() if kind == onnx.TensorProto.FLOAT} == {"patches.weight", "positions"}
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert types["blocks.5/attn/softmax"] == onnx.TensorProto.FLOAT16
    assert types["blocks.5/mlp/gelu"] == onnx.TensorProto.FLOAT16
    assert graph.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_every_size_but_the_batch_is_static() -> None:
    graph = onnx.shape_inference.infer_shapes(encoder_graph(vit_b_16_shaped(), 12), data_prop=True)
    for value in graph.graph.value_info:
        for axis in value.type.tensor_type.shape.dim[1:]:
            if value.name.endswith(("/heads", "/split")):
                continue  # the batch is behind the three parts there
            assert axis.dim_value > 0, value.name


def test_weights_are_those_of_the_checkpoint() -> None:
    weights = vit_b_16_shaped()
    graph = encoder_graph(weights, 12)
    stored = {constant.name: numpy_helper.to_array(constant) for constant in graph.graph.initializer}
    name = "transformer.resblocks.3."
    np.testing.assert_array_equal(stored["blocks.3/mlp/c_fc.weight"], weights[f"{name}mlp.c_fc.weight"].T)
    scaled = weights[f"{name}attn.in_proj_weight"][:24] * (24 / 12) ** -0.5
    np.testing.assert_allclose(stored["blocks.3/attn/qkv.weight"][:, :24], scaled.T, rtol=1e-6)
