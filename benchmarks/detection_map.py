"""How many times faster `vadclip.metrics.detection_map` is than the published rules written down as plain loops.

    python -m benchmarks.detection_map

The input has the size of UCF-Crime's test set: 290 videos, half of them normal, 1.1 million frames, 14 classes.
The loops work on frames, as the released code does: scores are repeated 16 times first. Both must agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import machine
from vadclip.metrics import FRAMES_PER_SNIPPET, IOU, detection_map
from vadclip.presets import get_preset

AGREEMENT = 1e-9  # percent


@dataclass(frozen=True)
class Sample:
    """Made-up predictions [n,m] per video and the annotated segments in frames with their labels."""

    predictions: list[NDArray[np.float32]]
    segments: list[list[tuple[int, int]]]
    labels: list[list[str]]


def synthetic(videos: int, snippets: int, names: Sequence[str], seed: int = 0) -> Sample:
    """Videos whose scores wander and rise within the annotated events; every second one is normal.

    Args:
        videos: how many.
        snippets: of a video, on average.
        names: class names, the normal one first.
        seed: equal seeds, equal samples.
    """
    random = np.random.default_rng(seed)
    sample = Sample([], [], [])
    for index in range(videos):
        n = int(random.integers(max(snippets // 4, 2), 2 * snippets - max(snippets // 4, 2) + 1))
        # Noise that lasts some snippets, so that segments are short and long ones.
        noise = random.normal(size=(n + 8, len(names)))
        logits = np.stack([noise[i : i + n] for i in range(8)]).mean(axis=0) * 3
        logits[:, 0] += 2.0
        frames = n * FRAMES_PER_SNIPPET
        spans, labels = [(0, frames)], [names[0]]
        if index % 2:
            category = 1 + index // 2 % (len(names) - 1)
            spans, labels = [], []
            for _ in range(int(random.integers(1, 3))):
                start = int(random.integers(0, frames - 16))
                end = int(random.integers(start + 8, frames + 1))
                spans.append((start, end))
                labels.append(names[category])
                logits[start // 16 : end // 16 + 1, category] += random.uniform(0, 5)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        sample.predictions.append(probabilities.astype(np.float32))
        sample.segments.append(spans)
        sample.labels.append(labels)
    return sample


def by_loops(sample: Sample, names: Sequence[str]) -> list[float]:
    """The mAP in percent at each of the IoU thresholds, as the rules say it and frame after frame."""
    frames = [np.repeat(prediction, FRAMES_PER_SNIPPET, axis=0) for prediction in sample.predictions]
    return [_mean_precision(frames, sample, names, threshold) for threshold in IOU]


def _mean_precision(
    frames: Sequence[NDArray[np.float32]], sample: Sample, names: Sequence[str], threshold: float
) -> float:
    tops = []
    for video in frames:
        best = -np.sort(-video, axis=0)[: len(video) // 16]
        tops.append(best.mean(axis=0))
    precisions = []
    for category, name in enumerate(names):
        detections: list[tuple[int, int, int, float]] = []
        for index, video in enumerate(frames):
            detections += _suppressed(_found(index, video[:, category], float(tops[index][category])))
        if not detections:
            return 0.0
        detections.sort(key=lambda detection: -detection[3])
        annotated = [
            (index, start, end)
            for index in range(len(frames))
            for (start, end), label in zip(sample.segments[index], sample.labels[index], strict=True)
            if label == name
        ]
        precisions.append(_precision(detections, annotated, threshold))
    return 100 * sum(precisions) / len(precisions)


def _found(index: int, scores: NDArray[np.float32], top: float) -> list[tuple[int, int, int, float]]:
    """Video, start, end and score of each segment of one class in one video."""
    highest, lowest = float(scores.max()), float(scores.min())
    limit = highest - (highest - lowest) * 0.6
    found = []
    start = None
    for frame in range(len(scores) + 1):
        inside = frame < len(scores) and float(scores[frame]) > limit
        if inside and start is None:
            start = frame
        if not inside and start is not None:
            if frame - start >= 2:
                found.append((index, start, frame, float(scores[start:frame].max()) + 0.7 * top))
            start = None
    return found


def _suppressed(found: list[tuple[int, int, int, float]]) -> list[tuple[int, int, int, float]]:
    """Without segments that overlap a better one of the same video by more than 0.6."""
    kept: list[tuple[int, int, int, float]] = []
    for candidate in found:
        if all(_iou(candidate[1:3], other[1:3]) <= 0.6 for other in kept):
            kept.append(candidate)
    return kept


def _precision(
    detections: Sequence[tuple[int, int, int, float]], annotated: list[tuple[int, int, int]], threshold: float
) -> float:
    free = list(annotated)
    total, hits = 0.0, 0
    for rank, (index, start, end, _) in enumerate(detections, 1):
        best, best_iou = None, 0.0
        for candidate in free:
            if candidate[0] != index:
                continue
            iou = _iou((start, end), candidate[1:])
            if iou >= threshold and iou > best_iou:
                best, best_iou = candidate, iou
        if best is not None:
            free.remove(best)
            hits += 1
            total += hits / rank
    return total / len(annotated) if hits else 0.0


def _iou(one: tuple[int, int], other: tuple[int, int]) -> float:
    both = max(min(one[1], other[1]) - max(one[0], other[0]), 0)
    return both / ((one[1] - one[0]) + (other[1] - other[0]) - both)


def main() -> None:
    """Print the seconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=290, help="how many (default: 290)")
    parser.add_argument("--snippets", type=int, default=239, help="of a video on average (default: 239)")
    parser.add_argument("--rounds", type=int, default=5, help="of the fast one; the median counts (default: 5)")
    arguments = parser.parse_args()
    names = list(get_preset("ucf").classes)
    sample = synthetic(arguments.videos, arguments.snippets, names)
    frames = sum(map(len, sample.predictions)) * FRAMES_PER_SNIPPET
    print(machine("numpy"))
    print(f"{arguments.videos} videos, {frames} frames, {len(names)} classes")
    seconds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        fast = detection_map(sample.predictions, sample.segments, sample.labels, names, "paper").map
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    loops = by_loops(sample, names)
    slow = time.perf_counter() - began
    difference = max(abs(a - b) for a, b in zip(fast, loops, strict=True))
    quick = sorted(seconds)[len(seconds) // 2]
    print(f"mAP {', '.join(f'{value:.4f}' for value in fast)}; largest difference {difference:.1e} percent")
    print(f"detection_map {quick:.3f} s, plain loops {slow:.1f} s: {slow / quick:.0f} times faster")
    if difference > AGREEMENT:
        raise SystemExit("the two do not agree")


if __name__ == "__main__":
    main()
