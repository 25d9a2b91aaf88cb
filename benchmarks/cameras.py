"""How many cameras are held in real time, how late their scores are, and what each one costs in memory.

A number of copies of a video are played at their own speed through ``vadrun.live``, each run in a process of its own.
They are held if 95% of the scores come within the limit after their snippet's end, none is lost, and they do not come
later and later. All copies begin together, so their snippets end together, and whatever happens does in all of them at
once: the hardest case, and none of real cameras. With ``--apart`` they begin one after the other, evenly within two
seconds, and each at another key picture of the video, which goes on with its beginning at its end.

``--show head`` and ``--show threads`` measure what two choices of ``vadrun.live`` rest on: when the head runs, and how
many threads decode a camera.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av

from benchmarks import measure
from benchmarks.make_video import clip_span, open_clip
from vadrun.console import table

SPREAD = 2.0  # seconds, in which copies begin that are apart


def watch(bundle: Path, video: Path, count: int, seconds: float, gated: bool, apart: bool) -> dict[str, Any]:
    """Play ``count`` copies for so many seconds, in this process."""
    import numpy as np

    from vadrun import live
    from vadrun.engine import Engine
    from vadrun.events import EventRule
    from vadrun.gate import GateRule

    beginnings = [SPREAD * number / count if apart else 0.0 for number in range(count)]
    waits = iter(beginnings)

    class Later(live._Paced):
        def __init__(self, path: Path, stop: threading.Event) -> None:
            time.sleep(next(waits))
            super().__init__(path, stop)

    live._Paced = Later  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder, Engine.load(bundle) as engine:
        size = engine.bundle.model.image_size
        for images in range(1, engine.batch + 1):  # OpenVINO prepares for each size of batch when it first comes
            engine.encode(np.zeros((images, size, size, 3), np.uint8))
        sources = turned(video, count, Path(folder)) if apart else [video] * count
        batches: list[int] = []
        encode = engine.encode

        def counted(frames: Any) -> Any:
            if len(frames):
                batches.append(len(frames))
            return encode(frames)

        engine.encode = counted  # type: ignore[method-assign]
        stop = threading.Event()
        threading.Timer(seconds, stop.set).start()
        cpu, began = time.process_time(), time.monotonic()
        cameras = live.run_live(engine, sources, EventRule(), gate=GateRule() if gated else None, stop=stop)
        took = time.monotonic() - began
        cpu = time.process_time() - cpu
    results = [camera.result for camera in cameras if camera.result is not None]
    assert len(results) == count
    delays = [list(camera.delays) for camera in cameras]
    early = [delay for each in delays for delay in each[: len(each) // 3]]
    late = [delay for each in delays for delay in each[-(len(each) // 3) :]]
    # What a camera in time has at least: whole snippets up to a moment before the end.
    rate, frames = results[0].info.rate, engine.bundle.sampling.frames
    due = sum(int((seconds - 3 - beginning) * rate / frames) for beginning in beginnings)
    return {
        "delay": float(np.quantile(np.concatenate(delays), 0.95)) if early else None,
        "later": statistics.median(late) - statistics.median(early) if early else None,
        "scored": sum(camera.scored for camera in cameras),
        "due": due,
        "cores": cpu / took,
        "gated": sum(r.gate["share_gated"] for r in results if r.gate) / count,
        "batch": statistics.mean(batches),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def turned(video: Path, count: int, folder: Path) -> list[Path]:
    """Copies of a video that begin at different key pictures, and go on with its beginning at its end."""
    start, span, _, _ = clip_span(video)
    with open_clip(video) as clip:
        stamps = [packet.pts for packet in clip.demux(clip.streams.video[0]) if packet.size and packet.is_keyframe]
    keys = [stamp for stamp in stamps if stamp is not None]
    made = []
    for number in range(count):
        first = keys[number * len(keys) // count]
        made.append(folder / f"{number}.mp4")
        with av.open(str(made[-1]), "w") as container, open_clip(video) as template:
            stream = container.add_stream_from_template(template.streams.video[0], opaque=True)
            for later in (True, False):
                with open_clip(video) as clip:
                    group = start
                    for packet in clip.demux(clip.streams.video[0]):
                        if packet.size == 0 or packet.pts is None or packet.dts is None:
                            continue
                        group = packet.pts if packet.is_keyframe else group
                        if (group >= first) == later:
                            shift = first if later else first - span
                            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                            packet.stream = stream
                            container.mux(packet)
    return made


def heads(bundle: Path) -> list[list[str]]:
    """CPU milliseconds of the encoder's image, of the head's chunk, and of the part of the head that looks far."""
    import numpy as np

    from vadrun.engine import Engine

    random = np.random.default_rng(0)
    with Engine.load(bundle) as engine:
        model = engine.bundle.model
        frames = random.integers(0, 255, (8, model.image_size, model.image_size, 3), np.uint8)
        chunk = random.standard_normal((model.positions, model.features)).astype(np.float32)
        far, head = _far_part(engine)
        contenders: dict[str, tuple[int, Callable[[], object]]] = {
            "encoder, an image of a batch of 8": (8, lambda: engine.encode(frames)),
            "head, a chunk": (1, lambda: engine.score_chunks([chunk])),
            "head, a chunk of 8 in one call": (8, lambda: engine.score_chunks([chunk] * 8)),
            "the same by hand, a chunk": (1, head),
            "its graph part alone": (1, far),
        }
        spent: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(8):
            for name, (count, call) in contenders.items():
                began = time.process_time()
                call()
                spent[name].append((time.process_time() - began) * 1e3 / count)
    return [[name, measure.spread(values[1:])] for name, values in spent.items()]  # the first call prepares


def _far_part(engine: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """Calls of the head behind its local windows, and of all of it, in OpenVINO with the backend's settings."""
    import tempfile

    import numpy as np
    import onnx
    import openvino

    bundle = engine.bundle
    path = bundle.root / bundle.file("head").name
    cut = [node.output[0] for node in onnx.load(path).graph.node if node.name.startswith("local")][-1]
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    with tempfile.TemporaryDirectory() as folder:
        part = f"{folder}/far.onnx"
        onnx.utils.extract_model(str(path), part, [cut, "lengths", "text"], ["logits", "alignment"])
        requests = [
            openvino.Core().compile_model(name, "CPU", settings).create_infer_request() for name in (part, path)
        ]
    x = np.random.default_rng(0).standard_normal((1, bundle.model.positions, bundle.model.features)).astype(np.float32)
    rest = {"lengths": np.array([len(x[0])]), "text": bundle.text()}
    return lambda: requests[0].infer({cut: x, **rest}), lambda: requests[1].infer({"features": x, **rest})


def decode(video: Path, count: int, threads: int) -> dict[str, Any]:
    """Read ``count`` copies at once as fast as they come, with so many decoding threads each."""
    from vadrun.sampling import Sampling
    from vadrun.video import Video

    def read() -> None:
        with Video(video, threads=threads) as opened:
            for _ in opened.snippets(Sampling()):
                pass
            seconds.append(opened.info.duration or 0.0)

    seconds: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()
    readers = [threading.Thread(target=read) for _ in range(count)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return {
        "cpu": 1e3 * (time.process_time() - cpu) / sum(seconds),
        "wall": 1e3 * (time.perf_counter() - began) / sum(seconds),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.cameras", description=__doc__)
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="such as 1080p and 640x360 at 15 fps")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    p.add_argument("--show", choices=("cameras", "head", "threads"), default="cameras", help="default: cameras")
    p.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="default 1 2 4 8")
    p.add_argument("--gate", choices=("off", "on", "both"), default="both", help="default: both, one after the other")
    p.add_argument("--no-search", action="store_true", help="run the counts only")
    p.add_argument("--seconds", type=float, default=30.0, metavar="SEC", help="of each run (default 30)")
    p.add_argument("--apart", action="store_true", help="copies begin at different times and places")
    p.add_argument("--limit", type=float, default=2.0, metavar="SEC", help="delay that is in time (default 2)")
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child in ("plain", "gate"):
        print(json.dumps(watch(a.bundle, a.videos[0], a.counts[0], a.seconds, a.child == "gate", a.apart)))
        return 0
    if a.child:
        print(json.dumps(decode(a.videos[0], a.counts[0], int(a.child))))
        return 0
    print(measure.machine("openvino", "av"))
    others = measure.Others()
    if a.show == "head":
        print(table(["", "CPU ms"], heads(a.bundle), right=(1,)))
    elif a.show == "threads":
        for video in a.videos:
            _print_threads(a, video)
    else:
        for video in a.videos:
            for way in ("plain", "gate"):
                if a.gate in ("both", {"plain": "off", "gate": "on"}[way]):
                    _print_cameras(a, video, way)
    print(others)
    return 0


def _child(a: argparse.Namespace, video: Path, count: int, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cameras", str(video), "--bundle", str(a.bundle)]
    command += ["--counts", str(count), "--seconds", str(a.seconds), "--child", what]
    command += ["--apart"] if a.apart else []
    found: dict[str, Any] = json.loads(measure.run(command).output)
    return found


def _print_threads(a: argparse.Namespace, video: Path) -> None:
    rows = []
    count = 8
    rounds: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}
    for _ in range(2):
        for threads, found in rounds.items():
            found.append(_child(a, video, count, str(threads)))
    for threads, found in rounds.items():
        columns = [measure.spread([one[key] for one in found]) for key in ("cpu", "wall", "peak")]
        rows.append([str(threads), *columns])
    print(f"\n{video.name}, {count} at once, of each second of one of them:")
    print(table(["threads each", "CPU ms", "ms by the clock", "peak MiB"], rows, right=(0, 1, 2, 3)))


def _print_cameras(a: argparse.Namespace, video: Path, way: str) -> None:
    found, most, allowed = survey(a, video, way)
    title = f"\n{video.name}, {'with' if way == 'gate' else 'without'} the gate"
    if a.no_search:
        print(title)
    else:
        print(f"{title}: {most} are held" if most else f"{title}: not one is held")
    rows = [
        [
            str(count),
            "-" if one["delay"] is None else f"{one['delay']:.2f}",
            "yes" if one["held"] else "no",
            f"{one['cores']:.2f}",
            f"{one['gated']:.0%}",
            f"{one['batch']:.1f}",
            f"{one['peak']:.0f}",
        ]
        for count, one in sorted(found.items())
    ]
    header = ["cameras", "p95 delay s", "held", "cores used", "gated", "images a call", "peak MiB"]
    print(table(header, rows, right=(0, 1, 3, 4, 5, 6)))
    if allowed is not None:
        first, last = min(found), max(found)
        added = (found[last]["peak"] - found[first]["peak"]) / (last - first)
        print(f"{added:.1f} MiB for each added camera; by its CPU seconds {allowed:.1f} cameras fill the cores")


def survey(a: argparse.Namespace, video: Path, way: str) -> tuple[dict[int, dict[str, Any]], int, float | None]:
    """Run the counts, then look for the most that are held, from what CPU seconds allow on.

    Returns what was found by count, the most that are held, and how many CPU seconds allow.
    """
    found: dict[int, dict[str, Any]] = {}

    def held(count: int) -> bool:
        if count not in found:
            one = found[count] = _child(a, video, count, way)
            in_time = one["delay"] is not None and one["delay"] <= a.limit and one["later"] < 0.3
            one["held"] = in_time and one["scored"] >= one["due"]
            delay = "none" if one["delay"] is None else f"{one['delay']:.2f} s"
            print(f"  {count} cameras: p95 delay {delay}, {one['cores']:.2f} cores", file=sys.stderr)
        return bool(found[count]["held"])

    for count in a.counts:
        held(count)
    cores = len(os.sched_getaffinity(0))
    first, last = min(a.counts), max(a.counts)
    allowed = None
    if last > first:
        allowed = cores * (last - first) / max(found[last]["cores"] - found[first]["cores"], 1e-3)
    low = max((count for count in found if held(count)), default=0)
    if a.no_search:
        return found, low, allowed
    high = min((count for count in found if not held(count)), default=None)
    guess = max(int(allowed or 2 * last), low + 1)
    while high is None:
        if held(guess):
            low, guess = guess, guess + max(1, guess // 8)
        else:
            high = guess
    step = max(1, high // 8)
    while high - low > 1:
        middle = max(high - step, (low + high) // 2)  # from above: what CPU seconds allow is nearly reached
        low, high = (middle, high) if held(middle) else (low, middle)
        step *= 2
    return found, low, allowed


if __name__ == "__main__":
    measure.main("cameras", main)
