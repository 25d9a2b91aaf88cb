"""Light on a scene: by day from the sky and the sun, at night from lamps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lamp:
    """A lamp at ``place`` (metres) of a colour (RGB, 1 is enough to light what is below it fully)."""

    place: tuple[float, float, float]
    colour: tuple[float, float, float]
    reach: float  # metres at which its light has become weak


@dataclass(frozen=True)
class Lighting:
    """How a scene is lit.

    Attributes:
        night: whether it is dark outside.
        ambient: light from everywhere, RGB.
        sun: light from the sun, RGB; zeros if it does not shine.
        direction: metres by which the shadow of something 1 metre high reaches along x and y.
        edge: a building's shadow lies where y is greater than this, in metres.
        lamps: all lamps that are on.
    """

    night: bool
    ambient: tuple[float, float, float]
    sun: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, float] = (0.0, 0.0)
    edge: float = 1e9
    lamps: tuple[Lamp, ...] = field(default_factory=tuple)

    def at(self, points: Floats) -> Floats:
        """Light [...,3] that falls on points [...,3]."""
        light: Floats = np.broadcast_to(np.asarray(self.ambient), points.shape).copy()
        if any(self.sun):
            bright = 1 / (1 + np.exp(np.clip((points[..., 1] - self.edge) / 0.15, -50, 50)))
            light += bright[..., None] * np.asarray(self.sun)
        for lamp in self.lamps:
            apart = points - np.asarray(lamp.place)
            fall = 1 / (1 + (apart**2).sum(-1) / lamp.reach**2) ** 2
            light += fall[..., None] * np.asarray(lamp.colour)
        return light

    @property
    def sunny(self) -> bool:
        """Whether things throw sharp shadows."""
        return any(self.sun)


def daylight(rng: np.random.Generator) -> Lighting:
    """A sunny or an overcast day."""
    warm = rng.uniform(-0.04, 0.05)
    if rng.random() < 0.45:
        level = rng.uniform(0.8, 1.1)
        return Lighting(False, (level * (1 + warm), level, level * (1 - warm)))
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
    level, sun = rng.uniform(0.5, 0.65), rng.uniform(0.45, 0.65)
    edge = float(rng.uniform(2, 9)) if rng.random() < 0.5 else 1e9
    return Lighting(
        False,
        (level * (1 - warm), level, level * (1.06 + warm)),
        (sun * (1.03 + warm), sun, sun * (0.93 - warm)),
        (float(length * np.cos(angle)), float(length * np.sin(angle))),
        edge,
    )


def nightlight(rng: np.random.Generator, places: list[tuple[float, float, float]]) -> Lighting:
    """A night with lamps of one colour at ``places``."""
    colour = np.array([(1.0, 0.72, 0.42), (1.0, 0.9, 0.75), (0.85, 0.95, 1.0)][rng.integers(3)])
    level = rng.uniform(0.12, 0.2)
    lamps = tuple(
        Lamp(place, tuple(float(c) for c in colour * rng.uniform(0.8, 1.3)), float(rng.uniform(6.0, 8.0)))  # type: ignore[arg-type]
        for place in places
    )
    return Lighting(True, (level * 0.9, level, level * 1.25), lamps=lamps)


def indoor(rng: np.random.Generator, places: list[tuple[float, float, float]], night: bool) -> Lighting:
    """Lamps at a ceiling; at night most are off."""
    if not night:
        level = rng.uniform(0.55, 0.75)
        lamps = tuple(Lamp(place, (0.3, 0.3, 0.28), 3.0) for place in places)
        return Lighting(False, (level, level, level * rng.uniform(0.9, 1.03)), lamps=lamps)
    kept = [place for place in places if rng.random() < 0.45] or places[:1]
    tint = rng.uniform(0.7, 1.0)
    lamps = tuple(Lamp(place, (0.8, 0.77, 0.8 * tint), 3.8) for place in kept)
    level = rng.uniform(0.15, 0.22)
    return Lighting(True, (level, level, level * 1.15), lamps=lamps)
