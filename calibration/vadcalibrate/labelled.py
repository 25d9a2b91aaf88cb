"""Labelled clips: what happens in them, what that says of lengths and hysteresis, and which events are found."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcalibrate.alarms import Floats, Thresholds, Track, at_level, levels
from vadcalibrate.footage import Footage
from vadrun.errors import UserError
from vadrun.events import EventRule
from vadrun.schema import Where, read_file

COLUMNS = ("video", "label", "start", "end")
_MOST_BYTES = 64 << 20  # of the file of events
_RELEASE = 0.8  # share of the threshold, where no event was labelled
_RELEASES = (0.3, 0.9)
_LENGTH = 1.0  # seconds, where no event was labelled
_LENGTHS = (0.5, 4.0)


@dataclass(frozen=True)
class LabelledEvent:
    """An event that someone saw.

    Attributes:
        clip: its clip's index in the footage.
        label: its class.
        start, end: seconds in the clip.
        paused: seconds in between in which the recording paused.
    """

    clip: int
    label: str
    start: float
    end: float
    paused: float = 0.0


def read_events(
    path: Path, footage: Sequence[Footage], labels: Sequence[str], names: Sequence[str] = ()
) -> list[LabelledEvent]:
    """Events of labelled clips, from a CSV of ``video,label,start,end``, in frames, the end exclusive.

    A clip without a line is one in which nothing happens; lines of other videos are passed over. A class may be called
    by its annotation name or by its label; case does not count, and where they clash, the annotation name counts.

    Args:
        path: the CSV.
        footage: the labelled clips.
        labels: the m labels of the bundle, normal first.
        names: what annotations call them, one for each; empty: as the labels.

    Raises:
        UserError: the file does not read, names a class that the bundle lacks, tells of none of the clips, or an event
            lies beyond the end of its clip; or a clip has so many pauses that not all of them are known by their place.
    """
    raw = read_file(path, Where(path, "name a file of events"), most=_MOST_BYTES)
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path} does not have the columns {','.join(COLUMNS)}: name a file of events")
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file ({error}): name a file of events") from error
    clips: dict[str, int] = {}
    for index, item in enumerate(footage):
        if item.name in clips:
            raise UserError(f"two labelled clips are called {item.name!r}: rename one, events are told by name")
        clips[item.name] = index
    known = {label.casefold(): label for label in labels[1:]}
    known |= {name.casefold(): label for name, label in list(zip(names, labels, strict=bool(names)))[1:]}
    events = []
    for line, row in rows:
        name = Path(row["video"] or "").name
        name = name if name in clips else Path(name).stem
        if name not in clips:
            continue
        label = known.get((row["label"] or "").strip().casefold())
        if label is None:
            classes = ", ".join((names or labels)[1:])
            raise UserError(f"{path}, line {line}: the bundle has no class {row['label']!r}: use one of {classes}")
        try:
            first, end = int(row["start"]), int(row["end"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {line}: start and end are no frame numbers; correct the line") from error
        item = footage[clips[name]]
        if item.unlisted:
            raise UserError(
                f"{item.source} pauses {len(item.pieces) - 1 + item.unlisted} times, too often to tell where its "
                "frames are: cut the clip at its pauses, or leave out its events"
            )
        start, stop, paused = item.seconds_of(first, end)
        scored = float(item.spans[-1, 1])
        # A clip's last frames may be too few for a snippet.
        after = scored + float(item.spans[-1, 1] - item.spans[-1, 0])
        if not (0 <= start < min(stop, scored) and stop <= after):
            raise UserError(
                f"{path}, line {line}: frames {first} to {end} are not in {item.source}, which is scored for "
                f"{scored:.1f} s; correct the line"
            )
        events.append(LabelledEvent(clips[name], label, start, stop, paused))
    if not events:
        raise UserError(
            f"{path} has no event in any of the {len(footage)} labelled clips: name the file of these clips"
        )
    return events


def shaped_rules(
    labels: Sequence[str], footage: Sequence[Footage], events: Sequence[LabelledEvent], merge_gap: float
) -> dict[str, EventRule]:
    """A rule for each abnormal class, whose threshold is still to be set.

    The minimum length is half of the shortest labelled event (0.5 to 4 s), and the release level the share of the
    peak at which half of the labelled events stay in one piece for half of their time (0.3 to 0.9). Both are settled
    before normal footage is looked at, so that they cost its bound nothing.

    Args:
        labels: the m classes.
        footage: the labelled clips; empty without any.
        events: of these clips.
        merge_gap: seconds.
    """
    rules = {}
    for column, label in enumerate(labels[1:], start=1):
        mine = [event for event in events if event.label == label]
        length, release = _LENGTH, _RELEASE
        if mine:
            length = float(np.clip(min(event.end - event.start - event.paused for event in mine) / 2, *_LENGTHS))
            shares = [_share_in_one_piece(footage[event.clip], column, event) for event in mine]
            release = float(np.clip(np.median(shares), *_RELEASES))
        rules[label] = EventRule(0.5, round(0.5 * release, 4), round(length, 2), merge_gap)
    return rules


def _share_in_one_piece(footage: Footage, column: int, event: LabelledEvent) -> float:
    """The largest share of an event's peak above which one stretch covers half of the event."""
    inside = (footage.spans[:, 1] > event.start) & (footage.spans[:, 0] < event.end)
    score = footage.scores[inside, column]
    if not len(score) or score.max() <= 0:
        return _RELEASE
    peak, wanted = int(score.argmax()), max(1, len(score) // 2)
    for share in np.arange(0.95, 0.0, -0.05):
        below = np.flatnonzero(score < share * score[peak])
        left = below[below < peak].max(initial=-1)
        right = below[below > peak].min(initial=len(score))
        if right - left - 1 >= wanted:
            return float(share)
    return _RELEASES[0]


@dataclass(frozen=True)
class Outcome:
    """What becomes of a labelled event.

    Attributes:
        video, label, start, end: the event.
        peak: highest score of its class in it.
        found: whether an alarm of its class overlaps it at the thresholds.
        delay: seconds from its start to that alarm's; negative for an alarm before it; None where it is not found.
        any_class: whether an alarm of any class overlaps it.
        level: the highest threshold of its class at which it is found; None for none.
    """

    video: str
    label: str
    start: float
    end: float
    peak: float
    found: bool
    delay: float | None
    any_class: bool
    level: float | None

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {key: round(v, 6) if isinstance(v, float) else v for key, v in asdict(self).items()}


def outcomes(footage: Sequence[Footage], events: Sequence[LabelledEvent], thresholds: Thresholds) -> list[Outcome]:
    """What becomes of each event at the thresholds, and how high they could be."""
    found = []
    for event in events:
        item = footage[event.clip]
        per_class = {
            label: Track(item.scores[:, column], item.spans[:, 0], item.spans[:, 1])
            for column, label in enumerate(thresholds.classes, start=1)
        }
        own, rule = per_class[event.label], thresholds.classes[event.label].rule
        inside = (item.spans[:, 1] > event.start) & (item.spans[:, 0] < event.end)
        hits = _overlapping(own.events(rule), event)
        level = next((float(x) for x in levels() if len(_overlapping(own.events(at_level(rule, x)), event))), None)
        any_class = any(
            len(_overlapping(per_class[label].events(entry.rule), event)) for label, entry in thresholds.classes.items()
        )
        delay = float(hits[0, 0] - event.start) if len(hits) else None
        peak = float(own.score[inside].max(initial=0.0))
        found.append(
            Outcome(item.name, event.label, event.start, event.end, peak, bool(len(hits)), delay, any_class, level)
        )
    return found


def _overlapping(alarms: Floats, event: LabelledEvent) -> Floats:
    return np.asarray(alarms[(alarms[:, 1] > event.start) & (alarms[:, 0] < event.end)])


def true_classes(
    footage: Sequence[Footage], events: Sequence[LabelledEvent], labels: Sequence[str]
) -> list[NDArray[np.int64]]:
    """The class of each clip's snippets [n], by the middle of each."""
    found = [np.zeros(len(item.spans), np.int64) for item in footage]
    column: Mapping[str, int] = {label: index for index, label in enumerate(labels)}
    for event in events:
        middle = footage[event.clip].spans.mean(axis=1)
        found[event.clip][(middle >= event.start) & (middle < event.end)] = column[event.label]
    return found
