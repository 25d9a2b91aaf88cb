"""Videos through the engine: one thread decodes ahead, the caller's encodes and scores.

Several videos share one engine and keep it fed: the reader goes on to the next one while the last is encoded, and a
batch may hold snippets of both. Memory does not grow with a video: a bounded queue between the threads, one chunk of
features, and sinks that write as scores become final.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vadrun.audit import GateAudit
from vadrun.calibration import CalibratedDetector, Calibration
from vadrun.decoders import SOFTWARE, DecoderFailed
from vadrun.engine import Engine
from vadrun.events import Event, EventDetector, EventRule
from vadrun.feeding import Batch, Closed, Encoded, Encoder, Failed, Opened, ReadAhead, Step
from vadrun.gate import GateRule
from vadrun.scoring import Scores
from vadrun.sources import VideoInfo
from vadrun.video import Snippet, Video


class Sink(Protocol):
    """Where scores and events go as they become final."""

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One scored snippet."""

    def event(self, event: Event) -> None:
        """One event."""


@dataclass
class Timings:
    """Seconds; the decoder's overlap with the others, so they add up to more than ``wall``."""

    wall: float = 0.0  # with several videos, from the end of the one before
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
    undecoded: int | None = None  # pictures that the gate left undecoded, if that is known
    gate: dict[str, Any] | None = None  # what the gate did and what it cost, see GateAudit.to_json
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
            "gate": self.gate,
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
    *,
    gate: GateRule | None = None,
    decoder: str = SOFTWARE,
) -> VideoResult:
    """Score a video file and find its events.

    Args:
        engine: the loaded bundle.
        source: the video file.
        rule: what makes scores an event: one rule for the anomaly score, or a calibration with one for each class.
        sink: takes every snippet and event in order, as soon as their chunk is scored.
        progress: called after every batch.
        gate: encodes only where something happens.
        decoder: as :class:`vadrun.Video` has it. Where hardware that ``auto`` took gives up, the file is read again in
            software, and the sink takes what it has not had yet.

    Raises:
        UserError: the file is no video that can be read, or the calibration is not the bundle's. Damage further on is
            not an error: the scores up to there are given, and :attr:`VideoResult.damage` says what happened.
        DecoderFailed: the hardware decoder that was named gave up.
    """
    once = None if sink is None else _Once(sink)
    with Pipeline(engine, [source], gate, decoder) as pipeline:
        try:
            return pipeline.score(0, rule, once, progress)
        except DecoderFailed as error:
            if decoder != "auto":
                raise
            why = str(error)
    with pipeline.again(0) as software:
        result = software.score(0, rule, once, progress)
    result.info = replace(result.info, decoder_why=why)
    return result


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


class Pipeline:
    """Scores videos one after the other while the next is being decoded.

    >>> with Pipeline(engine, ["a.mp4", "b.mp4"]) as pipeline:         # doctest: +SKIP
    ...     results = [pipeline.score(number, rule) for number in range(2)]

    Args:
        engine: the loaded bundle.
        sources: the video files.
        gate: encodes only where something happens.
        decoder: as :class:`vadrun.Video` has it.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sequence[str | Path],
        gate: GateRule | None = None,
        decoder: str = SOFTWARE,
    ) -> None:
        self._engine = engine
        self._sources = [Path(source) for source in sources]
        self._gate = gate
        bundle = engine.bundle

        def snippets(video: Video) -> Iterator[Snippet]:
            return video.snippets(bundle.sampling, bundle.preprocessing, gate=gate)

        self._reader = ReadAhead(self._sources, snippets, depth=2 * engine.batch, decoder=decoder)
        self._encoder = Encoder(engine, self._reader, shadow=gate is not None and gate.shadow)
        self._steps = self._encoder.steps()
        self._next = 0  # the video whose steps come next
        self._ended = time.perf_counter()  # when the one before was done

    def __enter__(self) -> Pipeline:
        self._reader.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.stop()

    def again(self, number: int) -> Pipeline:
        """A pipeline of this source alone, decoded in software: for when hardware gave up on it."""
        return Pipeline(self._engine, [self._sources[number]], self._gate)

    def score(
        self,
        number: int,
        rule: EventRule | Calibration,
        sink: Sink | None = None,
        progress: Progress | None = None,
    ) -> VideoResult:
        """Score the source of this number; those before it that were not scored are passed over.

        Raises:
            UserError, DecoderFailed: as :func:`run_video`; the sources after it can be scored all the same.
        """
        while self._next < number:
            for _ in self._of_next():
                pass
        steps = self._of_next()
        opened = next(steps)
        assert isinstance(opened, Opened)
        result = VideoResult(self._sources[number], opened.info)
        scorer = Scorer(self._engine, rule, sink, result, self._gate)
        encode_before = self._encoder.seconds
        for step in steps:
            if isinstance(step, Encoded):
                scorer.push(step)
            elif isinstance(step, Closed):
                result.damage, result.note = step.damage, step.note
                result.timings.decode = step.busy
                result.undecoded = step.undecoded
            if progress is not None and isinstance(step, Batch | Closed):
                progress(result.seconds, result.info.duration)
        scorer.finish()
        result.timings.encode = self._encoder.seconds - encode_before
        result.timings.wall = time.perf_counter() - self._ended
        self._ended = time.perf_counter()
        return result

    def _of_next(self) -> Iterator[Step]:
        """The steps of the next video, up to its last."""
        self._next += 1
        for step in self._steps:
            if isinstance(step, Failed):
                raise step.error
            yield step
            if isinstance(step, Closed):
                return


class Scorer:
    """Scores one video's features chunk by chunk and fills its result."""

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
        self._engine, self._sink, self._result = engine, sink, result
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
        return None if self._audit is None else self._audit.to_json(self._result.events)

    def push(self, encoded: Encoded) -> None:
        """Take the next snippet; a chunk that is full is scored."""
        self._result.snippets += 1
        self._result.seconds = encoded.snippet.end
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
            undecoded = self._result.undecoded
            self._result.gate = self._audit.to_json(self._result.events) | {"pictures_undecoded": undecoded}

    def _score(self) -> None:
        result, sink = self._result, self._sink
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
            self._result.events.append(event)
            if self._sink is not None:
                self._sink.event(event)
