"""The start-up test: a loaded backend must know the bundle's probe.

Every bundle holds probe frames with PyTorch's features of them. The certificate says how near a backend comes; this
only finds what is plainly wrong, each time before a camera relies on it: a damaged cache of compiled models, a
processor that a library miscompiles for, one of two streams that came up wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vadrun.backends import Backend
    from vadrun.bundle import Bundle

FRAMES = 8
"""As many as a batch has by default: kernels are chosen for the shape, so another shape would test others."""

COSINE = 0.9
"""Below this a feature is wrong; the coarsest arithmetic that the certificate allows keeps 0.99."""


def lowest_cosine(bundle: Bundle, backend: Backend) -> float:
    """The least cosine between the backend's features of probe frames and PyTorch's.

    Raises:
        UserError: the probe does not read, or is of no such model.
    """
    path = bundle.path("probe")
    try:
        with np.load(path, allow_pickle=False) as data:
            frames, expected = data["frames"], data["features"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not read as a probe: {error}; build the bundle again") from error
    size = bundle.model.image_size
    if not 1 <= len(frames) == len(expected) or frames.shape[1:] != (size, size, 3):
        raise UserError(f"{path} has frames of {list(frames.shape)} for this model of {size}: build the bundle again")
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames), backend.batch_limit or FRAMES)).astype(int)
    found = backend.encode(np.ascontiguousarray(frames[chosen]))
    return float(cosines(found, expected[chosen]).min())


def cosines(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart; -1 where it is not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.nan_to_num(value, nan=-1.0), np.float64)
