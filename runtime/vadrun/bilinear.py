"""Bilinear resizing without antialiasing, to the level as OpenCV's ``INTER_LINEAR`` has it for 8 bits.

Each pixel of the result is made of the four nearest of the source and no others, however much is shrunk. Features that
were made with ``cv2.resize`` have seen such images.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BITS = 11  # of the weights


class _Axis(NamedTuple):
    """For each place of the result the nearest two places of the source and their weights, which add up to 2048."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    first_weight: NDArray[np.int32]
    second_weight: NDArray[np.int32]


@lru_cache(maxsize=16)
def _axis(source: int, target: int) -> _Axis:
    # The centres of pixels lie half a pixel in.
    place = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    share = place - first.astype(np.float32)
    share[(first < 0) | (first >= source - 1)] = 0.0
    first = np.clip(first, 0, source - 1)
    weights = [np.rint(part * np.float32(1 << _BITS)).astype(np.int32) for part in (1 - share, share)]
    return _Axis(first, np.minimum(first + 1, source - 1), *weights)


def resize(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """An image uint8 [h,w,c] as uint8 [height,width,c]."""
    across, down = _axis(image.shape[1], width), _axis(image.shape[0], height)
    # Only rows and columns that are needed are touched.
    rows = [
        part.take(across.first, axis=1) * across.first_weight[:, None]
        + part.take(across.second, axis=1) * across.second_weight[:, None]
        for part in (image.take(down.first, axis=0), image.take(down.second, axis=0))
    ]
    first, second = down.first_weight[:, None, None], down.second_weight[:, None, None]
    # Rounded as OpenCV's vector code does: both products to 2 bits below a level, then their sum.
    quarters = ((rows[0] >> 4) * first >> 16) + ((rows[1] >> 4) * second >> 16)
    return ((quarters + 2) >> 2).astype(np.uint8)
