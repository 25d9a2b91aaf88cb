"""What a run leaves on disk: ``scores.csv``, ``events.jsonl`` and ``result.json`` per video."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError
from vadrun.events import Event
from vadrun.files import whole_directory, write_json

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
        with ExitStack() as stack:
            self._folder = stack.enter_context(whole_directory(self.target, replace=True))
            scores = stack.enter_context((self._folder / "scores.csv").open("w", newline="", encoding="utf-8"))
            self._events = stack.enter_context((self._folder / "events.jsonl").open("w", encoding="utf-8"))
            self._scores = csv.writer(scores, lineterminator="\n")
            self._scores.writerow(["snippet", "start", "end", "anomaly", *self._labels])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One row of ``scores.csv``: seconds, anomaly score, one probability per class [m]."""
        values = [f"{float(p):.6f}" for p in np.asarray(classes)]
        self._scores.writerow([index, f"{start:.3f}", f"{end:.3f}", f"{anomaly:.6f}", *values])

    def event(self, event: Event) -> None:
        """One line of ``events.jsonl``."""
        self._events.write(json.dumps(event.to_json(), ensure_ascii=False) + "\n")

    def result(self, value: dict[str, Any]) -> None:
        """``result.json``: source, bundle, backend, versions, timings."""
        write_json(self._folder / RESULT, value)
