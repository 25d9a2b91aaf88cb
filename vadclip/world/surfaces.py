"""What ground, walls and sky look like: colours of surface points, computed for all pixels at once.

Colours are shares of full brightness, float32 [...,3]; coordinates on a surface are metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadclip.world.camera import Camera

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
Paint = Callable[[Floats, Floats], Floats]
"""Coordinates u and v [n] on a surface -> colours [n,3]."""

_TILE = 256
_FAR = 90.0  # metres; beyond is sky


class Grain:
    """Smooth random texture without end, made of one tile."""

    def __init__(self, rng: np.random.Generator) -> None:
        frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None])
        spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE))) / np.maximum(frequency, 1 / _TILE) ** 1.1
        tile = np.fft.irfft2(spectrum, (_TILE, _TILE))
        self._tile = (tile - tile.mean()) / tile.std()

    def __call__(self, u: Floats, v: Floats, size: float) -> Floats:
        """Values about 0 with deviation 1; the pattern repeats every ``size`` metres."""
        rows = (v * (_TILE / size)).astype(np.int64) % _TILE
        columns = (u * (_TILE / size)).astype(np.int64) % _TILE
        values: Floats = self._tile[rows, columns]
        return values


@dataclass(frozen=True)
class Plane:
    """A flat surface square to the axes.

    Attributes:
        axis: 0, 1 or 2: the coordinate that is the same all over it.
        value: that coordinate, in metres.
        low, high: least and greatest values of the other two, in the order of the axes.
        paint: its colours.
        shade: share of the daylight that it takes.
    """

    axis: int
    value: float
    low: tuple[float, float]
    high: tuple[float, float]
    paint: Paint
    shade: float = 1.0


def ground(paint: Paint, extent: float = _FAR) -> Plane:
    """The plane z = 0."""
    return Plane(2, 0.0, (-extent, -extent), (extent, extent), paint)


def raster(camera: Camera, planes: list[Plane], sky: Colour) -> tuple[Floats, Floats, Floats]:
    """What a camera sees of empty surfaces.

    Returns:
        colours [H,W,3], points of the world [H,W,3] in metres (far off for the sky) and shade [H,W].
    """
    rays = camera.rays().astype(np.float32)  # good for a hundredth of a millimetre
    shape = rays.shape[:2]
    rays = rays.reshape(-1, 3)
    origin = np.array([camera.x, camera.y, camera.z], np.float32)
    nearest = np.full(len(rays), np.inf, np.float32)
    owner = np.full(len(rays), -1)
    for index, plane in enumerate(planes):
        with np.errstate(divide="ignore", invalid="ignore"):
            length = (plane.value - origin[plane.axis]) / rays[:, plane.axis]
            first, second = (axis for axis in range(3) if axis != plane.axis)
            u, v = origin[first] + length * rays[:, first], origin[second] + length * rays[:, second]
            hit = (length > 0) & (length < nearest) & (u >= plane.low[0]) & (u <= plane.high[0])
            hit &= (v >= plane.low[1]) & (v <= plane.high[1])
        nearest[hit], owner[hit] = length[hit], index
    points = origin + np.where(np.isfinite(nearest), nearest, 1.0)[:, None] * rays
    points[owner < 0] = (0.0, 1e4, 1e3)
    up = np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1), 0, 1)[:, None]
    colours: Floats = np.asarray(sky, np.float32) * (1 - np.float32(0.35) * up)
    shade: Floats = np.ones(len(rays), np.float32)
    for index, plane in enumerate(planes):
        mine = owner == index
        first, second = (axis for axis in range(3) if axis != plane.axis)
        colours[mine] = plane.paint(points[mine, first], points[mine, second])
        shade[mine] = plane.shade
    return np.clip(colours, 0, 1).reshape(*shape, 3), points.reshape(*shape, 3), shade.reshape(shape)


def plain(colour: Colour, grain: Grain, rough: float = 0.05, size: float = 8.0) -> Paint:
    """One colour with stains and grain."""

    def paint(u: Floats, v: Floats) -> Floats:
        value = 1 + rough * (grain(u, v, size) + 0.6 * grain(v + 3.1, u, size / 5))
        return np.asarray(colour) * value[:, None]

    return paint


def tiles(colour: Colour, grain: Grain, size: float, joint: float, contrast: float, checks: float = 0.0) -> Paint:
    """Square tiles or slabs; ``checks`` darkens every other one."""
    base = plain(colour, grain, 0.04, 11.0)

    def paint(u: Floats, v: Floats) -> Floats:
        result = base(u, v)
        edge = ((u / size) % 1 < joint) | ((v / size) % 1 < joint)
        other = (np.floor(u / size) + np.floor(v / size)) % 2
        return result * (1 - contrast * edge - checks * other * ~edge)[:, None]

    return paint


def facade(colour: Colour, grain: Grain, rng: np.random.Generator, shops: bool) -> Paint:
    """A house front: rows of windows, and doors or shop windows at the ground."""
    base = plain(colour, grain, 0.06, 6.0)
    period, storey = rng.uniform(2.2, 4.0), rng.uniform(2.9, 3.6)
    wide, tall = rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.6)
    glass = np.array([0.16, 0.19, 0.23]) * rng.uniform(0.7, 1.5)
    front = rng.uniform(0.15, 0.55) * (1 + rng.uniform(-0.35, 0.35, 3))
    brick = rng.uniform(0, 0.12)

    def paint(u: Floats, v: Floats) -> Floats:
        result = base(u, v)
        result *= (1 - brick * ((v / 0.3) % 1 < 0.25))[:, None]
        across, up = (u / period) % 1, (v / storey) % 1
        upper = v > storey
        window = upper & (np.abs(across - 0.5) < wide / 2) & (np.abs(up - 0.5) < tall / 2)
        result[window] = glass + 0.05 * grain(u[window], v[window], 3.0)[:, None]
        frame = upper & ~window & (np.abs(across - 0.5) < wide / 2 + 0.03) & (np.abs(up - 0.5) < tall / 2 + 0.03)
        result[frame] = 0.75
        if shops:
            pane = ~upper & (np.abs(across - 0.5) < 0.42) & (v > 0.4) & (v < 2.4)
            result[pane] = glass * 1.6 + 0.06 * grain(u[pane], v[pane], 2.0)[:, None]
            result[~upper & (v >= 2.45) & (v < storey - 0.1)] = front
        else:
            door = ~upper & (np.abs(across - 0.5) < 0.18) & (v < 2.1) & (np.floor(u / period) % 3 == 0)
            result[door] = front
        result[v < 0.12] *= 0.6
        return result

    return paint


def doors(colour: Colour, grain: Grain, rng: np.random.Generator) -> Paint:
    """An indoor wall: skirting, a painted lower part, doors and notices."""
    base = plain(colour, grain, 0.02, 7.0)
    period, wood, dado = (
        rng.uniform(3.0, 5.0),
        rng.uniform(0.2, 0.6) * (1 + rng.uniform(-0.3, 0.3, 3)),
        rng.uniform(0.7, 1.0),
    )
    notice = rng.uniform(0.3, 0.9, 3)

    def paint(u: Floats, v: Floats) -> Floats:
        result = base(u, v)
        result[v < 1.1] *= dado
        across = (u / period) % 1
        door = (np.abs(across - 0.5) < 0.55 / period) & (v < 2.1)
        result[door] = wood
        rim = ~door & (np.abs(across - 0.5) < 0.65 / period) & (v < 2.2)
        result[rim] *= 0.6
        paper = (np.abs(across - 0.1) < 0.3 / period) & (np.abs(v - 1.6) < 0.25) & (np.floor(u / period) % 2 == 0)
        result[paper] = notice
        result[v < 0.1] *= 0.5
        return result

    return paint


def ceiling(grain: Grain, lit: bool) -> Paint:
    """Panels with rows of lights, which glow where ``lit``."""
    base = tiles((0.7, 0.7, 0.68), grain, 0.6, 0.06, 0.15)

    def paint(u: Floats, v: Floats) -> Floats:
        result = base(u, v)
        lamp = ((u / 3.0) % 1 < 0.2) & ((v / 2.4) % 1 < 0.5)
        result[lamp] = 1.0 if lit else 0.55
        return result

    return paint


def road(grain: Grain, rng: np.random.Generator, half: float, walk: float) -> Paint:
    """Asphalt along x within ``half`` metres of y = 0, with kerbs, slabs of ``walk`` metres, and a crossing."""
    asphalt = plain(_grey(rng, 0.26, 0.4), grain, 0.09, 7.0)
    slabs = tiles(_grey(rng, 0.45, 0.62), grain, rng.uniform(0.4, 0.8), 0.07, 0.16)
    crossing = float(rng.uniform(-6, 6))
    dash = rng.uniform(1.5, 3.0)

    def paint(u: Floats, v: Floats) -> Floats:
        result = np.where((np.abs(v) < half)[:, None], asphalt(u, v), slabs(u, v))
        worn = 0.72 + 0.06 * grain(u, v, 2.0)[:, None]
        zebra = (np.abs(u - crossing) < 1.5) & (np.abs(v) < half - 0.2) & ((v / 0.9) % 1 < 0.5)
        line = (np.abs(v) < 0.07) & ((u / dash) % 2 < 1) & (np.abs(u - crossing) > 2.2)
        edge = np.abs(np.abs(v) - half + 0.35) < 0.05
        result = np.where((zebra | line | edge)[:, None], worn, result)
        kerb = np.abs(np.abs(v) - half - 0.09) < 0.09
        result = np.where(kerb[:, None], 0.66, result)
        beyond = np.abs(v) > half + walk
        return np.where(beyond[:, None], result * 0.85, result)

    return paint


def bays(grain: Grain, rng: np.random.Generator, width: float, rows: list[tuple[float, float]]) -> Paint:
    """A car park along x; ``rows`` are where bays begin and end in y."""
    asphalt = plain(_grey(rng, 0.28, 0.46), grain, 0.08, 9.0)
    colour = np.array([0.75, 0.75, 0.72]) if rng.random() < 0.7 else np.array([0.72, 0.62, 0.2])

    def paint(u: Floats, v: Floats) -> Floats:
        result = asphalt(u, v)
        mark = np.zeros(len(u), bool)
        for low, high in rows:
            mark |= (v > low) & (v < high) & (np.abs((u / width + 0.5) % 1 - 0.5) < 0.05 / width * 1.2)
        return np.where(mark[:, None], colour * (0.9 + 0.08 * grain(u, v, 2.0)[:, None]), result)

    return paint


def _grey(rng: np.random.Generator, low: float, high: float) -> Colour:
    level = float(rng.uniform(low, high))
    tint = rng.uniform(-0.025, 0.025, 2)
    return (level + float(tint[0]), level, level + float(tint[1]))
