"""Crops of captioned pictures to train a CLIP on, with the regions that they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vadclip.config import ClipConfig
from vadclip.images import normalise
from vadclip.world.regions import PHRASES
from vadclip.world.stills import Stills

_ZOOM = 1.35  # how much larger a crop may be shown


def boxes_of(stills: Stills) -> list[NDArray[np.float64]]:
    """For each picture [k,5]: the phrase's number, then left, top, right and bottom in pixels."""
    height, width = stills.pictures.shape[1:3]
    unit = np.array([1, width, height, width, height], float)
    return [np.array([(r.phrase, *r.box) for r in found], float).reshape(-1, 5) * unit for found in stills.regions]


def patches_shown(
    boxes: NDArray[np.float64], corner: NDArray[np.float64], config: ClipConfig, side: float
) -> NDArray[np.float32]:
    """[g,g,k]: which patches of a crop show which phrase; a little more than the boxes, so that none is lost."""
    grid = config.image_size // config.patch
    shown = np.zeros((grid, grid, len(PHRASES)), np.float32)
    patch = side / grid
    centre = (np.arange(grid) + 0.5) * patch
    y, x = centre + corner[0], centre + corner[1]
    margin = 0.35 * patch
    for phrase, left, top, right, bottom in boxes:
        across = (x > left - margin) & (x < right + margin)
        down = (y > top - margin) & (y < bottom + margin)
        shown[np.ix_(down, across, [int(phrase)])] = 1.0
    return shown


def augmented(
    pictures: NDArray[np.uint8],
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    config: ClipConfig,
    places: Sequence[NDArray[np.float64]],
) -> tuple[Tensor, Tensor]:
    """A crop of each picture, the centre or any, enlarged or not, mirrored or not, darker or brighter; normalised.

    Returns:
        pictures [n,3,S,S], and which patch shows which phrase [n,p,k].
    """
    size, count = config.image_size, len(rows)
    sides = np.where(rng.random(count) < 0.5, size, size / rng.uniform(1.0, _ZOOM, count))
    room = np.array(pictures.shape[1:3]) - sides[:, None]
    corners = np.where(rng.random((count, 1)) < 0.5, room / 2, room * rng.random((count, 2)))
    corners = np.where(sides[:, None] == size, np.floor(corners), corners)  # whole pixels where nothing is enlarged
    whole = np.empty((count, *pictures.shape[1:]), np.uint8)
    for index in np.argsort(rows):  # a mapped file is read faster in order
        whole[index] = pictures[rows[index]]
    shown = np.stack(
        [
            patches_shown(places[row], corner, config, side)
            for row, corner, side in zip(rows, corners, sides, strict=True)
        ]
    )
    mirrored = rng.random(count) < 0.5
    shown[mirrored] = shown[mirrored][:, :, ::-1]
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (count, 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.2, 0.2, (count, 1, 1, 1)).astype(np.float32))
    cut = normalise(cut_squares(whole, corners, sides, mirrored, size))
    return cut.mul_(gain).add_(shift), torch.from_numpy(shown).flatten(1, 2)


def cut_squares(
    whole: NDArray[np.uint8],
    corners: NDArray[np.float64],
    sides: NDArray[np.float64],
    mirrored: NDArray[np.bool_],
    size: int,
) -> NDArray[np.uint8]:
    """Squares of pictures [n,H,W,3] at ``corners`` (top, left) [n,2] with ``sides`` [n], as uint8 [n,size,size,3]."""
    cut = np.empty((len(whole), size, size, 3), np.uint8)
    for index, ((y, x), side) in enumerate(zip(corners, sides, strict=True)):
        if side == size:
            top, left = int(y), int(x)
            cut[index] = whole[index, top : top + size, left : left + size]
        else:
            box = (x, y, x + side, y + side)
            picture = Image.fromarray(whole[index])
            cut[index] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    cut[mirrored] = cut[mirrored][:, :, ::-1]
    return cut
