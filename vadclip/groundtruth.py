"""Which frames of a test set are anomalous, from the data sets' own annotation files.

Four formats are told apart by their first line. Frames count from 0 and the end of an event is exclusive.

* UCF-Crime's ``Temporal_Anomaly_Annotation.txt``: ``NAME CLASS START END START END``, -1 where there is no
  (second) event;
* XD-Violence's ``annotations.txt``: ``NAME START END [START END ...]``, without classes;
* its multi-class file: ``NAME CLASS START END [CLASS START END ...]``;
* for data sets of your own, a CSV with the columns ``video,label,start,end``, a line for each event. It may be
  separated by semicolons or tabs, its columns may come in any order, and there may be others.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadclip.metrics import FRAMES_PER_SNIPPET, NORMAL_TAGS
from vadclip.tables import delimiter_of, parse_table, read_table, read_text, required, split
from vadrun.errors import UserError

NORMAL_LABEL = "A"
"""The label of a normal video's one segment, as in the authors' arrays."""
COUNTS_COLUMN = "n_snippets_PEL4VAD_floor"
CSV_COLUMNS = ("video", "label", "start", "end")
# Features drop a video's tail, and decoders differ by a few frames: events may reach this far beyond the end.
_SLACK_SNIPPETS = 2


@dataclass(frozen=True)
class Event:
    """An annotated event.

    Attributes:
        start: its first frame.
        end: the frame after its last one.
        label: its class, None where the file does not tell.
    """

    start: int
    end: int
    label: str | None


Annotations = Mapping[str, tuple[Event, ...]]
"""Video name -> its events, none for a normal video."""


@dataclass(frozen=True)
class VideoTruth:
    """What is known of one test video.

    Attributes:
        name: its name without ending and crop number.
        frames: how many frames its features stand for.
        events: its events as annotated; an end may lie beyond ``frames``. None for a normal video.
    """

    name: str
    frames: int
    events: tuple[Event, ...]

    @property
    def normal(self) -> bool:
        """Whether nothing anomalous is annotated."""
        return not self.events

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool [frames], true where a frame is anomalous."""
        mask = np.zeros(self.frames, bool)
        for event in self.events:
            mask[event.start : event.end] = True
        return mask

    @property
    def segments(self) -> list[tuple[int, int]]:
        """(start, end) of each event; a normal video is one segment from end to end."""
        return [(event.start, event.end) for event in self.events] or [(0, self.frames)]

    @property
    def labels(self) -> list[str]:
        """The class of each segment; :data:`NORMAL_LABEL` for that of a normal video.

        Raises:
            UserError: the annotations hold no classes.
        """
        if any(event.label is None for event in self.events):
            raise UserError(f"the annotations of {self.name!r} hold no classes: use the multi-class annotation file")
        return [str(event.label) for event in self.events] or [NORMAL_LABEL]


def video_name(name: str) -> str:
    """A video's name as annotations and lists share it: no folder, no ending of a file, no crop number of features.

    Example:
        >>> video_name("features/Abuse028_x264__5.npy")
        'Abuse028_x264'
        >>> video_name("videos/gate__1.mp4")
        'gate__1'
    """
    base = re.split(r"[/\\]", name.strip())[-1]
    # Names of XD-Violence have points in them, so only endings that are known come off.
    return re.sub(r"((__\d)?\.npy|\.(mp4|avi|mkv|mov|webm|m4v|mpg|mpeg|wmv|flv))$", "", base, flags=re.IGNORECASE)


def read_annotations(path: str | Path) -> dict[str, tuple[Event, ...]]:
    """The events of each video of an annotation file, in the order of the file.

    Raises:
        UserError: the file cannot be read, or a line has another form than the first one, holds no whole event,
            or names a video a second time; the sentence gives its number.
    """
    path = Path(path)
    text = read_text(path, "an annotation file")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: name an annotation file")
    if _is_csv(lines[0][1]):
        return _read_csv(path, text)
    parse = _format(path, lines[0][1].split())
    found: dict[str, tuple[Event, ...]] = {}
    for number, line in lines:
        name, *fields = line.split()
        try:
            events = parse(fields)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; correct the line") from error
        if (name := video_name(name)) in found:
            raise UserError(f"{path}, line {number}: the video {name!r} is there a second time; remove one line")
        found[name] = events
    return found


def read_counts(path: str | Path, column: str = COUNTS_COLUMN) -> dict[str, int]:
    """Snippets of each test video in order, from a CSV with the columns ``video`` and ``column``.

    A video without a number in that column is left out.

    Raises:
        UserError: the file cannot be read, has no such column, or a count is no whole number above 0.
    """
    path = Path(path)
    counts: dict[str, int] = {}
    for line, row in read_table(path, ("video", column.lower())):
        value = row[column.lower()]
        if not value:
            continue
        if not re.fullmatch(r"[0-9]{1,15}", value) or int(value) < 1:
            raise UserError(f"{path}, line {line}: {value!r} is no number of snippets; correct the line")
        counts[video_name(required(path, line, row, "video"))] = int(value)
    return counts


def ground_truth(annotations: Annotations, snippets: Mapping[str, int]) -> list[VideoTruth]:
    """The truth of each video in ``snippets``; one without annotation is normal.

    Args:
        annotations: of :func:`read_annotations`; videos beyond those in ``snippets`` are ignored.
        snippets: video name -> number of its snippets, each of 16 frames.

    Raises:
        UserError: an event lies beyond the end of its video, so annotations and features are not of the same
            video, or no annotated video is among them at all.
    """
    if annotations and not any(name in annotations for name in snippets):
        example = next(iter(snippets), None)
        raise UserError(
            f"none of the {len(snippets)} videos (such as {example!r}) is in the annotations (such as "
            f"{next(iter(annotations))!r}): name the annotation file of this test list"
        )
    truth = []
    for name, count in snippets.items():
        video = VideoTruth(name, count * FRAMES_PER_SNIPPET, tuple(annotations.get(name, ())))
        for event in video.events:
            beyond = event.end > video.frames + _SLACK_SNIPPETS * FRAMES_PER_SNIPPET
            if beyond or event.start >= video.frames:
                raise UserError(
                    f"{name!r} has {count} snippets, which are {video.frames} frames, but an event is annotated from "
                    f"frame {event.start} to {event.end}: the list and the annotations are not of the same videos, or "
                    "features are cut short"
                )
        truth.append(video)
    return truth


def _is_csv(header: str) -> bool:
    """Whether a first line is the header of a table rather than an annotation of one of the data sets."""
    try:
        cells = {cell.lower() for cell in split(header, delimiter_of(header))}
    except csv.Error:
        return False
    return len(cells) > 1 and not cells.isdisjoint(CSV_COLUMNS)


def _format(path: Path, fields: Sequence[str]) -> Callable[[Sequence[str]], tuple[Event, ...]]:
    """The reader for lines of the form of ``fields``, the first line: name and all."""
    rest = fields[1:]
    if len(rest) >= 2 and _is_frame(rest[0]):
        return _parse_plain
    if len(rest) == 5 and all(map(_is_frame, rest[1:])):
        return _parse_ucf
    if len(rest) >= 3 and _is_frame(rest[1]):
        return _parse_classes
    raise UserError(
        f"{path}, line 1: it is no annotation of UCF-Crime (NAME CLASS START END START END), of XD-Violence "
        "(NAME [CLASS] START END ...) and no CSV of video,label,start,end; name an annotation file"
    )


def _parse_ucf(fields: Sequence[str]) -> tuple[Event, ...]:
    if len(fields) != 5:
        raise ValueError(f"there are {len(fields) + 1} fields instead of NAME CLASS START END START END")
    label = fields[0]
    pairs = [(fields[1], fields[2]), (fields[3], fields[4])]
    events = tuple(_event(start, end, label) for start, end in pairs if (start, end) != ("-1", "-1"))
    if (label in NORMAL_TAGS) != (not events):
        raise ValueError(f"{label!r} video with {len(events)} events")
    return events


def _parse_plain(fields: Sequence[str]) -> tuple[Event, ...]:
    if not fields or len(fields) % 2:
        raise ValueError("the frames are not pairs of START END")
    return tuple(_event(fields[i], fields[i + 1], None) for i in range(0, len(fields), 2))


def _parse_classes(fields: Sequence[str]) -> tuple[Event, ...]:
    if not fields or len(fields) % 3:
        raise ValueError("the fields after the name are not triples of CLASS START END")
    return tuple(_event(fields[i + 1], fields[i + 2], fields[i]) for i in range(0, len(fields), 3))


def _read_csv(path: Path, text: str) -> dict[str, tuple[Event, ...]]:
    found: dict[str, tuple[Event, ...]] = {}
    for line, row in parse_table(path, text, CSV_COLUMNS):
        name, label = (required(path, line, row, column) for column in ("video", "label"))
        try:
            event = _event(row["start"], row["end"], label)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}; correct the line") from error
        name = video_name(name)
        found[name] = (*found.get(name, ()), event)
    return found


def _is_frame(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,15}", text) is not None


def _event(start: str, end: str, label: str | None) -> Event:
    if not (_is_frame(start) and _is_frame(end)):
        raise ValueError(f"{start!r} to {end!r} are no frame numbers")
    if not 0 <= int(start) < int(end):
        raise ValueError(f"frame {start} to {end} is no event")
    return Event(int(start), int(end), label)
