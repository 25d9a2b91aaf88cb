from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from vadcalibrate.rates import days_needed, dispersion, most_elsewhere, most_events, rate_above, rate_below


def test_limits_are_those_of_the_poisson_distribution() -> None:
    assert rate_above(0, 2.0, 0.95) == pytest.approx(-np.log(0.05) / 2.0)
    for count in (1, 4, 30):
        assert poisson.cdf(count, rate_above(count, 3.0, 0.95) * 3.0) == pytest.approx(0.05)
        assert poisson.sf(count - 1, rate_below(count, 3.0, 0.95) * 3.0) == pytest.approx(0.05)
    assert rate_below(0, 1.0, 0.95) == 0.0


def test_what_a_rate_takes() -> None:
    assert days_needed(0.5, 0.95) == pytest.approx(5.99, abs=0.01)
    assert most_events(0.5, 5.9, 0.95) == -1
    assert most_events(0.5, 6.0, 0.95) == 0
    assert most_events(0.5, 10.0, 0.95) == 1
    most = most_events(10.0, 4.0, 0.95)
    assert rate_above(most, 4.0, 0.95) <= 10.0 < rate_above(most + 1, 4.0, 0.95)


@pytest.mark.parametrize(("rate", "days", "others"), [(3.0, 1.0, 2.0), (20.0, 1.0, 0.5)])
def test_other_days_hold_no_more_than_was_said(rate: float, days: float, others: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.poisson(rate * days, 1000), rng.poisson(rate * others, 1000)
    limit = {count: most_elsewhere(int(count), days, others, 0.95) for count in np.unique(first)}
    held = np.mean([b <= limit[a] for a, b in zip(first, second, strict=True)])
    assert 0.94 < held < 0.999


def test_bursts_are_seen() -> None:
    rng = np.random.default_rng(0)
    single = rng.poisson(1.0, 500)
    found = dispersion(single.tolist())
    assert found is not None and found.index == pytest.approx(1.0, abs=0.2) and found.chance > 0.01
    bursts = dispersion((4 * rng.poisson(0.25, 500)).tolist())
    assert bursts is not None and bursts.index > 3 and bursts.chance < 1e-6
    assert dispersion([0, 1, 0]) is None
    assert dispersion([0] * 50) is None
