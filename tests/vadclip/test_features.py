"""One reader of feature files: both layouts, and what is wrong with a file said before memory is taken for it."""

from pathlib import Path

import numpy as np
import pytest

from vadclip.features import count_snippets, holds_ten_crops, read_features
from vadrun.errors import UserError

RNG = np.random.default_rng(0)


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_ten_crops_in_one_file(tmp_path: Path, kind: str) -> None:
    values = RNG.standard_normal((7, 10, 8)).astype(kind)
    path = saved(tmp_path / "v.npy", values)
    assert holds_ten_crops(path) and count_snippets(path, 8, 3) == 7
    for crop in (0, 9):
        found = read_features(path, 8, crop)
        np.testing.assert_array_equal(found, values[:, crop].astype(found.dtype))
        assert found.dtype == (np.float16 if kind == np.float16 else np.float32) and found.flags.c_contiguous


def test_columns_first_is_read_as_it_is(tmp_path: Path) -> None:
    values = RNG.standard_normal((5, 4))
    path = saved(tmp_path / "v.npy", np.asfortranarray(values))
    np.testing.assert_allclose(read_features(path, 4), values.astype(np.float32))
    assert not holds_ten_crops(path)


@pytest.mark.parametrize(
    ("shape", "crop", "says"),
    [
        ((7, 10, 8), None, "holds 10 crops of each snippet, but its name ends in a single crop's number"),
        ((10, 7, 8), None, r"shape \[10, 7, 8\], crops first: write them as \[n, 10, d\]"),
        ((10, 7, 8), 0, "crops first"),
        ((7, 5, 8), 0, r"shape \[7, 5, 8\], but the model takes \[n, 10, 8\]"),
        ((7, 10, 9), 0, r"but the model takes \[n, 10, 8\]"),
        ((7, 9), None, r"shape \[7, 9\], but the model takes \[n, 8\]"),
        ((0, 10, 8), 0, "holds no snippet"),
        ((), None, r"shape \[\], but"),
    ],
)
def test_shapes_that_are_refused(tmp_path: Path, shape: tuple[int, ...], crop: int | None, says: str) -> None:
    path = saved(tmp_path / "v.npy", np.ones(shape, np.float32))
    for read in (read_features, count_snippets):
        with pytest.raises(UserError, match=says) as error:
            read(path, 8, crop)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("crop", [None, 4])
def test_numbers_that_are_refused(tmp_path: Path, crop: int | None) -> None:
    values = np.ones((6, 8) if crop is None else (6, 10, 8), np.float32)
    values[2:4] = np.nan
    with pytest.raises(UserError, match="NaN or infinite numbers in 2 of 6 snippets"):
        read_features(saved(tmp_path / "v.npy", values), 8, crop)
    values[2:4] = [[np.inf], [-np.inf]] if crop is None else np.inf
    with pytest.raises(UserError, match="NaN or infinite numbers in 2 of 6 snippets"):
        read_features(saved(tmp_path / "v.npy", values), 8, crop)


def test_a_header_that_asks_for_terabytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "v.npy", np.ones((6, 8), np.float32))
    good = path.read_bytes()
    for shape in (b"(6000000000000, 8), }", b"(6, 8000000000000), }"):
        path.write_bytes(good.replace(b"(6, 8), }" + b" " * (len(shape) - 9), shape))
        assert len(path.read_bytes()) == len(good)
        for read in (read_features, count_snippets):
            with pytest.raises(UserError, match=r"v.npy: the array .*: extract it again"):
                read(path, None)
        assert not holds_ten_crops(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_files_that_are_no_arrays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(content)
    for read in (read_features, count_snippets):
        with pytest.raises(UserError, match=r"v\.npy"):
            read(path, None)
    with pytest.raises(UserError, match=r"gone\.npy"):
        read_features(tmp_path / "gone.npy", None)


def test_whole_numbers_and_pickles_are_no_features(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of type int64, not of floats"):
        read_features(saved(tmp_path / "v.npy", np.ones((3, 8), np.int64)), 8)
    with pytest.raises(UserError, match=r"v\.npy"):
        read_features(saved(tmp_path / "v.npy", np.array([{"a": 1}], object)), 8)
