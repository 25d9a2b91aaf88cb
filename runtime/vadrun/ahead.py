"""Groups that the gate is about to look at, decoded beside the one that it looks at now.

The gate asks for pictures one after the other, and a backlog decodes them in one thread. Where something moves it asks
for every sampled picture, so the groups that follow are decoded ahead then, by other threads. Where nothing moves,
nothing is. What comes out is the same to the bit, only sooner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import av

from vadrun.groups import Crew, Group, Splitter
from vadrun.skipping import Irregular

if TYPE_CHECKING:
    from av.video.stream import VideoStream

    Packet = av.Packet[VideoStream]

_MOST_PACKETS = 600  # that are read ahead
_MOST_FRAMES = 24  # that wait to be asked for: 72 MiB at 1080p


class _Entry:
    """A group that was read, and what comes of it."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.future: Future[dict[int, av.VideoFrame]] | None = None
        self.passed = False  # whether its packets have all been given


class Ahead:
    """Reads a stream's packets ahead, and decodes groups of them ahead where that is of use.

    Args:
        packets: of the stream, in the order of decoding.
        splitter: splits them into groups; what it wants is sampled pictures.
        crew: decodes, and makes frames of frames.
        faults: how many faults have been met in the container so far; after one nothing is decoded ahead.
        moving: whether something moves.
    """

    def __init__(
        self,
        packets: Iterator[Packet],
        splitter: Splitter,
        crew: Crew[av.VideoFrame],
        faults: Callable[[], int],
        moving: Callable[[], bool],
    ) -> None:
        self._moving = moving
        self._source, self._splitter, self._crew, self._faults = packets, splitter, crew, faults
        self._waiting: deque[Packet] = deque()  # packets that were read ahead
        self._entries: deque[_Entry] = deque()
        self._of: dict[int, _Entry] = {}  # by the display times of what is wanted of them
        self._over = self._dead = False
        self.decoded: set[int] = set()  # display times of what was decoded of groups that were asked for, the last ones

    def packets(self) -> Iterator[Packet]:
        """The packets, in their order."""
        while True:
            self._fill()
            if not self._waiting:
                return
            packet = self._waiting.popleft()
            for entry in self._entries:
                entry.passed |= entry.group.last is packet
            # A group is asked for while the packets of the next are given.
            while len(self._entries) > 2 and self._entries[2].passed:
                self._forget()
            yield packet

    def frame(self, pts: int) -> av.VideoFrame | None:
        """The picture of this display time, which is asked for now; None if it was not decoded ahead."""
        entry = self._of.get(pts)
        if entry is None:
            return None
        while self._entries[0] is not entry:
            self._forget()
        if self._moving() and self._crew.count > 1:
            self._start()
        if entry.future is None:
            return None
        try:
            found = entry.future.result()
        except Irregular:
            self._give_up()
            return None
        self.decoded.update(_times(entry.group))
        return found.get(pts)

    def stop(self) -> None:
        """Let go of everything."""
        self._give_up()
        self._crew.stop()

    def _start(self) -> None:
        """Have what comes behind the group that is asked for decoded."""
        waiting = sum(len(entry.group.wanted) for entry in self._entries if entry.future is not None)
        for entry in list(self._entries)[1 : 1 + self._crew.count]:
            if entry.future is None:
                waiting += len(entry.group.wanted)
                if waiting > _MOST_FRAMES:
                    return
                entry.future = self._crew.start(entry.group)

    def _fill(self) -> None:
        """Read on until enough groups are known, or at least a packet."""
        while not self._over and (
            not self._waiting
            or (not self._dead and self._known() <= self._crew.count and len(self._waiting) < _MOST_PACKETS)
        ):
            packet = next(self._source, None)
            self._over = packet is None
            if packet is not None:
                self._waiting.append(packet)
            if self._dead:
                continue
            try:
                if self._faults():
                    raise Irregular
                group = self._splitter.finish() if packet is None else self._splitter.push(packet)
            except Irregular:
                self._give_up()
                continue
            if group is not None and group.wanted:
                self._add(group)

    def _known(self) -> int:
        """Groups that are known, and of which not all packets have been given."""
        return sum(not entry.passed for entry in self._entries)

    def _add(self, group: Group) -> None:
        # Key pictures are looked at, too.
        key = group.packets[0].pts
        assert key is not None
        looked = group._replace(wanted=group.wanted | {key}, spare=group.spare - {key})
        entry = _Entry(looked)
        self._entries.append(entry)
        self._of.update(dict.fromkeys(entry.group.wanted, entry))

    def _forget(self) -> None:
        gone = self._entries.popleft()
        for pts in gone.group.wanted:
            del self._of[pts]
        self.decoded.difference_update(_times(gone.group))

    def _give_up(self) -> None:
        self._dead = True
        self._entries.clear()
        self._of.clear()


def _times(group: Group) -> list[int]:
    """Display times of what is decoded of a group."""
    return [packet.pts for packet in group.packets if packet.pts is not None]
