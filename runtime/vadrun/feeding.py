"""From files to features: threads read and decode ahead, the caller's encodes, batch by batch.

Several files are read at once where that keeps more cores at work (:func:`readers`); a batch holds what comes next,
of whichever of them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vadrun.backends import cores
from vadrun.decoders import SOFTWARE, DecoderFailed, wanted
from vadrun.engine import Engine
from vadrun.gate import Verdict
from vadrun.interrupts import join
from vadrun.sources import VideoInfo
from vadrun.timeline import Seen
from vadrun.video import Snippet, Video

Floats = NDArray[np.float32]

# Seconds that an image may wait for its batch to fill; it matters where the gate holds most.
PATIENCE = 2.0
# Files that are read at once at most: each takes a decoder's memory, 34 MiB at 1080p.
MOST_READERS = 8
# Items without images that may wait for each that has some.
_MOST_HELD = 32


def readers(files: int, decoder: str) -> int:
    """How many files are read at once.

    As many as there are cores: files that have no groups to decode side by side, and those that the gate finds quiet,
    keep one core busy each. Where hardware may decode, it takes one file after the other.
    """
    hardware = any(kind.unavailable() is None for kind in wanted(decoder))
    return min(files, 1 if hardware else min(cores(), MOST_READERS))


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
    """A video begins; again, if hardware gave up on it and software reads it from the start."""

    info: VideoInfo
    failed: DecoderFailed | None = None  # why hardware gave up


class Closed(NamedTuple):
    """A video has been read."""

    damage: str | None
    note: str | None
    busy: float  # seconds spent making its snippets
    undecoded: int  # pictures that were not decoded
    seen: Seen  # how much of it was seen


class Failed(NamedTuple):
    """A video cannot be read, or reading it has failed."""

    error: BaseException


# What readers make, and what becomes of it: snippets turn into features, the rest is passed on in its place.
Item = Opened | Snippet | Closed | Failed
Step = Opened | Encoded | Closed | Failed


class Of(NamedTuple):
    """What was made of the video of this number."""

    video: int
    item: Item


class Encoder:
    """Turns snippets into features, batch by batch, across the borders of videos.

    Attributes:
        seconds: spent encoding each video's images: its share of each batch.
    """

    def __init__(self, engine: Engine, reader: ReadAhead, *, shadow: bool) -> None:
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self._engine = engine
        self._reader = reader
        self._shadow = shadow
        self._holding: dict[int, Holding] = {}  # of the videos that are open

    def steps(self) -> Iterator[tuple[int, Step]]:
        """Everything that the readers make, with its video's number; for each video in order."""
        under_way: deque[list[Of]] = deque()
        idle = 0.0  # seconds in which the reader was waited for, which is not encoding

        def images() -> Iterator[NDArray[np.uint8]]:
            nonlocal idle
            asked = time.perf_counter()
            for batch in self._batches():
                idle += time.perf_counter() - asked
                under_way.append(batch)
                yield images_of(self._engine, [item for _, item in batch if isinstance(item, Snippet)])
                asked = time.perf_counter()
            idle += time.perf_counter() - asked

        began = time.perf_counter()
        for features in self._engine.encode_each(images()):
            spent = time.perf_counter() - began - idle
            batch = under_way.popleft()
            encoded = iter(features_of(features, [item for _, item in batch]))
            for video, item in batch:
                if isinstance(item, Snippet):
                    own = next(encoded) if len(item.images) else None
                    self.seconds[video] += spent * len(item.images) / max(len(features), 1)
                    yield video, self._holding[video].take(item, own)
                    continue
                if isinstance(item, Opened):
                    self._holding[video] = Holding(self._shadow)
                else:
                    self._holding.pop(video, None)
                yield video, item
            began, idle = time.perf_counter(), 0.0

    def _batches(self) -> Iterator[list[Of]]:
        """What the readers make in lists with a full batch of images each, or with those that have waited enough.

        Only the last may have none: what has no images goes with those that come next.
        """
        waiting: list[Of] = []
        images = 0
        since = 0.0
        while True:
            made = self._reader.get(PATIENCE - (time.monotonic() - since) if images else None)
            if isinstance(made, Of):
                waiting.append(made)
                if isinstance(made.item, Snippet) and len(made.item.images):
                    since = since if images else time.monotonic()
                    images += 1
            if images >= self._engine.batch or (images and isinstance(made, _TooLate)):
                yield waiting
                waiting, images = [], 0
            if isinstance(made, _Done):
                if waiting:
                    yield waiting
                return


class _TooLate(NamedTuple):
    """Nothing came in time."""


class _Done(NamedTuple):
    """All videos have been read."""


def _takes_room(item: Item | None) -> bool:
    return isinstance(item, Snippet) and len(item.images) > 0


class ReadAhead:
    """Reads videos in threads of its own, all together at most ``depth`` snippets with images ahead.

    What has no images takes no room, and the gate may hold ten snippets for each that fills a batch: of those more may
    wait, so that reading goes on while a batch is encoded.

    Args:
        sources: the files, begun in their order.
        snippets: what is made of an opened one.
        depth: snippets with images that may wait.
        decoder: as :class:`vadrun.Video` has it. Where hardware that ``auto`` took gives up, the video is opened again
            in software.
        stream: as :class:`vadrun.Video` has it.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        snippets: Callable[[Video], Iterator[Snippet]],
        depth: int,
        decoder: str = SOFTWARE,
        stream: int | None = None,
    ) -> None:
        self._decoder, self._stream = decoder, stream
        self._snippets = snippets
        self._queue: queue.Queue[Of | _Done] = queue.Queue(maxsize=_MOST_HELD * depth)
        self._room = threading.Semaphore(depth)  # for snippets with images
        self._stop = threading.Event()
        self._next = iter(list(enumerate(sources)))
        self._taking = threading.Lock()
        self.left: set[int] = set()  # videos that nobody wants any more
        count = readers(len(sources), decoder)
        self._working = count  # readers that have not ended
        self._reading = count  # readers that are at work: they share the cores
        self._threads = [
            threading.Thread(target=self._work, name=f"vadrun-reader-{number}", daemon=True) for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Read no more. A thread that hangs in a read is left behind, see :mod:`vadrun.interrupts`."""
        self._stop.set()
        join([thread for thread in self._threads if thread.ident is not None])

    def leave(self, video: int) -> None:
        """Read no more of this video; what has been read of it still comes."""
        self.left.add(video)

    def get(self, timeout: float | None) -> Of | _Done | _TooLate:
        """The next item; waits for ``timeout`` seconds at most, or as long as it takes."""
        until = None if timeout is None else time.monotonic() + max(timeout, 0.001)
        while self._working:
            try:
                made = self._queue.get(timeout=None if until is None else max(until - time.monotonic(), 0.001))
            except queue.Empty:
                return _TooLate()
            if isinstance(made, Of):
                if _takes_room(made.item):
                    self._room.release()
                return made
            self._working -= 1
        return _Done()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._taking:
                video, source = next(self._next, (-1, None))
            if source is None:
                break
            try:
                try:
                    self._read(video, source, self._decoder)
                except DecoderFailed as error:
                    if self._decoder != "auto" or video in self.left:
                        raise
                    self._read(video, source, SOFTWARE, failed=error)
            except BaseException as error:
                self._put(video, Failed(error))
                if not isinstance(error, Exception):
                    break
        with self._taking:
            self._reading -= 1
        self._put(-1, None)

    def _share(self) -> int:
        """Threads that may decode one file now."""
        return max(cores() // max(self._reading, 1), 1)

    def _read(self, video: int, source: Path, decoder: str, failed: DecoderFailed | None = None) -> None:
        started = time.perf_counter()
        with Video(source, decoder=decoder, threads=self._share(), stream=self._stream) as opened:
            info = opened.info if failed is None else replace(opened.info, decoder_why=str(failed))
            opened.at_once = self._share
            opened.stopped = lambda: self._stop.is_set() or video in self.left
            self._put(video, Opened(info, failed))
            busy = 0.0
            for snippet in self._snippets(opened):
                busy += time.perf_counter() - started
                if video in self.left or not self._put(video, snippet):
                    break
                started = time.perf_counter()
            else:
                busy += time.perf_counter() - started
            self._put(video, Closed(opened.damage, opened.note, busy, opened.undecoded, opened.seen))

    def _put(self, video: int, item: Item | None) -> bool:
        """Hand on an item, None at a reader's end; False if nobody wants any more."""
        room = not _takes_room(item)
        while not self._stop.is_set():
            room = room or self._room.acquire(timeout=0.1)
            if not room:
                continue
            try:
                self._queue.put(_Done() if item is None else Of(video, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
