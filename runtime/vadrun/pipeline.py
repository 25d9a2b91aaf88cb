"""Videos through the engine: threads decode ahead, the caller's encodes and scores.

Several videos share one engine and keep it fed, and several are read at once where that keeps more cores at work.
Memory does not grow with a video: a bounded queue between the threads, one chunk of features for each video that is
open, and sinks that write as scores become final.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vadrun.audit import GateAudit
from vadrun.calibration import CalibratedDetector, Calibration
from vadrun.decoders import SOFTWARE
from vadrun.engine import Engine
from vadrun.errors import InternalError, NoMemory, UserError, lacks_memory, no_memory
from vadrun.events import Event, EventDetector, EventRule
from vadrun.feeding import Closed, Encoded, Encoder, Failed, Opened, ReadAhead
from vadrun.gate import GateRule
from vadrun.places import identity
from vadrun.scoring import Scores
from vadrun.sources import VideoInfo
from vadrun.timeline import Seen
from vadrun.video import Snippet, Video


class Sink(Protocol):
    """Where scores and events go as they become final."""

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One scored snippet."""

    def event(self, event: Event) -> None:
        """One event."""


@dataclass
class Timings:
    """Seconds; they overlap, and so do videos that are read at once."""

    wall: float = 0.0  # from the opening of the video to its last score
    decode: float = 0.0  # reading, decoding, sampling and resizing
    encode: float = 0.0  # the video's share of batches
    score: float = 0.0


@dataclass
class VideoResult:
    """What a run says of one video."""

    source: Path
    info: VideoInfo
    snippets: int = 0
    seconds: float = 0.0  # of the video that are scored: the lengths of its snippets together
    end: float = 0.0  # of the last scored snippet
    seen: Seen = field(default_factory=Seen)  # how much of the video was seen, and the gaps between
    peak: float | None = None  # of the anomaly score; None without snippets
    events: list[Event] = field(default_factory=list)
    damage: str | None = None  # what was wrong with the file, as a sentence
    note: str | None = None  # what the user should know of a sound file
    again: str | None = None  # why hardware gave up on it, where software then read it from the start
    undecoded: int | None = None  # pictures that the gate left undecoded, if that is known
    gate: dict[str, Any] | None = None  # what the gate did and what it cost, see GateAudit.to_json
    timings: Timings = field(default_factory=Timings)

    def to_json(self, engine: Engine, rule: EventRule | Calibration, versions: dict[str, str]) -> dict[str, Any]:
        """The content of ``result.json``."""
        bundle = engine.bundle
        backend = engine.backend
        return {
            "source": str(self.source),
            "path": identity(self.source),
            "video": self.info.to_json(),
            "snippets": self.snippets,
            "seconds": round(self.seconds, 3),
            **self.seen.to_json(),
            "peak": None if self.peak is None else round(self.peak, 6),
            "events": [event.to_json() for event in self.events],
            "damage": self.damage,
            "note": self.note,
            "gate": self.gate,
            "bundle": {"path": str(bundle.root), "sha256": bundle.sha256, "remark": engine.remark},
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


# Called with the place in the video that is reached, in seconds, and the whole length if it is known.
Progress = Callable[[float, float | None], None]


def run_video(
    engine: Engine,
    source: str | Path,
    rule: EventRule | Calibration,
    sink: Sink | None = None,
    progress: Progress | None = None,
    *,
    gate: GateRule | None = None,
    decoder: str = SOFTWARE,
    stream: int | None = None,
) -> VideoResult:
    """Score a video file and find its events.

    Args:
        engine: the loaded bundle.
        source: the video file.
        rule: what makes scores an event: one rule for the anomaly score, or a calibration with one for each class.
        sink: takes every snippet and event in order, as soon as their chunk is scored.
        progress: called after every snippet that is encoded.
        gate: encodes only where something happens.
        decoder: as :class:`vadrun.Video` has it. Where hardware that ``auto`` took gives up, the file is read again in
            software, and the sink takes what it has not had yet.
        stream: FFmpeg's number of the video stream to score; None for the main one.

    Raises:
        UserError: the file is no video that can be read, or the calibration is not the bundle's. Damage further on is
            not an error: the scores up to there are given, and :attr:`VideoResult.damage` says what happened.
        DecoderFailed: the hardware decoder that was named gave up.
    """
    once = None if sink is None else _Once(sink)
    told = None if progress is None else _numbered(progress)
    outcomes = run_videos(engine, [source], rule, lambda _: once, told, gate=gate, decoder=decoder, stream=stream)
    with closing(outcomes):
        _, outcome = next(outcomes)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def _numbered(progress: Progress) -> Callable[[int, float, float | None], None]:
    return lambda _, done, total: progress(done, total)


def run_videos(
    engine: Engine,
    sources: Sequence[str | Path],
    rule: EventRule | Calibration,
    sinks: Callable[[int], Sink | None] | None = None,
    progress: Callable[[int, float, float | None], None] | None = None,
    *,
    gate: GateRule | None = None,
    decoder: str = SOFTWARE,
    stream: int | None = None,
) -> Generator[tuple[int, VideoResult | UserError], None, None]:
    """Score several video files, some of them at once.

    Args:
        engine: the loaded bundle.
        sources: the video files.
        rule, gate, decoder, stream: as :func:`run_video` has them.
        sinks: makes a video's sink, of its place in ``sources``, once it is open; a second time if hardware gave up on
            it and software reads it from the start. A UserError of it, or of its sink, is the video's outcome.
        progress: called with a video's place after every snippet of it that is encoded.

    Yields:
        Each video's place in ``sources`` and its result, or what is wrong with it, in the order in which they are done.

    Raises:
        UserError: the calibration is not the bundle's.
    """
    if isinstance(rule, Calibration):
        rule.check(engine.bundle)
    paths = [Path(source) for source in sources]
    bundle = engine.bundle

    def snippets(video: Video) -> Iterator[Snippet]:
        return video.snippets(bundle.sampling, bundle.preprocessing, gate=gate)

    reader = ReadAhead(paths, snippets, depth=2 * engine.batch, decoder=decoder, stream=stream)
    encoder = Encoder(engine, reader, shadow=gate is not None and gate.shadow)
    open_: dict[int, tuple[Scorer, float]] = {}  # and since when
    try:
        reader.start()
        for number, step in encoder.steps():
            if isinstance(step, Opened):
                result = VideoResult(paths[number], step.info, again=None if step.failed is None else str(step.failed))
                try:
                    sink = None if sinks is None else sinks(number)
                except UserError as error:
                    reader.leave(number)
                    open_.pop(number, None)
                    yield number, error
                    continue
                open_[number] = Scorer(engine, rule, sink, result, gate), time.perf_counter()
                continue
            if isinstance(step, Failed):
                open_.pop(number, None)
                if number not in reader.left:
                    yield number, as_outcome(paths[number], step.error)
                continue
            if number not in open_:
                continue  # nobody wants it any more
            scorer, since = open_[number]
            result = scorer.result
            try:
                if isinstance(step, Encoded):
                    scorer.push(step)
                else:
                    result.damage, result.note, result.undecoded = step.damage, step.note, step.undecoded
                    result.seen = step.seen
                    result.timings.decode, result.timings.encode = step.busy, encoder.seconds.pop(number, 0.0)
                    scorer.finish()
            except UserError as error:
                reader.leave(number)
                del open_[number]
                yield number, error
                continue
            if progress is not None:
                progress(number, result.end, result.info.duration)
            if isinstance(step, Closed):
                result.timings.wall = time.perf_counter() - since
                del open_[number]
                yield number, result
    finally:
        reader.stop()


def as_outcome(path: Path, error: BaseException) -> UserError:
    """What a run says of an error in reading a video: one that cannot be read must not cost the others.

    A :class:`NoMemory` or :class:`InternalError` has the error as its cause.

    Raises:
        BaseException: the error itself, if it is no :class:`Exception`.
    """
    if isinstance(error, UserError) and not isinstance(error, NoMemory):
        return error
    outcome: UserError
    if lacks_memory(error):
        outcome = no_memory(f"read {path}")
    elif isinstance(error, Exception):
        outcome = InternalError(f"{path} cannot be read for an internal error, {type(error).__name__}: {error}")
    else:
        raise error
    outcome.__cause__ = error
    return outcome


class _Once:
    """Passes on what a sink has not had yet of a video that may be scored twice."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._snippets = 0
        self._events: dict[str, int] = {}  # class -> last snippet of its last event

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        if index >= self._snippets:
            self._snippets = index + 1
            self._sink.snippet(index, start, end, anomaly, classes)

    def event(self, event: Event) -> None:
        if event.first_snippet > self._events.get(event.label, -1):
            self._events[event.label] = event.last_snippet
            self._sink.event(event)


class Scorer:
    """Scores one video's features chunk by chunk and fills its ``result``."""

    def __init__(
        self,
        engine: Engine,
        rule: EventRule | Calibration,
        sink: Sink | None,
        result: VideoResult,
        gate: GateRule | None,
    ) -> None:
        if isinstance(rule, Calibration):
            rule.check(engine.bundle)
        self._rule = rule
        self._engine, self._sink = engine, sink
        self.result = result
        self._detector = self._new_detector()
        self._audit = None if gate is None else GateAudit(gate)
        # In the shadow, what a gated run would have found.
        self._shadow = self._new_detector() if gate is not None and gate.shadow else None
        self._chunk: list[Encoded] = []

    @property
    def chunk(self) -> list[Encoded]:
        """The snippets that wait for their chunk to fill, oldest first."""
        return self._chunk

    def gate_so_far(self) -> dict[str, Any] | None:
        """What the result says of the gate, over the chunks that have been scored; None without a gate."""
        return None if self._audit is None else self._audit.to_json(self.result.events)

    def push(self, encoded: Encoded) -> None:
        """Take the next snippet; a chunk that is full is scored."""
        self.result.snippets += 1
        self.result.seconds += encoded.snippet.end - encoded.snippet.start
        self.result.end = encoded.snippet.end
        self._chunk.append(encoded)
        if len(self._chunk) == self._engine.bundle.model.positions:
            self._score()

    def finish(self) -> None:
        """Score what is left, and end the events."""
        if self._chunk:
            self._score()
        self._emit(self._detector.finish())
        if self._audit is not None:
            if self._shadow is not None:
                self._audit.shadow_events(self._shadow.finish())
            undecoded = self.result.undecoded
            self.result.gate = self._audit.to_json(self.result.events) | {"pictures_undecoded": undecoded}

    def _score(self) -> None:
        result, sink = self.result, self._sink
        started = time.perf_counter()
        scores = self._engine.score(np.stack([encoded.feature for encoded in self._chunk]))
        held = scores
        if any(encoded.held is not encoded.feature for encoded in self._chunk):
            held = self._engine.score(np.stack([encoded.held for encoded in self._chunk]))
        result.timings.score += time.perf_counter() - started
        shown = self.class_probabilities(scores)
        lost = self._over(scores) & ~self._over(held)
        for row, (snippet, _, _) in enumerate(self._chunk):
            value, classes = float(scores.anomaly[row]), scores.alignment[row]
            result.peak = value if result.peak is None else max(result.peak, value)
            if sink is not None:
                sink.snippet(snippet.index, snippet.start, snippet.end, value, shown[row])
            self._emit(self._detector.push(snippet.index, snippet.start, snippet.end, value, classes))
            if self._audit is not None:
                other = float(held.anomaly[row])
                self._audit.push(snippet.verdict, value, other, lost=bool(lost[row].any()), unseen=snippet.unseen)
                if self._shadow is not None:
                    place = (snippet.index, snippet.start, snippet.end)
                    self._audit.shadow_events(self._shadow.push(*place, other, held.alignment[row]))
        self._chunk.clear()

    def class_probabilities(self, scores: Scores) -> NDArray[np.floating]:
        """What is shown of the classes, [n,m]: calibrated where the rule is a calibration that can."""
        if isinstance(self._rule, Calibration):
            return self._rule.class_probabilities(scores.anomaly, scores.alignment)
        return scores.alignment

    def _new_detector(self) -> EventDetector | CalibratedDetector:
        if isinstance(self._rule, Calibration):
            return self._rule.detector()
        return EventDetector(self._rule, self._engine.labels)

    def _over(self, scores: Scores) -> NDArray[np.bool_]:
        """Whether a score reaches its threshold: [n,1], or [n,m-1] with a calibration's thresholds for each class."""
        if isinstance(self._rule, Calibration):
            return self._rule.reached(scores.anomaly, scores.alignment)
        return np.asarray(scores.anomaly[:, None] >= self._rule.threshold)

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self.result.events.append(event)
            if self._sink is not None:
                self._sink.event(event)
