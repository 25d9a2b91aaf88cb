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


def hevc(kind: int, layer: int, *rest: int) -> bytes:
    """A unit of HEVC: its type, its temporal layer from 1 on, and what follows."""
    return bytes([kind << 1, layer, *rest]) + b"\x80picture"


def test_pictures_of_hevc_that_no_other_depends_on() -> None:
    one, three = hevc(33, 1, 0), hevc(33, 1, 2 << 1)  # sequence parameter sets for one and for three layers

    def referred(sets: bytes, *slices: bytes) -> bool:
        read = Units("hevc", None)
        assert read.read(packet(sets, hevc(19, 1))) == Unit(19, True, True, True)
        unit = read.read(packet(*slices))
        assert unit is not None
        return unit.referred

    assert not referred(one, hevc(0, 1))
    assert not referred(one, hevc(8, 1), hevc(8, 1))  # RASL_N, in two slices
    assert referred(one, hevc(10, 1))  # reserved: decoders do not give it
    assert referred(one, hevc(1, 1))
    assert referred(one, hevc(21, 1))
    assert referred(one, hevc(0, 1), hevc(1, 1))
    # Pictures of the second layer may depend on it, whatever it says.
    assert referred(three, hevc(0, 1))
    assert referred(three, hevc(2, 2))
    assert not referred(three, hevc(2, 3))


@pytest.mark.parametrize("kind", [16, 17, 18])
def test_decoders_leave_out_what_comes_behind_a_break(kind: int) -> None:
    read = Units("hevc", None)
    assert read.read(packet(hevc(33, 1, 0), hevc(19, 1))) is not None
    assert read.read(packet(hevc(kind, 1))) is None
    assert read.read(packet(hevc(0, 1), hevc(36, 1))) is None  # the end of a sequence


def test_layers_of_hevc_that_are_not_known() -> None:
    read = Units("hevc", None)
    assert read.read(packet(hevc(19, 1))) == Unit(19, True, False, True)
    assert read.read(packet(hevc(0, 1))) == Unit(0, False, False, True)


def test_a_layer_of_hevc_that_there_should_not_be() -> None:
    read = Units("hevc", b"\0\0\0\1" + hevc(33, 1, 0))
    assert read.read(packet(hevc(19, 1))) is not None
    assert read.read(packet(hevc(0, 1))) == Unit(0, False, False, False)
    assert read.read(packet(hevc(2, 2))) is None


@pytest.mark.parametrize("ending", ["mp4", "ts", "mkv"])
def test_layers_of_hevc_in_files(tmp_path: Path, ending: str) -> None:
    kinds = []
    for layers in (0, 1, 3):
        params = f"log-level=none:keyint=24:open-gop=0:bframes=4:b-pyramid=1:temporal-layers={layers}"
        path = clips.write_clip(tmp_path / f"clip.{ending}", 60, codec="libx265", options={"x265-params": params})
        kinds.append({unit.kind for unit, _ in units(path) if unit is not None and not unit.referred})
    trail, tsa = {0}, {2}  # TRAIL_N, TSA_N
    # Up to 3.6 x265 knows the option as yes (1) or no; newer ones as a number.
    assert kinds[0] == trail and kinds[1:] in ([tsa, trail], [trail, tsa])


def test_a_broken_hvcc_is_no_trouble() -> None:
    for rest in (b"", b"\xff", b"\xff" * 40, b"\1\x21\0\1\0\x09"):
        assert Units("hevc", b"\1" + bytes(21) + rest).read(av.Packet(b"x")) is None
