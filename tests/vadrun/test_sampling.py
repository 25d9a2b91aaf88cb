from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import pytest

from vadrun.errors import UserError
from vadrun.sampling import Sampled, Sampler, Sampling
from vadrun.timeline import Gap, Seen

BY_TIME = Sampling(by="time", seconds=0.5)


class Camera:
    """Feeds numbered frames at the given times, and notes which are converted."""

    def __init__(self, sampling: Sampling) -> None:
        self.converted: list[int] = []
        self.sampler: Sampler[int, int] = Sampler(sampling, self._convert)

    def _convert(self, frame: int) -> int:
        self.converted.append(frame)
        return frame

    def run(self, times: Iterable[float | None], duration: float | None = 0.04) -> list[Sampled[int]]:
        snippets: list[Sampled[int]] = []
        for frame, time in enumerate(times):
            snippets += self.sampler.push(frame, time, duration)
        return snippets + self.sampler.finish()


def at_rate(rate: float, count: int) -> list[float]:
    return [index / rate for index in range(count)]


def images(snippets: list[Sampled[int]]) -> list[tuple[int, ...]]:
    return [snippet.images for snippet in snippets]


@pytest.mark.parametrize(
    ("pick", "expected"),
    [("first", [(0,), (16,)]), ("middle", [(8,), (24,)]), ("mean", [tuple(range(16)), tuple(range(16, 32))])],
)
def test_picks_of_frames(pick: str, expected: list[tuple[int, ...]]) -> None:
    sampling = Sampling(pick=pick)  # type: ignore[arg-type]
    snippets = Camera(sampling).run(at_rate(25, 32))
    assert images(snippets) == expected
    assert {len(snippet.images) for snippet in snippets} == {sampling.images_per_snippet}


@pytest.mark.parametrize(("frames", "whole"), [(16, 1), (17, 1), (31, 1), (32, 2), (47, 2), (48, 3)])
def test_the_tail_of_the_frames_is_dropped(frames: int, whole: int) -> None:
    snippets = Camera(Sampling()).run(at_rate(25, frames))
    assert [snippet.index for snippet in snippets] == list(range(whole))
    assert not any(snippet.short for snippet in snippets)


def test_no_frames_make_no_snippets() -> None:
    for sampling in (Sampling(), BY_TIME):
        assert Camera(sampling).run([]) == []


def test_a_snippet_ends_where_the_next_frame_starts() -> None:
    times = [0.0, 0.1, 0.25, 0.3, 0.7, 0.75]
    snippets = Camera(Sampling(frames=2)).run(times, duration=0.02)
    assert [(s.start, s.end) for s in snippets] == [(0.0, 0.25), (0.25, 0.7), (0.7, 0.77)]


def test_a_snippet_by_frames_ends_before_a_gap() -> None:
    snippets = Camera(Sampling(frames=2)).run([0.0, 0.1, 60.0, 60.1])
    assert [(s.start, round(s.end, 6)) for s in snippets] == [(0.0, 0.14), (60.0, 60.14)]


@pytest.mark.parametrize(
    ("pick", "expected"), [("first", (0,)), ("middle", (4,)), ("mean", (0, 1, 2, 3, 4, *[4] * 11))]
)
def test_a_video_shorter_than_a_snippet_gives_one(pick: str, expected: tuple[int, ...]) -> None:
    (snippet,) = Camera(Sampling(pick=pick)).run(at_rate(25, 5))  # type: ignore[arg-type]
    assert snippet.short
    assert snippet.images == expected
    assert (snippet.index, snippet.start, round(snippet.end, 6)) == (0, 0.0, 0.2)


def test_the_middle_of_a_short_video_is_itself_if_it_is_there() -> None:
    (snippet,) = Camera(Sampling()).run(at_rate(25, 10))
    assert snippet.images == (8,)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(pick="first"), [0, 16, 32, 48]),
        (Sampling(pick="middle"), [8, 24, 40]),
        (Sampling(pick="mean"), list(range(50))),
        (Sampling(pick="middle", by="time", seconds=0.5), [6, 18, 31, 43]),
    ],
)
def test_only_sampled_frames_are_converted_and_once_each(sampling: Sampling, expected: list[int]) -> None:
    camera = Camera(sampling)
    camera.run(at_rate(25, 50))
    assert camera.converted == expected


def test_frames_by_time_at_the_training_rate_are_those_by_frames() -> None:
    for pick in ("first", "middle", "mean"):
        by_frames = Camera(Sampling(pick=pick)).run(at_rate(30, 200), 1 / 30)
        by_time = Camera(Sampling(pick=pick, by="time", seconds=16 / 30)).run(at_rate(30, 200), 1 / 30)
        assert images(by_time) == images(by_frames)
        assert [s.start for s in by_time] == pytest.approx([s.start for s in by_frames])
        assert [s.end for s in by_time] == pytest.approx([s.end for s in by_frames])


def test_timestamps_rounded_to_milliseconds_change_nothing() -> None:
    sampling = Sampling(by="time", seconds=16 / 30)
    rounded = [round(time, 3) for time in at_rate(30, 480)]
    assert images(Camera(sampling).run(rounded, 0.033)) == [(16 * k + 8,) for k in range(30)]


def test_by_time_takes_the_frame_that_is_on_display() -> None:
    # Snippets of 0.5 s: targets at 0, 0.5, 1.0 and 1.5.
    snippets = Camera(Sampling(pick="first", by="time", seconds=0.5)).run([0.0, 0.45, 0.6, 1.0, 1.9])
    assert images(snippets) == [(0,), (1,), (3,)]
    assert [(s.start, s.end) for s in snippets] == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)]


def test_by_time_slow_cameras_repeat_frames() -> None:
    camera = Camera(Sampling(pick="mean", frames=4, by="time", seconds=0.5))
    snippets = camera.run(at_rate(4, 8), 0.25)
    assert images(snippets) == [(0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7)]
    assert camera.converted == list(range(8))


def test_one_frame_may_serve_several_snippets() -> None:
    camera = Camera(BY_TIME)
    assert images(camera.run([0.0, 1.5, 3.0], 1.5)) == [(0,)] * 3 + [(1,)] * 3 + [(2,)] * 3
    assert camera.converted == [0, 1, 2]


def test_by_time_the_grid_starts_at_the_first_timestamp() -> None:
    snippets = Camera(BY_TIME).run([7.3 + time for time in at_rate(25, 30)])
    assert [s.start for s in snippets] == pytest.approx([7.3, 7.8])


def test_there_are_no_snippets_within_a_gap() -> None:
    # Frames up to 1.16 + 0.04 s, and again from 10.2 s on.
    times = at_rate(25, 30) + [10.2 + time for time in at_rate(25, 45)]
    snippets = Camera(BY_TIME).run(times)
    assert [s.start for s in snippets] == pytest.approx([0.0, 0.5, 10.5, 11.0, 11.5])
    assert images(snippets)[2:] == [(30 + 13,), (30 + 26,), (30 + 38,)]  # on display at 10.75, 11.25 and 11.75 s
    assert [s.index for s in snippets] == [0, 1, 2, 3, 4]


PAUSED = [*(index / 25 for index in range(40)), *(2400 + index / 25 for index in range(40))]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(pick="mean"), BY_TIME], ids=["middle", "mean", "time"])
def test_no_snippet_reaches_over_a_pause(sampling: Sampling) -> None:
    camera = Camera(sampling)
    snippets = camera.run(PAUSED)
    assert max(s.end - s.start for s in snippets) == pytest.approx(0.64 if sampling.by == "frames" else 0.5)
    assert sum(s.end - s.start for s in snippets) < 3.2
    assert camera.sampler.seen.seconds == pytest.approx(3.2)
    assert camera.sampler.seen.gaps == [pytest.approx(Gap(1.6, 2400.0, 40))]


def test_frames_before_a_pause_are_not_joined_with_those_behind() -> None:
    """What is not whole is dropped, as at the end: frames 32 to 39."""
    snippets = Camera(Sampling(pick="mean")).run(PAUSED)
    assert images(snippets) == [tuple(range(k, k + 16)) for k in (0, 16, 40, 56)]
    assert [s.index for s in snippets] == [0, 1, 2, 3]
    assert [(s.first_frame, s.frames) for s in snippets] == [(0, 16), (16, 16), (40, 16), (56, 16)]
    assert [s.start for s in snippets] == pytest.approx([0.0, 0.64, 2400.0, 2400.64])
    assert [s.end for s in snippets] == pytest.approx([0.64, 1.28, 2400.64, 2401.28])


def test_truth_that_counts_frames_has_snippets_over_pauses() -> None:
    """As the reference does, whatever the times say."""
    converted: list[int] = []
    seen = Seen()
    sampler: Sampler[int, int] = Sampler(Sampling(), lambda frame: converted.append(frame) or frame, seen, joins=True)
    snippets = [s for frame, time in enumerate(PAUSED) for s in sampler.push(frame, time, 0.04)] + sampler.finish()
    assert images(snippets) == [(8,), (24,), (40,), (56,), (72,)]
    assert [(s.first_frame, s.frames) for s in snippets] == [(k, 16) for k in (0, 16, 32, 48, 64)]
    assert seen.count == 1 and seen.seconds == pytest.approx(3.2)


def test_snippets_by_time_cover_the_frames_that_are_on_display_in_them() -> None:
    snippets = Camera(BY_TIME).run(at_rate(25, 50))
    assert [(s.first_frame, s.frames) for s in snippets] == [(0, 13), (12, 13), (25, 13), (37, 13)]
    slow = Camera(BY_TIME).run(at_rate(1, 2), 1.0)
    assert [(s.first_frame, s.frames) for s in slow] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    paused = Camera(BY_TIME).run(PAUSED)
    assert [(s.first_frame, s.frames) for s in paused] == [(0, 13), (12, 13), (25, 13), (40, 13), (52, 13), (65, 13)]
    (short,) = Camera(BY_TIME).run(at_rate(25, 5))
    assert short.short and (short.first_frame, short.frames) == (0, 5)


def test_pieces_that_are_all_shorter_than_a_snippet_give_one() -> None:
    times = [100 * piece + index / 25 for piece in range(3) for index in range(10)]
    for pick, expected in (("middle", 28), ("first", 20)):
        (snippet,) = Camera(Sampling(pick=pick)).run(times)  # type: ignore[arg-type]
        assert snippet.short and snippet.images == (expected,)
        assert (snippet.first_frame, snippet.frames) == (20, 10)
        assert (snippet.index, snippet.start, snippet.end) == (0, 200.0, pytest.approx(200.4))


@pytest.mark.parametrize("interval", [1.0, 3.0, 3.34, 60.0, 3600.0])
@pytest.mark.parametrize("duration", [None, 0.04, "interval"])
def test_a_slow_camera_does_not_pause(interval: float, duration: float | str | None) -> None:
    camera = Camera(Sampling(frames=4, pick="mean"))
    camera.run([index * interval for index in range(12)], interval if duration == "interval" else duration)  # type: ignore[arg-type]
    assert camera.converted == list(range(12))
    assert camera.sampler.seen.count == 0
    snippets = Camera(Sampling(frames=4, pick="mean")).run([index * interval for index in range(12)])
    assert images(snippets) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


@pytest.mark.parametrize("duration", [0.04, 100.0])
def test_a_pause_behind_the_first_frame(duration: float) -> None:
    """Only the frames that follow tell it from a slow camera."""
    camera = Camera(Sampling(frames=4, pick="mean"))
    snippets = camera.sampler.push(0, 0.0, duration)
    for frame in range(1, 10):
        snippets += camera.sampler.push(frame, 100.0 + frame / 25, 0.04)
    snippets += camera.sampler.finish()
    assert images(snippets) == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert camera.sampler.seen.gaps == [pytest.approx(Gap(0.04, 100.04, 1))]


def test_two_frames_with_a_pause_between() -> None:
    (snippet,) = Camera(Sampling()).run([0.0, 100.0])
    assert snippet.short and (snippet.start, snippet.end) == (100.0, pytest.approx(100.04))


def test_a_frame_that_lasts_a_day_stands_for_a_minute() -> None:
    """One of many snippets by time, and not a hundred thousand."""
    day = 86400.0
    assert len(Camera(BY_TIME).run([0.0], day)) == 120
    camera = Camera(BY_TIME)
    assert len(camera.run([0.0, day, 2 * day], day)) == 360
    assert camera.sampler.seen.seconds == pytest.approx(180.0)
    assert camera.sampler.seen.missing == pytest.approx(2 * (day - 60.0))
    (snippet,) = Camera(Sampling()).run([0.0], day)
    assert snippet.short and snippet.end == 60.0


def test_a_pause_of_two_seconds_is_no_gap() -> None:
    times = [0.0, 2.0, 2.04]
    assert [s.start for s in Camera(BY_TIME).run(times)] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert Camera(BY_TIME).run([0.0, 2.1, 2.14])[0].short


def test_a_gap_given_as_the_duration_of_the_frame_before_is_still_a_gap() -> None:
    # So MP4 files of cameras that record on motion have it.
    camera = Camera(BY_TIME)
    snippets: list[Sampled[int]] = []
    for frame, time in enumerate(at_rate(25, 26) + [100.0 + time for time in at_rate(25, 26)]):
        snippets += camera.sampler.push(frame, time, 99.0 if frame == 25 else 0.04)
    snippets += camera.sampler.finish()
    assert [s.start for s in snippets] == pytest.approx([0.0, 0.5, 100.0, 100.5])


def test_a_last_frame_that_claims_to_last_for_ever_does_not() -> None:
    camera = Camera(Sampling(frames=2))
    for frame, time in enumerate([0.0, 0.1, 0.2, 0.3]):
        camera.sampler.push(frame, time, 99.0 if frame == 3 else 0.1)
    assert [snippet.end for snippet in camera.sampler.finish()] == pytest.approx([0.4])


def test_cameras_slower_than_a_frame_in_two_seconds_have_no_gaps() -> None:
    snippets = Camera(Sampling(by="time", seconds=4.0)).run([0.0, 4.0, 8.0], 4.0)
    assert images(snippets) == [(0,), (1,), (2,)]


def test_a_timestamp_far_off_costs_neither_time_nor_memory() -> None:
    snippets = Camera(BY_TIME).run([0.0, 0.04, 1e9, 1e9 + 0.6, 1e9 + 1.1])
    assert 1 <= len(snippets) < 5


def test_by_time_the_tail_is_dropped() -> None:
    assert len(Camera(BY_TIME).run(at_rate(25, 37))) == 2  # 1.48 s
    assert len(Camera(BY_TIME).run(at_rate(25, 38))) == 3  # 1.52 s


@pytest.mark.parametrize(("pick", "expected"), [("first", (0,)), ("middle", (4,)), ("mean", (0, 1, 3, 4, 4, 4, 4, 4))])
def test_by_time_a_short_video_gives_one_snippet(pick: str, expected: tuple[int, ...]) -> None:
    sampling = Sampling(pick=pick, frames=8, by="time", seconds=0.5)  # type: ignore[arg-type]
    (snippet,) = Camera(sampling).run(at_rate(25, 5))
    assert snippet.short
    assert snippet.images == expected
    assert (snippet.start, round(snippet.end, 6)) == (0.0, 0.2)


def test_frames_without_timestamps_follow_at_the_nominal_rate() -> None:
    snippets = Camera(Sampling(frames=2)).run([None] * 6, duration=0.1)
    assert [s.start for s in snippets] == pytest.approx([0.0, 0.2, 0.4])


def test_a_clock_set_back_makes_no_snippet_backwards() -> None:
    times = at_rate(25, 75) + at_rate(25, 75)
    for sampling in (Sampling(), BY_TIME):
        snippets = Camera(sampling).run(times)
        assert all(s.start < s.end for s in snippets)
        assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(snippets))
        assert snippets[-1].end > 5.4


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(pick="mean"), BY_TIME], ids=["by frames", "mean", "time"])
def test_frames_are_let_go(sampling: Sampling) -> None:
    class Frame:
        pass

    sampler: Sampler[Frame, int] = Sampler(sampling, lambda frame: 0)
    living: weakref.WeakSet[Frame] = weakref.WeakSet()
    for index in range(2000):
        frame = Frame()
        living.add(frame)
        sampler.push(frame, index / 25, 0.04)
        del frame
        assert len(living) <= 1


def test_a_snippet_comes_with_the_first_frame_after_it() -> None:
    camera = Camera(Sampling(frames=4))
    counts = [len(camera.sampler.push(index, index / 25, 0.04)) for index in range(9)]
    assert counts == [0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(frames=8, pick="mean"), Sampling(pick="first", by="time", seconds=0.64)],
)
def test_the_manifest_holds_everything(sampling: Sampling) -> None:
    assert Sampling.from_manifest(sampling.to_manifest()) == sampling


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"frames": 0}, "frames"),
        ({"frames": 16.0}, "frames"),
        ({"frames": True}, "frames"),
        ({"pick": "last"}, "pick"),
        ({"by": "length"}, "by"),
        ({"seconds": 0.5}, "seconds"),
        ({"by": "time"}, "seconds"),
        ({"by": "time", "seconds": 0}, "seconds"),
        ({"by": "time", "seconds": math.inf}, "seconds"),
        ({"by": "time", "seconds": "1"}, "seconds"),
        ({"stride": 2}, "stride"),
    ],
)
def test_wrong_manifests_are_refused_by_name(change: dict[str, object], names: str) -> None:
    with pytest.raises(UserError, match=rf"sampling.*\b{re.escape(names)}\b"):
        Sampling.from_manifest({**Sampling().to_manifest(), **change})


def test_a_missing_key_is_refused_by_name() -> None:
    manifest = Sampling().to_manifest()
    del manifest["pick"]
    with pytest.raises(UserError, match=r"sampling.*'pick'"):
        Sampling.from_manifest(manifest)
    with pytest.raises(UserError, match="sampling"):
        Sampling.from_manifest([])  # type: ignore[arg-type]


def test_sampling_needs_no_video_library() -> None:
    code = "import sys, vadrun.sampling; assert not {'av', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize(
    "values",
    [
        {"frames": 1025},
        {"frames": 10**400},
        {"by": "time", "seconds": 1e-9},
        {"by": "time", "seconds": 86400},
        {"by": "time", "seconds": 10**400},
    ],
)
def test_a_snippet_is_bounded(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"sampling: (frames|seconds) is .* but must be "):
        Sampling(**values)
