"""From a stage to pictures: background, shadows, actors far to near, then what the camera adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vadclip.world import drawing, vehicles
from vadclip.world.actors import Particles, Person, Stage, Vehicle
from vadclip.world.body import Joint
from vadclip.world.camera import HEIGHT, OVERSAMPLING, WIDTH
from vadclip.world.lighting import Lighting
from vadclip.world.site import Cover

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]

_LEVEL = 80.0  # mean brightness that the camera's gain aims at in the dark
_MOST_GAIN = 2.2
_NOISES = 4  # pictures of noise that are used over and over, each time shifted
_SHADOW_LIMBS = (
    (Joint.HIP_L, Joint.KNEE_L, Joint.FOOT_L),
    (Joint.HIP_R, Joint.KNEE_R, Joint.FOOT_R),
    (Joint.SHOULDER_L, Joint.ELBOW_L, Joint.HAND_L),
    (Joint.SHOULDER_R, Joint.ELBOW_R, Joint.HAND_R),
)


class Renderer:
    """Draws a stage's frames.

    Args:
        stage: what happens.
        rng: for noise, exposure and the like; its own, so that the camera's noise does not depend on the plot.
    """

    def __init__(self, stage: Stage, rng: np.random.Generator) -> None:
        self._stage, self._rng = stage, rng
        night = stage.light.night
        self._mono = night and bool(rng.random() < 0.35)
        self._noise = self._make_noise(rng.uniform(3.5, 6.5) if night else rng.uniform(1.2, 3.0))
        self._light = stage.light
        self._background = stage.scene.background(stage.light)
        self._gain = self._exposure()
        self._glow = self._make_glow()
        self._masks: dict[tuple[int, int], Image.Image] = {}
        self._falls: dict[tuple[int, int], Floats] = {}
        self._soft = _soft_disc()
        self._clock = _Clock(rng, night) if rng.random() < 0.6 else None

    def frames(self) -> Iterator[Picture]:
        """RGB uint8 [240,320,3], one after the other."""
        for index in range(self._stage.frames):
            yield self.frame(index)

    def frame(self, index: int) -> Picture:
        """RGB uint8 [240,320,3], any frame; its noise depends on what was drawn before."""
        return self._finish(index, self._draw(index))

    def _draw(self, index: int) -> Image.Image:
        stage = self._stage
        light = stage.light
        if stage.switch is not None and index >= stage.switch[0]:
            light = stage.switch[1]
        if light is not self._light:
            self._light, self._background = light, stage.scene.background(light)
        picture = self._background.copy()
        people = [person for person in stage.people if person.shown[index] and _near_picture(person.pixels[index])]
        cars = [car for car in stage.vehicles if car.shown[index] and _near_picture(car.pixels[index])]
        if people or cars:
            self._shadows(picture, index, people, cars)
        draw = ImageDraw.Draw(picture)
        things: list[tuple[float, Callable[[], None]]] = []
        deepest = 0.0
        for person in people:
            deepest = max(deepest, float(person.depth[index]))
            things.append((float(person.depth[index]), _call(self._person, draw, index, person, light)))
        for car in cars:
            deepest = max(deepest, float(car.depth[index]))
            things.append((float(car.depth[index]), _call(self._vehicle, draw, index, car, light)))
        for cover in stage.scene.covers:
            if cover.depth < deepest:
                things.append((cover.depth, _call(self._cover, picture, cover)))
        for particles in stage.particles:
            things.append((particles.depth, _call(self._particles, picture, index, particles, light)))
        for _, show in sorted(things, key=lambda thing: -thing[0]):
            show()
        return picture.reduce(OVERSAMPLING)

    def _shadows(self, picture: Image.Image, index: int, people: list[Person], cars: list[Vehicle]) -> None:
        mask = Image.new("L", picture.size)
        draw = ImageDraw.Draw(mask)
        for car in cars:
            points = car.shadow[index]
            draw.polygon(_hull(points), fill=255)
        for person in people:
            points, size = _tuples(person.shadow[index]), float(person.size[index])
            for limb in _SHADOW_LIMBS:
                draw.line([points[joint] for joint in limb], fill=255, width=max(2, round(0.06 * size)))
            draw.line([points[Joint.NECK], points[Joint.PELVIS]], fill=255, width=max(2, round(0.14 * size)))
            x, y = points[Joint.HEAD]
            draw.ellipse([x - 0.05 * size, y - 0.04 * size, x + 0.05 * size, y + 0.04 * size], fill=255)
        box = mask.getbbox()
        if box is None:
            return
        strength = 0.5 if self._stage.light.sunny else 0.36
        part = mask.crop(box).point([round(level * strength) for level in range(256)])
        picture.paste((0, 0, 0), box, part)

    def _person(self, draw: ImageDraw.ImageDraw, index: int, person: Person, light: Lighting) -> None:
        falls = self._falling(person, light)[index]
        drawing.person(
            draw, person.look, _tuples(person.pixels[index]), float(person.size[index]), falls, bool(person.left[index])
        )

    def _vehicle(self, draw: ImageDraw.ImageDraw, index: int, car: Vehicle, light: Lighting) -> None:
        drawing.vehicle(
            draw,
            car.paint,
            _tuples(car.pixels[index]),
            vehicles.MESHES[car.kind][1],
            car.seen[index].tolist(),
            self._falling(car, light)[index],
            car.lamps,
            bool(car.overturned[index]),
        )

    def _falling(self, actor: Person | Vehicle, light: Lighting) -> Floats:
        """Light on an actor in all frames, [n,3]; worked out once."""
        key = (id(actor), id(light))
        if key not in self._falls:
            self._falls[key] = light.at(np.concatenate([actor.place, np.full((len(actor.place), 1), 0.9)], 1))
        return self._falls[key]

    def _cover(self, picture: Image.Image, cover: Cover) -> None:
        picture.paste(self._background.crop(cover.box), cover.box, cover.mask)

    def _particles(self, picture: Image.Image, index: int, blobs: Particles, light: Lighting) -> None:
        age = (index - blobs.birth) / blobs.life
        alive = np.nonzero((age >= 0) & (age < 1))[0]
        if not len(alive):
            return
        share = age[alive]
        seconds = (share * blobs.life[alive] / self._stage.fps)[:, None]
        points = blobs.origin[alive] + seconds * blobs.speed[alive]
        points[:, 2] += 0.5 * blobs.lift[alive] * seconds[:, 0] ** 2
        points[:, 2] = np.maximum(points[:, 2], 0.03)
        pixels, depth = self._stage.camera.project(points)
        radius = blobs.radius[alive, 0] + share * (blobs.radius[alive, 1] - blobs.radius[alive, 0])
        radius *= self._stage.camera.scale(depth)
        colours = blobs.colours[alive, 0] + share[:, None] * (blobs.colours[alive, 1] - blobs.colours[alive, 0])
        if not blobs.glows:
            colours = colours * np.clip(light.at(points), 0.12, 1.2)
        opacity = blobs.opacity[alive] * np.minimum(1, 3 * (1 - share))
        rows = np.clip(colours * 255, 0, 255).astype(int).tolist()
        for (x, y), size, colour, cover in zip(pixels.tolist(), radius.tolist(), rows, opacity.tolist(), strict=True):
            if not -200 < x < picture.width + 200 or not -200 < y < picture.height + 200 or size > 200:
                continue
            mask = self._mask(size, cover)
            half = mask.width // 2
            picture.paste(tuple(colour), (round(x) - half, round(y) - half), mask)

    def _mask(self, radius: float, opacity: float) -> Image.Image:
        """A soft disc; sizes and opacities are rounded, so that few have to be made."""
        step = max(1, round(np.log(max(radius, 1.5)) * 9))
        key = (step, round(opacity * 12))
        if key not in self._masks:
            side = 2 * max(1, round(float(np.exp(step / 9))))
            disc = self._soft.resize((side, side), Image.Resampling.BILINEAR)
            self._masks[key] = disc.point([round(level * key[1] / 12) for level in range(256)])
        return self._masks[key]

    def _finish(self, index: int, drawn: Image.Image) -> Picture:
        if self._mono:
            drawn = drawn.convert("L").convert("RGB")
        table = np.clip(np.arange(256) * self._gain[index], 0, 255).astype(np.int16)
        values = table[np.asarray(drawn)]
        flash = 0.0 if self._stage.flash is None else float(self._stage.flash[index])
        if flash > 0.01:
            assert self._glow is not None
            values = values + (self._glow * np.int32(256 * flash) >> 8).astype(np.int16)
        noise = self._noise[int(self._rng.integers(_NOISES))]
        rows, columns = self._rng.integers(HEIGHT), self._rng.integers(WIDTH)
        values = values + np.roll(noise, (int(rows), int(columns)), (0, 1))
        picture: Picture = np.clip(values, 0, 255).astype(np.uint8)
        if self._clock is not None:
            self._clock.stamp(picture, index / self._stage.fps)
        return picture

    def _make_noise(self, strength: float) -> NDArray[np.int16]:
        shape = (_NOISES, HEIGHT, WIDTH)
        grey = strength * self._rng.standard_normal((*shape, 1), np.float32)
        if self._mono:
            return np.repeat(np.round(grey).astype(np.int16), 3, axis=-1)
        colour = 0.5 * strength * self._rng.standard_normal((*shape, 3), np.float32)
        return np.round(grey + colour).astype(np.int16)

    def _exposure(self) -> Floats:
        """Gain of each frame: more in the dark, a slow drift, and less after a flash."""
        time = self._stage.time
        level = float(np.asarray(self._background.reduce(8).convert("L")).mean())
        gain: Floats = np.ones(len(time)) * self._rng.uniform(0.9, 1.08) * float(np.clip(_LEVEL / level, 1, _MOST_GAIN))
        for _ in range(3):
            rate, phase = self._rng.uniform(0.1, 0.9), self._rng.uniform(0, 6.3)
            gain = gain + 0.012 * np.sin(rate * time + phase)
        flash = self._stage.flash
        if flash is not None:
            slow = np.convolve(flash, np.exp(-np.arange(40) / 15), mode="full")[: len(flash)]
            gain = gain * (1 - 0.3 * slow / max(float(slow.max()), 1e-9))
        return gain

    def _make_glow(self) -> NDArray[np.int32] | None:
        if self._stage.flash_at is None:
            return None
        x, y = self._stage.flash_at / OVERSAMPLING
        far = np.hypot(np.arange(WIDTH)[None] - x, np.arange(HEIGHT)[:, None] - y)
        fall = 0.35 + 0.9 / (1 + (far / 70) ** 2)
        glow = 260 * fall[..., None] * (np.full(3, 0.88) if self._mono else np.array([1.0, 0.88, 0.62]))
        whole: NDArray[np.int32] = glow.astype(np.int32)
        return whole


class _Clock:
    """The date, time and camera number that many cameras burn in."""

    def __init__(self, rng: np.random.Generator, night: bool) -> None:
        self._begin = int(rng.integers(20, 29) if night else rng.integers(8, 18)) * 3600 + int(rng.integers(3600))
        self._title = f"CAM {int(rng.integers(1, 32)):02d}"
        self._day = f"20{int(rng.integers(10, 26))}-{int(rng.integers(1, 13)):02d}-{int(rng.integers(1, 29)):02d}"
        self._top = bool(rng.random() < 0.5)
        self._font = ImageFont.load_default_imagefont()
        self._second = -1
        self._mask = np.zeros((14, WIDTH), bool)

    def stamp(self, picture: Picture, time: float) -> None:
        """Write onto a picture, in place."""
        now = (self._begin + int(time)) % 86400
        if now != self._second:
            self._second = now
            strip = Image.new("1", (WIDTH, 14))
            text = f"{self._title}  {self._day} {now // 3600:02d}:{now // 60 % 60:02d}:{now % 60:02d}"
            ImageDraw.Draw(strip).text((6, 1), text, fill=1, font=self._font)
            self._mask = np.asarray(strip)
        rows = slice(2, 16) if self._top else slice(HEIGHT - 16, HEIGHT - 2)
        picture[rows][self._mask] = 235


def _soft_disc() -> Image.Image:
    axis = np.linspace(-1, 1, 128)
    far = np.hypot(axis[:, None], axis[None])
    return Image.fromarray((255 * np.clip(1.25 * (1 - far), 0, 1) ** 0.9).astype(np.uint8))


def _tuples(points: Floats) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist()]


def _near_picture(points: Floats) -> bool:
    low, high = points.min(0), points.max(0)
    inside = low[0] < WIDTH * OVERSAMPLING and low[1] < HEIGHT * OVERSAMPLING and high[0] > 0 and high[1] > 0
    return bool(inside) and float(np.abs(points).max()) < 1e4


def _hull(points: Floats) -> list[tuple[float, float]]:
    """Convex hull (Andrew's monotone chain)."""
    ordered = sorted(_tuples(points))

    def chain(items: list[tuple[float, float]]) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        for x, y in items:
            while len(found) > 1:
                (ax, ay), (bx, by) = found[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                found.pop()
            found.append((x, y))
        return found[:-1]

    return chain(ordered) + chain(ordered[::-1])


def _call(function: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: function(*arguments)
