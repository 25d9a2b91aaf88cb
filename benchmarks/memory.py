"""Peak memory of vadrun on a short and on a long video, to show that it does not grow with the length.

Both are made of the same clip by repeating its packets, and scored with ``--out`` by a process of their own. Use a
bundle of a small model and a clip of few pixels, and two hours of video take a few minutes: the memory that could
grow (snippets, scores, events, packets) does not depend on the size of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from vadrun.console import clock, table


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    p.add_argument("source", type=Path, metavar="CLIP", help="the clip to repeat, H.264 or another that remuxes")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--minutes", type=float, nargs="+", default=[10, 120], metavar="MIN", help="default 10 120")
    p.add_argument("--container", metavar="ENDING", help="of the files made, such as mkv (default: the clip's)")
    p.add_argument("--rounds", type=int, default=1, metavar="N", help="runs of each; peaks vary a little (default 1)")
    a = p.parse_args()
    ending = a.container or a.source.suffix.removeprefix(".")
    print(measure.machine("numpy", "av", "openvino", "onnxruntime"))
    others = measure.Others()
    peaks: dict[float, list[float]] = {minutes: [] for minutes in a.minutes}
    walls: dict[float, list[float]] = {minutes: [] for minutes in a.minutes}
    results = {}
    with tempfile.TemporaryDirectory(prefix="vadclip-memory-") as name:
        folder = Path(name)
        for minutes in a.minutes:
            # In a process of its own, so that this one stays small.
            make = ["-m", "benchmarks.make_video", str(a.source), str(video(folder, minutes, ending))]
            print(measure.run([sys.executable, *make, "--remux", "--seconds", f"{60 * minutes:g}"]).output, end="")
        for _ in range(a.rounds):
            for minutes in a.minutes:
                path = video(folder, minutes, ending)
                command = ["-m", "vadrun.cli", str(path), "--engine", str(a.bundle), "--out", str(folder / "results")]
                run = measure.run([sys.executable, *command, "--quiet"])
                peaks[minutes].append(run.peak)
                walls[minutes].append(run.seconds)
                text = (folder / "results" / path.stem / "result.json").read_text(encoding="utf-8")
                results[minutes] = json.loads(text)
    rows = [
        [
            clock(results[minutes]["seconds"]),
            str(results[minutes]["snippets"]),
            str(len(results[minutes]["events"])),
            measure.spread(walls[minutes]),
            measure.spread(peaks[minutes]),
        ]
        for minutes in a.minutes
    ]
    print(table(["video", "snippets", "events", "wall s", "peak MiB"], rows, right=(0, 1, 2, 3, 4)))
    first, last = peaks[a.minutes[0]], peaks[a.minutes[-1]]
    longer = results[a.minutes[-1]]["snippets"] / results[a.minutes[0]]["snippets"]
    ratio = measure.spread(measure.ratios(last, first), 3)
    print(f"{longer:.1f} times as many snippets, {ratio} times the peak memory")
    backend = results[a.minutes[-1]]["backend"]
    print(f"on {backend['name']}:{backend['device']} {backend['precision']} ({backend['library']})")
    print(others)
    return 0


def video(folder: Path, minutes: float, ending: str) -> Path:
    """Where the video of that length goes."""
    return folder / f"{minutes:g}min.{ending}"


if __name__ == "__main__":
    measure.main("memory", main)
