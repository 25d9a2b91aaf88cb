"""What a run leaves on disk: ``scores.csv``, ``events.jsonl`` and ``result.json`` per video."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError
from vadrun.events import Event
from vadrun.files import json_text, writing
from vadrun.places import EVENTS, RESULT, SCORES, Place, put
from vadrun.temporary import sync_tree, temporary_directory


class ResultFolder:
    """Writes one video's results as they come, into a temporary folder, and puts them in place at the end.

    Use as a context manager; what has not been kept at its end leaves nothing behind and keeps older results.

    Raises:
        UserError: the place is not writable.
    """

    def __init__(self, place: Place, labels: list[str]) -> None:
        self.place = place
        self._labels = labels
        self._stack = ExitStack()
        self._files = ExitStack()

    def __enter__(self) -> ResultFolder:
        with writing(self.place.folder), ExitStack() as stack:  # files that are closed may fail, too
            self.place.folder.parent.mkdir(parents=True, exist_ok=True)
            self._folder = stack.enter_context(temporary_directory(self.place.folder))
            stack.enter_context(self._files)
            scores = (self._folder / SCORES).open("w", newline="", encoding="utf-8")
            self._scores = csv.writer(self._files.enter_context(scores), lineterminator="\n")
            self._events = self._files.enter_context((self._folder / EVENTS).open("w", encoding="utf-8"))
            self._scores.writerow(["snippet", "start", "end", "anomaly", *self._labels])
            scores.flush()  # a full disk shows now, not after hours of video
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        with suppress(OSError):  # a full disk, for what was still to be written
            self._stack.close()

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: NDArray[Any]) -> None:
        """One row of ``scores.csv``: seconds, anomaly score, one probability per class [m]."""
        values = [f"{float(p):.6f}" for p in np.asarray(classes)]
        with writing(self.place.folder):
            self._scores.writerow([index, f"{start:.3f}", f"{end:.3f}", f"{anomaly:.6f}", *values])

    def event(self, event: Event) -> None:
        """One line of ``events.jsonl``."""
        with writing(self.place.folder):
            self._events.write(json_text(event.to_json(), None) + "\n")

    def keep(self, value: dict[str, Any]) -> Path:
        """Put the folder in place, with ``value`` as its ``result.json``; returns where it is.

        Raises:
            UserError: the disk is full, or the place is taken.
        """
        with writing(self.place.folder):
            (self._folder / RESULT).write_text(json_text(value) + "\n", encoding="utf-8")
            self._files.close()
            sync_tree(self._folder)
            return put(self._folder, self.place)


class ResultFolders:
    """The results of several videos, some of which are being written at once.

    Use as a context manager; what has been neither kept nor dropped at its end is dropped.

    Args:
        places: each video's; None for none.
        labels: the class names.
    """

    def __init__(self, places: Sequence[Place | None], labels: list[str]) -> None:
        self._places, self._labels = places, labels
        self._open: dict[int, ResultFolder] = {}

    def __enter__(self) -> ResultFolders:
        return self

    def __exit__(self, *exception: Any) -> None:
        with ExitStack() as stack:  # all of them, also if a signal comes in between
            for number in self._open:
                stack.callback(self.drop, number)

    def begin(self, number: int) -> ResultFolder | None:
        """The sink of the video of this number, from its first snippet on.

        Raises:
            UserError: as :class:`ResultFolder`.
        """
        self.drop(number)
        place = self._places[number]
        if place is None:
            return None
        folder = self._open[number] = ResultFolder(place, self._labels)
        return folder.__enter__()

    def keep(self, number: int, value: dict[str, Any]) -> Path | None:
        """Put a video's folder in place, with its ``result.json``; returns where it is, or None if it has none.

        Raises:
            UserError: as :meth:`ResultFolder.keep`.
        """
        if number not in self._open:
            return None
        where = self._open[number].keep(value)
        self.drop(number)
        return where

    def drop(self, number: int) -> None:
        """Leave nothing of a video's new results, if they were not kept."""
        if number in self._open:
            with suppress(UserError):
                self._open.pop(number).__exit__(None, None, None)
