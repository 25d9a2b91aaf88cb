"""Exact bounds on the rate of a Poisson process, and what footage of a length can show.

Where events come in bursts, ``index`` is their index of dispersion, variance by mean of the counts in stretches of time
that are longer than a burst: bounds are then those of the bursts (quasi-Poisson), of which there are ``count / index``.
It is 1 for a Poisson process, and for bursts of m events on average whose sizes are geometric ``2 m - 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

_LEAST = 30  # events from which an index of dispersion says something


def rate_above(count: int, days: float, confidence: float, index: float = 1.0) -> float:
    """The upper limit of a rate: events per day, given ``count`` events in ``days`` (Garwood 1936, one-sided)."""
    return float(index * chi2.ppf(confidence, 2 * (count / index + 1)) / (2 * days))


def rate_below(count: int, days: float, confidence: float, index: float = 1.0) -> float:
    """The lower limit of a rate, one-sided as :func:`rate_above`."""
    return float(index * chi2.ppf(1 - confidence, 2 * count / index) / (2 * days)) if count else 0.0


def most_events(rate: float, days: float, confidence: float, index: float = 1.0) -> int:
    """The largest count in ``days`` whose upper limit is still at most ``rate``; -1 where even none is too many."""
    # An upper limit is above the count itself wherever confidence is half or more.
    low, high = -1, int(min(rate * days, 1e15)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if rate_above(middle, days, confidence, index) <= rate:
            low = middle
        else:
            high = middle
    return low


def days_needed(rate: float, confidence: float, index: float = 1.0) -> float:
    """Days without an event after which ``rate`` a day is shown: ``-index ln(1 - confidence) / rate``."""
    return rate_above(0, 1.0, confidence, index) / rate


@dataclass(frozen=True)
class Dispersion:
    """How far events come in bursts.

    Attributes:
        index: variance by mean of the counts in equal stretches of time: 1 for a Poisson process, more in bursts.
        at_most: its upper limit, 1 or more.
        events: how many it is of.
        seconds: length of a stretch; bursts that are longer are not seen whole.
    """

    index: float
    at_most: float
    events: int
    seconds: float


def dispersion(counts: Sequence[int], seconds: float, confidence: float) -> Dispersion | None:
    """Fisher's index of dispersion of counts in equal stretches; None for fewer than 30 events or 10 stretches.

    The upper limit is that of a variance by chi squared. Counts of bursts have heavy tails, which leave fewer degrees
    of freedom than there are stretches: ``1 / f = 1 / (stretches - 1) + 1 / bursts``, with ``events / index`` bursts.
    For bursts of geometric sizes that start at random it covers the true index in 96% or more where 95% are asked for
    (20 to 180 stretches, 30 to 300 events, mean sizes of 1 to 5).
    """
    values = np.asarray(counts, np.float64)
    events = int(values.sum())
    if len(values) < 10 or events < _LEAST:
        return None
    index = float(values.var(ddof=1) / values.mean())
    # Counts that are more even than at random are no sign of fewer bursts.
    freedom = 1 / (1 / (len(values) - 1) + max(index, 1.0) / events)
    at_most = max(index, 1.0) * freedom / float(chi2.ppf(1 - confidence, freedom))
    return Dispersion(index, max(1.0, at_most), events, seconds)
