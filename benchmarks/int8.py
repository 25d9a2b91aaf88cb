"""INT8 encoders: how fast and small they are, and whether it matters which frames their ranges come from.

Speed: the encoders of a float32 and an INT8 bundle of the same checkpoint take turns, round by round, on every
backend; ratios are taken within a round. Frames: ranges from the first N frames of the videos and from N chosen ones,
each with the best of its methods and all linears in INT8, are compared on frames of the same videos that neither has
seen.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.encoder import Contender, engines, turns
from vadcalibrate.diverse import Chosen, choose_frames
from vadcalibrate.ranges import collect
from vadclip.checkpoint import load_checkpoint
from vadexport.encoder_graph import encoder_graph
from vadexport.int8 import run_graph
from vadexport.probe import Probe
from vadrun.bundle import Bundle
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.inputs import named_videos
from vadrun.selftest import cosines
from vadrun.video import Video

_UNSEEN = 64


def speed(bundles: list[Path], batch: int, rounds: int) -> str:
    """A table of ratios: INT8 against what else the same backend can do."""
    opened = [Bundle.open(path) for path in bundles]
    probe = Probe.load(opened[0].path("probe")).frames
    frames = np.ascontiguousarray(probe[np.arange(batch) % len(probe)])
    with ExitStack() as stack:
        found = engines(stack, bundles, frames, rounds, None)
        turns(found, rounds)
    small = {c.name.split()[0]: c for c in found if " int8," in c.name}
    rows = []
    for contender in found:
        own: Contender | None = small.get(contender.name.split()[0])
        ratio = "-" if own is None else measure.spread(measure.ratios(contender.seconds, own.seconds), 2)
        rows.append([contender.name, measure.spread([1000 * s / batch for s in contender.seconds]), ratio])
    sizes = [sum(file.bytes for file in bundle.files if file.role == "encoder") for bundle in opened]
    header = ["encoder", "ms per image", "int8 on the same backend is so many times as fast"]
    text = table(header, rows, right=(1, 2))
    return f"{text}\nencoder files: " + ", ".join(
        f"{bundle.root} {size / 1e6:.1f} MB ({size / max(sizes):.0%})"
        for bundle, size in zip(opened, sizes, strict=True)
    )


def first_frames(engine: Engine, videos: list[Path], count: int) -> NDArray[np.uint8]:
    """What a calibration without choice takes: frames from the beginning, one video after the other."""
    frames: list[NDArray[np.uint8]] = []
    for path in named_videos(videos):
        with Video(path) as video:
            for snippet in video.snippets(engine.bundle.sampling, engine.bundle.preprocessing):
                frames.append(snippet.images[0])
                if len(frames) == count:
                    return np.stack(frames)
    return np.stack(frames)


def unseen_frames(engine: Engine, videos: list[Path], seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames at random times of the videos that are none of ``seen``."""
    known = {frame.tobytes() for frame in seen}
    frames: list[NDArray[np.uint8]] = []
    for path in named_videos(videos):
        with Video(path) as video:
            frames += [
                snippet.images[0]
                for snippet in video.snippets(engine.bundle.sampling, engine.bundle.preprocessing)
                if snippet.images[0].tobytes() not in known
            ]
    order = np.random.default_rng(0).permutation(len(frames))[:_UNSEEN]
    return np.stack([frames[index] for index in order])


def choices(root: Path, checkpoint: Path, videos: list[Path], count: int) -> str:
    """A table: features' error by the frames that ranges come from, and by the method."""
    model = load_checkpoint(checkpoint, labels=Bundle.open(root).model.labels, window=Bundle.open(root).model.window)
    prefix = "clipmodel.visual."
    weights = {k.removeprefix(prefix): v.numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}
    heads = model.config.clip.vision_heads
    del model
    with Engine.load(root, "onnxruntime:cpu", precision="fp32") as engine:
        diverse = choose_frames(engine, videos, count)
        first = first_frames(engine, videos, len(diverse.frames))
        unseen = unseen_frames(engine, videos, np.concatenate([diverse.frames, first]))
        reference = engine.encode(unseen)
        bundle = engine.bundle
    rows = []
    for name, chosen in (
        ("chosen to differ", diverse),
        ("the first", Chosen(first, diverse.features, len(first), 1, 0.0)),
    ):
        ranges = collect(bundle, chosen)
        for method in ranges.methods:
            cosine = cosines(run_graph(encoder_graph(weights, heads, "int8", ranges.of(method)), unseen), reference)
            rows.append([name, method, f"{1 - cosine.mean():.2e}", f"{cosine.min():.5f}", f"{np.median(cosine):.5f}"])
    header = ["frames", "ranges by", "mean of 1 - cosine", "cosine min", "median"]
    return (
        table(header, rows, right=(2, 3, 4))
        + f"\n{len(diverse.frames)} frames for ranges, a quarter of them held out; measured on {len(unseen)} others, "
        "all linears in INT8"
    )


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="float32")
    p.add_argument("--int8", type=Path, metavar="DIR", help="INT8, for speed and size")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="of both, for the choice of frames")
    p.add_argument("--videos", type=Path, nargs="+", default=[], metavar="PATH", help="for the choice of frames")
    p.add_argument("--frames", type=int, default=64, metavar="N", help="that ranges come from (default 64)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="images per call (default 8, as vadrun)")
    p.add_argument("--rounds", type=int, default=10, metavar="N", help="default 10")
    a = p.parse_args()
    print(measure.machine("onnxruntime", "openvino", "numpy"))
    others = measure.Others()
    if a.int8 is not None:
        print(speed([a.bundle, a.int8], a.batch, a.rounds))
    if a.videos:
        print(choices(a.bundle, a.checkpoint, a.videos, a.frames))
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("int8", main)
