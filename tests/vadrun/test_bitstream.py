from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from tests import clips
from vadrun.bitstream import Unit, Units


def units(path: Path) -> list[tuple[Unit | None, Any]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        read = Units(stream.codec_context.name, stream.codec_context.extradata)
        return [(read.read(packet), packet) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("opened", [0, 1])
def test_closed_groups_are_told_from_open_ones(tmp_path: Path, codec: str, ending: str, opened: int) -> None:
    params = f"log-level=none:keyint=20:min-keyint=20:scenecut=0:bframes=3:open-gop={opened}"
    path = clips.write_clip(
        tmp_path / f"clip.{ending}", 60, codec=codec, options={("x264" if "4" in codec else "x265") + "-params": params}
    )
    found = units(path)
    assert all(unit is not None for unit, _ in found)
    keys = [unit.closed for unit, packet in found if packet.is_keyframe and unit is not None]
    assert keys == ([True, False, False] if opened else [True, True, True])
    assert not any(unit.closed for unit, packet in found if not packet.is_keyframe and unit is not None)
    assert len({unit.kind for unit, _ in found if unit is not None}) > 1


def packet(*parts: bytes) -> Any:
    return av.Packet(b"".join(b"\0\0\0\1" + part for part in parts))


SETS = (b"\x67first", b"\x68first")
IDR, SLICE = b"\x65key", b"\x41picture"


def test_new_parameter_sets_are_news_once() -> None:
    read = Units("h264", None)
    assert read.read(packet(*SETS, IDR)) == Unit(0x65, True, True, True)
    assert read.read(packet(*SETS, IDR)) == Unit(0x65, True, False, True)
    assert read.read(packet(*SETS, SLICE)) == Unit(0x41, False, False, True)
    assert read.read(packet(b"\x01picture")) == Unit(0x01, False, False, False)  # no other depends on it
    assert read.read(packet(b"\x67other", IDR)) == Unit(0x65, True, True, True)


def test_what_does_not_fit() -> None:
    """Parameter sets between key pictures would be lost with a picture that is not decoded."""
    read = Units("h264", None)
    assert read.read(packet(*SETS, IDR)) is not None
    assert read.read(packet(b"\x67other", SLICE)) is None
    assert read.read(packet(b"\x06message")) is None
    assert read.read(av.Packet(b"not a unit")) is None


def test_lengths_before_the_units() -> None:
    extradata = bytes([1, 100, 0, 31, 0xFC | 1, 0xE1])  # two bytes
    read = Units("h264", extradata)
    assert read.read(av.Packet(b"\0\4\x65key\0\4\x65abc")) == Unit(0x65, True, False, True)
    assert read.read(av.Packet(b"\0\4\x65key\0\4\x41abc")) == Unit(0x65, False, False, True)
    assert read.read(av.Packet(b"\0\x7f\x65key")) is None  # cut short
