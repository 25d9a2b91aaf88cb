from __future__ import annotations

import numpy as np
import pytest

from vadrun.audit import GateAudit, missed, upper_mean
from vadrun.events import Event
from vadrun.gate import GateRule, Verdict


def event(start: float, end: float) -> Event:
    return Event(start, end, "riot", 0.9, start, 0, 1)


def test_the_bound_without_errors_is_near_the_exact_one() -> None:
    for n in (10, 100, 1000):
        exact = 1 - 0.05 ** (1 / n)
        assert exact <= upper_mean(np.zeros(n)) <= 1.8 * exact
    assert upper_mean(np.zeros(0)) == 1.0
    assert upper_mean(np.ones(50)) == 1.0


@pytest.mark.parametrize(("mean", "kind"), [(0.02, "few"), (0.3, "few"), (0.02, "small"), (0.3, "small")])
def test_the_bound_holds_as_often_as_it_says(mean: float, kind: str) -> None:
    """400 samples of 60; a bound of 95% may fail in 5% of them, and here in 8% at most."""
    rng = np.random.default_rng(11)
    failures, widths = 0, []
    for _ in range(400):
        # Few errors of 1, or many small ones.
        values = rng.random(60) < mean if kind == "few" else rng.beta(2, 2 / mean - 2, 60)
        bound = upper_mean(np.asarray(values, float))
        failures += bound < mean
        widths.append(bound)
    assert failures / 400 <= 0.08
    assert np.mean(widths) < mean + 0.25


def test_counts_errors_and_misses() -> None:
    audit = GateAudit(GateRule())
    audit.push(Verdict.ENCODE, 0.9, 0.9, lost=0.9 >= 0.5 > 0.9)
    for own, held in ((0.2, 0.1), (0.7, 0.4), (0.6, 0.6), (0.3, 0.7)):
        audit.push(Verdict.AUDIT, own, held, lost=own >= 0.5 > held)
    for _ in range(15):
        audit.push(Verdict.HOLD, 0.1, 0.1, lost=0.1 >= 0.5 > 0.1)
    found = audit.to_json([])
    assert (found["snippets"], found["encoded"], found["gated"], found["audited"]) == (20, 5, 19, 4)
    assert found["share_gated"] == 0.95
    assert found["score_error"]["mean"] == pytest.approx((0.1 + 0.3 + 0 + 0.4) / 4)
    assert found["score_error"]["largest"] == pytest.approx(0.4)
    assert found["score_error"]["mean"] < found["score_error"]["bound"] <= 1
    assert found["events_missed"]["estimate"] == pytest.approx(15 / 4, abs=0.01)
    assert 15 / 4 < found["events_missed"]["bound"] <= 15


def test_repeated_values_count_as_often_as_they_are() -> None:
    values, counts = np.array([0.0, 0.2, 0.9]), np.array([40, 7, 3])
    assert upper_mean(values, counts=counts) == pytest.approx(upper_mean(values.repeat(counts)), abs=1e-6)
    assert upper_mean(np.array([0.0, 1.0]), counts=np.array([25, 0])) == upper_mean(np.zeros(25))


def test_years_of_audits_take_no_more_memory_than_their_bins() -> None:
    audit, rng = GateAudit(GateRule()), np.random.default_rng(3)
    errors = rng.beta(0.5, 40, 20_000)
    for error in errors:
        audit.push(Verdict.AUDIT, float(error), 0.0, lost=False)
    assert len(audit._errors) < 10_000
    found = audit.to_json([])["score_error"]
    assert found["mean"] == pytest.approx(errors.mean(), abs=1e-6) and found["largest"] == round(errors.max(), 6)
    assert 0 <= found["bound"] - upper_mean(errors) < 1.1e-5


def test_nothing_gated_means_nothing_missed() -> None:
    audit = GateAudit(GateRule())
    audit.push(Verdict.ENCODE, 0.9, 0.9, lost=0.9 >= 0.5 > 0.9)
    found = audit.to_json([event(0, 1)])
    assert found["score_error"] is None and found["events_missed"] == {"estimate": 0, "exact": True}


def test_the_shadow_counts_events() -> None:
    audit = GateAudit(GateRule(shadow=True))
    audit.push(Verdict.ENCODE, 0.9, 0.9, lost=0.9 >= 0.5 > 0.9)
    audit.push(Verdict.HOLD, 0.8, 0.9, lost=0.8 >= 0.5 > 0.9)
    audit.shadow_events([event(0.5, 1.5)])
    found = audit.to_json([event(0, 1), event(5, 6)])
    assert found["mode"] == "shadow"
    assert found["score_error"] == {"mean": pytest.approx(0.05), "largest": pytest.approx(0.1)}
    assert found["events_missed"] == {"estimate": 1, "exact": True}


def test_events_are_missed_where_no_other_overlaps() -> None:
    events = [event(0, 2), event(3, 4), event(8, 9)]
    assert missed(events, [event(1, 3.5), event(9, 10)]) == [events[2]]
    assert missed(events, []) == events
