"""The INT8 encoder: explicit Q/DQ around the linears, ranges by the method that changes features the least, and the
linears that would change them too much kept in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadcalibrate.ranges import Ranges, linear_inputs
from vadclip.config import Activation
from vadexport.encoder_graph import Weights, encoder_graph
from vadexport.graph import INT8_MOST, int8_rows
from vadrun.errors import UserError
from vadrun.selftest import cosines

TARGET = 0.995
"""The smallest cosine of a feature at which no further linear is taken out of INT8; the certificate allows less."""
_SHARE = 0.5  # of the linears that may stay in float32
_BATCH = 4
_LOCAL = 8  # frames whose activations the linears are ranked by

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Int8Record:
    """How an INT8 encoder came about.

    Attributes:
        method: that the ranges are by.
        methods: every method -> mean of ``1 - cosine`` of the features with all linears in INT8.
        kept: linears that stayed in float32.
        cosine: smallest and median cosine of the features of the check frames.
        frames: how many frames those are.
        ranges: where the ranges come from.
    """

    method: str
    methods: Mapping[str, float]
    kept: tuple[str, ...]
    cosine: tuple[float, float]
    frames: int
    ranges: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        value = asdict(self)
        value["methods"] = {name: float(f"{error:.3e}") for name, error in self.methods.items()}
        value["cosine"] = [round(v, 6) for v in self.cosine]
        return value


def int8_graph(
    weights: Weights,
    heads: int,
    ranges: Ranges,
    say: Callable[[str], None] = lambda text: None,
    activation: Activation = "quickgelu",
) -> tuple[onnx.ModelProto, onnx.ModelProto, Int8Record]:
    """Build the INT8 encoder of a checkpoint: for every library (Q/DQ), and the same for onnxruntime on a CPU.

    Args:
        weights, heads, activation: as :func:`vadexport.encoder_graph.encoder_graph` takes them.
        ranges: of the same checkpoint.
        say: told at the beginning of each step.

    Raises:
        UserError: the ranges are of another model, or INT8 changes its features too much even with half of the linears
            in float32.
    """
    encoder = partial(encoder_graph, weights, heads, activation=activation)
    full = encoder()
    inputs = linear_inputs(full)
    if set(inputs) != set(ranges.linears):
        raise UserError("the ranges are of an encoder with other linears: make them again with vadcalibrate ranges")
    reference, activations = _run_watched(full, inputs, ranges.frames)

    def graph(method: str, kept: Sequence[str]) -> onnx.ModelProto:
        found = {name: value for name, value in ranges.of(method).items() if name not in kept}
        return encoder("int8", found)

    def measured(model: onnx.ModelProto) -> NDArray[np.float64]:
        return cosines(run_graph(model, ranges.frames), reference)

    methods = {}
    for method in ranges.methods:
        say(f"ranges by {method}")
        methods[method] = float((1 - measured(graph(method, ()))).mean())
    method = min(methods, key=lambda name: methods[name])
    ranked = _ranked(full, inputs, activations, ranges.of(method))
    # The fewest, most sensitive linears whose float32 is enough: by bisection, each step a measurement.
    most = int(len(ranked) * _SHARE)
    low, high = 0, most
    found = {0: measured(graph(method, ()))}
    if found[0].min() < TARGET:
        found[most] = measured(graph(method, ranked[:most]))
        if found[most].min() < TARGET:
            raise UserError(
                f"INT8 changes the features too much (cosine {found[most].min():.4f} with the {most} most sensitive of "
                f"{len(ranked)} linears in float32): give vadcalibrate ranges more footage, or build --precision fp16"
            )
        while high - low > 1:
            middle = (low + high) // 2
            say(f"keeping {middle} of {len(ranked)} linears in float32")
            found[middle] = measured(graph(method, ranked[:middle]))
            low, high = (low, middle) if found[middle].min() >= TARGET else (middle, high)
    else:
        high = 0
    kept = tuple(ranked[:high])
    cosine = (float(found[high].min()), float(np.median(found[high])))
    record = Int8Record(method, methods, kept, cosine, len(ranges.frames), dict(ranges.origin))
    own = encoder("int8", {n: v for n, v in ranges.of(method).items() if n not in kept}, own_operator=True)
    return graph(method, kept), own, record


def _ranked(
    full: onnx.ModelProto, inputs: Mapping[str, str], activations: Mapping[str, Floats], ranges: Mapping[str, float]
) -> list[str]:
    """Linears by the relative error of their own product in INT8, the largest first."""
    constants = {tensor.name: tensor for tensor in full.graph.initializer}
    errors = {}
    for name, tensor in inputs.items():
        x = activations[tensor].reshape(-1, activations[tensor].shape[-1])
        weight = onnx.numpy_helper.to_array(constants[f"{name}.weight"]).T
        scale = ranges[name] / INT8_MOST
        small = np.clip(np.rint(x / scale), -INT8_MOST - 1, INT8_MOST) * np.float32(scale)
        rows, scales = int8_rows(weight)
        exact = x @ weight.T
        errors[name] = float(np.linalg.norm(small @ (rows * scales[:, None]).T - exact) / np.linalg.norm(exact))
    return sorted(errors, key=lambda name: -errors[name])


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def run_graph(model: onnx.ModelProto, frames: NDArray[np.uint8]) -> Floats:
    """Features [n,d] of frames uint8 RGB [n,S,S,3], by onnxruntime on the CPU."""
    session = _session(model)
    parts = [session.run(["features"], {"frames": frames[i : i + _BATCH]})[0] for i in range(0, len(frames), _BATCH)]
    return np.concatenate(parts)


def _run_watched(
    model: onnx.ModelProto, inputs: Mapping[str, str], frames: NDArray[np.uint8]
) -> tuple[Floats, dict[str, Floats]]:
    """Features of all frames, and what goes into the linears for some of them."""
    names = list(dict.fromkeys(inputs.values()))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = _session(watched).run(names, {"frames": frames[:_LOCAL]})
    return run_graph(model, frames), dict(zip(names, values, strict=True))
