"""Scored footage: what a calibration looks at, from videos or from what ``vadrun --out`` left of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.calibration import class_scores
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventRule
from vadrun.files import sha256
from vadrun.inputs import find_videos, named_videos
from vadrun.pipeline import run_video
from vadrun.places import RESULT

Floats = NDArray[np.float64]
Progress = Callable[[str, float, float | None], None]
"""Called with a video's name, the seconds that are done, and its length if it is known."""


@dataclass(frozen=True)
class Footage:
    """The scores of one video.

    Attributes:
        name: the video's file name without its ending.
        source: the video.
        spans: start and end of each snippet in seconds, [n,2].
        scores: :func:`vadrun.calibration.class_scores` [n,m].
        rate: frames per second.
        picture: width and height of its pictures in pixels.
        precision: arithmetic of the encoder; empty where nothing says.
    """

    name: str
    source: str
    spans: Floats
    scores: Floats
    rate: float
    picture: tuple[int, int]
    precision: str = ""

    @property
    def seconds(self) -> float:
        """How much of it is scored."""
        return float((self.spans[:, 1] - self.spans[:, 0]).sum())


def read_footage(paths: Sequence[Path], engine: Engine, progress: Progress = lambda *a: None) -> list[Footage]:
    """Scores of videos, folders of videos, and folders of results of ``vadrun --out``.

    Raises:
        UserError: nothing there, a video that cannot be read, results of another bundle, of a run with a calibration
            that changed its scores or with held features, scores or times that are not finite, the same video twice, or
            a folder that holds both videos and results.
    """
    found: list[Footage] = []
    for path in paths:
        results = _results(path)
        if results:
            if videos := find_videos(path):
                raise UserError(
                    f"{path} holds both results of vadrun and videos ({plural(len(videos), 'video')}, such as "
                    f"{videos[0].name}), which may be the same hours: name either, not the folder of both"
                )
            found += [_from_result(result.parent, engine) for result in results]
            continue
        for video in named_videos([path]):
            found.append(_from_video(video, engine, progress))
    if not found:
        raise UserError("no footage was named: give videos, or folders of videos or of vadrun's results")
    if twice := repeated(found):
        first, second = twice
        same = "" if first.source == second.source else f" (as {second.source} too)"
        raise UserError(f"{first.source} is there twice{same}, which would count its hours twice: name it once")
    for item in found:
        if not len(item.scores):
            raise UserError(f"{item.source} holds no snippet: leave it out")
        edges = item.spans.ravel()
        if not (np.isfinite(edges).all() and (item.spans[:, 1] > item.spans[:, 0]).all() and _rising(item.spans)):
            raise UserError(
                f"{item.source} has snippets whose times are not finite or do not rise: score it again, or leave it out"
            )
        bad = np.atleast_1d(~np.isfinite(item.scores).all(axis=1))
        if bad.any():
            raise UserError(
                f"{item.source} has scores that are not finite, the first at {item.spans[int(bad.argmax()), 0]:.1f} s "
                f"({int(bad.sum())} of {len(bad)} snippets): score it again, or leave it out"
            )
    return found


def _results(path: Path) -> list[Path]:
    """Each ``result.json`` in a folder and below; what a run that was killed has left in hidden folders is none."""
    found = sorted(path.rglob(RESULT)) if path.is_dir() else []
    return [each for each in found if not any(part.startswith(".") for part in each.relative_to(path).parts)]


def _rising(spans: Floats) -> bool:
    return bool((np.diff(spans, axis=0) >= 0).all())


def repeated(footage: Sequence[Footage]) -> tuple[Footage, Footage] | None:
    """Two that are of one video, by its path, whatever way it is spelt, or by its content; None without such."""
    paths: dict[Path, Footage] = {}
    sizes: dict[int, list[tuple[Path, Footage]]] = {}
    for item in footage:
        path = Path(item.source).resolve()
        if path in paths:
            return paths[path], item
        paths[path] = item
        if path.is_file():
            sizes.setdefault(path.stat().st_size, []).append((path, item))
    for alike in sizes.values():
        if len(alike) == 1:  # hours of footage are read only where another file is as large to the byte
            continue
        hashes: dict[str, Footage] = {}
        for path, item in alike:
            digest = sha256(path)
            if digest in hashes:
                return hashes[digest], item
            hashes[digest] = item
    return None


def plural(count: int, name: str) -> str:
    """A count with its noun."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


@dataclass
class _Collector:
    spans: list[tuple[float, float]] = field(default_factory=list)
    anomaly: list[float] = field(default_factory=list)
    classes: list[NDArray[Any]] = field(default_factory=list)

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        self.spans.append((start, end))
        self.anomaly.append(anomaly)
        self.classes.append(classes)

    def event(self, event: Event) -> None:
        pass


def _from_video(video: Path, engine: Engine, progress: Progress) -> Footage:
    rows = _Collector()
    result = run_video(engine, video, EventRule(), rows, lambda done, total: progress(video.name, done, total))
    if result.damage is not None:
        raise UserError(f"{result.damage}; leave it out, or cut a sound part from it")
    classes = np.asarray(rows.classes, np.float64).reshape(len(rows.classes), len(engine.labels))
    return Footage(
        video.stem,
        str(video),
        np.asarray(rows.spans, np.float64).reshape(-1, 2),
        class_scores(np.asarray(rows.anomaly), classes),
        result.info.rate,
        (result.info.width, result.info.height),
        engine.backend.precision,
    )


def _from_result(folder: Path, engine: Engine) -> Footage:
    again = "run vadrun --out again"
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        bundle, source = result["bundle"]["sha256"], str(result["source"])
        video, damage = result["video"], result["damage"]
        probabilities = result["rule"].get("probabilities")
        held = result.get("gate") is not None and result["gate"]["mode"] != "shadow"
        rate, picture = float(video["rate"]), (int(video["width"]), int(video["height"]))
        precision = str(result["backend"]["precision"])
        with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream))
        values = np.array([[float(cell) for cell in row] for row in rows], np.float64).reshape(-1, len(header))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} does not read as a result of vadrun ({error}): {again}") from error
    if bundle != engine.bundle.sha256:
        raise UserError(f"{folder} is of another bundle than {engine.bundle.root}: {again} with this one")
    if held:
        raise UserError(
            f"{folder} is of a run with --gate, whose scores are partly of held features: {again} without it, or with "
            "--gate shadow"
        )
    if probabilities is not None:
        raise UserError(f"{folder} holds calibrated probabilities, not the bundle's scores: {again} without them")
    if damage is not None:
        raise UserError(f"{damage}; leave its results out, or cut a sound part from it")
    if header[4:] != engine.labels:
        raise UserError(f"{folder / 'scores.csv'} has other classes than {engine.bundle.root}: {again}")
    return Footage(
        Path(source).stem, source, values[:, 1:3], class_scores(values[:, 3], values[:, 4:]), rate, picture, precision
    )
