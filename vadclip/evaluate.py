"""Evaluate a checkpoint or a bundle on a test list of feature files, as the paper does.

Everything that can be wrong with the list, the feature files and the ground truth is found before the first
video is scored; only NaN in a feature file waits until that file is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vadclip.features import count_snippets, read_features
from vadclip.groundtruth import (
    Annotations,
    Event,
    VideoTruth,
    ground_truth,
    video_name,
)
from vadclip.lists import FeatureList
from vadclip.metrics import (
    IOU,
    MODES,
    DetectionMap,
    FrameMetrics,
    detection_map,
    frame_metrics,
)
from vadclip.presets import ANOMALY_BRANCHES, NORMAL, PRESETS, Preset
from vadclip.scorers import Scorer
from vadclip.sidecar import FeatureSettings, check_test_features, common_settings
from vadrun.console import table
from vadrun.errors import UserError
from vadrun.files import whole_directory, write_json

if TYPE_CHECKING:
    pass

# Which of the IoU thresholds the class table shows.
_SHOWN = (0, 2, 4)
# Counts of snippets from two decoders differ by one now and then.
_COUNT_SLACK = 2

Progress = Callable[[int, int], None]
"""Called with the number of videos that are scored and of all."""


@dataclass(frozen=True)
class ScoredVideo:
    """A test video with its truth and its scores.

    Attributes:
        features: its feature file.
        classes: annotation names of the classes in its video-level label; the normal one for a normal video.
        truth: its anomalous frames.
        events: its annotated events, each with its class; None where the annotations tell no classes.
        confidence: float32 [n], anomaly score of the C-branch.
        alignment: float32 [n,m], class probabilities of the A-branch.
    """

    features: Path
    classes: tuple[str, ...]
    truth: VideoTruth
    events: tuple[Event, ...] | None
    confidence: NDArray[np.float32]
    alignment: NDArray[np.float32]

    def anomaly(self, branch: str) -> NDArray[np.floating]:
        """Anomaly scores [n]: of the C-branch ("confidence") or 1 - p(normal) of the A-branch ("alignment")."""
        if branch == "confidence":
            return self.confidence
        # In float64, where the difference is exact and makes no ties.
        score: NDArray[np.floating] = 1.0 - self.alignment[:, NORMAL].astype(np.float64)
        return score


@dataclass(frozen=True)
class ClassRow:
    """One class in the per-class table.

    Attributes:
        name: the class as annotations name it.
        videos: test videos that have it in their label.
        events: its annotated events; None for the normal class, and where the annotations have no classes.
        auc: frame AUC of the reported branch over its videos and the normal ones; None where that has no meaning.
        detection: mode -> average precision at each IoU in percent, None for a class that the mode leaves out.
    """

    name: str
    videos: int
    events: int | None
    auc: float | None
    detection: Mapping[str, tuple[float, ...] | None]


@dataclass(frozen=True)
class Evaluation:
    """All figures of one model on one test list.

    Attributes:
        class_names: as annotations name them, the normal one first.
        branch: the branch that the model's figures are reported from.
        frames: branch -> frame metrics.
        detection: mode -> detection mAP; empty where the annotations have no classes.
        videos: what the figures are of, in order of the list.
    """

    class_names: tuple[str, ...]
    branch: str
    frames: Mapping[str, FrameMetrics]
    detection: Mapping[str, DetectionMap]
    videos: Sequence[ScoredVideo]

    @cached_property
    def classes(self) -> list[ClassRow]:
        """A row for each class, the normal one first."""
        return [self._row(name) for name in self.class_names]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        truths = [video.truth for video in self.videos]
        return {
            "videos": len(truths),
            "normal_videos": sum(truth.normal for truth in truths),
            "frames": sum(truth.frames for truth in truths),
            "anomalous_frames": sum(int(truth.mask.sum()) for truth in truths),
            "branch": self.branch,
            "frame_metrics": {branch: found.to_json() for branch, found in self.frames.items()},
            "detection_map": {mode: found.to_json() for mode, found in self.detection.items()},
            "classes": [
                {
                    "name": row.name,
                    "videos": row.videos,
                    "events": row.events,
                    "auc": row.auc,
                    "detection": dict(row.detection),
                }
                for row in self.classes
            ],
        }

    def table(self) -> str:
        """The figures as tables for people, in percent."""
        rows = [
            [
                f"{branch} (reported)" if branch == self.branch else branch,
                *(_percent(value, 100) for value in (found.auc, found.ap, found.ano_auc)),
            ]
            for branch, found in self.frames.items()
        ]
        parts = ["Frames, in percent", table(["branch", "AUC", "AP", "AnoAUC"], rows, right=(1, 2, 3)), ""]
        if self.detection:
            header = ["mode", *(f"IoU {threshold:g}" for threshold in IOU), "AVG"]
            rows = [[mode, *map(_percent, found.map), _percent(found.avg)] for mode, found in self.detection.items()]
            parts += ["Detection mAP, in percent", table(header, rows, right=range(1, len(header))), ""]
        else:
            parts += ["No detection mAP: the annotations do not tell the class of each event.", ""]
        parts += ["Classes: frame AUC against the normal videos and detection AP, in percent", self._class_table()]
        return "\n".join(parts)

    def _class_table(self) -> str:
        header = ["class", "videos", "events", "AUC"]
        for mode in self.detection:
            header += [f"{mode} {IOU[0]:g}", *(f"{IOU[k]:g}" for k in _SHOWN[1:]), "AVG"]
        rows = []
        for row in self.classes:
            cells = [row.name, str(row.videos), "-" if row.events is None else str(row.events), _percent(row.auc, 100)]
            for values in row.detection.values():
                shown = [None] * len(_SHOWN) if values is None else [values[k] for k in _SHOWN]
                mean = None if values is None else sum(values) / len(values)
                cells += [_percent(value) for value in (*shown, mean)]
            rows.append(cells)
        return table(header, rows, right=range(1, len(header)))

    def _row(self, name: str) -> ClassRow:
        videos = [video for video in self.videos if name in video.classes]
        detection = {mode: found.per_class.get(name) for mode, found in self.detection.items()}
        if name == self.class_names[NORMAL]:
            return ClassRow(name, len(videos), None, None, detection)
        events = None
        if self.detection:
            events = sum(event.label == name for video in self.videos for event in video.events or ())
        normal = [video for video in self.videos if video.truth.normal]
        return ClassRow(name, len(videos), events, self._auc([*videos, *normal]), detection)

    def _auc(self, videos: Sequence[ScoredVideo]) -> float | None:
        try:
            return _frame_metrics(videos, self.branch).auc
        except UserError:  # no frames, or frames of one kind only
            return None


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


@dataclass(frozen=True)
class TestSet:
    """A test list that has been checked against its annotations.

    Attributes:
        listed: one feature file of each video.
        class_names: as annotations name them, the normal one first.
        truths: the anomalous frames of each video.
        detection: the same from the file that tells events with their classes; None where none does.
        settings: how the features were made (:mod:`vadclip.sidecar`); None where nothing says.
    """

    __test__ = False  # no test of pytest's

    listed: FeatureList
    class_names: tuple[str, ...]
    truths: Sequence[VideoTruth]
    detection: Sequence[VideoTruth] | None
    settings: FeatureSettings | None

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the list and of which frames are anomalous."""
        digest = hashlib.sha256(self.listed.fingerprint().encode())
        for truth in self.truths:
            digest.update(f"\n{truth.name} {truth.frames} {truth.events}".encode())
        return digest.hexdigest()


def read_test_set(
    listed: FeatureList,
    preset: Preset,
    width: int,
    annotations: Annotations,
    event_annotations: Annotations | None = None,
    counts: Mapping[str, int] | None = None,
) -> TestSet:
    """Check everything that can be wrong with a test list but the feature files' numbers.

    Args:
        listed: the test list, read with ``preset``; one feature file of each video.
        preset: of :func:`classes_of`.
        width: d, what the model takes.
        annotations: which frames are anomalous.
        event_annotations: the events with their classes for the detection mAP, where ``annotations`` do not
            tell them: XD-Violence has a file for each.
        counts: snippets that each video should have, to check the feature files against.

    Raises:
        UserError: see the module; the sentence names the file or the video.
    """
    settings = common_settings(listed.paths)
    snippets = _count_all(listed, width)
    if counts is not None:
        _check_counts(snippets, counts)
    truths = ground_truth(annotations, snippets)
    _check_labels(listed, truths)
    anomalous = sum(int(truth.mask.sum()) for truth in truths)
    if anomalous in (0, sum(truth.frames for truth in truths)):
        kind = "normal" if anomalous else "anomalous"
        raise UserError(f"{listed.source} has no {kind} frame to tell from the others: list videos of both kinds")
    events = truths if event_annotations is None else ground_truth(event_annotations, snippets)
    return TestSet(listed, tuple(preset.classes), truths, _with_classes(events, preset), settings)


def evaluate(scorer: Scorer, test: TestSet, progress: Progress | None = None) -> Evaluation:
    """Score a test list and compute all figures.

    Args:
        scorer: what is evaluated.
        test: of :func:`read_test_set`.
        progress: called after each video.

    Raises:
        UserError: the features were made otherwise than the model's, or a feature file's numbers cannot be used.
    """
    check_test_features(test.settings, scorer.feature_settings, "the model", scorer.sha256)
    names, listed = test.class_names, test.listed
    classes = [tuple(names[c] for c in np.flatnonzero(row)) for row in listed.targets]
    scored = []
    for index, (path, truth) in enumerate(zip(listed.paths, test.truths, strict=True)):
        scores = scorer.score(read_features(path, scorer.width).astype(np.float32, copy=False))
        of_video = None if test.detection is None else test.detection[index].events
        scored.append(ScoredVideo(path, classes[index], truth, of_video, scores.confidence, scores.alignment))
        if progress is not None:
            progress(index + 1, len(listed))
    frames = {branch: _frame_metrics(scored, branch) for branch in ANOMALY_BRANCHES}
    detection = {}
    if test.detection is not None:
        # A normal video keeps the label of the authors' arrays, which the two modes treat as each has to.
        segments = [truth.segments for truth in test.detection]
        labels = [truth.labels for truth in test.detection]
        predictions = [video.alignment for video in scored]
        detection = {mode: detection_map(predictions, segments, labels, names, mode) for mode in MODES}
    return Evaluation(names, scorer.anomaly, frames, detection, scored)


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
        (temporary / "evaluation.txt").write_text(evaluation.table() + "\n", encoding="utf-8")
        if pictures is not None:
            pictures(temporary)


def _frame_metrics(videos: Sequence[ScoredVideo], branch: str) -> FrameMetrics:
    return frame_metrics(
        [video.anomaly(branch) for video in videos],
        [video.truth.mask for video in videos],
        [video.truth.normal for video in videos],
    )


def _count_all(listed: FeatureList, width: int) -> dict[str, int]:
    """Video name -> snippets of its feature file."""
    snippets: dict[str, int] = {}
    for path in listed.paths:
        name = video_name(str(path))
        if name in snippets:
            raise UserError(f"{listed.source} lists the video {name!r} twice: name one feature file of each video")
        snippets[name] = count_snippets(path, width)
    return snippets


def _check_counts(snippets: Mapping[str, int], counts: Mapping[str, int]) -> None:
    wrong = [name for name, count in snippets.items() if abs(counts.get(name, count) - count) > _COUNT_SLACK]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{len(wrong)} of {len(snippets)} feature files do not have the length of their video, the first is "
            f"{name!r} with {snippets[name]} snippets instead of {counts[name]}: extract them again"
        )


def _check_labels(listed: FeatureList, truths: Sequence[VideoTruth]) -> None:
    """The list and the annotations must call the same videos normal: names that do not meet would go unseen."""
    wrong = [i for i, truth in enumerate(truths) if bool(listed.normal[i]) != truth.normal]
    if wrong:
        truth = truths[wrong[0]]
        raise UserError(
            f"{listed.source} and the annotations disagree on {len(wrong)} of {len(listed)} videos, the first is "
            f"{truth.name!r}: its label is {listed.labels[wrong[0]]!r}, but {len(truth.events) or 'no'} events are "
            "annotated; name the annotations of this list, or correct one of them"
        )


def _with_classes(truths: Sequence[VideoTruth], preset: Preset) -> list[VideoTruth] | None:
    """The truths with their events' classes as the preset names them; None where an event has no class."""
    known = {label: name for name, label in preset.classes.items()}
    known.update((name, name) for name in preset.classes)
    found = []
    for truth in truths:
        events = []
        for event in truth.events:
            if event.label is None:
                return None
            if event.label not in known:
                raise UserError(
                    f"the annotations name the class {event.label!r} in {truth.name!r}, which the model does not "
                    f"know: its classes are {', '.join(preset.classes)}"
                )
            events.append(replace(event, label=known[event.label]))
        found.append(replace(truth, events=tuple(events)))
    return found


def _percent(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.2f}"
