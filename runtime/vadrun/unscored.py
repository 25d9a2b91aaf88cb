"""What a video file holds besides the stream that is scored: other video streams, and recordings after the first.

Recorders and ``cat`` append one recording to another. FFmpeg reads the first of an MP4, FLV or ASF file and stops there
without a word, and it decodes what follows in Matroska or AVI with the first one's parameters. Only what is cheap to
see is looked for: box and chunk headers, the first and last bytes, and 16 places of a transport stream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from av.video.stream import VideoStream

from vadrun.wholeness import ebml_elements, mp4_boxes, riff_parts

_MP4_HEADS = (b"ftyp", b"moov")
_MVHD = 144  # bytes of the index that hold its length
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # ASF_Header_Object, section 10.1 of the ASF specification
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

_PLACES, _PLACE = 16, 1 << 18  # where a transport stream is looked at, and bytes at each
# Stream types of video in a programme map (ISO/IEC 13818-1, table 2-34, and China's AVS).
_VIDEO_TYPES = frozenset({0x01, 0x02, 0x10, 0x1B, 0x21, 0x24, 0x33, 0x34, 0x42, 0xD1, 0xD2, 0xD4, 0xEA})


def other_streams(streams: Sequence[VideoStream], scored: VideoStream) -> list[str]:
    """A sentence on the video streams that are not scored; none if there are none."""
    if len(streams) < 2:
        return []
    others = ", ".join(stream_name(stream) for stream in streams if stream.index != scored.index)
    return [
        f"holds {len(streams)} video streams, and {stream_name(scored)} is scored: --stream N takes another of them, "
        f"{others}"
    ]


def stream_name(stream: VideoStream) -> str:
    """``stream 0 (h264, 1920x1080)``, by FFmpeg's number of it, which counts sound as well."""
    context = stream.codec_context
    if context is None:
        return f"stream {stream.index} (of a codec that FFmpeg lacks)"
    return f"stream {stream.index} ({context.name}, {context.width}x{context.height})"


def other_recordings(path: str | Path, pids: Collection[int] = ()) -> list[str]:
    """Sentences on recordings that begin after the first; none if none is seen.

    Args:
        path: the file.
        pids: of a transport stream, the packet ids of all streams that FFmpeg knows.
    """
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as stream:
            return list(_others(stream, size, pids))
    except OSError:  # whoever reads the video meets it and says so
        return []


def _others(stream: BinaryIO, size: int, pids: Collection[int]) -> Iterator[str]:
    head = stream.read(1 << 12)
    kind = _recording_at(head)
    if kind == "Ogg" and _ogg_changes(stream, head, size):
        yield "holds a second recording after the first, which cannot be decoded: split the file"
    elif kind == "MPEG-TS" and (later := sorted(_later_pids(stream, head, size, pids))):
        yield (
            f"holds video that begins later in a stream of its own (PID {', '.join(map(str, later))}), "
            "which is not scored: split the file"
        )
    finder = _SECOND.get(kind or "")
    second = None if finder is None else finder(stream, head, size)
    if second is not None:
        effect = "may be decoded wrongly" if second.read else "is not scored"
        length = f" of {second.seconds:.1f} s" if second.seconds else ""
        yield (
            f"holds a second recording{length} after the first, from byte {second.start:,} on, "
            f"which {effect}: split the file"
        )


@dataclass(frozen=True)
class _Second:
    """A recording after the first: where it begins, whether FFmpeg reads it as more of the first, how long it is."""

    start: int
    read: bool = False
    seconds: float | None = None


def _recording_at(head: bytes) -> str | None:
    """What kind of file begins with these bytes."""
    if head[4:8] in _MP4_HEADS:
        return "MP4"
    if head[:4] == _EBML:
        return "Matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    if head[:4] == b"FLV\x01":
        return "FLV"
    if head[:16] == _ASF:
        return "ASF"
    if head[:4] == b"OggS":
        return "Ogg"
    if _packet_size(head) is not None:
        return "MPEG-TS"
    if head[:4] == b"\0\0\x01\xba":
        return "MPEG-PS"
    return None


def _another(stream: BinaryIO, position: int, size: int) -> _Second | None:
    """A recording of any kind that begins at ``position``."""
    if not 0 < position < size:
        return None
    stream.seek(position)
    return None if _recording_at(stream.read(1 << 10)) is None else _Second(position)


def _second_mp4(stream: BinaryIO, head: bytes, size: int) -> _Second | None:
    first: bytes | None = None
    begins: int | None = None
    fragmented = False
    end = 0
    for kind, position, length in mp4_boxes(stream, size):
        end = position + length
        if kind == b"moof":
            fragmented = True
        elif kind == b"ftyp":
            begins = position
        elif kind == b"moov":
            # Some recorders write their index twice; fragments may repeat theirs, which names no places in the file.
            stream.seek(position)
            index = stream.read(min(length, 1 << 20))
            if first is None:
                first, begins = index, None
                continue
            same = index == first if fragmented else begins is None and index[:_MVHD] == first[:_MVHD]
            if not same:
                return _Second(position if begins is None else begins, fragmented, _mp4_seconds(index))
    return _another(stream, end, size)


def _mp4_seconds(moov: bytes) -> float | None:
    """The length that the index states (mvhd; ISO/IEC 14496-12, 8.2.2)."""
    at = moov.find(b"mvhd")
    if at < 0:
        return None
    wide = moov[at + 4 : at + 5] == b"\x01"
    scale_at = at + (24 if wide else 16)
    scale = int.from_bytes(moov[scale_at : scale_at + 4], "big")
    duration = int.from_bytes(moov[scale_at + 4 : scale_at + (12 if wide else 8)], "big")
    return duration / scale if scale and 0 < duration < 1 << 31 else None


def _second_matroska(stream: BinaryIO, head: bytes, size: int) -> _Second | None:
    position = 0
    for kind, content, following in ebml_elements(stream, 0, size):
        if kind == _EBML and position:
            return _Second(position, read=True)
        if following is not None:
            position = following
            continue
        if kind != _SEGMENT:
            return None
        # A live recording does not know its length. Its parts do, and they follow one another.
        position = content
        for inner, _, after in ebml_elements(stream, content, size):
            if inner == _EBML:
                return _Second(position, read=True)
            if after is None:
                return None
            position = after
    return _another(stream, position, size)


def _second_avi(stream: BinaryIO, head: bytes, size: int) -> _Second | None:
    end = 0
    for kind, position, length in riff_parts(stream, size):
        if kind == b"AVI " and position:
            return _Second(position, read=True)
        end = position + length + length % 2
    return _another(stream, end, size)


def _second_flv(stream: BinaryIO, head: bytes, size: int) -> _Second | None:
    # The file's length by its own account: onMetaData's "filesize", a big-endian double behind its type 0.
    at = head.find(b"filesize\0")
    if at < 0 or at + 17 > len(head):
        return None
    (end,) = struct.unpack(">d", head[at + 9 : at + 17])
    return _another(stream, int(end), size) if 0 < end < size else None


def _second_asf(stream: BinaryIO, head: bytes, size: int) -> _Second | None:
    at = head.find(_ASF_FILE_PROPERTIES)
    return None if at < 0 else _another(stream, int.from_bytes(head[at + 40 : at + 48], "little"), size)


_SECOND: dict[str, Callable[[BinaryIO, bytes, int], _Second | None]] = {
    "MP4": _second_mp4,
    "Matroska": _second_matroska,
    "AVI": _second_avi,
    "FLV": _second_flv,
    "ASF": _second_asf,
}


def _ogg_changes(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Whether the last page belongs to none of the streams that begin at the file's start (RFC 3533, 6)."""
    begun: set[bytes] = set()
    page = 0
    while page >= 0 and head[page + 5 : page + 6] and head[page + 5] & 2:  # the first pages of all streams come first
        begun.add(head[page + 14 : page + 18])
        page = head.find(b"OggS", page + 4)
    stream.seek(max(0, size - (1 << 17)))
    tail = stream.read()
    at = tail.rfind(b"OggS")
    return at >= 0 and bool(begun) and len(tail) >= at + 18 and tail[at + 14 : at + 18] not in begun


def _packet_size(head: bytes) -> int | None:
    """188 bytes, or 192 with a time in front of each, as in M2TS; None if this is no transport stream."""
    for packet, sync in ((188, 0), (192, 4)):
        if all(head[sync + n * packet : sync + n * packet + 1] == b"G" for n in range(3)):
            return packet
    return None


def _later_pids(stream: BinaryIO, head: bytes, size: int, known: Collection[int]) -> set[int]:
    """Packet ids of video in the programme maps at places of the file, that are not ``known``."""
    packet = _packet_size(head)
    assert packet is not None
    found: set[int] = set()
    for number in range(_PLACES):
        stream.seek(max(0, size - _PLACE) * number // (_PLACES - 1))
        found |= _video_pids(stream.read(_PLACE), packet)
    return found - set(known)


def _video_pids(data: bytes, packet: int) -> set[int]:
    """Packet ids of video by the programme maps in a piece of transport stream (ISO/IEC 13818-1, 2.4.4)."""
    sync = next(
        (at for at in range(2 * packet) if all(data[at + n * packet : at + n * packet + 1] == b"G" for n in range(4))),
        None,
    )
    if sync is None:
        return set()
    maps: set[int] = set()
    found: set[int] = set()
    for at in range(sync, len(data) - 187, packet):
        if data[at] != 0x47 or not data[at + 1] & 0x40:  # only where a section begins
            continue
        pid = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        if pid and pid not in maps:
            continue
        begin = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
        if begin >= at + 188:
            continue
        section = data[begin + 1 + data[begin] : at + 188]
        if len(section) < 13:  # too short for an entry
            continue
        end = 3 + ((section[1] & 0x0F) << 8 | section[2]) - 4
        if end > len(section):
            continue
        if pid == 0 and section[:1] == b"\0":
            for entry in range(8, end - 3, 4):
                if section[entry] or section[entry + 1]:  # programme 0 is the network's
                    maps.add((section[entry + 2] & 0x1F) << 8 | section[entry + 3])
        elif pid and section[:1] == b"\x02":
            entry = 12 + ((section[10] & 0x0F) << 8 | section[11])
            while entry + 4 < end:
                if section[entry] in _VIDEO_TYPES:
                    found.add((section[entry + 1] & 0x1F) << 8 | section[entry + 2])
                entry += 5 + ((section[entry + 3] & 0x0F) << 8 | section[entry + 4])
    return found
