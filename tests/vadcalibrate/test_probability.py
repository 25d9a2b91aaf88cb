from __future__ import annotations

import numpy as np
import pytest

from tests.vadcalibrate.conftest import Make
from vadcalibrate.footage import Footage
from vadcalibrate.probability import fit, fit_one, reliability
from vadrun.calibration import Probabilities

LABELS = ("normal", "a", "b")


def overconfident(
    rng: np.random.Generator, make_footage: Make, clips: int, temperature: float
) -> tuple[list[Footage], list[np.ndarray]]:
    """Clips whose true classes are drawn by probabilities, and scores that are those sharpened."""
    footage, truth = [], []
    for index in range(clips):
        logits = rng.normal(0, 1.5, (200, 3)) + np.array([1.0, 0.0, 0.0])
        true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth.append(np.array([rng.choice(3, p=row) for row in true]))
        sharp = true**temperature / (true**temperature).sum(axis=1, keepdims=True)
        footage.append(make_footage(sharp[:, 1:], name=f"c{index}"))
    return footage, truth


def test_a_temperature_is_found_again(make_footage: Make) -> None:
    footage, truth = overconfident(np.random.default_rng(0), make_footage, 20, 2.5)
    found = fit(footage, truth, LABELS)
    assert found is not None and found.probabilities.method == "temperature"
    assert found.probabilities.temperature == pytest.approx(2.5, rel=0.1)
    assert found.after.error < 0.02 < found.before.error
    assert found.after.brier < found.before.brier
    assert sum(found.after.count) == 2 * 20 * 200


def test_what_no_temperature_mends_gets_curves(make_footage: Make) -> None:
    footage, truth = overconfident(np.random.default_rng(1), make_footage, 20, 1.0)
    twisted = [make_footage(item.scores[:, 1:] ** 4, name=item.name) for item in footage]
    found = fit(twisted, truth, LABELS)
    assert found is not None and found.probabilities.method == "isotonic"
    assert found.after.error < 0.03 < found.before.error
    assert Probabilities.from_json(found.probabilities.to_json(), LABELS) == found.probabilities


def test_a_few_clips_make_no_probabilities(make_footage: Make) -> None:
    footage, truth = overconfident(np.random.default_rng(0), make_footage, 4, 2.0)
    assert fit(footage, truth, LABELS) is None


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_maps_do_not_turn_scores_around(make_footage: Make, method: str) -> None:
    footage, truth = overconfident(np.random.default_rng(2), make_footage, 6, 2.0)
    made = fit_one(method, np.concatenate([item.scores for item in footage]), np.concatenate(truth), LABELS)
    share = np.linspace(0.0, 0.9, 50)
    scores = np.stack([1 - share - 0.05, share, np.full(50, 0.05)], axis=1)
    assert (np.diff(made.of(scores, LABELS)[:, 1]) >= -1e-12).all()


def test_reliability_of_a_known_case() -> None:
    found = reliability(np.array([[0.2, 0.8], [0.2, 0.8], [1.0, 0.0], [1.0, 0.0]]), np.array([1, 0, 0, 0]))
    assert found.said == pytest.approx((0.0, 0.8)) and found.happened == pytest.approx((0.0, 0.5))
    assert found.count == (2, 2) and found.error == pytest.approx(0.15)
    assert found.brier == pytest.approx((2 * 0.04 + 2 * 0.64) / 4)
