"""Calibration files by themselves; videos that are run with one are in test_calibrated_runs.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vadrun import Bundle, Calibration, Event, EventRule, UserError
from vadrun.calibration import KIND, CalibratedDetector, Probabilities, class_scores
from vadrun.gate import GateRule
from vadrun.sampling import Sampling

RULE = {"threshold": 0.05, "release": 0.04, "min_length": 0.0, "merge_gap": 2.0}
GATE = {"threshold": 0.02, "heartbeat": 7.0, "audit": 0.1}
ALARMS = ("classes", "probabilities", "total", "confidence")
LABELS = ("normal", "fighting", "shooting")


def stand_in(labels: tuple[str, ...] = LABELS, sha256: str = "5a" * 32, sampling: Sampling | None = None) -> Bundle:
    """What a calibration reads of a bundle."""
    parts = {"root": Path("bundle"), "sha256": sha256, "sampling": sampling or Sampling()}
    return cast(Bundle, SimpleNamespace(**parts, model=SimpleNamespace(labels=labels)))


def document(bundle: Bundle, /, **changes: Any) -> dict[str, Any]:
    """A calibration file for a bundle: every class alarms at 0.05."""
    value = {
        "schema": 1,
        "kind": KIND,
        "camera": "gate",
        "bundle": bundle.sha256,
        "labels": list(bundle.model.labels),
        "sampling": bundle.sampling.to_manifest(),
        "confidence": 0.95,
        "total": {"at_most": 0.5},
        "classes": {label: RULE for label in bundle.model.labels[1:]},
        "probabilities": None,
    }
    return value | changes


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def read(folder: Path, **changes: Any) -> Calibration:
    return Calibration.read(write(folder / "c.json", document(stand_in(), **changes)))


def gate_only(folder: Path, **changes: Any) -> Calibration:
    value = {name: part for name, part in document(stand_in()).items() if name not in ALARMS}
    return Calibration.read(write(folder / "c.json", value | {"gate": GATE} | changes))


def test_class_scores_share_the_anomaly_score_out() -> None:
    alignment = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    found = class_scores(np.array([0.8, 0.4]), alignment)
    np.testing.assert_allclose(found, [[0.2, 0.48, 0.32], [0.6, 0.2, 0.2]])
    own = class_scores(alignment[:1, 1:].sum(axis=1), alignment[:1])
    np.testing.assert_allclose(own, alignment[:1])


def test_class_scores_are_float64_whatever_the_model_gives() -> None:
    anomaly, alignment = np.array([0.1], np.float32), np.array([[0.1, 0.6, 0.3]], np.float32)
    found = class_scores(anomaly, alignment)
    assert found.dtype == np.float64
    assert np.array_equal(found, class_scores(anomaly.astype(np.float64), alignment.astype(np.float64)))
    assert found.sum() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("huge", [np.inf, 1.5e308])
def test_class_scores_that_are_not_finite_pass_without_a_warning(huge: float) -> None:
    """Warnings are errors here; who reads the scores refuses them."""
    assert class_scores(np.array([0.5]), np.array([[0.0, huge, huge]])).shape == (1, 3)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    classes = {"fighting": RULE, "shooting": RULE | {"threshold": 0.9, "release": 0.3, "min_length": 1.5}}
    meaning = {"method": "temperature", "temperature": 2.5}
    value = document(stand_in(), classes=classes, probabilities=meaning, gate=GATE)
    path = write(tmp_path / "c.json", value)
    found = Calibration.read(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == Calibration(
        path=path,
        sha256=digest,
        camera="gate",
        bundle="5a" * 32,
        labels=LABELS,
        sampling=Sampling().to_manifest(),
        rules={"fighting": EventRule(0.05, 0.04, 0.0, 2.0), "shooting": EventRule(0.9, 0.3, 1.5, 2.0)},
        probabilities=Probabilities("temperature", 2.5),
        gate=GateRule(0.02, 7.0, 0.1, calibration=digest),
        document=value,
    )
    assert found.to_json() == {
        "calibration": str(path),
        "sha256": digest,
        "camera": "gate",
        "probabilities": "temperature",
        "classes": classes,
    }
    found.check(stand_in())


def test_a_file_may_hold_one_part_only(tmp_path: Path) -> None:
    alarms = read(tmp_path, camera=None)
    assert (alarms.camera, alarms.gate, alarms.probabilities) == (None, None, None)
    assert alarms.to_json()["probabilities"] is None
    assert isinstance(alarms.detector(), CalibratedDetector)
    gate = gate_only(tmp_path, probabilities={"method": "temperature", "temperature": 2.5})
    assert gate.gate is not None and (gate.rules, gate.probabilities) == ({}, None)
    assert gate.to_json()["classes"] == {}
    with pytest.raises(UserError, match="holds a gate and no alarms: add them with vadcalibrate alarms"):
        gate.detector()
    value = {name: part for name, part in document(stand_in()).items() if name not in ALARMS}
    with pytest.raises(UserError, match=r"c\.json: it holds neither alarms nor a gate: make it again"):
        Calibration.read(write(tmp_path / "c.json", value))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": None}, "is not a calibration file"),
        ({"schema": True}, "is not a calibration file"),
        ({"schema": "1"}, "is not a calibration file"),
        (
            {"classes": {"fighting": RULE | {"release": 0.06}, "shooting": RULE}},
            "c.json: the release threshold 0.06 is above the threshold 0.05",
        ),
        ({"classes": {label: RULE for label in LABELS}}, "its classes are not its labels"),
        ({"probabilities": {"method": "isotonic"}}, "probabilities.curves has no curve of 'fighting'"),
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
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, **changes).check(stand_in())
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "7", "null"])
def test_json_of_another_kind_is_no_calibration_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=r"c\.json is not a calibration file: make one with vadcalibrate"):
        Calibration.read(tmp_path / "c.json")


def test_other_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"was made for the classes normal, fighting, shooting, but the bundle has normal, abuse: make"
    ):
        read(tmp_path).check(stand_in(("normal", "abuse")))


def test_another_bundle_is_named_by_its_hash(tmp_path: Path) -> None:
    said = r"another bundle \(sha256 5a5a5a5a5a5a, this one has 0123456789ab\): make one for bundle with vadcalibrate"
    with pytest.raises(UserError, match=said):
        read(tmp_path).check(stand_in(sha256="0123456789abcdef" * 4))


def test_a_score_at_its_threshold_reaches_it(tmp_path: Path) -> None:
    above = float(np.nextafter(0.25, 1))
    classes = {"fighting": RULE | {"threshold": 0.25}, "shooting": RULE | {"threshold": above}}
    calibration = read(tmp_path, classes=classes)
    alignment = np.array([[0.5, 0.25, 0.25], [0.5, 0.2, 0.3]])
    reached = calibration.reached(np.array([0.5, 0.5]), alignment)  # class scores of 0.25 each, then 0.2 and 0.3
    assert reached.tolist() == [[True, False], [False, True]]


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Calibration.read(tmp_path / "none.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Calibration.read(tmp_path / "c.json")


PROBABILITIES = (
    Probabilities("temperature", 2.0),
    Probabilities("isotonic", curves={"a": ((0.0, 0.5), (0.1, 0.9)), "b": ((0.2,), (0.3,))}),
)


def test_probabilities_come_back_from_the_file() -> None:
    labels = ("normal", "a", "b")
    for made in PROBABILITIES:
        assert Probabilities.from_json(json.loads(json.dumps(made.to_json())), labels) == made
    assert PROBABILITIES[0].to_json() == {"method": "temperature", "temperature": 2.0}
    assert PROBABILITIES[1].to_json() == {
        "method": "isotonic",
        "curves": {
            "a": {"score": [0.0, 0.5], "probability": [0.1, 0.9]},
            "b": {"score": [0.2], "probability": [0.3]},
        },
    }


def test_a_temperature_takes_the_root_of_the_scores() -> None:
    scores = np.array([[0.9, 0.08, 0.02], [0.1, 0.7, 0.2]])
    roots = np.sqrt(scores)
    found = Probabilities("temperature", 2.0).of(scores, ("normal", "a", "b"))
    np.testing.assert_allclose(found, roots / roots.sum(axis=1, keepdims=True))


def test_a_low_temperature_decides_and_a_score_of_zero_counts_as_very_little() -> None:
    scores = np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.6]])
    found = Probabilities("temperature", 1e-6).of(scores, ("normal", "a"))
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = Probabilities("temperature", 3.0).of(scores[:1], ("normal", "a"))
    np.testing.assert_allclose(found, [[1 / 1.001, 0.001 / 1.001]])  # the cube root of 1e-9


def test_curves_are_straight_between_their_points_and_share_what_exceeds_one() -> None:
    curves = {"a": ((0.0, 1.0), (0.0, 0.5)), "b": ((0.2, 0.4), (0.1, 0.9))}
    scores = np.array([[0.5, 0.2, 0.3], [0.0, 1.0, 0.5], [0.7, 0.2, 0.1]])
    found = Probabilities("isotonic", curves=curves).of(scores, ("normal", "a", "b"))
    np.testing.assert_allclose(found, [[0.4, 0.1, 0.5], [0.0, 0.5 / 1.4, 0.9 / 1.4], [0.8, 0.1, 0.1]], atol=1e-15)
    assert (found >= 0).all()


@pytest.mark.parametrize(
    ("x", "y", "rises"),
    [
        ([0.0, 0.5, 0.5], [0.2, 0.2, 0.7], True),  # steps and level parts
        ([0.3], [1.0], True),
        ([0.0, 0.5, 0.4], [0.1, 0.2, 0.3], False),
        ([0.0, 0.5, 0.6], [0.1, 0.3, 0.2], False),
        ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], False),
        ([0.0, 0.5], [0.1, 0.2, 0.3], False),
        ([0.0, 0.5, 0.6], [0.1, 0.2], False),
    ],
)
def test_curves_must_rise(x: list[float], y: list[float], rises: bool) -> None:
    value = {"method": "isotonic", "curves": {"a": {"score": x, "probability": y}}}
    if rises:
        assert Probabilities.from_json(value, ("normal", "a")).curves == {"a": (tuple(x), tuple(y))}
    else:
        with pytest.raises(ValueError, match="the curve of 'a' is no rising one"):
            Probabilities.from_json(value, ("normal", "a"))


def test_class_probabilities_are_the_alignment_where_the_file_has_none(tmp_path: Path) -> None:
    anomaly, alignment = np.array([0.36]), np.array([[0.5, 0.5, 0.0]], np.float32)
    assert read(tmp_path).class_probabilities(anomaly, alignment) is alignment
    warm = read(tmp_path, probabilities={"method": "temperature", "temperature": 2.0})
    expected = Probabilities("temperature", 2.0).of(np.array([[0.64, 0.36, 0.0]]), LABELS)
    np.testing.assert_allclose(warm.class_probabilities(anomaly, alignment), expected)
    half = {label: {"score": [0.0, 1.0], "probability": [0.0, 0.5]} for label in LABELS[1:]}
    curved = read(tmp_path, probabilities={"method": "isotonic", "curves": half})
    np.testing.assert_allclose(curved.class_probabilities(anomaly, alignment), [[0.82, 0.18, 0.0]])


def test_pictures_of_alarms_and_of_the_gate_are_known(tmp_path: Path) -> None:
    small, large = {"pictures": ["64x48"]}, {"pictures": ["1920x1080", "32x16"]}
    both = read(tmp_path, footage=small, gate=GATE | {"footage": large})
    known = [both.knows_picture(*size) for size in ((64, 48), (1920, 1080), (32, 16), (48, 64), (64, 64))]
    assert known == [True, True, True, False, False]
    for one in (read(tmp_path, footage=small), gate_only(tmp_path, gate=GATE | {"footage": small})):
        assert one.knows_picture(64, 48) and not one.knows_picture(32, 16)
    for none in (read(tmp_path), read(tmp_path, footage={"videos": 2}), gate_only(tmp_path)):
        assert none.knows_picture(64, 48)  # who has no list cannot tell
    assert not read(tmp_path, footage={"pictures": []}).knows_picture(64, 48)


def test_the_gate_promises_what_its_file_says(tmp_path: Path) -> None:
    sure = GATE | {"confidence": 0.9, "score_error": {"at_most": 0.01234}}
    said = "a mean score error of at most 0.0123 with 90% confidence"
    assert gate_only(tmp_path, gate=sure).gate_promise() == said
    for part in ("confidence", "score_error"):
        less = {name: value for name, value in sure.items() if name != part}
        assert gate_only(tmp_path, gate=less).gate_promise() == "without a bound on the score error"
    assert gate_only(tmp_path, gate=sure | {"score_error": {}}).gate_promise() == "without a bound on the score error"
    assert read(tmp_path).gate_promise() == "without a bound on the score error"


def test_alarms_without_a_bound_promise_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, total={}).promise() == "without a bound on false alarms"
    assert gate_only(tmp_path).promise() == "without a bound on false alarms"
    assert gate_only(tmp_path, total={"at_most": 0.5}).promise() == "without a bound on false alarms"


@pytest.mark.parametrize(
    ("bursts", "said"),
    [
        ({"bursts": {"index": 1.0}}, "at most 0.123 false alarms a day with 95% confidence"),
        ({"bursts": None}, "at most 0.123 bursts of false alarms a day with 95% confidence"),
        ({}, "at most 0.123 false alarms a day with 95% confidence"),
    ],
)
def test_the_promise_says_what_is_counted(tmp_path: Path, bursts: dict[str, Any], said: str) -> None:
    assert read(tmp_path, total={"at_most": 0.1234} | bursts).promise() == said


def test_each_class_has_events_of_its_own_in_order_of_their_start(tmp_path: Path) -> None:
    classes = {
        "fighting": RULE | {"threshold": 0.4, "release": 0.4, "merge_gap": 0.0},
        "shooting": RULE | {"threshold": 0.3, "release": 0.2, "merge_gap": 0.0},
    }
    detector = read(tmp_path, classes=classes).detector()
    # Shooting from 0 s, fighting from 2 s; both end at 4 s, and begin again at 6 s and 5 s.
    shares = [(0.0, 0.25), (0.0, 0.35), (0.5, 0.3), (0.45, 0.2), (0.0, 0.0), (0.1, 0.5), (0.6, 0.4), (0.5, 0.25)]
    found: list[list[Event]] = []
    for index, (fighting, shooting) in enumerate(shares):
        alignment = np.array([1 - fighting - shooting, fighting, shooting])
        found.append(detector.push(index, index, index + 1.0, fighting + shooting, alignment))
    found.append(detector.finish())
    flat = [(when, event) for when, events in enumerate(found) for event in events]
    assert [(k, e.label, e.start, e.end, e.peak_time, e.first_snippet, e.last_snippet) for k, e in flat] == [
        (4, "shooting", 0.0, 4.0, 1.5, 0, 3),
        (4, "fighting", 2.0, 4.0, 2.5, 2, 3),
        (8, "shooting", 5.0, 8.0, 5.5, 5, 7),
        (8, "fighting", 6.0, 8.0, 6.5, 6, 7),
    ]
    assert [event.peak for _, event in flat] == pytest.approx([0.35, 0.5, 0.5, 0.6])
