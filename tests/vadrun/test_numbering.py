from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import pytest

from tests import clips
from vadrun.bitstream import Unit, Units
from vadrun.numbering import Bits, Number, Numbering, Succession

WAYS = {
    "b-frames": ("libx264", {"bf": "3", "g": "40"}),
    "pyramid": ("libx264", {"x264-params": "log-level=none:b-pyramid=normal:bframes=5:keyint=50"}),
    "no b-frames": ("libx264", {"bf": "0", "g": "30"}),
    "open": ("libx264", {"x264-params": "log-level=none:open-gop=1:bframes=3:keyint=30"}),
    "baseline": ("libx264", {"profile": "baseline", "g": "30"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=0:bframes=4"}),
    "hevc radl": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=0:bframes=4:radl=2"}),
    "hevc open": ("libx265", {"x265-params": "log-level=none:keyint=30:open-gop=1:bframes=4"}),
    "hevc layers": ("libx265", {"x265-params": "log-level=none:keyint=24:bframes=4:b-pyramid=1:temporal-layers=3"}),
}
FRAMES = 300  # more than the order counts of x264 have room for


def units(path: Path, lost: int | None = None) -> list[tuple[int, Unit]]:
    """Display times and units of a video's packets, without the one that is lost."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        reads = Units(stream.codec_context.name, stream.codec_context.extradata)
        found = []
        for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            unit = None if number == lost else reads.read(packet)
            if unit is not None:
                assert packet.pts is not None
                found.append((packet.pts, unit))
    return found


def indirect(found: list[tuple[int, Unit]]) -> int:
    """How many pictures do not follow the one before, as groups are shown."""
    groups: list[list[tuple[int, int | None]]] = []
    for pts, unit in found:
        if unit.closed:
            groups.append([])
        groups[-1].append((pts, unit.number.order))
    succession = Succession()
    count = 0
    for group in groups:
        for (_, before), (_, order) in pairwise(sorted(group, key=lambda one: one[0])):
            count += succession.follows(before, order) is not True
    return count


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("way", WAYS)
def test_numbers_rise_as_pictures_are_shown(tmp_path: Path, way: str, ending: str) -> None:
    codec, options = WAYS[way]
    path = clips.write_clip(tmp_path / f"clip.{ending}", FRAMES, size=(64, 48), codec=codec, options=options)
    found = units(path)
    assert len(found) == FRAMES
    assert not any(unit.number.gap for _, unit in found)
    assert indirect(found) == 0
    # Where pictures are shown in the order of their decoding, H.264 may leave order counts out.
    assert way in ("no b-frames", "baseline") or all(unit.number.order is not None for _, unit in found)


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_picture_shows(tmp_path: Path, way: str) -> None:
    codec, options = WAYS[way]
    path = clips.write_clip(tmp_path / "clip.ts", 80, size=(64, 48), codec=codec, options=options)
    whole = units(path)
    for lost in range(42, 56):
        if whole[lost][1].closed:
            continue
        found = units(path, lost)
        shows = indirect(found) > 0
        if codec == "libx264" and whole[lost][1].referred:
            shows |= any(unit.number.gap for _, unit in found)
            assert any(unit.number.gap for _, unit in found) or whole[lost + 1][1].closed
        assert shows or not whole[lost][1].referred or whole[lost + 1][1].closed


def test_bits() -> None:
    bits = Bits(bytes([0b1_010_0010, 0b1_00110_1_0]))
    assert (bits.u(1), bits.ue(), bits.ue(), bits.ue(), bits.ue()) == (1, 1, 4, 5, 0)
    with pytest.raises(IndexError):
        bits.u(2)
    assert Bits(b"\0\0\3\1").u(24) == 1  # a byte that only keeps start codes apart


def test_damaged_headers_have_no_number() -> None:
    for codec in ("h264", "hevc"):
        numbering = Numbering(codec)
        for head in range(256):
            for rest in (b"", b"\0", b"\0\0\0\0", b"\xff" * 9, bytes(range(90))):
                unit = bytes([head, 1]) + rest
                numbering.learn(unit)
                assert isinstance(numbering.read(unit), Number)


def test_what_follows() -> None:
    succession = Succession()
    assert succession.follows(0, 2) is True and succession.follows(2, 4) is True
    assert succession.follows(4, 8) is False  # one is missing
    assert succession.follows(8, 6) is None and succession.follows(6, 6) is None
    assert succession.follows(None, 6) is True and succession.follows(6, None) is True
    assert Succession().follows(0, 4) is True  # nothing is known yet
    late = Succession()
    assert [late.follows(0, 4), late.follows(4, 6), late.follows(6, 8)] == [True, False, True]
