"""Evaluate a checkpoint, a bundle, or scores that anybody has made, on a test list, as the paper does.

Everything that can be wrong with the list, the files and the ground truth is found before the first video is scored;
only NaN in a feature file waits until that file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.evaluation import Evaluation, ScoredVideo, branch_metrics
from vadclip.metrics import MODES, detection_map
from vadclip.predictions import Prediction
from vadclip.presets import NORMAL, PRESETS, Preset
from vadclip.scorers import Scorer
from vadclip.sidecar import check_test_features
from vadclip.testset import TestSet
from vadrun.errors import UserError
from vadrun.files import printable, whole_directory, write_json

Progress = Callable[[int, int], None]
"""Called with the number of videos that are scored and of all."""

SCORES = "scores"
"""What the one branch of scores is called that come without a model."""
_NO_EVENTS = (
    "the annotations do not tell the class of each event; name a file that does with --events"
    " (XD-Violence: annotations_multiclasses.txt)"
)
_NO_CLASSES = "the scores have no probability for each class; give [n,m], the normal class first"


def classes_of(labels: Sequence[str], own: Preset | None = None, names: Sequence[str] | None = None) -> Preset:
    """The classes of a model with these labels: annotation names and the rest.

    The names are ``own``'s, or else ``names``, or else those of the data set whose released labels these are, or else
    the labels themselves.

    Args:
        labels: of the model, normal first.
        own: classes that the user gives.
        names: annotation names that the model brings with it, one for each label; None where it has none.

    Raises:
        UserError: ``own`` has other labels.
    """
    if own is not None:
        if own.labels != tuple(labels):
            raise UserError(
                f"the classes {own.name!r} have the labels {', '.join(own.labels)}, but the model has "
                f"{', '.join(labels)}: name the classes that it was trained with"
            )
        return own
    for preset in PRESETS.values():
        if tuple(labels) == preset.labels and (names is None or tuple(names) == tuple(preset.classes)):
            return preset
    classes = dict(zip(names or labels, labels, strict=True))
    return Preset("own", 1, 1, 1, classes, "confidence", mirrored=False)


def evaluate(scorer: Scorer, test: TestSet, progress: Progress | None = None) -> Evaluation:
    """Score a test list and compute all figures.

    Args:
        scorer: what is evaluated.
        test: of :func:`vadclip.testset.read_test_set`.
        progress: called after each video.

    Raises:
        UserError: the features were made otherwise than the model's, or a feature file's numbers cannot be used.
    """
    check_test_features(test.settings, scorer.feature_settings, "the model", scorer.sha256)
    listed = test.listed
    scored = []
    for index in range(len(listed)):
        scores = scorer.score(listed.read(index, scorer.width).astype(np.float32, copy=False))
        # In float64, where the difference is exact and makes no ties.
        abnormal = 1.0 - scores.alignment[:, NORMAL].astype(np.float64)
        branches: dict[str, NDArray[np.floating]] = {"confidence": scores.confidence, "alignment": abnormal}
        scored.append(_scored(test, index, branches, scores.alignment, partial(listed.read, index, None)))
        if progress is not None:
            progress(index + 1, len(listed))
    return _figures(test, scored, scorer.anomaly)


def evaluate_predictions(predictions: Sequence[Prediction], test: TestSet) -> Evaluation:
    """All figures of scores that are there already.

    Args:
        predictions: one of each video, of :func:`vadclip.predictions.read_predictions`.
        test: of :func:`vadclip.testset.checked`.
    """
    scored = [_scored(test, index, {SCORES: one.anomaly}, one.classes, None) for index, one in enumerate(predictions)]
    return _figures(test, scored, SCORES)


def _scored(
    test: TestSet,
    index: int,
    branches: Mapping[str, NDArray[np.floating]],
    alignment: NDArray[np.floating] | None,
    features: Callable[[], NDArray[np.floating]] | None,
) -> ScoredVideo:
    classes = tuple(test.class_names[c] for c in np.flatnonzero(test.listed.targets[index]))
    events = None if test.detection is None else test.detection[index].events
    return ScoredVideo(features, classes, test.truths[index], events, branches, alignment)


def _figures(test: TestSet, scored: Sequence[ScoredVideo], reported: str) -> Evaluation:
    frames = {branch: branch_metrics(scored, branch) for branch in scored[0].scores}
    predictions = [video.alignment for video in scored if video.alignment is not None]
    if test.detection is None or len(predictions) < len(scored):
        why = _NO_EVENTS if test.detection is None else _NO_CLASSES
        return Evaluation(test.class_names, reported, frames, {}, scored, why)
    # A normal video keeps the label of the authors' arrays, which the two modes treat as each has to.
    segments = [truth.segments for truth in test.detection]
    labels = [truth.labels for truth in test.detection]
    detection = {mode: detection_map(predictions, segments, labels, test.class_names, mode) for mode in MODES}
    return Evaluation(test.class_names, reported, frames, detection, scored)


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    origin: Mapping[str, Any],
    *,
    force: bool = False,
    pictures: Callable[[Path], None] | None = None,
) -> None:
    """Write ``evaluation.json`` (figures and where they come from) and ``evaluation.txt`` (the tables).

    Args:
        evaluation: what is written.
        folder: where, whole or not at all.
        origin: what the figures are of, as plain data.
        force: replace a folder that is there.
        pictures: called with the folder to add to it, see :mod:`vadclip.report`.

    Raises:
        UserError: the folder exists and ``force`` is false, or it cannot be written to.
    """
    with whole_directory(folder, replace=force) as temporary:
        write_json(temporary / "evaluation.json", {"origin": dict(origin), **evaluation.to_json()})
        (temporary / "evaluation.txt").write_text(printable(evaluation.table()) + "\n", encoding="utf-8")
        if pictures is not None:
            pictures(temporary)
