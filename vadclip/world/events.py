"""What goes wrong: fights, accidents, explosions and riots, each with the frames that it takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vadclip.world import actors, body, routine
from vadclip.world.actors import Stage
from vadclip.world.drawing import Look

Floats = NDArray[np.float64]
Interval = tuple[int, int]
"""First frame, and the one after the last."""

_LYING = "a person lying on the ground"


def span(stage: Stage, shortest: float = 4.0, longest: float = 10.0) -> Interval:
    """When an event is to happen: some seconds, with ordinary life before and mostly after it."""
    rng, fps = stage.rng, stage.fps
    length = int(min(rng.uniform(shortest, longest) * fps, 0.6 * stage.frames))
    first = int(rng.uniform(0.12, 0.9) * (stage.frames - length))
    return first, first + length


def fighting(stage: Stage) -> Interval:
    """Two to five people beat each other; they part and leave, or one stays on the ground and is kicked."""
    rng, time, number = stage.rng, stage.time, routine.frame_numbers(stage)
    first, end = span(stage)
    centre = np.array(routine.spot(stage, 0.25))
    down = bool(rng.random() < 0.5)
    if down:
        end = stage.frames
    count = int(rng.choice([2, 2, 3, 4, 5]))
    turn = rng.uniform(0, 2 * np.pi)
    if abs(np.sin(turn - stage.camera.yaw)) > 0.75:  # one behind the other would hide what goes on
        turn += np.pi / 2
    falls = first + int(min(rng.uniform(0.15, 0.5) * (end - first), 5 * stage.fps))
    for index in range(count):
        angle = turn + index * 2 * np.pi / count + 0.5 * np.sin(0.8 * time + index)
        apart = 0.48 + 0.13 * np.sin(5 * time + 2 * index) + (0.08 * count if count > 2 else 0.0)
        victim = down and index == 0
        busy = body.fighting(time, rng)
        busy[:first] = body.fighting(time[:1], rng)
        if victim:
            posture = np.where(number < falls, 0, np.where(number < falls + 8, 1, 2))
            face_down = bool(rng.random() < 0.5)
            busy = body.blend([busy, body.cowering(time), body.lying(time, rng, face_down=face_down)], posture)
        elif down:
            busy = body.blend([busy, body.kicking_down(time, rng)], (number >= falls + 8).astype(np.int64))
        at = centre + 0.45 * np.array([np.cos(angle[first]), np.sin(angle[first])])
        leave_run = bool(rng.random() < 0.5)
        place, heading, pose = routine.come_and_go(
            stage, (at[0], at[1]), first, end, busy, toward=0.0, leave_run=leave_run
        )
        there = np.clip(np.minimum(number - first, end - number) / 10, 0, 1)[:, None]
        reach = np.where((number >= falls) & down, 0.75, apart)[:, None]
        if victim:
            reach = np.where(number >= falls, 0.1, apart)[:, None]
        moving = centre + reach * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.02, 2)
        place = place + there * (moving - at)
        inner = (number >= first) & (number < end)
        heading = np.where(inner, angle + np.pi, heading)
        if victim:
            heading = np.where(number >= falls, heading[min(falls, stage.frames - 1)], heading)
        acts = [(first, end, "a person fighting")]
        if victim:
            acts.append((falls + 8, end, _LYING))
        elif leave_run:
            acts.append((end, stage.frames, "a person running"))
        stage.add_person(place, heading, pose, shown=routine.inside(stage, place), acts=acts)
    routine.ordinary(stage, drive=stage.scene.kind == "road", people=int(rng.integers(0, 5)))
    stage.activity.append((first, end, "people punching and kicking each other"))
    return first, end


def accident(stage: Stage) -> Interval:
    """Two vehicles crash, one overturns, or one runs someone over; what is left stays, or goes on after a while."""
    kinds: list[Callable[[Stage], Interval]] = [_crash, _overturn, _run_over]
    first, end = kinds[stage.rng.choice(3, p=(0.45, 0.25, 0.3))](stage)
    people = int(stage.rng.integers(0, 4))
    for _ in range(people):
        routine.walker(stage, line=0)
    return first, end


def _impact(stage: Stage) -> tuple[int, float, Floats]:
    """When, how fast in metres a second, and metres that are slid over after it [n]."""
    rng = stage.rng
    first = int(rng.uniform(0.15, 0.65) * stage.frames)
    speed = float(rng.uniform(5, 7) if stage.scene.kind == "car park" else rng.uniform(8, 11))
    after = np.maximum(routine.frame_numbers(stage) - first, 0) / stage.fps
    return first, speed, 0.28 * (1 - np.exp(-after / 0.28))


def _earlier(stage: Stage, first: int) -> None:
    """Vehicles that are past before an accident."""
    if stage.rng.random() < 0.7:
        routine.traffic(stage, until=first)


def _crash(stage: Stage) -> Interval:
    rng, number = stage.rng, routine.frame_numbers(stage)
    first, speed, slide = _impact(stage)
    (y, _), (other, _) = stage.scene.lanes
    x, middle = routine.lane_x(stage, 0.0), 0.5 * (y + other)
    _earlier(stage, first)
    before = np.minimum(number - first, 0) / stage.fps
    settled = slide / 0.28
    swerve = np.clip(1 + before / 0.8, 0, 1) ** 2
    for way, lane, sign in ((1, y, 1), (-1, other, -1)):
        crush = rng.uniform(0.5, 0.9) * np.clip((number - first + 2) / 4, 0, 1)
        bend = rng.uniform(0.5, 1.3) * rng.choice([-1, 1])
        along = x - way * 1.75 + way * (speed * before) - way * slide * rng.uniform(0.0, 4.0)
        across = lane + (middle + 0.45 * sign - lane) * swerve + settled * rng.uniform(-0.8, 0.8)
        lean = np.clip(np.gradient(across) * stage.fps / speed, -0.5, 0.5) * (number < first) * way
        heading = (0.0 if way > 0 else np.pi) + lean + bend * settled
        kind, paint = routine.some_vehicle(stage)
        acts = [(first, stage.frames, "a crashed car")]
        stage.add_vehicle(kind, paint, np.stack([along, across], 1), heading, crush=crush, acts=acts)
    at = (x, middle)
    actors.debris(stage, at, first, 4.0, 50)
    _litter(stage, at, first)
    actors.smoke(stage, at, first, stage.frames, 0.9, dark=bool(rng.random() < 0.3))
    stage.activity.append((first, stage.frames, "two crashed cars"))
    return first, stage.frames


def _overturn(stage: Stage) -> Interval:
    rng, number = stage.rng, routine.frame_numbers(stage)
    first, speed, slide = _impact(stage)
    y, way = stage.scene.lanes[rng.integers(2)]
    x = routine.lane_x(stage, y)
    _earlier(stage, first)
    before = np.minimum(number - first, 0) / stage.fps
    settled = slide / 0.28
    along = x + way * (speed * before + 0.25 * speed * (settled - 1))  # it comes to rest at x
    across = y + settled * rng.uniform(-0.6, 0.6)
    swing = 0.35 * np.sin(np.clip(1 + before / 0.9, 0, 1) * np.pi) * rng.choice([-1, 1])
    heading = (0.0 if way > 0 else np.pi) + swing + settled * rng.uniform(0.5, 1.3) * rng.choice([-1, 1])
    roll = (
        rng.choice([-1, 1])
        * float(rng.choice([np.pi / 2, np.pi]))
        * np.clip((number - first) / (0.7 * stage.fps), 0, 1)
    )
    kind, paint = routine.some_vehicle(stage)
    acts = [(first, stage.frames, "an overturned car")]
    stage.add_vehicle(kind, paint, np.stack([along, across], 1), heading, roll=roll, acts=acts)
    at = (float(along[-1]), float(across[-1]))
    actors.debris(stage, (float(along[first]), y), first, 4.0, 40)
    _litter(stage, at, first)
    actors.smoke(stage, at, first + 10, stage.frames, 0.8, dark=bool(rng.random() < 0.5))
    stage.activity.append((first, stage.frames, "an overturned car"))
    return first, stage.frames


def _run_over(stage: Stage) -> Interval:
    rng, number, time = stage.rng, routine.frame_numbers(stage), stage.time
    first, speed, slide = _impact(stage)
    y, way = stage.scene.lanes[rng.integers(2)]
    x = routine.lane_x(stage, y)
    _earlier(stage, first)
    recovers = bool(rng.random() < 0.5)
    end = min(stage.frames, first + int(rng.uniform(4, 8) * stage.fps)) if recovers else stage.frames
    before, after = np.minimum(number - first, 0) / stage.fps, np.maximum(number - end, 0) / stage.fps
    settled = slide / 0.28
    along = x - way * 2.4 + way * (speed * before + 1.0 * settled) + way * 0.5 * 1.6 * np.maximum(after - 1, 0) ** 2
    skew = 0.4 * rng.choice([-1, 1]) * settled * np.exp(-np.maximum(after - 1, 0))
    kind, paint = routine.some_vehicle(stage)
    heading = (0.0 if way > 0 else np.pi) + skew
    stage.add_vehicle(kind, paint, np.stack([along, np.full(stage.frames, y)], 1), heading)
    crossing = float(rng.choice([-1, 1]))
    aside = -np.sign(y) * 2.0 * settled  # thrown towards the middle, clear of the wheels
    place = np.stack([x + way * 1.8 * settled, y + crossing * 1.3 * before + aside], 1)
    place[:, 1] += crossing * 1.3 * np.maximum(after - 0.6, 0)
    walk = body.walking(routine.phase_of(place, body.WALK_STRIDE, rng))
    which = np.where((number >= first) & (number < end), 1, 0)
    pose = body.blend([walk, body.lying(time, rng, face_down=bool(rng.random() < 0.5))], which)
    facing = np.full(stage.frames, crossing * np.pi / 2)
    stage.add_person(place, facing, pose, acts=[(first, end, _LYING)])
    for index in range(int(rng.integers(0, 3))):  # others come to help
        arrive = min(first + int(rng.uniform(1.0, 2.5) * stage.fps), stage.frames - 1)
        offset = np.array([0.9 * (-1) ** index, 0.7 * np.sign(-y)])
        at = place[min(first + 30, stage.frames - 1)] + offset
        way_in, faces, poses = routine.come_and_go(
            stage,
            (at[0], at[1]),
            arrive,
            max(end, arrive),
            body.standing(time, rng, talking=True),
            toward=-np.pi / 2 * np.sign(-y),
        )
        stands = [(arrive, max(end, arrive), "a person standing")]
        stage.add_person(way_in, faces, poses, acts=stands)
    actors.debris(stage, (x, y), first, 2.0, 12)
    stage.activity.append((first, end, "a car has hit a person who lies on the ground"))
    return first, end


def _litter(stage: Stage, at: routine.Spot, first: int) -> None:
    """Bits that lie on the ground from a crash on."""
    rng, count = stage.rng, 36
    depth = float(stage.camera.project(np.array([*at, 0.5]))[1])
    origin = np.concatenate([np.array(at) + rng.normal(0, 1.3, (count, 2)), np.full((count, 1), 0.04)], 1)
    stage.particles.append(
        actors.Particles(
            np.full(count, first + 12.0),
            np.full(count, float(stage.frames) * 4),
            origin,
            np.zeros((count, 3)),
            np.zeros(count),
            np.full((count, 2), 0.09) * rng.uniform(0.5, 1.6, (count, 1)),
            rng.choice([0.05, 0.15, 0.85], (count, 1, 1)) * np.ones((count, 2, 3)),
            np.ones(count),
            depth + 2.5,
            False,
        )
    )


def explosion(stage: Stage) -> Interval:
    """Something blows up and burns; people are thrown to the ground or run."""
    rng, time, number = stage.rng, stage.time, routine.frame_numbers(stage)
    first, end = span(stage, 5.0, 11.0)
    at = routine.spot(stage, 0.25)
    if stage.scene.lanes and rng.random() < 0.5:
        at = routine.kerbside(stage)
    casualties = bool(rng.random() < 0.35)
    if casualties:
        end = stage.frames
    size = float(rng.uniform(1.0, 1.6)) * (0.8 if stage.scene.indoor else 1.0)
    actors.fireball(stage, at, first, size)
    actors.fire(stage, at, first + int(0.3 * stage.fps), end, size)
    for index in range(int(rng.integers(1, 5))):
        angle = rng.uniform(0, 2 * np.pi)
        near = casualties and index == 0
        away = np.array([np.cos(angle), np.sin(angle)]) * (rng.uniform(1.3, 1.8) if near else rng.uniform(2.0, 3.5))
        line = routine.direction(stage)
        hurry = line * (1 if line @ away > 0 else -1) * rng.uniform(3.2, 4.2)
        walk_in = rng.uniform(0.9, 1.4) * routine.direction(stage)
        before, after = np.minimum(number - first, 0) / stage.fps, np.maximum(number - first - 6, 0) / stage.fps
        place = np.array(at) + away + before[:, None] * walk_in
        thrown = 0.5 * np.clip((number - first) / 8, 0, 1)[:, None] * away / np.linalg.norm(away)
        place = place + (thrown if near else after[:, None] * hurry)
        walk = body.walking(routine.phase_of(place, body.WALK_STRIDE, rng))
        flee = body.running(routine.phase_of(place, body.RUN_STRIDE, rng), wild=float(rng.random() < 0.3))
        then = body.lying(time, rng) if near else flee
        pose = body.blend([walk, then], (number >= first).astype(np.int64))
        facing = routine.heading_of(place, angle)
        if near:
            facing = np.where(number >= first, angle, facing)
        then_seen = [(first, stage.frames, _LYING if near else "a person running")]
        stage.add_person(place, facing, pose, shown=routine.inside(stage, place), acts=then_seen)
    routine.ordinary(stage, drive=False, people=int(rng.integers(0, 2)))
    stage.activity.append((first, min(first + int(1.2 * stage.fps), end), "a fireball and flying debris"))
    stage.activity.append((first + int(1.2 * stage.fps), end, "flames and smoke"))
    return first, end


def riot(stage: Stage) -> Interval:
    """A crowd runs through, with waving arms, sticks and signs; it lasts while at least three of it are in view."""
    rng, number, fps = stage.rng, routine.frame_numbers(stage), stage.fps
    first, end = span(stage, 5.0, 10.0)
    seen = np.zeros(stage.frames, np.int64)
    density = 3.0 if stage.scene.indoor else 4.8
    common = routine.direction(stage)
    for when in np.sort(rng.uniform(min(first + 2.5 * fps, end - 1), end, int(density * (end - first) / fps))):
        unit = common if rng.random() < 0.75 else -common
        low_x, high_x, low_y, high_y = stage.scene.open
        middle = np.array([rng.uniform(low_x, high_x), rng.uniform(low_y - (0 if stage.scene.indoor else 1.5), high_y)])
        speed = rng.uniform(2.6, 4.0)
        seconds = (number - when) / fps
        weave = rng.uniform(0.1, 0.4) * np.sin(rng.uniform(1, 2) * seconds + rng.uniform(0, 6))
        place = middle + (seconds * speed)[:, None] * unit + weave[:, None] * np.array([-unit[1], unit[0]])
        wild = float(rng.random() < 0.6)
        pose = body.running(routine.phase_of(place, body.RUN_STRIDE, rng), wild=wild)
        holds = str(rng.choice(["", "stick", "sign"], p=(0.35, 0.35, 0.3)))
        person = stage.add_person(
            place,
            routine.heading_of(place, 0.0),
            pose,
            shown=routine.inside(stage, place),
            look=Look.random(rng, holds),
            acts=[(0, stage.frames, "a person rioting")],
        )
        seen += stage.in_view(person)
    enough = np.nonzero(seen >= 3)[0]
    begins, ends = (int(enough[0]), int(enough[-1]) + 1) if len(enough) else (first, end)
    if rng.random() < 0.45:
        at = routine.spot(stage)
        actors.fire(stage, at, begins, max(ends - int(fps), begins + 10), 0.5)
    routine.ordinary(stage, drive=False, people=int(rng.integers(0, 3)))
    stage.activity.append((begins, ends, "a crowd running and waving"))
    return begins, ends


EVENTS: dict[str, Callable[[Stage], Interval]] = {
    "fighting": fighting,
    "accident": accident,
    "explosion": explosion,
    "riot": riot,
}
"""Each event's name, which is also its label, and what stages it."""
