from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.vadcalibrate.conftest import Make
from vadcalibrate.alarms import set_thresholds
from vadcalibrate.labelled import LabelledEvent, outcomes, read_events, shaped_rules, true_classes
from vadrun import UserError

LABELS = ("normal", "fight", "fire")


def events_file(folder: Path, *lines: str) -> Path:
    path = folder / "events.csv"
    path.write_text("\n".join(["video,label,start,end", *lines]) + "\n")
    return path


def test_events_are_read(make_footage: Make, tmp_path: Path) -> None:
    clips = [make_footage(np.zeros((20, 2)), name=name) for name in ("a", "b")]
    path = events_file(tmp_path, "a,Fight,30,150", "videos/b.mp4,fire,0,30", "other,what,0,1")
    assert read_events(path, clips, LABELS) == [LabelledEvent(0, "fight", 1.0, 5.0), LabelledEvent(1, "fire", 0.0, 1.0)]
    truth = true_classes(clips, read_events(path, clips, LABELS), LABELS)
    assert truth[0].tolist() == [0, 1, 1, 1, 1] + [0] * 15
    assert truth[1].tolist() == [2] + [0] * 19


def test_frames_are_counted_over_pauses(make_footage: Make, tmp_path: Path) -> None:
    """Ten seconds of 30 frames a second, a pause of a thousand, and ten more."""
    clip = make_footage(np.zeros((20, 2)), name="a")
    spans = clip.spans + np.where(np.arange(20) < 10, 0.0, 1000.0)[:, None]
    clip = replace(clip, spans=spans, pieces=((0, 0.0), (300, 1010.0)))
    path = events_file(tmp_path, "a,fight,270,300", "a,fight,300,330", "a,fire,240,330")
    events = read_events(path, [clip], LABELS)
    assert events == [
        LabelledEvent(0, "fight", 9.0, 10.0),
        LabelledEvent(0, "fight", 1010.0, 1011.0),
        LabelledEvent(0, "fire", 8.0, 1011.0, 1000.0),
    ]
    assert true_classes([clip], events[:2], LABELS)[0].tolist() == [0] * 9 + [1, 1] + [0] * 9
    assert shaped_rules(LABELS, [clip], events, 2.0)["fire"].min_length == 1.5  # half of 3 s: the pause is no event
    with pytest.raises(UserError, match=r"a\.mp4 pauses 8 times, too often to tell where its frames are: cut the clip"):
        read_events(path, [replace(clip, unlisted=7)], LABELS)


def test_events_may_name_classes_as_annotations_do(make_footage: Make, tmp_path: Path) -> None:
    clips = [make_footage(np.zeros((20, 2)), name="a")]
    names = ("A", "fire", "G")  # the first class's label is "fight"; "fire" is its name and the second one's label
    events = read_events(events_file(tmp_path, "a,FIRE,0,30", "a,g,30,60", "a,fight,60,90"), clips, LABELS, names)
    assert [event.label for event in events] == ["fight", "fire", "fight"]
    with pytest.raises(UserError, match="has no class 'riot': use one of fire, G"):
        read_events(events_file(tmp_path, "a,riot,0,30"), clips, LABELS, names)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,riot,0,30", "has no class 'riot': use one of fight, fire"),
        ("a,fight,x,30", "are no frame numbers"),
        ("a,fight,3000,3030", "are not in a.mp4, which is scored for 20.0 s"),
        ("a,fight,300,3000", "frames 300 to 3000 are not in a.mp4, which is scored for 20.0 s"),
        ("a,fight,30,30", "are not in a.mp4"),
        ("c,fight,0,30", "has no event in any of the 1 labelled clips"),
    ],
)
def test_wrong_events_are_refused(make_footage: Make, tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_events(events_file(tmp_path, line), [make_footage(np.zeros((20, 2)), name="a")], LABELS)


def test_what_is_no_file_of_events(make_footage: Make, tmp_path: Path) -> None:
    clips = [make_footage(np.zeros((20, 2)), name="a")]
    (tmp_path / "e.csv").write_text("name,what\n")
    with pytest.raises(UserError, match="does not have the columns video,label,start,end"):
        read_events(tmp_path / "e.csv", clips, LABELS)
    with pytest.raises(UserError, match="it does not exist: name a file of events"):
        read_events(tmp_path / "none.csv", clips, LABELS)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="it is not a regular file: name a file of events"):
        read_events(tmp_path / "pipe.csv", clips, LABELS)
    with pytest.raises(UserError, match="two labelled clips are called 'a'"):
        read_events(events_file(tmp_path, "a,fight,0,30"), clips * 2, LABELS)


def test_rules_take_their_shape_from_labelled_events(make_footage: Make) -> None:
    scores = np.zeros((20, 2))
    scores[5:11, 0] = [0.8, 0.4, 0.8, 0.8, 0.4, 0.4]
    rules = shaped_rules(LABELS, [make_footage(scores)], [LabelledEvent(0, "fight", 5.0, 11.0)], 7.0)
    assert rules["fight"].min_length == 3.0  # half of it
    assert rules["fight"].low / rules["fight"].threshold == pytest.approx(0.5)  # one piece of half of it
    assert (rules["fire"].min_length, rules["fire"].low, rules["fire"].merge_gap) == (1.0, 0.4, 7.0)


def test_what_becomes_of_an_event(make_footage: Make) -> None:
    quiet = make_footage(np.full((86400, 2), 0.2))
    rules = shaped_rules(LABELS, [], [], 2.0)
    thresholds = set_thresholds([quiet], rules, 3.0, 0.95)
    scores = np.full((40, 2), 0.01)
    scores[10:15, 0] = 0.9
    scores[30:33, 0] = 0.9
    events = [
        LabelledEvent(0, "fight", 8.0, 14.0),
        LabelledEvent(0, "fire", 30.0, 33.0),
        LabelledEvent(0, "fire", 20, 25),
    ]
    first, second, third = outcomes([make_footage(scores)], events, thresholds)
    assert first.found and first.any_class and first.delay == pytest.approx(2.0) and first.peak == pytest.approx(0.9)
    assert first.level is not None and 0.88 < first.level <= 0.9
    assert not second.found and second.any_class and second.delay is None and second.level is None
    assert not third.any_class
