"""What the commands share on a terminal: exit codes, output that cannot fail a run, progress, tables, versions."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, cast

from vadrun import interrupts
from vadrun.errors import InternalError, UserError, lacks_memory, no_memory
from vadrun.inputs import redacted

DAMAGED = 1  # done, but something in the input was damaged or a check failed
BAD_INPUT = 2
CRASHED = 70  # a fault of the program itself; EX_SOFTWARE of sysexits.h

TRACEBACK = "VADCLIP_TRACEBACK"  # an environment variable: print where a crash was

CODES = f"""\
exit codes: 0 done; 1 done, but an input was damaged or a check failed; 2 an input cannot be used, or disk space or
memory is short; {CRASHED} a fault of the program ({TRACEBACK}=1 prints where); 129, 130, 143 ended by a signal.
"""


def run_command(program: str, main: Callable[[], int], *, keeps: bool = False) -> int:
    """Run a command's body and return its exit code.

    What users got wrong becomes one sentence on stderr and exit code 2, and so does a lack of memory or room. Anything
    unforeseen becomes one sentence and exit code 70, and its traceback is kept in a file.

    Args:
        program: its name, which sentences begin with.
        main: the body.
        keeps: it leaves files behind, so it goes on when the reader of its output goes away. Otherwise that ends it.
    """
    with _output(keeps) as out, interrupts.answered():
        try:
            code = main()
            sys.stdout.flush()
            if out.failure is not None:
                tell(f"{program}: standard output could not be written: {out.failure.strerror}; the files are whole")
                code = max(code, BAD_INPUT)
            return interrupts.ended_with(code)
        except BaseException as error:
            return interrupts.ended_with(_ended(program, error))


def _ended(program: str, error: BaseException) -> int:
    """Say why a command ends; returns its exit code."""
    number = interrupts.raised()
    if isinstance(error, KeyboardInterrupt) or number == signal.SIGINT:
        tell(f"\n{program}: interrupted, nothing half-written was left")
        return 128 + signal.SIGINT
    if number is not None:
        return 128 + number  # whatever a library made of the signal
    if isinstance(error, ReaderGone):
        return 128 + signal.SIGPIPE  # the reader of our output has gone; say nothing more
    if isinstance(error, UserError) and not isinstance(error, InternalError):
        tell(f"{program}: {error}")
        return BAD_INPUT
    if lacks_memory(error):
        tell(f"{program}: {no_memory('go on')}")
        return BAD_INPUT
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{program}: {where}{error.strerror or error}; check the place and try again")
        return BAD_INPUT
    if not isinstance(error, Exception):
        raise error  # SystemExit, of a signal or of argparse
    tell(f"{program}: {crash(error)}")
    return CRASHED


def crash(error: BaseException) -> str:
    """The sentence for a fault of the program itself; its traceback goes to a file, or to stderr if that is wanted."""
    lines = traceback.format_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = f"internal error: {type(error).__name__}{where}: {next(iter(str(error).strip().splitlines()), '')}"
    if os.environ.get(TRACEBACK):
        tell("".join(lines))
        return f"{text.rstrip(': ')}; please report it with the traceback above"
    with suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vadclip-edge"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "crash.txt"
        what = f"{' '.join(map(redacted, sys.argv))}\nvadclip-edge {version()}, Python {sys.version}\n"
        path.write_text(what + "".join(lines), encoding="utf-8", errors="backslashreplace")
        return f"{text.rstrip(': ')}; please report it with {path}"
    return f"{text.rstrip(': ')}; please report it with what {TRACEBACK}=1 prints"


def failure(source: object, error: UserError) -> tuple[str, int]:
    """The sentence on a video that has no results, and its exit code; the traceback of a fault of ours is kept."""
    if not isinstance(error, InternalError):
        return str(error), BAD_INPUT
    return (str(error) if error.__cause__ is None else f"{source}: {crash(error.__cause__)}"), CRASHED


def tell(text: str) -> None:
    """A line on stderr; nothing is lost if nobody can read it."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Bytes of file names that are not UTF-8 as ``\\xe9``, and what a terminal cannot show as ``\\u76d1``."""
    assert isinstance(error, UnicodeEncodeError)
    codes = [ord(character) for character in error.object[error.start : error.end]]
    parts = [f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}" for code in codes]
    return "".join(parts), error.end


codecs.register_error("vadrun-escape", _escape)


class ReaderGone(BrokenPipeError):
    """Whoever read a command's output has gone away."""


class _Output:
    """A standard stream whose reader may go away.

    Args:
        stream: what is written to.
        keeps: go on without a reader; what is written then goes nowhere.
    """

    def __init__(self, stream: TextIO, keeps: bool) -> None:
        self._stream, self._keeps = stream, keeps
        self.failure: OSError | None = None  # other than that the reader has gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            self._divert()
            if error.errno != errno.EPIPE:
                self.failure = self.failure or error
            if not self._keeps:
                kind = ReaderGone if error.errno == errno.EPIPE else OSError
                raise kind(error.errno, error.strerror, "standard output") from error

    def _divert(self) -> None:
        """Have this and what is still in the buffer go nowhere; at its end Python would try again."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def _output(keeps: bool) -> Iterator[_Output]:
    """Standard streams that show any name, that are there even if they were closed, and whose end ends no run."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vadrun-escape")
    out, errors = _Output(sys.stdout, keeps), _Output(sys.stderr, True)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, errors)
    try:
        yield out
    finally:
        with suppress(OSError):
            out.flush()  # at its end Python would tell of what cannot be written
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open what was closed (``>&-``) on nothing: the next file that is opened would take its number and its output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # mostly this very number
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


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
