from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from vadrun.errors import UserError
from vadrun.unscored import other_recordings
from vadrun.video import Video

RED, BLUE = (200, 30, 30), (30, 30, 200)
NAMES = ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.flv", "a.wmv", "a.ogv"]
CODECS = {".wmv": "wmv2", ".ogv": "libvpx", ".flv": "flv1"}
OTHER_SERIAL = {"a.ogv": {"serial_offset": "7"}}


def clip(path: Path, frames: int, container_options: dict[str, str] | None = None) -> Path:
    codec = CODECS.get(path.suffix, "libx264")
    return clips.write_clip(path, frames, codec=codec, container_options=container_options)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


# -- streams


def test_a_second_video_stream_is_named_and_can_be_chosen(tmp_path: Path) -> None:
    path = clips.write_streams(tmp_path / "two.mkv", RED, BLUE)
    with Video(path) as video:
        (remark,) = video.info.remarks
        assert video.info.stream == 0
        (red, *_) = [snippet.images for snippet in video.snippets()]
    assert remark == (
        "holds 2 video streams, and stream 0 (h264, 160x120) is scored: --stream N takes another of them, "
        "stream 1 (h264, 160x120)"
    )
    with Video(path, stream=1) as video:
        assert video.info.stream == 1
        assert "and stream 1 (h264, 160x120) is scored" in video.info.remarks[0]
        (blue, *_) = [snippet.images for snippet in video.snippets()]  # by groups: other containers take it, too
    np.testing.assert_allclose(red.mean(axis=(0, 1, 2)), RED, atol=4)
    np.testing.assert_allclose(blue.mean(axis=(0, 1, 2)), BLUE, atol=4)


def test_a_stream_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = clips.write_streams(tmp_path / "two.mp4", RED, BLUE)
    with pytest.raises(UserError, match=r"no video stream 2: its video is stream 0 \(h264, 160x120\), stream 1"):
        Video(path, stream=2)


def test_sound_and_covers_are_no_second_video(tmp_path: Path) -> None:
    with Video(clips.write_clip(tmp_path / "a.mp4", audio=True)) as video:
        assert video.info.remarks == ()
    with Video(clips.write_clip(tmp_path / "b.mp4", audio=True)) as video, pytest.raises(UserError, match="no video"):
        Video(video.path, stream=1)


# -- recordings after the first


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_behind_the_first_is_seen(tmp_path: Path, name: str) -> None:
    first, second = clip(tmp_path / name, 40), clip(tmp_path / f"2{name}", 60, OTHER_SERIAL.get(name))
    assert other_recordings(first) == []
    path = joined(tmp_path / f"joined-{name}", first, second)
    (text,) = other_recordings(path)
    assert text.startswith("holds a second recording")
    if not name.endswith("ogv"):
        assert f"from byte {first.stat().st_size:,} on" in text
    with Video(path) as video:
        assert text in video.info.remarks
        count = sum(1 for _ in video.frames())
    if "is not scored" in text:
        assert count == 40
    else:
        assert count != 40 or video.damage is not None


def test_the_length_of_a_second_mp4_is_said(tmp_path: Path) -> None:
    first, second = clip(tmp_path / "a.mp4", 40), clip(tmp_path / "b.mp4", 75)
    (text,) = other_recordings(joined(tmp_path / "c.mp4", first, second))
    assert "a second recording of 3.0 s after the first" in text
    # The same once more is a second recording as well.
    assert "of 1.6 s" in other_recordings(joined(tmp_path / "d.mp4", first, first))[0]


def test_fragments_and_live_files(tmp_path: Path) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    one = clips.write_clip(tmp_path / "a.mp4", 40, container_options=fragments)
    other = clips.write_clip(tmp_path / "b.mp4", 40, size=(320, 240), container_options=fragments)
    assert other_recordings(one) == []
    (text,) = other_recordings(joined(tmp_path / "c.mp4", one, other))
    assert "may be decoded wrongly" in text
    live = clip(tmp_path / "a.mkv", 40, {"live": "1"})
    assert other_recordings(live) == []
    (text,) = other_recordings(joined(tmp_path / "c.mkv", live, live))
    assert f"from byte {live.stat().st_size:,} on, which may be decoded wrongly" in text


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_recording_of_another_kind_is_seen_too(tmp_path: Path, name: str) -> None:
    other = clip(tmp_path / ("b.mkv" if name == "a.mp4" else "b.mp4"), 40)
    (text,) = other_recordings(joined(tmp_path / f"joined-{name}", clip(tmp_path / name, 40), other))
    assert "is not scored" in text


def test_an_index_that_is_written_twice_is_no_recording(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mp4", 40).read_bytes()
    at = data.index(b"moov") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    path = tmp_path / "b.mp4"
    path.write_bytes(data + data[at : at + length])
    assert other_recordings(path) == []
    path.write_bytes(data + b"\xfe\xdc\xba\x98\x00\x11\x22\x33" * 90)  # a camera's own bytes
    assert other_recordings(path) == []


def test_repeated_fragment_headers_are_no_recording(tmp_path: Path) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    one = clips.write_clip(tmp_path / "a.mp4", 40, options={"g": "10"}, container_options=fragments).read_bytes()
    begins = one.index(b"moof") - 4
    path = tmp_path / "b.mp4"
    path.write_bytes(one + one[:begins] + one[begins:])
    assert other_recordings(path) == []


def test_an_avi_in_several_parts_is_one_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    part = struct.pack("<4sI4s", b"RIFF", 1000, b"AVI ") + bytes(996)
    path.write_bytes(part + struct.pack("<4sI4s", b"RIFF", 1001, b"AVIX") + bytes(998))
    assert other_recordings(path) == []
    path.write_bytes(part + part)
    assert "from byte 1,008 on" in other_recordings(path)[0]


@pytest.mark.parametrize("packet", [188, 192])
def test_a_stream_that_begins_later_in_a_transport_stream_is_seen(tmp_path: Path, packet: int) -> None:
    first = clips.write_clip(tmp_path / "a.ts", 40, audio=True)
    pids = {"mpegts_start_pid": "700", "mpegts_pmt_start_pid": "600"}
    second = clips.write_clip(tmp_path / "b.ts", 40, container_options=pids)
    if packet == 192:  # each with a time in front, as in M2TS
        for path in (first, second):
            data = path.read_bytes()
            path.write_bytes(b"".join(bytes(4) + data[at : at + 188] for at in range(0, len(data), 188)))
    with av.open(str(first)) as container:
        known = [stream.id for stream in container.streams]
    assert other_recordings(first, known) == []
    (text,) = other_recordings(joined(tmp_path / "c.ts", first, second), known)
    assert text == "holds video that begins later in a stream of its own (PID 700), which is not scored: split the file"
    assert other_recordings(joined(tmp_path / "c.ts", first, first), known) == []


def test_broken_programme_maps_are_no_trap(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.ts", 40)
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    for _ in range(50):
        data = bytearray(whole)
        for at in random.integers(0, 188 * 4, 40):
            data[at] = random.integers(256)
        path.write_bytes(data)
        other_recordings(path)


@pytest.mark.parametrize("name", [*NAMES, "a.ts"])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_files_that_are_cut_hold_nothing_behind_them(tmp_path: Path, name: str, share: float) -> None:
    path = clips.cut(clip(tmp_path / name, 40), share)
    assert [text for text in other_recordings(path, [256]) if "second" in text] == []


def test_a_file_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert other_recordings(tmp_path / "gone.mp4") == []


def test_a_transport_stream_whose_tables_are_cut_short_is_read(tmp_path: Path) -> None:
    """A pointer field may lead to the last bytes of a packet, which hold no whole table."""
    programmes = bytes([0, 0, 0xB0, 13, 0, 1, 0xC1, 0, 0, 0, 1, 0xE1, 0x00, 0, 0, 0, 0])
    association = (b"G\x40\x00\x10" + programmes).ljust(188, b"\xff")
    for left in range(14):
        cut = b"G\x41\x00\x10" + bytes([183 - left]) + b"\xff" * (183 - left) + (b"\x02" + bytes(12))[:left]
        path = tmp_path / "a.ts"
        path.write_bytes((association + cut[:188].ljust(188, b"\0")) * 4)
        assert other_recordings(path) == []
