"""What a run leaves on disk: ``scores.csv``, ``events.jsonl`` and ``result.json`` per video."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError
from vadrun.events import Event
from vadrun.files import whole_directory, write_json, writing

RESULT = "result.json"


class ResultFolder:
    """Writes one video's results as they come and puts them in place, whole, at the end.

    Use as a context manager; an exception in the block leaves nothing behind and keeps older results.

    Raises:
        UserError: the place is not writable, or holds something that is not a result.
    """

    def __init__(self, target: Path, labels: list[str]) -> None:
        if target.exists() and not (target / RESULT).is_file():
            raise UserError(f"{target} exists and is not a result of vadrun (no {RESULT} in it): give another --out")
        self.target = target
        self._labels = labels
        self._stack = ExitStack()

    def __enter__(self) -> ResultFolder:
        try:
            self._folder = self._stack.enter_context(whole_directory(self.target, replace=True))
            scores = (self._folder / "scores.csv").open("w", newline="", encoding="utf-8")
            self._scores = csv.writer(self._stack.enter_context(scores), lineterminator="\n")
            self._events = self._stack.enter_context((self._folder / "events.jsonl").open("w", encoding="utf-8"))
            self._scores.writerow(["snippet", "start", "end", "anomaly", *self._labels])
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One row of ``scores.csv``: seconds, anomaly score, one probability per class [m]."""
        values = [f"{float(p):.6f}" for p in np.asarray(classes)]
        with writing(self.target):
            self._scores.writerow([index, f"{start:.3f}", f"{end:.3f}", f"{anomaly:.6f}", *values])

    def event(self, event: Event) -> None:
        """One line of ``events.jsonl``."""
        with writing(self.target):
            self._events.write(json.dumps(event.to_json(), ensure_ascii=False) + "\n")

    def result(self, value: dict[str, Any]) -> None:
        """``result.json``: source, bundle, backend, versions, timings."""
        with writing(self.target):
            write_json(self._folder / RESULT, value)


class ResultFolders:
    """The results of several videos, some of which are being written at once.

    Use as a context manager; what has been neither kept nor dropped at its end is dropped.

    Args:
        targets: each video's folder; None for none.
        labels: the class names.
    """

    def __init__(self, targets: Sequence[Path | None], labels: list[str]) -> None:
        self._targets, self._labels = targets, labels
        self._open: dict[int, ResultFolder] = {}

    def __enter__(self) -> ResultFolders:
        return self

    def __exit__(self, *exception: Any) -> None:
        for number in list(self._open):
            self.drop(number)

    def begin(self, number: int) -> ResultFolder | None:
        """The sink of the video of this number, from its first snippet on.

        Raises:
            UserError: as :class:`ResultFolder`.
        """
        self.drop(number)
        target = self._targets[number]
        if target is None:
            return None
        folder = self._open[number] = ResultFolder(target, self._labels)
        return folder.__enter__()

    def keep(self, number: int, value: dict[str, Any]) -> None:
        """Put a video's folder in place, with its ``result.json``."""
        if number in self._open:
            folder = self._open[number]
            folder.result(value)
            folder.__exit__(None, None, None)
            del self._open[number]

    def drop(self, number: int) -> None:
        """Leave nothing of a video's new results."""
        if number in self._open:
            with suppress(UserError, Dropped):  # a full disk, for what was still to be written
                self._open.pop(number).__exit__(Dropped, Dropped(), None)


class Dropped(Exception):
    """What the folder of dropped results is told."""
