"""Whether a video file is whole, by its own account.

A copy that was cut short mostly plays, and then just ends; a broken stretch of Matroska is skipped, and FFmpeg
tells nobody but its log. Durations do not tell: sound may outlast the picture, and some containers have none. But
most containers state the length of what they hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_MP4_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
_MP4_PARTS = {b"moov", b"mdat", b"moof"}
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def what_is_missing(path: str | Path) -> str | None:
    """What a file's structure says is missing, as a clause ("it ends early: ..."), or None.

    Knows MP4 and MOV, Matroska and WebM, AVI, FLV and MPEG transport streams; of others it says nothing.
    """
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as stream:
            return _look(stream, size)
    except OSError as error:  # a stick that was pulled, a share that went away
        return f"it can no longer be read ({error.strerror})"


def _look(stream: BinaryIO, size: int) -> str | None:
    head = stream.read(256)
    if head[4:8] in _MP4_FIRST:
        return _mp4(stream, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(stream, head, size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _too_short(_avi_end(stream, size), size, tolerance=16)
    if head[:3] == b"FLV":
        return _flv(stream, size)
    for packet, sync in ((188, 0), (192, 4)):
        if head[sync : sync + 1] == head[sync + packet : sync + packet + 1] == b"G" and size % packet:
            return "it ends early: in the middle of a packet"
    return None


def _too_short(end: int | None, size: int, tolerance: int = 0) -> str | None:
    if end is None or end - size <= tolerance:
        return None
    return f"it ends early: {size:,} of {end:,} bytes are there"


def _mp4(stream: BinaryIO, size: int) -> str | None:
    position = 0
    seen: set[bytes] = set()
    while size - position >= 8:
        stream.seek(position)
        header = stream.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 0 and kind.isalnum():  # up to the end of the file
            seen.add(kind)
            break
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if kind in _MP4_PARTS and position + length > size:
            if b"moov" not in seen | {kind}:
                return "its index is missing: the recording was not finished, or the copy is not whole"
            return _too_short(position + length, size)
        if length < 8 or position + length > size:
            # Some cameras append bytes of their own to a finished file. In a fragmented one, where parts follow
            # each other to the end, it is a broken part, and what comes after it is lost.
            # Zeros are room that was reserved and not used.
            if b"moof" in seen and not kind.isalnum() and any(header + stream.read(1 << 20)):
                return f"its structure breaks off after {position:,} of {size:,} bytes"
            return None
        seen.add(kind)
        position += length
    if seen and b"moov" not in seen:
        return "its index is missing: the recording was not finished, or the copy is not whole"
    return None


def _matroska(stream: BinaryIO, head: bytes, size: int) -> str | None:
    length, width = _vint(head, 4)
    if length is None:
        return None
    segment = 4 + width + length
    length, width = _vint(head, segment + 4)
    if head[segment : segment + 4] != _SEGMENT or length is None:
        return None  # live recordings do not know their length
    position = segment + 4 + width
    end = position + length
    if end > size:
        return _too_short(end, size)
    broken = _broken_at(stream, position, end, inside=_CLUSTER)
    return None if broken is None else f"its structure is broken at {broken:,} of {size:,} bytes"


def _broken_at(stream: BinaryIO, position: int, end: int, inside: bytes = b"") -> int | None:
    """Where EBML elements stop following one another; those of the kind ``inside`` are looked into."""
    while position < end:
        kind, content, following = _element(stream, position)
        if kind and following is None:  # an element of unknown length can only be the last
            return None
        if following is None or following > end:
            return position
        if kind == inside:
            broken = _broken_at(stream, content, following)
            if broken is not None:
                return broken
        position = following
    return None


def _element(stream: BinaryIO, position: int) -> tuple[bytes, int, int | None]:
    """An EBML element's kind, where its content starts, and where the next one does.

    The kind is empty if this is no element; the last is None then, and for elements of unknown length.
    """
    stream.seek(position)
    header = stream.read(12)
    width = 9 - header[0].bit_length() if header else 9
    if width > 4:
        return b"", position, None
    length, used = _vint(header, width)
    content = position + width + used
    return header[:width], content, None if length is None else content + length


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """An EBML length and the bytes that it takes; None for "unknown"."""
    if at >= len(data) or data[at] == 0:
        return None, 1
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << (7 * width)) - 1)
    return (None if value == (1 << (7 * width)) - 1 else value), width


def _avi_end(stream: BinaryIO, size: int) -> int | None:
    """Where the last of an AVI's RIFF parts says it ends; files above 1 GB have several."""
    position, end = 0, None
    while size - position >= 12:
        stream.seek(position)
        header = stream.read(8)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        end = position + 8 + length
        position = end + length % 2
    return end


def _flv(stream: BinaryIO, size: int) -> str | None:
    # Every tag is followed by its length, so the file's last bytes lead to the last tag.
    stream.seek(max(0, size - 4))
    length = int.from_bytes(stream.read(4), "big")
    if 11 <= length <= size - 4:
        stream.seek(size - 4 - length)
        if int.from_bytes(stream.read(4)[1:], "big") + 11 == length:
            return None
    return "it ends early: in the middle of a packet"


# What can go wrong while reading, as one and as several.
_FAULTS = {
    "incomplete": ("packet is incomplete", "packets are incomplete"),
    "undecoded": ("packet could not be decoded", "packets could not be decoded"),
    "patched": ("picture has errors", "pictures have errors"),
    "missing": ("place where pictures are missing", "places where pictures are missing"),
    "lost": ("picture was dropped by the decoder", "pictures were dropped by the decoder"),
    "broken": ("place of its container could not be read", "places of its container could not be read"),
}


class Faults:
    """What went wrong while reading."""

    def __init__(self) -> None:
        self.cut: str | None = None  # how the file ends too early
        self.reached = 0.0  # seconds that have been decoded
        self._first: float | None = None  # seconds, of the first fault
        self._counts = dict.fromkeys(_FAULTS, 0)

    def note(self, kind: str, at: float | None = None) -> None:
        """Count a fault of one of the kinds in ``_FAULTS``, at so many seconds if that is not now."""
        at = self.reached if at is None else at
        self._first = at if self._first is None else min(self._first, at)
        self._counts[kind] += 1

    @property
    def count(self) -> int:
        """How many so far."""
        return sum(self._counts.values())

    def parts(self) -> list[str]:
        """Clauses for a sentence; none if all is well."""
        parts = [] if self.cut is None else [f"{self.cut} (read up to {self.reached:.1f} s)"]
        counted = [f"{count} {_FAULTS[kind][count > 1]}" for kind, count in self._counts.items() if count > 0]
        if counted:
            parts.append(f"{', '.join(counted)} (from about {self._first:.1f} s on)")
        return parts
