"""VadCLIP as in Figure 2 of the paper, with the numerics and the parameter names of the released models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadclip.clip import build_clip
from vadclip.config import ModelConfig
from vadclip.graph import DistanceAdjacency, GraphConvolution, feature_similarity
from vadclip.prompt import encode_prompts, instance_text, tokenize, visual_prompt
from vadclip.temporal import FeedForward, LocalModule, quick_gelu
from vadrun.errors import UserError

# Chunks of a long video that are scored at once, which bounds memory.
_CHUNKS_AT_ONCE = 16


class VadCLIP(nn.Module):
    """Anomaly scores of a video's snippets from their CLIP features and the class labels.

    CLIP is frozen from the start (:meth:`freeze_clip`); everything else is trainable. A state dict has
    exactly the key names of the authors' checkpoints.

    Args:
        config: sizes and settings.
        clip: an ``open_clip.model.CLIP`` of ``config.clip``'s sizes to use; None builds a fresh one.
    """

    def __init__(self, config: ModelConfig, clip: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.feature_settings: Mapping[str, Any] | None = None
        """How the features that it was trained on were made (:mod:`vadclip.sidecar`); None where nothing says."""
        self.mirrored: bool | None = None
        """Whether it is tested, and so to be run, on the mirrored centre of frames; None where nothing says."""
        self.annotation_names: tuple[str, ...] | None = None
        """What annotation files call each class, m names in class order; None where nothing says."""
        self.started_from: Mapping[str, str] | None = None
        """Name and SHA-256 of the checkpoint whose weights the training started from; None for a fresh head."""
        width = config.embed_dim
        self.clipmodel: Any = build_clip(width, config.clip) if clip is None else clip
        self.frame_position_embeddings = nn.Embedding(config.positions, width)
        self.text_prompt_embeddings = nn.Embedding(config.clip.context, config.clip.text_width)
        # LGT-Adapter: local module, then the global one with branches H_sim (gc1, gc2) and H_dis (gc3, gc4).
        local = config.design.temporal not in ("global", "global+gcn")
        window = config.window if local else config.positions
        self.temporal = LocalModule(width, config.layers, config.heads, config.positions, window)
        if config.design.temporal == "local+global":
            self.temporal_global = LocalModule(width, config.layers, config.heads, config.positions, config.positions)
        self.gc1 = GraphConvolution(width, width // 2)
        self.gc2 = GraphConvolution(width // 2, width // 2)
        self.gc3 = GraphConvolution(width, width // 2)
        self.gc4 = GraphConvolution(width // 2, width // 2)
        self.disAdj = DistanceAdjacency(config.positions)
        self.linear = nn.Linear(width, width)
        # C-branch.
        self.mlp2 = FeedForward(width)
        self.classifier = nn.Linear(width, 1)
        # A-branch.
        self.mlp1 = FeedForward(width)
        nn.init.normal_(self.frame_position_embeddings.weight, std=0.01)
        nn.init.normal_(self.text_prompt_embeddings.weight, std=0.01)
        self.freeze_clip()

    def freeze_clip(self) -> None:
        """Take CLIP's own weights out of training; gradients still pass through its text encoder."""
        self.clipmodel.requires_grad_(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """CLIP features of images.

        Args:
            images: [n,3,H,W] RGB, normalised with CLIP's mean and standard deviation.

        Returns:
            [n,d], not L2-normalised.
        """
        features: Tensor = self.clipmodel.encode_image(images)
        return features

    def encode_text(self, labels: Sequence[str]) -> Tensor:
        """Class embeddings t of labels with the learned prompt around each (Eq. 5).

        They do not depend on the video: compute them once and pass them to :meth:`forward` or :meth:`score`.

        Returns:
            [m,d], not normalised.

        Raises:
            UserError: a label has no tokens or too many.
        """
        learned = self.text_prompt_embeddings.weight
        tokens = tokenize(labels, self.config).to(learned.device)
        return encode_prompts(self.clipmodel, learned, tokens)

    def video_features(self, features: Tensor, lengths: Tensor) -> Tensor:
        """X, the features after the LGT-Adapter (Eq. 1).

        Args:
            features: [B,T,d] of CLIP, not normalised, padded on the right.
            lengths: [B], how many of the T positions are snippets.

        Returns:
            [B,T,d].
        """
        valid = self._valid(features, lengths)
        masked = valid if self.config.mask_padding else None
        design = self.config.design.temporal
        if design == "none":
            return features
        x = features + self.frame_position_embeddings.weight
        if design != "gcn":
            x = self.temporal(x, masked)
        if design == "local+global":
            x = self.temporal_global(x, masked)
        if masked is not None:
            # The residual convolutions reach two positions across the end; beyond it they shall meet zeros,
            # as beyond the last position.
            x = x.masked_fill(~masked[:, :, None], 0.0)
        if design in ("local", "global", "local+global"):
            return x
        similarity = feature_similarity(x, valid)
        distance = self.disAdj(masked)
        x1 = quick_gelu(self.gc2(quick_gelu(self.gc1(x, similarity)), similarity))
        x2 = quick_gelu(self.gc4(quick_gelu(self.gc3(x, distance)), distance))
        out: Tensor = self.linear(torch.cat((x1, x2), dim=-1))
        return out

    def forward(self, features: Tensor, lengths: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches over one chunk of each of B videos.

        Args:
            features: [B,T,d] of CLIP, not normalised, zero-padded on the right.
            lengths: [B], how many of the T positions are snippets.
            text: [m,d] of :meth:`encode_text`.

        Returns:
            The C-branch's logits [B,T], whose sigmoid is the anomaly confidence (Eq. 4), and the alignment
            map [B,T,m], the cosines divided by the temperature, whose softmax is the class probability
            (Eq. 8). What stands at padded positions means nothing.
        """
        x = self.video_features(features, lengths)
        logits = self.classifier(x + self.mlp2(x)).squeeze(-1)
        classes = instance_text(text, self._visual_prompt(logits, x, self._valid(features, lengths)), self.mlp1)
        cosine = F.normalize(x, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)
        return logits, cosine / self.config.temperature

    @torch.no_grad()
    def score(self, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches over a whole video, in disjoint chunks of T snippets, each scored on its own.

        Args:
            features: [n,d] of CLIP, not normalised; any n, none included. Moved to the model's device.
            text: [m,d] of :meth:`encode_text`.

        Returns:
            Logits [n] and alignment [n,m] as in :meth:`forward`.

        Raises:
            UserError: the features do not have this model's width.
        """
        positions, width = self.frame_position_embeddings.weight.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise UserError(f"features have shape {list(features.shape)}, but this model takes [n, {width}]")
        features = features.to(self.frame_position_embeddings.weight)
        text = text.to(features)
        count = len(features)
        chunks = -(-count // positions)
        padded = F.pad(features, (0, 0, 0, chunks * positions - count)).view(chunks, positions, width)
        starts = torch.arange(chunks, device=features.device) * positions
        lengths = (count - starts).clamp(max=positions)
        logits, alignment = [features.new_empty(0)], [features.new_empty(0, len(text))]
        for start in range(0, chunks, _CHUNKS_AT_ONCE):
            group = slice(start, start + _CHUNKS_AT_ONCE)
            part_logits, part_alignment = self(padded[group], lengths[group], text)
            logits.append(part_logits.flatten())
            alignment.append(part_alignment.flatten(0, 1))
        return torch.cat(logits)[:count], torch.cat(alignment)[:count]

    def _visual_prompt(self, logits: Tensor, x: Tensor, valid: Tensor) -> Tensor:
        """V [B,d], or whatever the design has in its place."""
        if self.config.design.visual == "none":
            return torch.zeros_like(x[:, 0])
        if self.config.design.visual == "average":
            return visual_prompt(torch.ones_like(logits), x, valid)
        return visual_prompt(logits, x, valid if self.config.mask_padding else None)

    def _valid(self, features: Tensor, lengths: Tensor) -> Tensor:
        """bool [B,T], true where there is a snippet."""
        positions = torch.arange(features.shape[1], device=features.device)
        return positions < lengths.to(features.device)[:, None]
