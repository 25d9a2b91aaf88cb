"""The figures of one model on one test list: tables for people, plain data for programs, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.groundtruth import Event, VideoTruth
from vadclip.intervals import LEAST_VIDEOS, Interval, auc_ap_intervals
from vadclip.metrics import FRAMES_PER_SNIPPET, IOU, DetectionMap, FrameMetrics, frame_metrics
from vadclip.presets import NORMAL
from vadrun.console import table
from vadrun.errors import UserError

# Which of the IoU thresholds the class table shows.
_SHOWN = (0, 2, 4)
FEW = 30
"""Fewer abnormal or fewer normal videos than this are said to be few."""
_WHOLE = 0.9  # share of a video's frames from which its events cover all of it


@dataclass(frozen=True)
class ScoredVideo:
    """A test video with its truth and its scores.

    Attributes:
        features: reads its features [n,d]; None where there are scores only.
        classes: annotation names of the classes in its video-level label; the normal one for a normal video.
        truth: its anomalous frames.
        events: its annotated events, each with its class; None where the annotations tell no classes.
        scores: branch -> anomaly scores of the snippets [n].
        alignment: float32 [n,m], class probabilities of the A-branch; None where there are none.
    """

    features: Callable[[], NDArray[np.floating]] | None
    classes: tuple[str, ...]
    truth: VideoTruth
    events: tuple[Event, ...] | None
    scores: Mapping[str, NDArray[np.floating]]
    alignment: NDArray[np.floating] | None

    @property
    def snippets(self) -> int:
        """n."""
        return self.truth.frames // FRAMES_PER_SNIPPET


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
        detection: mode -> detection mAP; empty where there is none.
        videos: what the figures are of, in order of the list.
        no_detection: why there is no detection mAP, as a sentence.
    """

    class_names: tuple[str, ...]
    branch: str
    frames: Mapping[str, FrameMetrics]
    detection: Mapping[str, DetectionMap]
    videos: Sequence[ScoredVideo]
    no_detection: str = ""

    @cached_property
    def intervals(self) -> dict[str, Interval | None]:
        """95% intervals in [0, 1] of the reported branch's ``auc``, ``ap`` and ``ano_auc``; None for too few videos."""
        abnormal = [video for video in self.videos if not video.truth.normal]
        both, alone = (
            auc_ap_intervals([video.scores[self.branch] for video in videos], [video.truth.mask for video in videos])
            for videos in (self.videos, abnormal)
        )
        known = self.frames[self.branch].ano_auc is not None
        return {
            "auc": both and both[0],
            "ap": both and both[1],
            "ano_auc": alone[0] if alone is not None and known else None,
        }

    @cached_property
    def remarks(self) -> list[str]:
        """What limits the figures, in sentences: few videos, one class only, events as long as their videos."""
        abnormal = [video for video in self.videos if not video.truth.normal]
        normal = len(self.videos) - len(abnormal)
        found = []
        if min(len(abnormal), normal) < FEW:
            auc = self.intervals["auc"]
            how = (
                f"the 95% interval of the AUC is {_range(auc)}"
                if auc is not None
                else f"below {LEAST_VIDEOS} videos not even an interval of the figures can be given"
            )
            found.append(
                f"{len(abnormal)} abnormal and {normal} normal videos are few: {how}. "
                "Do not compare models by figures that lie within each other's intervals."
            )
        if self.detection:
            classes = {event.label for video in abnormal for event in video.events or ()}
            if len(classes) == 1:
                found.append(
                    f"All events are of one class ({', '.join(map(str, classes))}): the mAP is that class's average"
                    " precision, and says nothing of how well classes are told apart."
                )
        whole = sum(video.truth.mask.mean() >= _WHOLE for video in abnormal)
        if 2 * whole >= len(abnormal):
            found.append(
                f"The events of {whole} of {len(abnormal)} abnormal videos last as long as the video: mAP and AnoAUC"
                " say little about where events begin and end."
            )
        return found

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
            "remarks": self.remarks,
            "intervals": {name: None if value is None else list(value) for name, value in self.intervals.items()},
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
            [f"{branch} (reported)" if branch == self.branch else branch, *self._frame_cells(branch, found)]
            for branch, found in self.frames.items()
        ]
        parts = [*self.remarks, ""] if self.remarks else []
        title = "Frames, in percent"
        if any(self.intervals.values()):
            title += ", with 95% intervals over the choice of videos"
        parts += [title, table(["branch", "AUC", "AP", "AnoAUC"], rows, right=(1, 2, 3)), ""]
        if self.detection:
            header = ["mode", *(f"IoU {threshold:g}" for threshold in IOU), "AVG"]
            rows = [[mode, *map(_percent, found.map), _percent(found.avg)] for mode, found in self.detection.items()]
            parts += ["Detection mAP, in percent", table(header, rows, right=range(1, len(header))), ""]
        else:
            parts += [f"No detection mAP: {self.no_detection}.", ""]
        parts += ["Classes: frame AUC against the normal videos and detection AP, in percent", self._class_table()]
        return "\n".join(parts)

    def _frame_cells(self, branch: str, found: FrameMetrics) -> list[str]:
        cells = []
        for name in ("auc", "ap", "ano_auc"):
            interval = self.intervals[name] if branch == self.branch else None
            cells.append(_percent(getattr(found, name), 100) + ("" if interval is None else f" ({_range(interval)})"))
        return cells

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
            return branch_metrics(videos, self.branch).auc
        except UserError:  # no frames, or frames of one kind only
            return None


def branch_metrics(videos: Sequence[ScoredVideo], branch: str) -> FrameMetrics:
    """The frame metrics of one branch.

    Raises:
        UserError: as :func:`vadclip.metrics.frame_metrics`.
    """
    return frame_metrics(
        [video.scores[branch] for video in videos],
        [video.truth.mask for video in videos],
        [video.truth.normal for video in videos],
    )


def _percent(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.2f}"


def _range(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
