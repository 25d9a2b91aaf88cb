"""Whether alarm thresholds hold what they promise: repeated trials on hours of the synthetic world.

Normal life of the cameras of the test split is drawn in clips of 128 s, each a plot of its own. Only the frame that
stands for a snippet is drawn (the world can draw any frame without those before it), and it is not compressed; then it
goes through the runtime's preprocessing and the bundle. Scores are kept in ``--cache``.

A trial deals the clips out at random: some hours to set thresholds on, as ``vadcalibrate alarms`` does, and all the
others to count alarms on. Clips, not snippets, are dealt out, so what depends on each other stays together.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks import measure
from vadcalibrate.alarms import DAY, at_level, levels, set_thresholds, track
from vadcalibrate.footage import Footage
from vadclip.world import FPS, KINDS, make_clip
from vadrun.calibration import class_scores
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import EventRule
from vadrun.preprocessing import Preprocessor

SECONDS = 128.0
SNIPPET = 16


def draw(engine: Engine, number: int, seed: int) -> NDArray[np.float64]:
    """Class scores [n,m] of the snippets of one normal clip."""
    clip = make_clip(
        seed, "test", "normal", 10_000 + number, seconds=(SECONDS, SECONDS), kind=KINDS[number % len(KINDS)]
    )
    preprocess = Preprocessor(engine.bundle.preprocessing)
    frames = range(SNIPPET // 2, clip.frame_count - SNIPPET // 2 + 1, SNIPPET)
    images = [preprocess(av.VideoFrame.from_ndarray(picture, format="rgb24")) for picture in clip.pictures(frames)]
    scores = engine.score(engine.encode(np.stack(images)))
    return class_scores(scores.anomaly, scores.alignment)


def footage(engine: Engine, hours: float, seed: int, cache: Path) -> list[Footage]:
    """The scored clips, drawn where the cache does not have them."""
    count = round(hours * 3600 / SECONDS)
    kept: list[NDArray[np.float64]] = []
    if cache.exists():
        with np.load(cache) as stored:
            if str(stored["bundle"]) != engine.bundle.sha256 or int(stored["seed"]) != seed:
                raise UserError(f"{cache} is of another bundle or seed: name another file")
            kept = list(stored["scores"])
    began, had = time.monotonic(), len(kept)
    while len(kept) < count:
        kept.append(draw(engine, len(kept), seed))
        if len(kept) % 50 == 0 or len(kept) == count:
            values: dict[str, Any] = {"bundle": engine.bundle.sha256, "seed": seed, "scores": np.stack(kept)}
            np.savez_compressed(cache, **values)
            speed = (len(kept) - had) * SECONDS / (time.monotonic() - began)
            print(f"{len(kept)} of {count} clips, {speed:.0f} times real time", flush=True)
    edges = np.arange(kept[0].shape[0] + 1) * SNIPPET / FPS
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    return [Footage(f"{i}", f"{i}", spans, scores, FPS, (320, 240)) for i, scores in enumerate(kept[:count])]


class Counter:
    """Alarms of every clip, class and level, counted once: trials only add them up."""

    def __init__(self, clips: list[Footage], rules: dict[str, EventRule]) -> None:
        grid = levels()
        self.counts = np.zeros((len(clips), len(rules), len(grid)), np.int32)
        for i, clip in enumerate(clips):
            for column, rule in enumerate(rules.values(), start=1):
                alone = track([clip], column, 0.0)
                for k, level in enumerate(grid):
                    self.counts[i, column - 1, k] = len(alone.events(at_level(rule, level)))

    def alarms(self, clips: NDArray[np.int64], thresholds: list[float]) -> int:
        """Alarms of all classes in some clips."""
        grid = levels()
        at = [int(np.argmin(np.abs(grid - threshold))) for threshold in thresholds]
        return int(sum(self.counts[clips, column, k].sum() for column, k in enumerate(at)))


def most_elsewhere(count: int, days: float, other_days: float, confidence: float, index: float = 1.0) -> int:
    """The most events that ``other_days`` of the same process hold with ``confidence``, after ``count`` in ``days``.

    Given both counts' sum, the first is binomial with the share of time (the conditional test of two Poisson means).
    """
    share, most, bursts = days / (days + other_days), 0, int(np.ceil(count / index))
    while binom.cdf(bursts, bursts + most + 1, share) > 1 - confidence:
        most += 1
    return int(most * index)


def trials(
    clips: list[Footage],
    counter: Counter,
    rules: dict[str, EventRule],
    hours: float,
    wanted: float,
    confidence: float,
    count: int,
    rng: np.random.Generator,
) -> list[str]:
    """A row of the table: what came of ``count`` trials with ``hours`` of calibration each."""
    per_trial = round(hours * 3600 / SECONDS)
    held = within = refused = 0
    rates, alarms = [], []
    for _ in range(count):
        order = rng.permutation(len(clips))
        mine, others = order[:per_trial], order[per_trial:]
        try:
            found = set_thresholds([clips[i] for i in mine], rules, wanted, confidence)
        except UserError:  # too short for the rate, or normal life that alarms at every level: nothing is promised
            refused += 1
            continue
        elsewhere = counter.alarms(others, [entry.rule.threshold for entry in found.classes.values()])
        days = sum(clips[i].seconds for i in others) / DAY
        rates.append(elsewhere / days)
        alarms.append(found.count)
        held += rates[-1] <= wanted
        # By the alarms that were allowed, not by those that are left: the next one stopped the lowering.
        within += elsewhere <= most_elsewhere(found.allowed, found.days, days, confidence, found.index)
    if not rates:
        return [f"{hours:.1f}", f"{wanted:.1f}", "-", "-", str(refused), "-", "-"]
    return [
        f"{hours:.1f}",
        f"{wanted:.1f}",
        f"{np.mean(alarms):.1f}",
        f"{np.median(rates):.1f} ({np.quantile(rates, 0.05):.1f} to {np.quantile(rates, 0.95):.1f})",
        str(refused),
        f"{100 * held / len(rates):.1f} %",
        f"{100 * within / len(rates):.1f} %",
    ]


def main() -> int:
    """Draw, deal out, count, print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.alarms", description=__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the demo's bundle")
    p.add_argument("--cache", type=Path, required=True, metavar="FILE", help="keep scores here (.npz)")
    p.add_argument("--hours", type=float, default=24.0, metavar="H", help="of footage in all (default 24)")
    p.add_argument("--trials", type=int, default=400, metavar="N", help="of each row (default 400)")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--merge-gap", type=float, default=10.0, metavar="SEC", help="default 10, as vadcalibrate")
    a = p.parse_args()
    print(measure.machine("onnxruntime", "numpy", "scipy"))
    with Engine.load(a.bundle, "onnxruntime:cpu") as engine:
        clips = footage(engine, a.hours, a.seed, a.cache)
        rules = {label: EventRule(0.5, 0.4, 1.0, a.merge_gap) for label in engine.labels[1:]}
    counter = Counter(clips, rules)
    rng = np.random.default_rng(1)
    rows = [
        # Wanted rates at which so many alarms are expected while thresholds are set, where they are held just so.
        trials(clips, counter, rules, a.hours * share, expected / (a.hours * share / 24), 0.95, a.trials, rng)
        for share, expected in ((1 / 6, 8), (1 / 3, 8), (1 / 3, 16), (1 / 3, 32))
    ]
    header = [
        "hours",
        "wanted a day",
        "alarms in them",
        "a day in the others",
        "refused",
        "wanted rate held",
        "in the limit",
    ]
    print(table(header, rows, right=range(len(header))))
    print(
        f"{a.trials} trials a row, {a.hours:g} hours in all; the first column's set thresholds with 95% confidence; "
        "a day in the others: median (5% to 95%); held: no more than wanted, by chance more often than the true rate; "
        "in the limit: no more than the promised rate's prediction limit for those hours"
    )
    return 0


if __name__ == "__main__":
    measure.main("alarms", main)
