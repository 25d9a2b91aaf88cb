"""The head graph: LGT-Adapter, C-branch and A-branch over one chunk of snippets.

``features`` float32 [B,T,d], ``lengths`` int64 [B] and ``text`` float32 [m,d] -> ``logits`` [B,T] and
``alignment`` [B,T,m]. Everything is float32: the head is small, and the threshold in H_sim turns rounding
into jumps. The numerics are those of ``vadclip.model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.graph import Graph, subset

Weights = dict[str, NDArray[Any]]

# Finite, so that float16 and fused softmax kernels are safe; e^-10000 is 0 in float32 like e^-inf.
MASKED = -1e4


@dataclass(frozen=True)
class HeadSizes:
    """What the weights alone do not tell about the head."""

    heads: int
    window: int
    mask_padding: bool
    temperature: float
    similarity_threshold: float = 0.7


def head_graph(weights: Weights, sizes: HeadSizes) -> onnx.ModelProto:
    """Build the head from the model's state dict (authors' key names, CLIP's entries ignored)."""
    positions, width = weights["frame_position_embeddings.weight"].shape
    graph = Graph("head")
    features = graph.input("features", np.float32, ["batch", positions, width])
    lengths = graph.input("lengths", np.int64, ["batch"])
    text = graph.input("text", np.float32, ["classes", width])

    mask = _PaddingMask(graph, lengths, positions)
    position = graph.constant("position", weights["frame_position_embeddings.weight"][None])
    x = graph.op("Add", features, position, name="position/add")
    x = _local_module(graph, x, weights, sizes, mask)
    x = _global_module(graph, x, weights, sizes, mask)

    # C-branch: logits = classifier(X + FFN(X)), Eq. 4 before the sigmoid.
    y = graph.op("Add", x, graph.mlp(x, subset(weights, "mlp2."), "confidence/ffn"), name="confidence/sum")
    logit = graph.linear(y, weights["classifier.weight"], weights["classifier.bias"], "confidence/classifier")
    logits = graph.reshape(logit, [0, positions], "logits")

    alignment = _alignment_branch(graph, x, logit, text, weights, sizes, mask)
    graph.output(logits, np.float32, ["batch", positions])
    graph.output(alignment, np.float32, ["batch", positions, "classes"])
    return graph.model({"role": "head", "precision": "fp32"})


class _PaddingMask:
    """Which of the T positions hold a snippet, in the shapes that the head needs."""

    def __init__(self, graph: Graph, lengths: str, positions: int) -> None:
        index = graph.exact("index", np.arange(positions, dtype=np.int64)[None])
        axis = graph.exact("axis_1", np.array([1], np.int64))
        column = graph.op("Unsqueeze", lengths, axis, name="lengths/column")
        self.graph = graph
        self.valid = graph.op("Less", index, column, name="valid")  # [B,T]
        self.as_column = graph.op("Unsqueeze", self.valid, axis, name="valid/column")  # [B,1,T]
        number = graph.op("Cast", self.valid, name="valid/float", to=onnx.TensorProto.FLOAT)
        self.as_rows = graph.reshape(number, [0, positions, 1], "valid/rows")  # [B,T,1], 1 or 0
        self.fill = graph.constant("masked", np.array(MASKED, np.float32))
        self.zero = graph.constant("zero", np.array(0.0, np.float32))


def _local_module(graph: Graph, x: str, weights: Weights, sizes: HeadSizes, mask: _PaddingMask) -> str:
    """Pre-LN transformer whose attention stays within disjoint windows of the fixed T positions."""
    positions, width = weights["frame_position_embeddings.weight"].shape
    window = np.arange(positions) // sizes.window
    # The last window takes the remainder.
    window = np.minimum(window, max(positions // sizes.window - 1, 0))
    outside = np.where(window[:, None] == window[None, :], 0.0, MASKED).astype(np.float32)
    bias = graph.constant("local/windows", outside[None, None])
    if sizes.mask_padding:
        padding = graph.op("Where", mask.as_column, mask.zero, mask.fill, name="local/padding")
        padding = graph.reshape(padding, [0, 1, 1, positions], "local/padding/keys")
        # Adding two fills would still be finite; the softmax sees at most -20000.
        bias = graph.op("Add", bias, padding, name="local/mask")

    heads, size = sizes.heads, width // sizes.heads
    count = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("temporal.resblocks."))
    for layer in range(count):
        w = subset(weights, f"temporal.resblocks.{layer}.")
        name = f"local.{layer}"
        normed = graph.layer_norm(x, w["ln_1.weight"], w["ln_1.bias"], f"{name}/ln_1")
        parts = []
        for index, part in enumerate("qkv"):
            rows = slice(index * width, (index + 1) * width)
            scale = size**-0.5 if part == "q" else 1.0
            y = graph.linear(
                normed,
                w["attn.in_proj_weight"][rows] * scale,
                w["attn.in_proj_bias"][rows] * scale,
                f"{name}/attn/{part}",
            )
            y = graph.reshape(y, [0, positions, heads, size], f"{name}/attn/{part}/split")
            perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            parts.append(graph.op("Transpose", y, name=f"{name}/attn/{part}/heads", perm=perm))
        q, k, v = parts
        scores = graph.op("Add", graph.op("MatMul", q, k, name=f"{name}/attn/qk"), bias, name=f"{name}/attn/masked")
        y = graph.op("Softmax", scores, name=f"{name}/attn/softmax", axis=-1)
        y = graph.op("MatMul", y, v, name=f"{name}/attn/mix")
        y = graph.op("Transpose", y, name=f"{name}/attn/mix/tokens", perm=[0, 2, 1, 3])
        y = graph.reshape(y, [0, positions, width], f"{name}/attn/mix/joined")
        y = graph.linear(y, w["attn.out_proj.weight"], w["attn.out_proj.bias"], f"{name}/attn/out")
        x = graph.op("Add", x, y, name=f"{name}/attn/residual")
        normed = graph.layer_norm(x, w["ln_2.weight"], w["ln_2.bias"], f"{name}/ln_2")
        x = graph.op("Add", x, graph.mlp(normed, subset(w, "mlp."), f"{name}/mlp"), name=f"{name}/residual")
    return x


def _global_module(graph: Graph, x: str, weights: Weights, sizes: HeadSizes, mask: _PaddingMask) -> str:
    """Two graph convolutions on H_sim and two on H_dis, joined by one linear layer (Eq. 1)."""
    positions = weights["frame_position_embeddings.weight"].shape[0]
    if sizes.mask_padding:
        # The residual convolutions reach beyond the end; there they shall meet zeros.
        x = graph.op("Mul", x, mask.as_rows, name="global/masked")
    similarity = _similarity(graph, x, sizes, mask)
    index = np.arange(positions, dtype=np.float32)
    # Eq. 3 as released: exp(-|i-j| / e), not normalised.
    decay = np.exp(-np.abs(index[:, None] - index[None, :]) / np.exp(np.float32(1.0)))
    distance = graph.constant("distance", decay.astype(np.float32)[None])
    if sizes.mask_padding:
        distance = graph.op("Where", mask.as_column, distance, mask.zero, name="distance/masked")

    channels_first = graph.op("Transpose", x, name="global/channels_first", perm=[0, 2, 1])
    branches = []
    for first, second, adjacency in (("gc1", "gc2", similarity), ("gc3", "gc4", distance)):
        support = graph.linear(x, weights[f"{first}.weight"].T, None, f"{first}/support")
        mixed = graph.op("MatMul", adjacency, support, name=f"{first}/mix")
        residual = graph.op(
            "Conv",
            channels_first,
            graph.constant(f"{first}/residual.weight", weights[f"{first}.residual.weight"]),
            graph.constant(f"{first}/residual.bias", weights[f"{first}.residual.bias"]),
            name=f"{first}/residual",
            pads=[2, 2],
        )
        residual = graph.op("Transpose", residual, name=f"{first}/residual/rows", perm=[0, 2, 1])
        y = graph.quick_gelu(graph.op("Add", mixed, residual, name=f"{first}/sum"), first)
        support = graph.linear(y, weights[f"{second}.weight"].T, None, f"{second}/support")
        mixed = graph.op("MatMul", adjacency, support, name=f"{second}/mix")
        branches.append(graph.quick_gelu(graph.op("Add", mixed, y, name=f"{second}/sum"), second))
    joined = graph.op("Concat", *branches, name="global/joined", axis=-1)
    return graph.linear(joined, weights["linear.weight"], weights["linear.bias"], "global/linear")


def _similarity(graph: Graph, x: str, sizes: HeadSizes, mask: _PaddingMask) -> str:
    """H_sim (Eq. 2): thresholded cosine, softmax over the valid columns, rows beyond the length are 0."""
    last = graph.exact("axis_last", np.array([-1], np.int64))
    transposed = graph.op("Transpose", x, name="similarity/transposed", perm=[0, 2, 1])
    product = graph.op("MatMul", x, transposed, name="similarity/product")
    norms = graph.op("ReduceL2", x, last, name="similarity/norms", keepdims=1)
    norms_row = graph.op("Transpose", norms, name="similarity/norms/row", perm=[0, 2, 1])
    scale = graph.op("MatMul", norms, norms_row, name="similarity/scale")
    if sizes.mask_padding:
        # Beyond the length x is 0. A NaN there would be dropped below by ONNX's rules, but not by every backend's
        # fused kernels; products of real norms are far above this.
        scale = graph.op("Max", scale, graph.constant("tiny", np.array(1e-30, np.float32)), name="similarity/safe")
    cosine = graph.op("Div", product, scale, name="similarity/cosine")
    threshold = graph.constant("similarity/threshold", np.array(sizes.similarity_threshold, np.float32))
    strong = graph.op("Greater", cosine, threshold, name="similarity/strong")
    # A weak edge becomes 0, not absent: it still weighs e^0 in the softmax, as released.
    edges = graph.op("Where", strong, cosine, mask.zero, name="similarity/edges")
    edges = graph.op("Where", mask.as_column, edges, mask.fill, name="similarity/valid")
    edges = graph.op("Softmax", edges, name="similarity/softmax", axis=-1)
    return graph.op("Mul", edges, mask.as_rows, name="similarity")


def _alignment_branch(
    graph: Graph, x: str, logit: str, text: str, weights: Weights, sizes: HeadSizes, mask: _PaddingMask
) -> str:
    """Visual prompt (Eq. 6, 7 as released) and alignment map: cosine(X, T) / temperature."""
    if sizes.mask_padding:
        logit = graph.op("Mul", logit, mask.as_rows, name="prompt/masked")
    attention = graph.op("Transpose", logit, name="prompt/attention", perm=[0, 2, 1])
    prompt = _unit(graph, graph.op("MatMul", attention, x, name="prompt/sum"), "prompt")  # V [B,1,d]
    u = graph.op("Add", text, prompt, name="text/prompted")  # [m,d] + [B,1,d] -> [B,m,d]
    t = graph.op("Add", u, graph.mlp(u, subset(weights, "mlp1."), "text/ffn"), name="text/refined")
    t = graph.op("Transpose", _unit(graph, t, "text/unit"), name="text/columns", perm=[0, 2, 1])
    cosine = graph.op("MatMul", _unit(graph, x, "video/unit"), t, name="alignment/cosine")
    temperature = graph.constant("temperature", np.array(sizes.temperature, np.float32))
    return graph.op("Div", cosine, temperature, name="alignment")


def _unit(graph: Graph, value: str, name: str) -> str:
    """``value`` divided by its L2 norm over the last axis."""
    last = graph.exact("axis_last", np.array([-1], np.int64))
    norm = graph.op("ReduceL2", value, last, name=f"{name}/norm", keepdims=1)
    return graph.op("Div", value, norm, name=name)
