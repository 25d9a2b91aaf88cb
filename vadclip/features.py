"""Feature files: ``.npy``, float [n,d], checked as they are read. No torch is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError


def read_features(path: Path, width: int | None) -> NDArray[np.floating]:
    """One feature file, checked.

    Args:
        path: ``.npy``, [n,d] float16, float32 or float64.
        width: d, the model's; None for any.

    Returns:
        [n,d] float16 or float32, contiguous, finite.

    Raises:
        UserError: the file is missing, damaged, empty, of another width, or holds NaN or infinite numbers.
    """
    features = _open(path, width)
    kind = np.float16 if features.dtype == np.float16 else np.float32
    with np.errstate(all="ignore"):
        features = np.ascontiguousarray(features, dtype=kind)
        total = features.sum(dtype=np.float32)
    # The sum is finite if all are (features are far from overflow), and costs a fraction of isfinite.
    if not np.isfinite(total) and not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise UserError(f"{path} has NaN or infinite numbers in {bad} of {len(features)} snippets: extract it again")
    return features


def count_snippets(path: Path, width: int) -> int:
    """n of a feature file, from its header alone.

    Raises:
        UserError: as :func:`read_features`, but for numbers that are not finite.
    """
    return len(_open(path, width, mapped=True))


def _open(path: Path, width: int | None, mapped: bool = False) -> NDArray[np.floating]:
    try:
        features = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or 'cut short'}): extract it again") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or no .npy file of numbers: extract it again") from error
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        raise UserError(f"{path} holds no floating-point numbers: name .npy files of features")
    if features.ndim != 2 or width not in (None, features.shape[1]):
        raise UserError(
            f"{path} has features of shape {list(features.shape)}, but the model takes [n, {width}]:"
            " extract them with the model's own CLIP"
        )
    if not len(features):
        raise UserError(f"{path} holds no snippet: its video is shorter than 16 frames, take it off the list")
    found: NDArray[np.floating] = features
    return found
