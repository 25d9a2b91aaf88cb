"""What a difference in arithmetic changes for the user: features, scores, events, and AUC and AP where labels exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadrun.events import Event

SURE_PEAK = 0.8
"""Events whose peak is above this are sure: no rounding may cost them."""
LEAST_VIDEOS = 10
"""Figures of fewer videos have no interval."""
_RESAMPLES = 1000
_SEED = 20240217

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
        _Ranked(np.concatenate([np.asarray(part, np.float64) for part in scores]), share)
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


def _interval(ranked: Sequence[_Ranked], share: Floats, video: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Lower and upper ends [2] of the differences of AUC and AP, by resampling the videos."""
    rng = np.random.default_rng(_SEED)
    count = int(video[-1]) + 1
    samples = []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[video]
        if 0 < (weight * share).sum() < weight.sum():
            samples.append(100 * (ranked[0].auc_ap(weight) - ranked[1].auc_ap(weight)))
    low, high = np.quantile(np.array(samples), (0.025, 0.975), axis=0)
    return low, high


class _Ranked:
    """Scores in order, with ties in groups, so that many weightings are quick."""

    def __init__(self, score: Floats, share: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        ordered = score[self._order]
        self._first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self._share = share[self._order]

    def auc_ap(self, weight: NDArray[np.floating] | NDArray[np.integer]) -> Floats:
        """AUC and AP [2], each snippet counted ``weight`` times; as scikit-learn's over the frames."""
        ordered = weight[self._order]
        positive = np.add.reduceat(ordered * self._share, self._first)
        negative = np.add.reduceat(ordered * (1 - self._share), self._first)
        found, passed = positive.cumsum(), negative.cumsum()
        below = passed[-1] - passed
        auc = (positive * (below + negative / 2)).sum() / (found[-1] * passed[-1])
        precision = found / np.maximum(found + passed, 1e-12)
        return np.array([auc, (positive * precision).sum() / found[-1]])
