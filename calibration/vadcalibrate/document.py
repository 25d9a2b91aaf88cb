"""The calibration file: what the runtime needs, and what a report draws.

It holds alarms, a gate, or both; each command writes its own part and keeps the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vadcalibrate.alarms import DAY, Moment, Thresholds, duration, levels
from vadcalibrate.footage import Footage, plural
from vadcalibrate.gate import Chosen, Measured
from vadcalibrate.labelled import Outcome
from vadcalibrate.probability import Fitted
from vadcalibrate.rates import days_needed, rate_above, rate_below
from vadrun.bundle import Bundle
from vadrun.calibration import KIND, SCHEMA, Calibration
from vadrun.console import table, version
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import EventRule

_EDGES = np.linspace(-12.0, 12.0, 97)  # of the histogram of normal scores, in log-odds

GATE = "gate"
_SHARED = ("schema", "kind", "camera", "bundle", "labels", "sampling")
_HIGH = 0.95  # a threshold above it finds next to nothing

METHOD = (
    "Alarms are the runtime's events of a class; those of one class that are nearer than the merge gap are one. "
    "Alarms come in bursts that start at random, as frequent at any hour as in this footage. Thresholds were lowered "
    "level by level, always that of the class with the fewest alarms, until one more would be too many by the "
    "(Garwood) upper limit. Limits are widened by the upper limit of the index of dispersion, which assumes that "
    "bursts are over within the stretches of time that it is of, no more uneven than geometric in size, and no larger "
    "at higher levels. "
    "Where it cannot be judged, limits are of bursts, whatever number of alarms each holds."
)

GATE_METHOD = (
    "Everything was encoded, and the runtime's gate judged it at every threshold: the score error is the difference "
    "between the scores with and without it, over all snippets. The bound is one by betting on the means of stretches, "
    "which are taken to be independent, with activity as in this footage. Thresholds were tested from the smallest on, "
    "and the first that allows too much, or misses an event, ended it."
)


def kept(path: Path, bundle: Bundle, camera: str | None, *, mine: str) -> dict[str, Any]:
    """What a file that may be there holds beside the part that is going to be written ("alarms" or "gate").

    Raises:
        UserError: there is a file of another kind, or the other part is of another bundle or camera.
    """
    if not path.exists():
        return {}
    again = "give another name to --out, or move it away"
    try:
        there = Calibration.read(path)
    except UserError as error:
        raise UserError(f"--out is there already and cannot be kept ({error}): {again}") from error
    value = dict(there.document)
    if mine == GATE:
        other, part = "alarms", {key: value[key] for key in value if key not in (*_SHARED, GATE)}
        if not there.rules:
            return {}
    else:
        other, part = "a gate", {key: value[key] for key in value if key == GATE}
        if not part:
            return {}
    if there.bundle != bundle.sha256:
        raise UserError(f"{path} holds {other} for another bundle (sha256 {there.bundle[:12]}): {again}")
    if there.camera is not None:
        if camera not in (None, there.camera):
            raise UserError(f"{path} holds {other} for the camera {there.camera}, not for {camera}: {again}")
        part["camera"] = there.camera
    return part


def shared(engine: Engine, camera: str | None) -> dict[str, Any]:
    """What every calibration file begins with."""
    bundle = engine.bundle
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "camera": camera,
        "bundle": bundle.sha256,
        "labels": list(bundle.model.labels),
        "sampling": bundle.sampling.to_manifest(),
    }


def gate_document(
    engine: Engine, camera: str | None, measured: Measured, chosen: Chosen, events: EventRule | Calibration
) -> dict[str, Any]:
    """The content of a file that holds a gate alone."""
    trial, found = chosen.trial, measured.events
    return shared(engine, camera) | {
        GATE: {
            **_made(),
            "precision": engine.backend.precision,
            "backend": engine.description,
            "threshold": trial.threshold,
            "heartbeat": measured.rule.heartbeat,
            "audit": measured.rule.audit,
            "wanted": chosen.wanted,
            "confidence": chosen.confidence,
            "shown": chosen.shown,
            "footage": {
                "videos": measured.videos,
                "hours": measured.seconds / 3600,
                "snippets": len(trial.errors),
                "pictures": sorted(f"{width}x{height}" for width, height in measured.pictures),
            },
            "share_held": trial.held / len(trial.errors),
            "score_error": {
                "mean": float(trial.errors.mean()),
                "largest": float(trial.errors.max()),
                "at_most": chosen.bound.at_most,
                "stretch": chosen.bound.stretch,
                "stretches": chosen.bound.count,
            },
            "events": {
                "rule": events.to_json(),
                "found": found,
                "missed": trial.missed,
                # Exact (Clopper and Pearson), where none is missed.
                "share_missed_at_most": 1 - (1 - chosen.confidence) ** (1 / found) if found else None,
            },
            "method": GATE_METHOD,
            "trials": [
                {
                    "threshold": one.threshold,
                    "share_held": one.held / len(one.errors),
                    "mean": float(one.errors.mean()),
                    "at_most": bound.at_most,
                    "missed": one.missed,
                }
                for one, bound in zip(measured.trials, chosen.bounds, strict=True)
            ],
        }
    }


def gate_summary(gate: dict[str, Any]) -> str:
    """The gate's part of a file as a table for people, and what it promises in words."""
    rows = [
        [
            f"{one['threshold']:g}",
            f"{one['share_held']:.1%}",
            f"{one['mean']:.4f}",
            f"{one['at_most']:.4f}",
            str(one["missed"]),
            "<- chosen" if one["threshold"] == gate["threshold"] else "",
        ]
        for one in gate["trials"]
    ]
    header = ["threshold", "held", "score error", "at most", "events missed", ""]
    footage, error, events = gate["footage"], gate["score_error"], gate["events"]
    confidence = f"{gate['confidence']:.0%} confidence"
    lines = [
        table(header, rows, right=(0, 1, 2, 3, 4)),
        f"gate at {gate['threshold']:g}: {gate['share_held']:.0%} of {footage['snippets']} snippets in "
        f"{footage['hours']:.2f} hours are held; scores are off by {error['mean']:.4f} on average (at most "
        f"{error['at_most']:.3g} with {confidence}, from {error['stretches']} stretches of {error['stretch']:.0f} s), "
        f"by {error['largest']:.3f} at the worst",
    ]
    if not gate["shown"]:
        lines.append(
            f"this footage is too short to show the {gate['wanted']:g} that was allowed: the threshold goes by the "
            "mean over it"
        )
    if events["share_missed_at_most"] is not None:
        lines.append(
            f"none of its {events['found']} events is missed; that shows that at most "
            f"{events['share_missed_at_most']:.0%} of such events are, with {confidence}"
        )
    else:
        lines.append("it holds no event, so it does not tell how many the gate would miss")
    return "\n".join(lines)


def _made() -> dict[str, Any]:
    return {"toolkit": version(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def document(
    engine: Engine,
    camera: str | None,
    footage: Sequence[Footage],
    thresholds: Thresholds,
    found: Sequence[Outcome],
    fitted: Fitted | None,
) -> dict[str, Any]:
    """The content of a file that holds alarms alone; :class:`vadrun.calibration.Calibration` reads it."""
    days, confidence = thresholds.days, thresholds.confidence
    classes = {}
    for column, (label, entry) in enumerate(thresholds.classes.items(), start=1):
        values = np.concatenate([item.scores[:, column] for item in footage])
        odds = np.log(np.clip(values, 1e-6, 1 - 1e-6) / (1 - np.clip(values, 1e-6, 1 - 1e-6)))
        classes[label] = {
            **entry.rule.to_json(),
            "count": entry.count,
            "per_day": [
                rate_below(entry.count, days, confidence, thresholds.index),
                entry.count / days,
                rate_above(entry.count, days, confidence, thresholds.index),
            ],
            "curve": list(entry.curve),
            "scores": np.histogram(np.clip(odds, -12, 12), _EDGES)[0].tolist(),
        }
    bursts = thresholds.bursts
    precisions = {item.precision for item in footage if item.precision}
    return shared(engine, camera) | {
        **_made(),
        "precision": precisions.pop() if len(precisions) == 1 else None,
        "backend": engine.description,
        "wanted": thresholds.wanted,
        "confidence": confidence,
        "footage": {
            "videos": len(footage),
            "hours": days * 24,
            "pictures": sorted({"x".join(map(str, item.picture)) for item in footage}),
        },
        "total": {
            "count": thresholds.count,
            "per_day": thresholds.count / days,
            "at_most": thresholds.at_most,
            "shown": thresholds.shown,
            "bursts": None if bursts is None else asdict(bursts),
            "index": thresholds.index,
            "stopped": [asdict(moment) for moment in thresholds.stopped],
        },
        "method": METHOD,
        "classes": classes,
        "levels": [round(float(level), 8) for level in levels()],
        "score_edges": [round(float(edge), 4) for edge in _EDGES],
        "labelled": [outcome.to_json() for outcome in found],
        "probabilities": None if fitted is None else fitted.probabilities.to_json(),
        "reliability": None
        if fitted is None
        else {"clips": fitted.clips, "before": fitted.before.to_json(), "after": fitted.after.to_json()},
    }


def summary(value: dict[str, Any]) -> str:
    """The file's alarms as a table for people, and what they promise in words."""
    rows = []
    for label, entry in value["classes"].items():
        mine = [outcome for outcome in value["labelled"] if outcome["label"] == label]
        seen = f"{sum(outcome['found'] for outcome in mine)} of {len(mine)}" if mine else "-"
        low, rate, high = entry["per_day"]
        rows.append(
            [
                label,
                f"{entry['threshold']:.4f}",
                f"{entry['release']:.4f}",
                f"{entry['min_length']:.1f} s",
                str(entry["count"]),
                f"{rate:.2f} ({low:.2f} to {high:.2f})",
                seen,
            ]
        )
    header = [
        "class",
        "threshold",
        "release",
        "at least",
        "false alarms",
        "a day (limits)",
        "events found",
    ]
    footage, total = value["footage"], value["total"]
    bursts, stopped = total["bursts"], [str(Moment(**moment)) for moment in total["stopped"]]
    what = "" if bursts is not None else "bursts of them "
    lines = [
        table(header, rows, right=(1, 2, 3, 4)),
        f"all classes: {plural(total['count'], 'false alarm')} in {footage['hours']:.2f} hours; at most "
        f"{total['at_most']:.3g} {what}a day with {value['confidence']:.0%} confidence",
    ]
    if not total["shown"]:
        need = days_needed(value["wanted"], value["confidence"], total["index"])
        lines.append(
            f"this footage is too short to show the {value['wanted']:g} a day that were asked for: that takes "
            f"{duration(need)} without an alarm"
        )
    if bursts is None:
        lines.append(
            "bursts are not judged: even at the lowest level there are too few alarms to tell whether they come in "
            "bursts, so the limit is of bursts a day, whatever number of alarms each may hold"
        )
    else:
        lines.append(
            f"bursts: index of dispersion {bursts['index']:.1f} (1 without any), at most {bursts['at_most']:.1f}, by "
            f"which limits are widened; from {bursts['events']} alarms, for bursts of up to "
            f"{duration(bursts['seconds'] / DAY)}"
        )
        if bursts["index"] > 2:
            lines.append("alarms come in bursts here: a longer --merge-gap makes one alarm of each")
    if stopped:
        lines.append(f"what held the thresholds up: {'; '.join(stopped)}")
        high = [label for label, entry in value["classes"].items() if entry["threshold"] > _HIGH]
        if high:
            lines.append(
                f"warning: a threshold above {_HIGH:g} finds next to nothing ({', '.join(high)}): where these moments "
                "are true events, the footage is not normal: take them out of it"
            )
    if value["reliability"] is not None:
        before, after = value["reliability"]["before"], value["reliability"]["after"]
        clips = plural(value["reliability"]["clips"], "clip")
        lines.append(
            f"probabilities by {value['probabilities']['method']} from {clips}: "
            f"calibration error {before['error']:.3f} before, {after['error']:.3f} after (clips that were held out)"
        )
    return "\n".join(lines)
