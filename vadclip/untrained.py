"""Seeded, untrained models: the right shapes and plausible numbers, no knowledge.

For demonstrations, tests and measurements of speed, where a trained checkpoint is not at hand. Their scores
mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from vadclip.config import ClipConfig, ModelConfig
from vadclip.model import VadCLIP
from vadclip.presets import get_preset
from vadrun.files import whole_file

VIT_B_16 = ClipConfig()
SMALL = ClipConfig(
    image_size=64,
    patch=16,
    vision_width=128,
    vision_layers=2,
    vision_heads=2,
    text_width=64,
    text_layers=2,
    text_heads=1,
)


def untrained(dataset: str, clip: ClipConfig = VIT_B_16, embed_dim: int = 512, seed: int = 0) -> VadCLIP:
    """A model with the sizes of ``dataset``'s release and random weights that depend on ``seed`` only.

    Raises:
        UserError: an unknown dataset.
    """
    preset = get_preset(dataset)
    config = ModelConfig(
        embed_dim=embed_dim,
        window=preset.window,
        layers=preset.layers,
        heads=preset.heads,
        labels=preset.labels,
        anomaly=preset.anomaly,
        clip=clip,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VadCLIP(config)
        with torch.no_grad():
            # Fresh CLIPs give features of norm 0.1 or so; the released one gives about 10.
            model.clipmodel.visual.ln_post.weight.mul_(10.0)
            model.eval()
            _spread_scores(model)
    return model


def _spread_scores(model: VadCLIP) -> None:
    """Set the classifier so that scores of structured images lie all over (0, 1), not all at one end."""
    # Soft patterns of many brightnesses and contrasts, in CLIP's normalised range.
    coarse = torch.randn(16, 3, 5, 5) * torch.rand(16, 1, 1, 1) + torch.randn(16, 3, 1, 1)
    images = F.interpolate(coarse, size=model.config.clip.image_size, mode="bilinear")
    features = model.encode_image(images)
    text = torch.zeros(1, model.config.embed_dim)
    logits = torch.cat([model.score(feature.expand(48, -1), text)[0] for feature in features])
    scale = 1.5 / logits.std()
    model.classifier.weight.mul_(scale)
    model.classifier.bias.copy_((model.classifier.bias - logits.mean()) * scale)


def save_released_format(model: VadCLIP, path: Path) -> None:
    """Write the bare state dict as the authors do (``.pth``), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        torch.save(model.state_dict(), temporary)
