"""Events from scores: hysteresis, minimum length, merge gap.

Snippets go in one by one, so a file of any length and a live stream take the same rule and constant memory.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError


@dataclass(frozen=True)
class EventRule:
    """When scores are an event.

    A stretch of snippets whose anomaly score stays at or above ``release`` is an event if it reaches
    ``threshold`` somewhere; events that are at most ``merge_gap`` seconds apart are one; an event shorter than
    ``min_length`` seconds is none.
    """

    threshold: float = 0.5
    release: float | None = None  # None: 80% of the threshold
    min_length: float = 1.0
    merge_gap: float = 2.0

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("release threshold", self.low)):
            if not 0.0 < value <= 1.0:
                raise UserError(f"the {name} is {value:g}: give a number above 0 and at most 1")
        if self.low > self.threshold:
            raise UserError(f"the release threshold {self.low:g} is above the threshold {self.threshold:g}: lower it")
        for name, value in (("minimum length", self.min_length), ("merge gap", self.merge_gap)):
            if not (math.isfinite(value) and value >= 0.0):
                raise UserError(f"the {name} is {value:g} s: give a number of seconds, 0 or more")

    @property
    def low(self) -> float:
        """The release threshold in force."""
        return 0.8 * self.threshold if self.release is None else self.release

    def to_json(self) -> dict[str, float]:
        """The rule with the release threshold in force."""
        return asdict(self) | {"release": self.low}


@dataclass(frozen=True)
class Event:
    """One event: seconds from the start of the video, class, peak of the anomaly score."""

    start: float
    end: float
    label: str
    peak: float
    peak_time: float
    first_snippet: int
    last_snippet: int

    def to_json(self) -> dict[str, Any]:
        """For JSON; seconds to the millisecond."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "label": self.label,
            "peak": round(self.peak, 6),
            "peak_time": round(self.peak_time, 3),
            "snippets": [self.first_snippet, self.last_snippet],
        }


@dataclass
class _Stretch:
    """Consecutive snippets at or above the release threshold."""

    start: float
    end: float
    first: int
    last: int
    peak: float
    peak_time: float
    classes: NDArray[np.float64] = field(repr=False)  # sum of the abnormal classes' probabilities

    def join(self, other: _Stretch) -> None:
        self.end, self.last = other.end, other.last
        if other.peak > self.peak:
            self.peak, self.peak_time = other.peak, other.peak_time
        self.classes += other.classes


class EventDetector:
    """Turns a stream of scored snippets into events.

    An event's class is the abnormal one with the highest mean alignment over its snippets.
    """

    def __init__(self, rule: EventRule, labels: list[str]) -> None:
        self._rule = rule
        self._labels = labels
        self._open: _Stretch | None = None  # still at or above the release threshold
        self._pending: _Stretch | None = None  # closed, but the next one may be near enough to merge

    def push(
        self, index: int, start: float, end: float, anomaly: float, alignment: NDArray[np.floating]
    ) -> list[Event]:
        """Take the next snippet (seconds, score, class probabilities [m]); events that are now certain.

        Raises:
            UserError: a score that is not finite, which is neither above nor below any threshold.
        """
        if not math.isfinite(anomaly):
            raise UserError(f"the score of snippet {index} is not finite: check the model and the features")
        rule = self._rule
        ready: list[Event] = []
        if self._open is not None and start - self._open.end > rule.merge_gap:
            self._close()  # the stream has a hole here
        if anomaly >= rule.low:
            middle = (start + end) / 2
            snippet = _Stretch(start, end, index, index, anomaly, middle, np.asarray(alignment[1:], np.float64).copy())
            if self._open is None:
                self._open = snippet
            else:
                self._open.join(snippet)
        elif self._open is not None:
            self._close()
        # What no later snippet can reach any more is certain.
        horizon = self._open.start if self._open is not None else end
        if self._pending is not None and horizon - self._pending.end > rule.merge_gap:
            ready = self._flush()
        return ready

    def finish(self) -> list[Event]:
        """The events that the end of the video makes certain."""
        self._close()
        return self._flush() if self._pending is not None else []

    def _close(self) -> None:
        stretch, self._open = self._open, None
        if stretch is None or stretch.peak < self._rule.threshold:
            return
        if self._pending is None:
            self._pending = stretch
        else:  # near enough, or push would have let it go when the stretch began
            self._pending.join(stretch)

    def _flush(self) -> list[Event]:
        stretch, self._pending = self._pending, None
        if stretch is None or stretch.end - stretch.start < self._rule.min_length:
            return []
        label = self._labels[1 + int(stretch.classes.argmax())]
        return [
            Event(
                stretch.start,
                stretch.end,
                label,
                stretch.peak,
                stretch.peak_time,
                stretch.first,
                stretch.last,
            )
        ]


def find_events(
    scores: NDArray[np.floating],
    alignment: NDArray[np.floating],
    spans: NDArray[np.floating],
    rule: EventRule,
    labels: list[str],
) -> list[Event]:
    """Events of a whole video: scores [n], class probabilities [n,m], spans [n,2] in seconds."""
    detector = EventDetector(rule, labels)
    events: list[Event] = []
    for index, (anomaly, classes, (start, end)) in enumerate(zip(scores, alignment, spans, strict=True)):
        events += detector.push(index, float(start), float(end), float(anomaly), classes)
    return events + detector.finish()
