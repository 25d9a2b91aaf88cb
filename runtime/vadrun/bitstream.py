"""What packets tell without being decoded: H.264 and HEVC by the headers of NAL units, JPEG by its markers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import av

from vadrun.numbering import HEADER, Number, Numbering
from vadrun.pyav import SIDE_DATA

# Of each codec: slices, slices of closed key pictures, parameter sets, supplemental information
# (ITU-T H.264 table 7-1, H.265 table 7-1).
_H264 = (frozenset(range(1, 6)), frozenset({5}), frozenset({7, 8, 13, 15}), frozenset({6}))
_HEVC = (frozenset(range(32)), frozenset({19, 20}), frozenset({32, 33, 34}), frozenset({39, 40}))
_ORIENTATION = 47  # of supplemental information, how to turn the picture: it holds until it is changed
# Of HEVC: sequence parameter sets; pictures that are not referred to within their temporal layer (TRAIL_N, TSA_N,
# STSA_N, RADL_N, RASL_N); what decoders leave out pictures behind (BLA key pictures, ends of a sequence).
_SPS = 33
_UNREFERRED = frozenset({0, 2, 4, 6, 8})
_BREAKS = frozenset({16, 17, 18, 36, 37})
_BEYOND = 8  # more temporal layers than there can be


class Unit(NamedTuple):
    """What a packet holds.

    Attributes:
        kind: type of its slices, in H.264 with their ``nal_ref_idc``.
        closed: whether nothing from here on depends on anything before.
        news: whether it brings parameter sets that later packets may need.
        referred: whether other pictures may depend on it. In HEVC those that are marked as not referred to may be, by
            pictures of higher temporal layers; so they are only told from the others in the highest of all layers.
        number: of its picture.
    """

    kind: int
    closed: bool
    news: bool
    referred: bool
    number: Number = Number(None)


class Units:
    """Reads the packets of one stream, in order.

    Args:
        codec: ``h264`` or ``hevc``.
        extradata: of the stream; tells how its units are set apart.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._is_h264 = codec == "h264"
        self._slices, self._closed, self._sets, self._more = _H264 if self._is_h264 else _HEVC
        # avcC and hvcC begin with a version, and hold the size of the length before each unit.
        self._length = 0
        self._numbering = Numbering(codec)
        self._highest = -1  # of HEVC's temporal layers, counted from 1, that parameter sets allow; -1: not known
        extradata = extradata or b""
        if extradata[:1] == b"\1" and len(extradata) > (4 if self._is_h264 else 22):
            self._length = (extradata[4 if self._is_h264 else 21] & 3) + 1
            self._learn(extradata, _sets(extradata) if self._is_h264 else _arrays(extradata))
        else:
            self._learn(extradata, self._parts(extradata))
        self._known: set[bytes] = set()  # parameter sets of the last packet that brought others

    def read(self, packet: av.Packet[Any]) -> Unit | None:
        """What the packet holds.

        None if it has no slices, or parameter sets where none are expected, or if it belies those of before, or where
        a decoder may leave out pictures that come behind.
        """
        data = bytes(packet)
        kind: int | None = None
        closed = True
        referred = False
        sets: set[bytes] = set()
        number = Number(None)
        for start, end in self._parts(data):
            head = data[start]
            unit = head & 0x1F if self._is_h264 else head >> 1 & 0x3F
            if unit in self._slices:
                closed &= unit in self._closed
                if kind is None:
                    kind = head & 0x7F if self._is_h264 else unit
                    number = self._numbering.read(data[start : min(end, start + HEADER)])
                if self._is_h264:
                    referred |= head & 0x60 > 0
                    continue
                layer = data[start + 1 : start + 2].ljust(1)[0] & 7
                if layer > self._highest >= 0 or unit in _BREAKS:
                    return None
                # Nothing in lower layers depends on it either.
                referred |= unit not in _UNREFERRED or layer != self._highest
            elif not self._is_h264 and unit in _BREAKS:
                return None
            elif unit in self._sets or (unit in self._more and self._turns(data, start)):
                sets.add(data[start:end].rstrip(b"\0"))
                self._learn(data, iter([(start, end)]))
        if kind is None:
            return None
        unread = _has_extradata(packet)
        if unread:
            self._highest = _BEYOND
            self._numbering.forget()
        news = not sets <= self._known or unread
        if news and not closed:
            return None
        if news:
            self._known = sets  # those of before may come back
        if packet.is_keyframe:
            number = number._replace(gap=False)  # recordings are joined at such pictures, too
        return Unit(kind, closed, news, referred or unread, number)

    def _learn(self, data: bytes, parts: Iterator[tuple[int, int]]) -> None:
        """Take note of parameter sets; of HEVC's how many temporal layers there may be (H.265, 7.3.2.2.1)."""
        for start, end in parts:
            self._numbering.learn(data[start:end])
            if not self._is_h264 and data[start] >> 1 & 0x3F == _SPS and end > start + 2:
                self._highest = max(self._highest, (data[start + 2] >> 1 & 7) + 1)

    def _turns(self, data: bytes, start: int) -> bool:
        """Whether supplemental information begins with how to turn the picture."""
        at = start + (1 if self._is_h264 else 2)
        return data[at : at + 1] == bytes([_ORIENTATION])

    def _parts(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Where the units lie, without what sets them apart."""
        if self._length:
            at = 0
            while at + self._length < len(data):
                start = at + self._length
                at = start + int.from_bytes(data[at:start], "big")
                if start < at <= len(data):
                    yield start, at
            return
        start = data.find(b"\0\0\1")
        while 0 <= start < len(data) - 3:
            following = data.find(b"\0\0\1", start + 3)
            yield start + 3, following if following >= 0 else len(data)
            start = following


def _sets(extradata: bytes) -> Iterator[tuple[int, int]]:
    """Where the units in an avcC lie (ISO/IEC 14496-15, 5.3.3.1.2)."""
    at = 5
    for mask in (31, 255):
        if at >= len(extradata):
            return
        count = extradata[at] & mask
        at += 1
        for _ in range(count):
            start = at + 2
            at = start + int.from_bytes(extradata[at:start], "big")
            if start < at <= len(extradata):
                yield start, at


def _arrays(extradata: bytes) -> Iterator[tuple[int, int]]:
    """Where the units in an hvcC lie (ISO/IEC 14496-15, 8.3.3.1.2)."""
    at = 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            if at >= len(extradata):
                return
            start = at + 2
            at = start + int.from_bytes(extradata[at:start], "big")
            if start < at <= len(extradata):
                yield start, at


# Markers that cannot come up within a picture's coded data (ITU-T T.81, table B.1).
_NO_MARKER = re.compile(rb"\xff[\x01-\xc3\xc5-\xcf\xd8\xdc\xde\xdf\xf0-\xfd]")


def jpeg_is_broken(packet: av.Packet[Any]) -> bool:
    """Whether a JPEG picture is certainly damaged. Its decoder shows what is left of it and tells nobody.

    A packet without coded data gives no picture, which shows elsewhere.
    """
    data = bytes(packet)
    scan = data.find(b"\xff\xda")
    end = data.find(b"\xff\xd9", scan + 2)
    return scan >= 0 and _NO_MARKER.search(data, scan + 2, end if end >= 0 else len(data)) is not None


def _has_extradata(packet: av.Packet[Any]) -> bool:
    """Whether the container gives new parameter sets along with this packet."""
    return bool(packet.has_sidedata("new_extradata")) if SIDE_DATA else False
