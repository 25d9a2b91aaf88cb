"""The probe: frames that a bundle carries, with what PyTorch says of them.

Every artifact is run on the probe before a build may succeed, and again on each device that will use it.
The default probe is drawn: frames with the structure of a scene (light, surfaces, moving things), because
noise gives features that no video gives. Users can probe with their own footage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadrun.bundle import ModelInfo
from vadrun.errors import UserError
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.selftest import load_probe
from vadrun.video import Video

DRAWN_FRAMES = 24
MOST_FRAMES = 64
TRACK_LENGTH = 300  # more than one chunk of 256, so that the cut is tested too
SNIPPET_SECONDS = 16 / 30  # only gives events of the probe a length


@dataclass(frozen=True)
class Probe:
    """Probe frames and the reference answers.

    Attributes:
        frames: uint8 RGB [n,S,S,3].
        features: float32 [n,d], PyTorch's features of ``frames``.
        logits, alignment: float32 [n] and [n,m], PyTorch's head on ``features`` as one video.
        track: float32 [t,d], a made feature track that is longer than a chunk, for the head alone.
        track_logits, track_alignment: float32 [t] and [t,m], PyTorch's head on ``track``.
        text: float32 [m,d], the class embeddings of these answers; a relabelled bundle may have others.
    """

    frames: NDArray[np.uint8]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    alignment: NDArray[np.float32]
    track: NDArray[np.float32]
    track_logits: NDArray[np.float32]
    track_alignment: NDArray[np.float32]
    text: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write the probe as a compressed .npz."""
        np.savez_compressed(path, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path, model: ModelInfo | None = None) -> Probe:
        """Read a probe; ``model`` is what it has to fit.

        Raises:
            UserError: the file does not read, or is not a probe of such a model.
        """
        size, width = (None, None) if model is None else (model.image_size, model.features)
        return cls(**load_probe(path, size=size, width=width))


def drawn_frames(size: int, count: int = DRAWN_FRAMES) -> NDArray[np.uint8]:
    """Deterministic frames uint8 RGB [count,size,size,3]: scenes under changing light with moving things."""
    rng = np.random.default_rng(20240217)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    frames = np.empty((count, size, size, 3), np.uint8)
    per_scene = 6  # frames of one camera before the next
    scene = Scene(rng)
    for index in range(count):
        if index % per_scene == 0 and index:
            scene = Scene(rng)
        frames[index] = scene.draw(x, y, (index % per_scene) / per_scene)
    return frames


class Scene:
    """A horizon, a textured ground, some standing blocks and some moving discs, in random colours."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.sky = rng.uniform(60, 220, 3)
        self.ground = rng.uniform(30, 170, 3)
        self.horizon = rng.uniform(0.2, 0.6)
        self.texture = rng.uniform(8, 40, 2)
        self.light = rng.uniform(0.4, 1.1)
        self.blocks = [
            (rng.uniform(0, 0.9), rng.uniform(0.1, 0.7), *rng.uniform(0.08, 0.3, 2), rng.uniform(10, 245, 3))
            for _ in range(5)
        ]
        self.discs = [
            (
                rng.uniform(0, 1, 2),
                rng.uniform(-0.5, 0.5, 2),
                rng.uniform(0.03, 0.12),
                rng.uniform(10, 245, 3),
            )
            for _ in range(4)
        ]

    def draw(self, x: NDArray[np.float32], y: NDArray[np.float32], t: float) -> NDArray[np.uint8]:
        """The scene at time ``t`` (1 is when a disc has gone its way), uint8 RGB [h,w,3].

        ``x`` and ``y`` [h,w] are the pixels' coordinates in [0, 1).
        """
        shade = (0.7 + 0.3 * y)[..., None]
        image = np.where((y < self.horizon)[..., None], self.sky * shade, self.ground * shade)
        stripes = np.sin(x * self.texture[0] * 6.28 / (0.3 + y)) * np.sin(y * self.texture[1] * 6.28)
        image = image + 12.0 * (stripes * (y >= self.horizon))[..., None]
        for left, top, width, height, colour in self.blocks:
            inside = (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
            image[inside] = colour * (0.8 + 0.2 * (x[inside] - left)[:, None] / width)
        for centre, speed, radius, colour in self.discs:
            cx, cy = (centre + speed * t) % 1.0
            inside = (x - cx) ** 2 + ((y - cy) / 1.8) ** 2 < radius**2  # taller than wide, like people
            image[inside] = colour
        return np.asarray(np.clip(image * (self.light + 0.1 * t), 0, 255), np.uint8)


def video_frames(videos: Sequence[Path], sampling: Sampling, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Up to 64 sampled frames of the user's videos, the same share of each, uint8 RGB [n,S,S,3].

    Raises:
        UserError: a video that cannot be read, or no frame in any.
    """
    share = max(1, MOST_FRAMES // len(videos))
    frames: list[NDArray[np.uint8]] = []
    for path in videos[:MOST_FRAMES]:
        with Video(path) as video:
            for taken, snippet in enumerate(video.snippets(sampling, preprocessing), start=1):
                frames.append(snippet.images[0])
                if taken == share:
                    break
    if not frames:
        raise UserError("the probe videos hold no frame: give others to --probe")
    return np.stack(frames)


def feature_track(features: NDArray[np.float32], length: int = TRACK_LENGTH) -> NDArray[np.float32]:
    """A feature track [length,d] that wanders between real features, as neighbouring snippets do.

    Neighbours on real surveillance video have a cosine of about 0.99; random vectors would leave the graph
    without edges.
    """
    rng = np.random.default_rng(7)
    step = 25  # snippets from one anchor to the next
    anchors = features[rng.integers(0, len(features), length // step + 2)]
    position = np.arange(length) / step
    before = position.astype(np.int64)
    share = (position - before)[:, None]
    track = anchors[before] * (1 - share) + anchors[before + 1] * share
    spread = 0.08 * np.linalg.norm(track, axis=1, keepdims=True) / np.sqrt(track.shape[1])
    return np.asarray(track + spread * rng.standard_normal(track.shape), np.float32)
