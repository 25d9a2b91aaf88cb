from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vadcalibrate.alarms import DAY, Track, at_level, levels, set_thresholds, track
from vadcalibrate.footage import Footage
from vadcalibrate.rates import most_events
from vadrun import EventRule, UserError
from vadrun.events import EventDetector

LABELS = ("normal", "a", "b")
RULES = {label: EventRule(0.5, 0.4, 0.0, 2.0) for label in LABELS[1:]}


def footage(scores: np.ndarray, seconds: float = 1.0, name: str = "n") -> Footage:
    """Snippets of equal length with these scores [n,m-1] of the abnormal classes."""
    edges = np.arange(len(scores) + 1) * seconds
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    whole = np.concatenate([1 - scores.sum(axis=1, keepdims=True), scores], axis=1)
    return Footage(name, f"{name}.mp4", spans, whole, 30.0, (320, 240))


@pytest.mark.parametrize("seed", range(20))
def test_events_are_those_of_the_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.random(300) ** 2
    length = rng.uniform(0.2, 1.0, 300)
    start = np.cumsum(length) - length + np.cumsum((rng.random(300) < 0.05) * 5.0)  # the stream has holes
    end = start + length
    rule = EventRule(
        float(rng.uniform(0.3, 0.9)), None, float(rng.choice([0.0, 1.0, 2.0])), float(rng.choice([0.0, 1.0, 3.0]))
    )
    detector = EventDetector(rule, ["normal", "a"])
    events = [
        event
        for i in range(300)
        for event in detector.push(i, float(start[i]), float(end[i]), float(score[i]), np.array([0.0, 1.0]))
    ] + detector.finish()
    expected = [[event.start, event.end, event.peak] for event in events]
    np.testing.assert_allclose(Track(score, start, end).events(rule), np.reshape(expected, (-1, 3)))


def test_nothing_merges_across_videos() -> None:
    clips = [footage(np.array([[0.0, 0.0], [0.9, 0.0]])), footage(np.array([[0.9, 0.0], [0.0, 0.0]]))]
    assert len(track(clips, 1, 3.0).events(RULES["a"])) == 2


def test_time_in_a_gap_is_not_promised() -> None:
    """Twenty minutes, recorded in two pieces a year apart, are twenty minutes."""
    whole = footage(np.full((1200, 2), 0.01))
    spans = whole.spans.copy()
    spans[600:] += 365 * DAY
    paused = replace(whole, spans=spans)
    one, other = (set_thresholds([item], RULES, 3.0, 0.95, allow_short=True) for item in (whole, paused))
    assert other.days == pytest.approx(one.days) and other.at_most == pytest.approx(one.at_most)
    found = track([paused], 1, 3.0)
    assert found.end[-1] == pytest.approx(1203.0)
    np.testing.assert_allclose(found.end - found.start, 1.0, atol=1e-6)


def test_gaps_are_shortened_and_nothing_merges_across_them() -> None:
    rng = np.random.default_rng(2)
    length = rng.uniform(0.2, 1.0, 200)
    start = np.cumsum(length) - length + np.cumsum(rng.choice([0.0, 1.5, 2.5, 1e5], 200, p=[0.85, 0.05, 0.05, 0.05]))
    whole = footage(np.stack([rng.random(200) * 0.6, np.zeros(200)], axis=1))
    item = replace(whole, spans=np.stack([start, start + length], axis=1))
    alone = Track(item.scores[:, 1], start, start + length).events(RULES["a"])
    found = track([item], 1, 3.0).events(RULES["a"])
    np.testing.assert_allclose(found[:, 1] - found[:, 0], alone[:, 1] - alone[:, 0], atol=1e-4)
    np.testing.assert_allclose(found[:, 2], alone[:, 2])


def alarming(rng: np.random.Generator, days: float, rates: tuple[float, float], peaks: float) -> Footage:
    """Minutes of a day, with alarms at random times whose peaks are ``peaks``-distributed."""
    minutes = round(days * 1440)
    scores = np.full((minutes, 2), 0.001)
    for column, rate in enumerate(rates):
        count = rng.poisson(rate * days)
        scores[rng.integers(0, minutes, count), column] = 0.48 * rng.random(count) ** peaks + 0.01
    return footage(scores, 60.0)


def test_the_wanted_rate_holds_in_most_trials() -> None:
    """Choosing on the footage costs no confidence: the true rate is above the wanted one in at most 5% of trials."""
    rng = np.random.default_rng(5)
    rates, peaks, wanted, bad, trials = (60.0, 20.0), 2.0, 20.0, 0, 400
    for _ in range(trials):
        found = set_thresholds([alarming(rng, 1.0, rates, peaks)], RULES, wanted, 0.95)
        true = 0.0
        for rate, entry in zip(rates, found.classes.values(), strict=True):
            reach = np.clip((entry.rule.threshold - 0.01) / 0.48, 0, 1)
            true += rate * (1 - reach ** (1 / peaks))
        bad += true > wanted
    assert bad / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert bad > 0  # a bound that never fails would ask for too much


def test_classes_are_lowered_together() -> None:
    rng = np.random.default_rng(1)
    found = set_thresholds([alarming(rng, 4.0, (60.0, 60.0), 1.0)], RULES, 15.0, 0.95)
    a, b = (found.classes[label].count for label in LABELS[1:])
    assert abs(a - b) <= 5 and a + b > 35  # a level may bring several at once
    assert found.shown and found.at_most <= 15.0 and found.count == a + b
    for label, entry in found.classes.items():
        assert entry.rule.low == pytest.approx(0.8 * entry.rule.threshold)
        assert entry.curve[int(np.argmin(np.abs(levels() - entry.rule.threshold)))] == entry.count, label


def test_quiet_footage_gets_the_lowest_thresholds() -> None:
    found = set_thresholds([footage(np.full((1440, 2), 0.01), 60.0)], RULES, 3.0, 0.95)
    assert {entry.rule.threshold for entry in found.classes.values()} == {levels()[-1]}


def test_footage_that_is_too_short_is_refused_unless_allowed() -> None:
    clip = footage(np.full((720, 2), 0.01), 60.0)
    with pytest.raises(UserError) as error:
        set_thresholds([clip], RULES, 0.5, 0.95)
    said = str(error.value)
    assert "12.0 hours of normal footage cannot show 0.5 false alarms a day" in said
    assert "that takes 6.0 days" in said and "ask for 6 a day or more" in said
    found = set_thresholds([clip], RULES, 0.5, 0.95, allow_short=True)
    assert not found.shown and found.at_most == pytest.approx(-np.log(0.05) / 0.5)


def test_asking_for_what_the_sentence_says_works() -> None:
    clip = footage(np.full((100, 2), 0.01), 60.0)
    with pytest.raises(UserError) as error:
        set_thresholds([clip], RULES, 0.5, 0.95)
    rate = float(str(error.value).split("ask for ")[1].split()[0])
    assert set_thresholds([clip], RULES, rate, 0.95).shown


def test_events_that_were_given_as_normal_are_named() -> None:
    scores = np.full((1440, 2), 0.01)
    scores[700:703, 0] = 0.0
    scores[700:703, 1] = 0.999992
    with pytest.raises(UserError, match=r"1 alarm even at a threshold of 0\.99999.*n\.mp4 at 42000 s \(b 0\.99999\)"):
        set_thresholds([footage(scores, 60.0)], RULES, 3.5, 0.95)


def bursting(rng: np.random.Generator, days: float, bursts: float, size: float, minutes: tuple[int, int]) -> Footage:
    """Minutes of days with bursts at random times: geometric sizes, and one peak for all alarms of a burst."""
    scores = np.full((round(days * 1440), 2), 0.001)
    for begin in rng.uniform(0, len(scores), rng.poisson(bursts * days)):
        at = (begin + np.cumsum(rng.integers(*minutes, rng.geometric(1 / size)))).astype(int)
        scores[at[at < len(scores)], 0] = 0.9 * rng.random() + 0.05
    return footage(scores, 60.0)


@pytest.mark.parametrize(
    ("days", "bursts", "size", "minutes", "wanted"),
    [
        (3.0, 6.0, 5.0, (10, 41), 20.0),  # rain
        (14.0, 4.0, 3.0, (2, 4), 6.0),
        (4.0, 24.0, 2.0, (2, 4), 20.0),
    ],
)
def test_the_wanted_rate_holds_in_bursts(
    days: float, bursts: float, size: float, minutes: tuple[int, int], wanted: float
) -> None:
    rng = np.random.default_rng(3)
    rules = {label: EventRule(0.5, 0.4, 0.0, 2.0) for label in RULES}
    held = []
    for _ in range(60):
        try:
            found = set_thresholds([bursting(rng, days, bursts, size, minutes)], rules, wanted, 0.95)
        except UserError:
            continue
        reached = np.clip((0.95 - found.classes["a"].rule.threshold) / 0.9, 0, 1)
        rate = bursts * reached * (1.0 if found.bursts is None else size)
        held.append(rate <= wanted)
    assert len(held) > 30
    assert np.mean(held) > 0.95 - 1.7 * np.sqrt(0.95 * 0.05 / len(held))


def test_bursts_are_told() -> None:
    rng = np.random.default_rng(0)
    scores = np.full((int(DAY), 2), 0.001)
    for begin in rng.integers(0, int(DAY) - 400, 40):
        scores[begin : begin + 100 : 10, 0] = 0.45  # ten alarms each
    found = set_thresholds([footage(scores)], RULES, 500.0, 0.95)
    assert found.bursts is not None and found.index == found.bursts.at_most > found.bursts.index > 5
    assert found.bursts.seconds == DAY / 20
    # The limit is that of the bursts: fewer alarms are allowed for the same promise.
    assert found.allowed < most_events(500.0, 1.0, 0.95) and found.at_most <= 500.0
    merged = {label: EventRule(0.5, 0.4, 0.0, 30.0) for label in RULES}
    assert set_thresholds([footage(scores)], merged, 500.0, 0.95).index < 3


def test_footage_too_short_for_its_bursts_is_refused() -> None:
    scores = np.full((1440, 2), 0.001)
    for begin in (100, 400, 700, 1000):
        scores[begin : begin + 20 : 2, 0] = 0.45
    with pytest.raises(
        UserError, match=r"cannot show 8 false alarms a day.*may come in bursts: index of dispersion 7.2, at most 36.7"
    ):
        set_thresholds([footage(scores, 60.0)], RULES, 8.0, 0.95)


def test_bursts_that_cannot_be_judged_are_not_taken_for_absent() -> None:
    scores = np.full((1440, 2), 0.001)
    scores[[100, 102, 104, 800, 802], 0] = 0.45
    found = set_thresholds([footage(scores, 60.0)], RULES, 20.0, 0.95)
    assert found.count == 5 and found.bursts is None and found.index == 1.0


def test_what_held_the_thresholds_up_is_named() -> None:
    scores = np.full((1440, 2), 0.01)
    scores[[300, 500, 700], 0] = [0.95, 0.96, 0.9]
    scores[900, 1] = 0.97
    found = set_thresholds([footage(scores, 60.0)], RULES, 3.5, 0.95)
    assert found.count == 0
    assert str(found.stopped[0]) == "n.mp4 at 54000 s (b 0.97000)"
    assert set_thresholds([footage(np.full((1440, 2), 0.01), 60.0)], RULES, 3.5, 0.95).stopped == ()


def test_impossible_rates_get_a_sentence() -> None:
    with pytest.raises(UserError, match="that takes more than 100 years; give more"):
        set_thresholds([footage(np.full((1440, 2), 0.01), 60.0)], RULES, 1e-300, 0.95)


def test_a_level_keeps_the_share_of_the_release() -> None:
    rule = at_level(EventRule(0.5, 0.25, 1.0, 2.0), 0.8)
    assert (rule.threshold, rule.low, rule.min_length, rule.merge_gap) == (0.8, 0.4, 1.0, 2.0)
