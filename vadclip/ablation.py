"""The paper's ablations (Tables 5 to 7): train each of their rows, evaluate it, and put the table together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vadclip.config import Design
from vadclip.evaluation import Evaluation
from vadrun.console import table
from vadrun.errors import UserError
from vadrun.files import write_csv, write_json, write_text
from vadrun.schema import Anything, List, Record, load_json

_BRANCHES_ONLY = Design(prompt="plain", visual="none")

TABLES: Mapping[int, Mapping[str, Design]] = {
    5: {
        "baseline": Design(temporal="none"),
        "global-tf-encoder": Design(temporal="global"),
        "local-tf-encoder": Design(temporal="local"),
        "only-gcn": Design(temporal="gcn"),
        "local-tf-encoder+global-tf-encoder": Design(temporal="local+global"),
        "global-tf-encoder+gcn": Design(temporal="global+gcn"),
        "lgt-adapter": Design(),
    },
    6: {
        "c-branch": Design(prompt="plain", visual="none", branches="confidence"),
        "a-branch": Design(prompt="plain", visual="none", branches="alignment"),
        "both-branches": _BRANCHES_ONLY,
        "both-branches+learnable-prompt": Design(visual="none"),
        "both-branches+visual-prompt": Design(prompt="plain"),
        "both-branches+both-prompts": Design(),
    },
    7: {
        "hand-crafted-prompt": Design(prompt="hand"),
        "learnable-prompt": Design(),
        "average-frame-visual-prompt": Design(visual="average"),
        "anomaly-focus-visual-prompt": Design(),
    },
}
"""Table number -> row -> what is trained for it. The whole model has a row in each."""

FIGURES = ("AUC", "AP", "AVG")
"""Frame AUC and AP of the reported branch, and detection mAP averaged over IoU 0.1 to 0.5 (``abnormal-only``), in %."""


@dataclass(frozen=True)
class Row:
    """A row of a table: its figures in percent for each seed.

    AVG is None where the truth has no classes, and where the A-branch, which tells them, is not trained.
    """

    table: int
    name: str
    design: Design
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float | None, ...]]


def chosen_rows(tables: Sequence[int] = (), names: Sequence[str] = ()) -> list[tuple[int, str, Design]]:
    """(table, row, design) of whole tables and of single rows; of all of them if none is named.

    Raises:
        UserError: there is no such table or row.
    """
    if unknown := [number for number in tables if number not in TABLES]:
        raise UserError(f"there is no table {unknown[0]} of ablations: use one of {', '.join(map(str, TABLES))}")
    known = [name for rows in TABLES.values() for name in rows]
    if missing := [name for name in names if name not in known]:
        raise UserError(f"there is no ablation {missing[0]!r}: use one of {', '.join(known)}")
    everything = not tables and not names
    return [
        (number, name, design)
        for number, rows in TABLES.items()
        for name, design in rows.items()
        if everything or number in tables or name in names
    ]


def ablate(
    rows: Sequence[tuple[int, str, Design]],
    seeds: Sequence[int],
    train_one: Callable[[Design, int, Path], Evaluation],
    out: Path,
    origin: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Train and evaluate every design once for each seed, and write ``ablation.csv``, ``.json`` and ``.md``.

    Rows that are in ``out`` from an earlier call with the same ``origin`` stay in the tables.

    Args:
        rows: of :func:`chosen_rows`; a design that several rows share is trained once.
        seeds: for each of which everything is trained anew.
        train_one: trains a design with a seed in a folder, or goes on there, and evaluates it.
        out: where the runs (``out/runs/``) and the tables go; they are written again after every design.
        origin: what the figures of all rows have in common (recipe, lists), as plain data.
        say: told what is being trained.

    Returns:
        The rows with their figures, in the order of the tables, those of earlier calls among them.
    """
    designs = list(dict.fromkeys(design for _, _, design in rows))
    asked = {(number, name) for number, name, _ in rows}
    earlier, same = _earlier(out, origin)
    if earlier and not same:
        say("the tables that are there were made with another recipe or other lists: their rows are left out")
        earlier = []
    found: dict[Design, list[Evaluation]] = {}
    finished = [row for row in earlier if (row.table, row.name) not in asked]
    for number, design in enumerate(designs, 1):
        name = run_name(design)
        say(f"[{number}/{len(designs)}] {name}")
        found[design] = [train_one(design, seed, out / "runs" / name / f"seed-{seed}") for seed in seeds]
        figures = _figures(found[design], design)
        finished += [
            Row(table_number, name, design, tuple(seeds), figures)
            for table_number, name, other in rows
            if other == design
        ]
        finished.sort(key=lambda row: (row.table, list(TABLES[row.table]).index(row.name)))
        _write(out, finished, origin)
    return finished


def run_name(design: Design) -> str:
    """What the runs of a design are called, whichever of its rows is asked for: its first row in the tables."""
    return next(name for rows in TABLES.values() for name, other in rows.items() if other == design)


def _earlier(out: Path, origin: Mapping[str, Any]) -> tuple[list[Row], bool]:
    """The rows in ``out`` and whether they have this origin."""
    path = out / "ablation.json"
    if not path.exists():
        return [], True
    advice = "remove it, or name another folder"
    try:
        content = load_json(path, Record({}, {"rows": List(Record(others=Anything()))}, Anything()), advice)
        if "origin" not in content:
            return [], False
        rows = [
            Row(
                row["table"],
                row["row"],
                TABLES[row["table"]][row["row"]],
                tuple(row["seeds"]),
                {name: tuple(row["figures"][name]) for name in FIGURES},
            )
            for row in content["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not read ({error}): {advice}") from error
    return rows, content["origin"] == json.loads(json.dumps(origin))


def report(rows: Sequence[Row]) -> str:
    """The tables as text: means over the seeds, with the standard deviation where there are several."""
    parts = []
    for number in dict.fromkeys(row.table for row in rows):
        cells = [[row.name, *(_cell(row.figures[name]) for name in FIGURES)] for row in rows if row.table == number]
        parts += [f"Table {number}, in percent", table(["row", *FIGURES], cells, right=(1, 2, 3)), ""]
    return "\n".join(parts).rstrip()


def _figures(evaluations: Sequence[Evaluation], design: Design) -> dict[str, tuple[float | None, ...]]:
    def detection(evaluation: Evaluation) -> float | None:
        if design.branches == "confidence":
            return None
        return evaluation.detection["abnormal-only"].avg if evaluation.detection else None

    frames = [evaluation.frames[evaluation.branch] for evaluation in evaluations]
    return {
        "AUC": tuple(100 * one.auc for one in frames),
        "AP": tuple(100 * one.ap for one in frames),
        "AVG": tuple(detection(evaluation) for evaluation in evaluations),
    }


def _cell(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    return f"{mean(there):.2f}" if len(there) == 1 else f"{mean(there):.2f} ± {stdev(there):.2f}"


def _write(out: Path, rows: Sequence[Row], origin: Mapping[str, Any]) -> None:
    plain: list[dict[str, Any]] = [
        {
            "table": row.table,
            "row": row.name,
            "design": vars(row.design),
            "seeds": list(row.seeds),
            "figures": dict(row.figures),
        }
        for row in rows
    ]
    write_json(out / "ablation.json", {"origin": dict(origin), "rows": plain})
    cells: list[list[object]] = [["table", "row", "seed", *FIGURES]]
    for row in rows:
        for index, seed in enumerate(row.seeds):
            values = (row.figures[name][index] for name in FIGURES)
            cells.append([row.table, row.name, seed, *("" if v is None else f"{v:.4f}" for v in values)])
    write_csv(out / "ablation.csv", cells)
    lines = []
    for number in dict.fromkeys(row.table for row in rows):
        lines += [
            f"Table {number} of the paper, in percent",
            "",
            f"| row | {' | '.join(FIGURES)} |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row.name} | {' | '.join(_cell(row.figures[name]) for name in FIGURES)} |"
            for row in rows
            if row.table == number
        ]
        lines.append("")
    write_text(out / "ablation.md", "\n".join(lines))
