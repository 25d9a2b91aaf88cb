"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vadrun.errors import UserError


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_bytes(path: Path, value: bytes | memoryview) -> None:
    """Write bytes through a temporary name."""
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(value)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text through a temporary name."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON through a temporary name."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the header first, as CSV through a temporary name."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def check_place(folder: Path, *, replace: bool, marks: Sequence[str], kind: str) -> None:
    """Refuse a place for a folder of results that is taken, before any work is done for it.

    Args:
        folder: where the results are to go.
        replace: whether the user allows what is there to be replaced; that is for results of the same kind, and must
            not cost anyone a folder of something else.
        marks: names of files, one of which every folder of this kind has.
        kind: what such a folder is, for the sentence: "a bundle".

    Raises:
        UserError: the place is taken.
    """
    if not folder.exists():
        return
    if not replace:
        raise UserError(f"{folder} exists already: give --force to replace it, or another --out")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to --out")
    if not any((folder / mark).is_file() for mark in marks) and any(folder.iterdir()):
        raise UserError(f"{folder} is not {kind} and not empty, so it is not replaced: give another --out")


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

    On any exception (an interrupt too) the temporary directory is removed and ``target`` stays as it was.

    Raises:
        UserError: the place cannot be written to (a full disk too, whenever it shows), ``target`` is a file, or it
            exists and ``replace`` is false.
    """
    if target.exists() and not replace:
        raise UserError(f"{target} exists already: name another place or allow it to be replaced")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a folder")
    # Named before it is there, so that an interrupt cannot come between.
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}; name a writable folder") from error
        with writing(target):
            yield temporary
            if target.exists():
                old = temporary.with_name(temporary.name + ".old")
                try:
                    target.rename(old)
                    temporary.rename(target)
                except BaseException:
                    if old.exists() and not target.exists():
                        old.rename(target)
                    raise
                shutil.rmtree(old)
            else:
                temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
