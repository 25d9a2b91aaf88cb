"""Cars and vans: boxes with a cabin, wheels and lamps, over the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Face(NamedTuple):
    """A flat part: vertices counterclockwise as seen from outside, its paint, how much light it takes."""

    vertices: tuple[int, ...]
    paint: str  # body, glass, dark, wheel, front, rear
    shade: float


@dataclass(frozen=True)
class Shape:
    """A kind of vehicle, in metres: its box, and where the cabin stands on it from the rear (0) to the front (1)."""

    length: float
    width: float
    sill: float
    height: float
    cabin: tuple[float, float, float, float]  # bottom rear, bottom front, top rear, top front


SHAPES = {
    "car": Shape(4.2, 1.75, 0.82, 1.45, (0.06, 0.74, 0.2, 0.58)),
    "estate": Shape(4.5, 1.8, 0.88, 1.5, (0.01, 0.76, 0.04, 0.6)),
    "van": Shape(5.0, 1.95, 1.1, 2.2, (0.0, 0.92, 0.0, 0.78)),
}
_CORNERS = 8
_WHEEL = 9  # vertices of a wheel
_RADIUS = 0.33


def _mesh(shape: Shape) -> tuple[Floats, list[Face]]:
    """Vertices [v,3] in the vehicle's frame (x ahead, y left, z up from the ground) and faces."""
    half, side = shape.length / 2, shape.width / 2
    points: list[tuple[float, float, float]] = []
    faces: list[Face] = []

    def box(low: tuple[float, float], high: tuple[float, float], bottom: float, top: float, inset: float) -> int:
        first = len(points)
        for (rear, front), z, wide in ((low, bottom, side), (high, top, side - inset)):
            points.extend([(rear, -wide, z), (front, -wide, z), (front, wide, z), (rear, wide, z)])
        return first

    def sides(first: int, paint: str, top: str) -> None:
        a, b, c, d, e, f, g, h = range(first, first + _CORNERS)
        faces.extend(
            [
                Face((a, b, f, e), paint, 0.72),
                Face((c, d, h, g), paint, 0.78),
                Face((b, c, g, f), paint, 0.85),
                Face((d, a, e, h), paint, 0.66),
                Face((e, f, g, h), top, 1.0),
                Face((d, c, b, a), "dark", 0.5),
            ]
        )

    sides(box((-half, half), (-half, half), 0.25, shape.sill, 0.04), "body", "body")
    lower, upper = (shape.cabin[:2], shape.cabin[2:])
    stand = [(-half + share[0] * shape.length, -half + share[1] * shape.length) for share in (lower, upper)]
    cabin = len(faces)
    sides(box(stand[0], stand[1], shape.sill, shape.height, 0.16), "glass", "body")
    if shape is SHAPES["van"]:  # its sides are metal
        faces[cabin : cabin + 2] = [face._replace(paint="body") for face in faces[cabin : cabin + 2]]
        faces[cabin + 3] = faces[cabin + 3]._replace(paint="body")
    for x in (-0.62 * half, 0.62 * half):
        for y, sign in ((-side - 0.01, 1), (side + 0.01, -1)):
            first = len(points)
            turn = np.linspace(0, 2 * np.pi, _WHEEL, endpoint=False)
            points.extend(
                (x + _RADIUS * float(np.cos(t)), y, _RADIUS + sign * _RADIUS * float(np.sin(t))) for t in turn
            )
            faces.append(Face(tuple(range(first, first + _WHEEL)), "wheel", 0.6))
    for x, sign, paint in ((half + 0.01, 1, "front"), (-half - 0.01, -1, "rear")):
        for y in (-0.72 * side, 0.72 * side):
            first = len(points)
            for dy, dz in ((-0.2, -0.08), (0.2, -0.08), (0.2, 0.08), (-0.2, 0.08)):
                points.append((x, y + sign * dy, 0.62 + dz))
            faces.append(Face(tuple(range(first, first + 4)), paint, 1.0))
    return np.array(points), faces


MESHES = {name: _mesh(shape) for name, shape in SHAPES.items()}


def vertices(
    kind: str, place: Floats, heading: Floats, roll: Floats | None = None, crush: Floats | None = None
) -> Floats:
    """Where a vehicle's vertices are, [n,v,3] in metres.

    Args:
        kind: one of ``SHAPES``.
        place: the ground under its middle, x and y [n,2].
        heading: radians from the x axis to its front [n].
        roll: radians that it is turned over its side [n].
        crush: metres by which its front is pushed in [n].
    """
    points, _ = MESHES[kind]
    shape = SHAPES[kind]
    body = np.repeat(points[None], len(place), axis=0)
    if crush is not None:
        front = np.clip((body[..., 0] - 0.1 * shape.length) / (0.4 * shape.length), 0, 1)
        bent = np.where(body[..., 1] > 0, 1.0, 0.35)
        body[..., 0] -= crush[:, None] * front * bent
        body[..., 2] += 0.25 * crush[:, None] * front * (body[..., 2] > 0.5)
    if roll is not None:
        y, z = body[..., 1].copy(), body[..., 2] - shape.height / 2
        cosine, sine = np.cos(roll)[:, None], np.sin(roll)[:, None]
        body[..., 1], body[..., 2] = y * cosine - z * sine, y * sine + z * cosine
        low = body[..., 2].min(axis=1, keepdims=True)
        body[..., 2] -= low
    x, y = body[..., 0].copy(), body[..., 1].copy()
    cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
    body[..., 0] = x * cosine - y * sine + place[:, :1]
    body[..., 1] = x * sine + y * cosine + place[:, 1:]
    return body
