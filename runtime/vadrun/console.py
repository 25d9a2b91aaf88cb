"""What the commands share on a terminal: exit codes, progress, tables, versions."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from types import FrameType
from typing import NoReturn, TextIO

from vadrun.errors import UserError

DAMAGED = 1  # done, but something in the input was damaged or a check failed
BAD_INPUT = 2


def run_command(program: str, main: Callable[[], int]) -> int:
    """Run a command's body; what users got wrong becomes one sentence on stderr and exit code 2."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)  # unwinds, so that nothing half-written is left

    signal.signal(signal.SIGTERM, stop)
    try:
        return main()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; say nothing more
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}; check the place and try again", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted, nothing half-written was left", file=sys.stderr)
        return 128 + signal.SIGINT


def version(distribution: str = "vadclip-edge") -> str:
    """The installed version of a distribution, or "unknown" (run from a bare source tree)."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def clock(seconds: float) -> str:
    """``M:SS.s`` or ``H:MM:SS.s``."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A plain table with two spaces between columns; ``right`` names right-aligned columns."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            str(cell).rjust(width) if i in right else str(cell).ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class ProgressLine:
    """One line on a terminal that is written over; silent where stderr is no terminal."""

    def __init__(self, title: str, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled and self._stream.isatty()
        self._title = title
        self._began = time.monotonic()
        self._drawn = 0.0

    def update(self, done: float, total: float | None) -> None:
        """``done`` and ``total`` in seconds of video."""
        now = time.monotonic()
        rate = done / max(now - self._began, 1e-6)
        text = clock(done)
        if total:
            left = max(total - done, 0.0) / max(rate, 1e-6)
            text += f" of {clock(total)}  {min(100 * done / total, 100):3.0f}%  {clock(left)} left"
        self._draw(now, f"{text}  {rate:.1f}x real time")

    def count(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` things, and the time that is left."""
        now = time.monotonic()
        left = (now - self._began) / max(done, 1) * (total - done)
        self._draw(now, f"{done} of {total} {what}  {clock(left)} left")

    def part(self, text: str, done: float, total: float) -> None:
        """``text``, and the time that is left where ``done`` of ``total`` equal parts of the work are done."""
        now = time.monotonic()
        left = (now - self._began) / max(done, 1e-6) * max(total - done, 0.0)
        self._draw(now, f"{text}  {clock(left)} left")

    def _draw(self, now: float, text: str) -> None:
        if self._enabled and now - self._drawn >= 0.2:
            self._drawn = now
            self._stream.write(f"\r\x1b[K{self._title}  {text}")
            self._stream.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._enabled and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


class FilesProgress:
    """Progress over video files, some of which are worked on at once.

    Args:
        names: of the files.
        enabled, stream: as :class:`ProgressLine` has them.
    """

    def __init__(self, names: Sequence[str], enabled: bool = True, stream: TextIO | None = None) -> None:
        self._total = len(names)
        self._line = ProgressLine(names[0] if len(names) == 1 else "vadrun", enabled, stream)
        self._shares: dict[int, float] = {}  # of the files that are under way
        self._done = 0

    def update(self, number: int, done: float, total: float | None) -> None:
        """``done`` of ``total`` seconds of a file."""
        if self._total == 1:
            self._line.update(done, total)
            return
        self._shares[number] = min(done / total, 1.0) if total else 0.0
        text = f"{self._done} of {self._total} videos"
        self._line.part(text, self._done + sum(self._shares.values()), self._total)

    def done(self, number: int) -> None:
        """A file is done, or has failed; the line makes room for what is said of it."""
        self._shares.pop(number, None)
        self._done += 1
        self._line.clear()
