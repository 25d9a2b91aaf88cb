"""The demo's model and video are in the repository, small, and right about each other."""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from vadexport.build import BuildOptions, build
from vadrun import Engine, EventRule, run_video

DEMO = Path(__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "bundle"
    assert build(BuildOptions(DEMO / "checkpoint.safetensors", out)).passed
    return out


def truth() -> list[tuple[str, float, float]]:
    with (DEMO / "truth.csv").open(newline="") as file:
        return [(row["label"], float(row["start"]), float(row["end"])) for row in csv.DictReader(file)]


def test_they_are_small() -> None:
    assert (DEMO / "checkpoint.safetensors").stat().st_size < 8e6
    assert (DEMO / "demo.mp4").stat().st_size < 3e6


def test_every_event_is_found_and_named(bundle: Path) -> None:
    """An event and its truth are the same if they overlap by half of both together."""
    with Engine.load(bundle, "onnxruntime") as engine:
        found = [
            (event.label, event.start, event.end) for event in run_video(engine, DEMO / "demo.mp4", EventRule()).events
        ]
    assert [label for label, _, _ in found] == [label for label, _, _ in truth()]
    for (_, start, end), (_, first, last) in zip(found, truth(), strict=True):
        assert min(end, last) - max(start, first) > 0.5 * (max(end, last) - min(start, first))


@pytest.mark.parametrize("known", [True, False])
def test_the_picture(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    from vadrun.cli import main

    video = Path(shutil.copy(DEMO / "demo.mp4", tmp_path / "gate 2.north.mp4"))
    assert main([str(video), "--engine", str(bundle), "--out", str(tmp_path)]) == 0
    arguments = ["picture.py", str(video), str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, *(["--truth", str(DEMO / "truth.csv")] if known else [])])
    runpy.run_path(str(DEMO / "picture.py"), run_name="__main__")
    assert (tmp_path / "gate 2.north.png").read_bytes()[:4] == b"\x89PNG"
