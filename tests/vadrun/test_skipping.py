from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests import clips
from tests.vadrun.reading import SMALL, cut, same
from vadrun.gate import GateRule
from vadrun.sampling import Sampling
from vadrun.skipping import Irregular, Skipped, Skipper
from vadrun.video import Video, _wanted

FRAMES = 16 * 9 + 5

WAYS = {
    "b-frames": {"bf": "3", "g": "40"},
    "pyramid": {"bf": "5", "x264-params": "log-level=none:b-pyramid=normal:bframes=5:keyint=50"},
    "open-gop": {"x264-params": "log-level=none:open-gop=1:bframes=3:keyint=30"},
    "no b-frames": {"bf": "0"},
    "intra": {"g": "1"},
}
HEVC = {
    "closed": "open-gop=0:keyint=30:bframes=3",
    "open": "open-gop=1:keyint=30:bframes=4",
    "layers": "open-gop=0:keyint=30:bframes=4:b-pyramid=1:temporal-layers=3",
    "no b-frames": "bframes=0",
}


def skipped(path: Path) -> int:
    with Video(path) as video:
        skipper = video._reader.skipper
        assert skipper is not None
        skipper.wanted = _wanted(Sampling())
        return sum(isinstance(frame, Skipped) for frame, _, _ in video.shown())


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize("way", list(WAYS))
def test_what_is_skipped_changes_nothing(tmp_path: Path, ending: str, way: str) -> None:
    path = clips.write_clip(tmp_path / f"clip.{ending}", FRAMES, options=WAYS[way])
    assert len(same(path, "skipping")) == 9
    assert len(same(path, "skipping", Sampling(pick="first"), threads=1)) == 9
    expected = 30 if way in ("b-frames", "pyramid", "open-gop") else 0
    assert skipped(path) >= expected


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("way", list(HEVC))
def test_what_is_skipped_of_hevc_changes_nothing(tmp_path: Path, ending: str, way: str) -> None:
    options = {"x265-params": "log-level=none:" + HEVC[way]}
    path = clips.skippable(tmp_path / f"clip.{ending}")
    clips.write_clip(path, FRAMES, codec="libx265", options=options)
    assert len(same(path, "skipping")) == 9
    assert len(same(path, "skipping", Sampling(pick="first"), threads=1)) == 9
    expected = 0 if way == "no b-frames" else 30
    assert skipped(path) >= expected


def test_pictures_behind_a_splice(tmp_path: Path) -> None:
    """What leads up to a spliced key picture (BLA) is not decoded by anybody, and not counted."""
    options = {"x265-params": "log-level=none:open-gop=1:keyint=50:bframes=3:b-pyramid=0"}
    path = clips.write_clip(tmp_path / "clip.ts", FRAMES, codec="libx265", options=options)
    data = path.read_bytes()
    cra, bla = b"\0\0\1" + bytes([21 << 1, 1]), b"\0\0\1" + bytes([16 << 1, 1])
    assert data.count(cra) > 0
    path.write_bytes(data.replace(cra, bla))
    for way in ("skipping", "groups"):
        same(path, way)


def test_other_samplings_skip_nothing() -> None:
    for sampling in (Sampling(pick="mean"), Sampling(by="time", seconds=0.64)):
        assert _wanted(sampling) is None


@pytest.mark.parametrize("ending", ["h264", "avi"])
def test_streams_without_display_times(tmp_path: Path, ending: str) -> None:
    same(clips.write_clip(tmp_path / f"clip.{ending}", 64, options=WAYS["b-frames"]), "skipping")


def test_short_videos(tmp_path: Path) -> None:
    for frames in (1, 7, 15, 16, 17, 31):
        same(clips.write_clip(tmp_path / f"{frames}.mp4", frames, options=WAYS["b-frames"]), "skipping")


def test_all_of_a_first_snippet_can_be_looked_at(tmp_path: Path) -> None:
    """It may be the only one, and too short for its middle: then its last picture stands for it."""
    with Video(clips.write_clip(tmp_path / "clip.mp4", 40, options=WAYS["b-frames"])) as video:
        video.looks_ahead = False
        next(video.snippets(Sampling(), SMALL))
        skipper = video._reader.skipper
        assert skipper is not None and skipper.wanted is not None
        assert [skipper.wanted(rank) for rank in range(32)] == [rank < 16 or rank == 24 for rank in range(32)]


def test_variable_rates(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(5).uniform(0.02, 0.2, 80)).round(3)
    same(clips.write_clip(tmp_path / "clip.mkv", 80, times=list(times), options=WAYS["b-frames"]), "skipping")


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_damage_is_read_again_without_skipping(tmp_path: Path, share: float) -> None:
    path = clips.write_clip(tmp_path / "clip.ts", FRAMES, options=WAYS["b-frames"])
    snippets_, video = cut(clips.spoil(path, share, 900), "skipping")
    plain, whole = cut(path, "every picture")
    assert [(s.index, s.start, s.end) for s in snippets_] == [(s.index, s.start, s.end) for s in plain]
    for a, b in zip(snippets_, plain, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    assert whole.damage is not None
    # Damage in a picture that nobody looks at may go unseen; what is seen is said in full.
    assert video.damage in (None, whole.damage)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_damage_in_hevc(tmp_path: Path, share: float) -> None:
    """Its decoder drops broken pictures; one that is left out anyway is counted, so snippets may end a bit sooner."""
    options = {"x265-params": "log-level=none:" + HEVC["closed"]}
    path = clips.write_clip(tmp_path / "clip.ts", FRAMES, codec="libx265", options=options)
    whole, _ = cut(path, "every picture")
    found, video = cut(clips.spoil(path, share, 900), "skipping")
    plain, other = cut(path, "every picture")
    assert video.damage in (None, other.damage)
    before = [s for s in plain if s.end < share * whole[-1].end - 2]
    for a, b in zip(found, before, strict=False):
        np.testing.assert_array_equal(a.images, b.images)
    assert len(plain) <= len(found) <= len(whole)
    assert [s.start for s in found] == sorted(s.start for s in found)
    assert abs(found[-1].end - plain[-1].end) < 0.64


def packets(count: int) -> list[Any]:
    """Packets of pictures in the order of their display, the first a key frame by its number only."""
    found = []
    for number in range(count):
        packet = av.Packet(8)
        packet.pts = packet.dts = number
        found.append(packet)
    return found


def shown(number: int) -> av.VideoFrame:
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.pts = number
    return frame


def test_skipped_pictures_come_in_their_places() -> None:
    skipper = Skipper()
    skipper.wanted = lambda rank: rank % 4 == 0
    for packet in packets(9):
        skipper.announce(packet)
    for packet in packets(9):
        assert skipper.skips(packet) == (packet.pts % 4 != 0)
    assert [s.pts for s in skipper.placed(shown(0))] == []
    # One that something depends on is decoded all the same.
    assert [s.pts for s in skipper.placed(shown(2))] == [1]
    assert [s.pts for s in skipper.placed(shown(4))] == [3]
    assert [s.pts for s in skipper.placed(shown(8))] == [5, 6, 7]
    assert list(skipper.placed(None)) == []


@pytest.mark.parametrize("came", [8, 5, None])
def test_a_lost_picture_is_noticed(came: int | None) -> None:
    """Were a packet to give no picture, all later places would be off by one."""
    skipper = Skipper()
    skipper.wanted = lambda rank: rank % 4 == 0
    for packet in packets(9):
        skipper.announce(packet)
    for packet in packets(9):
        skipper.skips(packet)
    assert list(skipper.placed(shown(0))) == []
    with pytest.raises(Irregular):
        list(skipper.placed(None if came is None else shown(came)))


def test_pictures_out_of_order_are_noticed() -> None:
    skipper = Skipper()
    skipper.wanted = lambda rank: rank % 4 == 0
    for packet in packets(9):
        skipper.announce(packet)
        skipper.skips(packet)
    list(skipper.placed(shown(0)))
    list(skipper.placed(shown(3)))
    with pytest.raises(Irregular):
        list(skipper.placed(shown(2)))


def test_places_in_a_long_video() -> None:
    """What is known of the past is dropped, and places stay right; pictures are moved by up to three."""
    skipper = Skipper()
    seen: list[int] = []
    skipper.wanted = lambda rank: bool(seen.append(rank)) or True
    order = [at for group in range(0, 4000, 4) for at in (group + 3, group + 1, group, group + 2)]
    made = packets(4000)
    for number, at in enumerate(order):
        skipper.announce(made[at])
        if number >= 17:
            assert not skipper.skips(made[order[number - 17]])
    assert seen == order[: len(order) - 17]
    assert len(skipper._known) < 200


def test_the_gate_sees_the_same(tmp_path: Path) -> None:
    path = clips.write_clip(
        tmp_path / "clip.mp4", FRAMES, options=WAYS["b-frames"], draw=lambda i, w, h: clips.numbered(i // 50 * 77, w, h)
    )
    found = []
    for skipping in (True, False):
        with Video(path) as video:
            video._reader.skipper = video._reader.skipper if skipping else None
            cut = video.snippets(Sampling(), SMALL, gate=GateRule(audit=0.3))
            found.append([(s.index, s.verdict, len(s.images)) for s in cut])
    assert found[0] == found[1]


def test_doubt_without_anything_skipped_is_no_error() -> None:
    skipper = Skipper()
    skipper.doubt()
    assert list(skipper.placed(None)) == []
    skipper = Skipper()
    skipper.wanted = lambda rank: False
    packet = av.Packet(8)
    packet.pts, packet.dts = 4, 4
    skipper.announce(packet)
    assert skipper.skips(packet)
    with pytest.raises(Irregular):
        skipper.doubt()
