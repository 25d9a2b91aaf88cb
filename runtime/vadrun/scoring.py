"""From features to scores: chunks, the two branches, the anomaly score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# features [B,T,d], lengths int64 [B] -> logits [B,T], alignment logits [B,T,m]
Head = Callable[[Floats, NDArray[np.int64]], tuple[Floats, Floats]]

# How many chunks go through the head in one call; bounds memory on long feature files.
CHUNKS_PER_CALL = 8


@dataclass(frozen=True)
class Scores:
    """Scores of n snippets.

    Attributes:
        confidence: float32 [n], sigmoid of the C-branch (Eq. 4).
        alignment: float32 [n,m], softmax of the A-branch over the classes.
        anomaly: float32 [n] in [0, 1]: ``confidence``, or 1 - alignment[:, 0] where the alignment branch is
            the one that the bundle names (column 0 is the normal class).
    """

    confidence: Floats
    alignment: Floats
    anomaly: Floats

    def __len__(self) -> int:
        return len(self.anomaly)

    @property
    def finite(self) -> bool:
        """Whether every score is a number."""
        return bool(np.isfinite(self.anomaly).all() and np.isfinite(self.alignment).all())


def sigmoid(x: NDArray[Any]) -> Floats:
    """1 / (1 + e^-x), without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e)), dtype=np.float32)


def softmax(x: NDArray[Any]) -> Floats:
    """Softmax over the last axis."""
    with np.errstate(invalid="ignore"):  # of logits that are not finite; who wants to know looks at them
        e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float32)


def scores_from_logits(logits: Floats, alignment: Floats, branch: str) -> Scores:
    """Probabilities from the head's outputs: logits [n] and alignment logits [n,m].

    Raises:
        ValueError: an unknown branch.
    """
    confidence = sigmoid(logits)
    classes = softmax(alignment)
    if branch == "confidence":
        anomaly = confidence
    elif branch == "alignment":
        # The sum of the abnormal classes, not 1 - p(normal): the same number without cancellation near 0.
        anomaly = classes[:, 1:].sum(axis=1, dtype=np.float32)
    else:
        raise ValueError(f"unknown branch {branch!r}")
    return Scores(confidence, classes, anomaly)


def score_differences(measured: Scores, reference: Scores) -> NDArray[np.float64]:
    """Absolute differences of every probability of both branches and of the anomaly score; 1 where not finite."""
    parts = [
        np.abs(getattr(measured, part).astype(np.float64) - getattr(reference, part)).ravel()
        for part in ("confidence", "alignment", "anomaly")
    ]
    return np.asarray(np.nan_to_num(np.concatenate(parts), nan=1.0), np.float64)


def score_features(features: Floats, positions: int, classes: int, head: Head) -> tuple[Floats, Floats]:
    """Run the head over a whole video: logits [n] and alignment logits [n,classes] of features [n,d].

    As released: disjoint chunks of ``positions`` snippets, the last one zero-padded, each scored on its own.
    """
    n, width = features.shape
    logits = np.empty(n, np.float32)
    alignment = np.empty((n, classes), np.float32)
    step = positions * CHUNKS_PER_CALL
    for start in range(0, n, step):
        part = features[start : start + step]
        count = -(-len(part) // positions)
        padded = np.zeros((count * positions, width), np.float32)
        padded[: len(part)] = part
        lengths = np.full(count, positions, np.int64)
        lengths[-1] = len(part) - (count - 1) * positions
        a, b = head(padded.reshape(count, positions, width), lengths)
        logits[start : start + len(part)] = a.reshape(-1)[: len(part)]
        alignment[start : start + len(part)] = b.reshape(-1, classes)[: len(part)]
    return logits, alignment


def score_chunks(chunks: Sequence[Floats], positions: int, head: Head) -> list[tuple[Floats, Floats]]:
    """Run the head once over chunks of several videos: for features [n,d], n <= positions, logits [n], alignment [n,m].

    Each pair is what :func:`score_features` gives for that chunk as a video of its own.
    """
    found: list[tuple[Floats, Floats]] = []
    for start in range(0, len(chunks), CHUNKS_PER_CALL):
        part = chunks[start : start + CHUNKS_PER_CALL]
        padded = np.zeros((len(part), positions, part[0].shape[1]), np.float32)
        for row, features in zip(padded, part, strict=True):
            row[: len(features)] = features
        logits, alignment = head(padded, np.array([len(features) for features in part], np.int64))
        found += [(a[: len(f)], b[: len(f)]) for a, b, f in zip(logits, alignment, part, strict=True)]
    return found
