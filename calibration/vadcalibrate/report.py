"""A calibration as pictures and a page: ``index.html`` and PNG files in one folder."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vadcalibrate.document import GATE, gate_summary, summary
from vadcalibrate.rates import rate_above, rate_below
from vadrun.calibration import Calibration
from vadrun.files import printable
from vadrun.schema import Anything, Flag, List, Maybe, Number, Record, Schema, Table, Text, Where, Whole, validate

INDEX = "index.html"
OTHERS = (INDEX, "scores.png", "events.png", "reliability.png")  # beside alarms.png or gate.png
_DPI = 100
_STYLE = (
    "body{font-family:sans-serif;margin:2em auto;max-width:72em;padding:0 1em}"
    "pre{background:#f4f4f4;padding:1em;overflow-x:auto}img{max-width:100%}"
)

# What is drawn and said of a calibration, as vadcalibrate.document writes it.
_FREE = Text(plain=False, most=100_000)  # names of files are in it
_MADE: dict[str, Schema] = {"date": Text(), "backend": _FREE, "method": _FREE}
_CONFIDENCE = Number(0.5, 0.999999)
_COUNT = Whole(0, 10**9)
_RELIABILITY = Record(
    {"error": Number(0), "said": List(Number(), most=1_000), "happened": List(Number(), most=1_000)}, others=Anything()
)
_CLASS = Record(
    {
        "threshold": Number(above=0, most=1),
        "release": Number(above=0, most=1),
        "min_length": Number(0),
        "count": _COUNT,
        "per_day": List(Number(0), 3, 3),
        "curve": List(_COUNT, 1, 10_000),
        "scores": List(_COUNT, 1, 10_000),
    },
    others=Anything(),
)
_ALARMS = Record(
    {
        **_MADE,
        "wanted": Number(1e-9, 1e9),
        "confidence": _CONFIDENCE,
        "footage": Record({"hours": Number(1e-9, 1e9)}, others=Anything()),
        "total": Record(
            {
                "count": _COUNT,
                "at_most": Number(0),
                "shown": Flag(),
                "index": Number(1e-3, 1e9),
                "bursts": Maybe(
                    Record({"index": Number(0), "at_most": Number(0), "events": _COUNT, "seconds": Number(0, 1e12)})
                ),
                "stopped": List(
                    Record({"source": _FREE, "start": Number(), "label": Text(), "peak": Number()}), most=10_000
                ),
            },
            others=Anything(),
        ),
        "classes": Table(_CLASS, least=1, most=400),  # a picture each
        "levels": List(Number(0, 1), 1, 10_000),
        "score_edges": List(Number(-1e6, 1e6), 2, 10_001),
        "labelled": List(
            Record({"label": Text(), "found": Flag(), "level": Maybe(Number(0, 1))}, others=Anything()), most=10_000
        ),
        "probabilities": Maybe(Anything()),  # which the runtime has checked
        "reliability": Maybe(
            Record({"clips": _COUNT, "before": _RELIABILITY, "after": _RELIABILITY}, others=Anything())
        ),
    },
    others=Anything(),
)
_TRIED = Record(
    {
        **_MADE,
        "threshold": Number(0, 1),
        "wanted": Number(0, 1),
        "confidence": _CONFIDENCE,
        "shown": Flag(),
        "share_held": Number(0, 1),
        "footage": Record({"snippets": _COUNT, "hours": Number(0, 1e9)}, others=Anything()),
        "score_error": Record(
            {
                "mean": Number(0),
                "largest": Number(0),
                "at_most": Number(0),
                "stretch": Number(0, 1e12),
                "stretches": _COUNT,
            }
        ),
        "events": Record({"found": _COUNT, "share_missed_at_most": Maybe(Number(0, 1))}, others=Anything()),
        "trials": List(
            Record(
                {
                    "threshold": Number(0, 1),
                    "share_held": Number(0, 1),
                    "mean": Number(0, 1e6),
                    "at_most": Number(0, 1e6),
                    "missed": _COUNT,
                }
            ),
            1,
            1_000,
        ),
    },
    others=Anything(),
)


def write_report(calibration: Calibration, folder: Path) -> None:
    """Draw into an existing folder.

    Raises:
        UserError: the file lacks what is drawn.
    """
    value = dict(calibration.document)
    parts = ["<!doctype html>"]
    figures: list[tuple[str, str, Figure]] = []
    where = Where(calibration.path, "make it again with vadcalibrate")
    if calibration.rules:
        validate(value, _ALARMS, where)
        sizes = {(len(entry["curve"]), len(entry["scores"]) + 1) for entry in value["classes"].values()}
        if sizes != {(len(value["levels"]), len(value["score_edges"]))}:
            raise where.error("its curves are not of its levels, or its scores not of its edges")
        if value["reliability"] is not None and value["probabilities"] is None:
            raise where.error("it has no probabilities whose reliability it tells")
    if calibration.gate is not None:
        validate(value[GATE], _TRIED, where)
    try:
        title = f"Calibration of {value['camera'] or 'a camera without a name'}"
        parts += [
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style></head>",
            f"<body><h1>{html.escape(title)}</h1>",
        ]
        if calibration.rules:
            parts += _text(value, value, summary(value))
            shown = _of_alarms(value)
            figures += shown
            parts += _pictures(shown)
        if calibration.gate is not None:
            gate = value[GATE]
            parts += ["<h1>The gate</h1>", *_text(value, gate, gate_summary(gate))]
            shown = [("gate.png", "What the gate holds, and the mean score error that this makes", _gate(gate))]
            figures += shown
            parts += _pictures(shown)
    except ValueError as error:  # sizes that do not fit each other
        raise where.error(f"it does not show ({error})") from error
    for name, _, figure in figures:
        figure.savefig(folder / name, dpi=_DPI)
    (folder / INDEX).write_text(printable("\n".join([*parts, "</body></html>", ""])), encoding="utf-8")


def _text(value: dict[str, Any], part: dict[str, Any], text: str) -> list[str]:
    """Where a part of the file is from, what it says, and how it was made."""
    origin = f"{part['date']}, bundle {value['bundle'][:12]}, {part['backend']}"
    return [
        f"<p>{html.escape(origin)}</p>",
        f"<pre>{html.escape(text)}</pre><p>{html.escape(str(part['method']))}</p>",
    ]


def _pictures(figures: list[tuple[str, str, Figure]]) -> list[str]:
    return [
        f'<h2>{html.escape(what)}</h2><p><img src="{name}" alt="{html.escape(what)}"></p>' for name, what, _ in figures
    ]


def _of_alarms(value: dict[str, Any]) -> list[tuple[str, str, Figure]]:
    """File name, title and picture of everything that the alarms' part shows."""
    figures = [
        ("scores.png", "Scores of the normal footage; the dashed line is the threshold", _scores(value)),
        ("alarms.png", "Threshold against false alarms a day, with limits", _alarms(value)),
    ]
    if value["labelled"]:
        figures.append(("events.png", "Labelled events: the highest threshold that finds them", _events(value)))
    if value["reliability"] is not None:
        figures.append(("reliability.png", "Reliability on clips that were held out", _reliability(value)))
    return figures


def _gate(gate: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    held, error = figure.subplots(1, 2)
    trials = gate["trials"]
    thresholds = [one["threshold"] for one in trials]
    held.plot(thresholds, [100 * one["share_held"] for one in trials], "o-")
    held.set(ylabel="% of the snippets held", ylim=(0, 100))
    error.plot(thresholds, [one["mean"] for one in trials], "o-", label="in the footage")
    error.plot(thresholds, [one["at_most"] for one in trials], ".--", label=f"at most ({gate['confidence']:.0%})")
    error.axhline(gate["wanted"], color="grey", linewidth=0.8)
    error.set(ylabel="mean score error", ylim=(0, None))
    error.legend()
    for axes in (held, error):
        axes.axvline(gate["threshold"], color="tab:red", linestyle="--", linewidth=1)
        axes.set(xlabel="threshold, share of the picture")
        axes.set_xscale("symlog", linthresh=0.0025)
        axes.set_xticks([0, 0.01, 0.1, 0.5], ["0", "0.01", "0.1", "0.5"])
    return figure


def _grid(value: dict[str, Any], height: float) -> tuple[Figure, list[Any]]:
    """A small picture for each class."""
    count = len(value["classes"])
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def _odds(values: Any) -> Any:
    clipped = np.clip(np.asarray(values, float), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def _name_scores(axes: Any) -> None:
    """Scores on an axis of log-odds."""
    ticks = [0.001, 0.1, 0.5, 0.9, 0.999]
    axes.set_xticks(_odds(ticks), [f"{tick:g}" for tick in ticks])


def _scores(value: dict[str, Any]) -> Figure:
    figure, grid = _grid(value, 2.6)
    for axes, (label, entry) in zip(grid, value["classes"].items(), strict=True):
        axes.stairs(np.maximum(entry["scores"], 0.5), value["score_edges"], fill=True, baseline=0.5)
        axes.axvline(_odds(entry["threshold"]), color="tab:red", linestyle="--", linewidth=1)
        axes.axvline(_odds(entry["release"]), color="tab:orange", linestyle=":", linewidth=1)
        axes.set(yscale="log", xlabel="class score", ylabel="snippets")
        axes.set_title(_plain(label), fontsize=10)
        _name_scores(axes)
    return figure


def _alarms(value: dict[str, Any]) -> Figure:
    figure, grid = _grid(value, 2.8)
    days, confidence, index = value["footage"]["hours"] / 24, value["confidence"], value["total"]["index"]
    levels = _odds(value["levels"])
    for axes, (label, entry) in zip(grid, value["classes"].items(), strict=True):
        counts = np.asarray(entry["curve"])
        known = {int(count) for count in counts}
        above = {count: rate_above(count, days, confidence, index) for count in known}
        below = {count: rate_below(count, days, confidence, index) for count in known}
        axes.fill_between(
            levels, [below[c] for c in counts], [above[c] for c in counts], alpha=0.25, linewidth=0, step="mid"
        )
        axes.step(levels, counts / days, where="mid")
        axes.axvline(_odds(entry["threshold"]), color="tab:red", linestyle="--", linewidth=1)
        axes.axhline(value["wanted"], color="grey", linewidth=0.8)
        axes.set(xlabel="threshold", ylabel="alarms a day", yscale="symlog")
        axes.set_ylim(0, None)
        axes.set_title(_plain(label), fontsize=10)
        _name_scores(axes)
    return figure


def _events(value: dict[str, Any]) -> Figure:
    figure, grid = _grid(value, 2.6)
    for axes, (label, entry) in zip(grid, value["classes"].items(), strict=True):
        mine = [outcome["level"] for outcome in value["labelled"] if outcome["label"] == label]
        reached = np.array([np.nan if level is None else level for level in mine], float)
        levels = np.asarray(value["levels"])
        found = [(reached >= level).sum() for level in levels]
        axes.step(_odds(levels), found, where="mid")
        axes.axvline(_odds(entry["threshold"]), color="tab:red", linestyle="--", linewidth=1)
        axes.set(xlabel="threshold", ylabel=f"events found, of {len(mine)}", ylim=(-0.1, max(len(mine), 1) + 0.1))
        axes.set_title(_plain(label), fontsize=10)
        _name_scores(axes)
    return figure


def _reliability(value: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    for name, what in (("before", "class scores"), ("after", value["probabilities"]["method"])):
        entry = value["reliability"][name]
        axes.plot(entry["said"], entry["happened"], "o-", label=f"{what}: error {entry['error']:.3f}")
    axes.set(xlabel="probability that is said", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


def _plain(label: str) -> str:
    return label.replace("$", r"\$")  # a "$" would begin a formula
