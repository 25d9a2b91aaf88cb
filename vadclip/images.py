"""From uint8 frames to what CLIP's image encoder takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# CLIP's normalisation of RGB in [0, 1] (Radford et al. 2021, the released preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 RGB [n,H,W,3] -> float32 [n,3,H,W] with CLIP's mean and standard deviation."""
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    return (images - mean) / std
