"""Arrays from .npy and .npz files, with every header checked before memory is taken for what it asks.

NumPy's own reader allocates what a header says, whatever the file's size, and a small .npz may unpack to many
gigabytes. Here type and shape are held against a description first, and the bytes against what the file has.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vadrun.schema import Where, open_file, read_file

MOST_BYTES = 1 << 30  # of an array in memory
_MOST_HEADER = 4096
_MOST_DIMENSIONS = 8
_MOST_MEMBERS = 256

_MAGIC = b"\x93NUMPY"
_ENTRY = re.compile(
    r"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(['"])([<>|=]?[a-zA-Z]\d{0,4})\3|(True|False)|\(([\dL,\s]*)\))\s*(?:,|$)""",
    re.ASCII,
)


@dataclass(frozen=True)
class Array:
    """What an array must be.

    Attributes:
        kinds: NumPy's letters of the types that are allowed: "f" for floats, "u" and "i" for whole numbers.
        shape: for each dimension its size, a name (the same size wherever it is named), or None for any.
        finite: refuse NaN and infinity.
        least: elements.
        itemsize: bytes of an element; None for any up to 8.
    """

    kinds: str = "f"
    shape: Sequence[int | str | None] | None = None
    finite: bool = True
    least: int = 0
    itemsize: int | None = None


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def load_npy(path: Path, wanted: Array, advice: str, *, most: int = MOST_BYTES, mapped: bool = False) -> NDArray[Any]:
    """The array in a .npy file.

    Args:
        path: the file.
        wanted: what it must be.
        advice: what the user is to do about a file that does not fit.
        most: bytes that the array may have.
        mapped: leave it on the disk, and read what is used of it; then nobody looks whether it is finite.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    where = Where(path, advice)
    if not mapped:
        raw = read_file(path, where, most=most + _MOST_HEADER)
        return _array(io.BytesIO(raw), len(raw), wanted, {}, where, "the array", most)
    with open_file(path, where) as stream:
        header = _header(stream, where, "the array")
        offset = stream.tell()
        left = os.fstat(stream.fileno()).st_size - offset
    _check_header(header, wanted, {}, where, "the array", most)
    if left < header.bytes:
        raise where.error(_short(header, "the array", left))
    if header.bytes == 0:  # nothing to map
        return np.empty(header.shape, header.dtype)
    order: Any = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", offset, header.shape, order)


def load_npz(
    path: Path,
    wanted: Mapping[str, Array],
    advice: str,
    *,
    sizes: Mapping[str, int] | None = None,
    others: Array | None = None,
    most: int = MOST_BYTES,
) -> dict[str, NDArray[Any]]:
    """The arrays in a .npz file.

    Args:
        path: the file.
        wanted: name -> what the array must be; all have to be there.
        advice: what the user is to do about a file that does not fit.
        sizes: of dimensions that ``wanted`` names, where they are known.
        others: what all other arrays must be; None: they are left out.
        most: bytes that all arrays together may have.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    where = Where(path, advice)
    raw = read_file(path, where, most=most)
    known = dict(sizes or {})
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise where.error(f"it holds {len(members)} arrays, more than {_MOST_MEMBERS}")
            for member in members:
                name = member.filename.removesuffix(".npy")
                schema = wanted.get(name, others)
                if schema is None:
                    continue
                if name in found:
                    raise where.error(f"it holds {name!r} twice")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise where.error(f"{name!r} is compressed in a way that NumPy does not use")
                with archive.open(member) as stream:
                    array = _array(stream, member.file_size, schema, known, where, repr(name), most)
                found[name] = array
                most -= array.nbytes
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        # RuntimeError: an encrypted member. ValueError: names that do not decode, and offsets outside the file.
        raise where.error(f"it is not a whole .npz archive ({error})") from error
    for name in wanted:
        if name not in found:
            raise where.error(f"it holds no array {name!r}")
    return found


def _array(
    stream: IO[bytes], size: int, wanted: Array, known: dict[str, int], where: Where, name: str, most: int
) -> NDArray[Any]:
    """The array that a stream of ``size`` bytes holds; ``known`` sizes of named dimensions are added to."""
    header = _header(stream, where, name)
    _check_header(header, wanted, known, where, name, most)
    left = size - stream.tell()
    if left < header.bytes:
        raise where.error(_short(header, name, left))
    raw = stream.read(header.bytes)
    if len(raw) < header.bytes:
        raise where.error(_short(header, name, len(raw)))
    stream.read(1)  # at its end an archive's member is held against its checksum
    order: Any = "F" if header.fortran else "C"
    array = np.frombuffer(raw, header.dtype).reshape(header.shape, order=order)
    array = np.array(array, header.dtype.newbyteorder("="), order="C")
    if wanted.finite and array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise where.error(f"{name} holds values that are not finite")
    return array


def _header(stream: IO[bytes], where: Where, name: str) -> _Header:
    start = stream.read(8)
    if start[:6] != _MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise where.error(f"{name} is not in NumPy's format")
    count = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(count), "little")
    if length > _MOST_HEADER:
        raise where.error(f"{name} has a header of {length} bytes")
    raw = stream.read(length)
    text = raw.decode("latin-1").strip()
    wrong = where.error(f"{name} has a header that does not read")
    if len(raw) < length or not (text.startswith("{") and text.endswith("}")):
        raise wrong
    text = text[1:-1].strip()
    entries: dict[str, Any] = {}
    place = 0
    while place < len(text):
        entry = _ENTRY.match(text, place)
        if entry is None or entry[2] in entries:
            raise wrong
        value = {"descr": entry[4], "fortran_order": entry[5], "shape": entry[6]}[entry[2]]
        if value is None:
            raise wrong
        entries[entry[2]] = value
        place = entry.end()
    if len(entries) < 3:
        raise wrong
    try:
        sizes = [part.strip().rstrip("L") for part in entries["shape"].split(",")]
        if any(len(part) > 18 for part in sizes) or len(sizes) > _MOST_DIMENSIONS + 1:
            raise ValueError("too large")
        shape = tuple(int(part) for part in sizes if part)
        dtype = np.dtype(entries["descr"])
    except (ValueError, TypeError):
        raise wrong from None
    return _Header(dtype, shape, entries["fortran_order"] == "True")


def _check_header(header: _Header, wanted: Array, known: dict[str, int], where: Where, name: str, most: int) -> None:
    dtype, shape = header.dtype, header.shape
    if dtype.kind not in wanted.kinds or (dtype.itemsize > 8 and dtype.kind != "U"):
        raise where.error(f"{name} is of type {dtype}, not of {_KINDS.get(wanted.kinds, wanted.kinds)}")
    if wanted.itemsize not in (None, dtype.itemsize):
        size = f"{wanted.itemsize} byte{'' if wanted.itemsize == 1 else 's'}"
        raise where.error(f"{name} is of type {dtype}, not of elements of {size}")
    if wanted.shape is not None:
        fits, sizes = len(shape) == len(wanted.shape), dict(known)
        for found, asked in zip(shape, wanted.shape, strict=False):
            expected = sizes.setdefault(asked, found) if isinstance(asked, str) else asked
            fits &= expected in (None, found)
        if not fits:
            asked_shape = ",".join("?" if one is None else str(known.get(str(one), one)) for one in wanted.shape)
            raise where.error(f"{name} is {list(shape)}, not [{asked_shape}]")
        known.update(sizes)
    if math.prod(shape) < wanted.least:
        raise where.error(f"{name} is empty")
    if header.bytes > most:
        raise where.error(f"{name} asks for {header.bytes} bytes of memory, more than the {most} that it may")


_KINDS = {
    "f": "floats",
    "u": "whole numbers",
    "i": "whole numbers",
    "iu": "whole numbers",
    "fiu": "numbers",
    "U": "text",
}


def _short(header: _Header, name: str, left: int) -> str:
    return f"{name} is {list(header.shape)}, which takes {header.bytes} bytes, and the file has {max(left, 0)}"
