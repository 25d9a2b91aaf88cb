"""A training run on disk: where it is, what it was told, and whether it may go on.

A run lives in one folder: ``best.safetensors`` (the model that was selected), ``last.safetensors``, ``log.csv``,
``run.json`` (what it was told) and ``state.pt`` (where it is; gone on from when the same run is started again).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vadrun.errors import UserError
from vadrun.files import whole_file

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
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            told = dict(json.loads(content["run"]))
            state = RunState(**content["state"])
            found = {name: content[name] for name in ("weights", "best", "optimizer")}
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise UserError(f"{path} is damaged ({type(error).__name__}): remove it to begin again") from error
        if differing := differences(told, self._told):
            epochs = told.get("recipe", {}).get("epochs", self._epochs)
            kind = "a finished run" if state.epoch >= epochs else "a run"
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
