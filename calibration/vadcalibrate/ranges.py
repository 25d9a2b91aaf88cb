"""Activation ranges for INT8: the largest absolute input of each linear of the encoder that shall be represented.

Histograms of the inputs are collected while the float32 graph runs on chosen frames; the ranges of several methods are
read from them (onnxruntime's calibrators), and the build takes the one that changes features the least.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadcalibrate.diverse import Chosen
from vadrun.arrays import Array, load_npz
from vadrun.bundle import Bundle
from vadrun.errors import UserError
from vadrun.files import write_bytes
from vadrun.schema import SHA256, Anything, List, Record, Text, Where, Whole, parse_json, validate

PERCENTILES = (99.9, 99.99, 99.999, 100.0)
KIND = "vadclip-edge ranges 1"
_SUFFIX = "/matmul"
_FLOAT = ("proj",)  # one row for each frame: nothing to gain
_BINS = 2048
_ENTROPY_BINS = 512  # of both signs; more take minutes and change nothing
_BATCH = 4
_CHECKED = 4  # every fourth frame is kept to choose the method with

_MOST_BYTES = 512 << 20
_ARRAYS = {"facts": Array("U", ()), "frames": Array("u", ("k", "size", "size", 3), itemsize=1, least=1)}
_FACTS = Record(
    {
        "kind": Text(among=(KIND,)),
        "checkpoint": SHA256,
        "linears": List(Text(1, 1_000), 1, 100_000, unique=True),
        "origin": Record({"frames": Whole()}, others=Anything()),
    }
)

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Ranges:
    """What a file of ranges holds.

    Attributes:
        checkpoint: sha256 of the checkpoint whose encoder it was.
        linears: names of the linears.
        methods: name of the method -> the range of each linear.
        frames: uint8 RGB [k,S,S,3], frames that no range was taken from, to choose by.
        origin: what it was made from, as plain data.
    """

    checkpoint: str
    linears: tuple[str, ...]
    methods: Mapping[str, tuple[float, ...]]
    frames: Images
    origin: Mapping[str, Any]

    def of(self, method: str) -> dict[str, float]:
        """Linear -> range by one method."""
        return dict(zip(self.linears, self.methods[method], strict=True))

    def save(self, path: Path) -> None:
        """Write ``.npz``."""
        facts = {
            "kind": KIND,
            "checkpoint": self.checkpoint,
            "linears": list(self.linears),
            "origin": dict(self.origin),
        }
        values = {f"method {name}": np.array(found, np.float64) for name, found in self.methods.items()}
        stream = io.BytesIO()
        np.savez_compressed(stream, facts=np.array(json.dumps(facts)), frames=self.frames, **values)  # type: ignore[arg-type]
        write_bytes(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is something else.
        """
        where = Where(path, "make it with vadcalibrate ranges")
        data = load_npz(path, _ARRAYS, where.advice, others=Array("f", ("linears",)), most=_MOST_BYTES)
        facts = validate(parse_json(str(data["facts"]), where), _FACTS, where)
        prefix = "method "
        methods = {
            name.removeprefix(prefix): tuple(found.tolist()) for name, found in data.items() if name.startswith(prefix)
        }
        if not methods or any(len(found) != len(facts["linears"]) for found in methods.values()):
            raise where.error("its ranges are not those of its linears")
        if not all(value > 0 for found in methods.values() for value in found):
            raise where.error("a range in it is not above 0")
        return cls(facts["checkpoint"], tuple(facts["linears"]), methods, data["frames"], facts["origin"])


def collect(bundle: Bundle, chosen: Chosen, progress: Callable[[int, int], None] = lambda done, total: None) -> Ranges:
    """Run the float32 encoder on the chosen frames and read ranges from what its linears get.

    Args:
        bundle: it has to hold the float32 encoder.
        chosen: frames; every fourth is kept out, to choose the method with.
        progress: called with the frames that are done and all of them.

    Raises:
        UserError: the bundle has no float32 encoder, or a range is 0 or not finite.
    """
    if "fp32" not in bundle.encoder_precisions:
        raise UserError(
            f"{bundle.root} holds no float32 encoder to take ranges from: build one of the same checkpoint with "
            "--precision fp32"
        )
    model = onnx.load(bundle.path("encoder", "fp32"))
    inputs = linear_inputs(model)
    held = np.arange(len(chosen.frames)) % _CHECKED == _CHECKED - 1
    methods = _ranges_of(model, inputs, chosen.frames[~held], progress)
    wrong = [name for name, found in zip(inputs, methods["percentile 100"], strict=True) if not 0 < found < np.inf]
    if wrong:
        raise UserError(
            f"the input of {wrong[0]} is 0 or not finite in every frame ({len(wrong)} of {len(inputs)} linears are): "
            "verify the bundle, and give other footage"
        )
    origin = {
        "bundle": bundle.sha256,
        "preprocessing": bundle.preprocessing.to_manifest(),
        "videos": chosen.videos,
        "candidates": chosen.candidates,
        "frames": int((~held).sum()),
        "reach": round(chosen.reach, 5),
    }
    return Ranges(bundle.manifest["checkpoint"]["sha256"], tuple(inputs), methods, chosen.frames[held], origin)


def linear_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each linear that may be quantised -> the tensor that goes into it, by the names of our graphs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        name: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.name.endswith(_SUFFIX)
        and node.input[1] in constants
        and (name := node.name.removesuffix(_SUFFIX)) not in _FLOAT
    }


def _ranges_of(
    model: onnx.ModelProto, inputs: Mapping[str, str], frames: Images, progress: Callable[[int, int], None]
) -> dict[str, tuple[float, ...]]:
    import onnxruntime
    from onnxruntime.quantization.calibrate import HistogramCollector

    tensors = list(dict.fromkeys(inputs.values()))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    collector = HistogramCollector("percentile", True, _BINS, 128, 100.0, "same")
    silent = contextlib.redirect_stdout(io.StringIO())  # the collector prints what it does
    for start in range(0, len(frames), _BATCH):
        part = frames[start : start + _BATCH]
        values = session.run(tensors, {"frames": part})
        with silent:
            collector.collect(dict(zip(tensors, values, strict=True)))
        progress(min(start + _BATCH, len(frames)), len(frames))
    methods = {}
    for percentile in PERCENTILES:
        collector.percentile = percentile
        if percentile == 100.0:
            found = {name: max(-float(h[2]), float(h[3])) for name, h in collector.histogram_dict.items()}
        else:
            with silent:
                found = {
                    name: max(-float(low), float(high))
                    for name, (low, high, *_) in collector.compute_percentile().items()
                }
        methods[f"percentile {percentile:g}"] = tuple(found[inputs[name]] for name in inputs)
    entropy = {name: _entropy_range(collector, histogram) for name, histogram in collector.histogram_dict.items()}
    methods["entropy"] = tuple(entropy[inputs[name]] for name in inputs)
    return methods


def _entropy_range(collector: Any, histogram: tuple[NDArray[np.int64], NDArray[np.float32], Any, Any]) -> float:
    """The range by relative entropy, of a histogram of absolute values."""
    counts, edges = histogram[0], histogram[1]
    half = _ENTROPY_BINS // 2
    middles = (edges[:-1] + edges[1:]) / 2
    top = float(edges[-1])
    if top <= 0:
        return 0.0
    coarse, _ = np.histogram(middles, half, (0.0, top), weights=counts)
    both = np.concatenate([coarse[::-1], coarse]).astype(np.int64)
    signed = np.linspace(-top, top, 2 * half + 1).astype(np.float32)
    low, high = collector.get_entropy_threshold((both, signed, signed[0], signed[-1]), 128)
    return max(-float(low), float(high))
