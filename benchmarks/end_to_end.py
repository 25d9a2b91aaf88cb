"""Frames per second from the file to the scores: vadrun against the reference way, in turns.

The reference way is OpenCV and PyTorch as research code has them: every frame is decoded to an image, one of
each 16 is resized with Pillow, cropped and normalised, open_clip encodes it in float32, and VadCLIP scores chunks
of 256 snippets, encoding the class prompts again for each. It uses the same batch size, all cores and no
gradients. Both sides' scores are compared; their frames differ a little, because OpenCV converts and Pillow scales
in another way, so the reference's own frames are put through the bundle as well.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import measure
from vadclip.checkpoint import load_checkpoint
from vadclip.images import normalise
from vadclip.model import VadCLIP
from vadrun.bundle import Bundle
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventRule
from vadrun.pipeline import run_video
from vadrun.scoring import scores_from_logits

Floats = NDArray[np.float32]


@dataclass
class Pass:
    """One side's run over the whole video: seconds and scores."""

    wall: float
    decode: float
    encode: float
    score: float
    anomaly: Floats  # [n]
    classes: Floats  # [n,m]


class Collect:
    """A sink that keeps the scores."""

    def __init__(self) -> None:
        self.anomaly: list[float] = []
        self.classes: list[NDArray[Any]] = []

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """Keep one snippet's scores."""
        self.anomaly.append(anomaly)
        self.classes.append(np.array(classes))

    def event(self, event: Event) -> None:
        """Events are not compared."""


def ours(engine: Engine, video: Path) -> Pass:
    """The pipeline that ``vadrun`` runs."""
    sink = Collect()
    result = run_video(engine, video, EventRule(), sink)
    t = result.timings
    return Pass(t.wall, t.decode, t.encode, t.score, np.array(sink.anomaly, np.float32), np.array(sink.classes))


class Reference:
    """The reference way; ``frames`` holds what it encoded last, uint8 RGB [n,S,S,3], and ``count`` what it decoded."""

    def __init__(self, model: VadCLIP, bundle: Bundle, batch: int, grab: bool) -> None:
        self.model, self.bundle, self.batch, self.grab = model, bundle, batch, grab
        self.frames: list[NDArray[np.uint8]] = []
        self.count = 0

    @torch.inference_mode()
    def __call__(self, video: Path) -> Pass:
        """Score the video."""
        began = time.perf_counter()
        encode = 0.0
        features: list[torch.Tensor] = []
        self.frames = []
        images = self.sampled(video)
        while batch := list(islice(images, self.batch)):
            self.frames += batch
            started = time.perf_counter()
            features.append(self.model.encode_image(normalise(np.stack(batch))))
            encode += time.perf_counter() - started
        decoded = time.perf_counter()
        logits, alignment = self.score(torch.cat(features))
        ended = time.perf_counter()
        scores = scores_from_logits(logits, alignment, self.bundle.model.anomaly)
        decode = decoded - began - encode
        return Pass(ended - began, decode, encode, ended - decoded, scores.anomaly, scores.alignment)

    def sampled(self, video: Path) -> Iterator[NDArray[np.uint8]]:
        """The middle frame of each whole snippet, resized and cropped."""
        sampling, wanted = self.bundle.sampling, self.bundle.preprocessing
        top, left = wanted.corner
        capture = cv2.VideoCapture(str(video))
        if not capture.isOpened():
            raise UserError(f"{video} cannot be opened by OpenCV: name another video")
        self.count = 0
        middle: NDArray[np.uint8] | None = None
        while True:
            picked = self.count % sampling.frames == sampling.frames // 2
            # grab() decodes without converting the picture; the plain way is read() for every frame.
            if self.grab and not picked:
                there, frame = capture.grab(), None
            else:
                there, frame = capture.read()
            if not there:
                break
            if picked and frame is not None:
                image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                image = image.resize(wanted.resize, Image.Resampling.BILINEAR)
                middle = np.asarray(image)[top : top + wanted.size, left : left + wanted.size]
                if wanted.mirror:
                    middle = middle[:, ::-1]
            self.count += 1
            if self.count % sampling.frames == 0 and middle is not None:
                yield np.ascontiguousarray(middle)
        capture.release()

    def score(self, features: torch.Tensor) -> tuple[Floats, Floats]:
        """Logits [n] and alignment [n,m], chunk by chunk, the class prompts encoded for each."""
        config = self.model.config
        logits, alignment = [], []
        for start in range(0, len(features), config.positions):
            part = features[start : start + config.positions]
            padded = torch.nn.functional.pad(part, (0, 0, 0, config.positions - len(part)))
            text = self.model.encode_text(config.labels)
            a, b = self.model(padded[None], torch.tensor([len(part)]), text)
            logits.append(a[0, : len(part)])
            alignment.append(b[0, : len(part)])
        return torch.cat(logits).numpy(), torch.cat(alignment).numpy()


def load_reference(bundle: Bundle, checkpoint: Path) -> VadCLIP:
    """The checkpoint in PyTorch, in memory of its own, not pages of the file."""
    m = bundle.model
    model = load_checkpoint(checkpoint, labels=m.labels, window=m.window, heads=m.heads, mask_padding=m.mask_padding)
    return copy.deepcopy(model).eval()


def report(names: tuple[str, str], passes: tuple[list[Pass], list[Pass]], frames: int) -> str:
    """The table."""
    rows = []
    for name, runs in zip(names, passes, strict=True):
        parts = [statistics.median(getattr(run, part) for run in runs) for part in ("decode", "encode", "score")]
        speed = measure.spread([frames / run.wall for run in runs])
        rows.append([name, speed, *(f"{part:.2f}" for part in parts), measure.spread([r.wall for r in runs], 2)])
    header = ["", "frames per second", "decode s", "encode s", "score s", "wall s"]
    return table(header, rows, right=(1, 2, 3, 4, 5))


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    p.add_argument("video", type=Path, metavar="VIDEO", help="the file to score, such as 1080p H.264")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="what the bundle was built from")
    p.add_argument("--backend", default="auto", metavar="NAME", help="of vadrun (default auto)")
    p.add_argument("--precision", default="auto", metavar="P", help="of vadrun (default auto)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="images per call on both sides (default 8)")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    p.add_argument("--grab", action="store_true", help="let the reference skip converting frames that are not sampled")
    a = p.parse_args()
    print(measure.machine("torch", "open_clip_torch", "opencv-python-headless", "pillow", "openvino", "av"))
    others = measure.Others()

    began = time.perf_counter()
    engine = Engine.load(a.bundle, a.backend, precision=a.precision, batch=a.batch)
    ours_loads = time.perf_counter() - began
    bundle = engine.bundle
    if bundle.sampling.pick != "middle" or bundle.sampling.by != "frames":
        raise UserError(f"{a.bundle} samples in another way than the reference does here: build it with the defaults")
    began = time.perf_counter()
    reference = Reference(load_reference(bundle, a.checkpoint), bundle, a.batch, a.grab)
    reference_loads = time.perf_counter() - began
    with engine:
        zeros = np.zeros((a.batch, bundle.model.image_size, bundle.model.image_size, 3), np.uint8)
        engine.encode(zeros)  # both have computed something before the clock starts
        with torch.inference_mode():
            reference.model.encode_image(normalise(zeros))
        mine: list[Pass] = []
        theirs: list[Pass] = []
        for _ in range(a.rounds):
            mine.append(ours(engine, a.video))
            theirs.append(reference(a.video))
        same = engine.score(engine.encode(np.stack(reference.frames)))
    one, other = mine[-1], theirs[-1]
    if len(one.anomaly) != len(other.anomaly):
        raise UserError(f"{a.video} gives {len(one.anomaly)} snippets with vadrun, {len(other.anomaly)} with OpenCV")

    print(f"{a.video.name}: {reference.count} frames, {len(one.anomaly)} snippets; batch {a.batch}")
    print(f"vadrun: {engine.description}, {engine.why}; loading (not counted) {ours_loads:.1f} s")
    way = "grab() where not sampled" if a.grab else "read() for every frame"
    print(f"reference: OpenCV {way}, PyTorch eager fp32; loading (not counted) {reference_loads:.1f} s")
    print(report(("vadrun", "reference"), (mine, theirs), reference.count))
    faster = measure.ratios([run.wall for run in theirs], [run.wall for run in mine])
    print(f"vadrun is {measure.spread(faster, 2)} times as fast, within each round; its parts overlap in time")
    for name, anomaly, classes in (
        ("each side with its own frames", one.anomaly, one.classes),
        ("both with the reference's frames", same.anomaly, same.alignment),
    ):
        a_max, c_max = (float(np.abs(x - y).max()) for x, y in ((anomaly, other.anomaly), (classes, other.classes)))
        print(f"scores, {name}: anomaly differs by {a_max:.1e}, classes by {c_max:.1e}")
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("end_to_end", main)
