"""What the table of a calibration says beside its rows."""

from __future__ import annotations

from typing import Any

from vadcalibrate.document import summary


def value(threshold: float, bursts: Any, stopped: list[Any]) -> dict[str, Any]:
    entry = {"threshold": threshold, "release": 0.4, "min_length": 1.0, "count": 1, "per_day": [0.1, 1.0, 4.0]}
    return {
        "classes": {"fight": entry},
        "labelled": [],
        "footage": {"hours": 24.0},
        "wanted": 5.0,
        "confidence": 0.95,
        "total": {"count": 1, "at_most": 4.7, "shown": True, "bursts": bursts, "index": 1.0, "stopped": stopped},
        "reliability": None,
    }


def test_moments_that_held_thresholds_up_are_named_and_high_ones_warned_of() -> None:
    moment = {"source": "n.mp4", "start": 42.0, "label": "fight", "peak": 0.98}
    said = summary(value(0.97, None, [moment]))
    assert "what held the thresholds up: n.mp4 at 42 s (fight 0.98000)" in said
    assert "warning: a threshold above 0.95 finds next to nothing (fight)" in said
    assert "warning" not in summary(value(0.5, None, [moment]))


def test_bursts_are_told_or_said_to_be_unknown() -> None:
    said = summary(value(0.5, None, []))
    assert "1 false alarm in 24.00 hours; at most 4.7 bursts of them a day" in said and "bursts are not judged" in said
    said = summary(value(0.5, {"index": 3.0, "at_most": 5.5, "events": 80, "seconds": 14400.0}, []))
    assert "at most 4.7 a day with 95% confidence" in said and "what held" not in said
    assert "index of dispersion 3.0 (1 without any), at most 5.5" in said and "for bursts of up to 4.0 hours" in said
    assert "a longer --merge-gap" in said
