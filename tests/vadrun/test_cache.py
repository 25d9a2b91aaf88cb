from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vadrun import Engine
from vadrun.cache import KEPT, model_cache


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
    blobs = sorted(home.glob("*/fp32/*.blob"))
    assert len(blobs) == 2  # encoder and head
    stamps = [blob.stat().st_mtime_ns for blob in blobs]
    np.testing.assert_array_equal(features(), first)
    assert [blob.stat().st_mtime_ns for blob in blobs] == stamps
    # A blob that was cut off by a power failure is no obstacle.
    for blob in blobs:
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    np.testing.assert_array_equal(features(), first)
