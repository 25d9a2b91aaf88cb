from __future__ import annotations

import json

import numpy as np
import pytest

from vadrun.errors import UserError
from vadrun.events import Event, EventDetector, EventRule, find_events

LABELS = ["normal", "fighting", "explosion"]
FIGHT = np.array([0.1, 0.7, 0.2])
BANG = np.array([0.1, 0.2, 0.7])


def events(
    scores: list[float], rule: EventRule, classes: np.ndarray | None = None, seconds: float = 1.0
) -> list[Event]:
    n = len(scores)
    edges = np.arange(n + 1) * seconds
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    alignment = np.tile(FIGHT, (n, 1)) if classes is None else classes
    return find_events(np.array(scores), alignment, spans, rule, LABELS)


def spans(found: list[Event]) -> list[tuple[float, float]]:
    return [(event.start, event.end) for event in found]


def test_an_event_reaches_the_threshold_and_lasts_while_above_release() -> None:
    rule = EventRule(threshold=0.5, release=0.3, min_length=0, merge_gap=0)
    assert spans(events([0.1, 0.4, 0.6, 0.35, 0.2, 0.4, 0.1], rule)) == [(1, 4)]


def test_default_release_is_eighty_percent_of_the_threshold() -> None:
    rule = EventRule(threshold=0.5, min_length=0, merge_gap=0)
    assert rule.low == pytest.approx(0.4)
    assert spans(events([0.39, 0.41, 0.6, 0.39], rule)) == [(1, 3)]


def test_scores_equal_to_the_thresholds_count() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=0, merge_gap=0)
    assert spans(events([0.0, 0.5, 0.0], rule)) == [(1, 2)]


def test_short_events_are_dropped_after_merging() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=3, merge_gap=1)
    # Two stretches of one second with one second between are one event of three.
    assert spans(events([0, 0.9, 0, 0.9, 0, 0, 0, 0.9, 0, 0], rule)) == [(1, 4)]


def test_events_nearer_than_the_gap_merge_and_others_do_not() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=0, merge_gap=2)
    assert spans(events([0.9, 0, 0, 0.9, 0, 0, 0, 0.9], rule)) == [(0, 4), (7, 8)]


def test_a_stretch_below_the_threshold_does_not_bridge_events() -> None:
    rule = EventRule(threshold=0.8, release=0.3, min_length=0, merge_gap=1)
    assert spans(events([0.9, 0.1, 0.4, 0.4, 0.4, 0.1, 0.9], rule)) == [(0, 1), (6, 7)]


def test_peak_and_class_come_from_the_whole_event() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=0, merge_gap=1)
    classes = np.stack([FIGHT, FIGHT, BANG, BANG, BANG])
    (event,) = events([0.6, 0, 0.7, 0.95, 0.6], rule, classes)
    assert (event.label, event.peak, event.peak_time) == ("explosion", 0.95, 3.5)
    assert (event.first_snippet, event.last_snippet) == (0, 4)


def test_of_equal_scores_the_first_is_the_peak() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=0, merge_gap=1)
    (event,) = events([0.6, 0.9, 0.9, 0.0, 0.9, 0.7], rule)
    assert (event.start, event.end, event.peak, event.peak_time) == (0.0, 6.0, 0.9, 1.5)


def test_events_do_not_reach_over_a_gap() -> None:
    """A gap of no more than the merge gap is one that events merge over."""
    scores, classes = np.full(6, 0.9), np.tile(FIGHT, (6, 1))
    spans_ = np.array([[0, 1], [1, 2], [4, 5], [5, 6], [8.1, 9], [9, 10]], float)
    found = find_events(scores, classes, spans_, EventRule(min_length=0, merge_gap=2), LABELS)
    assert spans(found) == [(0, 6), (8.1, 10)]


def test_the_normal_class_never_names_an_event() -> None:
    rule = EventRule(min_length=0)
    classes = np.tile([0.98, 0.005, 0.015], (2, 1))
    assert events([0.9, 0.9], rule, classes)[0].label == "explosion"


def test_a_hole_in_the_stream_ends_an_event() -> None:
    detector = EventDetector(EventRule(min_length=0, merge_gap=2), LABELS)
    found = detector.push(0, 0.0, 1.0, 0.9, FIGHT)
    found += detector.push(1, 60.0, 61.0, 0.9, FIGHT)
    found += detector.finish()
    assert spans(found) == [(0, 1), (60, 61)]


def test_events_come_as_soon_as_they_are_certain() -> None:
    detector = EventDetector(EventRule(threshold=0.5, min_length=0, merge_gap=2), LABELS)
    came = []
    for index, score in enumerate([0.9, 0, 0, 0, 0]):
        came += [index] * len(detector.push(index, float(index), index + 1.0, score, FIGHT))
    assert came == [3]  # at 4 s nothing can be within 2 s of an end at 1 s any more
    assert detector.finish() == []


@pytest.mark.parametrize("seed", range(20))
def test_streaming_equals_a_plain_rule_over_the_whole_array(seed: int) -> None:
    """Against a second, array-wise reading of the rule in the class's docstring."""
    rng = np.random.default_rng(seed)
    scores = np.repeat(rng.random(60), rng.integers(1, 5, 60))
    rule = EventRule(threshold=0.8, release=0.5, min_length=2, merge_gap=1.5)
    above = np.flatnonzero(np.diff(np.concatenate([[0], scores >= rule.low, [0]]).astype(int)))
    stretches = [(a, b) for a, b in above.reshape(-1, 2) if scores[a:b].max() >= rule.threshold]
    merged: list[tuple[int, int]] = []
    for a, b in stretches:
        if merged and a - merged[-1][1] <= rule.merge_gap:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    expected = [(float(a), float(b)) for a, b in merged if b - a >= rule.min_length]
    assert spans(events(list(scores), rule)) == expected


def test_no_snippets_no_events() -> None:
    assert events([], EventRule()) == []


def test_event_as_json() -> None:
    event = Event(1.23456, 2.34567, "fighting", 0.123456789, 1.56789, 3, 4)
    assert json.loads(json.dumps(event.to_json())) == {
        "start": 1.235,
        "end": 2.346,
        "label": "fighting",
        "peak": 0.123457,
        "peak_time": 1.568,
        "snippets": [3, 4],
    }


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"threshold": 0.0}, "threshold is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 0.5, "release": 0.6}, "the release threshold 0.6 is above"),
        ({"min_length": -1.0}, "minimum length is -1 s"),
        ({"merge_gap": float("inf")}, "merge gap is inf s"),
    ],
)
def test_rules_that_make_no_sense_are_refused(values: dict[str, float], part: str) -> None:
    with pytest.raises(UserError, match=part):
        EventRule(**values)


def test_a_threshold_of_one_is_allowed() -> None:
    assert EventRule(threshold=1.0, release=1.0).low == 1.0


def test_the_rule_as_json_has_the_release_threshold_in_force() -> None:
    values = EventRule(threshold=0.5, min_length=3.0, merge_gap=4.0).to_json()
    assert values == {"threshold": 0.5, "release": 0.4, "min_length": 3.0, "merge_gap": 4.0}


def test_the_class_is_that_of_the_whole_event_not_of_its_last_snippet() -> None:
    classes = np.stack([FIGHT, FIGHT, BANG])
    (event,) = events([0.9, 0.9, 0.9], EventRule(min_length=0), classes)
    assert event.label == "fighting"


def test_each_snippet_has_a_score_classes_and_a_span() -> None:
    for lengths in ((2, 3, 3), (3, 2, 3), (3, 3, 2)):
        scores, classes, times = np.zeros(lengths[0]), np.zeros((lengths[1], 3)), np.zeros((lengths[2], 2))
        with pytest.raises(ValueError, match="argument"):
            find_events(scores, classes, times, EventRule(), LABELS)


def test_the_class_of_a_long_event_is_summed_in_float64() -> None:
    rule = EventRule(threshold=0.5, release=0.5, min_length=0, merge_gap=0)
    classes = np.array([[0.0, 0.75, 0.75], [0.0, 0.0, 1e-9]], np.float32)  # 0.75 + 1e-9 is 0.75 in float32
    (event,) = events([0.9, 0.9], rule, classes)
    assert event.label == "explosion"


def test_a_refused_release_threshold_is_named() -> None:
    with pytest.raises(UserError, match=r"^the release threshold is 0: give"):
        EventRule(release=0.0)
