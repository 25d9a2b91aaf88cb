"""Calibration files of one camera and one bundle: thresholds for each class, what class scores mean, and the gate.

``vadcalibrate alarms`` makes the first two, ``vadcalibrate gate`` the last; a file holds what one of them or both have
made, and the runtime reads and applies it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.bundle import Bundle
from vadrun.errors import UserError
from vadrun.events import Event, EventDetector, EventRule
from vadrun.gate import GateRule
from vadrun.schema import (
    SHA256,
    Anything,
    List,
    Maybe,
    Number,
    Record,
    Schema,
    Table,
    Text,
    Where,
    Whole,
    parse_json,
    read_file,
    validate,
)

SCHEMA = 1
KIND = "vadclip-edge calibration"
METHODS = ("temperature", "isotonic")

_RULE: dict[str, Schema] = {
    "threshold": Number(above=0, most=1),
    "release": Number(above=0, most=1),
    "min_length": Number(0),
    "merge_gap": Number(0),
}
_CURVE = Record({"score": List(Number(), 1, 100_000), "probability": List(Number(0, 1), 1, 100_000)})
_PROBABILITIES = Record(
    {"method": Text(among=METHODS)}, {"temperature": Number(1e-6, 1e6), "curves": Table(_CURVE)}, others=Anything()
)
_FOOTAGE = Record({}, {"pictures": List(Text())}, others=Anything())
_GATE = Record(
    {"threshold": Number(0, 1), "heartbeat": Number(above=0), "audit": Number(above=0, most=1)},
    {
        "confidence": Number(0, 1),
        "footage": _FOOTAGE,
        "score_error": Record({}, {"at_most": Number()}, others=Anything()),
    },
    others=Anything(),
)
_CALIBRATION = Record(
    {
        "schema": Whole(1),
        "kind": Text(),
        "camera": Maybe(Text(1, 200)),
        "bundle": SHA256,
        "labels": List(Text(1, 200), 2, 10_000, unique=True),
        "sampling": Table(Anything()),
    },
    {
        "precision": Maybe(Text()),
        "confidence": Number(0, 1),
        "footage": _FOOTAGE,
        "total": Record({}, {"at_most": Number()}, others=Anything()),
        "classes": Table(Record(_RULE, others=Anything()), least=1),
        "probabilities": Maybe(_PROBABILITIES),
        "gate": _GATE,
    },
    others=Anything(),
)

Floats = NDArray[np.float64]
_LEAST = 1e-9  # of a probability, before its logarithm is taken


def class_scores(anomaly: NDArray[np.floating], alignment: NDArray[np.floating]) -> Floats:
    """The anomaly score, shared out to the classes: [n,m] with rows that sum to 1, column 0 the normal class.

    Class c gets ``anomaly * alignment[c] / (sum of the abnormal alignment)``. Where the alignment branch scores, this
    is the alignment itself.

    Args:
        anomaly: anomaly scores [n].
        alignment: class probabilities [n,m].
    """
    score = np.asarray(anomaly, np.float64)
    abnormal = np.asarray(alignment, np.float64)[:, 1:]
    whole = abnormal.sum(axis=1, keepdims=True)
    share = np.where(whole > 0, abnormal / np.where(whole > 0, whole, 1.0), 1.0 / abnormal.shape[1])
    return np.concatenate([(1.0 - score)[:, None], score[:, None] * share], axis=1)


@dataclass(frozen=True)
class Probabilities:
    """What class scores mean, learned from labelled clips.

    Attributes:
        method: "temperature": ``p_c ~ score_c^(1/T)``; "isotonic": a rising curve for each abnormal class.
        temperature: T.
        curves: label -> (scores, probabilities), both rising; between them the curve is straight.
    """

    method: str
    temperature: float = 1.0
    curves: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] | None = None

    def of(self, scores: Floats, labels: tuple[str, ...]) -> Floats:
        """Probabilities [n,m] of :func:`class_scores` [n,m]; rows sum to 1."""
        if self.method == "temperature":
            logits = np.log(np.maximum(scores, _LEAST)) / self.temperature
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            return np.asarray(e / e.sum(axis=1, keepdims=True))
        found = np.zeros_like(scores)
        for column, label in enumerate(labels[1:], start=1):
            x, y = (self.curves or {})[label]
            found[:, column] = np.interp(scores[:, column], x, y)
        # Curves are fitted one by one and may promise more than 1 together.
        found /= np.maximum(found.sum(axis=1, keepdims=True), 1.0)
        found[:, 0] = np.maximum(1.0 - found[:, 1:].sum(axis=1), 0.0)
        return found

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        if self.method == "temperature":
            return {"method": self.method, "temperature": self.temperature}
        curves = {label: {"score": list(x), "probability": list(y)} for label, (x, y) in (self.curves or {}).items()}
        return {"method": self.method, "curves": curves}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], labels: tuple[str, ...]) -> Probabilities:
        """Read what :meth:`to_json` wrote, after its types have been checked.

        Raises:
            ValueError: it lacks its temperature or a class's curve, or a curve does not rise.
        """
        if value["method"] == "temperature":
            if "temperature" not in value:
                raise ValueError("probabilities.temperature is missing")
            return cls("temperature", float(value["temperature"]))
        curves = {}
        for label in labels[1:]:
            curve = value.get("curves", {}).get(label)
            if curve is None:
                raise ValueError(f"probabilities.curves has no curve of {label!r}")
            x, y = (tuple(float(v) for v in curve[key]) for key in ("score", "probability"))
            if not (len(x) == len(y) and all(np.diff(x) >= 0) and all(np.diff(y) >= 0)):
                raise ValueError(f"the curve of {label!r} is no rising one from 0 to 1")
            curves[label] = (x, y)
        return cls("isotonic", curves=curves)


@dataclass(frozen=True)
class Calibration:
    """A calibration file that has been read.

    Attributes:
        path: where it lies.
        sha256: of the file.
        camera: as the user named it; None for no one camera.
        bundle: sha256 of the bundle's manifest.
        labels: the m classes, normal first.
        sampling: of the bundle.
        rules: label of an abnormal class -> when its score (:func:`class_scores`) is an alarm; empty if the file holds
            no alarms.
        probabilities: what class scores mean; None where no clips were labelled.
        gate: when a snippet is held; None if the file holds no gate.
        document: the whole file.
    """

    path: Path
    sha256: str
    camera: str | None
    bundle: str
    labels: tuple[str, ...]
    sampling: Mapping[str, Any]
    rules: Mapping[str, EventRule]
    probabilities: Probabilities | None
    gate: GateRule | None
    document: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read a calibration file.

        Raises:
            UserError: it is none, or was made by a newer toolkit.
        """
        path = Path(path)
        where = Where(path, "make it again with vadcalibrate")
        raw = read_file(path, where)
        value = parse_json(raw, where)
        if not isinstance(value, dict) or value.get("kind") != KIND or type(value.get("schema")) is not int:
            raise UserError(f"{path} is not a calibration file: make one with vadcalibrate")
        if value["schema"] > SCHEMA:
            raise UserError(f"{path} was made by a newer vadclip-edge: update vadclip-edge on this machine")
        validate(value, _CALIBRATION, where)
        labels, digest = tuple(value["labels"]), hashlib.sha256(raw).hexdigest()
        rules, probabilities, gate = {}, None, None
        try:
            if "classes" not in value and "gate" not in value:
                raise ValueError("it holds neither alarms nor a gate")
            if "classes" in value:
                rules = _rules(value["classes"], labels)
                if value.get("probabilities") is not None:
                    probabilities = Probabilities.from_json(value["probabilities"], labels)
            if "gate" in value:
                threshold, heartbeat, audit = (value["gate"][name] for name in ("threshold", "heartbeat", "audit"))
                gate = GateRule(float(threshold), float(heartbeat), float(audit), calibration=digest)
        except (UserError, ValueError) as error:
            raise where.error(str(error)) from error
        return cls(
            path, digest, value["camera"], value["bundle"], labels, value["sampling"], rules, probabilities, gate, value
        )

    def check(self, bundle: Bundle) -> None:
        """Hold the calibration against the bundle that shall run.

        Raises:
            UserError: it was made for other classes, another sampling or another bundle.
        """
        again = f"make one for {bundle.root} with vadcalibrate"
        if self.labels != bundle.model.labels:
            raise UserError(
                f"{self.path} was made for the classes {', '.join(self.labels)}, but the bundle has "
                f"{', '.join(bundle.model.labels)}: {again}"
            )
        if dict(self.sampling) != bundle.sampling.to_manifest():
            raise UserError(f"{self.path} was made for another sampling than the bundle's: {again}")
        if self.bundle != bundle.sha256:
            raise UserError(
                f"{self.path} was made for another bundle (sha256 {self.bundle[:12]}, this one has "
                f"{bundle.sha256[:12]}): {again}"
            )

    def detector(self) -> CalibratedDetector:
        """A new detector for one video.

        Raises:
            UserError: the file holds no alarms.
        """
        if not self.rules:
            raise UserError(f"{self.path} holds a gate and no alarms: add them with vadcalibrate alarms")
        return CalibratedDetector(self)

    def reached(self, anomaly: NDArray[np.floating], alignment: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each abnormal class's score is at its threshold or above, [n,m-1]."""
        thresholds = np.array([self.rules[label].threshold for label in self.labels[1:]])
        return np.asarray(class_scores(anomaly, alignment)[:, 1:] >= thresholds)

    def class_probabilities(
        self, anomaly: NDArray[np.floating], alignment: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """Class probabilities [n,m]: calibrated where the file can do it, the alignment as it is elsewhere."""
        if self.probabilities is None:
            return alignment
        return self.probabilities.of(class_scores(anomaly, alignment), self.labels)

    def knows_picture(self, width: int, height: int) -> bool:
        """Whether there was footage of this size; a video of another size is hardly of the same camera."""
        parts = (self.document, self.document.get("gate", {}))
        lists = [part.get("footage", {}).get("pictures") for part in parts]
        known = [pictures for pictures in lists if pictures is not None]
        return not known or any(f"{width}x{height}" in pictures for pictures in known)

    def promise(self) -> str:
        """What the file says of false alarms, as a clause."""
        total = self.document.get("total", {})
        if "at_most" not in total or "confidence" not in self.document:
            return "without a bound on false alarms"
        # Where the footage could not tell whether alarms come in bursts, the limit is of bursts.
        what = "bursts of false alarms" if total.get("bursts", {}) is None else "false alarms"
        return f"at most {total['at_most']:.3g} {what} a day with {self.document['confidence']:.0%} confidence"

    def gate_promise(self) -> str:
        """What the file says of the gate's score errors, as a clause."""
        gate = self.document.get("gate", {})
        error = gate.get("score_error", {})
        if "at_most" not in error or "confidence" not in gate:
            return "without a bound on the score error"
        return f"a mean score error of at most {error['at_most']:.3g} with {gate['confidence']:.0%} confidence"

    def to_json(self) -> dict[str, Any]:
        """For ``result.json``, in place of the one rule."""
        return {
            "calibration": str(self.path),
            "sha256": self.sha256,
            "camera": self.camera,
            "probabilities": None if self.probabilities is None else self.probabilities.method,
            "classes": {label: rule.to_json() for label, rule in self.rules.items()},
        }


def _rules(classes: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, EventRule]:
    if set(classes) != set(labels[1:]):
        raise ValueError("its classes are not its labels")
    names = ("threshold", "release", "min_length", "merge_gap")
    return {label: EventRule(**{name: float(classes[label][name]) for name in names}) for label in labels[1:]}


class CalibratedDetector:
    """One :class:`vadrun.events.EventDetector` for each class, on the class's own score.

    Events of different classes may overlap; an event's peak is that of its class's score.
    """

    def __init__(self, calibration: Calibration) -> None:
        labels = calibration.labels
        self._detectors = [EventDetector(calibration.rules[label], [labels[0], label]) for label in labels[1:]]
        self._one = np.array([0.0, 1.0])

    def push(
        self, index: int, start: float, end: float, anomaly: float, alignment: NDArray[np.floating]
    ) -> list[Event]:
        """As :meth:`vadrun.events.EventDetector.push`."""
        scores = class_scores(np.array([anomaly]), np.asarray(alignment)[None])[0, 1:]
        found: list[Event] = []
        for detector, score in zip(self._detectors, scores, strict=True):
            found += detector.push(index, start, end, float(score), self._one)
        return sorted(found, key=lambda event: event.start)

    def finish(self) -> list[Event]:
        """The events that the end of the video makes certain."""
        found = [event for detector in self._detectors for event in detector.finish()]
        return sorted(found, key=lambda event: event.start)
