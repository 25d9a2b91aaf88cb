"""Scores that anybody has made: an array for each video, or the folders that ``vadrun`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.groundtruth import video_name
from vadclip.metrics import FRAMES_PER_SNIPPET
from vadclip.presets import NORMAL
from vadclip.tables import read_table
from vadrun.arrays import Array, load_npy
from vadrun.errors import UserError
from vadrun.schema import Anything, Record, Table, load_json

_TABLE = "scores.csv"
_FIXED = ("snippet", "start", "end", "anomaly")  # columns of vadrun's table before those of the classes
_SUM = 0.02  # by how much the probabilities of a snippet may differ from 1 in sum
_SAMPLED = Record({"sampling": Table(Anything())}, others=Anything())
_ADVICE = "write the scores again"


@dataclass(frozen=True)
class Prediction:
    """What somebody says of one video.

    Attributes:
        source: the file that it comes from.
        anomaly: float64 [n], larger is more anomalous, of any scale.
        classes: float32 [n,m], the probabilities of the classes, the normal one first; None without.
    """

    source: Path
    anomaly: NDArray[np.float64]
    classes: NDArray[np.float32] | None


def read_predictions(folder: Path, names: Sequence[str], labels: Sequence[str]) -> list[Prediction]:
    """The scores of each video: ``NAME.npy`` or vadrun's ``NAME/scores.csv``, anywhere below the folder.

    An array [n] holds anomaly scores, one [n,m] class probabilities, of which the anomaly score is 1 - p(normal).

    Args:
        folder: where the files are.
        names: of the videos.
        labels: the m classes, the normal one first.

    Raises:
        UserError: a video has no file or several, or one cannot be used; names the video or the file.
    """
    files = _files(folder)
    missing = [name for name in names if name not in files]
    if missing:
        raise UserError(
            f"{folder} has no scores of {len(missing)} of {len(names)} videos, the first is {missing[0]!r}: write"
            f" {missing[0]}.npy, or take the video off the list"
        )
    found = []
    for name in names:
        if len(files[name]) > 1:
            one, other = sorted(files[name])[:2]
            raise UserError(f"{folder} has scores of {name!r} twice, {one} and {other}: keep one of them")
        path = files[name][0]
        found.append(_table(path, labels) if path.name == _TABLE else _array(path, labels))
    return found


def _files(folder: Path) -> Mapping[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of scores: name one with a file NAME.npy for each video")
    found: dict[str, list[Path]] = {}
    for path in folder.rglob("*.npy"):
        found.setdefault(video_name(path.name), []).append(path)
    for path in folder.rglob(_TABLE):
        found.setdefault(video_name(path.parent.name), []).append(path)
    return found


def _array(path: Path, labels: Sequence[str]) -> Prediction:
    values = load_npy(path, Array("f"), _ADVICE)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 1 and len(values):
        return Prediction(path, values.astype(np.float64), None)
    if values.ndim != 2 or values.shape[1] != len(labels) or not len(values):
        raise UserError(
            f"{path} is {list(values.shape)}: give the anomaly scores of the snippets, [n], or probabilities"
            f" [n, {len(labels)}] of {', '.join(labels)}"
        )
    return _of_classes(path, values, None)


def _table(path: Path, labels: Sequence[str]) -> Prediction:
    _check_sampling(path.with_name("result.json"))
    rows = read_table(path, (*_FIXED, *(label.lower() for label in labels)))
    if not rows:
        raise UserError(f"{path} holds no snippet: {_ADVICE}")
    try:
        values = np.array([[float(row[label.lower()]) for label in labels] for _, row in rows])
        anomaly = np.array([float(row["anomaly"]) for _, row in rows])
        order = [int(row["snippet"]) for _, row in rows]
    except ValueError as error:
        raise UserError(f"{path} has a cell that is no number ({error}): {_ADVICE}") from error
    if order != list(range(len(rows))):
        raise UserError(f"{path} does not have a line for each snippet in order, from 0 on: {_ADVICE}")
    if not (np.isfinite(values).all() and np.isfinite(anomaly).all()):
        raise UserError(f"{path} holds values that are not finite: {_ADVICE}")
    return _of_classes(path, values, anomaly)


def _of_classes(path: Path, values: NDArray[Any], anomaly: NDArray[np.float64] | None) -> Prediction:
    sums = values.sum(axis=1, dtype=np.float64)
    if values.min() < 0 or np.abs(sums - 1).max() > _SUM:
        raise UserError(
            f"{path} holds no probabilities, the sum over the classes is {sums.min():.3g} to {sums.max():.3g} and not"
            " 1: give their softmax"
        )
    if anomaly is None:
        anomaly = 1.0 - values[:, NORMAL].astype(np.float64)
    return Prediction(path, anomaly, values.astype(np.float32))


def _check_sampling(path: Path) -> None:
    """Frames can be told from snippets by number only if those are of 16 frames each."""
    try:
        sampling = load_json(path, _SAMPLED, "", most=64 << 20)["sampling"]
        by, frames = sampling.get("by"), sampling.get("frames")
    except UserError:
        return  # not there, or of another program
    if (by, frames) != ("frames", FRAMES_PER_SNIPPET):
        raise UserError(
            f"{path.parent} has snippets that are not of {FRAMES_PER_SNIPPET} frames, and frame-level truth is: run"
            " vadrun with a bundle that samples by frames"
        )
