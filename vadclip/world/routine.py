"""What people and vehicles do when nothing is wrong, and the moves that events are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vadclip.world import body, vehicles
from vadclip.world.actors import Person, Stage, Vehicle
from vadclip.world.camera import OVERSAMPLING, WIDTH
from vadclip.world.drawing import Look
from vadclip.world.site import car_colour

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Spot = tuple[float, float]


def frame_numbers(stage: Stage) -> Floats:
    """0 to n-1 as floats."""
    return np.arange(stage.frames, dtype=np.float64)


def spot(stage: Stage, margin: float = 0.2) -> Spot:
    """A free place on the ground, well in view."""
    low_x, high_x, low_y, high_y = stage.scene.open
    for _ in range(200):
        point = (float(stage.rng.uniform(low_x, high_x)), float(stage.rng.uniform(low_y, high_y)))
        if stage.camera.sees(np.array([[*point, 0.0], [*point, 1.8]]), margin).all():
            return point
    return ((low_x + high_x) / 2, (low_y + high_y) / 2)


def bounds(stage: Stage) -> tuple[float, float, float, float]:
    """Ground where people of an indoor scene can be: least x, greatest x, least y, greatest y."""
    ends = np.array(stage.scene.walks).reshape(-1, 2)
    low_x, high_x, low_y, high_y = stage.scene.open
    return (
        min(float(ends[:, 0].min()), low_x - 0.9),
        max(float(ends[:, 0].max()), high_x + 0.9),
        min(float(ends[:, 1].min()), low_y),
        max(float(ends[:, 1].max()), high_y),
    )


def inside(stage: Stage, place: Floats) -> Flags:
    """Whether ground points [n,2] are not behind the walls of an indoor scene."""
    if stage.scene.endless:
        return np.ones(len(place), bool)
    low_x, high_x, low_y, high_y = bounds(stage)
    result: Flags = (place[:, 0] >= low_x) & (place[:, 0] <= high_x) & (place[:, 1] >= low_y) & (place[:, 1] <= high_y)
    return result


def direction(stage: Stage) -> Floats:
    """A direction in which people walk here, as a unit vector."""
    (ax, ay), (bx, by) = stage.scene.walks[stage.rng.integers(len(stage.scene.walks))]
    along = np.array([bx - ax, by - ay]) * stage.rng.choice([-1, 1])
    unit: Floats = along / np.linalg.norm(along)
    return unit


def phase_of(place: Floats, stride: float, rng: np.random.Generator) -> Floats:
    """Where in its steps someone is who has come along ``place`` [n,2]."""
    steps = np.linalg.norm(np.diff(place, axis=0, prepend=place[:1]), axis=1)
    phase: Floats = rng.uniform(0, 6.3) + np.cumsum(steps) * (2 * np.pi / stride)
    return phase


def heading_of(place: Floats, otherwise: float) -> Floats:
    """Radians in which a track [n,2] leads; where it stands still, the last direction or ``otherwise``."""
    step = np.diff(place, axis=0, append=place[-1:])
    moving = np.hypot(step[:, 0], step[:, 1]) > 1e-3
    if not moving.any():
        return np.full(len(place), otherwise)
    last = np.maximum.accumulate(np.where(moving, np.arange(len(place)), -1))
    last[last < 0] = int(np.argmax(moving))
    result: Floats = np.arctan2(step[:, 1], step[:, 0])[last]
    return result


def walker(stage: Stage, *, run: bool = False, line: int | None = None, look: Look | None = None) -> Person:
    """Someone who walks (or jogs) through the picture."""
    rng, scene = stage.rng, stage.scene
    walks = scene.walks
    a, b = (np.array(end) for end in walks[rng.integers(len(walks)) if line is None else line])
    along = b - a
    points = a + np.linspace(0, 1, 80)[:, None] * along
    seen = np.nonzero(stage.camera.sees(np.concatenate([points, np.full((80, 1), 0.9)], 1), 0.08))[0]
    middle = points[rng.choice(seen)] if len(seen) else (a + b) / 2
    unit = along / np.linalg.norm(along)
    side = np.array([-unit[1], unit[0]]) * rng.uniform(-0.4, 0.4)
    speed = (rng.uniform(2.7, 3.5) if run else rng.uniform(0.9, 1.6)) * rng.choice([-1, 1])
    when = rng.uniform(0, stage.frames)
    place = middle + side + ((frame_numbers(stage) - when) / stage.fps * speed)[:, None] * unit
    phase = phase_of(place, body.RUN_STRIDE if run else body.WALK_STRIDE, rng)
    pose = body.running(phase) if run else body.walking(phase)
    acts = [(0, stage.frames, "a person running")] if run else []
    return stage.add_person(place, heading_of(place, 0.0), pose, shown=inside(stage, place), look=look, acts=acts)


def come_and_go(
    stage: Stage, at: Spot, first: int, end: int, busy: Floats, *, toward: float, leave_run: bool = False
) -> tuple[Floats, Floats, Floats]:
    """A track that reaches ``at`` by frame ``first`` and leaves from ``end`` on; between, the pose is ``busy`` [n,15].

    Returns:
        ground points [n,2], headings [n] (``toward`` while there), poses [n,15].
    """
    rng, number = stage.rng, frame_numbers(stage)
    inward, outward = direction(stage), direction(stage)
    speed, away = rng.uniform(1.0, 1.5), rng.uniform(2.8, 3.6) if leave_run else rng.uniform(1.0, 1.5)
    before, after = np.maximum(first - number, 0) / stage.fps, np.maximum(number - end, 0) / stage.fps
    place = np.array(at) - before[:, None] * speed * inward + after[:, None] * away * outward
    heading = heading_of(place, toward)
    there = (number >= first) & (number < end)
    heading[there] = toward
    walk = body.walking(phase_of(place, body.WALK_STRIDE, rng))
    leave = body.running(phase_of(place, body.RUN_STRIDE, rng)) if leave_run else walk
    which = np.where(there, 1, np.where(number < first, 0, 2))
    return place, heading, body.blend([walk, busy, leave], which)


def meeting(stage: Stage, first: int, end: int) -> None:
    """Two or three people meet, stand close together, talk and part: what a fight is not."""
    rng, centre = stage.rng, np.array(spot(stage))
    count = int(rng.integers(2, 4))
    turn = rng.uniform(0, 2 * np.pi)
    for index in range(count):
        angle = turn + index * 2 * np.pi / count
        at = centre + 0.5 * np.array([np.cos(angle), np.sin(angle)])
        busy = body.standing(stage.time, rng, talking=True)
        place, heading, pose = come_and_go(stage, (at[0], at[1]), first, end, busy, toward=angle + np.pi)
        acts = [(first, end, "a person standing")]
        stage.add_person(place, heading, pose, shown=inside(stage, place), acts=acts)
    stage.activity.append((first, end, "people standing and talking"))


def sitter(stage: Stage, first: int, end: int) -> None:
    """Someone sits down on a bench, and gets up again."""
    if not stage.scene.seats:
        return
    x, y, faces = stage.scene.seats[stage.rng.integers(len(stage.scene.seats))]
    place, heading, pose = come_and_go(stage, (x, y), first, end, body.sitting(stage.time), toward=faces)
    acts = [(first, end, "a person sitting")]
    person = stage.add_person(place, heading, pose, shown=inside(stage, place), acts=acts)
    if stage.in_view(person)[first:end].any():
        stage.activity.append((first, end, "a person sitting on a bench"))


def some_vehicle(stage: Stage) -> tuple[str, Floats]:
    """A kind and a colour."""
    kinds = list(vehicles.SHAPES)
    return kinds[stage.rng.choice(len(kinds), p=(0.5, 0.3, 0.2))], car_colour(stage.rng)


def lane_x(stage: Stage, y: float) -> float:
    """An x at which a lane is well in view, or as well as it can be."""
    x = np.linspace(-12, 12, 97)
    points = np.stack([x, np.full(97, y), np.full(97, 0.6)], 1)
    for margin in (0.22, 0.15, 0.08):
        seen = stage.camera.sees(points, margin)
        if seen.any():
            return float(stage.rng.choice(x[seen]))
    pixels, _ = stage.camera.project(points)
    return float(x[np.argmin(np.abs(pixels[:, 0] - WIDTH * OVERSAMPLING / 2))])


def traffic(stage: Stage, *, until: int | None = None) -> None:
    """Vehicles that pass on the lanes; none that passes the picture's middle after frame ``until``."""
    rng, number = stage.rng, frame_numbers(stage)
    slow = stage.scene.kind == "car park"
    for y, way in stage.scene.lanes:
        speed = rng.uniform(2.5, 4.5) if slow else rng.uniform(6.0, 10.0)
        when = rng.uniform(0, 6 if slow else 3) * stage.fps
        while when < (stage.frames if until is None else until - 4 * stage.fps):
            kind, paint = some_vehicle(stage)
            x = way * speed * (number - when) / stage.fps
            heading = np.full(stage.frames, 0.0 if way > 0 else np.pi)
            stage.add_vehicle(kind, paint, np.stack([x, np.full(stage.frames, y)], 1), heading)
            when += rng.uniform(2.0, 9.0) * stage.fps * (2.0 if slow else 1.0)


def stopping(stage: Stage, first: int, end: int) -> None:
    """A vehicle that brakes, waits and drives on, as at a crossing."""
    y, way = stage.scene.lanes[stage.rng.integers(len(stage.scene.lanes))]
    number, fps = frame_numbers(stage), stage.fps
    before, after = np.maximum(first - number, 0) / fps, np.maximum(number - end, 0) / fps
    travel = -np.where(before < 3, 0.5 * 2.4 * before**2, 10.8 + 7.2 * (before - 3))
    travel = travel + np.where(after < 4, 0.5 * 1.8 * after**2, 14.4 + 7.2 * (after - 4))
    place = np.stack([lane_x(stage, y) + way * travel, np.full(stage.frames, y)], 1)
    kind, paint = some_vehicle(stage)
    stage.add_vehicle(kind, paint, place, np.full(stage.frames, 0.0 if way > 0 else np.pi))
    stage.activity.append((first, end, "a car waiting"))


def parking(stage: Stage, first: int) -> Vehicle | None:
    """A car that drives along, turns into a free bay and stays."""
    if not stage.scene.bays:
        return None
    x, y = stage.scene.bays[stage.rng.integers(len(stage.scene.bays))]
    lane, radius, fps = stage.scene.lanes[0][0], 3.4, stage.fps
    speed = 2.8
    arc, straight = radius * np.pi / 2, max(y - lane - radius, 0.0)
    travel = np.clip(speed * (frame_numbers(stage) - first) / fps, None, arc + straight)
    angle = np.clip(travel / radius, 0, np.pi / 2)
    place = np.stack([x - radius + radius * np.sin(angle), lane + radius * (1 - np.cos(angle))], 1)
    place[:, 0] += np.minimum(travel, 0)
    place[:, 1] += np.maximum(travel - arc, 0)
    kind, paint = some_vehicle(stage)
    stage.activity.append((first, first + int((arc + straight) / speed * fps), "a car turning"))
    return stage.add_vehicle(kind, paint, place, angle)


def ordinary(stage: Stage, *, drive: bool = True, people: int | None = None, until: int | None = None) -> None:
    """An ordinary scene: passers-by and, where there are lanes and ``drive`` is true, traffic until a frame."""
    rng, lanes = stage.rng, bool(stage.scene.lanes)
    driven = drive and lanes and rng.random() < (0.85 if stage.scene.kind == "road" else 0.5)
    if driven:
        traffic(stage, until=until)
    count = int(rng.choice([0, 1, 2, 3, 5, 8, 11])) if people is None else people
    count = round(count * max(1.0, stage.frames / stage.fps / 15))
    for _ in range(count):
        walker(stage, line=0 if driven and stage.scene.kind == "car park" else None)


def normal(stage: Stage) -> None:
    """A clip without an event, now and then with something that looks a little like one."""
    rng, scene, frames = stage.rng, stage.scene, stage.frames
    first = int(rng.uniform(0.05, 0.45) * frames)
    end = first + int(rng.uniform(0.3, 0.5) * frames)
    choices = ["plain", "meeting", "jogger", "sitter", "light", "crowd"]
    if scene.lanes:
        choices += ["stopping", "parking"]
    what = str(rng.choice(choices))
    in_the_way = scene.kind == "car park" and what in ("meeting", "stopping", "parking")
    blocked = in_the_way or what == "stopping"
    ordinary(
        stage, drive=not blocked, people=14 if what == "crowd" else (1 if in_the_way and what != "meeting" else None)
    )
    if what == "meeting":
        meeting(stage, first, end)
    elif what == "jogger":
        walker(stage, run=True, line=0)
    elif what == "sitter":
        sitter(stage, first, end)
    elif what == "light":
        stage.switch = (first, scene.lighting(rng, stage.light.night))
        if not scene.indoor and not stage.light.night:
            stage.switch = None
    elif what == "stopping":
        stopping(stage, first, end)
    elif what == "parking":
        parking(stage, first)
    if scene.lanes and scene.kind == "road" and rng.random() < 0.25:
        kerbside(stage)


def kerbside(stage: Stage) -> Spot:
    """A car that stands at the kerb of a road, or in a car park, all the time; returns where."""
    y = stage.scene.open[2] - 0.5 if stage.scene.kind == "road" else stage.scene.lanes[1][0] + 1.0
    x = lane_x(stage, y)
    kind, paint = some_vehicle(stage)
    place = np.tile(np.array([x, y]), (stage.frames, 1))
    stage.add_vehicle(kind, paint, place, np.full(stage.frames, np.pi * stage.rng.integers(2)))
    return x, y
