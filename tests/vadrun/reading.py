"""Reading a video in several ways, which have to give the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.video import Snippet, Video

SMALL = Preprocessing.for_size(64)


def cut(path: Path, way: str, sampling: Sampling | None = None, **rest: Any) -> tuple[list[Snippet], Video]:
    """The snippets of a video, by ``groups``, by ``skipping`` pictures, or with ``every picture`` decoded."""
    with Video(path, **rest) as video:
        video.looks_ahead = way == "groups"
        if way == "every picture":
            video._reader.skipper = None
        return list(video.snippets(sampling, SMALL)), video


def same(path: Path, way: str, sampling: Sampling | None = None, **rest: Any) -> list[Snippet]:
    """What a way gives, which is to the bit what comes of decoding every picture."""
    plain, one = cut(path, "every picture", sampling, **rest)
    quick, other = cut(path, way, sampling, **rest)
    assert [(s.index, s.start, s.end, s.short) for s in quick] == [(s.index, s.start, s.end, s.short) for s in plain]
    for a, b in zip(quick, plain, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    assert (one.damage, one.note, one.decoded, one.info) == (other.damage, other.note, other.decoded, other.info)
    return quick
