"""A training run on disk: where it is, what it was told, and whether it may go on.

A run lives in one folder: ``best.safetensors`` (the model that was selected), ``last.safetensors``, ``log.csv``,
``run.json`` (what it was told) and ``state.pt`` (where it is; gone on from when the same run is started again).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vadrun.errors import UserError, lacks_memory
from vadrun.files import whole_file
from vadrun.schema import (
    MOST_BYTES,
    Anything,
    Flag,
    List,
    Maybe,
    Misfit,
    Number,
    Record,
    Table,
    Text,
    Where,
    Whole,
    open_file,
    parse_json,
    validate,
)

LOG = ("epoch", "batch", "rows", "lr", "loss_bce", "loss_nce", "loss_cts", "score", "best", "seconds")
"""The columns of ``log.csv``. Losses are means since the row before; ``score`` is empty where nothing was scored."""

_FORMAT = 1
_SHOWN = 3  # settings that differ, in one sentence
# They follow from other settings, and are named only where no other one differs.
_CONSEQUENCES = ("content of the feature files", "initial model", "milestones", "score", "crop to validate on")


@dataclass
class RunState:
    """Where a run is, between two batches.

    Attributes:
        epoch: the one it is in, from 0; the number of epochs once it is finished.
        batch: of the epoch, the next one to train on.
        best, best_epoch, best_batch: the best score, and after how many batches of which epoch it was found.
        evaluated: whether this epoch was scored.
        sums: of the three losses since the last row of the log, and their number.
        rows: trained on, of all epochs.
        seconds: of this epoch.
        log: rows of :data:`LOG`.
    """

    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_epoch: int = -1
    best_batch: int = 0
    evaluated: bool = False
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    rows: int = 0
    seconds: float = 0.0
    log: list[list[Any]] = field(default_factory=list)

    def losses_of(self, epoch: int) -> tuple[float, float]:
        """Mean BCE and mean NCE of the batches of an epoch, counted from 0."""
        rows = [row for row in self.log if row[0] == epoch + 1]
        counts = [row[1] - before for row, before in zip(rows, [0, *(row[1] for row in rows)], strict=False)]
        total = max(sum(counts), 1)
        bce, nce = (sum(n * row[column] for n, row in zip(counts, rows, strict=True)) / total for column in (4, 5))
        return bce, nce


class _IsTensor:
    """A tensor of any shape."""

    def check(self, value: Any, key: str) -> None:
        if not isinstance(value, Tensor):
            raise Misfit(key, value, "a tensor")


class _IsRow:
    """A row of :data:`LOG`: numbers, and empty texts for the scores that there are not."""

    def check(self, value: Any, key: str) -> None:
        List(Anything(), len(LOG), len(LOG)).check(value, key)
        for name, cell in zip(LOG, value, strict=True):
            whole = name in ("epoch", "batch", "rows")
            if not (name in ("score", "best") and cell == ""):
                (Whole() if whole else Number()).check(cell, f"{key}.{name}")


_WEIGHTS = Table(_IsTensor(), key=Text(plain=False))
_CONTENT = Record(
    {
        "format": Whole(_FORMAT, _FORMAT),
        "run": Text(most=MOST_BYTES, plain=False),
        "state": Record(
            {
                "epoch": Whole(),
                "batch": Whole(),
                "best": Maybe(Number()),
                "best_epoch": Whole(-1),
                "best_batch": Whole(),
                "evaluated": Flag(),
                "sums": List(Number(), 4, 4),
                "rows": Whole(),
                "seconds": Number(0),
                "log": List(_IsRow()),
            }
        ),
        "weights": _WEIGHTS,
        "best": _WEIGHTS,
        "optimizer": Record(others=Anything()),
    }
)


@contextmanager
def reading_state(path: Path) -> Iterator[None]:
    """Say that ``path`` is damaged, whatever error that causes; a lack of memory stays what it is.

    Raises:
        UserError: the body has failed.
    """
    try:
        yield
    except Exception as error:  # a damaged file can fail anywhere in the reader, and where its values are used
        if lacks_memory(error):
            raise
        raise UserError(f"{path} is damaged ({type(error).__name__}): remove it to begin again") from error


class RunFolder:
    """The files of a run.

    Args:
        out: the folder, which exists.
        told: what makes this run this run, as plain data; another one is not gone on with.
        epochs: how many it is to have.
    """

    def __init__(self, out: Path, told: Mapping[str, Any], epochs: int) -> None:
        self.out = out
        self._told: dict[str, Any] = json.loads(json.dumps(told))
        self._epochs = epochs

    def save(self, state: RunState, weights: Mapping[str, Tensor], best: Mapping[str, Tensor], optimizer: Any) -> None:
        """Write ``log.csv`` and ``state.pt``, each whole or not at all.

        Raises:
            UserError: the folder cannot be written to.
        """
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([LOG, *state.log])
        _write(self.out / "log.csv", lambda path: path.write_text(stream.getvalue(), encoding="utf-8"))
        content = {
            "format": _FORMAT,
            "run": json.dumps(self._told, sort_keys=True),
            "state": asdict(state),
            "weights": dict(weights),
            "best": dict(best),
            "optimizer": optimizer,
        }
        _write(self.out / "state.pt", lambda path: torch.save(content, path))

    def load(self, device: torch.device) -> tuple[RunState, dict[str, Any]] | None:
        """Where the run is, with its ``weights``, ``best`` weights and ``optimizer``; None if nothing is saved.

        Raises:
            UserError: the state is damaged, or of a run with other settings; the sentence says which differ.
        """
        path = self.out / "state.pt"
        if not os.path.lexists(path):
            return None
        where = Where(path, "remove it to begin again")
        with open_file(path, where) as stream, reading_state(path):
            content = torch.load(stream, map_location=device, weights_only=True)
        validate(content, _CONTENT, where)
        told = validate(parse_json(content["run"], where), Record(others=Anything()), where)
        state = RunState(**content["state"])
        if bool(content["best"]) != (state.best is not None):
            raise where.error("it has a best score without its weights, or weights without their score")
        found = {name: content[name] for name in ("weights", "best", "optimizer")}
        if differing := differences(told, self._told):
            recipe = told.get("recipe")
            epochs = recipe.get("epochs") if isinstance(recipe, dict) else None
            finished = state.epoch >= (epochs if isinstance(epochs, int) else self._epochs)
            kind = "a finished run" if finished else "a run"
            more = len(differing) - _SHOWN
            said = "; ".join(differing[:_SHOWN]) + (f"; {more} more" if more > 0 else "")
            raise UserError(
                f"{self.out} holds {kind} with other settings ({said}): give the same to go on, or another folder"
            )
        return state, found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each setting in which two runs differ, as ``NAME was OLD and is now NEW``.

    What the older run did not write down is not compared.
    """
    before, now = dict(_flat(old)), dict(_flat(new))
    names = [name for name in {**now, **before} if name in before and before[name] != now.get(name)]
    names = [name for name in names if name.replace(" sha256", " files") not in names or not name.endswith(" sha256")]
    reasons = [name for name in names if name not in _CONSEQUENCES]
    return [_said(name, before[name], now.get(name)) for name in reasons or names]


def _flat(value: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if isinstance(entry, dict):
            # "lr" tells enough; "files" needs to know of what.
            yield from _flat(entry, "" if name in ("recipe", "configuration") else f"{within}{name} ")
        else:
            yield ("recipe" if not within and name == "name" else f"{within}{name}"), entry


def _said(name: str, old: Any, new: Any) -> str:
    if _hash(old) or _hash(new):
        return f"the {name.removesuffix(' sha256')} is another one"
    return f"{name} was {_shown(old)} and is now {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "none" if value is None else str(value)


def _hash(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_hash(entry) for entry in value)
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    try:
        with whole_file(path) as temporary:
            write(temporary)
    except (OSError, RuntimeError) as error:  # torch.save says a full disk with a RuntimeError
        raise UserError(f"{path} cannot be written ({error}): make room or name another folder") from error
