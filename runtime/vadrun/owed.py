"""Pictures that packets owe: a decoder that drops one often tells nobody."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import av

# Codecs in which one picture comes out for each packet, with the packet's timestamp.
_CODECS = frozenset({"h264", "hevc", "mjpeg"})
_LATE = 96  # packets; 16 pictures wait in a decoder at most, and one in each of its threads


class _Debt(NamedTuple):
    pts: int
    reached: float  # seconds that had been decoded when the packet went in
    number: int  # of the packet


class Owed:
    """Compares what goes into a software decoder with what comes out.

    Nothing is owed for pictures that lead up to a key picture: where a recording was cut or joined they cannot be
    decoded. Interlaced streams may have two packets for one picture and are left alone.

    Args:
        codec: FFmpeg's name of it.
    """

    def __init__(self, codec: str) -> None:
        self._active = codec in _CODECS
        self._debts: deque[_Debt] = deque()
        self._came: set[int] = set()  # timestamps of the last pictures that came out
        self._order: deque[int] = deque()  # the same, in order
        self._key: int | None = None  # timestamp of the last key picture
        self._count = 0

    def fed(self, packet: av.Packet[Any], reached: float) -> list[float]:
        """A packet went in; where pictures were that have not come out in time (seconds)."""
        if not self._active or packet.pts is None or packet.is_discard:
            return []
        if packet.is_keyframe:
            self._key = packet.pts
        self._count += 1
        if self._key is not None and packet.pts >= self._key:
            self._debts.append(_Debt(packet.pts, reached, self._count))
        return self._overdue(self._count - _LATE)

    def failed(self, packet: av.Packet[Any]) -> None:
        """This packet could not be decoded, which is known already."""
        if self._debts and self._debts[-1].pts == packet.pts:
            self._debts.pop()

    def came(self, frame: av.VideoFrame) -> None:
        """A picture came out."""
        if frame.interlaced_frame:
            self._active = False
            self._debts.clear()
        if self._active and frame.pts is not None:
            self._came.add(frame.pts)
            self._order.append(frame.pts)
            if len(self._order) > 4 * _LATE:
                self._came.discard(self._order.popleft())

    def settle(self) -> list[float]:
        """The decoder is empty: where pictures were that have not come out (seconds)."""
        return self._overdue(self._count)

    def forget(self) -> None:
        """The decoder was made to forget everything."""
        self._debts.clear()

    def _overdue(self, number: int) -> list[float]:
        lost = []
        while self._debts and (self._debts[0].number <= number or self._debts[0].pts in self._came):
            debt = self._debts.popleft()
            if debt.pts not in self._came:
                lost.append(debt.reached)
        return lost
