"""VadCLIP (Wu et al., AAAI 2024) in PyTorch: the model, its presets and its checkpoints.

Names are imported on first use, so that ``vadclip.presets`` and ``vadclip.config`` stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import vadrun.silence  # noqa: F401  # before any library that would report

if TYPE_CHECKING:
    from vadclip.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
    from vadclip.config import ClipConfig, ModelConfig
    from vadclip.model import VadCLIP
    from vadclip.presets import PRESETS, Preset, get_preset, load_labels

__all__ = [
    "PRESETS",
    "ClipConfig",
    "ModelConfig",
    "Preset",
    "VadCLIP",
    "checkpoint_sha256",
    "get_preset",
    "load_checkpoint",
    "load_labels",
    "save_checkpoint",
]

_HOME = {
    "PRESETS": "presets",
    "ClipConfig": "config",
    "ModelConfig": "config",
    "Preset": "presets",
    "VadCLIP": "model",
    "checkpoint_sha256": "checkpoint",
    "get_preset": "presets",
    "load_checkpoint": "checkpoint",
    "load_labels": "presets",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
