"""The checkpoint that a bundle was built from, read again as it was read then."""

from __future__ import annotations

from pathlib import Path

from vadclip.checkpoint import checkpoint_sha256, load_checkpoint
from vadclip.config import ClipConfig
from vadclip.model import VadCLIP
from vadrun.bundle import MANIFEST, Bundle
from vadrun.errors import UserError


def original(bundle: Bundle, checkpoint: Path) -> VadCLIP:
    """The PyTorch model of a bundle, with the settings that the bundle keeps because the weights do not tell them.

    Args:
        bundle: the bundle.
        checkpoint: the file that it was built from.

    Raises:
        UserError: it is another file, or it cannot be read.
    """
    facts = bundle.manifest["checkpoint"]
    if checkpoint_sha256(checkpoint) != facts["sha256"]:
        raise UserError(
            f"{checkpoint} is not the checkpoint that {bundle.root} was built from ({facts['name']}): name that one"
        )
    clip, clip_model = facts.get("clip"), None
    weights = None
    if isinstance(clip, dict):
        name = f"{bundle.root / MANIFEST}: checkpoint.clip.config"
        clip_model = ClipConfig.from_data(clip.get("config"), name)
        weights = clip.get("weights")
    info = bundle.model
    return load_checkpoint(
        checkpoint,
        labels=list(info.labels),
        window=info.window,
        heads=info.heads,
        mask_padding=info.mask_padding,
        clip=weights if isinstance(weights, str) else None,
        clip_model=clip_model,
    )
