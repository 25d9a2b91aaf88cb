from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tests import clips
from tests.vadrun.reading import SMALL, cut, same
from vadrun import groups
from vadrun.decoders import SoftwareDecoder
from vadrun.gate import GateRule
from vadrun.groups import Taken, Worker
from vadrun.pyav import SIDE_DATA
from vadrun.reader import Reader
from vadrun.sampling import Sampling
from vadrun.skipping import Irregular, Skipped
from vadrun.video import Video

FRAMES = 16 * 9 + 5

LAYERS = "log-level=none:open-gop=0:keyint=24:bframes=4:b-pyramid=1:temporal-layers=3"
# Codec, options, and whether the stream has closed groups.
WAYS = {
    "b-frames": ("libx264", {"bf": "3", "g": "40"}, True),
    "pyramid": ("libx264", {"x264-params": "log-level=none:b-pyramid=normal:bframes=5:keyint=50"}, True),
    "short groups": ("libx264", {"bf": "2", "g": "7"}, True),
    "intra": ("libx264", {"g": "1"}, True),
    "open H.264": ("libx264", {"x264-params": "log-level=none:open-gop=1:bframes=3:keyint=30"}, True),
    "no key pictures": ("libx264", {"x264-params": "log-level=none:intra-refresh=1:keyint=30"}, True),
    "HEVC": ("libx265", {"x265-params": "log-level=none:open-gop=0:keyint=24:bframes=3"}, True),
    "open HEVC": ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=24:bframes=3"}, True),
    "HEVC layers": ("libx265", {"x265-params": LAYERS}, True),
    "another codec": ("mpeg4", {"g": "12"}, False),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Display times of what workers decode."""
    found: list[int] = []
    take = Worker._take

    def watch(self: Worker[Any], frames: Sequence[av.VideoFrame], *rest: Any) -> None:
        found.extend(frame.pts for frame in frames if frame.pts is not None)
        take(self, list(frames), *rest)

    monkeypatch.setattr(Worker, "_take", watch)
    return found


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("way", list(WAYS))
def test_what_is_left_out_changes_nothing(tmp_path: Path, ending: str, way: str, taken: list[int]) -> None:
    codec, options, grouped = WAYS[way]
    path = clips.skippable(tmp_path / f"clip.{ending}")
    clips.write_clip(path, FRAMES, codec=codec, options=options)
    assert len(same(path, "groups", threads=2)) == 9
    assert len(same(path, "groups", Sampling(pick="first"), threads=1)) == 9
    assert bool(taken) == grouped
    if "layers" in way:  # of those, a third or so is left out
        taken.clear()
        cut(path, "groups")
        assert len(taken) < 0.8 * FRAMES


def test_only_what_is_wanted_is_decoded(tmp_path: Path, taken: list[int]) -> None:
    """Groups of seven: those with a middle in them, up to it; those that begin in the first 34 pictures whole."""
    path = clips.write_clip(tmp_path / "clip.mkv", FRAMES, options={"g": "7", "bf": "0"}, rate=25)
    assert len(cut(path, "groups")[0]) == 9
    middles = [16 * snippet + 8 for snippet in range(9)]
    groups_of = [(m // 7 * 7, m if m >= 35 else m // 7 * 7 + 6) for m in middles]
    expected = {n for n in range(FRAMES) if any(first <= n <= last for first, last in groups_of)}
    assert sorted(round(pts / 40) for pts in taken) == sorted(expected)


def test_other_samplings_decode_everything(tmp_path: Path, taken: list[int]) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 64)
    for sampling in (Sampling(pick="mean"), Sampling(by="time", seconds=0.64)):
        same(path, "groups", sampling)
    assert not taken


def test_crops(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 64)
    crops = [("centre", False), ("top-left", True)]
    found = []
    for ahead in (False, True):
        with Video(path) as video:
            video.looks_ahead = ahead
            found.append([snippet.images for snippet in video.snippets(Sampling(), SMALL, crops)])
    assert found[0][0].shape == (1, 2, 64, 64, 3)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("frames", [1, 7, 15, 16, 17, 31])
def test_short_videos(tmp_path: Path, frames: int) -> None:
    same(clips.write_clip(tmp_path / "clip.mp4", frames, options={"bf": "3", "g": "5"}), "groups", threads=2)


def test_rotated_and_late(tmp_path: Path) -> None:
    """What the container tells of a picture reaches workers that have a container of their own."""
    path = clips.write_clip(tmp_path / "clip.mp4", 80, options={"g": "5"}, rotation=90)
    same(path, "groups", threads=3)
    times = np.cumsum(np.random.default_rng(5).uniform(0.02, 0.2, 80)).round(3)
    same(
        clips.write_clip(tmp_path / "clip.mkv", 80, times=list(times), options={"g": "9", "bf": "3"}),
        "groups",
        threads=3,
    )


def test_groups_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> None:
    monkeypatch.setattr(groups, "_LONGEST", 20)
    assert len(same(clips.write_clip(tmp_path / "clip.mp4", FRAMES, options={"g": "40"}), "groups")) == 9
    assert not taken


@pytest.mark.parametrize("share", [0.1, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("ending", ["ts", "mp4", "mkv"])
def test_damage(tmp_path: Path, ending: str, share: float) -> None:
    """It comes out as with every picture decoded."""
    path = clips.write_clip(tmp_path / f"clip.{ending}", FRAMES, options={"bf": "3", "g": "12"})
    spoilt = clips.spoil(path, share, 900)
    quick, one = cut(spoilt, "groups", threads=1)  # FFmpeg's threads patch damage by their timing
    plain, other = cut(spoilt, "every picture", threads=1)
    if one.damage != other.damage:  # damage that nobody has looked at is not known of, and changes nothing
        assert one.damage is None or str(other.damage).startswith(one.damage.removesuffix(")"))
        plain, _ = cut(path if one.damage is None else spoilt, "every picture", threads=1)
    if one.damage in (None, other.damage):
        assert [(s.index, s.start, s.end) for s in quick] == [(s.index, s.start, s.end) for s in plain]
        for a, b in zip(quick, plain, strict=True):
            np.testing.assert_array_equal(a.images, b.images)


def test_a_cut_file_says_so(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", FRAMES, container_options={"movflags": "faststart"})
    _, video = cut(clips.cut(path, 0.6), "groups")
    assert video.damage is not None and "ends early" in video.damage
    assert video._anew == SIDE_DATA  # and is not read again for that


@pytest.mark.parametrize("ending", ["mp4", "mkv", "nut"])
def test_display_times_that_are_decoding_times(tmp_path: Path, ending: str) -> None:
    """As sloppy recorders have them: pictures then come out in another order than that of their times."""
    source = clips.write_clip(tmp_path / "clip.mkv", FRAMES, options={"bf": "3", "g": "40"})
    path = tmp_path / f"sloppy.{ending}"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0], opaque=True)
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            out.mux(packet)
    same(path, "groups", threads=2)


def test_a_second_reading_stops_when_nobody_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips.spoil(clips.write_clip(tmp_path / "clip.ts", 400, options={"g": "8", "bf": "0"}), 0.8, 900)
    decoded = 0
    pictures = Reader.pictures

    def count(self: Reader) -> Iterator[Any]:
        nonlocal decoded
        for picture in pictures(self):
            decoded += 1
            yield picture

    monkeypatch.setattr(Reader, "pictures", count)
    with Video(path) as video:
        for snippet in video.snippets(Sampling(), SMALL):
            if snippet.index == 5:
                video.stopped = lambda: True
    assert decoded < 60


def nals(data: bytes) -> Iterator[bytes]:
    for part in data.split(b"\0\0\1")[1:]:
        yield part.rstrip(b"\0")


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 0)])
def test_parameter_sets_that_come_once(tmp_path: Path, taken: list[int], order: tuple[int, ...]) -> None:
    """Several encodings in one stream, each with its parameter sets before its first key picture only."""
    path = tmp_path / "clip.nut"  # its muxer leaves packets as they are
    in_force: set[bytes] = set()
    with av.open(str(path), "w") as out:
        stream: Any = None
        number = 0
        for part, kind in enumerate(order):
            params = f"log-level=none:keyint=8:bframes=0:chroma-qp-offset={6 * kind}"
            piece = clips.write_clip(
                tmp_path / f"{part}.ts",
                64,
                options={"x264-params": params, "crf": "35"},
                draw=lambda n, w, h, p=part: colourful(n + 64 * p, w, h),
            )
            with av.open(str(piece)) as container:
                if stream is None:
                    stream = out.add_stream_from_template(container.streams.video[0], opaque=True)
                for packet in container.demux(video=0):
                    if packet.size:
                        units = list(nals(bytes(packet)))
                        sets = {unit for unit in units if unit[0] & 31 in (7, 8)}
                        kept = [unit for unit in units if unit not in sets or not sets <= in_force]
                        in_force = sets or in_force
                        copy = av.Packet(b"".join(b"\0\0\0\1" + unit for unit in kept))
                        copy.pts = copy.dts = number
                        copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 25), stream, packet.is_keyframe
                        number += 1
                        out.mux(copy)
    for threads in (1, 2, 4):
        snippets = same(path, "groups", threads=threads)
        _, video = cut(path, "groups", threads=threads)
        assert video._anew == SIDE_DATA  # it was not read again for want of them
        assert [clips.number_of(s.images[0]) for s in snippets] == [16 * n + 8 for n in range(4 * len(order))]
    assert bool(taken) == SIDE_DATA


def colourful(number: int, width: int, height: int) -> clips.Image:
    image = clips.numbered(number, width, height)
    image[: height // 8, :, 0] = 255
    image[-height // 8 :, :, 2] = np.linspace(0, 255, width)
    return image


def in_groups(
    path: Path, make: Callable[[], Callable[[av.VideoFrame], Any]], threads: int
) -> Iterator[Taken | Skipped]:
    reader = Reader(path, lambda stream: SoftwareDecoder(stream, 1))
    try:
        yield from reader.in_groups(lambda rank: rank % 16 == 8, make, lambda: threads)
    finally:
        reader.close()


def test_groups_are_decoded_at_once(tmp_path: Path) -> None:
    """The first picture of each of two waits for the other's."""
    path = clips.write_clip(tmp_path / "clip.mp4", 64, options={"g": "32"})
    both = threading.Barrier(2)
    names: set[str] = set()

    def make() -> Callable[[av.VideoFrame], str]:
        def once(frame: av.VideoFrame) -> str:
            name = threading.current_thread().name
            if name not in names:
                names.add(name)
                both.wait(timeout=20)
            return name

        return once

    found = [place for place in in_groups(path, make, 2) if isinstance(place, Taken)]
    assert len(found) == 4 and len({place.made for place in found}) == 2


def test_no_more_groups_are_decoded_at_once_than_may_be(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 160, options={"g": "16"})
    inside: set[str] = set()
    most = 0

    def slowly(frame: av.VideoFrame) -> None:
        nonlocal most
        inside.add(threading.current_thread().name)
        most = max(most, len(inside))
        threading.Event().wait(0.02)
        inside.discard(threading.current_thread().name)

    assert sum(isinstance(place, Taken) for place in in_groups(path, lambda: slowly, 1)) == 10
    assert most == 1


def test_whoever_stops_early_stops_the_workers(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 200, options={"g": "10"})
    pictures = in_groups(path, lambda: lambda frame: frame.pts, 2)
    next(pictures)
    pictures.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("vadrun-decoder") for thread in threading.enumerate())


def test_an_error_in_making_comes_out(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 64)

    def fail(frame: av.VideoFrame) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_groups(path, lambda: fail, 2))


@pytest.mark.parametrize("lost", [4, 8])
def test_a_lost_picture_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """One that is wanted, or one before it: were a packet to give no picture, places would be off by one."""
    path = clips.write_clip(tmp_path / "clip.mkv", 64, options={"g": "32", "bf": "0"})
    take = Worker._take

    def lose(self: Worker[Any], frames: Sequence[av.VideoFrame], *rest: Any) -> None:
        take(self, [frame for frame in frames if frame.pts != 40 * lost], *rest)

    monkeypatch.setattr(Worker, "_take", lose)
    with pytest.raises(Irregular):
        list(in_groups(path, lambda: lambda frame: None, 1))
    assert len(same(path, "groups")) == 4  # the video is then read with every picture decoded


@pytest.mark.parametrize(("pts", "corrupt", "regular"), [(5, False, True), (5, True, False), (3, False, False)])
def test_a_corrupt_picture_or_one_that_comes_too_late_is_noticed(
    tmp_path: Path, pts: int, corrupt: bool, regular: bool
) -> None:
    """Whether it is wanted or not."""
    with av.open(str(clips.write_clip(tmp_path / "clip.mp4", 4))) as container:
        worker: Worker[int] = Worker(container.streams.video[0].codec_context, lambda frame: frame.pts)
        frames: Any = [SimpleNamespace(pts=4, is_corrupt=False), SimpleNamespace(pts=pts, is_corrupt=corrupt)]
        for wanted in ({pts}, set()):
            worker._shown = 0
            missing, found = {4, pts}, dict[int, int]()
            if regular:
                worker._take(frames, wanted, missing, found)
                assert not missing and set(found) == wanted
            else:
                with pytest.raises(Irregular):
                    worker._take(frames, wanted, missing, found)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("lost", [70, 71, 72, 73, 74])
def test_a_missing_picture_in_what_nobody_looks_at(tmp_path: Path, codec: str, lost: int) -> None:
    """Behind it the decoder may drop others, which are counted for nothing then."""
    params = "log-level=none:keyint=40:min-keyint=40:scenecut=0:open-gop=0:bframes=2"
    options = {("x264" if codec == "libx264" else "x265") + "-params": params}
    path = clips.write_clip(tmp_path / "clip.ts", 160, codec=codec, options=options)
    path.write_bytes(clips.without_picture(path.read_bytes(), lost))
    plain, one = cut(path, "every picture", threads=1)
    for way in ("groups", "skipping"):
        quick, other = cut(path, way, threads=1)
        assert [(s.start, s.end) for s in quick] == [(s.start, s.end) for s in plain]
        assert other.damage == one.damage
        for a, b in zip(quick, plain, strict=True):
            np.testing.assert_array_equal(a.images, b.images)
    with Video(path, threads=1) as video:
        gated = list(video.snippets(None, SMALL, gate=GateRule(threshold=1.0, audit=1e-9, heartbeat=1e6)))
        # A picture that the decoder drops may have had its place before the hole was seen, which is said.
        assert len(gated) == len(plain)
        assert np.abs([a.start - b.start for a, b in zip(gated, plain, strict=True)]).max() <= 2 / 25 + 1e-6
        assert (video.damage is None) == (one.damage is None)
        if video.damage is None:
            assert [(s.start, s.end) for s in gated] == [(s.start, s.end) for s in plain]


def test_a_timestamp_that_is_far_off_is_noticed(tmp_path: Path, taken: list[int]) -> None:
    """Nobody can tell its place in the order of display but the decoder."""
    for picture in (60, 75):
        path = clips.write_clip(tmp_path / "clip.ts", 100, options={"g": "40", "bf": "0"})
        clips.set_clock(clips.set_clock(path, picture, 1.2), picture + 1, -1.2)
        same(path, "groups")


def test_a_worker_keeps_the_limit_on_pictures(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", codec="libx265", options={"x265-params": "log-level=none"})
    reader = Reader(path, lambda stream: SoftwareDecoder(stream, 1))
    context = reader.stream.codec_context
    Worker(context, lambda frame: frame)
    assert context.options == {"max_pixels": "40000000", "err_detect": "explode"}
    reader.close()
