"""The global module of the LGT-Adapter: graph convolutions over feature similarity and temporal distance.

Eq. 1 to 3 of the paper in the variant of the released models: each branch has two layers with weights of
their own, and only the similarity branch is normalised by a softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vadclip.temporal import MASKED

SIMILARITY_THRESHOLD = 0.7
"""Cosines up to this become 0 in H_sim. Such an edge still weighs e^0 in the softmax."""


def feature_similarity(x: Tensor, valid: Tensor) -> Tensor:
    """H_sim (Eq. 2): thresholded cosine of every pair of snippets, softmax over each row.

    Args:
        x: [B,T,d].
        valid: bool [B,T], false at padded positions.

    Returns:
        [B,T,T]; the rows of valid positions sum to 1, rows and columns of padded positions are 0.
    """
    norms = x.norm(dim=-1, keepdim=True)
    # The clamp only keeps a zero vector from giving 0/0.
    cosine = (x @ x.transpose(1, 2)) / (norms @ norms.transpose(1, 2)).clamp_min(1e-12)
    edges = torch.where(cosine > SIMILARITY_THRESHOLD, cosine, 0.0)
    edges = edges.masked_fill(~valid[:, None, :], MASKED).softmax(dim=-1)
    return edges * valid[:, :, None]


def position_distance(positions: int) -> Tensor:
    """H_dis (Eq. 3), float32 [T,T]: ``exp(-|i-j| / e)``, not normalised. The paper has sigma = 1 for e."""
    index = torch.arange(positions, dtype=torch.float32, device="cpu")  # CPU as in window_mask
    return torch.exp(-(index[:, None] - index[None, :]).abs() / math.e)


class DistanceAdjacency(nn.Module):
    """H_dis as a module, because the released checkpoints have its ``sigma``, which nothing uses."""

    adjacency: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.full((1,), 0.1), requires_grad=False)
        self.register_buffer("adjacency", position_distance(positions), persistent=False)

    def forward(self, valid: Tensor | None = None) -> Tensor:
        """[T,T]; or, given ``valid`` bool [B,T], [B,T,T] with the columns of padded positions 0."""
        if valid is None:
            return self.adjacency
        return self.adjacency * valid[:, None, :]


class GraphConvolution(nn.Module):
    """``H x W + residual``; the residual is x itself, or a convolution over time where the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        nn.init.xavier_uniform_(self.weight)
        self.residual: nn.Module = nn.Identity()
        if width_in != width_out:
            self.residual = nn.Conv1d(width_in, width_out, kernel_size=5, padding=2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """x [B,T,in] and adjacency [B,T,T] or [T,T] -> [B,T,out]."""
        mixed = adjacency @ (x @ self.weight)
        residual: Tensor = self.residual(x.transpose(1, 2)).transpose(1, 2)
        return mixed + residual
