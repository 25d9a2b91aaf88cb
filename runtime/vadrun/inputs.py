"""What a command line names as video: files, folders of them, and what is neither.

Nothing is opened here. A path that cannot be used is either refused in one sentence or stays in the list, so that
opening it is one failed entry among others.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vadrun.errors import UserError

# fmt: off
EXTENSIONS = frozenset({
    ".264", ".265", ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg",
    ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on

# A scheme has two letters or more, so that a Windows drive is none. Path has made one slash of the two.
_ADDRESS = re.compile(r"(?:^|[/\\])([a-z][a-z0-9+.-]+):[/\\]+(.*)", re.IGNORECASE | re.DOTALL)

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def find_videos(folder: str | Path) -> list[Path]:
    """Video files in a folder and all folders below it, by their extensions, sorted; hidden ones are left out.

    Links to folders are followed, and every folder is listed once, by its own path where it has one here. A folder
    that cannot be listed is itself an entry of the result: opening it says why.

    Raises:
        UserError: it is no folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{redacted(folder)} is not a folder: check the name")
    found: list[Path] = []
    links = [str(folder)]
    seen: set[tuple[int, int]] = set()
    # Links wait until all real folders are listed, so that a folder keeps its own path, and loops end.
    while links:
        for where, folders, names in _walk(links.pop(0), found, seen):
            kept = sorted(name for name in folders if not name.startswith("."))
            links += [os.path.join(where, name) for name in kept if os.path.islink(os.path.join(where, name))]
            folders[:] = [name for name in kept if not os.path.islink(os.path.join(where, name))]
            visible = [Path(where, name) for name in names if not name.startswith(".")]
            found += [path for path in visible if path.suffix.lower() in EXTENSIONS or _leads_nowhere_known(path)]
    return sorted(found)


def _walk(top: str, failed: list[Path], seen: set[tuple[int, int]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` over folders that are not in ``seen``; those that cannot be listed go to ``failed``."""

    def fails(error: OSError) -> None:
        failed.append(Path(os.fsdecode(error.filename)))

    for where, folders, names in os.walk(top, onerror=fails):
        try:
            found = os.stat(where)
        except OSError:  # removed meanwhile
            folders.clear()
            continue
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        yield where, folders, names


def _leads_nowhere_known(path: Path) -> bool:
    """Whether it is a link to a place that may not be looked at, and so perhaps to a folder of videos."""
    try:
        return path.is_symlink() and not os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False


def named_videos(paths: Sequence[Path], refused: list[UserError] | None = None) -> list[Path]:
    """What a command line names: files as they are, folders as the videos in them; nothing twice.

    Args:
        paths: what was named.
        refused: takes the errors, so that one wrong name does not cost the others. Without it the first is raised.

    Raises:
        UserError: a path that does not exist or is an address, or a folder without videos.
    """
    found: list[Path] = []
    for path in dict.fromkeys(paths):
        try:
            found += _videos_of(path)
        except UserError as error:
            if refused is None:
                raise
            refused.append(error)
    return list(dict.fromkeys(found))


def _videos_of(path: Path) -> list[Path]:
    if os.path.isdir(path):
        videos = find_videos(path)
        if not videos:
            raise UserError(f"{path} holds no video files: name a folder that does, or the files themselves")
        return videos
    try:
        path.stat()
    except OSError as error:
        raise why_unreadable(path, error) from None
    return [path]


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, before anybody opens it: opening a pipe waits for its writer.

    Raises:
        UserError: there is nothing of that name, or it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
            raise UserError(f"{path} is a folder: name a video file")
    except OSError as error:
        raise why_unreadable(path, error) from None
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise UserError(f"{path} is {kind}, not a regular file: save the video to a file and name that")


def why_unreadable(path: Path, error: OSError) -> UserError:
    """What the user should know of a path that the system cannot find or read."""
    if _ADDRESS.search(str(path)):
        return UserError(
            f"{redacted(path)} is an address, and only files are read: record the stream to a file and name that"
        )
    if str(path) == "-":
        return UserError("standard input is a pipe, not a regular file: save the video to a file and name that")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{path} does not exist: check the name")
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read: change its permissions, or run as a user who may")
    return UserError(f"{path} cannot be read ({error.strerror}): check the disk or the connection")


def redacted(path: str | Path) -> str:
    """A path as a message may show it: of an address no more than scheme and host.

    Cameras take user and password before the host or in the query, and not every password is escaped.
    """
    address = _ADDRESS.search(str(path))
    if address is None:
        return str(path)
    scheme, rest = address.groups()
    user, at, host = rest.rpartition("@")
    host, slash, _ = re.sub(r"[?#]", "/", host).partition("/")
    return f"{scheme}://{'...@' if at and user else ''}{host}{'/...' if slash else ''}"
