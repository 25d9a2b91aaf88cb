"""Where the results of a video go below ``--out``: a folder that belongs to this video alone.

The folder is named after the file, without its ending: ``door.mp4`` has its results in ``out/door``. If the video was
found in a folder, its path below that folder is kept: ``vadrun recordings`` puts the results of
``recordings/2024/door.mp4`` into ``out/2024/door``. If another video with the same name but another ending lies beside
it, the ending stays: ``out/door.mp4`` and ``out/door.mkv``. This depends on the file alone, not on the rest of the run.

A place that is taken is never written to, whether by another video's results or by anything else. The results then go
to a name with eight digits of the hash of the video's path, ``out/door-1f3b6c2a``, which is the same in every run. A
video keeps the folder that it has. If several videos of one run want the same free place, the first by its path gets
it, whatever the order in which they were named.
"""

from __future__ import annotations

import errno
import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vadrun.errors import UserError
from vadrun.files import printable
from vadrun.inputs import EXTENSIONS
from vadrun.interrupts import uninterrupted
from vadrun.schema import Anything, load_json
from vadrun.temporary import locked, shortened, sync

SCORES = "scores.csv"
EVENTS = "events.jsonl"
RESULT = "result.json"

# result.json while the other files of a folder are being replaced.
_BEFORE = f".{RESULT}.before"

# A result.json that is larger is not ours: one event takes 200 bytes.
_MOST_BYTES = 256 << 20

# Names that Windows gives to devices, and that a disk or share of it cannot take for a folder.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})


@dataclass(frozen=True)
class Place:
    """Where one video's results go.

    Attributes:
        source: whose they are, see :func:`identity`.
        folder: the place.
        spare: the name with the hash, for the case that another run takes ``folder`` meanwhile.
    """

    source: str
    folder: Path
    spare: Path


def identity(source: Path) -> str:
    """What a video is known by: its absolute path, links followed."""
    return printable(os.path.realpath(source))


def places(out: Path, sources: Sequence[Path], named: Sequence[Path]) -> list[Place]:
    """A place below ``out`` for each video.

    Args:
        out: the folder of all results.
        sources: the videos.
        named: what the user named: these videos, or folders that hold them.
    """
    roots = [path for path in named if path.is_dir()]
    rivals: dict[tuple[Path, bool], dict[str, set[str]]] = {}
    wanted: list[Place] = []
    for source in sources:
        below = _below(source, roots)
        parent = out if below is None else out / below
        key = source.parent, below is not None
        if key not in rivals:
            rivals[key] = _rivals(*key)
        name = folder_name(source, alone=not rivals[key].get(_alike(source.stem), set()) - {source.name})
        spare = shortened(name, 255, f"-{_digits(os.path.realpath(source))}")
        wanted.append(Place(identity(source), parent / name, parent / spare))
    return _settled(wanted)


def _settled(wanted: Sequence[Place]) -> list[Place]:
    """Each place as it is wanted, or its spare one where that is taken."""
    taken: dict[str, str] = {}  # places, by what they are alike in -> whose they are
    held: dict[int, Path] = {}  # folders that videos have already
    for number, place in enumerate(wanted):
        for folder in (place.spare, place.folder):
            if belongs(folder, place.source):
                held[number] = folder
                taken[_alike(str(folder))] = place.source
                break
    found = list(wanted)
    listed: dict[Path, set[str]] = {}
    for number in sorted(range(len(wanted)), key=lambda number: wanted[number].source):
        place = wanted[number]
        folder = held.get(number, place.spare)
        if number not in held:
            free = taken.get(_alike(str(place.folder)), place.source) == place.source
            folder = place.folder if free and _is_free(place.folder, listed) else place.spare
            taken[_alike(str(folder))] = place.source
        found[number] = Place(place.source, folder, place.spare)
    return found


def folder_name(source: Path, *, alone: bool = True) -> str:
    """The name of a video's folder: that of the file, without its ending if the video is ``alone`` with that name.

    A name that cannot be a folder's is changed and gets digits of its hash: ``..mp4``, ``con.mp4``,
    ``result.json.mp4``, or one that begins with a dot or ends with a dot or a space.
    """
    name = source.stem if alone else source.name
    kept = name.strip(". ")
    device = kept.split(".")[0].rstrip().casefold() in _DEVICES
    if kept == name and not device and kept.casefold() not in (SCORES, EVENTS, RESULT):
        return name
    return shortened(kept or "video", 255, f"-{_digits(source.name)}")


def belongs(folder: Path, source: str) -> bool:
    """Whether ``vadrun`` wrote this folder, for this video."""
    for name in (RESULT, _BEFORE):
        try:
            value = load_json(folder / name, Anything(), "", most=_MOST_BYTES)
        except UserError:
            continue
        return isinstance(value, Mapping) and value.get("path") == source and "bundle" in value
    return False


def put(new: Path, place: Place) -> Path:
    """Put the finished folder ``new``, which lies beside its place, there; returns where it is now.

    What a folder of the same video holds beside our own files stays.

    Raises:
        UserError: place and spare place are taken by something else.
        OSError: the system does not let us.
    """
    for folder in (place.folder, place.spare):
        try:
            new.rename(folder)  # in place of nothing, or of an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES):
                raise
            if not os.path.lexists(folder):
                raise
            if folder.is_dir() and _replaced(new, folder, place.source):
                return folder
            continue
        sync(folder.parent)
        return folder
    raise UserError(f"{place.folder} and {place.spare} are taken by something else: give another --out")


def _replaced(new: Path, folder: Path, source: str) -> bool:
    """Replace our files in a folder of the same video; False if it is none."""
    with locked(folder), uninterrupted():
        if not belongs(folder, source):
            return False
        for name in (SCORES, EVENTS, RESULT):
            if (folder / name).is_dir():
                raise UserError(f"{folder / name} is a folder: move it away, or give another --out")
        if (folder / RESULT).exists():
            (folder / RESULT).replace(folder / _BEFORE)
        for name in (SCORES, EVENTS, RESULT):
            (new / name).replace(folder / name)
        (folder / _BEFORE).unlink()
        sync(folder)
    return True


def _below(source: Path, roots: Sequence[Path]) -> Path | None:
    """The path of the folder of a video below the outermost named folder that holds it; None without one."""
    found: Path | None = None
    for root in roots:
        if source.is_relative_to(root):
            below = source.relative_to(root).parent
            if ".." not in below.parts and (found is None or len(below.parts) > len(found.parts)):
                found = below
    return found


def _rivals(folder: Path, with_folders: bool) -> dict[str, set[str]]:
    """The videos in a folder by what their names are without endings; with the folders in it, where those count."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.name)
            if entry.is_dir():
                if with_folders:
                    found[_alike(entry.name)].add(entry.name)
            elif path.suffix.lower() in EXTENSIONS:
                found[_alike(path.stem)].add(entry.name)
    return found


def _is_free(folder: Path, listed: dict[Path, set[str]]) -> bool:
    """Whether nothing is there yet. A place that we may not look at counts as free; writing to it says why."""
    try:
        if folder.is_dir() and not folder.is_symlink():
            return not any(folder.iterdir())
        parent = folder.parent
        if parent not in listed:
            listed[parent] = {_alike(path.name) for path in parent.iterdir()} if parent.is_dir() else set()
    except OSError:
        return True
    return _alike(folder.name) not in listed[parent]


def _alike(name: str) -> str:
    """The same for names that some file systems take for the same: upper and lower case, composed and decomposed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _digits(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
