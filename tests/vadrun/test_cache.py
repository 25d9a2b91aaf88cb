from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vadrun import Engine
from vadrun.cache import KEPT, model_cache, prune, seal, sound


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vadclip-edge" / "models"


def test_a_folder_for_each_bundle(home: Path) -> None:
    assert model_cache("a" * 64) == home / ("a" * 16)
    assert (home / ("a" * 16)).is_dir()


def test_the_oldest_go(home: Path) -> None:
    for age, name in enumerate("abcdef"):
        folder = model_cache(name * 64)
        assert folder is not None
        (folder / "blob").touch()
        os.utime(folder, (1000 + age, 1000 + age))
    model_cache("a" * 64)
    assert sorted(path.name[0] for path in home.iterdir()) == sorted("a" + "def"[-KEPT + 1 :])


def test_nowhere_to_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert model_cache("a" * 64) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert model_cache("a" * 64) is None


def test_openvino_reads_what_it_kept(home: Path, bundles: dict[str, Path]) -> None:
    pytest.importorskip("openvino")
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)

    def features() -> np.ndarray:
        with Engine.load(bundles["ucf"], "openvino", precision="fp32") as engine:
            return engine.encode(frames)

    first = features()
    blobs = sorted(home.glob("*/fp32/*/*.blob"))
    assert len(blobs) == 2  # encoder and head
    stamps = [blob.stat().st_mtime_ns for blob in blobs]
    np.testing.assert_array_equal(features(), first)
    assert [blob.stat().st_mtime_ns for blob in blobs] == stamps
    # A blob that was cut off by a power failure is no obstacle.
    for blob in blobs:
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    np.testing.assert_array_equal(features(), first)


def test_openvino_never_sees_a_damaged_model(home: Path, bundles: dict[str, Path]) -> None:
    pytest.importorskip("openvino")

    def load() -> str:
        with Engine.load(bundles["ucf"], "openvino", precision="fp32") as engine:
            return engine.why

    load()
    blobs = sorted(home.glob("*/fp32/*/*.blob"))
    good = [blob.read_bytes() for blob in blobs]
    rng = np.random.default_rng(0)
    for blob, whole in zip(blobs, good, strict=True):
        for _ in range(3):
            raw = bytearray(whole)
            for place in rng.integers(len(raw) // 4, len(raw), 8):  # mostly weights: the library takes them as they are
                raw[place] ^= 0xFF
            blob.write_bytes(raw)
            assert "compiled anew" not in load()  # compiled again before the start-up test had anything to find
            assert blob.read_bytes() != bytes(raw) and sound(blob)
    blobs[0].with_name(blobs[0].name + ".crc32").unlink()  # killed before it was sealed
    stamp = blobs[0].stat().st_mtime_ns
    load()
    assert blobs[0].stat().st_mtime_ns > stamp


def test_a_kept_file_is_used_only_as_it_was_sealed(tmp_path: Path) -> None:
    path = tmp_path / "model.blob"
    assert not sound(path)
    path.write_bytes(b"abc")
    assert not sound(path) and not path.exists()  # never sealed
    path.write_bytes(b"abc")
    seal(path)
    assert sound(path)
    for raw in (b"abd", b"ab", b"abcd", b""):
        path.write_bytes(b"abc")
        seal(path)
        path.write_bytes(raw)
        assert not sound(path) and not list(tmp_path.iterdir())
    seal(path)  # nothing there
    assert not list(tmp_path.iterdir())


def test_the_newest_of_a_pattern_are_kept(tmp_path: Path) -> None:
    for age, name in enumerate(("a-1", "a-2", "a-3", "b-1")):
        path = tmp_path / name
        path.write_bytes(b"x")
        seal(path)
        os.utime(path, (1000 + age, 1000 + age))
    prune(tmp_path, "a-?", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a-2", "a-2.crc32", "a-3", "a-3.crc32", "b-1", "b-1.crc32")
    ]
