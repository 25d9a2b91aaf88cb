"""Only pictures that are wanted, and what they are predicted from: closed groups of pictures, several at once.

Which pictures the sampling wants is known beforehand, by their place in display order. Behind a closed key picture
(H.264: IDR; HEVC: IDR_W_RADL or IDR_N_LP) nothing depends on anything before it, and everything is shown after it. So
each group's places are known once it has been read; what comes behind its last wanted picture, in the order of
decoding, is not decoded at all; and groups can be decoded side by side, each in one thread. That costs less than
FFmpeg's threads, which work on neighbouring pictures and wait for each other's rows, the more the less there is in
them. What is given is what a full decode gives, to the bit.

All of it rests on one picture coming out for each packet, in the order of their timestamps. Where that fails, or where
there is damage, :class:`vadrun.skipping.Irregular` is raised, and the video has to be read with every picture decoded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import av

from vadrun.bitstream import Units
from vadrun.skipping import DURATIONS, Irregular, Skipped

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    Packet = av.Packet[VideoStream]

T = TypeVar("T")

_LONGEST = 1000  # packets of a group; they wait in memory until all are there
_MOST_NEWS = 16  # key pictures that bring parameter sets; all decoders have to be told of each


class Taken(NamedTuple):
    """A picture that was wanted, named as PyAV's frames name these things, and what was made of it."""

    pts: int
    dts: int | None
    duration: int | None
    made: Any


class _Group(NamedTuple):
    packets: list[Packet]  # in the order of decoding
    shown: list[Packet]  # in that of display
    wanted: set[int]  # display times
    spare: set[int]  # those of pictures that are not wanted, and that no other depends on
    news: list[Packet]  # key pictures so far that brought parameter sets


class Worker(Generic[T]):
    """Decodes one group after the other, in one thread.

    Args:
        context: of the stream, opened by itself; decodes nothing else.
        make: makes what is wanted of a picture.
    """

    def __init__(self, context: VideoCodecContext, make: Callable[[av.VideoFrame], T]) -> None:
        context.thread_count = 1
        self._context, self._make = context, make
        self._heard = 0  # news

    def decode(self, group: _Group, stop: threading.Event) -> dict[int, T]:
        """What was made of the wanted pictures, by display time; of some of them if ``stop`` is set.

        Raises:
            Irregular: damage, or a picture that does not come out.
        """
        found: dict[int, T] = {}
        try:
            self._hear(group)
            missing: set[int] = set()  # pictures that have to come out
            wanted = set(group.wanted)
            for packet in group.packets:
                if stop.is_set():
                    break
                assert packet.pts is not None
                spare = packet.pts in group.spare
                if not spare:
                    missing.add(packet.pts)
                self._context.skip_frame = "NONREF" if spare else "DEFAULT"
                self._take(self._context.decode(packet), group.wanted, missing, found)
                wanted.discard(packet.pts)
                if not wanted:
                    break
            self._take(self._context.decode(None), group.wanted, missing, found)
            self._context.flush_buffers()
        except av.FFmpegError as error:
            raise Irregular from error
        if missing and not stop.is_set():
            raise Irregular
        return found

    def _take(self, frames: list[av.VideoFrame], wanted: set[int], missing: set[int], found: dict[int, T]) -> None:
        for frame in frames:
            if frame.is_corrupt or frame.pts is None:
                raise Irregular
            missing.discard(frame.pts)
            if frame.pts in wanted:
                found[frame.pts] = self._make(frame)

    def _hear(self, group: _Group) -> None:
        """Learn parameter sets that came with groups that others have decoded."""
        for packet in group.news[self._heard :]:
            if packet is not group.packets[0]:
                self._context.skip_frame = "DEFAULT"
                self._context.decode(packet)
                self._context.flush_buffers()
        self._heard = len(group.news)


class Groups(Generic[T]):
    """Reads a stream's packets and decodes what is wanted of them.

    Args:
        packets: of the stream, in the order of decoding.
        units: reads the packets' headers.
        wanted: whether the picture at this place in display order is needed.
        worker: makes a worker; called once for each of ``count`` at most.
        count: groups that are decoded at once.
        faults: how many faults have been met in the container so far.
    """

    def __init__(
        self,
        packets: Iterator[Packet],
        units: Units,
        wanted: Callable[[int], bool],
        worker: Callable[[], Worker[T]],
        count: int,
        faults: Callable[[], int],
    ) -> None:
        self._packets, self._units, self._wanted, self._faults = packets, units, wanted, faults
        self._make, self._count = worker, count
        self._idle: list[Worker[T]] = []
        self._stop = threading.Event()

    def pictures(self) -> Iterator[Taken | Skipped]:
        """All pictures in display order; to be called once.

        Raises:
            Irregular: as the module says.
        """
        under_way: deque[tuple[_Group, Future[dict[int, T]] | None]] = deque()
        pool = ThreadPoolExecutor(self._count, "vadrun-decoder")
        try:
            for group in self._groups():
                under_way.append((group, pool.submit(self._decode, group) if group.wanted else None))
                if sum(future is not None for _, future in under_way) > self._count:
                    yield from self._given(*under_way.popleft())
            while under_way:
                yield from self._given(*under_way.popleft())
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _decode(self, group: _Group) -> dict[int, T]:
        worker = self._take_worker()
        try:
            return worker.decode(group, self._stop)
        finally:
            self._idle.append(worker)

    def _take_worker(self) -> Worker[T]:
        with suppress(IndexError):
            return self._idle.pop()  # the last one that was at work, so that no more are made than are needed
        return self._make()

    def _given(self, group: _Group, future: Future[dict[int, T]] | None) -> Iterator[Taken | Skipped]:
        found = {} if future is None else future.result()
        for packet in group.shown:
            assert packet.pts is not None
            place = packet.pts, packet.dts, packet.duration if DURATIONS else None
            yield Taken(*place, found.pop(packet.pts)) if packet.pts in group.wanted else Skipped(*place)

    def _groups(self) -> Iterator[_Group]:
        before = 0  # pictures in earlier groups
        latest: int | None = None  # display time of the last of them
        news: list[Packet] = []
        packets: list[Packet] = []
        unreferred: set[int] = set()

        def whole() -> _Group:
            nonlocal before, latest
            shown = sorted(packets, key=lambda packet: packet.pts or 0)
            times = [packet.pts or 0 for packet in shown]
            if len(set(times)) < len(times) or (latest is not None and times[0] <= latest):
                raise Irregular
            wanted = {pts for rank, pts in enumerate(times, before) if self._wanted(rank)}
            before, latest = before + len(times), times[-1]
            return _Group(packets, shown, wanted, unreferred - wanted, list(news))

        for packet in self._packets:
            unit = self._units.read(packet)
            if unit is None or packet.pts is None or packet.is_discard or packet.is_corrupt or self._faults():
                raise Irregular
            if unit.closed:
                if packets:
                    yield whole()
                packets, unreferred = [], set()
                if unit.news:
                    news.append(packet)
                if len(news) > _MOST_NEWS:
                    raise Irregular
            elif not packets or len(packets) == _LONGEST:
                raise Irregular
            packets.append(packet)
            if not unit.referred:
                unreferred.add(packet.pts)
        if self._faults():
            raise Irregular
        if packets:
            yield whole()
