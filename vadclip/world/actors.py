"""What moves in a clip: people, vehicles, fire, smoke and debris, worked out for all frames before any is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vadclip.world import body, drawing, vehicles
from vadclip.world.camera import Camera
from vadclip.world.lighting import Lighting
from vadclip.world.site import Scene

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NEAR = 2.0  # metres; what is nearer to the lens is left out

Act = tuple[int, int, str]
"""First frame, the one after the last, and what someone or something is seen to do in them."""


@dataclass(frozen=True)
class Person:
    """A person over n frames; pixels are oversampled ones."""

    look: drawing.Look
    pixels: Floats  # of the joints, [n,17,2]
    shadow: Floats  # of the joints, [n,17,2]
    depth: Floats  # metres [n]
    size: Floats  # pixels of the full height [n]
    left: Flags  # whether the left side is nearer to the camera [n]
    place: Floats  # metres [n,2]
    shown: Flags  # [n]
    acts: tuple[Act, ...] = ()  # a person walks where none is told; a later one holds before an earlier one


@dataclass(frozen=True)
class Vehicle:
    """A vehicle over n frames."""

    kind: str
    paint: Floats  # RGB from 0 to 1
    pixels: Floats  # of the vertices, [n,v,2]
    shadow: Floats  # of the lower box, on the ground, [n,8,2]
    seen: Flags  # faces that are turned to the camera, [n,faces]
    depth: Floats
    place: Floats
    heading: Floats
    overturned: Flags
    lamps: bool
    shown: Flags
    acts: tuple[Act, ...] = ()  # as a person's


@dataclass(frozen=True)
class Particles:
    """k soft blobs, each with its own life.

    Attributes:
        birth, life: frames [k].
        origin, speed: metres [k,3] and metres a second.
        lift: metres a second squared, upward [k].
        radius: metres at the begin and at the end of its life [k,2].
        colours: RGB from 0 to 1 at the begin and at the end [k,2,3].
        opacity: of the middle at the begin, from 0 to 1 [k].
        depth: metres from the camera, one for all.
        glows: whether it needs no light to be seen.
    """

    birth: Floats
    life: Floats
    origin: Floats
    speed: Floats
    lift: Floats
    radius: Floats
    colours: Floats
    opacity: Floats
    depth: float
    glows: bool


@dataclass
class Stage:
    """A clip before it is drawn.

    Attributes:
        scene, light, fps, frames: where, in what light and for how long it plays.
        rng: where all its chance comes from.
        switch: (frame, light): the light changes then; empty if it never does.
        flash: brightness that fire adds to each frame, [n], and where, pixels [2].
        activity: what else goes on, for captions.
        fires: (first frame, end, ground point in metres, height in metres).
    """

    scene: Scene
    light: Lighting
    fps: float
    frames: int
    rng: np.random.Generator
    people: list[Person] = field(default_factory=list)
    vehicles: list[Vehicle] = field(default_factory=list)
    particles: list[Particles] = field(default_factory=list)
    switch: tuple[int, Lighting] | None = None
    flash: Floats | None = None
    flash_at: Floats | None = None
    activity: list[Act] = field(default_factory=list)
    fires: list[tuple[int, int, tuple[float, float], float]] = field(default_factory=list)

    @property
    def time(self) -> Floats:
        """Seconds of each frame [n]."""
        return np.arange(self.frames) / self.fps

    @property
    def camera(self) -> Camera:
        """The scene's."""
        return self.scene.camera

    def add_person(
        self,
        place: Floats,
        heading: Floats,
        pose: Floats,
        *,
        shown: Flags | None = None,
        look: drawing.Look | None = None,
        acts: Sequence[Act] = (),
    ) -> Person:
        """Put a person on stage: ground points [n,2], radians [n] and joint angles [n,15] for all frames."""
        joints = body.skeleton(pose, place, heading, float(self.rng.uniform(1.58, 1.88)))
        pixels, depths = self.camera.project(joints)
        depth = depths.mean(1)
        height = np.full(self.frames, 1.75)
        ahead = np.stack([self.camera.x - place[:, 0], self.camera.y - place[:, 1]], -1)
        left = -np.sin(heading) * ahead[:, 0] + np.cos(heading) * ahead[:, 1] > 0
        visible = depths.min(1) > _NEAR
        person = Person(
            look or drawing.Look.random(self.rng, "bag" if self.rng.random() < 0.15 else ""),
            pixels,
            self._shadow(joints),
            depth,
            height * self.camera.scale(depth),
            left,
            place,
            visible if shown is None else visible & shown,
            tuple(acts),
        )
        self.people.append(person)
        return person

    def add_vehicle(
        self,
        kind: str,
        paint: Floats,
        place: Floats,
        heading: Floats,
        *,
        roll: Floats | None = None,
        crush: Floats | None = None,
        shown: Flags | None = None,
        acts: Sequence[Act] = (),
    ) -> Vehicle:
        """Put a vehicle on stage; see :func:`vadclip.world.vehicles.vertices`."""
        points = vehicles.vertices(kind, place, heading, roll, crush)
        pixels, depths = self.camera.project(points)
        visible = depths.min(1) > _NEAR
        vehicle = Vehicle(
            kind,
            paint,
            pixels,
            self._shadow(points[:, :16]),
            drawing.facing(pixels, vehicles.MESHES[kind][1]),
            depths.mean(1),
            place,
            heading,
            np.zeros(self.frames, bool) if roll is None else np.cos(roll) < 0.3,
            self.light.night and not self.scene.indoor,
            visible if shown is None else visible & shown,
            tuple(acts),
        )
        self.vehicles.append(vehicle)
        return vehicle

    def in_view(self, actor: Person | Vehicle, margin: float = 0.02) -> Flags:
        """Whether the middle of an actor is in the picture, [n]."""
        points = np.concatenate([actor.place, np.full((self.frames, 1), 0.9)], 1)
        return self.camera.sees(points, margin) & actor.shown

    def _shadow(self, points: Floats) -> Floats:
        """Where points [n,k,3] throw their shadows: pixels [n,k,2]."""
        reach = self.light.direction if self.light.sunny else (0.08, 0.05)
        ground = points.copy()
        height = points[..., 2]
        ground[..., 0] += reach[0] * height
        ground[..., 1] += reach[1] * height
        ground[..., 2] = 0
        return self.camera.project(ground)[0]


def fire(stage: Stage, at: tuple[float, float], first: int, end: int, size: float) -> None:
    """Flames about ``size`` metres high on the ground at ``at``, and the smoke above them."""
    rng = stage.rng
    stage.fires.append((first, end, at, size))
    depth = float(stage.camera.project(np.array([*at, 0.5]))[1])
    span = (end - first) / stage.fps
    count = max(8, int(span * 40))
    birth = first + np.sort(rng.uniform(0, max(1, end - first - 0.6 * stage.fps), count))
    fade = np.clip((end - birth) / (1.5 * stage.fps), 0.4, 1)
    origin = np.concatenate([np.array(at) + rng.normal(0, 0.28 * size, (count, 2)), rng.uniform(0, 0.3, (count, 1))], 1)
    speed = np.concatenate([rng.normal(0, 0.15, (count, 2)), rng.uniform(1.0, 2.4, (count, 1)) * size], 1)
    hot = np.array([1.0, 0.86, 0.42]) * rng.uniform(0.9, 1.0, (count, 1))
    cool = np.array([0.85, 0.22, 0.04]) * rng.uniform(0.8, 1.0, (count, 1))
    stage.particles.append(
        Particles(
            birth,
            np.minimum(rng.uniform(0.45, 0.85, count) * stage.fps, end - birth),
            origin,
            speed,
            np.zeros(count),
            np.stack([0.42 * size * fade, 0.14 * size * fade], 1),
            np.stack([hot, cool], 1),
            rng.uniform(0.7, 0.95, count),
            depth - 1.3,
            True,
        )
    )
    smoke(stage, at, first, end - int(0.5 * stage.fps), size, dark=True)
    number, flicker = np.arange(stage.frames), rng.uniform(0.07, 0.13, stage.frames) * min(size, 1.0)
    _shine(stage, at, np.where((number >= first) & (number < end), flicker, 0.0))


def smoke(stage: Stage, at: tuple[float, float], first: int, end: int, size: float, *, dark: bool) -> None:
    """Rising smoke (``dark``) or steam."""
    rng = stage.rng
    depth = float(stage.camera.project(np.array([*at, 0.5]))[1])
    count = max(4, int((end - first) / stage.fps * 9))
    birth = first + np.sort(rng.uniform(0, max(1, end - first), count))
    origin = np.concatenate([np.array(at) + rng.normal(0, 0.2 * size, (count, 2)), np.full((count, 1), 0.9 * size)], 1)
    drift = rng.normal(0, 0.5, 2)
    speed = np.concatenate([drift + rng.normal(0, 0.2, (count, 2)), rng.uniform(0.9, 1.5, (count, 1))], 1)
    level = rng.uniform(0.06, 0.2, (count, 1, 1)) if dark else rng.uniform(0.75, 0.95, (count, 1, 1))
    life = rng.uniform(1.2, 2.2, count) * stage.fps
    stage.particles.append(
        Particles(
            birth,
            np.minimum(life, np.maximum(end + 0.5 * stage.fps - birth, 1)),
            origin,
            speed * (1.0 if dark else 0.6),
            np.zeros(count),
            np.stack([np.full(count, 0.35 * size), np.full(count, 0.9 * size)], 1),
            np.broadcast_to(level, (count, 2, 3)) * np.array([1.0, 0.98, 0.96]),
            rng.uniform(0.4, 0.65, count) * (1.0 if dark else 0.7),
            depth - 1.35,
            False,
        )
    )


def fireball(stage: Stage, at: tuple[float, float], first: int, size: float) -> None:
    """The first second of an explosion: flash, ball of fire, flying bits."""
    rng, fps = stage.rng, stage.fps
    depth = float(stage.camera.project(np.array([*at, 0.8]))[1])
    count = 60
    direction = rng.normal(0, 1, (count, 3))
    direction[:, 2] = np.abs(direction[:, 2])
    hot = np.array([1.0, 0.93, 0.65]) * np.ones((count, 1))
    cool = np.array([0.75, 0.25, 0.06]) * rng.uniform(0.5, 1.0, (count, 1))
    stage.particles.append(
        Particles(
            first + rng.uniform(0, 0.12, count) * fps,
            rng.uniform(0.5, 1.2, count) * fps,
            np.array([*at, 0.6]) + 0.2 * direction,
            direction * 1.5 * size,
            np.full(count, 1.0),
            np.stack([np.full(count, 0.35 * size), np.full(count, 0.8 * size)], 1),
            np.stack([hot, cool], 1),
            rng.uniform(0.75, 1.0, count),
            depth - 1.5,
            True,
        )
    )
    debris(stage, at, first, size * 4.0, 40)
    age = (np.arange(stage.frames) - first) / fps
    flash = np.where(age >= 0, np.exp(-np.maximum(age, 0) / 0.16), 0.0)
    _shine(stage, at, flash)


def _shine(stage: Stage, at: tuple[float, float], brightness: Floats) -> None:
    """Let something at ``at`` light the picture up, [n] from 0 to 1."""
    stage.flash = brightness if stage.flash is None else np.maximum(stage.flash, brightness)
    stage.flash_at = stage.camera.project(np.array([*at, 0.8]))[0]


def debris(stage: Stage, at: tuple[float, float], first: int, force: float, count: int) -> None:
    """Small dark and bright bits that fly and fall."""
    rng = stage.rng
    depth = float(stage.camera.project(np.array([*at, 0.5]))[1])
    speed = rng.normal(0, 0.5 * force, (count, 3))
    speed[:, 2] = np.abs(speed[:, 2]) + 1.0
    level = rng.choice([0.05, 0.1, 0.8], (count, 1, 1)) * np.ones((count, 2, 3))
    stage.particles.append(
        Particles(
            np.full(count, float(first)),
            np.minimum(2 * speed[:, 2] / 9.8 + 0.1, 1.6) * stage.fps,
            np.broadcast_to(np.array([*at, 0.5]), (count, 3)),
            speed,
            np.full(count, -9.8),
            np.full((count, 2), 0.06) * rng.uniform(0.5, 1.6, (count, 1)),
            level,
            np.ones(count),
            depth - 0.6,
            False,
        )
    )
