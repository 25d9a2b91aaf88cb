"""Checks and their limits, of engines that answer as they are told; real ones are in test_certificate.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from vadexport import checks
from vadexport.checks import LIMITS, Check, Limits, head_limits, limits_for, parse_limits
from vadexport.probe import SNIPPET_SECONDS, Probe
from vadrun import Engine, UserError
from vadrun.scoring import Scores, scores_from_logits
from vadrun.selftest import COSINE, SCORE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("score=0", {"score": 0.0}),
        (" cosine = 0.99 ,score=5e-2,,", {"cosine": 0.99, "score": 0.05}),
        ("lost=2,shifted=1.5,auc=0.3,lost=3", {"lost": 3.0, "shifted": 1.5, "auc": 0.3}),
    ],
)
def test_limits_are_read_as_given(text: str, found: dict[str, float]) -> None:
    assert parse_limits(text) == found


@pytest.mark.parametrize(
    "text", ["magic=1", "score", "score=", "=1", "score=x", "score=-1e-9", "score=nan", "lost=inf"]
)
def test_limits_that_are_none_are_refused(text: str) -> None:
    said = f"--limits has '{text}': give NAME=NUMBER with names out of cosine, score, lost, shifted, auc"
    with pytest.raises(UserError) as error:
        parse_limits(f"cosine=0.9,{text}")
    assert str(error.value) == said


def test_auc_is_limited_on_labelled_footage_only() -> None:
    assert parse_limits("cosine=0.9,shifted=1", labelled=False) == {"cosine": 0.9, "shifted": 1.0}
    with pytest.raises(UserError, match="'auc=1', which takes labelled footage"):
        parse_limits("cosine=0.9,auc=1", labelled=False)


def test_limits_are_those_of_the_precision_with_the_changes() -> None:
    for precision, own in LIMITS.items():
        assert limits_for(precision, None) == limits_for(precision, {}) == own
    found = limits_for("int8", {"cosine": 0.5, "lost": 2.0, "shifted": 1.5})
    assert found == Limits(0.5, LIMITS["int8"].score, 2, 1.5, None) and type(found.lost) is int


def test_the_head_is_never_held_to_looser_limits_than_its_own() -> None:
    assert head_limits(None) == Limits(COSINE["fp32"], SCORE)
    assert head_limits({"cosine": 0.1, "score": 1.0, "lost": 9.0}) == Limits(COSINE["fp32"], SCORE)
    tight = head_limits({"score": 1e-6, "shifted": 0.5, "auc": 0.1})
    assert tight == Limits(COSINE["fp32"], 1e-6, 0, 0.5, 0.1)


def test_limits_print_what_is_limited() -> None:
    assert str(Limits(0.99, 5e-3)) == "cosine >= 0.99, score <= 0.005, lost <= 0"
    said = "cosine >= 0.9, score <= 1, lost <= 2, shift <= 1.5 s, AUC loss <= 0.3"
    assert str(Limits(0.9, 1.0, 2, 1.5, 0.3)) == said


def made_probe() -> Probe:
    """Three frames and a track of six snippets, each with one event that is sure."""
    rng = np.random.default_rng(0)
    features, track, text = (rng.normal(size=(n, 4)).astype(np.float32) for n in (3, 6, 2))
    logits, track_logits = (np.array(x, np.float32) for x in ([-4.0, 3.0, 3.0], [-4.0, 3.0, 3.0, 3.0, -4.0, -4.0]))
    alignment, track_alignment = (np.stack([-x, x], axis=1) for x in (logits, track_logits))
    frames = rng.integers(0, 256, (3, 2, 2, 3), np.uint8)
    return Probe(frames, features, logits, alignment, track, track_logits, track_alignment, text)


class Told:
    """An engine that answers as it is told; what it is not told it answers as the probe does."""

    def __init__(self, probe: Probe, precision: str = "fp32", stored: str | None = None, **answers: Any) -> None:
        self.probe, self.answers = probe, vars(probe) | answers
        self.backend = SimpleNamespace(name="told", device="npu", precision=precision, encoder_file="encoder")
        files = [SimpleNamespace(name="head", precision="bf16"), SimpleNamespace(name="encoder", precision=stored)]
        self.bundle = SimpleNamespace(model=SimpleNamespace(anomaly="confidence"), files=files)

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert frames is self.probe.frames
        return cast("NDArray[np.float32]", self.answers["features"])

    def logits(self, features: NDArray[np.float32], text: NDArray[np.float32]) -> tuple[Any, Any]:
        assert text is self.probe.text
        if features is self.probe.track:
            return self.answers["track_logits"], self.answers["track_alignment"]
        assert features is self.answers["features"]
        return self.answers["logits"], self.answers["alignment"]


def check_engine(engine: Told, changes: dict[str, float] | None = None) -> list[Check]:
    return checks.check_engine(cast(Engine, engine), engine.probe, changes)


def test_an_engine_that_answers_as_the_probe_passes() -> None:
    encoder, head, chain = check_engine(Told(made_probe()))
    one = pytest.approx(1.0)
    own = LIMITS["fp32"]
    assert encoder == Check("encoder", "told:npu", "fp32", one, one, None, None, None, None, own, True)
    assert head == Check("head", "told:npu", "fp32", None, None, 0.0, 0.0, 0, 0, head_limits(None), True, 0, 0.0)
    assert chain == Check("chain", "told:npu", "fp32", one, one, 0.0, 0.0, 0, 0, own, True, 0, 0.0)
    assert all(type(value) is float for value in (encoder.cosine_min, encoder.cosine_median, chain.score_max))
    assert encoder.passed is head.passed is chain.passed is True


@pytest.mark.parametrize(
    ("precision", "stored", "coarsest", "shown"),
    [
        ("fp32", None, "fp32", "fp32"),
        ("fp32", "fp32", "fp32", "fp32"),
        ("bf16", "fp32", "bf16", "bf16"),
        ("fp32", "int8", "int8", "fp32 (int8 weights)"),
    ],
)
def test_the_coarsest_arithmetic_decides(precision: str, stored: str | None, coarsest: str, shown: str) -> None:
    encoder, head, chain = check_engine(Told(made_probe(), precision, stored), {"shifted": 0.25})
    assert encoder.precision == chain.precision == shown and head.precision == "fp32"
    assert encoder.limits == chain.limits == limits_for(coarsest, {"shifted": 0.25})
    assert head.limits == head_limits({"shifted": 0.25})


def test_what_is_off_shows_where_it_is_off() -> None:
    probe = made_probe()
    turned = probe.features.copy()
    turned[1] = -turned[1]
    passed = [check.passed for check in check_engine(Told(probe, features=turned))]
    assert passed == [False, True, False]
    raised = scores_from_logits(probe.track_logits + 1, probe.track_alignment, "confidence")
    before = scores_from_logits(probe.track_logits, probe.track_alignment, "confidence")
    encoder, head, chain = check_engine(Told(probe, track_logits=probe.track_logits + 1))
    assert (encoder.passed, head.passed, chain.passed) == (True, False, True)
    off = np.abs(raised.confidence.astype(np.float64) - before.confidence)
    assert head.score_max == pytest.approx(off.max())
    # The mean is over confidence, two classes and the anomaly score, which is the confidence.
    assert head.score_mean == pytest.approx(off.mean() * 2 / 4)
    encoder, head, chain = check_engine(Told(probe, logits=probe.logits - 9))  # no event is left
    assert (encoder.passed, head.passed, chain.passed) == (True, True, False)
    assert (chain.events_gained, chain.events_lost, chain.events_sure_lost) == (0, 1, 1)


def test_alignment_scores_where_the_bundle_says_so() -> None:
    probe = made_probe()
    engine = Told(probe, alignment=-probe.alignment, track_alignment=-probe.track_alignment)
    encoder, head, chain = check_engine(engine)
    assert head.events_lost == chain.events_lost == 0 and not head.passed  # classes are off, the score is not
    engine.bundle.model.anomaly = "alignment"
    encoder, head, chain = check_engine(engine)
    # In the track the snippets around the event have become one event, which is two snippets longer at its end.
    assert (head.events_lost, head.events_shifted) == (0, pytest.approx(2 * SNIPPET_SECONDS))
    assert (chain.events_gained, chain.events_lost, chain.events_sure_lost) == (0, 1, 1) and encoder.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails_as_the_largest_difference(bad: float) -> None:
    probe = made_probe()
    broken = probe.features.copy()
    broken[0, 0] = bad
    encoder, head, chain = check_engine(Told(probe, features=broken, logits=None, alignment=None))
    assert (encoder.cosine_min, encoder.passed, head.passed) == (-1.0, False, True)
    assert (chain.score_max, chain.score_mean, chain.events_lost, chain.passed) == (1.0, 1.0, None, False)
    for name in ("track_logits", "track_alignment"):
        broken = getattr(probe, name).copy()
        broken[0] = np.nan
        encoder, head, chain = check_engine(Told(probe, **{name: broken}))
        assert (head.score_max, head.score_mean, head.events_lost, head.passed) == (1.0, 1.0, None, False)
        assert chain.passed


def test_values_at_their_limits_pass() -> None:
    cosine = np.array([0.9, 0.99, 0.97])
    for least, passed in ((0.9, True), (float(np.nextafter(0.9, 1)), False)):
        check = checks._check("encoder", "b", "fp16", Limits(least, 0.0), cosine=cosine)
        assert (check.cosine_min, check.cosine_median, check.passed) == (0.9, 0.97, passed)
        assert (check.score_max, check.score_mean, check.events_shifted) == (None, None, None)
    reference, measured = scores([0.25] * 4), scores([0.5, 0.25, 0.25, 0.25])
    for most, passed in ((0.25, True), (float(np.nextafter(0.25, 0)), False)):
        check = checks._check("head", "b", "fp16", Limits(1.0, most), scores=(measured, reference), labels="01")
        assert (check.score_max, check.score_mean, check.passed) == (0.25, 0.0625, passed)


def test_an_event_may_move_as_far_as_the_user_allows() -> None:
    reference, measured = scores([0.0] * 4 + [0.9] * 4), scores([0.0] * 3 + [0.9] * 5)
    far = SNIPPET_SECONDS
    for shifted, passed in ((None, True), (far * 1.001, True), (far * 0.999, False)):
        limits = Limits(0.9, 1.0, shifted=shifted)
        check = checks._check("chain", "b", "int8", limits, scores=(measured, reference), labels=["0", "1"])
        assert check.events_shifted == pytest.approx(far) and check.passed is passed
    # To the very number: 4 * 0.5333... - 3 * 0.5333... is what the events differ by.
    limits = Limits(0.9, 1.0, shifted=check.events_shifted)
    assert checks._check("chain", "b", "int8", limits, scores=(measured, reference), labels=["0", "1"]).passed
    gained = checks._check("chain", "b", "int8", Limits(0.9, 1.0), scores=(measured, scores([0.0] * 8)), labels="01")
    assert (gained.events_gained, gained.events_lost, gained.events_shifted) == (1, 0, 0.0)


def test_the_table_of_checks() -> None:
    limits = Limits(0.999, 5e-3)
    rows = [
        Check("encoder", "a:cpu", "fp16", 0.99991234, 0.99999, None, None, None, None, limits, True),
        Check("head", "a:cpu", "fp32", None, None, 1.3e-5, 2e-7, 1, 2, LIMITS["fp32"], True, 0, 0.25),
        Check("chain", "a:cpu", "fp16", 0.5, 0.75, 0.5, 0.125, 0, 3, limits, False, 3, 12.34),
    ]
    lines = [[cell for cell in line.split("  ") if cell] for line in checks.checks_table(rows).splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines]
    both = "cosine >= 0.999, score <= 0.005"
    names = ["artifact", "backend", "precision", "cosine min, median", "score max, mean", "events +/-", "shift"]
    assert cells == [
        [*names, "allowed"],
        ["encoder", "a:cpu", "fp16", "0.9999123, 0.9999900", "-", "-", "-", "cosine >= 0.999", "pass"],
        ["head", "a:cpu", "fp32", "-", "1.3e-05, 2.0e-07", "1/2", "0.2 s", "score <= 0.0001", "pass"],
        [*("chain", "a:cpu", "fp16", "0.5000000, 0.7500000", "5.0e-01, 1.2e-01", "0/3", "12.3 s"), both, "FAIL"],
    ]


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
