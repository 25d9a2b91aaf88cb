"""Draw what vadrun found in a video: frames, the score curve, its events, and the truth where it is known."""

from __future__ import annotations

import argparse
import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib.figure import Figure

from vadrun.places import places
from vadrun.sources import open_container, pick_stream

FRAMES = 8  # pictures above the curve


def frames_of(video: Path, times: np.ndarray) -> list[np.ndarray]:
    """The pictures [h,w,3] at or just after these times in seconds; the last one where the video ends before."""
    found: list[np.ndarray] = []
    with open_container(video) as container:
        stream = pick_stream(container, video)
        begin = (container.start_time or 0) / av.time_base
        for time in times:
            picture = None
            container.seek(int((begin + time) * av.time_base))  # to the key frame before it
            with suppress(av.FFmpegError):  # a damaged place: the last frame before it is shown
                for picture in container.decode(stream):
                    if picture.time is not None and picture.time >= begin + time:
                        break
            found.append(found[-1] if picture is None else picture.to_ndarray(format="rgb24"))
    return found


def draw(video: Path, results: Path, truth: Path | None) -> Figure:
    """The picture.

    Args:
        video: the file.
        results: its folder of ``vadrun --out``.
        truth: CSV of ``label,start,end`` in seconds, or None.
    """
    with (results / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    starts, ends, scores = (np.array([float(row[name]) for row in rows]) for name in ("start", "end", "anomaly"))
    events = [json.loads(line) for line in (results / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    known: list[dict[str, str]] = []
    if truth is not None:
        with truth.open(newline="", encoding="utf-8") as file:
            known = list(csv.DictReader(file))

    figure = Figure(figsize=(13, 6), layout="constrained")
    grid = figure.add_gridspec(3, FRAMES, height_ratios=[1.3, 2.2, 0.8])
    times = np.linspace(0, ends[-1], FRAMES, endpoint=False) + ends[-1] / FRAMES / 2
    for column, (time, picture) in enumerate(zip(times, frames_of(video, times), strict=True)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(picture)
        axes.set_title(f"{time:.0f} s", fontsize=9)
        axes.axis("off")
    curve = figure.add_subplot(grid[1, :])
    curve.stairs(scores, [*starts, ends[-1]], color="tab:red", linewidth=1.6)
    curve.set(xlim=(0, ends[-1]), ylim=(0, 1.02), ylabel="anomaly score")
    for event in known:
        curve.axvspan(float(event["start"]), float(event["end"]), color="tab:blue", alpha=0.15, linewidth=0)
    bars = figure.add_subplot(grid[2, :], sharex=curve)
    _bars(bars, 0, [(e["start"], e["end"], e["label"]) for e in events], "tab:red")
    if known:
        _bars(bars, 1, [(float(e["start"]), float(e["end"]), e["label"]) for e in known], "tab:blue")
    bars.set(ylim=(-0.5, 1.5 if known else 0.5), xlabel="seconds")
    bars.set_yticks([0, 1] if known else [0], ["found", "truth"] if known else ["found"])
    return figure


def _bars(axes: Any, row: int, spans: list[tuple[float, float, str]], colour: str) -> None:
    for start, end, label in spans:
        axes.barh(row, end - start, left=start, height=0.7, color=colour, alpha=0.55)
        axes.text((start + end) / 2, row, label, ha="center", va="center", fontsize=9)


def main() -> None:
    """Draw and say where the picture is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("results", type=Path, help="what was given to vadrun --out")
    parser.add_argument("--truth", type=Path, help="CSV of label,start,end in seconds")
    arguments = parser.parse_args()
    (place,) = places(arguments.results, [arguments.video], [arguments.video])
    results = place.folder
    out = arguments.results / f"{results.name}.png"
    draw(arguments.video, results, arguments.truth).savefig(out, dpi=100)
    print(f"picture: {out}")
    print(f"scores, events and run details: {results}/scores.csv, events.jsonl, result.json")


if __name__ == "__main__":
    main()
