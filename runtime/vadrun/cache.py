"""Where compiled models are kept, so that the second start is fast.

A folder per bundle in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``), not in the bundle: bundles may be
read-only or shared between machines. Everything in it can be deleted at any time.

Libraries believe what they kept: a damaged file may load, and then compute something else. Each kept file therefore has
its checksum beside it, and one that does not agree is removed before a library sees it. A CRC finds damage, as SHA-256
does, and costs a start half as much; whoever can write to the user's cache is not kept out by either.
"""

from __future__ import annotations

import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

from vadrun.files import write_text

KEPT = 3  # bundles; a full-size one takes about 380 MB
_SUM = ".crc32"


def model_cache(bundle_sha256: str) -> Path | None:
    """The folder for a bundle's compiled models, made if need be; None where nothing can be kept.

    The folders of bundles that have not been used for longest are removed: :data:`KEPT` stay.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vadclip-edge" / "models"
        folder = root / bundle_sha256[:16]
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # used now
        if not os.access(folder, os.W_OK):
            return None
        older = sorted((path for path in root.iterdir() if path != folder), key=lambda path: path.stat().st_mtime)
        for path in older[: max(len(older) + 1 - KEPT, 0)]:
            shutil.rmtree(path, ignore_errors=True)
    except (OSError, RuntimeError):  # read-only, full, or a user without a home
        return None
    return folder


def seal(path: Path) -> None:
    """Note the checksum of a file that has been kept; without one it is not used again."""
    with suppress(OSError):  # a full disk, say: the next start takes as long as this one
        write_text(_beside(path), _checksum(path))


def sound(path: Path) -> bool:
    """Whether a kept file is what it was when it was sealed; one that is not is removed."""
    try:
        if _beside(path).read_text(encoding="ascii") == _checksum(path):
            return True
    except (OSError, ValueError):
        pass
    for one in (path, _beside(path)):
        with suppress(OSError):
            one.unlink(missing_ok=True)
    return False


def prune(folder: Path, pattern: str, most: int) -> None:
    """Keep the newest ``most`` entries of a folder that fit a pattern, and remove the others with their checksums."""
    with suppress(OSError):
        found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for old in found[: max(len(found) - most, 0)]:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)
                _beside(old).unlink(missing_ok=True)


class KeptFolder:
    """A folder in which a library keeps the one model that it compiles, under names of its own.

    Within the block the folder holds sound files only; what the library has added is sealed at its end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> KeptFolder:
        for path in self._files():
            sound(path)
        return self

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            for path in self._files():
                if not _beside(path).exists():
                    seal(path)

    def _files(self) -> list[Path]:
        with suppress(OSError):
            return [path for path in self._folder.iterdir() if path.is_file() and path.suffix != _SUM]
        return []


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _SUM)


def _checksum(path: Path) -> str:
    value = size = 0
    with path.open("rb") as stream:
        while block := stream.read(4 << 20):
            value, size = zlib.crc32(block, value), size + len(block)
    return f"{value:08x} {size}"


def forget_models(bundle_sha256: str) -> None:
    """Remove a bundle's compiled models, if there are any."""
    folder = model_cache(bundle_sha256)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
