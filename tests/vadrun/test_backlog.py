from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests import clips
from vadrun.backlog import Picture
from vadrun.decoders import SoftwareDecoder
from vadrun.reader import Reader

FRAMES = 150
CLOSED = {
    "b-frames": ("libx264", {"bf": "3", "g": "40"}),
    "pyramid": ("libx264", {"x264-params": "log-level=none:b-pyramid=normal:bframes=5:keyint=50"}),
    "no b-frames": ("libx264", {"bf": "0", "g": "30"}),
    "intra": ("libx264", {"g": "1"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=0:bframes=4"}),
    "hevc radl": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=0:bframes=4:radl=2"}),
}
OPEN = {
    "h264 open": ("libx264", {"x264-params": "log-level=none:open-gop=1:bframes=3:keyint=30"}),
    "hevc open": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=1:bframes=4"}),
}
WANTED: dict[str, Callable[[int], bool]] = {
    "all": lambda at: True,
    "every 16th": lambda at: at % 16 == 8,
    "few": lambda at: at % 70 == 37,
    "none": lambda at: False,
}


def crc(frame: av.VideoFrame) -> int:
    return zlib.crc32(frame.to_ndarray().tobytes())


def reader(path: Path, threads: int = 1) -> Reader:
    return Reader(path, lambda stream: SoftwareDecoder(stream, threads))


def everything(path: Path) -> tuple[list[tuple[Any, int]], list[str]]:
    """All frames of a plain reading: display times and checksums; and what was wrong."""
    whole = reader(path)
    whole.skipper = None
    found = [(frame.pts, crc(frame)) for frame in whole.pictures() if isinstance(frame, av.VideoFrame)]
    whole.close()
    return found, whole.faults.parts()


def on_demand(
    path: Path, wanted: Callable[[int], bool], threads: int = 1
) -> tuple[list[tuple[Any, int | None]], Reader, int]:
    """The same with a backlog, of the wanted pictures only; the reader, and how many were not on demand."""
    lazy = reader(path, threads)
    found: list[tuple[Any, int | None]] = []
    plain = 0
    for at, place in enumerate(lazy.hold_back()):
        if isinstance(place, Picture):
            found.append((place.pts, crc(place.frame()) if wanted(at) else None))
        else:
            plain += 1
            found.append((place.pts, crc(place)))
    lazy.close()
    return found, lazy, plain


def same(path: Path, wanted: str, threads: int = 1) -> tuple[int, int]:
    """To the bit what a plain reading gives; how many pictures were not decoded, and how many not on demand."""
    expected, damage = everything(path)
    found, lazy, plain = on_demand(path, WANTED[wanted], threads)
    assert [pts for pts, _ in found] == [pts for pts, _ in expected]
    assert all(mine is None or mine == full for (_, mine), (_, full) in zip(found, expected, strict=True))
    assert lazy.faults.parts() == damage
    assert lazy.backlog is not None
    return lazy.backlog.undecoded, plain


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("way", [*CLOSED, *OPEN])
def test_what_is_decoded_on_demand_is_what_a_full_decode_gives(tmp_path: Path, way: str, ending: str) -> None:
    codec, options = {**CLOSED, **OPEN}[way]
    path = clips.write_clip(tmp_path / f"clip.{ending}", FRAMES, codec=codec, options=options)
    assert same(path, "all") == (0, 0)
    spared, plain = same(path, "every 16th")
    assert plain == 0 and spared > (15 if way in CLOSED else 0)
    spared, plain = same(path, "few", threads=3)
    assert plain == 0 and spared > (60 if way in CLOSED else 30)


def test_flash_video(tmp_path: Path) -> None:
    assert same(clips.write_clip(tmp_path / "clip.flv", FRAMES, options={"bf": "3", "g": "40"}), "few")[0] > 60


def test_a_stream_that_nobody_looks_at_is_hardly_decoded(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 600, options={"bf": "3", "g": "50"})
    spared, _ = same(path, "none")
    assert spared >= 600 - 34 - 25  # but for the first, which show that the stream is regular


def test_a_picture_can_be_asked_for_after_the_next_was_given(tmp_path: Path) -> None:
    """As sampling by time does, also where the next begins a group."""
    path = clips.write_clip(tmp_path / "clip.mp4", 120, options={"bf": "3", "g": "20"})
    expected, _ = everything(path)
    lazy = reader(path)
    before: Picture | None = None
    for at, place in enumerate(lazy.hold_back()):
        assert isinstance(place, Picture)
        if at % 20 == 0 and before is not None:
            place.frame()
            assert crc(before.frame()) == expected[at - 1][1]
        before = place
    lazy.close()


def test_a_group_without_end_is_not_held_back_for_ever(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 900, size=(64, 48), options={"g": "10000", "sc_threshold": "0"})
    lazy = reader(path)
    most = 0
    for place in lazy.hold_back():
        assert isinstance(place, Picture) and lazy.backlog is not None
        most = max(most, len(lazy.backlog._held))
    assert most < 350
    assert crc(place.frame()) == everything(path)[0][-1][1]


@pytest.mark.parametrize("wanted", ["all", "every 16th"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_damage_that_the_container_tells_costs_no_place(tmp_path: Path, share: float, wanted: str) -> None:
    path = clips.write_clip(tmp_path / "clip.ts", FRAMES, options={"bf": "3", "g": "40"}, draw=noisy)
    expected, damage = everything(clips.spoil(path, share, 900))
    found, lazy, plain = on_demand(path, WANTED[wanted])
    assert [pts for pts, _ in found] == [pts for pts, _ in expected]
    assert 0 < plain < 60  # on demand again from the next closed key picture on
    assert lazy.faults.parts() == damage != []


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_picture_that_is_lost_is_replaced_by_its_neighbour(tmp_path: Path, share: float) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", FRAMES, options={"bf": "3", "g": "40"}, draw=noisy)
    expected, _ = everything(clips.spoil(path, share, 900))
    found, _, _ = on_demand(path, WANTED["every 16th"])
    assert len(expected) <= len(found) <= len(expected) + 2
    times = [pts for pts, _ in found]
    assert times == sorted(set(times)) and {pts for pts, _ in expected} <= set(times)


@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_a_cut_file_ends_where_it_ends(tmp_path: Path, ending: str) -> None:
    path = clips.write_clip(tmp_path / f"clip.{ending}", FRAMES, options={"bf": "3", "g": "40"}, draw=noisy)
    expected, damage = everything(clips.cut(path, 0.71))
    found, lazy, _ = on_demand(path, WANTED["every 16th"])
    assert [pts for pts, _ in found] == [pts for pts, _ in expected]
    assert lazy.faults.parts()[0] == damage[0] and "ends early" in damage[0]


def test_a_stream_without_display_times_is_decoded_in_full(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.h264", 60, options={"bf": "3"})
    assert same(path, "none") == (0, 60)


def test_variable_rates(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(5).uniform(0.02, 0.2, 120)).round(3)
    path = clips.write_clip(tmp_path / "clip.mkv", 120, times=list(times), options={"bf": "3", "g": "40"})
    assert same(path, "few")[1] == 0


def noisy(number: int, width: int, height: int) -> clips.Image:
    """A numbered picture that takes many bytes, so damage hits pictures."""
    noise = np.random.default_rng(number).integers(-18, 19, (height, width, 1))
    return np.asarray(np.clip(clips.numbered(number, width, height) + noise, 0, 255), np.uint8)
