"""A video through the engine: decoding in one thread, encoding and scoring in another.

Memory does not grow with the video: a bounded queue between the threads, one chunk of features, and sinks
that write as scores become final.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vadrun.calibration import Calibration
from vadrun.engine import Engine
from vadrun.events import Event, EventDetector, EventRule
from vadrun.video import Snippet, Video, VideoInfo


class Sink(Protocol):
    """Where scores and events go as they become final."""

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One scored snippet."""

    def event(self, event: Event) -> None:
        """One event."""


@dataclass
class Timings:
    """Seconds; the decoder's overlap with the others, so they add up to more than ``wall``."""

    wall: float = 0.0
    decode: float = 0.0  # reading, decoding, sampling and resizing
    encode: float = 0.0
    score: float = 0.0


@dataclass
class VideoResult:
    """What a run says of one video."""

    source: Path
    info: VideoInfo
    snippets: int = 0
    seconds: float = 0.0  # end of the last scored snippet
    peak: float | None = None  # of the anomaly score; None without snippets
    events: list[Event] = field(default_factory=list)
    damage: str | None = None  # what was wrong with the file, as a sentence
    note: str | None = None  # what the user should know of a sound file
    timings: Timings = field(default_factory=Timings)

    def to_json(self, engine: Engine, rule: EventRule | Calibration, versions: dict[str, str]) -> dict[str, Any]:
        """The content of ``result.json``."""
        bundle = engine.bundle
        backend = engine.backend
        return {
            "source": str(self.source),
            "video": self.info.to_json(),
            "snippets": self.snippets,
            "seconds": round(self.seconds, 3),
            "peak": None if self.peak is None else round(self.peak, 6),
            "events": [event.to_json() for event in self.events],
            "damage": self.damage,
            "note": self.note,
            "bundle": {"path": str(bundle.root), "sha256": bundle.sha256},
            "backend": {
                "name": backend.name,
                "device": backend.device,
                "precision": backend.precision,
                "library": backend.library,
                "graph": backend.encoder_file,
                "why": engine.why,
            },
            "anomaly": bundle.model.anomaly,
            "sampling": bundle.sampling.to_manifest(),
            "preprocessing": bundle.preprocessing.to_manifest(),
            "rule": rule.to_json(),
            "timings": {key: round(value, 4) for key, value in asdict(self.timings).items()},
            "versions": versions,
        }


# Called with the seconds of video that are encoded, and the whole length if it is known.
Progress = Callable[[float, float | None], None]


def run_video(
    engine: Engine,
    source: str | Path,
    rule: EventRule | Calibration,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> VideoResult:
    """Score a video file and find its events.

    Args:
        engine: the loaded bundle.
        source: the video file.
        rule: what makes scores an event: one rule for the anomaly score, or a calibration with one for each class.
        sink: takes every snippet and event in order, as soon as their chunk is scored.
        progress: called after every batch.

    Raises:
        UserError: the file is no video that can be read, or the calibration is not the bundle's. Damage further on is
            not an error: the scores up to there are given, and :attr:`VideoResult.damage` says what happened.
    """
    began = time.perf_counter()
    bundle = engine.bundle
    calibration = rule if isinstance(rule, Calibration) else None
    if calibration is not None:
        calibration.check(bundle)
    with Video(source) as video:
        result = VideoResult(Path(source), video.info)
        detector = rule.detector() if isinstance(rule, Calibration) else EventDetector(rule, engine.labels)
        reader = _Reader(video.snippets(bundle.sampling, bundle.preprocessing), depth=2 * engine.batch)
        chunk: list[tuple[Snippet, NDArray[np.float32]]] = []

        def emit(events: list[Event]) -> None:
            for event in events:
                result.events.append(event)
                if sink is not None:
                    sink.event(event)

        def score_chunk() -> None:
            started = time.perf_counter()
            scores = engine.score(np.stack([feature for _, feature in chunk]))
            result.timings.score += time.perf_counter() - started
            shown = scores.alignment
            if calibration is not None:
                shown = calibration.class_probabilities(scores.anomaly, shown)
            rows = zip(chunk, scores.anomaly, scores.alignment, shown, strict=True)
            for (snippet, _), anomaly, classes, probabilities in rows:
                value = float(anomaly)
                result.peak = value if result.peak is None else max(result.peak, value)
                if sink is not None:
                    sink.snippet(snippet.index, snippet.start, snippet.end, value, probabilities)
                emit(detector.push(snippet.index, snippet.start, snippet.end, value, classes))
            chunk.clear()

        with reader:
            for batch in reader.batches(engine.batch):
                started = time.perf_counter()
                features = _encode(engine, batch)
                result.timings.encode += time.perf_counter() - started
                for snippet, feature in zip(batch, features, strict=True):
                    result.snippets += 1
                    result.seconds = snippet.end
                    # The images have done their work; keeping them would fill memory with a chunk of them.
                    chunk.append((snippet.without_images(), feature))
                    if len(chunk) == bundle.model.positions:
                        score_chunk()
                if progress is not None:
                    progress(result.seconds, video.info.duration)
            if chunk:
                score_chunk()
            emit(detector.finish())
        result.timings.decode = reader.busy
        result.damage = video.damage
        result.note = video.note
    result.timings.wall = time.perf_counter() - began
    return result


def _encode(engine: Engine, batch: list[Snippet]) -> NDArray[np.float32]:
    """One feature per snippet: that of its image, or the mean over its images."""
    images = np.concatenate([snippet.images for snippet in batch])
    features = engine.encode(images)
    per_snippet = len(images) // len(batch)
    return features.reshape(len(batch), per_snippet, -1).mean(axis=1) if per_snippet > 1 else features


class _Reader:
    """Runs an iterator of snippets in a thread of its own, at most ``depth`` snippets ahead."""

    def __init__(self, snippets: Iterator[Snippet], depth: int) -> None:
        self.busy = 0.0  # seconds spent making snippets
        self._snippets = snippets
        self._queue: queue.Queue[Snippet | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="vadrun-reader", daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def batches(self, size: int) -> Iterator[list[Snippet]]:
        """Lists of up to ``size`` snippets; an exception of the thread is raised here."""
        batch: list[Snippet] = []
        while (snippet := self._queue.get()) is not None:
            batch.append(snippet)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            started = time.perf_counter()
            for snippet in self._snippets:
                self.busy += time.perf_counter() - started
                if not self._put(snippet):
                    return
                started = time.perf_counter()
            self.busy += time.perf_counter() - started
        except BaseException as error:
            self._error = error
        finally:
            self._put(None)

    def _put(self, snippet: Snippet | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(snippet, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
