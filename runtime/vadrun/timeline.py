"""Time in a video: timestamps that only rise, pauses of the recording, and how much of it was seen.

Pure logic over seconds; it needs no video library.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

# Seconds between two frames; only a longer distance can be a pause.
LONGEST_PAUSE = 2.0
# Seconds that one frame may stand for when snippets are cut by time.
LONGEST_SHOWN = 60.0
# A distance is a pause from so many usual ones on. A slow camera that loses two frames in a row is not paused.
_UNUSUAL = 3.5
_RECENT = 5  # distances that the usual one is the median of
# Frames; decoders put no more in order, so timestamps that go back further are not just out of order.
_REORDERED = 17
_MOST_LISTED = 100  # gaps

# Seconds after which the timestamps of a container start again at 0, by FFmpeg's name of the container.
WRAPS = {"mpegts": 2**33 / 90000, "mpeg": 2**33 / 90000, "flv": 2**32 / 1000, "asf": 2**32 / 1000}


class Gap(NamedTuple):
    """A time without frames, in seconds from the video's first frame, and the frames that come before it."""

    start: float
    end: float
    frames: int


@dataclass
class Seen:
    """How much of a video was seen.

    Attributes:
        seconds: that a frame was on display.
        frames: that were on display.
        gaps: the first 100 times without frames.
        count: of all gaps.
        missing: seconds of all gaps together.
        longest: the longest gap, or None.
        set_back: how often the clock of the timestamps was set back.
        set_back_at: seconds at which that happened first.
    """

    seconds: float = 0.0
    frames: int = 0
    gaps: list[Gap] = field(default_factory=list)
    count: int = 0
    missing: float = 0.0
    longest: Gap | None = None
    set_back: int = 0
    set_back_at: float | None = None

    def shown(self, start: float, until: float, following: float) -> None:
        """A frame was on display from ``start`` until ``until``; the next one starts at ``following``."""
        self.seconds += until - start
        self.frames += 1
        if following > until:
            gap = Gap(until, following, self.frames)
            self.count += 1
            self.missing += gap.end - gap.start
            if len(self.gaps) < _MOST_LISTED:
                self.gaps.append(gap)
            if self.longest is None or gap.end - gap.start > self.longest.end - self.longest.start:
                self.longest = gap

    def was_set_back(self, time: float) -> None:
        """The clock was set back at this time."""
        self.set_back += 1
        if self.set_back_at is None:
            self.set_back_at = time

    def remarks(self, scored: float) -> list[str]:
        """Clauses for the user, given the seconds that snippets cover; none for a video without gaps."""
        found = []
        if self.longest is not None:
            times = "once" if self.count == 1 else f"{self.count:,} times"
            where = f"from {self.longest.start:,.1f} s to {self.longest.end:,.1f} s"
            what = where if self.count == 1 else f"{self.missing:,.1f} s in all, the longest {where}"
            found.append(f"the recording pauses {times} ({what}), and no time in a pause is scored")
            beside = self.seconds - scored
            if beside >= 0.05:
                found.append(f"{beside:,.1f} s of the footage belong to no whole snippet and are not scored either")
        if self.set_back:
            times = "once" if self.set_back == 1 else f"{self.set_back:,} times"
            found.append(
                f"its clock was set back {times} (first at {self.set_back_at:,.1f} s), and times go on from there"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """For ``result.json``; seconds to the millisecond."""
        return {
            "seconds_seen": round(self.seconds, 3),
            "frames_seen": self.frames,
            "gaps": [
                {
                    "start": round(gap.start, 3),
                    "end": round(gap.end, 3),
                    "seconds": round(gap.end - gap.start, 3),
                    "frames_before": gap.frames,
                }
                for gap in self.gaps
            ],
            "gaps_total": {"count": self.count, "seconds": round(self.missing, 3)},
            "clock_set_back": self.set_back,
        }


class Timeline:
    """Makes timestamps strictly increasing.

    A missing one, or one that stands still or goes back a little, is put one frame after the one before. If the next
    ones are sound they are taken as they are again, after half a frame if need be. A jump back by more than
    :data:`LONGEST_PAUSE` or 17 frames is a clock that was set back, or a stream that began anew: time goes on from
    where it was, unless the next timestamp fits the clock of before.

    Args:
        wrap: seconds after which timestamps start again at 0. FFmpeg takes a clock that was set back for that, so a
            jump forward by more than half as much is a jump back.
        seen: is told where the clock was set back.
    """

    def __init__(self, wrap: float | None = None, seen: Seen | None = None) -> None:
        self._wrap, self._seen = wrap, seen
        self._last: float | None = None
        self._given = 0.0  # the last timestamp as it came
        self._shift = 0.0
        self._before: float | None = None  # the shift of before, if the clock was set at the last frame
        self._set_at = 0.0

    def place(self, time: float | None, step: float) -> float:
        """The time of the next frame.

        Args:
            time: its timestamp in seconds, or None.
            step: seconds from one frame to the next, above 0.
        """
        if time is not None and not math.isfinite(time):
            time = None
        if self._last is None:
            placed = time or 0.0
        elif time is None:
            placed = self._last + step
        else:
            placed = self._next(time, step, self._last)
        if time is not None:
            self._given = time
        self._last = placed
        return placed

    def _next(self, time: float, step: float, last: float) -> float:
        if self._before is not None:
            before, self._before = self._before, None
            if -step < time + before - last < max(LONGEST_PAUSE, _REORDERED * step):
                self._shift = before  # only one timestamp was wrong
            elif self._seen is not None:
                self._seen.was_set_back(self._set_at)
        shift = self._shift
        if self._wrap is not None and abs(time + self._shift - last) > self._wrap / 2:
            self._shift -= math.copysign(self._wrap, time + self._shift - last)
        placed = time + self._shift
        if last - placed > min(LONGEST_PAUSE, _REORDERED * step):
            placed = last + step
            self._before, self._shift, self._set_at = shift, placed - time, placed
        elif placed <= last:
            placed = last + (step / 2 if time > self._given else step)
        return placed


class Pauses:
    """Tells pauses of the recording from the distances between frames of slow cameras.

    A pause is a distance of more than :data:`LONGEST_PAUSE` that is more than 3.5 times the usual one. The usual one is
    the median of the last five, pauses included, so a camera that becomes slow for good has pauses only at first.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def judge(self, distance: float, following: float | None = None) -> bool | None:
        """Whether the next distance between two frames is a pause.

        Args:
            distance: seconds.
            following: the distance after it. It is needed only where None was returned; the call is then repeated.

        Returns:
            None where it depends on the following distance: the first of a video, if it is long.
        """
        # Readers that know times by other sums must come to the same answer.
        distance = round(distance, 5)
        pause = distance > LONGEST_PAUSE
        if pause:
            usual = median(self._recent) if self._recent else following
            if usual is None:
                return None
            pause = distance > _UNUSUAL * round(usual, 5)
        self._recent.append(distance)
        return pause
