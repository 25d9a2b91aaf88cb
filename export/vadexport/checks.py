"""How far one backend's artifacts are from PyTorch, and how far they may be.

The bundle's probe holds PyTorch's answers, so PyTorch itself is not needed. :mod:`vadexport.certificate` runs these
checks on every backend and keeps what they find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadexport.comparison import EventChanges, event_changes
from vadexport.probe import SNIPPET_SECONDS, Probe
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import EventRule, find_events
from vadrun.scoring import Scores, score_differences, scores_from_logits
from vadrun.selftest import COSINE, SCORE, cosines
from vadrun.selftest import arithmetic as coarsest_arithmetic


@dataclass(frozen=True)
class Limits:
    """What a check may differ from PyTorch float32.

    Attributes:
        cosine: of every feature, at least.
        score: of every probability, at most.
        lost: events with a peak above 0.8 that are lost, at most.
        shifted: seconds that the begin or end of an event may move; None for any.
        auc: points of AUC that may be lost on labelled footage; None for any.
    """

    cosine: float
    score: float
    lost: int = 0
    shifted: float | None = None
    auc: float | None = None

    def __str__(self) -> str:
        parts = [f"cosine >= {self.cosine:g}", f"score <= {self.score:g}", f"lost <= {self.lost}"]
        parts += [] if self.shifted is None else [f"shift <= {self.shifted:g} s"]
        parts += [] if self.auc is None else [f"AUC loss <= {self.auc:g}"]
        return ", ".join(parts)


# By the coarsest arithmetic that the encoder's numbers went through, its stored weights included.
LIMITS = {
    "fp32": Limits(COSINE["fp32"], SCORE),
    "fp16": Limits(COSINE["fp16"], score=5e-3),
    "bf16": Limits(COSINE["bf16"], score=2e-2),
    # A sure event (peak above 0.8) stays far above a threshold of 0.5 with this.
    "int8": Limits(COSINE["int8"], score=0.1),
}

Changes = Mapping[str, float]
"""Limits that are to differ from :data:`LIMITS`: name -> value."""


def parse_limits(text: str, *, labelled: bool = True) -> dict[str, float]:
    """``cosine=0.99,score=0.05`` as :data:`Changes`; without ``labelled`` footage there is no AUC to limit.

    Raises:
        UserError: an unknown limit, no finite number, or one that nothing would be held to or could reach.
    """
    known = [entry.name for entry in fields(Limits)]
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in known or not 0 <= number < math.inf:
            raise UserError(f"--limits has {part!r}: give NAME=NUMBER with names out of {', '.join(known)}")
        if name == "cosine" and number > 1:
            raise UserError(f"--limits has {part!r}, but no cosine is above 1: give a number from 0 to 1")
        if name == "auc" and not labelled:
            raise UserError(
                f"--limits has {part!r}, which takes labelled footage: give it to vadexport verify with --videos and "
                "--annotations"
            )
        found[name] = number
    return found


def limits_for(precision: str, changes: Changes | None) -> Limits:
    """The limits of a precision, with the user's changes."""
    given: dict[str, Any] = dict(changes or {})
    if "lost" in given:
        given["lost"] = int(given["lost"])
    return replace(LIMITS[precision], **given)


def head_limits(changes: Changes | None) -> Limits:
    """The limits of the head, which is float32 whatever the encoder is: the user's can only be tighter than its own."""
    own, asked = LIMITS["fp32"], limits_for("fp32", changes)
    return replace(asked, cosine=own.cosine, score=min(own.score, asked.score), lost=min(own.lost, asked.lost))


@dataclass(frozen=True)
class Check:
    """One artifact against PyTorch; a value that does not apply is None."""

    artifact: str  # "encoder", "head" or "chain" (frames to scores)
    backend: str
    precision: str
    cosine_min: float | None
    cosine_median: float | None
    score_max: float | None
    score_mean: float | None
    events_gained: int | None
    events_lost: int | None
    limits: Limits
    passed: bool
    events_sure_lost: int | None = None
    events_shifted: float | None = None  # seconds, the most


def checks_table(checks: Sequence[Check]) -> str:
    """Checks as a table for people."""
    header = ["artifact", "backend", "precision", "cosine min, median", "score max, mean", "events +/-", "shift"]
    header += ["allowed", ""]
    rows = []
    for c in checks:
        events = "-" if c.events_gained is None else f"{c.events_gained}/{c.events_lost}"
        allowed = []
        if c.cosine_min is not None:
            allowed.append(f"cosine >= {c.limits.cosine:g}")
        if c.score_max is not None:
            allowed.append(f"score <= {c.limits.score:g}")
        rows.append(
            [
                c.artifact,
                c.backend,
                c.precision,
                "-" if c.cosine_min is None else f"{c.cosine_min:.7f}, {c.cosine_median:.7f}",
                "-" if c.score_max is None else f"{c.score_max:.1e}, {c.score_mean:.1e}",
                events,
                "-" if c.events_shifted is None else f"{c.events_shifted:.1f} s",
                ", ".join(allowed),
                "pass" if c.passed else "FAIL",
            ]
        )
    return table(header, rows)


def arithmetic(engine: Engine) -> tuple[str, str]:
    """The coarsest arithmetic that the encoder's numbers went through, and that as tables show it."""
    backend = engine.backend
    precision = coarsest_arithmetic(engine.bundle, backend)
    return precision, backend.precision if backend.precision == precision else f"fp32 ({precision} weights)"


def check_engine(engine: Engine, probe: Probe, changes: Changes | None = None) -> list[Check]:
    """Encoder, head and chain of a loaded engine against the probe's answers, within the limits or ``changes``."""
    backend = engine.backend
    label = f"{backend.name}:{backend.device}"
    precision, shown = arithmetic(engine)
    limits = limits_for(precision, changes)
    branch = engine.bundle.model.anomaly

    features = engine.encode(probe.frames)
    cosine = cosines(features, probe.features)
    encoder = _check("encoder", label, shown, limits, cosine=cosine)

    reference = scores_from_logits(probe.track_logits, probe.track_alignment, branch)
    measured = _score(engine, probe.track, probe.text)
    labels = [str(number) for number in range(len(probe.text))]  # names do not matter here
    head = _check("head", label, "fp32", head_limits(changes), scores=(measured, reference), labels=labels)

    reference = scores_from_logits(probe.logits, probe.alignment, branch)
    measured = _score(engine, features, probe.text)
    chain = _check("chain", label, shown, limits, cosine=cosine, scores=(measured, reference), labels=labels)
    return [encoder, head, chain]


def _score(engine: Engine, features: NDArray[np.float32], text: NDArray[np.float32]) -> Scores | None:
    # A broken graph can give NaN; that is a failed check, not an error of the user's.
    if not np.isfinite(features).all():
        return None
    scores = scores_from_logits(*engine.logits(features, text), engine.bundle.model.anomaly)
    return scores if scores.finite else None


def _check(
    artifact: str,
    backend: str,
    precision: str,
    limits: Limits,
    *,
    cosine: NDArray[np.float64] | None = None,
    scores: tuple[Scores | None, Scores] | None = None,
    labels: Sequence[str] = (),
) -> Check:
    passed = True
    low = middle = largest = mean = None
    changes: EventChanges | None = None
    if cosine is not None:
        low, middle = float(cosine.min()), float(np.median(cosine))
        passed &= low >= limits.cosine
    if scores is not None:
        measured, reference = scores
        if measured is None:
            largest = mean = 1.0  # as wrong as a probability can be
        else:
            differences = score_differences(measured, reference)
            largest, mean = float(differences.max()), float(differences.mean())
            changes = _changes(measured, reference, list(labels))
            passed &= changes.sure_lost <= limits.lost
            passed &= limits.shifted is None or changes.shifted <= limits.shifted
        passed &= largest <= limits.score
    return Check(
        artifact,
        backend,
        precision,
        low,
        middle,
        largest,
        mean,
        None if changes is None else changes.gained,
        None if changes is None else changes.lost,
        limits,
        bool(passed),
        None if changes is None else changes.sure_lost,
        None if changes is None else changes.shifted,
    )


def _changes(measured: Scores, reference: Scores, labels: list[str]) -> EventChanges:
    """Events under the default rule, of snippets of the reference's length."""
    edges = np.arange(len(reference) + 1) * SNIPPET_SECONDS
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    mine, theirs = (find_events(s.anomaly, s.alignment, spans, EventRule(), labels) for s in (measured, reference))
    return event_changes(mine, theirs)
