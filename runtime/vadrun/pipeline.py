"""Videos through the engine: one thread decodes ahead, the caller's encodes and scores.

Several videos share one engine and keep it fed: the reader goes on to the next one while the last is encoded, and a
batch may hold snippets of both. Memory does not grow with a video: a bounded queue between the threads, one chunk of
features, and sinks that write as scores become final.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vadrun.audit import GateAudit
from vadrun.calibration import CalibratedDetector, Calibration
from vadrun.decoders import SOFTWARE
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventDetector, EventRule
from vadrun.gate import GateRule, Verdict
from vadrun.scoring import Scores
from vadrun.video import Snippet, Video, VideoInfo

Floats = NDArray[np.float32]

# Seconds that an image may wait for its batch to fill; it matters where the gate holds most.
PATIENCE = 2.0


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


class Encoded(NamedTuple):
    """A snippet, without its images, and its feature float32 [d].

    ``held`` is the feature that the gate would have had stand for it; the same one where it did, or where it did not
    want to.
    """

    snippet: Snippet
    feature: Floats
    held: Floats


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
        decoder: as :class:`vadrun.Video` has it.

    Raises:
        UserError: the file is no video that can be read, or the calibration is not the bundle's. Damage further on is
            not an error: the scores up to there are given, and :attr:`VideoResult.damage` says what happened.
        DecoderFailed: a hardware decoder gave up; begin again with software and a new sink.
    """
    with Pipeline(engine, [source], gate, decoder) as pipeline:
        return pipeline.score(0, rule, sink, progress)


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

        self._reader = _Reader(self._sources, snippets, depth=2 * engine.batch, decoder=decoder)
        self._encoder = _Encoder(engine, self._reader, shadow=gate is not None and gate.shadow)
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
        assert isinstance(opened, _Opened)
        result = VideoResult(self._sources[number], opened.info)
        scorer = Scorer(self._engine, rule, sink, result, self._gate)
        encode_before = self._encoder.seconds
        for step in steps:
            if isinstance(step, Encoded):
                scorer.push(step)
            elif isinstance(step, _Closed):
                result.damage, result.note = step.damage, step.note
                result.timings.decode = step.busy
            if progress is not None and isinstance(step, _Batch | _Closed):
                progress(result.seconds, result.info.duration)
        scorer.finish()
        result.timings.encode = self._encoder.seconds - encode_before
        result.timings.wall = time.perf_counter() - self._ended
        self._ended = time.perf_counter()
        return result

    def _of_next(self) -> Iterator[_Step]:
        """The steps of the next video, up to its last."""
        self._next += 1
        for step in self._steps:
            if isinstance(step, _Failed):
                raise step.error
            yield step
            if isinstance(step, _Closed):
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
            self._result.gate = self._audit.to_json(self._result.events)

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
                self._audit.push(snippet.verdict, value, other, lost=bool(lost[row].any()))
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


class Holding:
    """Gives held snippets of one video, or of one after the other, the feature that stands for them.

    Args:
        shadow: the gate only counts.
    """

    def __init__(self, shadow: bool) -> None:
        # Compared are an audited snippet with what it would have been held as, and a shadow run with a gated one.
        self._compared = Verdict.HOLD if shadow else Verdict.AUDIT
        self._last: Floats | None = None  # the last feature that the gate had encoded

    def take(self, snippet: Snippet, own: Floats | None) -> Encoded:
        """The next snippet with its feature: its own, or the last one if it has none."""
        before = self._last
        if snippet.verdict is not Verdict.HOLD:
            self._last = own
        feature = before if own is None else own
        assert feature is not None, "a gate encodes the first snippet"
        held = before if snippet.verdict is self._compared and before is not None else feature
        # The images have done their work; keeping them would fill memory with a chunk of them.
        return Encoded(snippet.without_images(), feature, held)


def images_of(engine: Engine, snippets: Sequence[Snippet]) -> NDArray[np.uint8]:
    """Images uint8 [n,S,S,3] of all snippets that have some; n may be 0."""
    size = engine.bundle.model.image_size
    return np.concatenate([np.empty((0, size, size, 3), np.uint8), *(snippet.images for snippet in snippets)])


def features_of(features: Floats, items: Sequence[object]) -> Floats:
    """One feature [n,d] for each snippet with images among items: that of its image, or the mean over its images."""
    count = sum(isinstance(item, Snippet) and len(item.images) > 0 for item in items)
    per_snippet = len(features) // count if count else 1
    each: Floats = features.reshape(count, per_snippet, features.shape[1]).mean(axis=1)
    return each


class _Opened(NamedTuple):
    """A video begins."""

    info: VideoInfo


class _Closed(NamedTuple):
    """A video has been read."""

    damage: str | None
    note: str | None
    busy: float  # seconds spent making its snippets


class _Failed(NamedTuple):
    """A video cannot be read, or reading it has failed."""

    error: BaseException


class _Batch(NamedTuple):
    """A batch has been encoded."""


# What the reader makes, and what becomes of it: snippets turn into features, the rest is passed on in its place.
_Item = _Opened | Snippet | _Closed | _Failed
_Step = _Opened | Encoded | _Closed | _Failed | _Batch


class _Encoder:
    """Turns snippets into features, batch by batch, across the borders of videos."""

    def __init__(self, engine: Engine, reader: _Reader, *, shadow: bool) -> None:
        self.seconds = 0.0  # spent encoding
        self._engine = engine
        self._reader = reader
        self._holding = Holding(shadow)

    def steps(self) -> Iterator[_Step]:
        """Everything that the reader makes, in its order."""
        under_way: deque[list[_Item]] = deque()
        idle = 0.0  # seconds in which the reader was waited for, which is not encoding

        def images() -> Iterator[NDArray[np.uint8]]:
            nonlocal idle
            asked = time.perf_counter()
            for items in self._batches():
                idle += time.perf_counter() - asked
                under_way.append(items)
                yield images_of(self._engine, [item for item in items if isinstance(item, Snippet)])
                asked = time.perf_counter()
            idle += time.perf_counter() - asked

        began = time.perf_counter()
        for features in self._engine.encode_each(images()):
            self.seconds += time.perf_counter() - began - idle
            items = under_way.popleft()
            encoded = iter(features_of(features, items))
            for item in items:
                if isinstance(item, Snippet):
                    yield self._holding.take(item, next(encoded) if len(item.images) else None)
                else:
                    yield item
            yield _Batch()
            began, idle = time.perf_counter(), 0.0

    def _batches(self) -> Iterator[list[_Item]]:
        """What the reader makes in lists with a full batch of images each, or with those that have waited enough.

        Only the last may have none: what has no images goes with those that come next.
        """
        waiting: list[_Item] = []
        images = 0
        since = 0.0
        while True:
            item = self._reader.get(PATIENCE - (time.monotonic() - since) if images else None)
            if isinstance(item, Snippet) and len(item.images):
                since = since if images else time.monotonic()
                images += 1
            if not isinstance(item, _TooLate | _Done):
                waiting.append(item)
            if images >= self._engine.batch or (images and isinstance(item, _TooLate)):
                yield waiting
                waiting, images = [], 0
            if isinstance(item, _Done):
                if waiting:
                    yield waiting
                return


class _TooLate(NamedTuple):
    """Nothing came in time."""


class _Done(NamedTuple):
    """All videos have been read."""


class _Reader:
    """Reads videos in a thread of its own, at most ``depth`` snippets ahead."""

    def __init__(
        self,
        sources: list[Path],
        snippets: Callable[[Video], Iterator[Snippet]],
        depth: int,
        decoder: str = SOFTWARE,
    ) -> None:
        self._sources = sources
        self._decoder = decoder
        self._snippets = snippets
        self._queue: queue.Queue[_Item | _Done] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vadrun-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def get(self, timeout: float | None) -> _Item | _Done | _TooLate:
        """The next item; waits for ``timeout`` seconds at most, or as long as it takes."""
        try:
            return self._queue.get(timeout=None if timeout is None else max(timeout, 0.001))
        except queue.Empty:
            return _TooLate()

    def _work(self) -> None:
        for source in self._sources:
            if self._stop.is_set():
                return
            try:
                self._read(source)
            except BaseException as error:
                self._put(_Failed(error))
                if not isinstance(error, UserError):
                    break
        self._put(_Done())

    def _read(self, source: Path) -> None:
        started = time.perf_counter()
        with Video(source, decoder=self._decoder) as video:
            self._put(_Opened(video.info))
            busy = 0.0
            for snippet in self._snippets(video):
                busy += time.perf_counter() - started
                if not self._put(snippet):
                    return
                started = time.perf_counter()
            busy += time.perf_counter() - started
            self._put(_Closed(video.damage, video.note, busy))

    def _put(self, item: _Item | _Done) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
