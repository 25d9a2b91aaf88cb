"""From files to features: one thread reads and decodes ahead, the caller's encodes, batch by batch.

The reader goes on to the next video while the last is encoded, and a batch may hold snippets of both.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vadrun.decoders import SOFTWARE
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.gate import Verdict
from vadrun.sources import VideoInfo
from vadrun.video import Snippet, Video

Floats = NDArray[np.float32]

# Seconds that an image may wait for its batch to fill; it matters where the gate holds most.
PATIENCE = 2.0


class Encoded(NamedTuple):
    """A snippet, without its images, and its feature float32 [d].

    ``held`` is the feature that the gate would have had stand for it; the same one where it did, or where it did not
    want to.
    """

    snippet: Snippet
    feature: Floats
    held: Floats


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


class Opened(NamedTuple):
    """A video begins."""

    info: VideoInfo


class Closed(NamedTuple):
    """A video has been read."""

    damage: str | None
    note: str | None
    busy: float  # seconds spent making its snippets
    undecoded: int  # pictures that were not decoded


class Failed(NamedTuple):
    """A video cannot be read, or reading it has failed."""

    error: BaseException


class Batch(NamedTuple):
    """A batch has been encoded."""


# What the reader makes, and what becomes of it: snippets turn into features, the rest is passed on in its place.
Item = Opened | Snippet | Closed | Failed
Step = Opened | Encoded | Closed | Failed | Batch


class Encoder:
    """Turns snippets into features, batch by batch, across the borders of videos."""

    def __init__(self, engine: Engine, reader: ReadAhead, *, shadow: bool) -> None:
        self.seconds = 0.0  # spent encoding
        self._engine = engine
        self._reader = reader
        self._holding = Holding(shadow)

    def steps(self) -> Iterator[Step]:
        """Everything that the reader makes, in its order."""
        under_way: deque[list[Item]] = deque()
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
            yield Batch()
            began, idle = time.perf_counter(), 0.0

    def _batches(self) -> Iterator[list[Item]]:
        """What the reader makes in lists with a full batch of images each, or with those that have waited enough.

        Only the last may have none: what has no images goes with those that come next.
        """
        waiting: list[Item] = []
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


class ReadAhead:
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
        self._queue: queue.Queue[Item | _Done] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vadrun-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def get(self, timeout: float | None) -> Item | _Done | _TooLate:
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
                self._put(Failed(error))
                if not isinstance(error, UserError):
                    break
        self._put(_Done())

    def _read(self, source: Path) -> None:
        started = time.perf_counter()
        with Video(source, decoder=self._decoder) as video:
            self._put(Opened(video.info))
            busy = 0.0
            for snippet in self._snippets(video):
                busy += time.perf_counter() - started
                if not self._put(snippet):
                    return
                started = time.perf_counter()
            busy += time.perf_counter() - started
            self._put(Closed(video.damage, video.note, busy, video.undecoded))

    def _put(self, item: Item | _Done) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
