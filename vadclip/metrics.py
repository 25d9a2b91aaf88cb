"""The figures that the paper reports: frame-level AUC, AP and AnoAUC, and detection mAP of the fine-grained branch.

The detection rules are those of the released code, to the constant; :func:`detection_map` does them for all
videos and classes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vadrun.errors import UserError

FRAMES_PER_SNIPPET = 16

Mode = Literal["paper", "abnormal-only"]
MODES: tuple[str, ...] = get_args(Mode)
"""``paper``: the released arithmetic behind both tables of the paper, its quirks included. ``abnormal-only``:
what the paper says it does, abnormal videos and abnormal classes only."""

IOU = (0.1, 0.2, 0.3, 0.4, 0.5)
NORMAL_TAGS = frozenset({"A", "Normal", "normal"})
"""What ground truth calls a normal video: XD-Violence and the authors' arrays of both data sets say ``A``."""

# Of the released code. A frame belongs to a segment where its score is in the upper _DEPTH of the range that
# the class's scores span in that video.
_DEPTH = 0.6
_LEAST_FRAMES = 2
_TOP = 16  # the mean of the top 1/16 of the frames ...
_TOP_WEIGHT = 0.7  # ... counts so much beside the segment's own peak


@dataclass(frozen=True)
class FrameMetrics:
    """How well scores tell anomalous frames from normal ones; all in [0, 1].

    Attributes:
        auc: area under the ROC curve.
        ap: average precision.
        ano_auc: the AUC over the abnormal videos only; None where those have no normal frame or no anomalous one.
    """

    auc: float
    ap: float
    ano_auc: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class DetectionMap:
    """Mean average precision of detected segments; all in percent, as papers give it.

    Attributes:
        mode: "paper" or "abnormal-only".
        iou: the thresholds.
        map: the mean over the classes at each threshold.
        avg: the mean of ``map``.
        per_class: class name -> average precision at each threshold. None for a class that ``abnormal-only``
            leaves out because the ground truth has no segment of it.
    """

    mode: str
    iou: tuple[float, ...]
    map: tuple[float, ...]
    avg: float
    per_class: dict[str, tuple[float, ...] | None]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def frame_metrics(
    scores: Sequence[ArrayLike],
    ground_truth: Sequence[ArrayLike],
    normal_videos: Sequence[bool] | NDArray[np.bool_],
    frames_per_snippet: int = FRAMES_PER_SNIPPET,
) -> FrameMetrics:
    """AUC, AP and AnoAUC over the frames of all videos together.

    Args:
        scores: per video, anomaly scores of its snippets [n] or of its frames [n * frames_per_snippet]. Scores
            of snippets are repeated for their frames.
        ground_truth: per video, [n * frames_per_snippet], 1 or True where a frame is anomalous.
        normal_videos: per video, whether it is a normal one, which AnoAUC leaves out.
        frames_per_snippet: frames that one snippet stands for.

    Raises:
        UserError: the three do not fit each other, a score is not finite, or the ground truth has frames of one
            kind only.
    """
    from sklearn.metrics import average_precision_score

    normal = np.asarray(normal_videos)
    if normal.dtype != np.bool_ or normal.ndim != 1:
        raise UserError("normal_videos must hold one true or false per video: give a list of booleans")
    if not len(scores) == len(ground_truth) == len(normal):
        raise UserError(
            f"there are scores of {len(scores)} videos, ground truth of {len(ground_truth)} and normal_videos of "
            f"{len(normal)}: give one of each per video"
        )
    if not len(scores):
        raise UserError("there is no video to compute metrics of: give at least one")
    found = [
        _frame_scores(i, s, g, frames_per_snippet) for i, (s, g) in enumerate(zip(scores, ground_truth, strict=True))
    ]
    lengths = [len(truth) for _, truth in found]
    score = np.concatenate([video for video, _ in found])
    truth = np.concatenate([video for _, video in found])
    auc = _auc(truth, score)
    if auc is None:
        kind = "anomalous" if not truth.any() else "normal"
        raise UserError(f"the ground truth has no {kind} frame, so AUC means nothing: evaluate videos of both kinds")
    abnormal = np.repeat(~normal, lengths)
    return FrameMetrics(auc, float(average_precision_score(truth, score)), _auc(truth[abnormal], score[abnormal]))


def _frame_scores(
    index: int, scores: ArrayLike, truth: ArrayLike, frames_per_snippet: int
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    score, mask = np.asarray(scores), np.asarray(truth)
    if score.ndim != 1 or mask.ndim != 1:
        raise UserError(
            f"video {index} has scores {list(score.shape)} and ground truth {list(mask.shape)}: give one axis each"
        )
    if not np.isfinite(score).all():
        raise UserError(f"video {index} has a score that is not finite: score it again")
    if not np.isin(mask, (0, 1)).all():
        raise UserError(f"the ground truth of video {index} holds other values than 0 and 1: give a mask of frames")
    if len(score) * frames_per_snippet == len(mask):
        score = np.repeat(score, frames_per_snippet)
    elif len(score) != len(mask):
        raise UserError(
            f"video {index} has {len(score)} scores but ground truth of {len(mask)} frames: give {frames_per_snippet} "
            "frames of ground truth for each snippet, or a score for each frame"
        )
    return score, mask.astype(bool)


def _auc(truth: NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if not truth.any() or truth.all():
        return None
    return float(roc_auc_score(truth, score))


def detection_map(
    predictions: Sequence[NDArray[np.floating]],
    segments: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[str]],
    class_names: Sequence[str],
    mode: str = "paper",
    frames_per_snippet: int = FRAMES_PER_SNIPPET,
) -> DetectionMap:
    """Average precision of the segments in which each class stands out, against annotated segments.

    For every video and class, over the class's frame scores p: frames with p > max p - 0.6 (max p - min p) form
    segments; those of two frames and more count, each with the score max p (within the segment) + 0.7 * mean of
    the top 1/16 of p. Over all videos in order of score, each takes the free annotated segment of its video and
    class with the largest IoU, if that reaches the threshold. The average precision is the sum of the precisions
    at the hits, divided by the number of annotated segments. (The released code also suppresses segments that
    overlap by more than 0.6; segments from one threshold never overlap.)

    The two modes:

    * ``paper``: all videos and all classes, the normal one included, and if in any class no video has a segment,
      the mAP is 0. A normal video counts for the normal class only where its label is ``class_names[0]`` to the
      letter: true for XD-Violence (``A``), false for UCF-Crime (``A`` against ``Normal``), where the normal class
      thus always scores 0.
    * ``abnormal-only``: without the normal videos and the normal class; the mean is over the classes that the
      ground truth has.

    Args:
        predictions: per video, class probabilities of its snippets [n,m], n >= 1, or of its frames with
            ``frames_per_snippet`` 1.
        segments: per video, (start, end) of its annotated segments in frames, the end exclusive.
        labels: per video, a class name for each of its segments. A normal video has ``class_names[0]`` or one of
            :data:`NORMAL_TAGS`, or no segment at all.
        class_names: the m classes as ``labels`` names them, the normal one first.
        mode: one of :data:`MODES`.
        frames_per_snippet: frames that one snippet stands for.

    Raises:
        UserError: the inputs do not fit each other, a label is unknown, or nothing is left to evaluate.
    """
    if mode not in MODES:
        raise UserError(f"the mode is {mode!r}: use one of {', '.join(MODES)}")
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise UserError("class_names must name two classes or more, each once: the normal one first")
    _check(predictions, segments, labels, class_names)
    kept: Sequence[int] = range(len(predictions))
    if mode == "abnormal-only":
        tags = NORMAL_TAGS | {class_names[0]}
        kept = [i for i in kept if not tags.issuperset(labels[i])]
    if not kept:
        what = "abnormal video" if mode == "abnormal-only" else "video"
        raise UserError(f"there is no {what} to compute the detection mAP of: give at least one")
    annotated = _annotated([segments[i] for i in kept], [labels[i] for i in kept], class_names)
    found = _segments([np.asarray(predictions[i]) for i in kept], frames_per_snippet)

    precision = np.zeros((len(class_names), len(IOU)))
    for c in range(len(class_names)):
        precision[c] = _average_precision(found[c], annotated[c])
    evaluated = list(range(len(class_names)))
    if mode == "abnormal-only":
        evaluated = [c for c in evaluated[1:] if len(annotated[c].video)]
    if mode == "paper" and not all(len(one.video) for one in found):
        mean = np.zeros(len(IOU))
    else:
        mean = 100 * np.mean(precision[evaluated], axis=0)
    names = class_names if mode == "paper" else class_names[1:]
    return DetectionMap(
        mode=mode,
        iou=IOU,
        map=tuple(mean.tolist()),
        avg=float(mean.mean()),
        per_class={
            name: tuple((100 * precision[c]).tolist()) if c in evaluated else None
            for c, name in enumerate(class_names)
            if name in names
        },
    )


@dataclass(frozen=True)
class _Segments:
    """k segments of one class: video index, first frame and end (exclusive), each [k]."""

    video: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def _check(
    predictions: Sequence[NDArray[np.floating]],
    segments: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[str]],
    class_names: Sequence[str],
) -> None:
    if not len(predictions) == len(segments) == len(labels):
        raise UserError(
            f"there are predictions of {len(predictions)} videos, segments of {len(segments)} and labels of "
            f"{len(labels)}: give one of each per video"
        )
    known = NORMAL_TAGS.union(class_names)
    for i, prediction in enumerate(predictions):
        shape = np.shape(prediction)
        if len(shape) != 2 or shape[1] != len(class_names) or not shape[0]:
            raise UserError(f"the predictions of video {i} are {list(shape)}: give [n,{len(class_names)}] with n >= 1")
        if not np.isfinite(prediction).all():
            raise UserError(f"video {i} has a prediction that is not finite: score it again")
        if len(segments[i]) != len(labels[i]):
            raise UserError(f"video {i} has {len(segments[i])} segments but {len(labels[i])} labels: give one for each")
        for label in labels[i]:
            if label not in known:
                raise UserError(f"video {i} has a segment of {label!r}: use one of {', '.join(class_names)}")


def _annotated(
    segments: Sequence[Sequence[Sequence[float]]], labels: Sequence[Sequence[str]], class_names: Sequence[str]
) -> list[_Segments]:
    """The annotated segments of each class, in order of video and annotation."""
    rows: dict[str, list[tuple[int, int, int]]] = {name: [] for name in class_names}
    for i, (spans, names) in enumerate(zip(segments, labels, strict=True)):
        for (start, end), name in zip(spans, names, strict=True):
            if name in rows:
                rows[name].append((i, round(start), round(end)))
    arrays = [np.array(rows[name], np.int64).reshape(-1, 3) for name in class_names]
    return [_Segments(a[:, 0], a[:, 1], a[:, 2]) for a in arrays]


def _segments(predictions: Sequence[NDArray[np.floating]], frames_per_snippet: int) -> list[_Segments]:
    """The detected segments of each class over all videos, by falling score; equal ones in order of appearance.

    Rows of the working arrays are classes and columns are snippets of all videos, one video after the other, so
    that a run of snippets lies together and one pass finds the runs of every class and video.
    """
    lengths = np.array([len(prediction) for prediction in predictions])
    first = np.cumsum(lengths) - lengths
    video = np.repeat(np.arange(len(predictions)), lengths)
    scores = np.ascontiguousarray(np.concatenate(predictions).T)  # [m,N]
    top = np.stack([_top_mean(prediction, frames_per_snippet) for prediction in predictions], axis=1)  # [m,V]
    # The limits in float64, as NumPy computes with single numbers since the release was written.
    highest = np.maximum.reduceat(scores, first, axis=1).astype(np.float64)
    lowest = np.minimum.reduceat(scores, first, axis=1)
    above = scores > (highest - (highest - lowest) * _DEPTH)[:, video]

    starts, stops = above.copy(), above.copy()
    inner = np.ones(len(video), bool)
    inner[first] = False  # a video's first snippet has none before it
    starts[:, 1:] &= ~(above[:, :-1] & inner[1:])
    stops[:, :-1] &= ~(above[:, 1:] & inner[1:])
    category, begin = np.nonzero(starts)
    last = np.nonzero(stops)[1]
    if not len(begin):
        return [_Segments(*(np.empty(0, np.int64),) * 3) for _ in scores]
    # Every second of these stretches is a segment; the others lie between two and are dropped.
    edges = np.stack([category * len(video) + begin, category * len(video) + last + 1], axis=1).ravel()
    peak = np.maximum.reduceat(np.append(scores.ravel(), -np.inf), edges)[::2]
    score = peak.astype(np.float64) + _TOP_WEIGHT * top[category, video[begin]].astype(np.float64)

    found = []
    long_enough = (last + 1 - begin) * frames_per_snippet >= _LEAST_FRAMES
    for c in range(len(scores)):
        of_class = np.nonzero((category == c) & long_enough)[0]
        of_class = of_class[np.argsort(-score[of_class], kind="stable")]
        index = video[begin[of_class]]
        start = (begin[of_class] - first[index]) * frames_per_snippet
        end = (last[of_class] + 1 - first[index]) * frames_per_snippet
        found.append(_Segments(index, start, end))
    return found


def _top_mean(prediction: NDArray[np.floating], frames_per_snippet: int) -> NDArray[np.floating]:
    """Mean [m] of each class's top 1/16 of the frames, in the precision and order of the released code."""
    count = max(len(prediction) * frames_per_snippet // _TOP, 1)
    snippets = -(-count // frames_per_snippet)
    best = -np.sort(-prediction, axis=0)[:snippets]
    mean: NDArray[np.floating] = np.repeat(best, frames_per_snippet, axis=0)[:count].mean(axis=0)
    return mean


def _average_precision(found: _Segments, annotated: _Segments) -> NDArray[np.float64]:
    """Average precision of one class at each of :data:`IOU`, in [0, 1].

    Candidates are the pairs of a detected and an annotated segment of the same video that overlap enough for
    the least threshold. They are few, so the greedy choice among them is a plain loop.
    """
    out = np.zeros(len(IOU))
    if not len(found.video) or not len(annotated.video):
        return out
    # Annotated segments lie in order of video: each detection is compared with the stretch of its own video.
    left = np.searchsorted(annotated.video, found.video, side="left")
    count = np.searchsorted(annotated.video, found.video, side="right") - left
    detection = np.repeat(np.arange(len(found.video)), count)
    offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    truth = np.repeat(left, count) + offset
    overlap = np.minimum(found.end[detection], annotated.end[truth]) - np.maximum(
        found.start[detection], annotated.start[truth]
    )
    overlap = np.maximum(overlap, 0)
    both = (found.end - found.start)[detection] + np.maximum(annotated.end - annotated.start, 0)[truth] - overlap
    iou = overlap / both
    near = iou >= IOU[0]
    pairs = list(zip(detection[near].tolist(), truth[near].tolist(), iou[near].tolist(), strict=True))
    for k, threshold in enumerate(IOU):
        hit = np.zeros(len(found.video))
        hit[_hits(pairs, threshold)] = 1.0
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        out[k] = (precision * hit).sum() / len(annotated.video)
    return out


def _hits(pairs: Sequence[tuple[int, int, float]], threshold: float) -> list[int]:
    """Which detections get an annotated segment, from pairs (detection, annotated, IoU) in order of detection."""
    hits: list[int] = []
    taken: set[int] = set()
    for detection, candidates in groupby(pairs, key=itemgetter(0)):
        free = [(iou, truth) for _, truth, iou in candidates if iou >= threshold and truth not in taken]
        if free:
            hits.append(detection)
            taken.add(max(free, key=itemgetter(0))[1])  # the first of equal ones
    return hits
