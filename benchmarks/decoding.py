"""What reading a video costs: every picture with FFmpeg's threads, and as vadrun reads, with one thread and with all.

Reading is decoding, and shrinking the middle picture of each snippet; nothing is encoded. "Every picture" and "without
what nothing depends on" decode the file in FFmpeg's threads on all cores; "by groups" is what vadrun does, with one
group at a time and with as many as there are cores; "with the gate" decodes what the gate asks for, and ahead of it.
Where a stream has no closed groups, all that is left is the same.

With ``--bundle`` the files are then scored together, ``--copies`` of each: one after the other, and as many at once
as there are cores. Small encoders show the reading, large ones hide it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks import measure
from vadrun import Engine, EventRule, UserError, feeding, run_videos
from vadrun.console import table
from vadrun.gate import GateRule
from vadrun.sampling import Sampling
from vadrun.video import Video

Pass = tuple[float, float]  # seconds by the clock, and of the processor


def timed(call: Callable[[], object]) -> Pass:
    """Both times of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def read(path: Path, *, groups: bool, skips: bool = True, threads: int = 0, gate: GateRule | None = None) -> int:
    """Make all snippets of a video; how many there are."""
    with mock.patch.object(Video, "looks_ahead", groups), Video(path, threads=threads) as video:
        if not skips:
            video._reader.skipper = None
        return sum(1 for _ in video.snippets(Sampling(), gate=gate))


def show(base: str, passes: dict[str, list[Pass]]) -> None:
    """A table of ways, against the first."""
    rows = [
        [
            name,
            measure.spread([wall for wall, _ in runs], 2),
            measure.spread(measure.ratios([w for w, _ in passes[base]], [w for w, _ in runs]), 2),
            measure.spread([cpu for _, cpu in runs], 2),
            f"{statistics.median(c for _, c in runs) / statistics.median(c for _, c in passes[base]):.2f}",
        ]
        for name, runs in passes.items()
    ]
    print(table(["", "seconds", "times as fast", "CPU seconds", "of the first's"], rows, right=(1, 2, 3, 4)))


def one_by_one(path: Path, rounds: int) -> None:
    """Read one video in every way."""
    cores = len(os.sched_getaffinity(0))
    ways: dict[str, Callable[[], int]] = {
        "every picture": lambda: read(path, groups=False, skips=False),
        "without what nothing depends on": lambda: read(path, groups=False),
        "by groups, one at a time": lambda: read(path, groups=True, threads=1),
        f"by groups, {cores} at once": lambda: read(path, groups=True, threads=cores),
        "with the gate, one thread": lambda: read(path, groups=True, threads=1, gate=GateRule()),
        f"with the gate, {cores} threads": lambda: read(path, groups=True, threads=cores, gate=GateRule()),
    }
    passes: dict[str, list[Pass]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            passes[name].append(timed(way))
    with Video(path) as video:
        codec, picture = video.info.codec, f"{video.info.width}x{video.info.height}"
    print(f"\n{path.name}: {codec} {picture}")
    show("every picture", passes)


def together(engine: Engine, paths: list[Path], gate: GateRule | None, rounds: int) -> None:
    """Score several videos one after the other, and some at once."""

    def score(most: int) -> None:
        with mock.patch.object(feeding, "MOST_READERS", most):
            for _, outcome in run_videos(engine, paths, EventRule(), gate=gate):
                if isinstance(outcome, UserError):
                    raise outcome

    ways = {"one after the other": 1, f"{feeding.cores()} at once": feeding.MOST_READERS}
    passes: dict[str, list[Pass]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, most in ways.items():
            passes[name].append(timed(lambda most=most: score(most)))  # type: ignore[misc]
    print(f"\n{len(paths)} files, {engine.description}{'' if gate is None else ', with the gate'}")
    show("one after the other", passes)


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    p.add_argument("--bundle", type=Path, metavar="DIR", help="score the videos together as well")
    p.add_argument("--copies", type=int, default=1, metavar="N", help="of each video that are scored (default 1)")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    a = p.parse_args()
    print(measure.machine("av"))
    others = measure.Others()
    for path in a.videos:
        one_by_one(path, a.rounds)
    if a.bundle is not None:
        with Engine.load(a.bundle) as engine:
            for gate in (None, GateRule()):
                together(engine, a.videos * a.copies, gate, a.rounds)
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("decoding", main)
