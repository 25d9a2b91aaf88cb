"""Only pictures that are wanted, and what they are predicted from: closed groups of pictures, several at once.

Which pictures the sampling wants is known beforehand, by their place in display order. Behind a closed key picture
(H.264: IDR; HEVC: IDR_W_RADL or IDR_N_LP) nothing depends on anything before it, or is shown before it. So
each group's places are known once it has been read; what comes behind its last wanted picture, in the order of
decoding, is not decoded at all; and groups can be decoded side by side, each in one thread. That costs less than
FFmpeg's threads, which work on neighbouring pictures and wait for each other's rows, the more the less there is in
them. What is given is what a full decode gives, to the bit; only damage in what is left out goes unseen. Groups from
which pictures are missing, by the numbers of the others, are decoded in full.

All of it rests on one picture coming out for each packet, in the order of their timestamps. Where that fails, or where
there is damage, :class:`vadrun.skipping.Irregular` is raised, and the video has to be read with every picture decoded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import av

from vadrun.bitstream import Units
from vadrun.errors import of_the_machine
from vadrun.numbering import Succession
from vadrun.pyav import DURATIONS
from vadrun.skipping import AHEAD, Irregular, Order, Ranks, Skipped

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    Packet = av.Packet[VideoStream]

T = TypeVar("T")

_LONGEST = 1000  # packets of a group; they wait in memory until all are there
_LARGEST = 64 << 20  # bytes of them
_TRIED = 34  # pictures that are decoded in any case, to see whether they come out in the order of their timestamps
_MOST_AT_ONCE = 8  # groups; each takes a decoder's memory, 34 MiB at 1080p
_MOST_NEWS = 16  # key pictures that bring parameter sets; all decoders have to be told of each


class Taken(NamedTuple):
    """A picture that was wanted, named as PyAV's frames name these things, and what was made of it."""

    pts: int
    dts: int | None
    duration: int | None
    made: Any


class Group(NamedTuple):
    """A closed group of pictures."""

    packets: list[Packet]  # in the order of decoding, up to the last that is wanted
    last: Packet  # of all
    shown: list[tuple[int, int | None, int | None]]  # display time, decoding time, duration of all, as they are shown
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
        if context.name == "hevc":
            # Its decoder shows what an earlier picture left where it meets damage, and says so to nobody but with this.
            context.options = {**context.options, "err_detect": "explode"}
        self._context, self._make = context, make
        self._heard = 0  # news
        self._shown = 0  # display time of the last picture that came out

    def decode(self, group: Group, stop: threading.Event) -> dict[int, T]:
        """What was made of the wanted pictures, by display time; of some of them if ``stop`` is set.

        Raises:
            Irregular: damage, or a picture that does not come out.
        """
        found: dict[int, T] = {}
        try:
            self._hear(group)
            self._shown = group.shown[0][0] - 1
            missing: set[int] = set()  # pictures that have to come out
            for packet in group.packets:
                if stop.is_set():
                    break
                assert packet.pts is not None
                spare = packet.pts in group.spare
                if not spare:
                    missing.add(packet.pts)
                self._context.skip_frame = "NONREF" if spare else "DEFAULT"
                self._take(self._context.decode(packet), group.wanted, missing, found)
            self._take(self._context.decode(None), group.wanted, missing, found)
            self._context.flush_buffers()
        except av.FFmpegError as error:
            of_the_machine(error)
            raise Irregular from error
        if missing and not stop.is_set():
            raise Irregular
        return found

    def _take(self, frames: list[av.VideoFrame], wanted: set[int], missing: set[int], found: dict[int, T]) -> None:
        for frame in frames:
            if frame.is_corrupt or frame.pts is None or frame.pts <= self._shown:
                raise Irregular
            self._shown = frame.pts
            missing.discard(frame.pts)
            if frame.pts in wanted:
                found[frame.pts] = self._make(frame)

    def _hear(self, group: Group) -> None:
        """Learn parameter sets that came with groups that others have decoded."""
        if self._heard > len(group.news):  # a later group was faster
            raise Irregular
        for packet in group.news[self._heard :]:
            if packet is not group.packets[0]:
                self._context.skip_frame = "DEFAULT"
                self._context.decode(packet)
                self._context.flush_buffers()
        self._heard = len(group.news)


class Crew(Generic[T]):
    """Decodes groups in threads, each with a worker.

    Args:
        worker: makes a worker; called once for each thread, at most.
        share: how many groups may be under way now; never more than eight are.
    """

    def __init__(self, worker: Callable[[], Worker[T]], share: Callable[[], int]) -> None:
        self._make, self._share = worker, share
        self._idle: list[Worker[T]] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_MOST_AT_ONCE, "vadrun-decoder")

    @property
    def count(self) -> int:
        """How many groups may be under way now."""
        return min(self._share(), _MOST_AT_ONCE)

    def start(self, group: Group) -> Future[dict[int, T]]:
        """Decode a group: what was made of its wanted pictures, by display time. Raises: as :meth:`Worker.decode`."""
        return self._pool.submit(self._decode, group)

    def stop(self) -> None:
        """Let go of what is not done, and wait for the threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, group: Group) -> dict[int, T]:
        try:
            worker = self._idle.pop()  # the last one that was at work, so that no more are made than are needed
        except IndexError:
            worker = self._make()
        try:
            return worker.decode(group, self._stop)
        finally:
            self._idle.append(worker)


class Groups(Generic[T]):
    """Reads a stream's packets and decodes what is wanted of them.

    Args:
        packets: of the stream, in the order of decoding.
        splitter: splits them into groups.
        crew: decodes those; it is stopped at the end.
        faults: how many faults have been met in the container so far.
    """

    def __init__(self, packets: Iterator[Packet], splitter: Splitter, crew: Crew[T], faults: Callable[[], int]) -> None:
        self._packets, self._splitter, self._crew, self._faults = packets, splitter, crew, faults

    def pictures(self) -> Iterator[Taken | Skipped]:
        """All pictures in display order; to be called once.

        Raises:
            Irregular: as the module says.
        """
        under_way: deque[tuple[Group, Future[dict[int, T]] | None]] = deque()
        try:
            for group in self._split():
                under_way.append((group, self._crew.start(group) if group.packets else None))
                if sum(future is not None for _, future in under_way) >= self._crew.count:
                    yield from self._given(*under_way.popleft())
            while under_way:
                yield from self._given(*under_way.popleft())
        finally:
            self._crew.stop()

    def _split(self) -> Iterator[Group]:
        before: Packet | None = None  # the last one of all is none if it is incomplete
        for packet in self._packets:
            if before is not None and (group := self._push(before)) is not None:
                yield group
            before = packet
        if before is not None and not before.is_corrupt and (group := self._push(before)) is not None:
            yield group
        group = self._splitter.finish()
        if group is not None:
            yield group

    def _push(self, packet: Packet) -> Group | None:
        if self._faults():
            raise Irregular
        return self._splitter.push(packet)

    def _given(self, group: Group, future: Future[dict[int, T]] | None) -> Iterator[Taken | Skipped]:
        found = {} if future is None else future.result()
        for place in group.shown:
            yield Taken(*place, found.pop(place[0])) if place[0] in group.wanted else Skipped(*place)


class Splitter:
    """Splits a stream's packets into closed groups.

    Args:
        units: reads the packets' headers.
        wanted: whether the picture at this place in display order is needed.
        ranks: counts those places; for this splitter alone.
    """

    def __init__(self, units: Units, wanted: Callable[[int], bool], ranks: Ranks | None = None) -> None:
        self._units, self._wanted, self._ranks = units, wanted, ranks or Ranks()
        self._order = Order()
        self._before = 0  # pictures in earlier groups
        self._latest: int | None = None  # display time of the last of them
        self._news: list[Packet] = []
        self._packets: list[Packet] = []
        self._size = 0  # bytes of those
        self._unreferred: set[int] = set()
        self._succession = Succession()
        self._numbers: dict[int, int | None] = {}  # order counts of the pictures, by display time

    def push(self, packet: Packet) -> Group | None:
        """The group that ends before this packet, the next in the order of decoding.

        Raises:
            Irregular: it does not fit.
        """
        unit = self._units.read(packet)
        if unit is None or packet.pts is None or packet.is_discard or packet.is_corrupt:
            raise Irregular
        if unit.number.gap or not self._order.fits(packet):
            raise Irregular
        ended = None
        if unit.closed:
            ended = self.finish()
            self._packets, self._size, self._unreferred, self._numbers = [], 0, set(), {}
            if unit.news:
                self._news.append(packet)
            if len(self._news) > _MOST_NEWS:
                raise Irregular
        elif not self._packets or len(self._packets) == _LONGEST or self._size > _LARGEST:
            raise Irregular
        self._packets.append(packet)
        self._size += packet.size
        self._numbers[packet.pts] = unit.number.order
        if not unit.referred:
            self._unreferred.add(packet.pts)
        return ended

    def finish(self) -> Group | None:
        """The last group; None without any.

        Raises:
            Irregular: its display times are not in order.
        """
        if not self._packets:
            return None
        packets = self._packets
        shown = sorted((p.pts or 0, p.dts, p.duration if DURATIONS else None) for p in packets)
        times = [pts for pts, _, _ in shown]
        if len(set(times)) < len(times) or (self._latest is not None and times[0] <= self._latest):
            raise Irregular
        place = {pts: at for at, pts in enumerate(times)}
        if any(abs(place[packet.pts or 0] - at) > AHEAD for at, packet in enumerate(packets)):
            raise Irregular  # no decoder waits that long: a wrong timestamp
        ranks = [self._ranks.next(pts) for pts in times]
        if any(within == 0 for _, within in ranks[1:]):
            raise Irregular  # a clock that was set, perhaps between pictures that are not shown in this order
        wanted = {pts for pts, rank in zip(times, ranks, strict=True) if self._wanted(self._ranks.chosen(rank))}
        tried = max(_TRIED - self._before, 0)
        decoded = packets[: max(_up_to(packets, wanted), tried)] if wanted else []
        spare = self._unreferred - wanted - {packet.pts for packet in packets[:tried] if packet.pts is not None}
        orders = [self._numbers[pts] for pts in times]
        direct = [self._succession.follows(before, order) for before, order in pairwise(orders)]
        if not all(direct):
            # Pictures are missing, or shown in another order than that of their times: the decoder will tell.
            decoded, spare = packets, set()
        self._before, self._latest = self._before + len(times), times[-1]
        return Group(decoded, packets[-1], shown, wanted, spare, list(self._news))


def _up_to(packets: list[Packet], wanted: set[int]) -> int:
    """How many packets there are up to the last that is wanted."""
    return max((at for at, packet in enumerate(packets, 1) if packet.pts in wanted), default=0)
