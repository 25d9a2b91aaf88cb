"""The calibration file: what the runtime needs, and what a report draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np

from vadcalibrate.alarms import DAY, Moment, Thresholds, duration, levels
from vadcalibrate.footage import Footage, plural
from vadcalibrate.labelled import Outcome
from vadcalibrate.probability import Fitted
from vadcalibrate.rates import days_needed, rate_above, rate_below
from vadrun.calibration import KIND, SCHEMA
from vadrun.console import table, version
from vadrun.engine import Engine

_EDGES = np.linspace(-12.0, 12.0, 97)  # of the histogram of normal scores, in log-odds

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


def document(
    engine: Engine,
    camera: str | None,
    footage: Sequence[Footage],
    thresholds: Thresholds,
    found: Sequence[Outcome],
    fitted: Fitted | None,
) -> dict[str, Any]:
    """The file's content; :class:`vadrun.calibration.Calibration` reads it."""
    bundle = engine.bundle
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
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "toolkit": version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "camera": camera,
        "bundle": bundle.sha256,
        "labels": list(bundle.model.labels),
        "sampling": bundle.sampling.to_manifest(),
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
    """The file as a table for people, and what it promises in words."""
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
