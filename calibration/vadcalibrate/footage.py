"""Scored footage: what a calibration looks at, from videos or from what ``vadrun --out`` left of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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
from vadrun.schema import SHA256, Anything, List, Maybe, Number, Record, Text, Where, Whole, load_json, read_file

_SCORES = "scores.csv"
_MOST_BYTES = 256 << 20  # of scores.csv: about a month of snippets with 14 classes
_PATH = Text(plain=False)  # or a sentence with a path in it, which may hold anything
# What is read of result.json, as vadrun.pipeline.VideoResult writes it.
_RESULT = Record(
    {
        "source": _PATH,
        "bundle": Record({"sha256": SHA256}, others=Anything()),
        "video": Record(
            {"rate": Number(0, 100_000), "width": Whole(1, 100_000), "height": Whole(1, 100_000)}, others=Anything()
        ),
        "damage": Maybe(_PATH),
        "seconds_seen": Number(0),
        "frames_seen": Whole(),
        "gaps": List(
            Record({"start": Number(0), "end": Number(0), "frames_before": Whole(1)}, others=Anything()), most=10_000
        ),
        "gaps_total": Record({"count": Whole()}, others=Anything()),
        "rule": Record({}, {"probabilities": Maybe(Text())}, others=Anything()),
        "backend": Record({"precision": Text(most=100)}, others=Anything()),
    },
    optional={"gate": Maybe(Record({"mode": Text()}, others=Anything()))},
    others=Anything(),
)

Floats = NDArray[np.float64]
Progress = Callable[[str, float, float | None], None]
"""Called with a video's name, the seconds that are done, and its length if it is known."""
Remark = Callable[[str], None]
"""Called with a sentence on a sound video, such as where its recording pauses."""


@dataclass(frozen=True)
class Footage:
    """The scores of one video.

    Attributes:
        name: the video's file name without its ending.
        source: the video.
        spans: start and end of each snippet in seconds, [n,2].
        scores: :func:`vadrun.calibration.class_scores` [n,m].
        rate: frames per second; where the recording pauses, of what lies between the pauses.
        picture: width and height of its pictures in pixels.
        precision: arithmetic of the encoder; empty where nothing says.
        pieces: of a recording that pauses, the number of each piece's first frame and the second at which it begins.
        unlisted: how many pauses are not known by their place.
    """

    name: str
    source: str
    spans: Floats
    scores: Floats
    rate: float
    picture: tuple[int, int]
    precision: str = ""
    pieces: tuple[tuple[int, float], ...] = ((0, 0.0),)
    unlisted: int = 0

    @property
    def seconds(self) -> float:
        """How much of it is scored."""
        return float((self.spans[:, 1] - self.spans[:, 0]).sum())

    def seconds_of(self, first: int, end: int) -> tuple[float, float, float]:
        """Start and end in seconds of the frames from ``first`` to before ``end``, and what is paused in between."""
        piece, last = self._piece(first), self._piece(end - 1)
        # The last frame ends one frame later, and not where a pause behind it does.
        start, stop = (begin + (frame - number) / self.rate for (number, begin), frame in ((piece, first), (last, end)))
        return start, stop, 0.0 if piece == last else stop - start - (end - first) / self.rate

    def _piece(self, frame: int) -> tuple[int, float]:
        return max((piece for piece in self.pieces if piece[0] <= frame), default=self.pieces[0])


def read_footage(
    paths: Sequence[Path],
    engine: Engine,
    progress: Progress = lambda *a: None,
    remark: Remark = lambda text: None,
) -> list[Footage]:
    """Scores of videos, folders of videos, and folders of results of ``vadrun --out``.

    Results come without remarks, which ``vadrun`` has made.

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
            found.append(_from_video(video, engine, progress, remark))
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


def remarks_on(video: Path, remarks: Sequence[str], note: str | None) -> list[str]:
    """What ``vadrun`` says of a sound video: what the file holds, and what became of it."""
    return [f"{video.name}: {text}" for text in (*remarks, note) if text is not None]


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


def _from_video(video: Path, engine: Engine, progress: Progress, remark: Remark) -> Footage:
    rows = _Collector()
    result = run_video(engine, video, EventRule(), rows, lambda done, total: progress(video.name, done, total))
    if result.damage is not None:
        raise UserError(f"{result.damage}; leave it out, or cut a sound part from it")
    for text in remarks_on(video, result.info.remarks, result.note):
        remark(text)
    classes = np.asarray(rows.classes, np.float64).reshape(len(rows.classes), len(engine.labels))
    seen = result.seen
    gaps = [(gap.frames, gap.end) for gap in seen.gaps]
    return Footage(
        video.stem,
        str(video),
        np.asarray(rows.spans, np.float64).reshape(-1, 2),
        class_scores(np.asarray(rows.anomaly), classes),
        _rate(result.info.rate, seen.frames, seen.seconds, seen.count),
        (result.info.width, result.info.height),
        engine.backend.precision,
        ((0, 0.0), *gaps),
        seen.count - len(gaps),
    )


def _rate(nominal: float, frames: int, seconds: float, gaps: int) -> float:
    """Frames per second between the pauses; a file's own rate may be a mean over them, too."""
    return frames / seconds if gaps and frames and seconds > 0 else nominal


def _from_result(folder: Path, engine: Engine) -> Footage:
    again = "run vadrun --out again"
    result = load_json(folder / RESULT, _RESULT, again, most=64 << 20)
    bundle, source, damage, video = result["bundle"]["sha256"], result["source"], result["damage"], result["video"]
    probabilities, gate = result["rule"].get("probabilities"), result.get("gate")
    header, values = _read_scores(folder / _SCORES, again)
    if bundle != engine.bundle.sha256:
        raise UserError(f"{folder} is of another bundle than {engine.bundle.root}: {again} with this one")
    if gate is not None and gate["mode"] != "shadow":
        raise UserError(
            f"{folder} is of a run with --gate, whose scores are partly of held features: {again} without it, or with "
            "--gate shadow"
        )
    if probabilities is not None:
        raise UserError(f"{folder} holds calibrated probabilities, not the bundle's scores: {again} without them")
    if damage is not None:
        raise UserError(f"{damage}; leave its results out, or cut a sound part from it")
    if header[4:] != engine.labels:
        raise UserError(f"{folder / _SCORES} has other classes than {engine.bundle.root}: {again}")
    gaps = [(gap["frames_before"], float(gap["end"])) for gap in result["gaps"]]
    if any(b[0] <= a[0] or b[1] <= a[1] for a, b in pairwise([(0, 0.0), *gaps])):
        raise UserError(f"{folder / RESULT} has gaps that do not follow each other: {again}")
    count = result["gaps_total"]["count"]
    return Footage(
        Path(source).stem,
        source,
        values[:, 1:3],
        class_scores(values[:, 3], values[:, 4:]),
        _rate(float(video["rate"]), result["frames_seen"], float(result["seconds_seen"]), count),
        (video["width"], video["height"]),
        result["backend"]["precision"],
        ((0, 0.0), *gaps),
        max(count - len(gaps), 0),
    )


def _read_scores(path: Path, again: str) -> tuple[list[str], Floats]:
    """Header and rows [n,4+m] of ``scores.csv``.

    Raises:
        UserError: it cannot be read, or has other columns.
    """
    where = Where(path, again)
    raw = read_file(path, where, most=_MOST_BYTES)
    try:
        header, *rows = csv.reader(raw.decode("utf-8").splitlines())
        values = np.array([[float(cell) for cell in row] for row in rows], np.float64).reshape(-1, len(header))
    except (ValueError, csv.Error) as error:
        raise where.error(f"it does not read as scores ({str(error)[:200]})") from error
    if len(header) < 6:
        raise where.error(f"it has {len(header)} columns, not snippet, start, end, anomaly and the classes")
    return header, values
