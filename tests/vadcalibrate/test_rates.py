from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from benchmarks.alarms import most_elsewhere
from vadcalibrate.rates import days_needed, dispersion, most_events, rate_above, rate_below


def test_limits_are_those_of_the_poisson_distribution() -> None:
    assert rate_above(0, 2.0, 0.95) == pytest.approx(-np.log(0.05) / 2.0)
    for count in (1, 4, 30):
        assert poisson.cdf(count, rate_above(count, 3.0, 0.95) * 3.0) == pytest.approx(0.05)
        assert poisson.sf(count - 1, rate_below(count, 3.0, 0.95) * 3.0) == pytest.approx(0.05)
    assert rate_below(0, 1.0, 0.95) == 0.0


def test_both_limits_are_wider_in_bursts() -> None:
    assert rate_below(30, 1.0, 0.95, 3.0) == pytest.approx(3 * rate_below(10, 1.0, 0.95))
    assert rate_above(30, 1.0, 0.95, 3.0) == pytest.approx(3 * rate_above(10, 1.0, 0.95))


def test_what_a_rate_takes() -> None:
    assert days_needed(0.5, 0.95) == pytest.approx(5.99, abs=0.01)
    assert most_events(0.5, 5.9, 0.95) == -1
    assert most_events(0.5, 6.0, 0.95) == 0
    assert most_events(0.5, 10.0, 0.95) == 1
    most = most_events(10.0, 4.0, 0.95)
    assert rate_above(most, 4.0, 0.95) <= 10.0 < rate_above(most + 1, 4.0, 0.95)
    assert 0.999e9 < most_events(1e9, 1.0, 0.95) < 1e9  # at once, not by counting up to it


@pytest.mark.parametrize(("rate", "days", "others"), [(3.0, 1.0, 2.0), (20.0, 1.0, 0.5)])
def test_other_days_hold_no_more_than_was_said(rate: float, days: float, others: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.poisson(rate * days, 1000), rng.poisson(rate * others, 1000)
    limit = {count: most_elsewhere(int(count), days, others, 0.95) for count in np.unique(first)}
    held = np.mean([b <= limit[a] for a, b in zip(first, second, strict=True)])
    assert 0.94 < held < 0.999


def test_bursts_are_seen() -> None:
    rng = np.random.default_rng(0)
    found = dispersion(rng.poisson(1.0, 500).tolist(), 60.0, 0.95)
    assert found is not None and found.index == pytest.approx(1.0, abs=0.2) and found.index < found.at_most < 1.4
    bursts = dispersion((4 * rng.poisson(0.25, 500)).tolist(), 60.0, 0.95)
    assert bursts is not None and 3 < bursts.index < bursts.at_most
    assert dispersion([0, 1, 0] * 10, 60.0, 0.95) is None  # too few events
    assert dispersion([20, 20], 60.0, 0.95) is None  # too few stretches


@pytest.mark.parametrize("size", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("stretches", [20, 100])
def test_the_limit_of_the_index_covers_it(size: float, stretches: int) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        counts = np.array([rng.geometric(1 / size, rng.poisson(60 / size / stretches)).sum() for _ in range(stretches)])
        found = dispersion(counts.tolist(), 60.0, 0.95)
        if found is not None:
            covered.append(found.at_most >= 2 * size - 1)
    assert len(covered) > 200 and np.mean(covered) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(covered))
