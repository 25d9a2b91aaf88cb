"""The local module of the LGT-Adapter: a transformer whose attention stays within windows of snippets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Finite, so that a row with nothing to attend to stays finite too; e^-10000 is 0 in float32 like e^-inf.
MASKED = -1e4


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU, ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


class FeedForward(nn.Module):
    """The paper's FFN: ``width -> 4 width -> width`` with QuickGELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        y: Tensor = self.c_proj(quick_gelu(self.c_fc(x)))
        return y


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of ``nn.MultiheadAttention`` and an additive mask.

    That class takes a mask per batch entry only as one copy per head, and has a separate inference path.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,T,width] and a mask that broadcasts to [B,heads,T,T] -> [B,T,width]."""
        batch, length, width = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """One pre-LN transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,T,width] and a mask as in :class:`Attention` -> [B,T,width]."""
        x = x + self.attn(self.ln_1(x), mask)
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class LocalModule(nn.Module):
    """Transformer encoder over T positions, attention limited to disjoint windows.

    The paper speaks of overlapping windows; the released models have disjoint ones.
    """

    windows: Tensor

    def __init__(self, width: int, layers: int, heads: int, positions: int, window: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.register_buffer("windows", window_mask(positions, window), persistent=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Smooth snippets within their windows.

        Args:
            x: [B,T,width].
            valid: bool [B,T]; positions where it is false are no attention keys. None: padding is attended
                to, as in the released models.

        Returns:
            [B,T,width], finite everywhere, also in windows without a valid position.
        """
        mask = self.windows
        if valid is not None:
            mask = mask.masked_fill(~valid[:, None, None, :], MASKED)
        for block in self.resblocks:
            x = block(x, mask)
        return x


def window_mask(positions: int, window: int) -> Tensor:
    """Additive attention mask [T,T]: 0 within a window, -10000 outside; the last takes the remainder."""
    # On the CPU also when the model is built on the meta device: a buffer has no place in a checkpoint.
    index = torch.arange(positions, device="cpu") // window
    index = index.clamp(max=max(positions // window - 1, 0))
    outside = index[:, None] != index[None, :]
    return torch.zeros(positions, positions, device="cpu").masked_fill(outside, MASKED)
