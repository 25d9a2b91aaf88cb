from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vadexport import checks
from vadexport.probe import Probe
from vadrun import Engine
from vadrun.scoring import Scores


def test_events_that_appear_or_vanish_are_counted(bundle_copy: Path) -> None:
    probe = Probe.load(bundle_copy / "probe.npz")
    raised = Probe(**(vars(probe) | {"track_logits": probe.track_logits * 0 - 9.0, "logits": probe.logits * 0 + 9.0}))
    with Engine.load(bundle_copy, "onnxruntime") as engine:
        truth = {check.artifact: check for check in checks.check_engine(engine, probe)}
        wrong = {check.artifact: check for check in checks.check_engine(engine, raised)}
    assert (truth["chain"].events_gained, truth["chain"].events_lost) == (0, 0)
    assert wrong["head"].events_lost == 0
    assert (wrong["chain"].events_gained, wrong["chain"].events_lost) in {(0, 0), (0, 1)}
    assert not wrong["chain"].passed and not wrong["head"].passed


def scores(anomaly: list[float]) -> Scores:
    value = np.array(anomaly, np.float32)
    return Scores(value, np.stack([1 - value, value], axis=1), value)


@pytest.mark.parametrize(
    ("before", "after", "lost", "passed"),
    [
        (0.9, 0.1, 0, False),  # a sure event is lost
        (0.9, 0.1, 1, True),  # as the user allows
        (0.7, 0.1, 0, True),  # not a sure one
        (0.9, 0.85, 0, True),
    ],
)
def test_a_sure_event_that_is_lost_fails_the_check(before: float, after: float, lost: int, passed: bool) -> None:
    reference, measured = scores([0.0] * 4 + [before] * 4 + [0.0] * 4), scores([0.0] * 4 + [after] * 4 + [0.0] * 4)
    limits = checks.Limits(cosine=0.99, score=1.0, lost=lost)
    check = checks._check("chain", "b", "int8", limits, scores=(measured, reference), labels=["0", "1"])
    assert (check.events_sure_lost, check.passed) == (int(before > 0.8 > after), passed)


def test_a_head_that_says_nothing_is_as_wrong_as_can_be() -> None:
    reference = scores([0.2] * 4)
    check = checks._check("head", "b", "fp32", checks.LIMITS["fp32"], scores=(None, reference))
    assert (check.score_max, check.score_mean, check.passed) == (1.0, 1.0, False)
    assert check.events_lost is None and check.events_sure_lost is None


def test_a_head_that_is_off_fails_by_its_difference_alone() -> None:
    reference, measured = scores([0.2] * 4), scores([0.2002] * 4)  # no event in either
    check = checks._check("head", "b", "fp32", checks.LIMITS["fp32"], scores=(measured, reference), labels="01")
    assert not check.passed and check.score_max == pytest.approx(2e-4, rel=1e-2)
    near = scores([0.20005] * 4)
    check = checks._check("head", "b", "fp32", checks.LIMITS["fp32"], scores=(near, reference), labels="01")
    assert check.passed
