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
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av

from vadrun.pyav import DURATIONS

AHEAD = 17  # packets; 16 pictures at most wait in a decoder for one that comes before them


class Irregular(Exception):
    """Pictures were skipped, and which ones are now in doubt."""


class Skipped(NamedTuple):
    """The place of a picture that was not decoded; named as PyAV's frames name these things."""

    pts: int
    dts: int | None
    duration: int | None


class Skipper:
    """Says of each packet whether its picture is wanted, and puts skipped pictures in their places.

    Packets are announced with :meth:`announce` as they are read and come to :meth:`skips` in the same order,
    :data:`AHEAD` of them later; frames go through :meth:`placed`.

    Attributes:
        wanted: whether the picture at this place in display order is needed; None: all are.
    """

    def __init__(self) -> None:
        self.wanted: Callable[[int], bool] | None = None
        self._regular = True
        self._skipped = False  # anything so far
        self._known: list[int] = []  # sorted timestamps of packets from a while ago to the last announced
        self._before = 0  # packets that came before those, in display order
        self._recent: deque[int] = deque()  # timestamps in the order in which they were decoded
        self._expected: list[tuple[int, bool, int | None, int | None]] = []  # heap: pts, skipped, dts, duration

    def announce(self, packet: av.Packet[Any]) -> None:
        """A packet has been read."""
        if packet.pts is None or packet.is_discard or packet.is_corrupt:
            self.doubt()
        elif self._regular:
            insort(self._known, packet.pts)

    def skips(self, packet: av.Packet[Any], may: bool = True) -> bool:
        """Whether to skip this packet's picture, if nothing depends on it; not where it may not be."""
        if not self._regular:
            return False
        assert packet.pts is not None
        rank = self._before + bisect_left(self._known, packet.pts)
        skip = may and self.wanted is not None and not packet.is_keyframe and not self.wanted(rank)
        self._skipped |= skip
        heapq.heappush(self._expected, (packet.pts, skip, packet.dts, packet.duration if DURATIONS else None))
        # What has been decoded this long ago has nothing before it that is still to come.
        self._recent.append(packet.pts)
        if len(self._recent) > 4 * AHEAD:
            oldest = min(self._recent)
            self._recent.popleft()
            gone = bisect_left(self._known, oldest)
            del self._known[:gone]
            self._before += gone
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
