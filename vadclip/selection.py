"""What models are selected by while they are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vadclip.config import ModelConfig
from vadclip.data import FeatureStore, Fetcher, ahead
from vadclip.lists import FeatureList
from vadclip.losses import top_k_mean
from vadclip.metrics import FRAMES_PER_SNIPPET
from vadclip.model import VadCLIP
from vadclip.presets import NORMAL, Anomaly
from vadrun.errors import UserError

Scorer = Callable[[VadCLIP], float]
"""The score of a model in evaluation mode, larger is better."""


def video_scorer(store: FeatureStore, normal: NDArray[np.bool_], config: ModelConfig) -> Scorer:
    """Scores a model by telling abnormal videos from normal ones, which needs no frame-level truth.

    A video's score is the mean of its top-K snippet scores. The figure is the AUC where the C-branch gives the
    anomaly score and the average precision where the A-branch does, as the paper has it for its two datasets.
    """
    figure = _figure(~normal, config.anomaly)
    fetcher = Fetcher(store, config.positions, config.embed_dim)
    groups = np.array_split(np.arange(len(normal)), -(-len(normal) // 32))

    def score(model: VadCLIP) -> float:
        device = model.frame_position_embeddings.weight.device
        found = []
        with torch.no_grad():
            text = model.encode_text(model.config.labels)
            for _, (features, lengths) in ahead(fetcher, groups):
                lengths = lengths.to(device)
                logits, alignment = model(features.to(device), lengths, text)
                found.append(top_k_mean(_anomaly(logits, alignment, config.anomaly), lengths))
        return figure(torch.cat(found))

    return score


def snippet_scorer(listed: FeatureList, truth: Sequence[NDArray[np.bool_]], config: ModelConfig) -> Scorer:
    """Scores a model on whole videos against a truth for each snippet or frame: AUC or AP as in :func:`video_scorer`.

    Args:
        listed: one feature file of each video.
        truth: bool [n] for each, true where the snippet is abnormal, or [16 n] for its frames.
        config: of the model.

    Raises:
        UserError: a file cannot be used, or has another number of snippets than its truth.
    """
    if len(listed) != len(truth):
        raise UserError(f"{listed.source} has {len(listed)} videos, but there is ground truth of {len(truth)}")
    for index, marks in enumerate(truth):
        if len(marks) not in (
            len(features := listed.read(index, config.embed_dim)),
            FRAMES_PER_SNIPPET * len(features),
        ):
            raise UserError(
                f"{listed.paths[index]} has {len(features)} snippets, but its ground truth has {len(marks)}: use"
                " features of the whole test video"
            )
    figure = _figure(np.concatenate([np.asarray(marks, dtype=bool) for marks in truth]), config.anomaly)

    def score(model: VadCLIP) -> float:
        found = []
        with torch.no_grad():
            text = model.encode_text(model.config.labels)
            for index, marks in enumerate(truth):
                logits, alignment = model.score(torch.from_numpy(listed.read(index, config.embed_dim)), text)
                scores = _anomaly(logits, alignment, config.anomaly)
                found.append(scores.repeat_interleave(len(marks) // len(scores)))
        return figure(torch.cat(found))

    return score


def _anomaly(logits: Tensor, alignment: Tensor, branch: Anomaly) -> Tensor:
    return torch.sigmoid(logits) if branch == "confidence" else 1.0 - alignment.softmax(dim=-1)[..., NORMAL]


def _figure(truth: NDArray[np.bool_], branch: Anomaly) -> Callable[[Tensor], float]:
    """AUC or AP against ``truth``; what can be wrong is found now, not after the first epoch."""
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError as error:
        raise UserError("scikit-learn is not installed: install vadclip-edge[train] to select models") from error
    if truth.all() or not truth.any():
        raise UserError("the part that models are selected on is all normal or all abnormal: give it both")
    function = roc_auc_score if branch == "confidence" else average_precision_score

    def figure(scores: Tensor) -> float:
        return float(function(truth, scores.cpu().numpy())) if scores.isfinite().all() else -math.inf

    return figure
