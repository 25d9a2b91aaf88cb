"""The wheel alone, in an empty environment: what a camera box gets."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest

from tests import pythons


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pythons.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The bin folder of an environment that has the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("box")
    venv.create(folder / "venv", with_pip=True)
    installed = run(folder / "venv/bin/pip", "install", "-q", wheel)
    if "No matching distribution" in installed.stderr or "ConnectionError" in installed.stderr:
        pytest.skip("the package index cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return folder / "venv/bin"


def test_every_dependency_has_two_bounds(wheel: Path) -> None:
    """Those that only some extras bring, too; what is lowest is read from what is installed, and cannot go stale."""
    pins = pythons.lowest(wheel)
    assert "av==14.2" in pins and "numpy==1.23" in pins and "onnxruntime==1.18" in pins
    assert len(pins) > 25


def test_the_lean_install_brings_numpy_and_pyav_only(box: Path) -> None:
    listed = json.loads(run(box / "pip", "list", "--format=json").stdout)
    assert {entry["name"].lower() for entry in listed} - {"pip", "setuptools"} == {"vadclip-edge", "numpy", "av"}


def test_the_lean_install_works(box: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    shown = run(box / "vadrun", "--help")
    assert shown.returncode == 0 and "--engine" in shown.stdout
    code = "import vadrun; print(vadrun.Engine.__name__, vadrun.run_video.__name__, vadrun.Video.__name__)"
    imported = run(box / "python", "-c", code)
    assert imported.stdout.split() == ["Engine", "run_video", "Video"], imported.stderr
    inspected = run(box / "vadexport", "inspect", bundles["ucf"])
    assert inspected.returncode == 0 and "certificate: passed" in inspected.stdout, inspected.stderr


def test_the_lean_install_says_what_is_missing(box: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    video = tmp_path / "x.mp4"
    video.touch()
    refused = run(box / "vadrun", video, "--engine", bundles["ucf"])
    assert refused.returncode == 2
    assert "pip install 'vadclip-edge[cpu]'" in refused.stderr and "Traceback" not in refused.stderr
    refused = run(box / "vadexport", "build", "--checkpoint", "x.pth", "--out", tmp_path / "b")
    assert refused.returncode == 2
    assert "pip install 'vadclip-edge[export]'" in refused.stderr and "Traceback" not in refused.stderr
