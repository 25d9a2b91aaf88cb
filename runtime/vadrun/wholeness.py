"""Whether a video file is whole, by its own account.

A copy that was cut short mostly plays, and then just ends; a broken stretch of Matroska is skipped, and FFmpeg
tells nobody but its log. Durations do not tell: sound may outlast the picture, and some containers have none. But
most containers state the length of what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def mp4_boxes(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an MP4 file: kind, first byte and length, which may reach behind the file's end.

    Ends at what is no box.
    """
    position = 0
    while size - position >= 8:
        stream.seek(position)
        header = stream.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 0 and kind.isalnum():  # up to the end of the file
            length = size - position
        elif length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or (kind not in _MP4_PARTS and position + length > size):
            return
        yield kind, position, length
        position += length


def _mp4(stream: BinaryIO, size: int) -> str | None:
    position = 0
    seen: set[bytes] = set()
    for kind, start, length in mp4_boxes(stream, size):
        position = start + length
        if position > size:
            if b"moov" not in seen | {kind}:
                return "its index is missing: the recording was not finished, or the copy is not whole"
            return _too_short(position, size)
        seen.add(kind)
    if size - position >= 8 and seen:
        # Some cameras append bytes of their own to a finished file. In a fragmented one, where parts follow
        # each other to the end, it is a broken part, and what comes after it is lost.
        # Zeros are room that was reserved and not used.
        stream.seek(position)
        rest = stream.read(1 << 20)
        if b"moof" in seen and not rest[4:8].isalnum() and any(rest):
            return f"its structure breaks off after {position:,} of {size:,} bytes"
        return None
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
    for kind, content, following in ebml_elements(stream, position, end):
        if following is None:  # an element of unknown length can only be the last
            return None
        position = following
        if kind == inside:
            broken = _broken_at(stream, content, following)
            if broken is not None:
                return broken
    return position if position < end else None


def ebml_elements(stream: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int | None]]:
    """EBML elements that follow one another up to ``end``: kind, where the content starts, where the next one does.

    The last is None for an element of unknown length, behind which nothing is looked for. Ends at what is no element.
    """
    while position < end:
        kind, content, following = _element(stream, position)
        if not kind or (following is not None and following > end):
            return
        yield kind, content, following
        if following is None:
            return
        position = following


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


def riff_parts(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The RIFF parts of an AVI file, of which files above 1 GB have several: kind, first byte and length.

    The last may reach behind the file's end. Ends where a part does not know its length.
    """
    position = 0
    while size - position >= 12:
        stream.seek(position)
        header = stream.read(12)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return
        yield header[8:12], position, 8 + length
        position += 8 + length + length % 2


def _avi_end(stream: BinaryIO, size: int) -> int | None:
    """Where the last of an AVI's RIFF parts says it ends."""
    end = None
    for _, position, length in riff_parts(stream, size):
        end = position + length
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
