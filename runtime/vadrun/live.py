"""Several cameras on one engine, in real time.

Each camera is decoded in one thread of its own and shares the encoder's batches with the others; an image waits
:data:`WAIT` seconds at most for a batch to fill. The head, whose cost does not depend on how much is new, scores a
camera's present chunk when its oldest snippet without a score was decoded :data:`DELAY` seconds ago, or as soon as no
other can come before that, and gives all newer ones their score with it. A snippet therefore has its score
:data:`DELAY` seconds, one call of the encoder and one of the head after it was decoded, at most, unless the machine is
too slow for its cameras.

Such a score is provisional: it is what :func:`vadrun.run_video` would give if the video ended there. When a camera's
chunk of T snippets is full it is scored for good, by the same code and with the same numbers as a file.

Cameras are video files that are played at their own speed.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vadrun.calibration import Calibration
from vadrun.engine import Engine
from vadrun.events import Event, EventRule
from vadrun.feeding import Encoded, Holding, features_of, images_of
from vadrun.gate import GateRule
from vadrun.interrupts import join
from vadrun.pipeline import Scorer, VideoResult, as_outcome
from vadrun.scoring import Scores
from vadrun.timeline import Seen
from vadrun.video import Shown, Snippet, Video

WAIT = 0.25  # seconds
# Long enough for a second snippet of 16 frames at 15 frames per second, and a third at 30, to be encoded and share the
# head's call.
DELAY = 1.5  # seconds
METRICS = 10.0  # seconds from one report of metrics to the next
_DELAYS = 1000  # snippets of each camera whose delays are remembered

T = TypeVar("T")


class LiveSink(Protocol):
    """Where live scores and events go, with the number of the camera."""

    def provisional(
        self, camera: int, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]
    ) -> None:
        """A snippet's first score."""

    def final(self, camera: int, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """A snippet's score for good."""

    def event(self, camera: int, event: Event) -> None:
        """An event, by final scores."""

    def metrics(self, camera: int, metrics: Metrics) -> None:
        """How a camera does, every :data:`METRICS` seconds."""


@dataclass(frozen=True)
class Metrics:
    """How a camera does while it is watched.

    Attributes:
        scored: snippets that have a score.
        seconds: of its video that are in snippets that were encoded; no time in a pause of the recording is.
        delay: seconds that 95% of the last 1000 snippets had a score after; None without any.
        events: so far, by final scores.
        gate: what the gate does and what it costs, with confidence bounds, as :meth:`vadrun.audit.GateAudit.to_json`
            has it, over all chunks that are full; None without a gate. In the shadow, an event that has not ended in
            both runs yet may count as missed.
    """

    scored: int
    seconds: float
    delay: float | None
    events: int
    gate: dict[str, Any] | None


@dataclass
class Camera:
    """What is known of a camera after the run.

    Attributes:
        result: as of a file, by final scores; None if it could not be opened.
        scored: snippets that had a score.
        delays: seconds from a snippet's end to its first score, for the last 1000 snippets.
        failure: why it cannot be watched any more, or None.
    """

    source: Path
    result: VideoResult | None = None
    scored: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=_DELAYS))
    failure: str | None = None

    def delay(self, share: float = 0.95) -> float | None:
        """The delay that this share of the snippets stays within; None without any."""
        return float(np.quantile(self.delays, share)) if self.delays else None


def run_live(
    engine: Engine,
    sources: Sequence[str | Path],
    rule: EventRule | Calibration | Sequence[EventRule | Calibration],
    sink: LiveSink | None = None,
    gate: GateRule | Sequence[GateRule | None] | None = None,
    stop: threading.Event | None = None,
) -> list[Camera]:
    """Watch cameras until all have ended.

    A camera that the machine is too slow for falls behind, and its delays say so.

    Args:
        engine: the loaded bundle.
        sources: video files, each played at its own speed from now on.
        rule: what makes scores an event; one for all cameras, or one for each, such as its calibration.
        sink: takes every snippet's first score.
        gate: encodes only where something happens; one for all cameras, or one for each.
        stop: ends the run when it is set.
    """
    rules: list[EventRule | Calibration] = _each(rule, sources)
    gates: list[GateRule | None] = _each(gate, sources)
    return _Live(engine, [Path(source) for source in sources], rules, sink, gates, stop or threading.Event()).run()


def _each(value: T | Sequence[T], sources: Sequence[object]) -> list[T]:
    """One value for each source."""
    if not isinstance(value, Sequence):
        return [value] * len(sources)
    if len(value) != len(sources):
        raise ValueError(f"{len(value)} rules or gates for {len(sources)} cameras")
    return list(value)


class _End(NamedTuple):
    """A camera has ended, with the reader's remarks or because of an error."""

    damage: str | None = None
    note: str | None = None
    error: BaseException | None = None
    undecoded: int | None = None
    seen: Seen | None = None


class _Message(NamedTuple):
    """What a camera's thread sends: its video once it is open, snippets, its end."""

    camera: int
    content: _Paced | Snippet | _End
    made: float = 0.0  # when a snippet was decoded


class _Paced(Video):
    """A video file that is played at its own speed."""

    looks_ahead = False  # a camera has no file to look ahead in

    def __init__(self, path: Path, stop: threading.Event) -> None:
        # Threads of the decoder cost time and memory, and the cameras keep the cores busy without them.
        super().__init__(path, threads=1)
        self._stop = stop
        self.began = time.monotonic()

    def shown(self) -> Iterator[Shown]:
        for shown in super().shown():
            if self._stop.wait(max(self.began + shown.time - time.monotonic(), 0.0)):
                return
            yield shown


class _Watched:
    """A camera that is open; takes its final scores as a :class:`vadrun.pipeline.Sink`."""

    def __init__(self, live: _Live, number: int, video: _Paced) -> None:
        self._camera, self._number, self._sink = live.cameras[number], number, live.sink
        self._began = video.began
        self.result = self._camera.result = VideoResult(self._camera.source, video.info)
        gate = live.gates[number]
        self.scorer = Scorer(live.engine, live.rules[number], self, self.result, gate)
        self.holding = Holding(shadow=gate is not None and gate.shadow)
        self._oldest: float | None = None  # when the oldest snippet without a score was decoded
        self._next = 0.0  # when the one after the newest will be

    @property
    def due(self) -> float | None:
        """When the head has to score what is new; None if nothing is."""
        if self._oldest is None:
            return None
        latest = self._oldest + DELAY
        return latest if self._next < latest else self._oldest

    def push(self, encoded: Encoded, made: float) -> None:
        """Take the next snippet; if its chunk is full it is scored."""
        if self._oldest is None:
            self._oldest = made
        self._next = made + encoded.snippet.end - encoded.snippet.start
        self.scorer.push(encoded)

    def metrics(self) -> Metrics:
        camera, result = self._camera, self.result
        return Metrics(camera.scored, result.seconds, camera.delay(), len(result.events), self.scorer.gate_so_far())

    def first_scores(self, scores: Scores) -> None:
        """Scores of the present chunk."""
        shown = self.scorer.class_probabilities(scores)
        for row, (snippet, _, _) in enumerate(self.scorer.chunk):
            if snippet.index >= self._camera.scored:
                anomaly, classes = float(scores.anomaly[row]), shown[row]
                self._first(snippet.index, snippet.start, snippet.end, anomaly, classes)

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        if index >= self._camera.scored:
            self._first(index, start, end, anomaly, classes)
        if self._sink is not None:
            self._sink.final(self._number, index, start, end, anomaly, classes)

    def event(self, event: Event) -> None:
        if self._sink is not None:
            self._sink.event(self._number, event)

    def _first(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        self._camera.scored = index + 1
        self._oldest = None
        self._camera.delays.append(time.monotonic() - self._began - end)
        if self._sink is not None:
            self._sink.provisional(self._number, index, start, end, anomaly, classes)


class _Live:
    def __init__(
        self,
        engine: Engine,
        sources: list[Path],
        rules: Sequence[EventRule | Calibration],
        sink: LiveSink | None,
        gates: Sequence[GateRule | None],
        stop: threading.Event,
    ) -> None:
        self.engine, self.rules, self.gates = engine, rules, gates
        self.sink, self._stop = sink, stop
        self.cameras = [Camera(source) for source in sources]
        self._watched: dict[int, _Watched] = {}
        # Snippets of a few seconds; where it is full the cameras' threads wait.
        self._queue: queue.Queue[_Message] = queue.Queue(maxsize=4 * len(sources) + 2 * engine.batch)
        self._left = len(sources)  # cameras that have not ended

    def run(self) -> list[Camera]:
        threads = [
            threading.Thread(target=self._watch, args=(number,), name=f"vadrun-camera-{number}", daemon=True)
            for number in range(len(self.cameras))
        ]
        for thread in threads:
            thread.start()
        try:
            self._loop()
        finally:
            self._stop.set()
            join(threads)
        return self.cameras

    def _loop(self) -> None:
        waiting: list[_Message] = []
        images = 0
        since = time.monotonic()
        report = since + METRICS
        while self._left > 0 and not self._stop.is_set():
            now = time.monotonic()
            until = min(self._due(), since + WAIT if images else report, report)
            try:
                message = self._queue.get(timeout=min(max(until - now, 0.001), 0.2))
            except queue.Empty:
                pass
            else:
                waiting.append(message)
                if isinstance(message.content, Snippet) and len(message.content.images):
                    since = since if images else time.monotonic()
                    images += 1
            now = time.monotonic()
            if images == 0 or images >= self.engine.batch or now >= since + WAIT:
                self._take(waiting)
                waiting, images = [], 0
            if now >= self._due():
                self._score(now)
            if now >= report:
                self._report()
                report = now + METRICS
        self._take(waiting)
        self._score(math.inf)
        for watched in self._watched.values():
            watched.scorer.finish()

    def _take(self, messages: list[_Message]) -> None:
        """Encode the snippets and hand everything to its camera, in order."""
        snippets = [message.content for message in messages if isinstance(message.content, Snippet)]
        features = iter(features_of(self.engine.encode(images_of(self.engine, snippets)), snippets))
        for number, content, made in messages:
            if isinstance(content, Snippet):
                watched = self._watched[number]
                watched.push(watched.holding.take(content, next(features) if len(content.images) else None), made)
            elif isinstance(content, _Paced):
                self._watched[number] = _Watched(self, number, content)
            else:
                self._end(number, content)

    def _end(self, number: int, end: _End) -> None:
        self._left -= 1
        camera = self.cameras[number]
        camera.failure = None if end.error is None else str(as_outcome(camera.source, end.error))
        if number in self._watched:
            self._watched[number].result.damage = end.damage
            self._watched[number].result.note = end.note
            self._watched[number].result.undecoded = end.undecoded
            if end.seen is not None:
                self._watched[number].result.seen = end.seen

    def _due(self) -> float:
        """When a camera has to be scored next."""
        return min((watched.due for watched in self._watched.values() if watched.due is not None), default=math.inf)

    def _score(self, now: float) -> None:
        """First scores for the cameras that are due."""
        watched = [watched for watched in self._watched.values() if watched.due is not None and watched.due <= now]
        chunks = [np.stack([encoded.feature for encoded in w.scorer.chunk]) for w in watched]
        for one, scores in zip(watched, self.engine.score_chunks(chunks), strict=True):
            one.first_scores(scores)

    def _report(self) -> None:
        if self.sink is not None:
            for number, watched in self._watched.items():
                self.sink.metrics(number, watched.metrics())

    def _watch(self, number: int) -> None:
        """A camera's thread."""
        bundle = self.engine.bundle
        try:
            video = _Paced(self.cameras[number].source, self._stop)
            with video:
                self._put(_Message(number, video))
                for snippet in video.snippets(bundle.sampling, bundle.preprocessing, gate=self.gates[number]):
                    self._put(_Message(number, snippet, time.monotonic()))
                self._put(_Message(number, _End(video.damage, video.note, undecoded=video.undecoded, seen=video.seen)))
        except BaseException as error:
            self._put(_Message(number, _End(error=error)))

    def _put(self, message: _Message) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(message, timeout=0.1)
                return
            except queue.Full:
                continue
