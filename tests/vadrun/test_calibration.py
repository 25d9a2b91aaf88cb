from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadrun import Bundle, Calibration, Engine, UserError, run_video
from vadrun.calibration import KIND, Probabilities, class_scores
from vadrun.cli import main

RULE = {"threshold": 0.05, "release": 0.04, "min_length": 0.0, "merge_gap": 2.0}
Printed = pytest.CaptureFixture[str]


def document(bundle: Path, **changes: Any) -> dict[str, Any]:
    """A calibration file for a bundle: every class alarms at 0.05."""
    opened = Bundle.open(bundle)
    value = {
        "schema": 1,
        "kind": KIND,
        "camera": "gate",
        "bundle": opened.sha256,
        "labels": list(opened.model.labels),
        "sampling": opened.sampling.to_manifest(),
        "confidence": 0.95,
        "total": {"at_most": 0.5},
        "classes": {label: RULE for label in opened.model.labels[1:]},
        "probabilities": None,
    }
    return value | changes


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.write_clip(tmp_path / "door.mp4", 16 * 6)


def test_class_scores_share_the_anomaly_score_out() -> None:
    alignment = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    found = class_scores(np.array([0.8, 0.4]), alignment)
    np.testing.assert_allclose(found, [[0.2, 0.48, 0.32], [0.6, 0.2, 0.2]])
    own = class_scores(alignment[:1, 1:].sum(axis=1), alignment[:1])
    np.testing.assert_allclose(own, alignment[:1])


def test_events_of_each_class_have_its_own_rule(bundles: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    value = document(bundles["xd"])
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
    value = document(bundles["xd"], probabilities={"method": "isotonic", "curves": curves})
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
        path = write(tmp_path / "c.json", document(bundles["xd"], footage={"pictures": pictures}))
        assert main([*arguments, str(path)]) == 0
        assert ("has seen no footage of 160x120; is it of this camera?" in capsys.readouterr().err) == said


def test_thresholds_are_given_once(bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed) -> None:
    path = write(tmp_path / "c.json", document(bundles["xd"]))
    arguments = [str(clip), "--engine", str(bundles["xd"]), "--calibration", str(path)]
    assert main([*arguments, "--threshold", "0.4", "--merge-gap", "3"]) == 2
    assert "leave out --threshold, --merge-gap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle": "0" * 64}, "was made for another bundle"),
        ({"sampling": {"frames": 16, "pick": "first", "by": "frames", "seconds": None}}, "another sampling"),
        (
            {"labels": ["normal", "a"], "classes": {"a": {}}},
            "c.json: classes.a.threshold is missing: make it again with vadcalibrate",
        ),
        ({"kind": "something"}, "is not a calibration file"),
        ({"schema": 2}, "was made by a newer vadclip-edge"),
        ({"classes": {}}, "classes is an object of 0 entries, not an object of 1 to"),
        ({"classes": {"a": RULE}}, "its classes are not its labels"),
        ({"classes": [RULE]}, "classes is a list of 1, not an object"),
        (
            {"classes": {"fighting": RULE | {"threshold": 10**390}}},
            "classes.fighting.threshold is a number of more than",
        ),
        (
            {"classes": {"fighting": RULE | {"merge_gap": "2"}}},
            "classes.fighting.merge_gap is '2', not a number from 0",
        ),
        ({"camera": "a\nb"}, "without control characters"),
        ({"camera": "\ud800"}, "has half a character in it"),
        ({"footage": []}, "footage is a list of 0, not an object"),
        ({"footage": {"pictures": 7}}, "footage.pictures is 7, not a list"),
        ({"total": {"at_most": [1]}}, "total.at_most is a list of 1, not a finite number"),
        ({"gate": {"threshold": 2, "heartbeat": 1, "audit": 0.1}}, "gate.threshold is 2, not a number from 0 to 1"),
        (
            {"probabilities": {"method": "temperature", "temperature": -1}},
            "probabilities.temperature is -1, not a number from 1e-06",
        ),
        ({"probabilities": {"method": "temperature"}}, "probabilities.temperature is missing"),
        ({"probabilities": {"method": "magic"}}, "probabilities.method is 'magic', not one of temperature, isotonic"),
        ({"probabilities": {"method": "isotonic", "curves": {}}}, "probabilities.curves has no curve of 'fighting'"),
    ],
)
def test_what_is_refused(
    bundles: dict[str, Path], clip: Path, tmp_path: Path, capsys: Printed, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "c.json", document(bundles["xd"]) | changes)
    assert main([str(clip), "--engine", str(bundles["xd"]), "--calibration", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "Traceback" not in err


def test_other_classes_are_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    calibration = Calibration.read(write(tmp_path / "c.json", document(bundles["xd"])))
    with pytest.raises(
        UserError, match=r"was made for the classes normal, fighting, .*, but the bundle has normal, abuse"
    ):
        calibration.check(Bundle.open(bundles["ucf"]))


def test_a_score_at_its_threshold_reaches_it(bundles: dict[str, Path], tmp_path: Path) -> None:
    value = document(bundles["xd"])
    first, second = value["labels"][1:3]
    value["classes"] |= {first: RULE | {"threshold": 0.25}, second: RULE | {"threshold": float(np.nextafter(0.25, 1))}}
    calibration = Calibration.read(write(tmp_path / "c.json", value))
    alignment = np.zeros((1, 7))
    alignment[0, :3] = 0.5, 0.25, 0.25
    reached = calibration.reached(np.array([0.5]), alignment)  # a class score of 0.25 each
    assert reached.tolist() == [[True, False, False, False, False, False]]


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Calibration.read(tmp_path / "none.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Calibration.read(tmp_path / "c.json")


def test_probabilities_come_back_from_the_file() -> None:
    labels = ("normal", "a", "b")
    scores = np.array([[0.9, 0.08, 0.02], [0.1, 0.7, 0.2]])
    for made in (
        Probabilities("temperature", 2.0),
        Probabilities("isotonic", curves={"a": ((0.0, 0.5), (0.1, 0.9)), "b": ((0.2,), (0.3,))}),
    ):
        again = Probabilities.from_json(json.loads(json.dumps(made.to_json())), labels)
        found = again.of(scores, labels)
        np.testing.assert_allclose(found, made.of(scores, labels))
        np.testing.assert_allclose(found.sum(axis=1), 1.0)
    hot = Probabilities("temperature", 2.0).of(scores, labels)
    np.testing.assert_allclose(hot[0], np.sqrt(scores[0]) / np.sqrt(scores[0]).sum())


@pytest.mark.parametrize(
    ("bursts", "said"),
    [({"index": 1.0}, "at most 0.5 false alarms a day"), (None, "at most 0.5 bursts of false alarms")],
)
def test_the_promise_says_what_is_counted(bundles: dict[str, Path], tmp_path: Path, bursts: Any, said: str) -> None:
    value = document(bundles["xd"], total={"at_most": 0.5, "bursts": bursts})
    assert Calibration.read(write(tmp_path / "c.json", value)).promise().startswith(said)
