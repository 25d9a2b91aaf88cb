"""Drawing with Pillow: boxes, people and vehicles from points that have been projected already.

Pixels here are oversampled ones; colours are RGB from 0 to 1 before light falls on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from vadclip.world.body import Joint
from vadclip.world.vehicles import Face

Floats = NDArray[np.float64]
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """A person's colours, each [3] from 0 to 1, and what is held in a hand."""

    shirt: Floats
    trousers: Floats
    skin: Floats
    hair: Floats
    holds: str = ""  # "", "bag", "stick" or "sign"

    @staticmethod
    def random(rng: np.random.Generator, holds: str = "") -> Look:
        """Clothes of someone in the street: muted for the most part, a bright or orange one now and then."""
        shirt = rng.uniform(0.08, 0.75) + rng.uniform(-0.07, 0.07, 3)
        if rng.random() < 0.45:
            shirt = rng.uniform(0.05, 0.9, 3)
        trousers = rng.uniform(0.06, 0.4) + rng.uniform(-0.04, 0.07, 3)
        skin = np.array([0.82, 0.62, 0.5]) * rng.uniform(0.45, 1.1)
        hair = np.array([0.25, 0.18, 0.12]) * rng.uniform(0.2, 2.2)
        return Look(np.clip(shirt, 0.03, 1), np.clip(trousers, 0.03, 1), skin, hair, holds)


def lit(colour: Floats, light: Floats) -> Rgb:
    """A colour under a light [3], as Pillow wants it."""
    red, green, blue = (colour * light).tolist()
    return _level(red), _level(green), _level(blue)


def _level(share: float) -> int:
    return 255 if share >= 1 else int(share * 255) if share > 0 else 0


def person(
    draw: ImageDraw.ImageDraw, look: Look, joints: list[tuple[float, float]], size: float, light: Floats, left: bool
) -> None:
    """Draw a person.

    Args:
        look: the colours.
        joints: pixels of the 17 joints.
        size: pixels of the person's full height.
        light: what falls on it, RGB.
        left: whether the person's left side is nearer to the camera.
    """
    shirt, trousers, skin = lit(look.shirt, light), lit(look.trousers, light), lit(look.skin, light)
    far_shirt, far_trousers = lit(look.shirt * 0.75, light), lit(look.trousers * 0.72, light)
    shoe = lit(look.trousers * 0.4, light)
    arm, thigh = max(1, round(0.052 * size)), max(1, round(0.075 * size))

    def leg(hip: int, toe: int, colour: Rgb) -> None:
        draw.line([joints[hip], joints[hip + 1], joints[hip + 2]], fill=colour, width=thigh, joint="curve")
        draw.line([joints[hip + 2], joints[toe]], fill=shoe, width=max(1, thigh - 1))

    def reach(shoulder: int, colour: Rgb) -> None:
        draw.line(joints[shoulder : shoulder + 3], fill=colour, width=arm, joint="curve")
        _disc(draw, joints[shoulder + 2], 0.55 * arm, skin)

    near, far = (Joint.SHOULDER_L, Joint.SHOULDER_R) if left else (Joint.SHOULDER_R, Joint.SHOULDER_L)
    near_leg, far_leg = (Joint.HIP_L, Joint.HIP_R) if left else (Joint.HIP_R, Joint.HIP_L)
    near_toe, far_toe = (Joint.TOE_L, Joint.TOE_R) if left else (Joint.TOE_R, Joint.TOE_L)
    reach(far, far_shirt)
    leg(far_leg, far_toe, far_trousers)
    leg(near_leg, near_toe, trousers)
    torso = [joints[i] for i in (Joint.SHOULDER_L, Joint.SHOULDER_R, Joint.HIP_R, Joint.HIP_L)]
    draw.line([joints[Joint.NECK], joints[Joint.PELVIS]], fill=shirt, width=max(1, round(0.135 * size)))
    draw.polygon(torso, fill=shirt, outline=shirt)
    _disc(draw, joints[Joint.NECK], 0.06 * size, shirt)
    _disc(draw, joints[Joint.PELVIS], 0.066 * size, trousers)
    head = joints[Joint.HEAD]
    _disc(draw, head, 0.066 * size, skin)
    _disc(draw, (head[0], head[1] - 0.02 * size), 0.056 * size, lit(look.hair, light))
    reach(near, lit(look.shirt * 0.88, light))
    if look.holds:
        _held(draw, look, joints, size, light)


def _held(draw: ImageDraw.ImageDraw, look: Look, joints: list[tuple[float, float]], size: float, light: Floats) -> None:
    (x, y), (ex, ey) = joints[Joint.HAND_R], joints[Joint.ELBOW_R]
    if look.holds == "bag":
        colour = lit(look.trousers * 0.8 + 0.1, light)
        draw.rectangle([x - 0.06 * size, y, x + 0.06 * size, y + 0.14 * size], fill=colour)
        return
    length = max(np.hypot(x - ex, y - ey), 1.0)
    tip = (x + (x - ex) / length * 0.4 * size, y + (y - ey) / length * 0.4 * size)
    draw.line([(x, y), tip], fill=lit(np.array([0.4, 0.3, 0.2]), light), width=max(1, round(0.03 * size)))
    if look.holds == "sign":
        wide, tall = 0.17 * size, 0.12 * size
        box = [tip[0] - wide, tip[1] - tall, tip[0] + wide, tip[1] + tall]
        draw.rectangle(box, fill=lit(np.array([0.9, 0.88, 0.82]), light), outline=lit(np.full(3, 0.2), light))


def _disc(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, colour: Rgb) -> None:
    radius = max(radius, 0.6)
    draw.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=colour)


PAINTS = {
    "glass": np.array([0.12, 0.15, 0.18]),
    "dark": np.array([0.07, 0.07, 0.07]),
    "wheel": np.array([0.06, 0.06, 0.065]),
    "front": np.array([0.85, 0.85, 0.8]),
    "rear": np.array([0.55, 0.06, 0.06]),
}


def facing(pixels: Floats, faces: list[Face]) -> NDArray[np.bool_]:
    """Which faces of projected vertices [n,v,2] are turned to the camera, [n,faces]."""
    area = np.empty((len(pixels), len(faces)))
    for index, face in enumerate(faces):
        x, y = pixels[:, face.vertices, 0], pixels[:, face.vertices, 1]
        area[:, index] = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
    result: NDArray[np.bool_] = area < 0  # rows go down, so what is counterclockwise in the world has a negative area
    return result


def vehicle(
    draw: ImageDraw.ImageDraw,
    body: Floats,
    pixels: list[tuple[float, float]],
    faces: list[Face],
    seen: list[bool],
    light: Floats,
    lamps: bool,
    overturned: bool,
) -> None:
    """Draw a vehicle of colour ``body``; with ``lamps`` its own lights are on."""
    order = range(len(faces))
    if overturned:  # the cabin, which is otherwise drawn over the body, is below
        order = [*range(6, 12), *range(6), *range(12, len(faces))]  # type: ignore[assignment]
    for index in order:
        if not seen[index]:
            continue
        face = faces[index]
        colour = lit((body if face.paint == "body" else PAINTS[face.paint]) * face.shade, light)
        if lamps and face.paint in ("front", "rear"):
            colour = (255, 250, 225) if face.paint == "front" else (225, 30, 25)
        draw.polygon([pixels[v] for v in face.vertices], fill=colour)
