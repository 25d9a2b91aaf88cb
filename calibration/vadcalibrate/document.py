"""The calibration file: what the runtime needs, and what a report draws."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from vadcalibrate.alarms import DAY, Thresholds, levels
from vadcalibrate.footage import Footage
from vadcalibrate.labelled import Outcome
from vadcalibrate.probability import Fitted
from vadcalibrate.rates import days_needed, rate_above, rate_below
from vadrun.calibration import KIND, SCHEMA
from vadrun.console import table, version
from vadrun.engine import Engine

_EDGES = np.linspace(-12.0, 12.0, 97)  # of the histogram of normal scores, in log-odds

METHOD = (
    "Alarms are the runtime's events of a class; those of one class that are nearer than the merge gap are one. "
    "Alarms further apart are taken for a Poisson process, as frequent at any hour as in this footage. Thresholds were "
    "lowered level by level, always that of the class with the fewest alarms, until one more would be too many by the "
    "exact (Garwood) upper limit, which is widened by the index of dispersion where alarms come in bursts."
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
                rate_below(entry.count, days, confidence),
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
            "bursts": None if bursts is None else {"index": bursts.index, "chance": bursts.chance},
            "index": thresholds.index,
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
    lines = [
        table(header, rows, right=(1, 2, 3, 4)),
        f"all classes: {total['count']} false alarms in {footage['hours']:.2f} hours; at most {total['at_most']:.3g} a "
        f"day with {value['confidence']:.0%} confidence",
    ]
    if not total["shown"]:
        need = days_needed(value["wanted"], value["confidence"], total["index"])
        lines.append(
            f"this footage is too short to show the {value['wanted']:g} a day that were asked for: that takes "
            f"{need * DAY / 3600:.1f} hours without an alarm"
        )
    if total["index"] > 1:
        lines.append(
            f"alarms come in bursts here (index of dispersion {total['index']:.1f}, 1 without), so "
            "the limit is wider; a longer --merge-gap makes one alarm of each"
        )
    if value["reliability"] is not None:
        before, after = value["reliability"]["before"], value["reliability"]["after"]
        lines.append(
            f"probabilities by {value['probabilities']['method']} from {value['reliability']['clips']} clips: "
            f"calibration error {before['error']:.3f} before, {after['error']:.3f} after (clips that were held out)"
        )
    return "\n".join(lines)
