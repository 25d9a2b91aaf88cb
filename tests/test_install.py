"""The wheel alone, in an empty environment: what a camera box gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("box")
    source = folder / "source"  # a copy: setuptools leaves a build folder behind, and would reuse an old one
    for name in ("runtime", "export", "calibration", "vadclip"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    made = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("vadclip_edge-*.whl")
    venv.create(folder / "venv", with_pip=True)
    installed = run(folder / "venv/bin/pip", "install", "-q", wheel)
    if "No matching distribution" in installed.stderr or "ConnectionError" in installed.stderr:
        pytest.skip("the package index cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return folder / "venv/bin"


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
