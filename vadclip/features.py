"""Feature files: ``.npy``, float [n,d], or [n,10,d] with the ten crops of each snippet. No torch is needed.

The header is held against the file's size before memory is taken for what it asks (:mod:`vadrun.arrays`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadrun.arrays import Array, load_npy
from vadrun.errors import UserError

CROPS = 10
"""Crops of a snippet in a file [n,10,d]; their order is that of the numbers in file names."""

_FLOATS = Array("f", finite=False)
_ADVICE = "extract it again, or name a .npy file of features"


def read_features(path: Path, width: int | None, crop: int | None = None) -> NDArray[np.floating]:
    """The features of one crop, checked.

    Args:
        path: ``.npy``, [n,d] or [n,10,d], float16, float32 or float64.
        width: d, the model's; None for any.
        crop: of a file [n,10,d], which crop, 0 to 9; None for a file [n,d].

    Returns:
        [n,d] float16 or float32, contiguous, finite.

    Raises:
        UserError: the file is missing, damaged, empty, of another shape, or holds NaN or infinite numbers.
    """
    features = load_npy(path, _FLOATS, _ADVICE, mapped=crop is not None)  # mapped: the other crops are not read
    _check_shape(path, features.shape, width, crop)
    if crop is not None:
        features = features[:, crop]
    kind = np.float16 if features.dtype == np.float16 else np.float32
    with np.errstate(all="ignore"):
        features = np.ascontiguousarray(features, dtype=kind)
        total = features.sum(dtype=np.float32)
    # The sum is finite if all are (features are far from overflow), and costs a fraction of isfinite.
    if not np.isfinite(total) and not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise UserError(f"{path} has NaN or infinite numbers in {bad} of {len(features)} snippets: extract it again")
    return features


def count_snippets(path: Path, width: int | None, crop: int | None = None) -> int:
    """n of a feature file, from its header alone; the arguments are those of :func:`read_features`.

    Raises:
        UserError: as :func:`read_features`, but for numbers that are not finite.
    """
    shape = load_npy(path, _FLOATS, _ADVICE, mapped=True).shape
    _check_shape(path, shape, width, crop)
    return int(shape[0])


def holds_ten_crops(path: Path) -> bool:
    """Whether a feature file is [n,10,d], by its header; false where it cannot be read."""
    try:
        shape = load_npy(path, _FLOATS, _ADVICE, mapped=True).shape
    except UserError:
        return False
    return len(shape) == 3 and shape[1] == CROPS


def _check_shape(path: Path, shape: tuple[int, ...], width: int | None, crop: int | None) -> None:
    wanted = 2 if crop is None else 3
    if len(shape) == 3 and shape[0] == CROPS != shape[1]:
        raise UserError(
            f"{path} has features of shape {list(shape)}, crops first: write them as [n, {CROPS}, d]"
            " (numpy.swapaxes(features, 0, 1))"
        )
    if wanted == 2 and len(shape) == 3 and shape[1] == CROPS:
        raise UserError(
            f"{path} holds {CROPS} crops of each snippet, but its name ends in a single crop's number: rename it"
        )
    if len(shape) != wanted or (crop is not None and shape[1] != CROPS) or width not in (None, shape[-1]):
        asked = f"[n, {width or 'd'}]" if crop is None else f"[n, {CROPS}, {width or 'd'}]"
        raise UserError(
            f"{path} has features of shape {list(shape)}, but the model takes {asked}:"
            " extract them with the model's own CLIP"
        )
    if not shape[0]:
        raise UserError(f"{path} holds no snippet: its video is shorter than 16 frames, take it off the list")
