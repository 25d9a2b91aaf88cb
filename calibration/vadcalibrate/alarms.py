"""Thresholds for a wanted rate of false alarms, from footage in which nothing happened.

An alarm is an event of a class as the runtime finds it: a stretch at or above the release level that reaches the
threshold and is long enough, where stretches of one class that are nearer than the merge gap are one. Alarms come in
bursts that start at random (a Poisson process), whose rate may change with the hour of the day as long as the footage
has all hours in the same shares as the days to come. What belongs to one burst may depend on each other in any way.

Thresholds begin at the top, where nothing alarms, and are lowered level by level, always that of the class with the
fewest alarms so far, until the next step would bring one alarm too many: more than those whose upper limit is the
wanted rate. On a clock that runs with the expected number of bursts, bursts come at unit rate whatever class is
lowered next, as long as that depends only on alarms that are counted already. The clock's reading when one too many
comes has the same distribution as for one threshold, so looking at the footage to choose costs no confidence.

How large bursts are, the footage has to say. The index of dispersion is taken of counts in stretches of four hours, or
of a twentieth of shorter footage, at the highest level at which there are a hundred alarms (and no fewer than may be
allowed); every limit is widened by its upper limit, not only where bursts are evident: a few alarms look independent
whatever they are. This assumes that bursts are over within a stretch, that their sizes are no more uneven than
geometric ones, and that they are no larger at higher levels. With fewer than 30 alarms at any level bursts cannot be
judged; what is bounded then is the rate of bursts, however many alarms each may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vadcalibrate.footage import Footage, plural
from vadcalibrate.rates import Dispersion, days_needed, dispersion, most_events, rate_above
from vadrun.errors import UserError
from vadrun.events import EventRule

DAY = 86400.0
_LOWEST = 0.1  # what a class score below this says of its class is nothing
_HIGHEST = 0.99999  # results on disk have six decimals
_STEP = 0.1  # of log-odds, from one level to the next
_STRETCH = 4 * 3600.0  # seconds in which alarms are counted for their dispersion
_STRETCHES = 20  # the fewest
_ENOUGH = 100  # alarms for their dispersion, where there are as many
_SHOWN = 3  # moments that held the thresholds up

Floats = NDArray[np.float64]


def levels() -> Floats:
    """The thresholds that are tried, from high to low: equal steps of log-odds."""
    top, bottom = (float(np.log(p / (1 - p))) for p in (_HIGHEST, _LOWEST))
    steps = np.arange(top, bottom, -_STEP)
    return np.asarray(np.append(1 / (1 + np.exp(-steps)), _LOWEST))


@dataclass(frozen=True)
class Track:
    """One class's score over all footage, one video after the other with a pause that nothing merges across.

    Gaps within a video that are longer than that are shortened to it: nobody saw anything in them.
    """

    score: Floats  # [N]
    start: Floats  # seconds [N]
    end: Floats

    def events(self, rule: EventRule) -> Floats:
        """Events as :class:`vadrun.events.EventDetector` finds them: [k,3], start, end and peak."""
        above = np.flatnonzero(self.score >= rule.low)
        if not len(above):
            return np.empty((0, 3))
        start, end = self.start[above], self.end[above]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(above) > 1) | (start[1:] - end[:-1] > rule.merge_gap)]))
        last = np.append(first[1:], len(above)) - 1
        peak = np.maximum.reduceat(self.score[above], first)
        keep = peak >= rule.threshold
        start, end, peak = start[first][keep], end[last][keep], peak[keep]
        if not len(start):
            return np.empty((0, 3))
        first = np.flatnonzero(np.concatenate([[True], start[1:] - end[:-1] > rule.merge_gap]))
        last = np.append(first[1:], len(start)) - 1
        joined = np.stack([start[first], end[last], np.maximum.reduceat(peak, first)], axis=1)
        return np.asarray(joined[joined[:, 1] - joined[:, 0] >= rule.min_length])


def track(footage: Sequence[Footage], column: int, pause: float) -> Track:
    """The score of one class (its column of the scores) over all footage.

    There are ``pause`` seconds between videos, and no more than that between the snippets of a video.
    """
    score, start, end = [], [], []
    offset = 0.0
    for item in footage:
        gaps = item.spans[1:, 0] - item.spans[:-1, 1]
        moved = offset - np.concatenate([[0.0], np.cumsum(np.maximum(gaps - pause, 0.0))])
        score.append(item.scores[:, column])
        start.append(item.spans[:, 0] + moved)
        end.append(item.spans[:, 1] + moved)
        offset = float(end[-1][-1]) + pause
    return Track(np.concatenate(score), np.concatenate(start), np.concatenate(end))


def at_level(rule: EventRule, level: float) -> EventRule:
    """The rule with another threshold and the same share of it as release level."""
    return replace(rule, threshold=float(level), release=float(level * rule.low / rule.threshold))


@dataclass(frozen=True)
class ClassAlarms:
    """What was found for one class.

    Attributes:
        rule: the rule with its threshold.
        count: its alarms in the footage.
        curve: alarms at each of :func:`levels`.
    """

    rule: EventRule
    count: int
    curve: tuple[int, ...]


@dataclass(frozen=True)
class Moment:
    """A moment of the footage that would be the next alarm, or is one already.

    Attributes:
        source: the video.
        start: seconds.
        label: of its class.
        peak: highest score of its class in it.
    """

    source: str
    start: float
    label: str
    peak: float

    def __str__(self) -> str:
        return f"{self.source} at {self.start:.0f} s ({self.label} {self.peak:.5f})"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of all classes, and what the footage says of them.

    Attributes:
        wanted: false alarms per day that were asked for.
        confidence: of every bound.
        days: of footage.
        classes: label -> what was found.
        allowed: the most alarms that the footage may hold for the wanted rate; the next one stopped the lowering.
        at_most: upper limit of the rate of all classes together, per day.
        shown: whether ``at_most`` is the wanted rate or less. False: the footage is too short for it.
        bursts: how far alarms come in bursts; None where that cannot be judged, and limits are of bursts a day.
        stopped: the alarms with the highest peaks one level below the thresholds; empty where those are the lowest.
    """

    wanted: float
    confidence: float
    days: float
    classes: Mapping[str, ClassAlarms]
    allowed: int
    at_most: float
    shown: bool
    bursts: Dispersion | None
    stopped: tuple[Moment, ...]

    @property
    def count(self) -> int:
        """Alarms of all classes in the footage."""
        return sum(found.count for found in self.classes.values())

    @property
    def index(self) -> float:
        """The index of dispersion that limits are widened by; 1 where bursts are not judged."""
        return _index(self.bursts)


def set_thresholds(
    footage: Sequence[Footage],
    rules: Mapping[str, EventRule],
    wanted: float,
    confidence: float,
    allow_short: bool = False,
) -> Thresholds:
    """Choose the thresholds; see the module.

    Args:
        footage: in which nothing happened.
        rules: label of each abnormal class -> its rule, in the order of the scores' columns; its release level's share
            of the threshold, its minimum length and its merge gap are kept.
        wanted: false alarms per day, of all classes together.
        confidence: with which the rate is to be no more than that, such as 0.95.
        allow_short: where the footage is too short for the wanted rate, take the smallest that it can show.

    Raises:
        UserError: the footage is too short for the wanted rate, or alarms too often at the highest level already.
    """
    days = sum(item.seconds for item in footage) / DAY
    grid = levels()
    pause = 1.0 + max(rule.merge_gap for rule in rules.values())
    tracks = {label: track(footage, column, pause) for column, label in enumerate(rules, start=1)}
    curves = {
        label: [len(tracks[label].events(at_level(rule, level))) for level in grid] for label, rule in rules.items()
    }
    allowed = most_events(wanted, days, confidence)
    bursts = _bursts(tracks, rules, grid, curves, max(_ENOUGH, allowed), confidence)
    index = _index(bursts)
    most = most_events(wanted, days, confidence, index)
    shown = most >= 0
    if not shown and not allow_short:
        need, can = days_needed(wanted, confidence, index), rate_above(0, days, confidence, index)
        why = (
            f" (its alarms may come in bursts: index of dispersion {bursts.index:.1f}, at most {index:.1f})"
            if bursts is not None
            else ""
        )
        raise UserError(
            f"{duration(days)} of normal footage cannot show {wanted:g} false alarms a day with {confidence:.0%} "
            f"confidence, even if there is none in it: that takes {duration(need)}{why}; give more, ask for "
            f"{_up(can):g} a day or more, or give --allow-short to get thresholds for what can be shown"
        )
    most = max(most, 0)
    position = dict.fromkeys(rules, 0)

    def counted(label: str) -> int:
        return curves[label][position[label]]

    if sum(map(counted, rules)) > most:
        where = _moments(footage, rules, dict.fromkeys(rules, float(grid[0])))
        raise UserError(
            f"the footage that was given as normal has {plural(len(where), 'alarm')} even at a threshold of "
            f"{grid[0]:.5f}, and {wanted:g} a day allow {most}: look at {'; '.join(map(str, where[:_SHOWN]))}; take "
            "true events out of it, or ask for a higher rate"
        )
    while lowerable := [label for label in rules if position[label] + 1 < len(grid)]:
        label = min(lowerable, key=lambda name: (counted(name), position[name]))
        rest = sum(counted(other) for other in rules if other != label)
        if rest + curves[label][position[label] + 1] > most:
            break
        position[label] += 1
    classes = {
        label: ClassAlarms(at_level(rule, float(grid[position[label]])), counted(label), tuple(curves[label]))
        for label, rule in rules.items()
    }
    count = sum(found.count for found in classes.values())
    # The bound of the procedure, not of the count that is left: the next alarm stopped it, wherever it came.
    at_most = rate_above(most, days, confidence, index)
    assert count <= most
    below = {label: float(grid[position[label] + 1]) for label in lowerable}
    stopped = tuple(_moments(footage, rules, below)[:_SHOWN])
    return Thresholds(wanted, confidence, days, classes, most, at_most, shown, bursts, stopped)


def _bursts(
    tracks: Mapping[str, Track],
    rules: Mapping[str, EventRule],
    grid: Floats,
    curves: Mapping[str, Sequence[int]],
    enough: int,
    confidence: float,
) -> Dispersion | None:
    """The dispersion of all classes' alarms at the highest level at which there are enough, or else at the lowest."""
    together = np.sum([curves[label] for label in rules], axis=0)
    reached = np.flatnonzero(together >= enough)
    level = float(grid[reached[0] if len(reached) else -1])
    whole = max(float(found.end[-1]) for found in tracks.values())
    stretches = max(_STRETCHES, int(np.ceil(whole / _STRETCH)))
    starts = [tracks[label].events(at_level(rule, level))[:, 0] for label, rule in rules.items()]
    counts, _ = np.histogram(np.concatenate(starts), np.linspace(0.0, whole, stretches + 1))
    return dispersion(counts.tolist(), whole / stretches, confidence)


def _index(bursts: Dispersion | None) -> float:
    return 1.0 if bursts is None else bursts.at_most


def _moments(
    footage: Sequence[Footage], rules: Mapping[str, EventRule], thresholds: Mapping[str, float]
) -> list[Moment]:
    """All alarms at some classes' thresholds, the highest peaks first."""
    found = []
    for column, label in enumerate(rules, start=1):
        if label not in thresholds:
            continue
        rule = at_level(rules[label], thresholds[label])
        for item in footage:
            alone = Track(item.scores[:, column], item.spans[:, 0], item.spans[:, 1])
            found += [Moment(item.source, float(start), label, float(peak)) for start, _, peak in alone.events(rule)]
    return sorted(found, key=lambda moment: -moment.peak)


def duration(days: float) -> str:
    """A length of time in words, for people who plan recordings."""
    if days > 36525:
        return "more than 100 years"
    hours = days * 24
    if hours >= 48:
        return f"{days:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _up(value: float) -> float:
    """Rounded up to three digits, so that asking for it works."""
    digits = 10 ** (2 - int(np.floor(np.log10(value))))
    return float(np.ceil(value * digits) / digits)
