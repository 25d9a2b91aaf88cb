"""Signals that end a command: they unwind it once, and not in the middle of a replacement.

SIGTERM, SIGHUP and Ctrl-C raise an exception in the main thread, so that nothing half-written is left. Other threads
that wait for a read which may never return (a pipe, a share that has gone) are left behind after :data:`PATIENCE`
seconds. Where the main thread itself is inside a library and does not come back, a thread of ours removes what is
temporary and ends the process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 1.5  # seconds that threads are waited for
_GRACE = 5.0  # seconds from the first signal in which further ones do not count

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]

# Temporary files and folders that this process is at work on.
leftovers: set[Path] = set()


class _State:
    depth = 0  # of blocks that must not be interrupted
    waiting: int | None = None  # the signal that came meanwhile
    first: float | None = None  # when the first one came
    raised: int | None = None  # the signal that was raised as an exception in this command
    code: int | None = None  # the exit code of a process that leaves threads behind
    woken: tuple[int, int] | None = None  # a pipe on which signals are told to a thread of ours


@contextmanager
def answered() -> Iterator[None]:
    """Have signals end this block, but for those that whoever started the command had ignored (``nohup``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.waiting = _State.first = _State.raised = None
    before: dict[int, Any] = {}
    for number in _NUMBERS:
        before[number] = signal.getsignal(number)
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _handle)
    told = _told()
    try:
        yield
    finally:
        told()
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.first is not None:
        if now - _State.first > _GRACE:
            _leave_now(128 + number)  # unwinding hangs, and somebody insists
        return  # it is being ended already
    _State.first = now
    if _State.depth:
        _State.waiting = number
        return
    _end(number)


def _end(number: int) -> None:
    _State.raised = number
    _State.code = 128 + number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def raised() -> int | None:
    """The signal that was raised in this command, if there was one.

    A library may replace the exception by one of its own. A module in C++ makes an ``ImportError`` of a Ctrl-C that
    comes while it is imported.
    """
    return _State.raised


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put a signal off to the end of this block, which is short."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread only
        return
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if not _State.depth and _State.waiting is not None:
            number, _State.waiting = _State.waiting, None
            _end(number)


def _told() -> Callable[[], None]:
    """Tell a thread of each signal, at once, whatever the main thread does; returns what ends that."""
    if sys.platform == "win32":
        return lambda: None
    if _State.woken is None:
        _State.woken = os.pipe()
        for end in _State.woken:
            os.set_blocking(end, end == _State.woken[0])
        # A process that is forked of this one has no such thread, and its signals are not ours.
        os.register_at_fork(after_in_child=_forked)
        threading.Thread(target=_watch, args=(_State.woken[0],), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(_State.woken[1], warn_on_full_buffer=False)
    return lambda: _untold(before)


def _forked() -> None:
    """A process that was forked ends at a signal without unwinding: what is half-written is its parent's."""
    leftovers.clear()
    _untold(-1)
    for number in _NUMBERS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


def _untold(before: int) -> None:
    with suppress(ValueError, OSError):
        signal.set_wakeup_fd(before)


def _watch(end: int) -> None:
    """End the process if the main thread does not answer a signal, because a library does not come back."""
    while True:
        ours = [number for number in os.read(end, 64) if number in _NUMBERS]
        if ours and signal.getsignal(ours[0]) is _handle:
            until = time.monotonic() + PATIENCE
            while _State.first is None and time.monotonic() < until:
                time.sleep(0.02)
            if _State.first is None:
                _leave_now(128 + ours[0])


def _leave_now(code: int) -> None:
    for path in list(leftovers):
        with suppress(OSError):
            path.unlink()
            continue
        shutil.rmtree(path, ignore_errors=True)
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def join(threads: Sequence[threading.Thread], patience: float | None = None) -> bool:
    """Wait for threads that have been told to stop, but not for ever; False if some are left behind.

    One that hangs in a read cannot be ended. It is a daemon, and holds nothing that is written.
    """
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    left = [thread for thread in threads if thread.is_alive()]
    if left:
        atexit.register(_leave, left)
    return not left


def _leave(threads: Sequence[threading.Thread]) -> None:
    """At the end of the process: go without those that still hang, which would crash within a dying interpreter."""
    if _State.code is not None and any(thread.is_alive() for thread in threads):
        _flush()
        os._exit(_State.code)


def ended_with(code: int) -> int:
    """Remember a command's exit code; returns it."""
    _State.code = code
    return code
