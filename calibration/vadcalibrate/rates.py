"""Exact bounds on the rate of a Poisson process, and what footage of a length can show.

Where events come in bursts, ``index`` is their index of dispersion, variance by mean: bounds are then those of the
bursts (quasi-Poisson), of which there are ``count / index``. It is 1 for a Poisson process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, chi2


def rate_above(count: int, days: float, confidence: float, index: float = 1.0) -> float:
    """The upper limit of a rate: events per day, given ``count`` events in ``days`` (Garwood 1936, one-sided)."""
    return float(index * chi2.ppf(confidence, 2 * (count / index + 1)) / (2 * days))


def rate_below(count: int, days: float, confidence: float) -> float:
    """The lower limit of a rate, one-sided as :func:`rate_above`."""
    return float(chi2.ppf(1 - confidence, 2 * count) / (2 * days)) if count else 0.0


def most_events(rate: float, days: float, confidence: float, index: float = 1.0) -> int:
    """The largest count in ``days`` whose upper limit is still at most ``rate``; -1 where even none is too many."""
    count = -1
    while rate_above(count + 1, days, confidence, index) <= rate:
        count += 1
    return count


def days_needed(rate: float, confidence: float, index: float = 1.0) -> float:
    """Days without an event after which ``rate`` a day is shown: ``-index ln(1 - confidence) / rate``."""
    return rate_above(0, 1.0, confidence, index) / rate


def most_elsewhere(count: int, days: float, other_days: float, confidence: float, index: float = 1.0) -> int:
    """The most events that ``other_days`` of the same process hold with ``confidence``, after ``count`` in ``days``.

    Given both counts' sum, the first is binomial with the share of time (the conditional test of two Poisson means).
    """
    share, most, bursts = days / (days + other_days), 0, int(np.ceil(count / index))
    while binom.cdf(bursts, bursts + most + 1, share) > 1 - confidence:
        most += 1
    return int(most * index)


@dataclass(frozen=True)
class Dispersion:
    """How far alarms come in bursts.

    Attributes:
        index: variance by mean of the counts in equal stretches of time: 1 for a Poisson process, more in bursts.
        chance: probability of an index at least as large for a Poisson process.
        events: how many the index is of.
    """

    index: float
    chance: float
    events: int


def dispersion(counts: Sequence[int]) -> Dispersion | None:
    """Fisher's index of dispersion of counts in equal stretches; None for fewer than 10 events or stretches."""
    values = np.asarray(counts, np.float64)
    if len(values) < 10 or values.sum() < 10:
        return None
    index = float(values.var(ddof=1) / values.mean())
    return Dispersion(index, float(chi2.sf(index * (len(values) - 1), len(values) - 1)), int(values.sum()))
