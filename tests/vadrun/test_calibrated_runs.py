"""Videos that are run with a calibration file; the file by itself is in test_calibration.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from tests.vadrun.test_calibration import RULE, document, write
from vadrun import Bundle, Calibration, Engine, run_video
from vadrun.calibration import class_scores
from vadrun.cli import main

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.write_clip(tmp_path / "door.mp4", 16 * 6)


def test_events_of_each_class_have_its_own_rule(bundles: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    value = document(Bundle.open(bundles["xd"]))
    first, second = value["labels"][1:3]
    value["classes"] = {
        label: rule | ({"threshold": 1.0, "release": 1.0} if label not in (first, second) else {})
        for label, rule in value["classes"].items()
    }
    calibration = Calibration.read(write(tmp_path / "c.json", value))
    with Engine.load(bundles["xd"], "onnxruntime:cpu") as engine:
        seen: list[np.ndarray] = []

        class Keep:
            def snippet(self, index: int, start: float, end: float, anomaly: float, classes: np.ndarray) -> None:
                seen.append(np.append(anomaly, classes))

            def event(self, event: object) -> None:
                pass

        result = run_video(engine, clip, calibration, Keep())
    scores = class_scores(np.array(seen)[:, 0], np.array(seen)[:, 1:])
    expected = {label for column, label in ((1, first), (2, second)) if scores[:, column].max() >= 0.05}
    assert {event.label for event in result.events} == expected != set()
    for event in result.events:
        column = value["labels"].index(event.label)
        inside = scores[event.first_snippet : event.last_snippet + 1, column]
        assert event.peak == pytest.approx(inside.max(), abs=1e-6) and inside.max() >= 0.05


def test_the_command_uses_it_and_says_so(bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed) -> None:
    labels = Bundle.open(bundles["xd"]).model.labels
    curves = {label: {"score": [0.0, 1.0], "probability": [0.0, 0.5]} for label in labels[1:]}
    value = document(Bundle.open(bundles["xd"]), probabilities={"method": "isotonic", "curves": curves})
    path = write(tmp_path / "c.json", value)
    out, plain = tmp_path / "out", tmp_path / "plain"
    arguments = [str(clip), "--engine", str(bundles["xd"]), "--backend", "onnxruntime:cpu"]
    assert main([*arguments, "--out", str(plain)]) == 0
    capsys.readouterr()
    assert main([*arguments, "--calibration", str(path), "--out", str(out)]) == 0
    assert "camera gate, at most 0.5 false alarms a day with 95% confidence" in capsys.readouterr().err
    rule = json.loads((out / "door" / "result.json").read_text())["rule"]
    assert rule["camera"] == "gate" and rule["probabilities"] == "isotonic" and rule["sha256"]
    assert set(rule["classes"]) == set(labels[1:])
    rows, before = (
        list(csv.DictReader((folder / "door" / "scores.csv").read_text().splitlines())) for folder in (out, plain)
    )
    for row, old in zip(rows, before, strict=True):
        assert row["anomaly"] == old["anomaly"]
        for label in labels[1:]:
            assert float(row[label]) == pytest.approx(float(old[label]) / 2, abs=2e-6)
        assert sum(float(row[label]) for label in labels) == pytest.approx(1, abs=1e-5)


def test_footage_of_another_size_is_remarked(
    bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed
) -> None:
    arguments = [str(clip), "--engine", str(bundles["xd"]), "--backend", "onnxruntime:cpu", "--calibration"]
    for pictures, said in ((["1920x1080"], True), (["160x120", "64x64"], False)):
        path = write(tmp_path / "c.json", document(Bundle.open(bundles["xd"]), footage={"pictures": pictures}))
        assert main([*arguments, str(path)]) == 0
        assert ("has seen no footage of 160x120; is it of this camera?" in capsys.readouterr().err) == said


def test_thresholds_are_given_once(bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed) -> None:
    path = write(tmp_path / "c.json", document(Bundle.open(bundles["xd"])))
    arguments = [str(clip), "--engine", str(bundles["xd"]), "--calibration", str(path)]
    assert main([*arguments, "--threshold", "0.4", "--merge-gap", "3"]) == 2
    assert "leave out --threshold, --merge-gap" in capsys.readouterr().err


def test_a_file_that_is_refused_ends_the_command_in_one_line(
    bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed
) -> None:
    bundle = Bundle.open(bundles["xd"])
    for changes, said in (
        ({"bundle": "0" * 64}, "was made for another bundle"),
        ({"classes": {"a": RULE}}, "its classes are not its labels"),
        ({"camera": "\ud800"}, "has half a character in it"),
    ):
        path = write(tmp_path / "c.json", document(bundle, **changes))
        assert main([str(clip), "--engine", str(bundles["xd"]), "--calibration", str(path)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and "Traceback" not in err
