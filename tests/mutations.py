"""Damage for fuzz tests: the same seed gives the same damage.

Values of documents are replaced by values of other types and sizes, bytes by other bytes, and the headers of arrays by
ones that ask for more than there is.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from random import Random
from typing import Any

import numpy as np

# What no document holds in these places, or what readers stumble over.
_EVIL: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-300, 1e300, 1e308, 2**31, 2**63, 2**64, 10**30, 10**400),
    *(
        "",
        " ",
        "x",
        "7",
        "../x",
        "/etc/passwd",
        "a\nb",
        "a\x00b",
        "\x1b[2J",
        "\ud800",
        "\u202eabc",
        "é汽😀",
        "$x^{$",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], {"": None}, ["x"], [1, 2, 3], [[1, 2], [3]], {"a": {"b": {"c": []}}}, [0] * 3000),
    *("0" * 64, "NaN", "nan", "1e999", "-1", "normal", "encoder.fp32.onnx", "text.npy", "fp16"),
]
_EVIL_TEXT = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"0." + b"1" * 5000,
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"\xff\xfe",
]
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def json_text(rng: Random, value: Any) -> bytes:
    """JSON of a value in which one thing or a few are something else, or text that is no sound JSON."""
    if rng.random() < 0.2:
        return octets(rng, json.dumps(value).encode())
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = _changed(rng, value)
    raw = json.dumps(value, ensure_ascii=rng.random() < 0.5 or "\\ud800" in json.dumps(value)).encode()
    if rng.random() < 0.15:  # a value that json.dumps does not write
        places = [at for at, byte in enumerate(raw) if byte in b":,["]
        if places:
            at = rng.choice(places) + 1
            raw = raw[:at] + rng.choice(_EVIL_TEXT) + (b"," if rng.random() < 0.5 else b"") + raw[at:]
    return raw


def _changed(rng: Random, value: Any) -> Any:
    """The value with a change at a place that is chosen by chance, deep ones as often as others."""
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(_EVIL)
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict):
        name = rng.choice([one for one in _EVIL if isinstance(one, str)])
        holder[name] = holder.pop(key)
    elif what < 0.35 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * rng.choice([-1, 2, 1000, 10**20, 0, 0.5])
    elif what < 0.45:
        holder[key] = [holder[key]]
    elif what < 0.5 and isinstance(holder[key], list):
        holder[key] = holder[key] * rng.choice([2, 50])
    else:
        holder[key] = copy.deepcopy(rng.choice(_EVIL))
    return value


def _places(value: Any) -> Any:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, (dict, list)):
            keys = list(one) if isinstance(one, dict) else list(range(len(one)))
            for key in keys[:200]:
                yield one, key
                left.append(one[key])


def octets(rng: Random, raw: bytes) -> bytes:
    """Bytes of which some are others, are missing, or are there twice."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        at, what = rng.randrange(len(data)), rng.random()
        if what < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif what < 0.6:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(_NUMBERS) & (2 ** (8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        elif what < 0.75:
            del data[at : at + rng.choice([1, 4, 100, 10_000])]
        elif what < 0.85:
            data[at:at] = data[at : at + rng.choice([1, 16, 500])]
        elif what < 0.95:
            data[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
        else:
            del data[at:]
    return bytes(data)


def npy(rng: Random, array: Any) -> bytes:
    """A ``.npy`` file of an array that has been changed, or with a header or bytes that have."""
    what = rng.random()
    if what < 0.3:
        return octets(rng, _npy(array))
    if what < 0.6:
        kinds = ["<f4", ">f8", "<f2", "|u1", "<i8", "|O", "<U9", "|S3", "<c8", "<M8[s]", "|b1", "<f16", "zz", "|V4"]
        descr = rng.choice([*kinds, np.asarray(array).dtype.str])
        shapes = ["", "0,", "-1,", "3, 4", "1000000, 11000000", "9" * 30, "1, " * 40, "((1", "1.5,", "2**40"]
        shape = rng.choice([*shapes, str(np.asarray(array).shape)[1:-1]])
        text = f"{{'descr': '{descr}', 'fortran_order': {rng.choice(['True', 'False', '1'])}, 'shape': ({shape}), }}"
        return _with_header(text, np.asarray(array).tobytes() if array.dtype.kind != "O" else b"")
    if what < 0.65:
        return _with_header(rng.choice(["", "{", "{}", "(" * 3000, "[" * 3000, "None", "x" * 70_000]), b"")
    array = np.array(array)
    if what < 0.8 and array.dtype.kind == "f" and array.size:
        flat = array.reshape(-1)
        flat[rng.randrange(flat.size)] = rng.choice([np.nan, np.inf, -np.inf, np.finfo(array.dtype).max])
    elif what < 0.9:
        if array.dtype.kind == "U":
            array = np.char.encode(array, "utf-8", "surrogatepass")
        else:
            with np.errstate(all="ignore"):
                array = array.astype(rng.choice(["f8", "f2", "i4", "u1", "?", "U"]))
    elif array.ndim and len(array):
        array = rng.choice([array[:-1], array[..., None], array[:0], array.reshape(-1), np.concatenate([array, array])])
    return _npy(array)


def npz(rng: Random, arrays: dict[str, Any]) -> bytes:
    """A ``.npz`` archive in which an array has been changed, or the archive itself."""
    members = {f"{name}.npy": _npy(value) for name, value in arrays.items()}
    name, what = rng.choice(list(arrays)), rng.random()
    if what < 0.6:
        members[f"{name}.npy"] = npy(rng, arrays[name])
    elif what < 0.65:
        del members[f"{name}.npy"]
    elif what < 0.7:
        members[rng.choice(["x.npy", "../x", "/x.npy", "", "y" * 300])] = members.pop(f"{name}.npy")
    elif what < 0.73:  # a bomb
        members[f"{name}.npy"] = _with_header(
            "{'descr': '|u1', 'fortran_order': False, 'shape': (300000000,), }", bytes(8 << 20)
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for key, raw in members.items():
            archive.writestr(key or "x", raw)
    return octets(rng, stream.getvalue()) if rng.random() < 0.35 else stream.getvalue()


def text(rng: Random, raw: str) -> bytes:
    """Lines and cells that are something else, or other bytes."""
    if rng.random() < 0.3:
        return octets(rng, raw.encode())
    words = [
        "",
        "nan",
        "-inf",
        "1e999",
        "9" * 5000,
        "\x00",
        '"',
        "a\rb",
        ",,,,",
        "é汽",
        "\ufeff",
        "x" * 200_000,
        "-1",
        "0",
    ]
    words += [
        ": ",
        "- ",
        "[" * 5000,
        "{" * 5000,
        "&a [*a]",
        "!!python/object:os.system x",
        "? ",
        "'",
        "|",
        "0x" + "f" * 4000,
    ]
    lines = raw.split("\n")
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",") if "," in lines[at] else lines[at].split(" ")
        cells[rng.randrange(len(cells))] = rng.choice(words)
        what = rng.random()
        if what < 0.7:
            lines[at] = ("," if "," in lines[at] else " ").join(cells)
        elif what < 0.8:
            del lines[at]
            lines = lines or [""]
        elif what < 0.9:
            lines.insert(at, rng.choice(words))
        else:
            lines[at:at] = lines[at : at + 1] * rng.choice([1, 500])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _with_header(header: str, data: bytes) -> bytes:
    raw = header.encode("latin-1", "replace")
    return b"\x93NUMPY\x02\x00" + len(raw).to_bytes(4, "little") + raw + data
