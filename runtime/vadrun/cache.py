"""Where compiled models are kept, so that the second start is fast.

A folder per bundle in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``), not in the bundle: bundles may be
read-only or shared between machines. Everything in it can be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

KEPT = 3  # bundles; a full-size one takes about 380 MB


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


def forget_models(bundle_sha256: str) -> None:
    """Remove a bundle's compiled models, if there are any."""
    folder = model_cache(bundle_sha256)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
