"""How far figures would move with other videos: AUC and AP of resampled videos (Efron's bootstrap, percentiles).

Videos are resampled, not frames: the frames of one video are too much alike to count as new evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_VIDEOS = 10
"""Figures of fewer videos have no interval: of five, such intervals hold the truth in 85% of cases, not in 95%."""
RESAMPLES = 1000
_LEAST_RESAMPLES = 100
_WORK = 10_000_000  # snippets in all resamples of an evaluation: a few seconds
_SEED = 20240217
_BOUNDS = (0.025, 0.975)

Floats = NDArray[np.float64]
Interval = tuple[float, float]
"""Lower and upper end of a 95% interval."""


class Ranking:
    """Scores in order, with ties in groups, so that many weightings are quick.

    Args:
        score: [n] of snippets.
        share: [n], the share of each snippet's frames that are anomalous, in [0, 1].
    """

    def __init__(self, score: Floats, share: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        ordered = score[self._order]
        self._first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self._share = share[self._order]

    def auc_ap(self, weight: NDArray[np.floating] | NDArray[np.integer]) -> Floats:
        """AUC and AP [2] in [0, 1], each snippet counted ``weight`` times; as scikit-learn's over the frames."""
        ordered = weight[self._order]
        positive = np.add.reduceat(ordered * self._share, self._first)
        negative = np.add.reduceat(ordered * (1 - self._share), self._first)
        found, passed = positive.cumsum(), negative.cumsum()
        below = passed[-1] - passed
        auc = (positive * (below + negative / 2)).sum() / (found[-1] * passed[-1])
        precision = found / np.maximum(found + passed, 1e-12)
        return np.array([auc, (positive * precision).sum() / found[-1]])


def resampled(video: NDArray[np.integer], share: Floats, resamples: int = RESAMPLES) -> Iterator[NDArray[np.integer]]:
    """How often each snippet counts [n] in each resample of the videos that has frames of both kinds.

    Args:
        video: [n], the number of each snippet's video, in order.
        share: as :class:`Ranking` has it.
        resamples: how many are drawn; the same ones for the same videos.
    """
    rng = np.random.default_rng(_SEED)
    count = int(video[-1]) + 1
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[video]
        if 0 < (weight * share).sum() < weight.sum():
            yield weight


def percentiles(samples: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The lower and the upper ends [k] of figures [k] that were computed for each resample."""
    low, high = np.quantile(np.array(samples), _BOUNDS, axis=0)
    return low, high


def auc_ap_intervals(
    scores: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.bool_]]
) -> tuple[Interval, Interval] | None:
    """The intervals of AUC and AP over the frames of all videos, in [0, 1].

    Args:
        scores: of each video, the scores of its snippets [n].
        masks: of each video, which of its frames are anomalous, [k n].

    Returns:
        None for fewer than :data:`LEAST_VIDEOS` videos, or where resamples hardly ever have frames of both kinds.
    """
    if len(scores) < LEAST_VIDEOS:
        return None
    video = np.repeat(np.arange(len(scores)), [len(part) for part in scores])
    share = np.concatenate(
        [mask.reshape(len(score), -1).mean(axis=1) for score, mask in zip(scores, masks, strict=True)]
    )
    resamples = min(RESAMPLES, max(_LEAST_RESAMPLES, _WORK // len(share)))
    ranking = Ranking(np.concatenate([np.asarray(part, np.float64) for part in scores]), share)
    samples = [ranking.auc_ap(weight) for weight in resampled(video, share, resamples)]
    if len(samples) < resamples / 2:
        return None
    low, high = percentiles(samples)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
