from __future__ import annotations

import numpy as np
import pytest

from vadclip.metrics import frame_metrics
from vadexport.comparison import EventChanges, event_changes, ranking_differences
from vadrun import Event


def event(start: float, end: float, label: str = "a", peak: float = 0.9) -> Event:
    return Event(start, end, label, peak, start, 0, 0)


def test_events_are_told_apart_by_time() -> None:
    reference = [event(0, 4), event(10, 14, peak=0.7), event(20, 24), event(30, 34)]
    measured = [event(1, 4.5), event(21, 24, "b"), event(40, 44)]
    assert event_changes(measured, reference) == EventChanges(4, gained=1, lost=2, sure_lost=1, renamed=1, shifted=1.0)
    assert event_changes(reference, reference) == EventChanges(4)
    assert event_changes([], []) == EventChanges()
    total = EventChanges(1, 1, 0, 0, 0, 2.0) + EventChanges(2, 0, 1, 1, 0, 0.5)
    assert total == EventChanges(3, 1, 1, 1, 0, 2.0)


def test_an_event_that_fell_apart_is_one_that_shifted() -> None:
    found = event_changes([event(0, 2), event(3, 9)], [event(0, 9)])
    assert (found.lost, found.gained, found.shifted) == (0, 0, 3.0)


def videos(seed: int, noise: float) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    shares, reference, measured = [], [], []
    for index in range(30):
        share = np.zeros(20)
        if index % 2:
            share[5:10] = [0.5, 1, 1, 1, 0.25]
        score = np.clip(0.5 * share + rng.random(20) * 0.6, 0, 1).round(2)  # ties
        shares.append(share)
        reference.append(score)
        measured.append(np.clip(score + rng.normal(0, noise, 20), 0, 1))
    return measured, reference, shares


def test_figures_are_those_of_the_evaluation() -> None:
    measured, reference, shares = videos(0, 0.05)
    found = ranking_differences(measured, reference, shares)
    assert found is not None
    masks = [np.concatenate([np.arange(16) < 16 * s for s in share]) for share in shares]
    normal = [not mask.any() for mask in masks]
    for scores, name in ((measured, "measured"), (reference, "reference")):
        expected = frame_metrics(scores, masks, normal)
        assert getattr(found[0], name) == pytest.approx(100 * expected.auc, abs=1e-9)
        assert getattr(found[1], name) == pytest.approx(100 * expected.ap, abs=1e-9)
    assert found[0].difference == pytest.approx(found[0].measured - found[0].reference)
    assert found[0].low is not None and found[0].high is not None
    assert found[0].low < found[0].difference < found[0].high


def test_the_interval_tells_chance_from_loss() -> None:
    same = ranking_differences(*videos(1, 0.0))
    assert same is not None and same[0].low == same[0].high == 0.0
    worse = ranking_differences(*videos(1, 0.6))
    assert worse is not None and worse[0].high is not None and worse[0].high < 0


def test_few_videos_have_no_interval() -> None:
    for count, known in ((1, False), (9, False), (10, True)):
        found = ranking_differences(*(part[-count:] for part in videos(2, 0.3)))
        assert found is not None and found[0].difference != 0
        assert (found[0].low is not None, found[1].high is not None) == (known, known)


def test_frames_of_one_kind_have_no_figures() -> None:
    scores = [np.array([0.1, 0.2])]
    assert ranking_differences(scores, scores, [np.zeros(2)]) is None
    assert ranking_differences(scores, scores, [np.ones(2)]) is None
