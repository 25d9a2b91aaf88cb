"""Which other files an ONNX graph takes its weights from, without the onnx package.

A graph may name "external data": files beside it that hold its large constants. Libraries open what is named, so a
bundle lists such files with their hashes, and a graph that names others is refused. The graph's Protocol Buffers are
walked down to its tensors; everything else is stepped over.

The format: https://protobuf.dev/programming-guides/encoding and https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_MOST_DEPTH = 64
_MOST_FIELDS = 1_000_000  # a full-size model has about ten thousand

# Of each message, the fields that lead to tensors: number -> message.
_TENSOR, _LOCATION = "tensor", "location"
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    _TENSOR: {13: _LOCATION},
}
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_KEY, _VALUE = 1, 2  # fields of an entry of external data


class GraphError(Exception):
    """The file is no ONNX graph; the message is a clause that says why."""


def outside_files(path: Path) -> set[str]:
    """The files that a graph names as external data, as it names them.

    Raises:
        GraphError: its structure is broken.
        OSError: it cannot be read.
    """
    found: set[str] = set()
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise GraphError("it is empty") from None
        with data:
            left = [("model", 0, len(data), 0)]
            fields = 0
            while left:
                message, start, end, depth = left.pop()
                if depth > _MOST_DEPTH:
                    raise GraphError("it nests too deep")
                inside = _FIELDS[message]
                for number, begin, stop in _fields(data, start, end):
                    fields += 1
                    if fields > _MOST_FIELDS:
                        raise GraphError("it has too many parts")
                    kind = inside.get(number)
                    if kind == _LOCATION:
                        found |= _location(data, begin, stop)
                    elif kind is not None:
                        left.append((kind, begin, stop, depth + 1))
    return found


def _location(data: mmap.mmap, start: int, end: int) -> set[str]:
    """The file that an entry of external data names, if that is what it is about."""
    entry = {number: data[begin:stop] for number, begin, stop in _fields(data, start, end)}
    if entry.get(_KEY) != b"location":
        return set()
    return {entry.get(_VALUE, b"").decode("utf-8", "backslashreplace")}


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of a message's fields of bytes; others are stepped over."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end)
        wire = tag & 7
        if wire == _VARINT:
            _, place = _varint(data, place, end)
        elif wire in (_EIGHT, _FOUR):
            place += 8 if wire == _EIGHT else 4
        elif wire == _BYTES:
            length, place = _varint(data, place, end)
            if place + length > end:
                raise GraphError("a part of it is cut off")
            yield tag >> 3, place, place + length
            place += length
        else:
            raise GraphError("a part of it is of no known kind")
    if place > end:
        raise GraphError("a part of it is cut off")


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise GraphError("a part of it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise GraphError("a number in it is too long")
