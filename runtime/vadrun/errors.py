"""The exceptions that a user is meant to see."""

from __future__ import annotations

import errno
import mmap

# Bytes that an ordinary video's decoder takes at most at a time. Where there is room for them, a decoder that lacks
# memory was asked for too much by a damaged file.
_ORDINARY = 64 << 20


class UserError(Exception):
    """What the user gave cannot be used.

    One sentence that says what is wrong with which input and what to do.
    """


class NoMemory(UserError):
    """There is not enough memory for it."""


class InternalError(UserError):
    """A fault of this program; the cause says which."""


# What libraries say of it in exceptions that have no class of their own.
_SIGNS = (
    "std::bad_alloc",
    "bad allocation",
    "cannot allocate",
    "can't alloc",
    "could not allocate",
    "failed to allocate",
    "not enough memory",
    "failed to map segment",
    "can't start new thread",
    "out of memory",
    "pthread_create failed",
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, comes of a lack of memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (MemoryError, NoMemory)):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, Exception) and not isinstance(error, UserError):
            text = str(error).casefold()
            if any(sign in text for sign in _SIGNS):
                return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def of_the_machine(error: Exception) -> None:
    """Raise :class:`NoMemory` where a library's error comes of the machine, and says nothing of the file that it reads.

    A decoder that cannot start its threads says EAGAIN. A damaged file may ask for more memory than any machine has:
    that is no fault of the machine's.
    """
    if isinstance(error, BlockingIOError) or (lacks_memory(error) and not _has_room()):
        raise no_memory("decode video") from error


def _has_room() -> bool:
    try:
        mmap.mmap(-1, _ORDINARY).close()
    except (OSError, MemoryError):
        return False
    return True


def no_memory(what: str) -> NoMemory:
    """The sentence for ``what`` could not be done."""
    return NoMemory(
        f"there is not enough memory to {what}: close other programs, or raise the limit of this one (ulimit -v)"
    )
