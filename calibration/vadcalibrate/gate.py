"""The gate's threshold for one camera: as many snippets held as a bound on the score error allows.

Everything is encoded, as in the gate's shadow mode, and one pass tells for each of :data:`THRESHOLDS` what a gated run
would have held, and what its scores and events would have been: the runtime's own gate judges, heartbeat and audits
included. The error of a snippet is the difference of its score in both runs.

The bound on the mean error is :func:`vadrun.audit.upper_mean` over the means of stretches of a minute: if stretches
do not depend on each other, it holds without assumptions on how errors are distributed, and hours may differ from each
other as long as the footage has them in the same shares as the days to come. Where stretches that follow each other are
correlated, longer ones are taken. Thresholds are tested from the smallest on, and the first that fails ends it, so
that having several to choose from costs no confidence (fixed-sequence testing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadcalibrate.footage import Progress, Remark, remarks_on
from vadrun.audit import missed, upper_mean
from vadrun.calibration import CalibratedDetector, Calibration
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventDetector, EventRule
from vadrun.feeding import images_of
from vadrun.gate import GateRule, Verdict
from vadrun.inputs import named_videos
from vadrun.scoring import Scores
from vadrun.video import Snippet, Video

# Shares of the picture that are tried, from "nothing at all may change" to half of it.
THRESHOLDS = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5)
_STRETCH = 60.0  # seconds
_LONGEST = 3600.0
_FEWEST = 10  # pairs of stretches that a correlation is judged by
_CORRELATED = 1.645  # standard deviations: 5% of uncorrelated stretches look more correlated

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Trial:
    """What one threshold would have done.

    Attributes:
        threshold: share of the picture.
        held: snippets that would have been held.
        errors: difference of each snippet's score from the ungated one, [N].
        missed: events of the ungated run that would not have been found.
    """

    threshold: float
    held: int
    errors: NDArray[np.float64]
    missed: int


@dataclass(frozen=True)
class Measured:
    """What a pass over the footage tells.

    Attributes:
        rule: the gate's, but for its threshold.
        trials: one for each of the thresholds, rising.
        starts: start of each of the N snippets in seconds of its video.
        video: number of the video of each snippet.
        seconds: of footage that was scored.
        events: that the ungated run found.
        pictures: widths and heights of the footage.
    """

    rule: GateRule
    trials: Sequence[Trial]
    starts: NDArray[np.float64]
    video: NDArray[np.int64]
    seconds: float
    events: int
    pictures: frozenset[tuple[int, int]]

    @property
    def videos(self) -> int:
        """How many there are."""
        return int(self.video.max()) + 1


@dataclass(frozen=True)
class Bound:
    """An upper bound on the mean error.

    Attributes:
        at_most: the bound.
        stretch: seconds of the stretches that are taken to be independent.
        count: of them.
    """

    at_most: float
    stretch: float
    count: int


@dataclass(frozen=True)
class Chosen:
    """The threshold to use, and what is known of it.

    Attributes:
        wanted: mean error that was allowed.
        confidence: of every bound.
        trial: of the threshold.
        bound: on its mean error.
        shown: whether that is what was allowed or less. False: the footage is too short, and its mean had to do.
        bounds: of all trials.
    """

    wanted: float
    confidence: float
    trial: Trial
    bound: Bound
    shown: bool
    bounds: Sequence[Bound]


def measure(
    engine: Engine,
    paths: Sequence[Path],
    rule: GateRule,
    events: EventRule | Calibration,
    progress: Progress = lambda *a: None,
    remark: Remark = lambda text: None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Measured:
    """Encode footage once and see what each threshold would have done.

    Args:
        engine: the loaded bundle.
        paths: videos of one camera, or folders of them.
        rule: the gate's heartbeat and audits.
        events: what makes scores an event.
        progress: called after every batch.
        remark: told what the user should know of sound videos.
        thresholds: rising.

    Raises:
        UserError: nothing there, a video that cannot be read or is damaged, a bundle with several images to a snippet,
            or a feature that is not finite.
    """
    rules = [replace(rule, threshold=threshold) for threshold in thresholds]
    found = [_of_video(engine, path, rules, events, progress, remark) for path in named_videos(paths)]
    trials = [
        Trial(
            one.threshold,
            sum(video.runs[number].held for video in found),
            np.concatenate([video.runs[number].errors for video in found]),
            sum(len(missed(video.plain.events, video.runs[number].events)) for video in found),
        )
        for number, one in enumerate(rules)
    ]
    spans = np.concatenate([np.reshape(video.spans, (-1, 2)) for video in found])
    return Measured(
        rule,
        trials,
        spans[:, 0],
        np.repeat(np.arange(len(found)), [len(video.spans) for video in found]),
        float((spans[:, 1] - spans[:, 0]).sum()),
        sum(len(video.plain.events) for video in found),
        frozenset(video.picture for video in found),
    )


def choose(measured: Measured, wanted: float, confidence: float, allow_short: bool = False) -> Chosen:
    """The largest threshold that keeps the mean error within ``wanted`` and misses no event; see the module.

    Args:
        measured: what the footage tells.
        wanted: mean error of a score that is allowed, 0 to 1.
        confidence: with which the mean is to be no more than that.
        allow_short: where the footage is too short to show it, go by its mean alone.

    Raises:
        UserError: no threshold does it, or the footage is too short to show that one does.
    """
    bounds = [error_bound(trial.errors, measured, confidence) for trial in measured.trials]
    pairs = list(zip(measured.trials, bounds, strict=True))

    def last(good: Callable[[Trial, Bound], bool]) -> tuple[Trial, Bound] | None:
        best = None
        for trial, bound in pairs:
            if trial.missed or not good(trial, bound):
                break
            best = trial, bound
        return best

    shown = last(lambda trial, bound: bound.at_most <= wanted)
    if shown is not None:
        return Chosen(wanted, confidence, *shown, True, bounds)
    by_mean = last(lambda trial, bound: float(trial.errors.mean()) <= wanted)
    first, bound = pairs[0]
    if by_mean is None:
        what = (
            f"{first.missed} of {measured.events} events would be missed"
            if first.missed
            else f"scores would be off by {first.errors.mean():.4f} on average"
        )
        raise UserError(
            f"even at a threshold of {first.threshold:g} {what}, and {wanted:g} and no missed event are allowed: leave "
            "the gate off on this camera, allow more with --error, or give a shorter --heartbeat"
        )
    if not allow_short:
        hours = measured.seconds / 3600
        need = stretches_needed(wanted, confidence) * bound.stretch / 3600
        raise UserError(
            f"{hours:.2g} hours of footage cannot show a mean score error of {wanted:g} with {confidence:.0%} "
            f"confidence (at a threshold of {first.threshold:g} it is {first.errors.mean():.4f} in the footage, and at "
            f"most {bound.at_most:.3g}): without any error that takes {need:.1f} hours; give more, allow more "
            "with --error, or give --allow-short to go by the footage's mean"
        )
    return Chosen(wanted, confidence, *by_mean, False, bounds)


def error_bound(errors: NDArray[np.float64], measured: Measured, confidence: float) -> Bound:
    """An upper bound on the mean of errors [N]; see the module."""
    stretch = _STRETCH
    while True:
        sums, count, pairs = _stretches(errors, measured, stretch)
        if stretch >= _LONGEST or not _correlated(sums, pairs):
            break
        stretch *= 2
    # Stretches at the end of a video are shorter. As shares of a full one all lie in [0, 1], and the mean over snippets
    # is theirs times a factor that does not depend on the errors.
    most = count.max()
    factor = len(sums) * most / count.sum()
    return Bound(min(float(upper_mean(sums / most, confidence) * factor), 1.0), stretch, len(sums))


def stretches_needed(wanted: float, confidence: float) -> int:
    """How many stretches without any error show a mean error of ``wanted``."""
    low, high = 0, 1
    while upper_mean(np.zeros(high), confidence) > wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_mean(np.zeros(middle), confidence) <= wanted else (middle, high)
    return high


def _stretches(
    errors: NDArray[np.float64], measured: Measured, stretch: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Sums of errors and numbers of snippets in stretches, and whether each one follows the one before directly."""
    place = np.floor(measured.starts / stretch).astype(np.int64)
    new = np.concatenate([[True], (np.diff(place) != 0) | (np.diff(measured.video) != 0)])
    first = np.flatnonzero(new)
    follows = (np.diff(measured.video[first]) == 0) & (np.diff(place[first]) == 1)
    count = np.diff(np.append(first, len(errors))).astype(np.float64)
    return np.add.reduceat(errors, first), count, follows


def _correlated(sums: NDArray[np.float64], follows: NDArray[np.bool_]) -> bool:
    """Whether stretches are correlated with the next one by more than chance."""
    before, after = sums[:-1][follows], sums[1:][follows]
    if len(before) < _FEWEST or before.std() == 0 or after.std() == 0:
        return False
    return bool(np.corrcoef(before, after)[0, 1] * np.sqrt(len(before)) > _CORRELATED)


_Judged = tuple[Snippet, tuple[Verdict, ...]]  # with what the gate of each threshold says


@dataclass
class _Run:
    """One video as a gate would have it, or without one."""

    detector: EventDetector | CalibratedDetector
    held: int = 0
    found: list[Floats] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    feature: Floats | None = None  # the last one that was encoded, and its snippet
    source: int = 0
    chunk: list[Floats] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    @property
    def errors(self) -> NDArray[np.float64]:
        return np.concatenate(self.found).astype(np.float64) if self.found else np.empty(0)

    def take(self, index: int, feature: Floats, verdict: Verdict) -> None:
        """The next snippet, with the feature that is its own."""
        if verdict is Verdict.HOLD:
            self.held += 1
        else:
            self.feature, self.source = feature, index
        assert self.feature is not None, "a gate encodes the first snippet"
        self.chunk.append(self.feature)
        self.sources.append(self.source)


@dataclass
class _OfVideo:
    """All runs over one video."""

    plain: _Run
    runs: list[_Run]
    picture: tuple[int, int]
    spans: list[tuple[float, float]] = field(default_factory=list)
    waiting: list[Snippet] = field(default_factory=list)  # of the present chunk

    def score(self, engine: Engine) -> None:
        """Score the present chunk of every run; those that hold alike share the scores."""
        known: dict[tuple[int, ...], Scores] = {}
        for run in (self.plain, *self.runs):
            key = tuple(run.sources)
            if key not in known:
                known[key] = engine.score(np.stack(run.chunk))
            scores, own = known[key], known[tuple(self.plain.sources)]
            run.found.append(np.abs(scores.anomaly - own.anomaly))
            for row, snippet in enumerate(self.waiting):
                value, classes = float(scores.anomaly[row]), scores.alignment[row]
                run.events += run.detector.push(snippet.index, snippet.start, snippet.end, value, classes)
        # The plain run's key is needed by all others, so nothing is cleared before.
        for run in (self.plain, *self.runs):
            run.chunk.clear()
            run.sources.clear()
        self.waiting.clear()

    def finish(self, engine: Engine) -> None:
        """Score what is left, and end the events."""
        if self.waiting:
            self.score(engine)
        for run in (self.plain, *self.runs):
            run.events += run.detector.finish()


def _of_video(
    engine: Engine,
    path: Path,
    rules: Sequence[GateRule],
    rule: EventRule | Calibration,
    progress: Progress,
    remark: Remark,
) -> _OfVideo:
    def run() -> _Run:
        return _Run(rule.detector() if isinstance(rule, Calibration) else EventDetector(rule, engine.labels))

    with Video(path) as video:
        found = _OfVideo(run(), [run() for _ in rules], (video.info.width, video.info.height))
        under_way: deque[list[_Judged]] = deque()

        def images() -> Iterator[Image]:
            judged = video.shadows(engine.bundle.sampling, engine.bundle.preprocessing, rules)
            while batch := list(islice(judged, engine.batch)):
                under_way.append(batch)
                yield images_of(engine, [snippet for snippet, _ in batch])

        for features in engine.encode_each(images()):
            for (snippet, verdicts), feature in zip(under_way.popleft(), features, strict=True):
                found.spans.append((snippet.start, snippet.end))
                found.waiting.append(snippet.without_images())
                found.plain.take(snippet.index, feature, Verdict.ENCODE)
                for one, verdict in zip(found.runs, verdicts, strict=True):
                    one.take(snippet.index, feature, verdict)
                if len(found.waiting) == engine.bundle.model.positions:
                    found.score(engine)
            progress(path.name, found.spans[-1][1], video.info.duration)
        found.finish(engine)
        if video.damage is not None:
            raise UserError(f"{video.damage}; leave it out, or cut a sound part from it")
        for text in remarks_on(path, video.info.remarks, video.note):
            remark(text)
    if not found.spans:
        raise UserError(f"{path} holds no snippet: leave it out")
    return found
