"""The encoder graph: CLIP's vision transformer from uint8 frames to features.

Against a traced graph: CLIP's normalisation and the class token are folded into constants, Q, K and V are one
product, the attention scale sits in the weights of Q (so before the first attention product, where fused
attention kernels want it), and the last block computes only what the class token needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadclip.config import Activation
from vadclip.images import CLIP_MEAN, CLIP_STD
from vadexport.graph import Graph, subset

Weights = dict[str, NDArray[Any]]


def encoder_graph(
    weights: Weights,
    heads: int,
    precision: str = "fp32",
    ranges: Mapping[str, float] | None = None,
    own_operator: bool = False,
    activation: Activation = "quickgelu",
) -> onnx.ModelProto:
    """Build the graph ``frames`` uint8 RGB [B,S,S,3] -> ``features`` float32 [B,d].

    ``weights`` are CLIP's ``visual.*`` entries without that prefix (OpenAI naming). ``precision`` is that of
    the transformer: ``fp32`` or ``fp16``; the patch embedding stays in float32 either way, because the
    folded normalisation has weights near the end of float16's range, and it is under 1% of the work. ``int8`` is
    float32 but for the linears that ``ranges`` names; ``own_operator`` is the form for onnxruntime alone (see
    :class:`vadexport.graph.Graph`). ``heads`` and ``activation`` are those of the CLIP that the weights are from: they
    do not tell them.
    """
    conv = weights["conv1.weight"]
    width, _, patch, _ = conv.shape
    tokens = weights["positional_embedding"].shape[0]
    grid = round((tokens - 1) ** 0.5)
    size = grid * patch
    embed = weights["proj"].shape[1]
    half = precision == "fp16"
    graph = Graph("encoder", np.float16 if half else np.float32, ranges, own_operator)

    frames = graph.input("frames", np.uint8, ["batch", size, size, 3])
    x = _patch_embedding(graph, frames, weights, grid)
    if half:
        x = graph.op("Cast", x, name="embedding/half", to=onnx.TensorProto.FLOAT16)
    x = graph.layer_norm(x, weights["ln_pre.weight"], weights["ln_pre.bias"], "ln_pre")

    count = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer.resblocks."))
    for index in range(count):
        block = subset(weights, f"transformer.resblocks.{index}.")
        last = index == count - 1
        x = _block(graph, x, block, heads, activation, tokens, width, f"blocks.{index}", class_only=last)

    x = graph.layer_norm(x, weights["ln_post.weight"], weights["ln_post.bias"], "ln_post")
    x = graph.linear(x, weights["proj"].T, None, "proj")
    # One class token: [B,1,d] -> [B,d]. The graph's output is float32 whatever it computes in.
    if half:
        x = graph.op("Cast", x, name="features/float", to=onnx.TensorProto.FLOAT)
    features = graph.reshape(x, [-1, embed], "features")
    graph.output(features, np.float32, ["batch", embed])
    return graph.model({"role": "encoder", "precision": precision})


def _patch_embedding(graph: Graph, frames: str, weights: Weights, grid: int) -> str:
    """uint8 [B,S,S,3] -> tokens float32 [B, 1 + grid^2, width], position and class embedding added."""
    conv = weights["conv1.weight"].astype(np.float64)
    width = conv.shape[0]
    # conv((u/255 - mean)/std) = conv'(u) + bias, exact because a patch convolution has no padding.
    mean, std = np.array(CLIP_MEAN), np.array(CLIP_STD)
    folded = conv / (255.0 * std)[None, :, None, None]
    bias = -(conv * (mean / std)[None, :, None, None]).sum((1, 2, 3))
    positions = weights["positional_embedding"].astype(np.float64).copy()
    positions[0] += weights["class_embedding"]
    positions[1:] += bias

    # TensorRT refuses to transpose uint8, so the cast comes first.
    x = graph.op("Cast", frames, name="frames/float", to=onnx.TensorProto.FLOAT)
    x = graph.op("Transpose", x, name="frames/nchw", perm=[0, 3, 1, 2])
    kernel = graph.exact("patches.weight", folded.astype(np.float32))
    x = graph.op("Conv", x, kernel, name="patches", strides=list(conv.shape[2:]))
    x = graph.reshape(x, [0, width, grid * grid], "patches/flat")
    x = graph.op("Transpose", x, name="patches/tokens", perm=[0, 2, 1])
    # A zero row makes room for the class token, whose embedding is in the constant that is added.
    pads = graph.exact("class_token.pads", np.array([0, 1, 0, 0, 0, 0], np.int64))
    x = graph.op("Pad", x, pads, name="class_token/room")
    constant = graph.exact("positions", positions.astype(np.float32)[None])
    return graph.op("Add", x, constant, name="embedding")


def _block(
    graph: Graph,
    x: str,
    w: Weights,
    heads: int,
    activation: Activation,
    tokens: int,
    width: int,
    name: str,
    class_only: bool,
) -> str:
    """One pre-LN transformer block; with ``class_only`` its output is the class token alone, [B,1,width]."""
    size = width // heads
    normed = graph.layer_norm(x, w["ln_1.weight"], w["ln_1.bias"], f"{name}/ln_1")
    weight = w["attn.in_proj_weight"].astype(np.float64).copy()
    bias = w["attn.in_proj_bias"].astype(np.float64).copy()
    weight[:width] *= size**-0.5
    bias[:width] *= size**-0.5

    attn = f"{name}/attn"
    pick = [graph.exact(f"index_{i}", np.asarray(i, np.int64)) for i in range(3)]
    if class_only:
        first = graph.exact("first_token", np.array([0], np.int64))
        x = graph.op("Gather", x, first, name=f"{name}/class_token", axis=1)
        source = graph.op("Gather", normed, first, name=f"{attn}/q/token", axis=1)
        q = graph.linear(source, weight[:width], bias[:width], f"{attn}/q")
        q = graph.reshape(q, [0, heads, 1, size], f"{attn}/q/heads")  # one token: no transpose needed
        both = graph.linear(normed, weight[width:], bias[width:], f"{attn}/kv")
        both = graph.reshape(both, [0, tokens, 2, heads, size], f"{attn}/kv/split")
        both = graph.op("Transpose", both, name=f"{attn}/kv/heads", perm=[2, 0, 3, 1, 4])
        k = graph.op("Gather", both, pick[0], name=f"{attn}/k", axis=0)
        v = graph.op("Gather", both, pick[1], name=f"{attn}/v", axis=0)
    else:
        qkv = graph.linear(normed, weight, bias, f"{attn}/qkv")
        qkv = graph.reshape(qkv, [0, tokens, 3, heads, size], f"{attn}/qkv/split")
        qkv = graph.op("Transpose", qkv, name=f"{attn}/qkv/heads", perm=[2, 0, 3, 1, 4])
        q, k, v = (graph.op("Gather", qkv, pick[i], name=f"{attn}/{part}", axis=0) for i, part in enumerate("qkv"))
    k = graph.op("Transpose", k, name=f"{attn}/k/transposed", perm=[0, 1, 3, 2])
    weights = graph.op("Softmax", graph.op("MatMul", q, k, name=f"{attn}/qk"), name=f"{attn}/softmax", axis=-1)
    y = graph.op("MatMul", weights, v, name=f"{attn}/mix")
    if not class_only:
        y = graph.op("Transpose", y, name=f"{attn}/mix/tokens", perm=[0, 2, 1, 3])
    y = graph.reshape(y, [0, 1 if class_only else tokens, width], f"{attn}/mix/joined")
    y = graph.linear(y, w["attn.out_proj.weight"], w["attn.out_proj.bias"], f"{attn}/out")
    x = graph.op("Add", x, y, name=f"{attn}/residual")

    normed = graph.layer_norm(x, w["ln_2.weight"], w["ln_2.bias"], f"{name}/ln_2")
    y = graph.mlp(normed, subset(w, "mlp."), f"{name}/mlp", activation)
    return graph.op("Add", x, y, name=f"{name}/residual")
