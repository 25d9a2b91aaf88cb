from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from tests.vadrun.reading import SMALL
from vadrun.gate import GateRule
from vadrun.owed import Owed
from vadrun.video import Video


def packet(pts: int | None, *, key: bool = False) -> av.Packet:  # type: ignore[type-arg]
    made = av.Packet(8)
    made.pts = made.dts = pts
    made.is_keyframe = key
    return made


def frame(pts: int) -> av.VideoFrame:
    made = av.VideoFrame(16, 16, "yuv420p")
    made.pts = pts
    return made


def test_what_does_not_come_out_is_owed_from_where_it_went_in() -> None:
    owed = Owed("hevc")
    late = []
    for pts in range(200):
        late += owed.fed(packet(pts, key=pts == 0), pts / 25)
        if pts not in (50, 199):
            owed.came(frame(pts))
    assert late == [2.0]
    assert owed.settle() == [199 / 25]
    assert owed.settle() == []


def test_nothing_is_owed_before_the_first_key_picture_or_for_what_leads_up_to_one() -> None:
    owed = Owed("h264")
    for pts, key in ((3, False), (1, False), (10, True), (8, False), (9, False), (12, False)):
        owed.fed(packet(pts, key=key), 0.0)
    assert len(owed.settle()) == 2  # 10 and 12


def test_what_failed_or_is_forgotten_is_not_owed() -> None:
    owed = Owed("h264")
    first = packet(0, key=True)
    owed.fed(first, 0.0)
    owed.failed(first)
    owed.fed(packet(1), 0.0)
    owed.forget()
    owed.fed(packet(None), 0.0)
    assert owed.settle() == []


def test_other_codecs_owe_nothing() -> None:
    owed = Owed("mpeg4")  # a packet may say that there is no picture
    owed.fed(packet(0, key=True), 0.0)
    assert owed.settle() == []


def hole(path: Path, first: int, count: int) -> Path:
    """A transport stream without some of its packets."""
    data = path.read_bytes()
    path.write_bytes(data[: first * 188] + data[(first + count) * 188 :])
    return path


def noisy(number: int, width: int, height: int) -> clips.Image:
    noise = np.random.default_rng(number).integers(-30, 31, (height, width, 1))
    return np.asarray(np.clip(clips.numbered(number, width, height) + noise, 0, 255), np.uint8)


@pytest.fixture(scope="module")
def hevc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"x265-params": "log-level=none:keyint=30:open-gop=0:bframes=3"}
    path = tmp_path_factory.mktemp("hevc") / "clip.ts"
    return clips.write_clip(path, 200, codec="libx265", options=options, draw=noisy)


def readings(path: Path) -> list[Video]:
    """Read with every picture decoded, by groups, and with a gate that holds nothing."""
    found = []
    for way in ("every", "groups", "gate"):
        with Video(path, threads=1) as video:
            if way == "every":
                video.looks_ahead, video._reader.skipper = False, None
            gate = GateRule(shadow=True) if way == "gate" else None
            spans = [(s.start, s.end) for s in video.snippets(None, SMALL, gate=gate)]
            assert spans[0][0] == 0.0 and all(start < end for start, end in spans)
            found.append(video)
    return found


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_hole_that_the_container_does_not_notice(hevc: Path, tmp_path: Path, share: float) -> None:
    """Sixteen packets or a multiple: their counter goes on as if nothing were missing."""
    path = tmp_path / "clip.ts"
    path.write_bytes(hevc.read_bytes())
    count = path.stat().st_size // 188
    for video in readings(hole(path, int(count * share), 64)):
        assert video.damage is not None and "dropped by the decoder (from about " in video.damage
        begins = float(video.damage.split("from about ")[1].split(" s")[0])
        assert begins == pytest.approx(share * 8.0, abs=1.5)


def test_a_first_key_picture_that_is_damaged(hevc: Path, tmp_path: Path) -> None:
    """Parameter sets that come again make it decodable once they are known: all ways begin with the same picture."""
    data = bytearray(hevc.read_bytes())
    at = data.index(b"\0\0\1\x42\1")  # the first sequence parameter set
    data[at + 5 : at + 25] = np.random.default_rng(1).bytes(20)
    path = tmp_path / "clip.ts"
    path.write_bytes(data)
    plain, groups, gate = readings(path)
    assert plain.damage is not None and "30 pictures were dropped by the decoder (from about 0.0 s on)" in plain.damage
    assert groups.damage == gate.damage == plain.damage
    assert groups.decoded == gate.decoded == plain.decoded == 170


@pytest.mark.parametrize("name", ["clip.ts", "clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_sound_files_owe_nothing(tmp_path: Path, name: str, codec: str) -> None:
    path = clips.write_clip(tmp_path / name, 100, codec=codec, options={"bf": "3", "g": "20"})
    assert [video.damage for video in readings(path)] == [None, None, None]


def test_interlaced_streams_are_left_alone(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "log-level=none:tff=1"}
    path = clips.write_clip(tmp_path / "clip.ts", 60, size=(320, 240), options=options)
    assert [video.damage for video in readings(path)] == [None, None, None]


@pytest.mark.parametrize("name", ["clip.avi", "clip.mov", "clip.mkv"])
def test_a_broken_jpeg_picture_is_told(tmp_path: Path, name: str) -> None:
    path = clips.write_clip(tmp_path / name, 60, codec="mjpeg", pixel_format="yuvj420p", draw=noisy)
    with Video(path) as video:
        assert len(list(video.frames())) == 60 and video.damage is None
    clips.spoil(path, 0.5, 300)
    with Video(path) as video:
        assert 58 <= len(list(video.frames())) <= 60
        assert video.damage is not None
