"""Feature files: the released pooling, damage found at once, the packed copy, batches from a seed."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vadclip.data import Fetcher, FileStore, PackedStore, ahead, epoch_rows, open_store, pool
from vadclip.features import read_features
from vadclip.lists import FeatureList, one_crop, without_missing
from vadrun.errors import UserError

WIDTH, POSITIONS = 8, 32
LENGTHS = (1, 7, 32, 33, 100)


@pytest.fixture
def listed(tmp_path: Path) -> FeatureList:
    generator = np.random.default_rng(0)
    paths = []
    for index, length in enumerate(LENGTHS):
        kind = np.float16 if index % 2 else np.float32
        path = tmp_path / f"v{index}__0.npy"
        np.save(path, generator.standard_normal((length, WIDTH)).astype(kind))
        paths.append(path)
    return FeatureList("made", tuple(paths), ("A",) * 5, np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]])


def released_pooling(features: NDArray[np.float32], positions: int) -> NDArray[np.float32]:
    """As the released code has it, bin by bin."""
    edges = np.linspace(0, len(features), positions + 1, dtype=np.int32)
    return np.stack([features[a:b].mean(axis=0) for a, b in pairwise(edges)])


@pytest.mark.parametrize("length", [257, 300, 511, 512, 5000])
def test_long_videos_are_pooled_as_released(length: int) -> None:
    features = np.random.default_rng(length).standard_normal((length, 3)).astype(np.float32)
    np.testing.assert_allclose(pool(features, 256), released_pooling(features, 256), atol=1e-6)
    assert pool(features.astype(np.float16), 256).dtype == np.float16


@pytest.mark.parametrize("length", [1, 255, 256])
def test_short_videos_stay_as_they_are(length: int) -> None:
    features = np.ones((length, 3), dtype=np.float32)
    assert pool(features, 256) is features


@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_padded_on_the_right(listed: FeatureList, tmp_path: Path, cached: bool) -> None:
    store = open_store(listed, WIDTH, POSITIONS, tmp_path / "cache" if cached else None)
    assert isinstance(store, PackedStore if cached else FileStore)
    assert store.lengths.tolist() == [1, 7, 32, 32, 32]
    fetcher = Fetcher(store, POSITIONS, WIDTH)
    fetcher(np.array([4, 4, 4, 4, 4]))  # what a buffer held before must not shine through
    for rows in ([0, 1, 2, 3, 4], [3, 0], [1, 1]) * 2:
        features, lengths = fetcher(np.array(rows))
        assert features.shape == (len(rows), POSITIONS, WIDTH)
        assert features.dtype == torch.float32
        assert lengths.tolist() == store.lengths[rows].tolist()
        for found, row, length in zip(features.numpy(), rows, lengths.tolist(), strict=True):
            expected = pool(read_features(listed.paths[row], WIDTH), POSITIONS)
            np.testing.assert_array_equal(found[:length], expected.astype(np.float32))
            assert not found[length:].any()


@pytest.mark.parametrize("cached", [False, True])
def test_the_crops_of_one_file_are_rows_of_their_own(tmp_path: Path, cached: bool) -> None:
    values = np.random.default_rng(1).standard_normal((5, 10, WIDTH)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b__3.npy", values[:2, 3])
    paths = (tmp_path / "a.npy", tmp_path / "b__3.npy")
    two = FeatureList("made", paths, ("A", "B"), np.eye(2, dtype=np.float32))
    listed, missing = without_missing(two)
    assert (len(listed), missing, without_missing(listed)[0]) == (11, 0, listed)
    assert listed.crops == (*range(10), 3) and len(set(listed.videos)) == 2
    assert listed.fingerprint() != two.fingerprint() and listed.labels == ("A",) * 10 + ("B",)
    store = open_store(listed, WIDTH, POSITIONS, tmp_path / "cache" if cached else None)
    for row in range(10):
        np.testing.assert_array_equal(store.rows(row), values[:, row])
    np.testing.assert_array_equal(store.rows(10), values[:2, 3])
    five = one_crop(listed, 5)
    assert [five.paths[0].name, five.paths[1].name] == ["a.npy", "b__3.npy"] and five.crops == (5, 3)
    np.testing.assert_array_equal(five.read(0, WIDTH), values[:, 5])
    assert five.count(0, WIDTH) == 5 and listed.subset([10]).count(0, WIDTH) == 2


def test_the_packed_copy_is_used_until_a_file_changes(listed: FeatureList, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done: list[int] = []
    open_store(listed, WIDTH, POSITIONS, cache, lambda count, _: done.append(count))
    assert done == [5]
    open_store(listed, WIDTH, POSITIONS, cache, lambda count, _: done.append(count))
    assert done == [5]
    np.save(listed.paths[1], np.ones((9, WIDTH), dtype=np.float32))
    store = open_store(listed, WIDTH, POSITIONS, cache, lambda count, _: done.append(count))
    assert done == [5, 5]
    assert store.rows(1).tolist() == np.ones((9, WIDTH)).tolist()
    os.truncate(cache / "features.bin", 10)
    open_store(listed, WIDTH, POSITIONS, cache, lambda count, _: done.append(count))
    assert done == [5, 5, 5]


def test_nothing_else_is_overwritten_by_the_packed_copy(listed: FeatureList, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(UserError, match="is something else than packed features"):
        open_store(listed, WIDTH, POSITIONS, mine)
    assert (mine / "thesis.txt").exists()


def broken(kind: str, path: Path) -> None:
    features = np.ones((6, WIDTH), dtype=np.float32)
    if kind == "nan":
        features[2, 3] = np.nan
    elif kind == "inf":
        features[[1, 4], 0] = np.inf, -np.inf
    elif kind == "wide":
        features = np.ones((6, WIDTH + 1), dtype=np.float32)
    elif kind == "flat":
        features = np.ones(WIDTH, dtype=np.float32)
    elif kind == "empty":
        features = features[:0]
    np.save(path, features.astype(np.int32) if kind == "whole" else features)
    if kind == "cut":
        os.truncate(path, 140)
    elif kind == "other":
        path.write_text("not features")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "has NaN or infinite numbers in 1 of 6 snippets: extract it again"),
        ("inf", "has NaN or infinite numbers in 2 of 6 snippets"),
        ("wide", r"has features of shape \[6, 9\], but the model takes \[n, 8\]: extract them"),
        ("flat", r"has features of shape \[8\], but the model takes"),
        ("empty", "holds no snippet"),
        ("whole", "the array is of type int(32|64), not of floats"),
        ("cut", "the array is .* and the file has"),
        ("other", "the array is not in NumPy's format"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_file_is_found_before_training(
    listed: FeatureList, tmp_path: Path, kind: str, says: str, cached: bool
) -> None:
    broken(kind, listed.paths[3])
    with pytest.raises(UserError, match=rf"v3__0\.npy:? ({says})"):
        open_store(listed, WIDTH, POSITIONS, tmp_path / "cache" if cached else None)
    assert not list(tmp_path.glob("*cache*"))


def test_balanced_epochs() -> None:
    normal = np.arange(25) < 10
    batches = epoch_rows(normal, 4, balanced=True, seed=1, epoch=0)
    assert [batch.shape for batch in batches] == [(8,), (8,)]
    for batch in batches:
        assert normal[batch].tolist() == [True] * 4 + [False] * 4
    assert len(set(np.concatenate(batches).tolist())) == 16
    assert len(epoch_rows(normal, 64, balanced=True, seed=1, epoch=0)) == 1


def test_plain_epochs_and_their_seed() -> None:
    normal = np.arange(25) < 10
    batches = epoch_rows(normal, 10, balanced=False, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert sorted(np.concatenate(batches).tolist()) == list(range(25))
    again, later, other = (epoch_rows(normal, 10, False, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0)))
    assert np.array_equal(batches[0], again[0])
    assert not np.array_equal(batches[0], later[0])
    assert not np.array_equal(batches[0], other[0])


def test_reading_ahead_keeps_order_and_content(listed: FeatureList, tmp_path: Path) -> None:
    store = open_store(listed, WIDTH, POSITIONS, tmp_path / "cache")
    wanted = epoch_rows(np.arange(5) < 2, 1, balanced=False, seed=0, epoch=0) * 20
    for rows, (features, _) in ahead(Fetcher(store, POSITIONS, WIDTH), wanted):
        expected = store.rows(int(rows[0])).astype(np.float32)
        np.testing.assert_array_equal(features[0, : len(expected)].numpy(), expected)


def test_a_failure_while_reading_ahead_is_raised_here(listed: FeatureList) -> None:
    store = open_store(listed, WIDTH, POSITIONS)
    listed.paths[2].unlink()
    with pytest.raises(UserError, match=r"v2__0\.npy: it does not exist"):
        list(ahead(Fetcher(store, POSITIONS, WIDTH), [np.array([0]), np.array([2])]))
