"""A place in the making: what a scene is, and the furniture that is put into it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vadclip.world import drawing, surfaces, vehicles
from vadclip.world.camera import HEIGHT, OVERSAMPLING, WIDTH, Camera
from vadclip.world.lighting import Lighting, daylight, indoor, nightlight

Floats = NDArray[np.float64]
Point = tuple[float, float]

_SIZE = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)


@dataclass
class Cover:
    """Furniture that may hide what is behind it: its pixels as a mask (L) in a box, and its depth in metres."""

    box: tuple[int, int, int, int]
    mask: Image.Image
    depth: float


@dataclass
class Scene:
    """A place with its camera.

    Attributes:
        name: ``split-kind-number``.
        kind: one of ``scenes.KINDS``.
        camera: the camera.
        albedo: colours of the empty scene from 0 to 1, float64 [H,W,3], oversampled.
        points: the world's point behind each pixel in metres, [H,W,3].
        shade: share of light that each pixel's surface takes, [H,W].
        covers: furniture.
        walks: lines in metres along which people walk; with ``endless`` they go on beyond their ends.
        open: the ground where people may stand about: least x, greatest x, least y, greatest y.
        lanes: where vehicles drive: (y, direction along x).
        lamps: places of lamps in metres.
        indoor: whether it has a ceiling.
        seats: where one can sit: x, y and the direction in radians that one faces.
        bays: free parking bays: x, y.
    """

    name: str
    kind: str
    camera: Camera
    albedo: Floats
    points: Floats
    shade: Floats
    covers: list[Cover] = field(default_factory=list)
    walks: list[tuple[Point, Point]] = field(default_factory=list)
    endless: bool = True
    open: tuple[float, float, float, float] = (-4.0, 4.0, -3.0, 3.0)
    lanes: list[tuple[float, int]] = field(default_factory=list)
    lamps: list[tuple[float, float, float]] = field(default_factory=list)
    indoor: bool = False
    seats: list[tuple[float, float, float]] = field(default_factory=list)
    bays: list[Point] = field(default_factory=list)

    def lighting(self, rng: np.random.Generator, night: bool) -> Lighting:
        """Light for a day or a night here."""
        if self.indoor:
            return indoor(rng, self.lamps, night)
        return nightlight(rng, self.lamps) if night else daylight(rng)

    def background(self, light: Lighting) -> Image.Image:
        """The empty scene under a light, RGB, oversampled."""
        coarse = light.at(self.points[::2, ::2])  # light changes slowly, and this is the slow part
        fall = np.repeat(np.repeat(coarse, 2, 0), 2, 1)
        sky = self.points[..., 2] > 500
        if light.night:
            fall[sky] = np.asarray(light.ambient) * 0.8
        picture = np.clip(self.albedo * fall * self.shade[..., None] * 255, 0, 255).astype(np.uint8)
        return Image.fromarray(picture)


@dataclass(frozen=True)
class _Thing:
    """Furniture before it is drawn: polygons as (pixels, colour), discs as (pixel, radius, colour)."""

    depth: float
    place: Point
    polygons: list[tuple[list[Point], Floats]]
    discs: list[tuple[Point, float, Floats]]


class Site:
    """A scene that is being furnished."""

    def __init__(self, kind: str, camera: Camera, planes: list[surfaces.Plane], rng: np.random.Generator) -> None:
        sky = tuple(np.array([0.72, 0.8, 0.9]) * rng.uniform(0.8, 1.05))
        albedo, points, shade = surfaces.raster(camera, planes, sky)
        self.scene = Scene("", kind, camera, albedo, points, shade)
        self.rng = rng
        self._things: list[_Thing] = []

    def add(
        self, x: float, y: float, parts: list[tuple[Floats, Floats]], blobs: list[tuple[Floats, float, Floats]]
    ) -> None:
        """Put a thing at x, y: polygons (points [k,3], colour) and discs (centre [3], metres, colour)."""
        camera = self.scene.camera
        _, depth = camera.project(np.array([x, y, 0.5]))
        if depth < 1.0:
            return
        polygons = []
        for points, colour in parts:
            flat, depths = camera.project(points)
            if depths.min() < 0.4:
                return
            polygons.append(([(float(a), float(b)) for a, b in flat], colour))
        discs = []
        for centre, radius, colour in blobs:
            flat, far = camera.project(centre)
            discs.append(((float(flat[0]), float(flat[1])), float(radius * camera.scale(far)), colour))
        self._things.append(_Thing(float(depth), (x, y), polygons, discs))

    def box(
        self,
        x: float,
        y: float,
        size: tuple[float, float, float],
        colour: Floats,
        base: float = 0.0,
        goods: bool = False,
    ) -> None:
        """A box with its middle at x, y; ``goods`` fills its sides with rows of coloured packets."""
        parts = self._box(x, y, size, colour, base, goods)
        self.add(x, y, parts, [])

    def _box(
        self, x: float, y: float, size: tuple[float, float, float], colour: Floats, base: float, goods: bool
    ) -> list[tuple[Floats, Floats]]:
        camera = self.scene.camera
        wide, deep, high = size[0] / 2, size[1] / 2, size[2]
        parts: list[tuple[Floats, Floats]] = []
        low, top = base, base + high
        sides = [
            (camera.y < y - deep, [(x - wide, y - deep), (x + wide, y - deep)], 0.85),
            (camera.y > y + deep, [(x - wide, y + deep), (x + wide, y + deep)], 0.85),
            (camera.x < x - wide, [(x - wide, y - deep), (x - wide, y + deep)], 0.68),
            (camera.x > x + wide, [(x + wide, y - deep), (x + wide, y + deep)], 0.68),
        ]
        for seen, ((ax, ay), (bx, by)), shade in sides:
            if not seen:
                continue
            parts.append((np.array([(ax, ay, low), (bx, by, low), (bx, by, top), (ax, ay, top)]), colour * shade))
            if goods:
                parts.extend(self._packets((ax, ay), (bx, by), low, top, shade))
        if camera.z > top:
            ring = [(x - wide, y - deep), (x + wide, y - deep), (x + wide, y + deep), (x - wide, y + deep)]
            parts.append((np.array([(*corner, top) for corner in ring]), colour))
        return parts

    def _packets(self, a: Point, b: Point, low: float, top: float, shade: float) -> list[tuple[Floats, Floats]]:
        parts: list[tuple[Floats, Floats]] = []
        first, second = np.array(a), np.array(b)
        columns = max(2, int(np.hypot(*(second - first)) / 0.35))
        rows = max(2, int((top - low) / 0.42))
        for row in range(rows):
            bottom = low + (row + 0.12) * (top - low) / rows
            for column in range(columns):
                tall = self.rng.uniform(0.45, 0.8) * (top - low) / rows
                left = first + (second - first) * (column + 0.08) / columns
                right = first + (second - first) * (column + 0.92) / columns
                ring = [(*left, bottom), (*right, bottom), (*right, bottom + tall), (*left, bottom + tall)]
                parts.append((np.array(ring), self.rng.uniform(0.15, 0.75, 3) * shade))
        return parts

    def post(self, x: float, y: float, high: float, thick: float, colour: Floats) -> None:
        """An upright post."""
        camera = self.scene.camera
        side = np.array([np.cos(camera.yaw), -np.sin(camera.yaw), 0]) * thick / 2
        foot, head = np.array([x, y, 0.0]), np.array([x, y, high])
        self.add(x, y, [(np.array([foot - side, foot + side, head + side, head - side]), colour)], [])

    def lamp(self, x: float, y: float, high: float) -> None:
        """A lamp post that gives light at night."""
        self.post(x, y, high, 0.14, np.full(3, self.rng.uniform(0.2, 0.5)))
        self.scene.lamps.append((x, y, high))

    def tree(self, x: float, y: float) -> None:
        """A tree."""
        rng, high = self.rng, self.rng.uniform(2.6, 4.2)
        green = np.array([0.2, 0.36, 0.14]) * rng.uniform(0.7, 1.2)
        blobs = []
        for _ in range(45):
            offset = rng.normal(0, 0.55, 3)
            shade = 0.7 + 0.25 * offset[2] + rng.uniform(-0.15, 0.15)
            blobs.append((np.array([x, y, high]) + offset, float(rng.uniform(0.25, 0.5)), green * shade))
        side = np.array([0.12, 0, 0])
        foot, head = np.array([x, y, 0.0]), np.array([x, y, high])
        trunk = (np.array([foot - side, foot + side, head + side / 2, head - side / 2]), np.array([0.3, 0.24, 0.18]))
        self.add(x, y, [trunk], blobs)

    def bush(self, x: float, y: float) -> None:
        """A planter with a bush."""
        parts = self._box(x, y, (1.2, 1.2, 0.5), np.full(3, self.rng.uniform(0.35, 0.6)), 0.0, False)
        green = np.array([0.2, 0.38, 0.15]) * self.rng.uniform(0.7, 1.3)
        blobs = [
            (np.array([x, y, 0.7]) + self.rng.normal(0, 0.22, 3), 0.22, green * self.rng.uniform(0.7, 1.2))
            for _ in range(18)
        ]
        self.add(x, y, parts, blobs)

    def bench(self, x: float, y: float, heading: float) -> None:
        """A bench that faces along x (0, pi) or y, and a seat on it."""
        along = abs(np.cos(heading)) < 0.5
        wood = np.array([0.42, 0.3, 0.2]) * self.rng.uniform(0.6, 1.4)
        self.box(x, y, (1.7, 0.45, 0.42) if along else (0.45, 1.7, 0.42), wood)
        ahead = np.array([np.cos(heading), np.sin(heading)]) * 0.12
        self.scene.seats.append((float(x + ahead[0]), float(y + ahead[1]), heading))

    def parked(self, x: float, y: float, heading: float) -> None:
        """A parked vehicle."""
        rng = self.rng
        kind = list(vehicles.SHAPES)[rng.integers(len(vehicles.SHAPES))]
        body = car_colour(rng)
        points = vehicles.vertices(kind, np.array([[x, y]]), np.array([heading]))
        pixels, depth = self.scene.camera.project(points)
        if depth.min() < 0.6:
            return
        faces = vehicles.MESHES[kind][1]
        seen = drawing.facing(pixels, faces)[0]
        parts = []
        for face, shown in zip(faces, seen, strict=True):
            if shown:
                paint = body if face.paint == "body" else drawing.PAINTS[face.paint]
                parts.append((points[0, list(face.vertices)], paint * face.shade))
        flat = np.array([(x, y, 0.0)]) + (points[0, :4] - [x, y, 0]) * [1.05, 1.05, 0]
        self.add(x, y, [(flat, np.full(3, 0.12)), *parts], [])

    def finish(self) -> Scene:
        """Draw everything that was added, far things first."""
        scene = self.scene
        picture = Image.fromarray(np.clip(scene.albedo * 255, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for thing in sorted(self._things, key=lambda thing: -thing.depth):
            mask = Image.new("L", _SIZE)
            masking = ImageDraw.Draw(mask)
            for points, colour in thing.polygons:
                draw.polygon(points, fill=drawing.lit(colour, np.ones(3)))
                masking.polygon(points, fill=255)
            for (x, y), radius, colour in thing.discs:
                box = [x - radius, y - radius, x + radius, y + radius]
                draw.ellipse(box, fill=drawing.lit(colour, np.ones(3)))
                masking.ellipse(box, fill=255)
            bounds = mask.getbbox()
            if bounds is None:
                continue
            scene.covers.append(Cover(bounds, mask.crop(bounds), thing.depth))
            inside = np.asarray(mask) > 0
            scene.points[inside] = (*thing.place, 0.5)
            scene.shade[inside] = 1.0
        scene.albedo = np.asarray(picture).astype(np.float64) / 255
        return scene


def car_colour(rng: np.random.Generator) -> Floats:
    """Paint of a vehicle: grey scales for the most part."""
    if rng.random() < 0.6:
        return np.full(3, rng.choice([0.08, 0.2, 0.45, 0.65, 0.88])) + rng.uniform(-0.03, 0.03, 3)
    colours = [(0.6, 0.08, 0.08), (0.1, 0.2, 0.5), (0.1, 0.35, 0.2), (0.75, 0.35, 0.08), (0.7, 0.62, 0.2)]
    return np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.7, 1.2)
