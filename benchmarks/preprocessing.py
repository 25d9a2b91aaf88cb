"""How far our one-pass preprocessing is from the reference's, in pixels.

The reference decodes to full-size RGB (here with OpenCV), resizes to 340x256 with a bilinear filter that does not
widen (INTER_LINEAR), and cuts the centre 224x224. The second comparison puts a filter that averages over all of
the source (INTER_AREA) in its place. Differences are absolute, of 255, over all pixels and channels.

    python benchmarks/preprocessing.py VIDEO...
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vadrun.preprocessing import REFERENCE_RESIZE, Preprocessing, Preprocessor
from vadrun.video import Video

Differences = tuple[NDArray[np.int16], NDArray[np.int16]]  # from INTER_LINEAR and from INTER_AREA


def reference(bgr: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    """The reference's preprocessing of a decoded frame: RGB uint8 [224,224,3]."""
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    small = cv2.resize(rgb, REFERENCE_RESIZE, interpolation=interpolation)
    return np.asarray(small[16:240, 58:282], np.uint8)


def differences(path: Path, preprocessing: Preprocessing, every: int) -> Iterator[Differences]:
    """Signed differences of every so many frames of a video."""
    preprocessor = Preprocessor(preprocessing)
    capture = cv2.VideoCapture(str(path))
    with Video(path) as video:
        for index, (frame, _, _) in enumerate(video.frames()):
            there, bgr = capture.read()
            if not there:
                break
            if index % every == 0:
                ours = preprocessor(frame).astype(np.int16)
                image = np.asarray(bgr, np.uint8)
                yield (
                    ours - reference(image, cv2.INTER_LINEAR),
                    ours - reference(image, cv2.INTER_AREA),
                )
    capture.release()


def columns(found: Sequence[Differences]) -> list[str]:
    """Mean and 99th percentile for either comparison."""
    cells = []
    for kind in (0, 1):
        size = np.abs(np.stack([difference[kind] for difference in found]))
        cells += [f"{size.mean():.2f}", f"{np.percentile(size, 99):.0f}"]
    return cells


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main() -> None:
    """Print a line per video and a line per source size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=8, help="compare every so many frames (default: 8)")
    parser.add_argument("--untagged", help="matrix of untagged streams (default: the preprocessing's)")
    parser.add_argument("--preprocessing", default="default", help="default, or reference")
    arguments = parser.parse_args()
    preprocessing = Preprocessing.for_size(224, style=arguments.preprocessing)
    if arguments.untagged is not None:
        preprocessing = replace(preprocessing, untagged=arguments.untagged)

    comparisons = ["linear: mean", "99 %", "area: mean", "99 %"]
    files = [["video", "source", "matrix", "frames", *comparisons]]
    sizes: dict[tuple[int, int, str], list[Differences]] = defaultdict(list)
    for path in arguments.videos:
        with Video(path) as video:
            info = video.info
        matrix = info.matrix if preprocessing.untagged == "by-size" else preprocessing.untagged
        found = list(differences(path, preprocessing, arguments.every))
        sizes[info.width, info.height, matrix] += found
        files.append([path.name, f"{info.width}x{info.height}", matrix, str(len(found)), *columns(found)])
    print(table(files))
    print()
    rows = [["source", "matrix", "frames", *comparisons]]
    for (width, height, matrix), found in sorted(sizes.items()):
        rows.append([f"{width}x{height}", matrix, str(len(found)), *columns(found)])
    print(table(rows))


if __name__ == "__main__":
    main()
