"""Pictures of H.264 and HEVC that nobody looks at need not be decoded.

A picture that no other is predicted from (H.264: ``nal_ref_idc`` 0; HEVC: a type such as TRAIL_N, in the highest
temporal layer; most B-frames, and every second picture of cameras with temporal layers) can be left out without
changing any other by a bit. It is left out if its place in display order, known from the timestamps of the packets
around it, is one that the sampling passes over; its time is still counted.

Damage in a picture that is left out goes unseen, and it is counted even where a decoder would have dropped it for that.

All of it rests on one picture coming out for each packet, in the order of their timestamps. Where that fails,
:class:`Irregular` is raised, and the video has to be read again with every picture decoded.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av

from vadrun.pyav import DURATIONS
from vadrun.timeline import Pauses

AHEAD = 17  # packets; 16 pictures at most wait in a decoder for one that comes before them


class Irregular(Exception):
    """Pictures were skipped, and which ones are now in doubt."""


class Skipped(NamedTuple):
    """The place of a picture that was not decoded; named as PyAV's frames name these things."""

    pts: int
    dts: int | None
    duration: int | None


class Ranks:
    """Counts pictures in display order by their timestamps alone, as :class:`vadrun.sampling.Sampler` counts frames.

    Args:
        base: seconds of one tick of the timestamps.
        wrap: seconds after which timestamps start again at 0, if they do.

    Attributes:
        joins: whether the count goes on over pauses of the recording; else it starts again at 0.
    """

    def __init__(self, base: float = 1.0, wrap: float | None = None) -> None:
        self.joins = False
        self._base, self._wrap = base, wrap
        self._pauses = Pauses()
        self._count = 0  # pictures so far
        self._first = 0  # how many of them came before the last pause
        self._last: int | None = None  # timestamp

    def next(self, pts: int) -> tuple[int, int]:
        """The place of the next picture: counted from the video's first, and from the first behind the last pause.

        Raises:
            Irregular: timestamps alone do not tell.
        """
        if self._last is not None:
            distance = (pts - self._last) * self._base
            pause = self._pauses.judge(distance)
            if pause is None or distance <= 0 or (self._wrap is not None and distance > self._wrap / 2):
                raise Irregular
            if pause:
                self._first = self._count
        self._last = pts
        self._count += 1
        return self._count - 1, self._count - 1 - self._first

    def chosen(self, ranks: tuple[int, int]) -> int:
        """That of two places that counts."""
        return ranks[0] if self.joins else ranks[1]


class Order:
    """Checks that packets come in the order of their decoding, with times that fit: where one is missing, repeated or
    has a wrong timestamp, they mostly do not."""

    def __init__(self) -> None:
        self._last: int | None = None  # decoding time

    def fits(self, packet: av.Packet[Any]) -> bool:
        """Whether the next packet is decoded no sooner than the one before, and not after it is shown."""
        pts, dts = packet.pts, packet.dts
        if dts is None:
            return True
        last, self._last = self._last, dts
        return (last is None or dts >= last) and (pts is None or pts >= dts)


class Skipper:
    """Says of each packet whether its picture is wanted, and puts skipped pictures in their places.

    Packets are announced with :meth:`announce` as they are read and come to :meth:`skips` in the same order,
    :data:`AHEAD` of them later; frames go through :meth:`placed`.

    Args:
        ranks: counts pictures; for this skipper alone.

    Attributes:
        wanted: whether the picture at this place in display order is needed; None: all are.
        ranks: what counts those places.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.wanted: Callable[[int], bool] | None = None
        self.ranks = ranks or Ranks()
        self._regular = True
        self._skipped = False  # anything so far
        self._known: list[int] = []  # heap of timestamps of packets that were announced and have no place yet
        self._latest: int | None = None  # timestamp of the last that has a place
        self._places: dict[int, tuple[int, int]] = {}  # by timestamp, of packets that are still to be decoded
        self._expected: list[tuple[int, bool, int | None, int | None]] = []  # heap: pts, skipped, dts, duration

    def announce(self, packet: av.Packet[Any]) -> None:
        """A packet has been read."""
        pts = packet.pts
        if pts is None or packet.is_discard or packet.is_corrupt or (self._latest is not None and pts <= self._latest):
            self.doubt()
        elif self._regular:
            heapq.heappush(self._known, pts)

    def skips(self, packet: av.Packet[Any], may: bool = True) -> bool:
        """Whether to skip this packet's picture, if nothing depends on it; not where it may not be."""
        if not self._regular:
            return False
        assert packet.pts is not None
        # Nothing that is still to be announced is shown before this one.
        try:
            while self._known and self._known[0] <= packet.pts:
                self._latest = heapq.heappop(self._known)
                self._places[self._latest] = self.ranks.next(self._latest)
        except Irregular:
            self._places.clear()
        ranks = self._places.pop(packet.pts, None)
        if ranks is None:
            self.doubt()
            return False
        unwanted = self.wanted is not None and not self.wanted(self.ranks.chosen(ranks))
        skip = may and unwanted and not packet.is_keyframe
        self._skipped |= skip
        heapq.heappush(self._expected, (packet.pts, skip, packet.dts, packet.duration if DURATIONS else None))
        return skip

    def placed(self, frame: av.VideoFrame | None) -> Iterator[Skipped]:
        """The skipped pictures that lie before this frame, or before the end (None)."""
        if not self._regular:
            return
        expected = self._expected
        while expected and (frame is None or frame.pts is None or expected[0][0] < frame.pts):
            pts, skipped, dts, duration = heapq.heappop(expected)
            if not skipped:  # a picture that did not come out
                self.doubt()
                return
            yield Skipped(pts, dts, duration)
        if frame is not None:
            if not expected or expected[0][0] != frame.pts:
                self.doubt()
                return
            heapq.heappop(expected)

    def doubt(self) -> None:
        """From here on every picture is to be decoded.

        Raises:
            Irregular: some have been skipped already.
        """
        self._regular = False
        self._expected.clear()
        if self._skipped:
            raise Irregular
