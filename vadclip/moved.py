"""Where the files of a list are now: lists come from other machines, Windows among them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

from vadrun.errors import UserError

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # how an absolute path of Windows begins


def places(
    source: Path,
    texts: Sequence[str],
    root: str | Path | None,
    there: Callable[[Path], bool] = Path.is_file,
) -> tuple[Path, ...]:
    r"""The paths of a list as they are on this machine.

    A relative path begins at the list's own folder or, if given, at ``root``. With ``root``, a path loses as many
    leading folders as it must for the file to be there: ``/home/someone/UCF/Abuse/Abuse001__0.npy`` or
    ``D:\UCF\Abuse\Abuse001__0.npy`` is found as ``ROOT/Abuse/Abuse001__0.npy``.

    Args:
        source: the list.
        texts: its paths as they are written.
        root: the folder that the files have moved to.
        there: whether a path is what the list should name.

    Returns:
        A path for each text, whether anything is there or not.

    Raises:
        UserError: an absolute path of Windows on another system, without ``root``.
    """
    place = _Moved(source, root, there)
    return tuple(place(text) for text in texts)


class _Moved:
    def __init__(self, source: Path, root: str | Path | None, there: Callable[[Path], bool]) -> None:
        self._source = source
        self._root = source.parent if root is None else Path(root)
        self._search = root is not None
        self._there = there
        self._dropped = 0  # leading folders that the file before had to lose

    def __call__(self, text: str) -> Path:
        path = Path(text)
        # A backslash may be part of a name here, but hardly ever is.
        if os.sep == "/" and ("\\" in text or _WINDOWS.match(text)) and not (self._root / path).exists():
            path = self._from_windows(text)
        if not self._search:
            return self._root / path  # which is the path itself if it is absolute
        parts = path.parts[1:] if path.is_absolute() else path.parts
        tries = [self._dropped, *(n for n in range(len(parts)) if n != self._dropped)]
        for dropped in tries:
            candidate = self._root.joinpath(*parts[dropped:])
            if dropped < len(parts) and self._there(candidate):
                self._dropped = dropped
                return candidate
        return self._root.joinpath(*parts[min(self._dropped, len(parts) - 1) :])

    def _from_windows(self, text: str) -> Path:
        path = PureWindowsPath(text)
        if not path.anchor:
            return Path(*path.parts)
        if not self._search:
            raise UserError(
                f"{self._source} names the Windows path {text}, which does not exist on this machine: name the folder"
                " that the files are in now with --root"
            )
        return Path("/", *path.parts[1:])
