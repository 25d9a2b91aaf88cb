"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vadrun.errors import UserError
from vadrun.temporary import (
    followed,
    is_temporary,
    remove_stale,
    replace_directory,
    sync,
    sync_tree,
    temporary_directory,
    temporary_file,
)

# Python's stand-ins for bytes of a file name that are not UTF-8, and other halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\ud800-\udfff]")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# What file managers leave in folders that they have shown.
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", ".directory"})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the name of an empty temporary file that takes the place of ``path`` when the block ends well.

    On any exception (an interrupt too) it is removed and ``path`` stays as it was. A symbolic link stays one: what it
    points to is written. A device or pipe is given as it is.

    Raises:
        OSError: of ``path``, whatever the temporary name was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = followed(path)
    try:
        with temporary_file(target) as temporary:
            yield temporary
            sync(temporary)
            temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno is None or (error.filename is not None and not _is_of(error.filename, target)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_of(name: str | bytes, target: Path) -> bool:
    path = Path(os.fsdecode(name))
    return path == target or is_temporary(path.name, target)


def write_bytes(path: Path, value: bytes | memoryview) -> None:
    """Write bytes, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(value)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; bytes of file names that are not UTF-8 are written as they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def json_text(value: Any, indent: int | None = 2) -> str:
    """``value`` as JSON.

    A byte of a file name that is not UTF-8 is written as ``\\xe9``, as :func:`printable` has it. A number that is not
    finite, which JSON cannot say, is null.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda found: "\\" + _escaped(found), text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    """A file name, or text with one in it, as it can be encoded: a byte that is not UTF-8 becomes ``\\xe9``."""
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json_text(value) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the header first, as CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def check_place(folder: Path, *, replace: bool, marks: Sequence[str], others: Sequence[str], kind: str) -> None:
    """Refuse a place for a folder of results that is taken, before any work is done for it.

    Args:
        folder: where the results are to go.
        replace: whether the user allows what is there to be replaced; that is for results of the same kind, and must
            not cost anyone files of something else.
        marks: names of files, one of which every folder of this kind has.
        others: what else such a folder may hold, with wildcards as a shell has them.
        kind: what such a folder is, for the sentence: "a bundle".

    Raises:
        UserError: the place is taken.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to --out")
    held = sorted(path.name for path in folder.iterdir())
    if held and not any((folder / mark).is_file() for mark in marks):
        raise UserError(f"{folder} is not {kind} and not empty, so it is not replaced: give another --out")
    for name in held:
        if name not in _LITTER and not any(fnmatchcase(name, part) for part in (*marks, *others)):
            raise UserError(
                f"{folder} holds {name}, which is no part of {kind} and would be lost: move it away, or give another "
                "--out"
            )
    if not replace:  # last, so that nobody is sent to --force in vain
        raise UserError(f"{folder} exists already: give --force to replace it, or another --out")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say of what the system does not let us write, such as for a full disk, that it was ``target``.

    Raises:
        UserError: for any OSError.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot write {target}: {why}; free some space or name another place") from error


@contextmanager
def whole_directory(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a temporary directory beside ``target`` that takes its place when the block ends well.

    On any exception (an interrupt too) the temporary directory is removed and ``target`` stays as it was. A symbolic
    link stays one: what it points to is replaced.

    Raises:
        UserError: the place cannot be written to (a full disk too, whenever it shows), ``target`` is a file, or it
            exists and ``replace`` is false.
    """
    named, target = target, followed(target)
    remove_stale(target)  # an interrupted replacement may have left nothing but the old folder under its other name
    if target.exists() and not replace:
        raise UserError(f"{named} exists already: name another place or allow it to be replaced")
    if target.exists() and not target.is_dir():
        raise UserError(f"{named} is a file: name a folder")
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_directory(target))
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}; name a writable folder") from error
        with writing(named):
            yield temporary
            sync_tree(temporary)
            if target.exists():
                replace_directory(temporary, target)
            else:
                temporary.rename(target)
            sync(target.parent)
