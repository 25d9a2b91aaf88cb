"""Fixtures that several packages' tests share: golden checkpoints and bundles that are built of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden import Golden, golden, ucf, xd
from vadexport.build import BuildOptions, build

__all__ = ["golden", "ucf", "xd"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled models of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def bundles(ucf: Golden, xd: Golden, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float32 bundle of each golden checkpoint, by dataset; not to be changed by tests."""
    found = {}
    for source in (ucf, xd):
        out = tmp_path_factory.mktemp("bundles") / source.dataset
        build(BuildOptions(source.checkpoint, out, dataset=source.dataset))
        found[source.dataset] = out
    return found


@pytest.fixture
def bundle_copy(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the UCF-Crime bundle that a test may damage."""
    return Path(shutil.copytree(bundles["ucf"], tmp_path / "bundle"))
