"""What is where in a picture: boxes with a phrase each, for a CLIP that shall learn from more than whole pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadclip.world.actors import Act, Stage
from vadclip.world.camera import HEIGHT, OVERSAMPLING, WIDTH

PHRASES = (
    "a person walking",
    "a person running",
    "a person standing",
    "a person sitting",
    "a person fighting",
    "a person rioting",
    "a person lying on the ground",
    "a crashed car",
    "an overturned car",
    "flames",
)
_LEAST = 4.0  # pixels; what shows less of itself is not told
_SCREEN = np.array([WIDTH, HEIGHT], float)


@dataclass(frozen=True)
class Region:
    """One thing in a picture.

    Attributes:
        phrase: index into ``PHRASES``.
        box: left, top, right, bottom as shares of the picture's width and height, cut to the picture.
    """

    phrase: int
    box: tuple[float, float, float, float]


def regions(stage: Stage, frame: int) -> list[Region]:
    """People, damaged vehicles and flames that are in the picture of a frame, whatever may hide them."""
    found = []
    for phrase, low, high in _things(stage, frame):
        low, high = np.clip(low, 0, _SCREEN), np.clip(high, 0, _SCREEN)
        if (high - low).min() >= _LEAST:
            left, top, right, bottom = (float(share) for share in (*(low / _SCREEN), *(high / _SCREEN)))
            found.append(Region(PHRASES.index(phrase), (left, top, right, bottom)))
    return found


def _things(stage: Stage, frame: int) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """(phrase, upper left corner [2], lower right corner [2]) in pixels."""
    for person in stage.people:
        if person.shown[frame]:
            points = person.pixels[frame] / OVERSAMPLING
            margin = 0.05 * person.size[frame] / OVERSAMPLING  # joints lie within limbs
            yield _act(person.acts, frame) or "a person walking", points.min(0) - margin, points.max(0) + margin
    for vehicle in stage.vehicles:
        act = _act(vehicle.acts, frame)
        if vehicle.shown[frame] and act:
            points = vehicle.pixels[frame] / OVERSAMPLING
            yield act, points.min(0), points.max(0)
    for first, end, (x, y), size in stage.fires:
        if first <= frame < end:
            (foot, head), depth = stage.camera.project(np.array([[x, y, 0.0], [x, y, 1.3 * size]]))
            half = np.array([0.6 * size * float(stage.camera.scale(depth[:1])[0]), 0.0])
            yield "flames", (head - half) / OVERSAMPLING, (foot + half) / OVERSAMPLING


def _act(acts: Sequence[Act], frame: int) -> str | None:
    told = [phrase for first, end, phrase in acts if first <= frame < end]
    return told[-1] if told else None
