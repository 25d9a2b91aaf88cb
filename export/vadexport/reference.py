"""PyTorch's answers: text embeddings and the probe, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vadclip.images import normalise
from vadclip.model import VadCLIP
from vadexport.probe import Probe, feature_track

BATCH = 4


@torch.inference_mode()
def answer(
    model: VadCLIP,
    frames: NDArray[np.uint8],
    text: NDArray[np.float32],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Run PyTorch on the probe frames, uint8 RGB [n,S,S,3], with the class embeddings [m,d]."""
    parts = []
    for start in range(0, len(frames), BATCH):
        parts.append(model.encode_image(normalise(frames[start : start + BATCH])).numpy())
        progress(min(start + BATCH, len(frames)), len(frames))
    features = np.concatenate(parts)
    track = feature_track(features)
    classes = torch.from_numpy(text)

    def head(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, alignment = model.score(torch.from_numpy(values), classes)
        return logits.numpy(), alignment.numpy()

    logits, alignment = head(features)
    track_logits, track_alignment = head(track)
    return Probe(frames, features, logits, alignment, track, track_logits, track_alignment, text)


@torch.inference_mode()
def class_embeddings(model: VadCLIP, words: Sequence[str] | None = None) -> NDArray[np.float32]:
    """t [m,d] of the model's labels with its learned prompt (Eq. 5): the constant that a bundle stores.

    ``words`` are those of other classes than the model's own.

    Raises:
        UserError: words have no tokens, or more than fit between the learned vectors.
    """
    return np.asarray(model.encode_text(model.config.labels if words is None else words).numpy(), np.float32)
