"""Frames that differ: what INT8 ranges are taken from.

The first N frames of surveillance video are N times the same picture. Here candidates come evenly from the whole length
of all videos, and of these every next frame is the one whose feature is furthest from all that were chosen (greedy
k-center, Gonzalez 1985), so that night, rain, crowds and empty yards all have a say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadcalibrate.footage import Remark, remarks_on
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.inputs import named_videos
from vadrun.video import Video

_CANDIDATES = 1024  # over all videos
_SAME = 1e-4  # cosine distance below which two frames are one picture
LEAST = 8  # different pictures

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """Frames in the order in which they were chosen, most different first.

    Attributes:
        frames: uint8 RGB [k,S,S,3].
        features: float32 [k,d].
        candidates: how many they were chosen from.
        videos: how many videos those came from.
        reach: cosine distance of the candidate that is furthest from all chosen ones.
    """

    frames: Images
    features: Floats
    candidates: int
    videos: int
    reach: float


def choose_frames(
    engine: Engine,
    paths: Sequence[Path],
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    remark: Remark = lambda text: None,
) -> Chosen:
    """Choose ``count`` frames of the user's videos, or as many different ones as there are.

    Args:
        engine: a bundle of the model; its preprocessing and sampling are used.
        paths: videos, or folders of them.
        count: how many.
        progress: called with the videos that are read and all of them.
        remark: told what the user should know of the videos, damage included.

    Raises:
        UserError: no frames, or fewer than 8 different ones.
    """
    videos = named_videos(paths)
    share = max(2, _CANDIDATES // len(videos))
    parts: list[Images] = []
    for number, path in enumerate(videos, 1):
        parts.append(_evenly(path, engine, share, remark))
        progress(number, len(videos))
    frames = np.concatenate(parts)
    features = engine.encode(frames)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise UserError(f"the bundle gives features that are not finite for {int(bad.sum())} frames: verify it first")
    order, reach = furthest_first(features, min(count, len(frames)))
    if len(order) < LEAST:
        raise UserError(
            f"the {len(frames)} frames of this footage show only {len(order)} different pictures, and ranges that are "
            f"taken from fewer than {LEAST} would cut off everything else: give footage of other hours and places"
        )
    return Chosen(frames[order], features[order], len(frames), len(videos), reach)


def furthest_first(features: Floats, count: int) -> tuple[NDArray[np.int64], float]:
    """Greedy k-center by cosine distance: indices of up to ``count`` different rows of [n,d], and the largest distance
    of any row from the nearest of them. It begins with the row nearest to the mean."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen = [int((unit @ unit.mean(axis=0)).argmax())]
    distance = 1.0 - unit @ unit[chosen[0]]
    while len(chosen) < count and float(distance.max()) > _SAME:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, 1.0 - unit @ unit[chosen[-1]])
    return np.array(chosen, np.int64), max(float(distance.max()), 0.0)


def _evenly(path: Path, engine: Engine, share: int, remark: Remark) -> Images:
    """Up to ``2 share`` frames from the whole length of a video; memory does not grow with it."""
    bundle = engine.bundle
    kept: list[Images] = []
    step = 1
    with Video(path) as video:
        for snippet in video.snippets(bundle.sampling, bundle.preprocessing):
            if snippet.index % step:
                continue
            kept.append(snippet.images[0])
            if len(kept) >= 2 * share:  # thin out: every other one, from here on at half the rate
                kept, step = kept[::2], 2 * step
        for text in (*remarks_on(path, video.info.remarks, video.note), video.damage):
            if text is not None:
                remark(text)
    if not kept:
        raise UserError(f"{path} holds no snippet: leave it out")
    return np.stack(kept)
