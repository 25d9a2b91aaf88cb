"""Score calibration: class scores that mean what they say, from labelled clips.

Two maps are fitted: one temperature for all classes (Guo et al. 2017), and an isotonic curve for each class (Zadrozny
and Elkan 2002). The one with the lower Brier score on clips that it was not fitted on is taken. What it promises holds
for footage in which events are as frequent as in the labelled clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from vadcalibrate.footage import Footage
from vadrun.calibration import METHODS, Probabilities

LEAST_CLIPS = 5
_FOLDS = 5
_BINS = 10
_CURVE = 64  # points that a stored isotonic curve has at most

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """What was said and what happened, over one-against-the-rest of the abnormal classes.

    Attributes:
        said: mean probability in each bin [b].
        happened: share of true ones in each bin [b].
        count: snippets in each bin [b].
        error: expected calibration error, the mean of \\|said - happened\\| weighted by count.
        brier: mean squared error over all classes.
    """

    said: tuple[float, ...]
    happened: tuple[float, ...]
    count: tuple[int, ...]
    error: float
    brier: float

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "said": [round(v, 4) for v in self.said],
            "happened": [round(v, 4) for v in self.happened],
            "count": list(self.count),
            "error": round(self.error, 4),
            "brier": round(self.brier, 4),
        }


@dataclass(frozen=True)
class Fitted:
    """The map, how reliable scores were before it, and on clips that it was not fitted on after it."""

    probabilities: Probabilities
    before: Reliability
    after: Reliability
    clips: int


def fit(footage: Sequence[Footage], truth: Sequence[NDArray[np.int64]], labels: tuple[str, ...]) -> Fitted | None:
    """Fit and choose; None where there are fewer than 5 clips.

    Args:
        footage: the labelled clips.
        truth: of each, the class of its snippets [n].
        labels: the m classes.
    """
    if len(footage) < LEAST_CLIPS:
        return None
    clip = np.repeat(np.arange(len(footage)), [len(item.scores) for item in footage])
    scores, target = np.concatenate([item.scores for item in footage]), np.concatenate(list(truth))
    # Clips, not snippets, are dealt out to the folds: neighbouring snippets know each other's answer. Those with
    # events first, so that every fold has some.
    order = np.argsort([not part.any() for part in truth], kind="stable")
    fold = np.empty(len(footage), np.int64)
    fold[order] = np.arange(len(footage)) % min(_FOLDS, len(footage))
    unseen = {}
    for method in METHODS:
        held = np.empty_like(scores)
        for number in range(int(fold.max()) + 1):
            test = fold[clip] == number
            held[test] = fit_one(method, scores[~test], target[~test], labels).of(scores[test], labels)
        unseen[method] = reliability(held, target)
    best = min(METHODS, key=lambda method: unseen[method].brier)
    return Fitted(fit_one(best, scores, target, labels), reliability(scores, target), unseen[best], len(footage))


def fit_one(method: str, scores: Floats, target: NDArray[np.int64], labels: tuple[str, ...]) -> Probabilities:
    """One map of class scores [n,m] to the probability of the true class [n]."""
    if method == "temperature":

        def loss(log_temperature: float) -> float:
            found = Probabilities("temperature", float(np.exp(log_temperature))).of(scores, labels)
            return float(-np.log(np.maximum(found[np.arange(len(target)), target], 1e-12)).mean())

        best = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
        return Probabilities("temperature", float(np.exp(best.x)))
    curves = {}
    for column, label in enumerate(labels[1:], start=1):
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        model.fit(scores[:, column], target == column)
        x, y = model.X_thresholds_, model.y_thresholds_
        keep = np.unique(np.linspace(0, len(x) - 1, _CURVE).round().astype(int))
        curves[label] = (tuple(x[keep].tolist()), tuple(y[keep].tolist()))
    return Probabilities("isotonic", curves=curves)


def reliability(probabilities: Floats, target: NDArray[np.int64]) -> Reliability:
    """Reliability of probabilities [n,m] of the true class [n]."""
    truth = np.eye(probabilities.shape[1])[target]
    said, happened = probabilities[:, 1:].ravel(), truth[:, 1:].ravel()
    place = np.minimum((said * _BINS).astype(int), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    filled = count > 0
    mean = [np.bincount(place, values, _BINS)[filled] / count[filled] for values in (said, happened)]
    error = float((count[filled] * np.abs(mean[0] - mean[1])).sum() / count.sum())
    brier = float(((probabilities - truth) ** 2).sum(axis=1).mean())
    return Reliability(tuple(mean[0].tolist()), tuple(mean[1].tolist()), tuple(count[filled].tolist()), error, brier)
