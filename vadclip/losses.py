"""The objective (Eq. 8 to 10): top-K BCE of the C-branch, MIL-Align of the A-branch, contrast of the texts.

The defaults are the released code's numbers; what the paper has otherwise is an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vadclip.config import Branches
from vadclip.presets import NORMAL

Contrast = Literal["mean-abs", "sum-positive"]
"""``mean-abs``: mean of the cosines' magnitudes, as released; ``sum-positive``: Eq. 9, sum of max(0, cosine)."""

CONTRASTS: tuple[str, ...] = get_args(Contrast)
TOP_K_DIVISOR = 16


@dataclass(frozen=True)
class Losses:
    """The three terms, float32 scalars; ``contrast`` is weighted by lambda already."""

    bce: Tensor
    nce: Tensor
    contrast: Tensor

    @property
    def total(self) -> Tensor:
        """Eq. 10."""
        return self.bce + self.nce + self.contrast

    def of(self, branches: Branches) -> Tensor:
        """What is minimised where only these branches are trained."""
        return {"both": self.total, "confidence": self.bce, "alignment": self.nce + self.contrast}[branches]


def top_k_mean(values: Tensor, lengths: Tensor, divisor: int = TOP_K_DIVISOR) -> Tensor:
    """Mean over time of each video's K largest values, ``K = floor(length / divisor) + 1``, at most its length.

    Args:
        values: [B,T] or [B,T,m]; what stands at positions from a length on does not count.
        lengths: int64 [B] on the same device, each from 1 to T.
        divisor: how many snippets add one to K.

    Returns:
        [B] or [B,m].
    """
    positions = values.shape[1]
    flat = values if values.ndim == 3 else values[:, :, None]
    index = torch.arange(positions, device=values.device)
    flat = flat.masked_fill((index >= lengths[:, None])[:, :, None], -torch.inf)
    top = flat.topk(min(positions // divisor + 1, positions), dim=1).values
    count = torch.minimum(lengths // divisor + 1, lengths)[:, None]
    chosen = (index[: top.shape[1]] < count)[:, :, None]
    mean = torch.where(chosen, top, 0.0).sum(dim=1) / count
    return mean if values.ndim == 3 else mean[:, 0]


def classification_loss(logits: Tensor, targets: Tensor, lengths: Tensor, divisor: int = TOP_K_DIVISOR) -> Tensor:
    """L_bce of the C-branch: binary cross entropy of the mean of the K highest anomaly confidences.

    Args:
        logits: [B,T], before the sigmoid.
        targets: [B,m], 1 at a video's classes; a video whose column 0 is 1 is normal.
        lengths: [B].
        divisor: as in :func:`top_k_mean`.
    """
    confidence = top_k_mean(torch.sigmoid(logits), lengths, divisor)
    return F.binary_cross_entropy(confidence, 1.0 - targets[:, NORMAL])


def alignment_loss(
    alignment: Tensor,
    targets: Tensor,
    lengths: Tensor,
    divisor: int = TOP_K_DIVISOR,
    temperature: float = 1.0,
) -> Tensor:
    """L_nce of the A-branch (MIL-Align, Eq. 8): cross entropy of each class's mean of its K highest similarities.

    Args:
        alignment: [B,T,m]. The model has divided it by tau already.
        targets: [B,m], 1 at a video's classes, or any weights; each row is divided by its sum (soft target).
        lengths: [B].
        divisor: as in :func:`top_k_mean`.
        temperature: by which the similarities are divided beside the model's own tau.
    """
    similarity = top_k_mean(alignment, lengths, divisor) / temperature
    soft = targets / targets.sum(dim=1, keepdim=True)
    return -(soft * F.log_softmax(similarity, dim=1)).sum(dim=1).mean()


def contrastive_loss(text: Tensor, form: Contrast = "mean-abs") -> Tensor:
    """L_cts (Eq. 9), not weighted: pushes the abnormal classes' embeddings away from the normal one.

    Args:
        text: t [m,d], before the visual prompt.
        form: the released one or the paper's.
    """
    unit = F.normalize(text, dim=-1)
    cosine = torch.cat((unit[:NORMAL], unit[NORMAL + 1 :])) @ unit[NORMAL]
    return cosine.abs().mean() if form == "mean-abs" else cosine.relu().sum()


def vadclip_losses(
    logits: Tensor,
    alignment: Tensor,
    text: Tensor,
    targets: Tensor,
    lengths: Tensor,
    *,
    contrast_weight: float,
    contrast: Contrast = "mean-abs",
    divisor: int = TOP_K_DIVISOR,
    temperature: float = 1.0,
) -> Losses:
    """All terms for one batch, computed in float32 whatever the model computed in.

    Args:
        logits: [B,T] and
        alignment: [B,T,m] of ``VadCLIP.forward``.
        text: t [m,d] of ``VadCLIP.encode_text``.
        targets: float32 [B,m], 1 at a video's classes.
        lengths: int64 [B], each from 1 to T, on the same device.
        contrast_weight: lambda; 0.1 on UCF-Crime, 1e-4 on XD-Violence, both in the paper and as released.
        contrast: form of the contrastive term.
        divisor: of K.
        temperature: beside the model's own.
    """
    return Losses(
        classification_loss(logits.float(), targets, lengths, divisor),
        alignment_loss(alignment.float(), targets, lengths, divisor, temperature),
        contrast_weight * contrastive_loss(text.float(), contrast),
    )
