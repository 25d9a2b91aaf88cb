"""Clips: a stage for a label, its pictures, its truth and its captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadclip.world import routine
from vadclip.world.actors import Stage
from vadclip.world.events import EVENTS, Interval
from vadclip.world.render import Renderer
from vadclip.world.scenes import KINDS, make_scene
from vadrun.errors import UserError

FPS = 30
LABELS = ("normal", *EVENTS)
SPLITS = ("train", "test")
SCENES = {"train": 10, "test": 6}
"""Scenes of each kind that a split has of its own, unless its size says more."""

_DRIVEN = ("road", "car park")
_EVERY = 8  # frames from one caption to the next
_WHERE = {
    "road": "on a road",
    "car park": "in a car park",
    "corridor": "in a corridor",
    "shop": "in a shop",
    "square": "on a square",
}
_SAID = {
    "fighting": (
        "fighting {where} {when}: {what}",
        "people fighting {where} {when}",
        "a scene of fighting {where} {when}: {what}",
    ),
    "accident": (
        "an accident {where} {when}: {what}",
        "a car accident {where} {when}",
        "accident: {what} {where} {when}",
    ),
    "explosion": (
        "an explosion {where} {when}: {what}",
        "explosion with {what} {where} {when}",
        "explosion {where} {when}",
    ),
    "riot": ("a riot {where} {when}: {what}", "riot {where} {when}", "a riot with {what} {where} {when}"),
    "normal": (
        "{what} {where} {when}, normal",
        "a normal view: {what} {where} {when}",
        "normal: {what} {where} {when}",
    ),
}


@dataclass(frozen=True)
class Clip:
    """A clip that is ready to be drawn.

    Attributes:
        name: ``Fighting_train_003`` and the like; names differ within a seed's world.
        split, label: as asked for.
        scene: the scene's name, which begins with its split.
        kind: the scene's kind, one of ``KINDS``.
        night: whether it is dark.
        fps: frames a second.
        frame_count: n.
        intervals: where the event is, in frames, each (first, one after the last); empty for a normal clip.
        captions: (frame, sentence) for every eighth frame.
        stage: what the pictures are drawn from.
        noise: seed of what the camera adds.
    """

    name: str
    split: str
    label: str
    scene: str
    kind: str
    night: bool
    fps: int
    frame_count: int
    intervals: tuple[Interval, ...]
    captions: tuple[tuple[int, str], ...]
    stage: Stage
    noise: np.random.SeedSequence

    @property
    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The pictures in order, RGB uint8 [240,320,3]; a new and equal iterator each time."""
        return Renderer(self.stage, np.random.default_rng(self.noise)).frames()

    def pictures(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Some frames alone, without those before them: the same scenes with other noise than ``frames`` has."""
        renderer = Renderer(self.stage, np.random.default_rng(self.noise))
        return [renderer.frame(index) for index in indices]

    @property
    def seconds(self) -> tuple[tuple[float, float], ...]:
        """The intervals in seconds."""
        return tuple((first / self.fps, end / self.fps) for first, end in self.intervals)


def make_clip(
    seed: int,
    split: str,
    label: str,
    number: int = 0,
    *,
    seconds: tuple[float, float] = (16.0, 32.0),
    kind: str | None = None,
    night: bool | None = None,
    scenes: int | None = None,
) -> Clip:
    """Stage a clip; nothing is drawn before its frames are asked for.

    Equal arguments give equal pictures, byte for byte, with the same versions of numpy and Pillow on the same kind of
    processor; elsewhere a rounding may move an edge by a pixel.

    Args:
        seed: of the whole world.
        split: ``train`` or ``test``; each has scenes and cameras of its own.
        label: one of ``LABELS``.
        number: which clip of this split and label.
        seconds: least and greatest length.
        kind: of the scene, one of ``KINDS``; by chance if None. Accidents happen on roads and in car parks only.
        night: whether it is dark; by chance if None.
        scenes: of each kind, to choose from; as many as ``SCENES`` says if None.

    Raises:
        UserError: an unknown split, label or kind, or one that does not go with the label.
    """
    for what, value, known in (("split", split, SPLITS), ("label", label, LABELS), ("scene", kind, (None, *KINDS))):
        if value not in known:
            names = ", ".join(name for name in known if name is not None)
            raise UserError(f"unknown {what} {value!r}: use one of {names}")
    if label == "accident" and kind not in (None, *_DRIVEN):
        raise UserError(f"there are no accidents in a {kind}: use one of {', '.join(_DRIVEN)}")
    sequence = np.random.SeedSequence([seed, SPLITS.index(split), LABELS.index(label), number])
    plot, noise, words = sequence.spawn(3)
    rng = np.random.default_rng(plot)
    weights = (0.3, 0.3, 0.1, 0.1, 0.2) if label == "normal" else (0.2,) * 5
    drawn = str(rng.choice(_DRIVEN)) if label == "accident" else str(rng.choice(KINDS, p=weights))
    dark = bool(rng.random() < 0.4)
    frames = int(rng.uniform(*seconds) * FPS)
    scene = make_scene(split, kind or drawn, int(rng.integers(scenes or SCENES[split])), seed)
    dark = dark if night is None else night
    stage = Stage(scene, scene.lighting(rng, dark), FPS, frames, rng)
    intervals: tuple[Interval, ...] = ()
    if label == "normal":
        routine.normal(stage)
    else:
        intervals = (EVENTS[label](stage),)
    captions = tuple(_captions(stage, label, intervals, np.random.default_rng(words)))
    name = f"{label.capitalize()}_{split}_{number:03d}"
    return Clip(name, split, label, scene.name, scene.kind, dark, FPS, frames, intervals, captions, stage, noise)


def _captions(
    stage: Stage, label: str, intervals: tuple[Interval, ...], rng: np.random.Generator
) -> Iterator[tuple[int, str]]:
    nobody = np.zeros(stage.frames, np.int64)
    people = sum((stage.in_view(person).astype(np.int64) for person in stage.people), nobody)
    cars = sum((stage.in_view(car).astype(np.int64) for car in stage.vehicles), nobody)
    when = "at night" if stage.light.night else "by day"
    for frame in range(0, stage.frames, _EVERY):
        during = any(first <= frame < end for first, end in intervals)
        going_on = [phrase for first, end, phrase in stage.activity if first <= frame < end]
        seen = _seen(int(people[frame]), int(cars[frame]))
        tell = going_on and people[frame] + cars[frame] and rng.random() < 0.6
        what = going_on[0] if during or tell else seen
        sentences = _SAID[label if during else "normal"]
        sentence = sentences[int(rng.integers(len(sentences)))]
        yield frame, sentence.format(what=what, where=_WHERE[stage.scene.kind], when=when)


def _seen(people: int, cars: int) -> str:
    who = ("", "a person walking", "two people walking", "three people walking")
    crowd = who[people] if people < len(who) else ("some people walking" if people < 7 else "many people walking")
    traffic = ("", "a car", "two cars")[cars] if cars < 3 else "several cars"
    return " and ".join(part for part in (crowd, traffic) if part) or "nobody"
