"""Places that a camera watches: roads, car parks, corridors, shops and squares, each from its own seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vadclip.world import surfaces
from vadclip.world.camera import Camera
from vadclip.world.site import Scene, Site

Floats = NDArray[np.float64]

KINDS = ("road", "car park", "corridor", "shop", "square")


@lru_cache(maxsize=4)
def make_scene(split: str, kind: str, number: int, seed: int) -> Scene:
    """A scene; equal arguments give the same one, and no two splits share any. Not to be changed by who gets it."""
    entropy = [seed, int.from_bytes(split.encode(), "little"), KINDS.index(kind), number]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    build = {"road": _road, "car park": _car_park, "corridor": _corridor, "shop": _shop, "square": _square}[kind]
    scene = build(rng)
    scene.name = f"{split}-{kind.replace(' ', '_')}-{number}"
    return scene


def _outside(rng: np.random.Generator, spread: float, target: tuple[float, float]) -> Camera:
    """A camera on a mast or a house, somewhere around the side of small y."""
    angle = np.radians(rng.uniform(-spread, spread))
    away, high = rng.uniform(7.5, 10.0), rng.uniform(3.5, 5.2)
    place = (target[0] + away * float(np.sin(angle)), target[1] - away * float(np.cos(angle)), float(high))
    return Camera.looking_at(place, target, float(rng.uniform(350, 430)))


def _house(rng: np.random.Generator) -> surfaces.Colour:
    tone = rng.uniform(0.35, 0.7) * (1 + rng.uniform(-0.18, 0.18, 3))
    return (float(tone[0]), float(tone[1]), float(tone[2]))


def _muted(rng: np.random.Generator) -> Floats:
    return rng.uniform(0.2, 0.6) * (1 + rng.uniform(-0.25, 0.25, 3))


def _road(rng: np.random.Generator) -> Scene:
    grain = surfaces.Grain(rng)
    half, walk = rng.uniform(3.2, 3.8), rng.uniform(3.0, 4.0)
    camera = _outside(rng, 48, (float(rng.uniform(-2, 2)), float(rng.uniform(1.5, 3.0))))
    back = half + walk
    planes = [
        surfaces.ground(surfaces.road(grain, rng, half, walk)),
        surfaces.Plane(1, back, (-80, 0), (80, 14), surfaces.facade(_house(rng), grain, rng, rng.random() < 0.6), 0.85),
        surfaces.Plane(0, -60.0, (-20, 0), (20, 9), surfaces.facade(_house(rng), grain, rng, False), 0.7),
        surfaces.Plane(0, 60.0, (-20, 0), (20, 9), surfaces.facade(_house(rng), grain, rng, False), 0.7),
    ]
    site = Site("road", camera, planes, rng)
    for x in np.arange(-30, 31, 10) + rng.uniform(-4, 4):
        site.lamp(float(x), half + 0.5, 5.5)
    for x in np.arange(-24, 25, 8) + rng.uniform(-3, 3):
        if rng.random() < 0.35:
            site.tree(float(x), back - 0.8)
        elif rng.random() < 0.5:
            site.box(float(x), back - 0.5, (0.6, 0.6, 1.1), _muted(rng))
    if rng.random() < 0.7:
        site.bench(float(rng.uniform(-5, 5)), back - 0.6, -np.pi / 2)
    scene = site.finish()
    scene.walks = [((-30, y), (30, y)) for y in (half + 1.5, half + walk * 0.7, -half - 1.0)]
    scene.open = (-3.5, 3.5, half + 0.6, back - 1.2)
    scene.lanes = [(-half / 2, 1), (half / 2, -1)]
    return scene


def _car_park(rng: np.random.Generator) -> Scene:
    grain = surfaces.Grain(rng)
    width, lane = rng.uniform(2.6, 3.0), rng.uniform(3.0, 3.8)
    camera = _outside(rng, 35, (float(rng.uniform(-2, 2)), float(rng.uniform(0.5, 1.5))))
    rows = [(lane, lane + 5.2), (-lane - 5.2, -lane)]
    wall, tall = lane + rng.uniform(6.5, 9.0), rng.uniform(1.8, 8.0)
    paint = (
        surfaces.plain(_house(rng), grain, 0.1, 5.0) if tall < 3.5 else surfaces.facade(_house(rng), grain, rng, False)
    )
    planes = [
        surfaces.ground(surfaces.bays(grain, rng, width, rows)),
        surfaces.Plane(1, wall, (-70, 0), (70, tall), paint, 0.85),
        surfaces.Plane(0, -45.0, (-40, 0), (40, 7), surfaces.plain(_house(rng), grain, 0.1), 0.7),
        surfaces.Plane(0, 45.0, (-40, 0), (40, 7), surfaces.plain(_house(rng), grain, 0.1), 0.7),
    ]
    site = Site("car park", camera, planes, rng)
    fill = rng.uniform(0.4, 0.85)
    for index in range(-7, 8):
        x, y = (index + 0.5) * width, lane + 2.6
        if rng.random() < fill:
            site.parked(x, y + rng.uniform(-0.2, 0.2), np.pi / 2 * rng.choice([-1, 1]))
        elif abs(x) < 7:
            site.scene.bays.append((x, y))
    for x in (-12.0, 0.0, 12.0):
        site.lamp(x + rng.uniform(-3, 3), wall - 0.6, 5.5)
    if rng.random() < 0.4:
        site.tree(float(rng.uniform(-8, 8)), wall - 0.8)
    scene = site.finish()
    scene.walks = [((-30, y), (30, y)) for y in (lane - 0.7, -lane * 0.5, lane * 0.3)]
    scene.open = (-3.5, 3.5, -1.5, lane - 0.6)
    scene.lanes = [(-lane / 2, 1), (lane / 2, -1)]
    return scene


def _corridor(rng: np.random.Generator) -> Scene:
    grain = surfaces.Grain(rng)
    side, end, high = rng.uniform(2.4, 3.4), rng.uniform(13, 18), rng.uniform(2.9, 3.3)
    camera = Camera.looking_at(
        (float(rng.uniform(-0.85, 0.85) * side), -6.5, float(high - 0.25)),
        (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(0.3, 2.0))),
        float(rng.uniform(290, 345)),
    )
    wall = tuple(float(c) for c in rng.uniform(0.5, 0.85) * (1 + rng.uniform(-0.12, 0.12, 3)))
    tint = float(rng.uniform(0.3, 0.62))
    floor = (tint, tint * 0.98, tint * 0.93)
    paint = surfaces.doors(wall, grain, rng)  # type: ignore[arg-type]
    planes = [
        surfaces.ground(
            surfaces.tiles(floor, grain, rng.uniform(0.4, 1.0), 0.04, 0.15, float(rng.choice([0, 0.12, 0.3])))
        ),
        surfaces.Plane(0, -side, (-20, 0), (end, high), paint, 0.9),
        surfaces.Plane(0, side, (-20, 0), (end, high), paint, 0.82),
        surfaces.Plane(1, end, (-side, 0), (side, high), paint, 0.75),
        surfaces.Plane(2, high, (-side, -20), (side, end), surfaces.ceiling(grain, True), 0.9),
    ]
    site = Site("corridor", camera, planes, rng)
    for _ in range(int(rng.integers(1, 4))):
        edge = float(rng.choice([-1, 1])) * (side - 0.35)
        y = float(rng.uniform(-1, end - 2))
        choice = rng.integers(3)
        if choice == 0:
            site.bench(edge, y, np.pi if edge > 0 else 0.0)
        elif choice == 1:
            site.box(edge, y, (0.5, 0.9, 1.8), _muted(rng))
        else:
            site.bush(edge * 0.9, y)
    scene = site.finish()
    scene.lamps = [(0.0, float(y), high - 0.1) for y in np.arange(-4, end, 3.2)]
    scene.walks = [((x, -9.0), (x, end - 0.5)) for x in (-0.4 * side, 0.35 * side)]
    scene.open = (-side + 1.1, side - 1.1, -0.5, 4.5)
    scene.endless, scene.indoor = False, True
    return scene


def _shop(rng: np.random.Generator) -> Scene:
    grain = surfaces.Grain(rng)
    side, end, high = rng.uniform(6, 7.5), rng.uniform(7, 9), rng.uniform(3.1, 3.6)
    camera = Camera.looking_at(
        (float(rng.choice([-1, 1]) * rng.uniform(0.3, 0.9) * side), -6.8, float(high - 0.2)),
        (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.3, 1.2))),
        float(rng.uniform(280, 320)),
    )
    tone = float(rng.uniform(0.55, 0.85))
    wall = surfaces.plain((tone, tone * 0.98, tone * 0.94), grain, 0.03)
    planes = [
        surfaces.ground(surfaces.tiles((tone * 0.8, tone * 0.79, tone * 0.76), grain, 0.6, 0.03, 0.12)),
        surfaces.Plane(0, -side, (-20, 0), (end, high), wall, 0.85),
        surfaces.Plane(0, side, (-20, 0), (end, high), wall, 0.8),
        surfaces.Plane(1, end, (-side, 0), (side, high), wall, 0.9),
        surfaces.Plane(2, high, (-side, -20), (side, end), surfaces.ceiling(grain, True), 0.9),
    ]
    site = Site("shop", camera, planes, rng)
    rack = np.full(3, rng.uniform(0.3, 0.7))
    for x in np.arange(-side + 1.5, side - 1, 2.4):
        site.box(float(x), end - 0.4, (2.2, 0.6, float(rng.uniform(1.7, 2.1))), rack, goods=True)
    aisle = rng.uniform(2.4, 3.0)
    for x in (-aisle - 0.5, aisle + 0.5):
        for y in (3.2, 5.0):
            site.box(float(x), y, (0.9, 1.7, float(rng.uniform(1.2, 1.7))), rack, goods=True)
    site.box(float(rng.choice([-1, 1]) * (side - 1.6)), -0.5, (0.8, 3.0, 1.0), _muted(rng))
    scene = site.finish()
    scene.lamps = [(float(x), float(y), high - 0.1) for x in (-4, 0, 4) for y in (-3, 1, 5)]
    scene.walks = [
        ((-0.8, -8), (-0.8, end - 1.2)),
        ((0.9, -8), (0.9, end - 1.2)),
        ((-5, 1.2), (5, 1.2)),
        ((-5, 0.0), (5, 0.4)),
    ]
    scene.open = (-2.0, 2.0, -1.2, 2.0)
    scene.endless, scene.indoor = False, True
    return scene


def _square(rng: np.random.Generator) -> Scene:
    grain = surfaces.Grain(rng)
    camera = _outside(rng, 50, (float(rng.uniform(-1, 1)), float(rng.uniform(0, 1.5))))
    tone = float(rng.uniform(0.38, 0.62))
    paving = surfaces.tiles(
        (tone * rng.uniform(1, 1.12), tone, tone * rng.uniform(0.85, 1)),
        grain,
        rng.uniform(0.7, 2.2),
        0.05,
        0.18,
        float(rng.choice([0, 0.1, 0.18])),
    )
    end = rng.uniform(11, 18)
    planes = [
        surfaces.ground(paving),
        surfaces.Plane(1, end, (-60, 0), (60, 12), surfaces.facade(_house(rng), grain, rng, True), 0.85),
        surfaces.Plane(0, -26.0, (-30, 0), (end, 10), surfaces.facade(_house(rng), grain, rng, False), 0.72),
        surfaces.Plane(0, 26.0, (-30, 0), (end, 10), surfaces.facade(_house(rng), grain, rng, True), 0.76),
    ]
    site = Site("square", camera, planes, rng)
    for x in (-10.0, -1.0, 9.0):
        site.lamp(float(x + rng.uniform(-2, 2)), float(rng.uniform(4.8, 6)), 4.5)
    for x in np.arange(-14, 15, 5) + rng.uniform(-2, 2):
        y = float(rng.uniform(6.5, end - 2))
        (site.tree if rng.random() < 0.5 else site.bush)(float(x), y)
    for _ in range(int(rng.integers(1, 3))):
        site.bench(float(rng.uniform(-6, 6)), float(rng.uniform(4.4, 5.4)), -np.pi / 2)
    if rng.random() < 0.5:
        kiosk = (2.4, 2.0, 2.4)
        site.box(float(rng.choice([-1, 1]) * rng.uniform(6, 9)), 8.0, kiosk, _muted(rng))
    scene = site.finish()
    scene.walks = [((-25, -2.0), (25, 3.5)), ((-25, 3.6), (25, -1.5)), ((-25, 1.0), (25, 1.6)), ((-25, 4.0), (25, 3.6))]
    scene.open = (-3.5, 3.5, -1.8, 3.6)
    return scene
