from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vadrun.wholeness import Faults, what_is_missing


def box(kind: bytes, content: bytes, *, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


def element(kind: bytes, content: bytes, *, known: bool = True) -> bytes:
    length = struct.pack(">Q", 1 << 56 | len(content)) if known else b"\x01" + b"\xff" * 7
    return kind + length + content


def riff(kind: bytes, length: int) -> bytes:
    return struct.pack("<4sI4s", b"RIFF", length, kind) + bytes(length - 4)


HEAD = element(b"\x1a\x45\xdf\xa3", b"\x42\x82\x88matroska")
BLOCK = element(b"\xa3", bytes(20))
CLUSTER = element(b"\x1f\x43\xb6\x75", element(b"\xe7", b"\0") + 5 * BLOCK)
SEGMENT = b"\x18\x53\x80\x67"
MOOV, MDAT = box(b"moov", bytes(50)), box(b"mdat", bytes(500))
FTYP = box(b"ftyp", b"isom")

WHOLE = {
    "mp4": FTYP + MOOV + MDAT,
    "mp4, index last": FTYP + MDAT + MOOV,
    "mp4, long box": FTYP + MOOV + box(b"mdat", bytes(500), wide=True),
    "mp4, box up to the end": FTYP + MOOV + struct.pack(">I4s", 0, b"mdat") + bytes(99),
    "mp4 with a camera's own bytes": FTYP + MOOV + MDAT + b"\xfe\xdc\xba\x98\x00\x11\x22\x33" * 9,
    "matroska": HEAD + element(SEGMENT, 3 * CLUSTER),
    "live matroska": HEAD + element(SEGMENT, 3 * CLUSTER, known=False),
    "matroska with a live cluster": HEAD
    + element(SEGMENT, CLUSTER + element(b"\x1f\x43\xb6\x75", 5 * BLOCK, known=False)),
    "avi": riff(b"AVI ", 4000),
    "avi in two parts": riff(b"AVI ", 4000) + riff(b"AVIX", 3000),
    "avi of unknown length": b"RIFF\0\0\0\0AVI " + bytes(100),
    "transport stream": (b"G" + bytes(187)) * 5,
    "m2ts": (bytes(4) + b"G" + bytes(187)) * 5,
    "nothing that is known": b"what is this?" * 99,
    "nearly nothing": b"x",
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_miss_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(WHOLE[name])
    assert what_is_missing(path) is None


@pytest.mark.parametrize(
    "name", ["mp4", "mp4, long box", "matroska", "avi", "avi in two parts", "transport stream", "m2ts"]
)
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_files_that_are_cut_miss_their_end(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / "file"
    data = WHOLE[name]
    path.write_bytes(data[: int(len(data) * share)])
    text = what_is_missing(path)
    assert text is not None
    assert text.startswith("it ends early")
    if "bytes" in text:
        assert f"{int(len(data) * share):,} of " in text


def test_an_mp4_without_index_says_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (FTYP + MDAT, FTYP + MDAT[:99]):
        path.write_bytes(data)
        assert "its index is missing" in str(what_is_missing(path))


@pytest.mark.parametrize("at", [0, 30, 60])
def test_a_broken_stretch_of_matroska_is_found(tmp_path: Path, at: int) -> None:
    data = bytearray(WHOLE["matroska"])
    start = len(HEAD) + 12 + len(CLUSTER) + at
    data[start : start + 40] = bytes(40)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert "its structure is broken" in str(what_is_missing(path))


def test_a_broken_part_of_a_fragmented_mp4_is_found(tmp_path: Path) -> None:
    fragment = box(b"moof", bytes(60)) + MDAT
    path = tmp_path / "file"
    path.write_bytes(FTYP + MOOV + 2 * fragment + b"\x80\x81\x82\x83" * 20 + fragment)
    assert "breaks off after" in str(what_is_missing(path))
    path.write_bytes(FTYP + MOOV + 2 * fragment + bytes(5000))  # room that was reserved
    assert what_is_missing(path) is None


def test_nested_elements_without_end_are_no_trap(tmp_path: Path) -> None:
    nested = b""
    for _ in range(3000):
        nested = element(b"\x1f\x43\xb6\x75", nested)
    path = tmp_path / "file"
    path.write_bytes(HEAD + element(SEGMENT, nested))
    what_is_missing(path)


def test_a_file_that_went_away_is_said_to_be_gone(tmp_path: Path) -> None:
    assert "can no longer be read" in str(what_is_missing(tmp_path / "gone"))


def test_damage_begins_where_the_first_of_it_was_met() -> None:
    faults = Faults()
    assert faults.parts() == [] and faults.count == 0
    faults.reached = 3.21
    faults.note("undecoded")
    faults.reached = 7.0
    faults.note("patched")
    faults.note("patched")
    assert faults.count == 3
    assert faults.parts() == ["1 packet could not be decoded, 2 pictures have errors (from about 3.2 s on)"]
    faults.note("lost", 2.0)  # known only later
    assert faults.parts()[0].endswith("1 picture was dropped by the decoder (from about 2.0 s on)")
    faults.cut = "it ends early"
    assert faults.parts()[0] == "it ends early (read up to 7.0 s)"
