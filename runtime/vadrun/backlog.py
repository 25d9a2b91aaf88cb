"""Pictures that are decoded only if somebody looks at them.

Packets are held back undecoded. A picture's place in display order follows from the timestamps of the packets around
it; asked for its frame, the backlog decodes from the last closed key picture on (H.264: IDR; HEVC: IDR_W_RADL or
IDR_N_LP), up to that frame and no further. What lies behind such a key picture depends on nothing before it, so what
is decoded comes out as if all had been, to the bit, and the tails of groups that nobody looks at are never decoded.
Groups that begin openly (recovery points, CRA) are only ever decoded as parts of the closed group before them.

All of it rests on one picture coming out for each packet, in the order of their timestamps. Where that is not so, and
where there is damage, the pictures that have not been given yet are those that come out, as without a backlog. That
lasts up to the next closed key picture after damage, and after a clock that was set back at a closed key picture. After
anything else it lasts to the end.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, NoReturn

import av
from av.video.stream import VideoStream

from vadrun.bitstream import Unit, Units
from vadrun.numbering import Succession
from vadrun.pyav import DURATIONS
from vadrun.skipping import AHEAD, Irregular, Order
from vadrun.timeline import Pauses

if TYPE_CHECKING:
    from vadrun.ahead import Ahead

    Packet = av.Packet[VideoStream]

CODECS = ("h264", "hevc")

_LONGEST = 300  # packets that are held back at most: catching up with them must not take seconds
_TRIED = 2 * AHEAD  # pictures that are decoded in any case, to see whether the stream is regular


class Picture:
    """The place of a picture, named as PyAV's frames name these things.

    Attributes:
        pts, dts, duration: as of its packet, in the stream's time base.
        size: bytes of its packet.
        kind: pictures of one kind take about as many bytes where nothing moves.
        is_key: whether a closed group begins here.
        referred: whether other pictures may depend on it.
    """

    def __init__(self, backlog: Backlog, packet: Packet, unit: Unit, group: int, kind: tuple[int, bool]) -> None:
        assert packet.pts is not None
        self.pts, self.dts = packet.pts, packet.dts
        self.duration = packet.duration if DURATIONS else None
        self.size, self.kind, self.is_key = packet.size, kind, unit.closed
        self.group, self.packet, self.news, self.referred = group, packet, unit.news, unit.referred
        self.number = 0  # in the order of decoding
        self.order = unit.number.order
        self.fed = False  # whether it went through the decoder
        self._backlog = backlog
        self._frame: av.VideoFrame | None = None

    def frame(self) -> av.VideoFrame:
        """The frame, decoded now if it has not been; only for the last three pictures that were given.

        Where damage has taken it, it is the next one that is left, or the last.
        """
        if self._frame is None:
            self._frame = self._backlog.fetch(self)
        return self._frame


class Backlog:
    """Holds back a stream's packets and decodes what is asked for.

    Args:
        packets: of the stream, in the order of decoding; a fault in the container is counted before the next comes.
        units: reads the packets' headers.
        decode: decodes one packet, or with None what is left; notes faults and gives what comes out.
        skip: has the decoder leave out the next packet's picture if nothing depends on it, or not.
        flush: makes the decoder forget everything.
        faults: how many faults have been met so far, in the container or while decoding.
        ahead: where ``packets`` come from, if some of them are decoded ahead.
        base: seconds of one tick of the timestamps.
        missing: is told where pictures are missing that others may be predicted from.
    """

    def __init__(
        self,
        packets: Iterator[Packet],
        units: Units,
        *,
        decode: Callable[[Packet | None], Sequence[av.VideoFrame]],
        skip: Callable[[bool], None],
        flush: Callable[[], None],
        faults: Callable[[], int],
        ahead: Ahead | None = None,
        base: float = 1.0,
        missing: Callable[[], None] = lambda: None,
    ) -> None:
        self._ahead, self._missing = ahead, missing
        self._passed = 0  # pictures that never went through the decoder
        self._packets, self._units = packets, units
        self._decode, self._skip, self._flush, self._faults = decode, skip, flush, faults
        self._held: deque[Picture] = deque()  # in the order of decoding
        self._fed = 0  # how many of those have gone through the decoder, or been passed over for a later group
        self._order: list[int] = []  # heap of the display times of what has not been given yet
        self._waiting: dict[int, Picture] = {}  # by those
        self._group = -1
        self._at: int | None = None  # the group that the decoder is in
        self._inside: list[tuple[int, bool]] = []  # heap of what has gone in and not come out: pts, whether skipped
        self._ready: dict[int, av.VideoFrame] = {}
        self._clock: int | None = None  # decoding time of the last packet that was read
        self._latest = 0  # display time of the latest picture that was read
        self._given: deque[Picture] = deque(maxlen=3)
        self._count = 0  # pictures that were read
        self._times, self._pauses, self._base = Order(), Pauses(), base
        self._succession = Succession()
        self._to_try = _TRIED
        self._known = 0  # faults
        self._over = False
        self._odd: Packet | None = None  # one that was read and does not fit
        self._plain: Iterator[av.VideoFrame] | None = None  # what comes out where the stream is not regular
        self._again: set[int] = set()  # display times of pictures that were given and come out once more there
        self._resume: Packet | None = None
        self._next: av.VideoFrame | None = None  # of those, one that was taken too early
        self._last: av.VideoFrame | None = None
        self._for_good = False

    @property
    def undecoded(self) -> int:
        """Pictures so far that never went through the decoder; final once all have been given."""
        return self._passed + sum(not held.fed for held in self._held)

    @property
    def is_regular(self) -> bool:
        """Whether pictures are decoded on demand now, and not as they come."""
        return self._plain is None

    def pictures(self) -> Iterator[Picture | av.VideoFrame]:
        """All pictures in display order, those of irregular stretches as frames; to be called once."""
        while True:
            try:
                yield from self._regular()
            except Irregular:
                self._go_plain()
            if self._plain is None:
                return
            new = 0
            while (frame := self._take_next()) is not None:
                if frame.pts in self._again:
                    self._again.remove(frame.pts)
                    continue
                new += 1
                if new > AHEAD:
                    self._again.clear()  # those that are left did not come out
                yield frame
            self._plain = None
            if self._resume is None:
                return
            self._again.clear()
            self._given.clear()

    def fetch(self, picture: Picture) -> av.VideoFrame:
        """Decode up to this picture, one of the last three that were given."""
        if self._plain is None:
            try:
                return self._fetch(picture)
            except Irregular:
                self._go_plain()
        while (frame := self._take_next()) is not None:
            if frame.pts is None or frame.pts >= picture.pts or frame.pts not in self._again:
                if frame.pts == picture.pts:
                    self._again.discard(picture.pts)
                else:
                    self._next = frame
                return frame
            self._again.remove(frame.pts)
        if self._last is None:
            raise Irregular  # not one frame so far
        return self._last

    # The regular way.

    def _regular(self) -> Iterator[Picture]:
        resumed, self._resume = self._resume, None
        if resumed is not None:
            self._times, self._latest = Order(), resumed.pts or 0
            self._take(resumed)
        while self._plain is None:
            if self._order and (self._over or self._certain()):
                yield self._give()
            elif self._over:
                return
            else:
                self._read()

    def _certain(self) -> bool:
        """Whether no packet that is still to come can be shown before the first that waits."""
        return (self._clock is not None and self._clock >= self._order[0]) or len(self._order) > AHEAD

    def _give(self) -> Picture:
        picture = self._waiting[self._order[0]]
        if self._to_try > 0 or picture.news:
            self._to_try -= 1
            self._fetch(picture)
        if min(waiting.number for waiting in self._waiting.values()) < picture.number - AHEAD:
            self._odd_for_good()  # no decoder waits that long: a wrong timestamp
        if self._given and self._given[-1].group == picture.group:
            direct = self._succession.follows(self._given[-1].order, picture.order)
            if direct is None:
                self._odd_for_good()  # they are shown in another order than that of their times
            if not direct:
                raise Irregular  # pictures are missing, and the decoder may drop others that depend on them
        del self._waiting[heapq.heappop(self._order)]
        self._given.append(picture)
        oldest = self._given[0]
        for pts in [pts for pts in self._ready if pts < oldest.pts]:
            del self._ready[pts]
        while self._held[0].group < oldest.group:
            self._drop_first()
        while len(self._held) > _LONGEST + AHEAD and self._held[0].pts < oldest.pts:
            self._feed_first()
        return picture

    def _read(self) -> None:
        packet = next(self._packets, None)
        if packet is not None:
            self._take(packet)
        elif self._faults() > self._known:
            raise Irregular
        self._over = packet is None

    def _take(self, packet: Packet) -> None:
        """Put a packet that was read in its place."""
        self._odd = packet
        unit = self._read_unit(packet)
        pts, dts = packet.pts, packet.dts
        if packet.is_corrupt or self._faults() > self._known:
            raise Irregular
        late = pts is not None and len(self._given) > 0 and pts <= self._given[-1].pts
        fits = self._times.fits(packet) and not late
        if pts is not None and unit is not None and self._count and pts > self._latest:
            paused = self._pauses.judge((pts - self._latest) * self._base, math.inf)
            # A clock that was set, perhaps between pictures that are not shown in the order of their times.
            fits &= unit.closed or not paused
        if unit is None or pts is None or packet.is_discard or not fits or pts in self._waiting:
            # A clock that was set back where a closed group begins: behind the next one all is regular again.
            self._for_good = not (late and unit is not None and unit.closed)
            raise Irregular
        if self._group < 0 and not unit.closed:
            raise Irregular
        self._odd = None
        self._group += unit.closed
        moved, self._latest = pts < self._latest, max(self._latest, pts) if self._count else pts
        picture = Picture(self, packet, unit, self._group, (unit.kind, moved and not unit.closed))
        picture.fed = self._ahead is not None and pts in self._ahead.decoded
        picture.number = self._count
        self._count += 1
        self._held.append(picture)
        heapq.heappush(self._order, pts)
        self._waiting[pts] = picture
        self._clock = dts

    def _read_unit(self, packet: Packet) -> Unit | None:
        unit = self._units.read(packet)
        if unit is not None and unit.number.gap:
            self._missing()
        return unit

    def _fetch(self, picture: Picture) -> av.VideoFrame:
        if self._ahead is not None and picture.pts not in self._ready:
            frame = self._ahead.frame(picture.pts)
            if frame is not None:
                for held in self._held:
                    held.fed |= held.pts in self._ahead.decoded
                self._last = frame
                return frame
        if not self._under_way(picture):
            self._enter(picture.group)
        while picture.pts not in self._ready:
            if self._fed < len(self._held):
                self._feed(picture.pts)
            elif not self._over:
                self._read()
            else:
                self._take_out(self._decode(None))
                self._at = None  # a decoder that is drained has to be flushed
                if picture.pts not in self._ready:
                    self._odd_for_good()
        return self._ready[picture.pts]

    def _under_way(self, picture: Picture) -> bool:
        """Whether going on with the decoder leads to this picture, with nothing in between that can be left out."""
        if picture.pts in self._ready:
            return True
        if self._at is None or self._at > picture.group:
            return False
        if self._at < picture.group:
            return self._fed < len(self._held) and self._held[self._fed].group == picture.group
        return (picture.pts, False) in self._inside or any(
            held is picture for held in islice(self._held, self._fed, None)
        )

    def _enter(self, group: int) -> None:
        """Have the decoder begin with this group."""
        start = next((at for at, held in enumerate(self._held) if held.group == group), None)
        if start is None or not self._held[start].is_key:
            self._odd_for_good()
        self._flush()
        self._fed, self._at = start or 0, None
        self._inside.clear()
        self._ready.clear()

    def _feed(self, target: int) -> None:
        """Decode the next packet; pictures before the display time ``target`` are not needed themselves."""
        picture = self._held[self._fed]
        skip = not picture.referred and picture.pts < target
        picture.fed = True
        self._fed += 1
        self._at = picture.group
        heapq.heappush(self._inside, (picture.pts, skip))
        self._skip(skip)
        self._take_out(self._decode(picture.packet))

    def _feed_first(self) -> None:
        """Decode what has been held back the longest, and let it go."""
        first = self._held[0]
        if self._fed == 0:
            if self._at != first.group:
                self._enter(first.group)
            self._feed(self._given[0].pts)
        self._drop_first()

    def _drop_first(self) -> None:
        self._passed += not self._held.popleft().fed
        self._fed = max(self._fed - 1, 0)

    def _take_out(self, frames: Sequence[av.VideoFrame]) -> None:
        for frame in frames:
            inside = self._inside
            while inside and frame.pts is not None and inside[0][0] < frame.pts and inside[0][1]:
                heapq.heappop(inside)
            if not inside or inside[0][0] != frame.pts:
                self._odd_for_good()  # a picture that did not come out, or one that is not ours
            heapq.heappop(inside)
            self._last = frame
            if not self._given or frame.pts >= self._given[0].pts:
                self._ready[frame.pts] = frame
        if self._faults() > self._known:
            raise Irregular

    def _odd_for_good(self) -> NoReturn:
        """This is no stream of one picture for each packet, in their order."""
        self._for_good = self._faults() == self._known
        raise Irregular

    # Where the stream is not regular.

    def _go_plain(self) -> None:
        """From the present group on, take what comes out."""
        group = self._given[-1].group if self._given else 0
        packets = []
        self._again.clear()
        for held in self._held:
            if held.group >= group:
                packets.append(held.packet)
                if held.pts not in self._waiting:
                    self._again.add(held.pts)
            else:
                self._passed += not held.fed
        if self._odd is not None:
            packets.append(self._odd)
        self._odd = None
        self._flush()
        self._skip(False)
        self._held.clear()
        self._order.clear()
        self._waiting.clear()
        self._inside.clear()
        self._ready.clear()
        self._fed, self._at, self._over = 0, None, False
        self._plain = self._plainly(packets)

    def _take_next(self) -> av.VideoFrame | None:
        """The next frame where the stream is not regular."""
        found, self._next = self._next, None
        if found is None and self._plain is not None:
            found = next(self._plain, None)
        self._last = found or self._last
        return found

    def _plainly(self, packets: list[Packet]) -> Iterator[av.VideoFrame]:
        """What comes out of these packets and of those that follow, up to the next one to hold back from."""
        before: Packet | None = None  # the last one of all is not decoded if it is incomplete
        for number, packet in enumerate(chain(packets, self._packets)):
            if before is not None:
                yield from self._decode(before)
            before = packet
            if number < len(packets):
                continue
            unit = self._read_unit(packet)
            if unit is not None and unit.closed and not self._for_good and not packet.is_corrupt:
                self._resume, before = packet, None
                break
        if before is not None and not before.is_corrupt:
            yield from self._decode(before)
        yield from self._decode(None)
        self._flush()
        self._known = self._faults()
        self._to_try = max(self._to_try, 1)
