"""Signals that end a command: they unwind it once, and not in the middle of a replacement.

SIGTERM, SIGHUP and Ctrl-C raise an exception in the main thread, so that nothing half-written is left. Threads that wait
for a read which may never return (a pipe, a share that has gone) are left behind after :data:`PATIENCE` seconds.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 1.5  # seconds that threads are waited for
_GRACE = 5.0  # seconds from the first signal in which further ones do not count

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")


class _State:
    depth = 0  # of blocks that must not be interrupted
    waiting: int | None = None  # the signal that came meanwhile
    first: float | None = None  # when the first one came
    code: int | None = None  # the exit code of a process that leaves threads behind


def install() -> None:
    """Have signals end the command, but for those that whoever started it had ignored (``nohup``)."""
    if threading.current_thread() is not threading.main_thread():
        return
    _State.waiting = _State.first = None
    for name in _NAMES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.first is not None:
        if now - _State.first > _GRACE:
            os._exit(128 + number)  # unwinding hangs, and somebody insists
        return  # it is being ended already
    _State.first = now
    if _State.depth:
        _State.waiting = number
        return
    _end(number)


def _end(number: int) -> None:
    _State.code = 128 + number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


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


def join(threads: Sequence[threading.Thread], patience: float = PATIENCE) -> bool:
    """Wait for threads that have been told to stop, but not for ever; False if some are left behind.

    One that hangs in a read cannot be ended. It is a daemon, and holds nothing that is written.
    """
    until = time.monotonic() + patience
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    left = [thread for thread in threads if thread.is_alive()]
    if left:
        atexit.register(_leave, left)
    return not left


def _leave(threads: Sequence[threading.Thread]) -> None:
    """At the end of the process: go without those that still hang, which would crash within a dying interpreter."""
    if _State.code is not None and any(thread.is_alive() for thread in threads):
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(_State.code)


def ended_with(code: int) -> int:
    """Remember a command's exit code; returns it."""
    _State.code = code
    return code
