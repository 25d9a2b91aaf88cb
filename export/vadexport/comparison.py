"""What a difference in arithmetic changes for the user: features, scores, events, and AUC and AP where labels exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadclip.intervals import LEAST_VIDEOS, Ranking, percentiles, resampled
from vadrun.events import Event

SURE_PEAK = 0.8
"""Events whose peak is above this are sure: no rounding may cost them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EventChanges:
    """Events of the one that the other has not; two are the same if they overlap.

    Attributes:
        reference: events of the reference.
        gained: events that only the measured scores have.
        lost: events that only the reference has.
        sure_lost: those of them whose peak is above 0.8.
        renamed: events of both that have another class.
        shifted: seconds that the begin or the end of an event of both moved, the most of all; 0 without any.
    """

    reference: int = 0
    gained: int = 0
    lost: int = 0
    sure_lost: int = 0
    renamed: int = 0
    shifted: float = 0.0

    def __add__(self, other: EventChanges) -> EventChanges:
        return EventChanges(
            self.reference + other.reference,
            self.gained + other.gained,
            self.lost + other.lost,
            self.sure_lost + other.sure_lost,
            self.renamed + other.renamed,
            max(self.shifted, other.shifted),
        )


def event_changes(measured: Sequence[Event], reference: Sequence[Event]) -> EventChanges:
    """Compare the events of one video."""

    def overlap(a: Event, b: Event) -> float:
        return min(a.end, b.end) - max(a.start, b.start)

    lost = sure = renamed = 0
    shifted = 0.0
    for event in reference:
        best = max(measured, key=lambda other: overlap(event, other), default=None)
        if best is None or overlap(event, best) <= 0:
            lost += 1
            sure += event.peak > SURE_PEAK
            continue
        renamed += best.label != event.label
        shifted = max(shifted, abs(best.start - event.start), abs(best.end - event.end))
    gained = sum(all(overlap(event, other) <= 0 for other in reference) for event in measured)
    return EventChanges(len(reference), gained, lost, int(sure), int(renamed), shifted)


@dataclass(frozen=True)
class Difference:
    """A figure of the reference and of what is measured, in percent, and their difference with its 95% interval.

    The interval is of 1000 resamples of the videos, each with both; None below ten videos, of which resamples are too
    much alike to tell how figures vary (of five, such intervals hold the truth in 85% of cases, not in 95%).
    """

    reference: float
    measured: float
    difference: float
    low: float | None
    high: float | None


def ranking_differences(
    measured: Sequence[NDArray[np.floating]],
    reference: Sequence[NDArray[np.floating]],
    anomalous: Sequence[NDArray[np.floating]],
) -> tuple[Difference, Difference] | None:
    """AUC and AP over the frames of all videos; None where all frames are of one kind.

    Args:
        measured, reference: of each video, the anomaly scores of its snippets [n].
        anomalous: of each video, the share of each snippet's frames that are anomalous [n].
    """
    video = np.repeat(np.arange(len(anomalous)), [len(part) for part in anomalous])
    share = np.concatenate([np.asarray(part, np.float64) for part in anomalous])
    if not 0 < share.sum() < len(share):
        return None
    ranked = [
        Ranking(np.concatenate([np.asarray(part, np.float64) for part in scores]), share)
        for scores in (measured, reference)
    ]
    once = np.ones(len(share))
    whole = [100 * entry.auc_ap(once) for entry in ranked]
    low, high = (None, None) if len(anomalous) < LEAST_VIDEOS else _interval(ranked, share, video)
    auc, ap = (
        Difference(
            reference=float(whole[1][k]),
            measured=float(whole[0][k]),
            difference=float(whole[0][k] - whole[1][k]),
            low=None if low is None else float(low[k]),
            high=None if high is None else float(high[k]),
        )
        for k in range(2)
    )
    return auc, ap


def _interval(ranked: Sequence[Ranking], share: Floats, video: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Lower and upper ends [2] of the differences of AUC and AP, by resampling the videos."""
    return percentiles(
        [100 * (ranked[0].auc_ap(weight) - ranked[1].auc_ap(weight)) for weight in resampled(video, share)]
    )
