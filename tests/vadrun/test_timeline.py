from __future__ import annotations

import math
import random

import pytest

from vadrun.timeline import WRAPS, Gap, Pauses, Seen, Timeline


def test_timestamps_that_stand_still_or_go_back_are_made_to_rise() -> None:
    timeline = Timeline()
    placed = [timeline.place(time, 0.1) for time in (0.0, 0.1, 0.1, 0.05, math.nan, 0.6)]
    assert placed == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
    stuck = Timeline()
    assert [stuck.place(7.0, 0.1) for _ in range(4)] == pytest.approx([7.0, 7.1, 7.2, 7.3])


def test_one_wrong_timestamp_does_not_shift_those_after_it() -> None:
    timeline = Timeline()
    placed = [timeline.place(time, 0.1) for time in (0.0, 0.1, 0.2, 0.1, 0.3, 0.4, 0.5)]
    assert placed == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5])


def test_after_a_clock_is_set_back_time_goes_on() -> None:
    timeline = Timeline()
    placed = [timeline.place(time, 0.1) for time in (50.0, 50.1, 3.0, 3.3, 3.6, 1.0, 1.4)]
    assert placed == pytest.approx([50.0, 50.1, 50.2, 50.5, 50.8, 50.9, 51.3])


def test_a_clock_that_is_set_back_a_second_is_not_taken_for_disorder() -> None:
    seen = Seen()
    timeline = Timeline(seen=seen)
    times = [index / 25 for index in range(50)] + [1.0 + index / 25 for index in range(50)]
    placed = [timeline.place(time, 0.04) for time in times]
    assert placed == pytest.approx([index / 25 for index in range(100)])
    assert (seen.set_back, seen.set_back_at) == (1, pytest.approx(2.0))


def test_one_timestamp_from_long_ago_does_not_set_the_clock() -> None:
    seen = Seen()
    timeline = Timeline(seen=seen)
    placed = [timeline.place(time, 0.1) for time in (50.0, 50.1, 3.0, 50.3, 50.4, 50.5)]
    assert placed == pytest.approx([50.0, 50.1, 50.2, 50.3, 50.4, 50.5])
    assert seen.set_back == 0


@pytest.mark.parametrize("start", [0.0, 5000.0])
def test_a_clock_that_ffmpeg_takes_for_wrapped(start: float) -> None:
    """Set back by 100 s, it comes out 26.5 hours less 100 s later; and back again where it passes the old start."""
    wrap = WRAPS["mpegts"]
    seen = Seen()
    timeline = Timeline(wrap, seen)
    true = [start + 200 + index / 10 for index in range(100)] + [start + 100 + index / 10 for index in range(100)]
    shown = true[:100] + [time + wrap for time in true[100:150]] + true[150:]
    placed = [timeline.place(time, 0.1) for time in shown]
    assert placed == pytest.approx([start + 200 + index / 10 for index in range(200)])
    assert seen.set_back == 1


def test_usual_distances_are_no_pauses_and_longer_ones_are() -> None:
    pauses = Pauses()
    assert [pauses.judge(0.04) for _ in range(5)] == [False] * 5
    assert [pauses.judge(distance) for distance in (2.0, 2.01, 0.04, 3600.0, 0.04)] == [False, True, False, True, False]


def test_a_slow_camera_that_loses_two_frames_does_not_pause() -> None:
    pauses = Pauses()
    assert [pauses.judge(distance) for distance in (1.0, 1.0, 3.0, 1.0, 4.0)] == [False, False, False, False, True]


def test_a_camera_that_becomes_slow_for_good_has_pauses_only_at_first() -> None:
    pauses = Pauses()
    found = [pauses.judge(distance) for distance in [0.04] * 20 + [5.0] * 10 + [0.04] * 10]
    assert found == [False] * 20 + [True] * 3 + [False] * 17


def test_the_first_distance_is_told_by_the_second() -> None:
    for following, paused in ((0.04, True), (4.0, False), (5.0, False), (1.4, False), (1.1, True)):
        pauses = Pauses()
        assert pauses.judge(4.0) is None
        assert pauses.judge(4.0, following) is paused


def test_sums_of_other_kinds_are_judged_alike() -> None:
    rng = random.Random(4)
    one, other, last, start = Pauses(), Pauses(), 0, 13.37
    for _ in range(3000):
        ticks = rng.choice([3600, 3600, 3600, 180000, 180090, 181000])
        before, last = last, last + ticks
        assert one.judge(ticks / 90000) == other.judge((last / 90000 - start) - (before / 90000 - start))


def test_what_was_seen() -> None:
    seen = Seen()
    assert seen.remarks(0.0) == []
    for number in range(150):
        seen.shown(10.0 * number, 10.0 * number + 4, 10.0 * (number + 1) + (number == 7))
    assert (seen.seconds, seen.count, seen.missing) == (600.0, 150, 901.0)
    assert seen.longest == Gap(74.0, 81.0, 8) and len(seen.gaps) == 100
    document = seen.to_json()
    assert document["gaps"][0] == {"start": 4.0, "end": 10.0, "seconds": 6.0, "frames_before": 1}
    assert document["gaps_total"] == {"count": 150, "seconds": 901.0} and document["seconds_seen"] == 600.0
    assert document["frames_seen"] == 150
    assert seen.remarks(600.0) == [
        "the recording pauses 150 times (901.0 s in all, the longest from 74.0 s to 81.0 s), and no time in a pause "
        "is scored"
    ]
    assert seen.remarks(590.0)[1] == "10.0 s of the footage belong to no whole snippet and are not scored either"


def test_a_clock_that_was_set_back_is_told() -> None:
    seen = Seen()
    seen.shown(0.0, 1.0, 1.0)
    seen.was_set_back(12.0)
    assert seen.remarks(0.0) == ["its clock was set back once (first at 12.0 s), and times go on from there"]
    assert seen.to_json()["clock_set_back"] == 1
