"""Temporary names: where files and folders are written before they take their place.

A temporary file or folder lies beside its target, so that it takes its place by a rename. It is locked (``flock``) as
long as its process is at work on it. The lock goes with the process, however that ends, so what is not locked was left
by a process that was killed: it is removed when its target is written again. Where nothing can be locked (Windows, some
network file systems), nothing of another process is ever removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vadrun.interrupts import leftovers, uninterrupted

if sys.platform != "win32":
    import fcntl

# A name may have 255 bytes, and the parts that are added to it count.
_LONGEST = 100
_OLD = ".old"


def followed(path: Path) -> Path:
    """What a symbolic link points to, link after link; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def shortened(name: str, most: int, mark: str = "") -> str:
    """A name, followed by ``mark``, in at most ``most`` bytes; no character is cut in two."""
    kept = os.fsencode(name)[: most - len(os.fsencode(mark))]
    while len(kept) > 1 and not _whole(kept) and len(kept) > most - len(mark) - 4:
        kept = kept[:-1]
    return os.fsdecode(kept) + mark


def _whole(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _stem(name: str) -> str:
    """What the temporary names of a target begin with."""
    if len(os.fsencode(name)) > _LONGEST:
        name = shortened(name, _LONGEST, f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}")
    return f".{name}.tmp-"


def _ending(name: str) -> str:
    """A target's ending, which its temporary names keep: some libraries go by it."""
    ending = os.path.splitext(name)[1]
    return ending if len(os.fsencode(ending)) <= 16 else ""


def _lock(descriptor: int, *, wait: bool) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


@contextmanager
def _made(target: Path, ending: str, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new temporary file or folder, locked while the block runs."""
    while True:
        path = target.with_name(f"{_stem(target.name)}{secrets.token_hex(4)}{ending}")
        descriptor, ours = -1, os.getpid()
        leftovers.add(path)
        try:
            make(path)
            if sys.platform != "win32":
                descriptor = os.open(path, os.O_RDONLY)
                _lock(descriptor, wait=True)
                if not os.path.lexists(path):  # another process took it for left over before it was locked
                    continue
            yield path
            return
        finally:
            try:
                with uninterrupted():
                    if os.getpid() == ours:  # a process that was forked of this one ends with a copy of this block
                        _remove(path)
                    leftovers.discard(path)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)


@contextmanager
def temporary_directory(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``; it is removed at the end of the block if it is still there."""
    remove_stale(target)
    with _made(target, "", Path.mkdir) as path:
        yield path


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """An empty file beside ``target``; it is removed at the end of the block if it is still there."""
    remove_stale(target)
    with _made(target, _ending(target.name), lambda path: path.touch(exist_ok=False)) as path:
        yield path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from this block for the same folder, where folders can be locked."""
    descriptor = -1 if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
    try:
        if descriptor >= 0:
            _lock(descriptor, wait=True)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def replace_directory(new: Path, target: Path) -> None:
    """Put the temporary folder ``new`` where the folder ``target`` is, and remove that."""
    old = new.with_name(new.name + _OLD)
    with uninterrupted():
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
        sync(target.parent)
        shutil.rmtree(old)


def remove_stale(target: Path) -> None:
    """Remove what processes that were killed have left of writing ``target``, and finish or undo what they began."""
    if sys.platform == "win32":
        return
    folders = re.compile(re.escape(_stem(target.name)) + "[0-9a-f]{8}")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return
    for name in names:
        path = target.with_name(name)
        if name.endswith(_OLD) and folders.fullmatch(name[: -len(_OLD)]):
            _restore(path, target)
    for name in names:
        path = target.with_name(name)
        if (is_temporary(name, target) or folders.fullmatch(name)) and not path.with_name(name + _OLD).exists():
            _remove_unlocked(path)


def is_temporary(name: str, target: Path) -> bool:
    """Whether this is a name of :func:`temporary_file` for ``target``."""
    pattern = re.escape(_stem(target.name)) + "[0-9a-f]{8}" + re.escape(_ending(target.name))
    return re.fullmatch(pattern, name) is not None


def _restore(old: Path, target: Path) -> None:
    """What has become of a folder that was about to be replaced: back it goes, or away if the new one is in place."""
    new = old.with_name(old.name[: -len(_OLD)])
    if new.exists():
        with suppress(OSError):
            descriptor = os.open(new, os.O_RDONLY)
            try:
                if _lock(descriptor, wait=False) and not target.exists():
                    old.rename(target)
            finally:
                os.close(descriptor)
    elif target.exists():
        _remove_unlocked(old)
    else:
        with suppress(OSError):
            old.rename(target)


def _remove_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        kind = os.fstat(descriptor).st_mode
        if (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) and _lock(descriptor, wait=False):
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or a folder's list of names, written to the disk, so that a power cut does not take it.

    Raises:
        OSError: it cannot be written, such as for a full disk that shows only now.
    """
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do it for folders, or at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """:func:`sync` for all that is in a folder, and itself."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(where, name)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(where))
