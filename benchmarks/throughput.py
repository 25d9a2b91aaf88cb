"""Frames per second from file to scores: the reference way, a careful engineer's, vadrun, and vadrun with the gate.

On each video they take turns. The reference way is that of ``benchmarks.end_to_end``. The careful engineer decodes
with PyAV on all cores, lets swscale make the small picture of the sampled frames only, and runs the same graphs in
OpenVINO at its best precision, with stored text embeddings: one batch decoded, one batch encoded, one after the other.

Then decoding alone and encoding alone are measured in CPU seconds: what they allow on these cores is the most that any
order of the same work can reach, and the pipeline's efficiency is its share of that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.end_to_end import Collect, Reference, load_reference
from vadclip.images import normalise
from vadrun.backends.openvino import import_openvino
from vadrun.bundle import Bundle
from vadrun.calibration import Calibration
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import EventRule
from vadrun.gate import GateRule
from vadrun.pipeline import VideoResult, run_video
from vadrun.pyav import open_input
from vadrun.scoring import score_features, scores_from_logits
from vadrun.video import Video


@dataclass
class Pass:
    """One contender's run over a video."""

    seconds: float
    anomaly: NDArray[np.float32]  # [n]
    result: VideoResult | None = None


GATED = " --gate"  # how contenders with the gate end


class Careful:
    """PyAV and OpenVINO, one after the other."""

    def __init__(self, bundle: Bundle, batch: int) -> None:
        core = import_openvino().Core()
        # LATENCY is the fastest hint for one request at a time; the plugin takes bfloat16 where the CPU has it.
        self.encoder = core.compile_model(str(bundle.path("encoder")), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        exact = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.head = core.compile_model(str(bundle.path("head")), "CPU", exact)
        self.bundle, self.batch = bundle, batch
        self.text = bundle.text()

    def __call__(self, video: Path) -> Pass:
        """Score the video."""
        began = time.perf_counter()
        features: list[NDArray[np.float32]] = []
        batch: list[NDArray[np.uint8]] = []
        for image in self.sampled(video):
            batch.append(image)
            if len(batch) == self.batch:
                features.append(self.encode(batch))
                batch = []
        if batch:
            features.append(self.encode(batch))
        model = self.bundle.model
        logits, alignment = score_features(np.concatenate(features), model.positions, len(model.labels), self.scored)
        scores = scores_from_logits(logits, alignment, model.anomaly)
        return Pass(time.perf_counter() - began, scores.anomaly)

    def sampled(self, video: Path) -> Iterator[NDArray[np.uint8]]:
        """The middle frame of each whole snippet, small."""
        length, wanted = self.bundle.sampling.frames, self.bundle.preprocessing
        top, left = wanted.corner
        middle: NDArray[np.uint8] | None = None
        with open_input(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for count, frame in enumerate(container.decode(stream)):
                if count % length == length // 2:
                    width, height = wanted.resize
                    small = frame.reformat(width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
                    middle = small[top : top + wanted.size, left : left + wanted.size]
                    middle = middle[:, ::-1] if wanted.mirror else middle
                if count % length == length - 1 and middle is not None:
                    yield middle

    def encode(self, batch: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features [n,d]."""
        return np.array(self.encoder(np.stack(batch))[0])

    def scored(self, features: Any, lengths: Any) -> Any:
        """The head."""
        found = self.head({"features": features, "lengths": lengths, "text": self.text})
        return np.array(found["logits"]), np.array(found["alignment"])


def ours(engine: Engine, gate: GateRule | None) -> Callable[[Path], Pass]:
    """The pipeline that ``vadrun`` runs."""

    def score(video: Path) -> Pass:
        sink = Collect()
        began = time.perf_counter()
        result = run_video(engine, video, EventRule(), sink, gate=gate)
        return Pass(time.perf_counter() - began, np.array(sink.anomaly, np.float32), result)

    return score


def alone(engine: Engine, video: Path) -> tuple[float, float, float, float]:
    """Decoding alone and encoding alone of a video: CPU seconds and wall seconds of each."""
    bundle = engine.bundle
    cpu, wall = time.process_time(), time.perf_counter()
    with Video(video) as opened:
        images = [snippet.images for snippet in opened.snippets(bundle.sampling, bundle.preprocessing)]
    decode = time.process_time() - cpu, time.perf_counter() - wall
    stacked = np.concatenate(images)
    cpu, wall = time.process_time(), time.perf_counter()
    engine.encode(stacked)
    encode = time.process_time() - cpu, time.perf_counter() - wall
    return decode[0], encode[0], decode[1], encode[1]


def frames_of(video: Path) -> int:
    """How many frames decode."""
    with Video(video) as opened:
        return sum(1 for _ in opened.frames())


def gate_line(name: str, passes: dict[str, list[Pass]], seconds: dict[str, list[float]]) -> str:
    """What the gate spared and what it cost against the same pipeline without it."""
    without = name.removesuffix(GATED)
    plain, gated = passes[without][-1].result, passes[name][-1].result
    assert plain is not None and gated is not None and gated.gate is not None
    gate = gated.gate
    change = np.abs(passes[without][-1].anomaly - passes[name][-1].anomaly).max()
    return (
        f"{name}: {gate['share_gated']:.0%} of the snippets held or audited, {gate['encoded']} of {gate['snippets']} "
        f"encoded, {measure.spread(measure.ratios(seconds[without], seconds[name]), 2)} times {without}; score error "
        f"{gate['score_error']} (the largest really {change:.1e}), events missed {gate['events_missed']}; "
        f"{len(gated.events)} events, {len(plain.events)} without it"
    )


def measured(
    video: Path, contenders: dict[str, Callable[[Path], Pass]], engine: Engine, rounds: int
) -> dict[str, list[float]]:
    """Measure one video and print; times faster than each other contender within each round, by the pair's names."""
    others = measure.Others()
    passes: dict[str, list[Pass]] = {name: [] for name in contenders}
    parts: list[tuple[float, float, float, float]] = []
    for _ in range(rounds):
        for name, contender in contenders.items():
            passes[name].append(contender(video))
        parts.append(alone(engine, video))
    frames = frames_of(video)
    seconds = {name: [run.seconds for run in runs] for name, runs in passes.items()}
    base = next(iter(contenders))
    rows = [
        [
            name,
            measure.spread([frames / value for value in seconds[name]]),
            measure.spread(measure.ratios(seconds[base], seconds[name]), 2),
            measure.spread(measure.ratios(seconds["careful engineer"], seconds[name]), 2),
            f"{np.abs(runs[-1].anomaly - passes['vadrun'][-1].anomaly).max():.1e}",
        ]
        for name, runs in passes.items()
    ]
    print(f"\n{video.name}: {frames} frames, {len(passes['vadrun'][-1].anomaly)} snippets")
    header = ["", "frames per second", f"times {base}", "times careful engineer", "scores differ by"]
    print(table(header, rows, right=(1, 2, 3, 4)))
    cores = len(os.sched_getaffinity(0))
    decode, encode, *_ = (statistics.median(values) for values in zip(*parts, strict=True))
    allowed = [frames * cores / (one[0] + one[1]) for one in parts]
    reached = [frames / value for value in seconds["vadrun"]]
    print(
        f"decoding alone takes {decode:.2f} CPU seconds, encoding alone {encode:.2f}; {cores} cores allow "
        f"{measure.spread(allowed)} frames per second, vadrun reaches {measure.spread(reached)}: efficiency "
        f"{measure.spread([a / b for a, b in zip(reached, allowed, strict=True)], 2)}"
    )
    for name in contenders:
        if name.endswith(GATED):
            print(gate_line(name, passes, seconds))
    print(others)
    return seconds


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="what it was built from; without it no reference way"
    )
    p.add_argument("--int8", type=Path, metavar="DIR", help="an INT8 bundle of the same checkpoint, to take part, too")
    p.add_argument("--calibration", type=Path, metavar="FILE", help="take its gate instead of the default one")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="images per call on all sides (default 8)")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    a = p.parse_args()
    gate: GateRule | None = GateRule() if a.calibration is None else Calibration.read(a.calibration).gate
    if gate is None:
        raise UserError(f"{a.calibration} holds no gate: add one with vadcalibrate gate")
    print(measure.machine("torch", "opencv-python-headless", "openvino", "av"))
    print(f"the gate's threshold: {gate.threshold:g}")
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.load(a.bundle, "openvino", batch=a.batch))
        bundle = engine.bundle
        if bundle.sampling.pick != "middle" or bundle.sampling.by != "frames":
            raise UserError(f"{a.bundle} samples in another way than the others do here: build it with the defaults")
        print(f"vadrun: {engine.description}, batch {a.batch}")
        zeros = np.zeros((a.batch, bundle.model.image_size, bundle.model.image_size, 3), np.uint8)
        contenders: dict[str, Callable[[Path], Pass]] = {}
        if a.checkpoint is not None:
            reference = Reference(load_reference(bundle, a.checkpoint), bundle, a.batch, grab=False)

            def by_reference(video: Path) -> Pass:
                run = reference(video)
                return Pass(run.wall, run.anomaly)

            with torch.inference_mode():
                reference.model.encode_image(normalise(zeros))
            contenders["reference way"] = by_reference
        careful = Careful(bundle, a.batch)
        contenders["careful engineer"] = careful
        engines = {"vadrun": engine}
        if a.int8 is not None:
            engines["vadrun INT8"] = stack.enter_context(Engine.load(a.int8, batch=a.batch))
            print(f"vadrun INT8: {engines['vadrun INT8'].description}")
        careful.encode(list(zeros))  # all have computed something before the clock starts
        for name, its in engines.items():
            contenders[name] = ours(its, None)
            contenders[name + GATED] = ours(its, gate)
            its.encode(zeros)
        for video in a.videos:
            measured(video, contenders, engine, a.rounds)
    return 0


if __name__ == "__main__":
    measure.main("throughput", main)
