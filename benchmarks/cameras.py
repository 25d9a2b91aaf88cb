"""How many cameras are held in real time, how late their scores are, and what each one costs in memory.

A number of copies of a video are played at their own speed through ``vadrun.live``, each run in a process of its own.
They are held if 95% of the scores come within the limit after their snippet's end, and none is lost. All copies begin
together, so their snippets end together: cameras that do not are easier.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from vadrun.console import table


def watch(bundle: Path, video: Path, count: int, seconds: float, gated: bool) -> dict[str, Any]:
    """Play ``count`` copies for so many seconds, in this process."""
    import numpy as np

    from vadrun.engine import Engine
    from vadrun.events import EventRule
    from vadrun.gate import GateRule
    from vadrun.live import run_live

    with Engine.load(bundle) as engine:
        size = engine.bundle.model.image_size
        for images in range(1, engine.batch + 1):  # OpenVINO prepares for each size of batch when it first comes
            engine.encode(np.zeros((images, size, size, 3), np.uint8))
        stop = threading.Event()
        threading.Timer(seconds, stop.set).start()
        cpu, began = time.process_time(), time.monotonic()
        cameras = run_live(engine, [video] * count, EventRule(), gate=GateRule() if gated else None, stop=stop)
        took = time.monotonic() - began
        cpu = time.process_time() - cpu
    results = [camera.result for camera in cameras if camera.result is not None]
    assert len(results) == count
    delays = [delay for camera in cameras for delay in camera.delays]
    # What a camera in time has at least: whole snippets up to a moment before the end.
    rate, frames = results[0].info.rate, engine.bundle.sampling.frames
    due = count * int((seconds - 3) * rate / frames)
    return {
        "delay": float(np.quantile(delays, 0.95)) if delays else None,
        "scored": len(delays),
        "due": due,
        "cores": cpu / took,
        "gated": sum(r.gate["share_gated"] for r in results if r.gate) / count,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.cameras", description=__doc__)
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="such as 1080p and 640x360 at 15 fps")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="default 1 2 4 8")
    p.add_argument("--seconds", type=float, default=30.0, metavar="SEC", help="of each run (default 30)")
    p.add_argument("--limit", type=float, default=2.0, metavar="SEC", help="delay that is in time (default 2)")
    p.add_argument("--child", choices=("plain", "gate"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        print(json.dumps(watch(a.bundle, a.videos[0], a.counts[0], a.seconds, a.child == "gate")))
        return 0
    print(measure.machine("openvino", "av"))
    others = measure.Others()
    for video in a.videos:
        for way in ("plain", "gate"):
            rows, most = survey(a, video, way)
            held = f"{most} are held" if most else "not one is held"
            print(f"\n{video.name}, {'with' if way == 'gate' else 'without'} the gate: {held}")
            print(
                table(
                    ["cameras", "p95 delay s", "held", "cores used", "gated", "peak MiB"], rows, right=(0, 1, 3, 4, 5)
                )
            )
            if len(rows) > 1:
                first, last = rows[0], rows[-1]
                added = (float(last[5]) - float(first[5])) / (int(last[0]) - int(first[0]))
                print(f"{added:.1f} MiB for each added camera")
    print(others)
    return 0


def survey(a: argparse.Namespace, video: Path, way: str) -> tuple[list[list[str]], int]:
    """Run the counts, then narrow down between the largest that is held and the smallest that is not."""
    found: dict[int, dict[str, Any]] = {}

    def held(count: int) -> bool:
        if count not in found:
            command = [sys.executable, "-m", "benchmarks.cameras", str(video), "--bundle", str(a.bundle)]
            command += ["--counts", str(count), "--seconds", str(a.seconds), "--child", way]
            found[count] = json.loads(measure.run(command).output)
        one = found[count]
        in_time = one["delay"] is not None and one["delay"] <= a.limit and one["scored"] >= one["due"]
        one["held"] = in_time
        return bool(in_time)

    for count in a.counts:
        held(count)
    low = max((count for count in found if held(count)), default=0)
    high = min((count for count in found if not held(count)), default=low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) else (low, middle)
    rows = [
        [
            str(count),
            "-" if one["delay"] is None else f"{one['delay']:.2f}",
            "yes" if one["held"] else "no",
            f"{one['cores']:.2f}",
            f"{one['gated']:.0%}",
            f"{one['peak']:.0f}",
        ]
        for count, one in sorted(found.items())
    ]
    return rows, low


if __name__ == "__main__":
    measure.main("cameras", main)
