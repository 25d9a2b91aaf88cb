"""Arrays from files: headers are checked before memory is taken."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vadrun.arrays import Array, load_npy, load_npz
from vadrun.errors import UserError


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin-1") + data


def shape(text: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({text}), }}", bytes(64))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.zeros((2, 3), np.float16),
        np.zeros((0, 3), np.float32),
    ],
)
def test_arrays_are_read_as_numpy_reads_them(array: Any, mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(array))
    found = load_npy(path, Array("f", (None, 3)), "do", mapped=mapped)
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape


def test_numpys_three_versions_of_the_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for version in (1, 2, 3):
        path.write_bytes(header("{'shape': (2L,), 'fortran_order': False, 'descr': '<f4'}", bytes(8), version))
        assert load_npy(path, Array("f", (2,)), "do").tolist() == [0, 0]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is not in NumPy's format"),
        (b"\x93NUMPY\x09\x00\x00\x00", "is not in NumPy's format"),
        (npy(np.zeros((2, 3)))[:70], "has a header that does not read"),
        (shape("1000000, 11000000"), "asks for 44000000000000 bytes of memory"),
        (shape("9" * 400), "has a header that does not read"),
        (shape("-1, 3"), "has a header that does not read"),
        (shape(", ".join("1" * 12)), "has a header that does not read"),
        (shape("((((1"), "has a header that does not read"),
        (header("{'descr': '<f4', 'fortran_order': False, 'fortran_order': False}"), "has a header that does not read"),
        (header("{'descr': '<f4'}"), "has a header that does not read"),
        (header("{'descr': 'zz', 'fortran_order': False, 'shape': (1,)}"), "has a header that does not read"),
        (header("(" * 4000), "has a header that does not read"),
        (header(" " * 5000), "has a header of 5000 bytes"),
        (shape("17, 1"), r"is [17, 1], which takes 68 bytes, and the file has 64"),
        (npy(np.zeros(3, np.int64)), "is of type int64, not of floats"),
        (npy(np.array([{}])), "is of type object, not of floats"),
        (npy(np.zeros((2, 3), "f4,f4")), "has a header that does not read"),
        (npy(np.zeros((3, 2))), "is [3, 2], not [?,3]"),
        (npy(np.zeros(3)), "is [3], not [?,3]"),
    ],
)
def test_other_files_are_refused_in_one_sentence(raw: bytes, said: str, mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(raw)
    wanted = Array("f", None if "is [17" in said or "asks" in said else (None, 3))
    with pytest.raises(UserError) as caught:
        load_npy(path, wanted, "make it again", mapped=mapped)
    assert str(caught.value).startswith(f"{path}: the array ") and str(caught.value).endswith(": make it again")
    assert said in str(caught.value)


def test_what_is_not_finite_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(np.array([1.0, np.nan])))
    with pytest.raises(UserError, match="holds values that are not finite"):
        load_npy(path, Array(), "do")
    assert len(load_npy(path, Array(finite=False), "do")) == 2


def archive(members: dict[str, bytes], **settings: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **settings) as made:
        for name, raw in members.items():
            made.writestr(name, raw)
    return stream.getvalue()


WANTED = {"frames": Array("u", ("n", "S", "S", 3), itemsize=1), "features": Array("f", ("n", "d"))}


def test_archives_are_read_and_their_sizes_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    frames, features = np.ones((4, 8, 8, 3), np.uint8), np.ones((4, 5), np.float32)
    np.savez_compressed(path, frames=frames, features=features, note=np.array("text"))
    found = load_npz(path, WANTED, "do", sizes={"S": 8})
    assert set(found) == {"frames", "features"}
    np.testing.assert_array_equal(found["frames"], frames)
    noted = load_npz(path, WANTED, "do", others=Array("U", ()))
    assert str(noted["note"]) == "text"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"frames.npy": npy(np.ones((4, 8, 8, 3), np.uint8))}, "it holds no array 'features'"),
        (
            {"frames.npy": npy(np.ones((4, 8, 8, 3), np.uint8)), "features.npy": npy(np.ones((3, 5)))},
            "'features' is [3, 5], not [4,d]",
        ),
        ({"frames.npy": npy(np.ones((4, 8, 9, 3), np.uint8))}, "'frames' is [4, 8, 9, 3], not [n,8,8,3]"),
        ({"frames.npy": npy(np.ones((4, 8, 8, 3), np.uint16))}, "not of elements of 1 byte:"),
        ({"frames.npy": b"text"}, "'frames' is not in NumPy's format"),
        ({f"{number}.npy": b"" for number in range(300)}, "it holds 300 arrays, more than 256"),
    ],
)
def test_archives_of_something_else_are_refused(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(archive(members))
    with pytest.raises(UserError) as caught:
        load_npz(path, WANTED, "do", sizes={"S": 8})
    assert said in str(caught.value)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, frames=np.full((4, 8, 8, 3), 7, np.uint8), features=np.ones((4, 5), np.float32))
    raw = bytearray(path.read_bytes())
    raw[raw.index(bytes([7] * 100))] = 8
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"is not a whole \.npz archive"):
        load_npz(path, WANTED, "do")
    for cut in (0, 10, len(raw) - 5):
        path.write_bytes(raw[:cut])
        with pytest.raises(UserError, match=r"is not a whole \.npz archive"):
            load_npz(path, WANTED, "do")


def test_a_small_archive_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    zeros = bytes(64 << 20)
    raw = header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(zeros)},), }}", zeros)
    path.write_bytes(archive({"a.npy": raw}, compression=zipfile.ZIP_DEFLATED))
    del raw, zeros
    tracemalloc.start()
    with pytest.raises(UserError, match="asks for 67108864 bytes of memory, more than the 1048576"):
        load_npz(path, {"a": Array("u")}, "do", most=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
