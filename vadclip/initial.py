"""What a training starts from: a fresh head, or the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vadclip.checkpoint import checkpoint_sha256, load_head
from vadclip.clip import clip_config, count_blocks
from vadclip.config import Design, ModelConfig
from vadclip.model import VadCLIP
from vadclip.presets import Preset
from vadclip.prompt import tokenize
from vadrun.errors import UserError

_BLOCKS = "temporal.resblocks."
_SETTINGS = ("heads", "window", "mask_padding", "design")  # that shape a head and do not show in its weights


def new_model(
    preset: Preset, clip: nn.Module, seed: int = 0, design: Design | None = None, *, mask_padding: bool = False
) -> VadCLIP:
    """A model to train: the head fresh from ``seed``, CLIP as given and frozen.

    A design of one branch is scored by that branch, another one by the preset's.

    Args:
        preset: classes and sizes of the head.
        clip: an ``open_clip.model.CLIP``, such as :func:`vadclip.clip.pretrained` gives.
        seed: of the fresh weights.
        design: the parts of the head; None: VadCLIP's.
        mask_padding: exclude padded positions everywhere, as the released models do not.

    Raises:
        UserError: as of :func:`new_config`.
    """
    config = new_config(preset, clip, design, mask_padding=mask_padding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VadCLIP(config, clip)
    model.mirrored = preset.mirrored
    model.annotation_names = tuple(preset.classes)
    return model


def new_config(
    preset: Preset, clip: nn.Module, design: Design | None = None, *, mask_padding: bool = False
) -> ModelConfig:
    """The configuration of :func:`new_model`'s model.

    Raises:
        UserError: the CLIP's sizes do not fit, or a label has no tokens or too many.
    """
    sizes, width = clip_config(clip)
    design = design or Design()
    config = ModelConfig(
        width,
        preset.window,
        preset.layers,
        preset.labels,
        preset.anomaly if design.branches == "both" else design.branches,
        preset.heads,
        clip=sizes,
        design=design,
        mask_padding=mask_padding,
    )
    tokenize(config.labels, config)
    return config


def start_from(model: VadCLIP, path: str | Path) -> None:
    """Give a model the head of a checkpoint, in place; its CLIP, its classes and its settings stay.

    The classes may be others than the checkpoint's: no weight of the head depends on how many there are. The prompt's
    learned vectors (Eq. 5) are taken over.

    Args:
        model: from :func:`new_model`.
        path: any file that :func:`vadclip.checkpoint.load_checkpoint` takes.

    Raises:
        UserError: the file cannot be used, or its head is of another size or kind than the model's.
    """
    path = Path(path)
    weights, saved = load_head(path)
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith("clipmodel.")}
    layers = count_blocks(weights, _BLOCKS)
    if layers != model.config.layers:
        raise UserError(
            f"{path} has {layers} temporal layer(s), but the model to train has {model.config.layers}: give classes "
            f"with 'layers: {layers}', or start from another checkpoint"
        )
    width = weights["frame_position_embeddings.weight"].shape[-1]
    if width != model.config.embed_dim:
        raise UserError(
            f"{path} takes features of width {width}, but those of the CLIP to train with have width "
            f"{model.config.embed_dim}: start from a checkpoint of the same CLIP"
        )
    for name in _SETTINGS if saved is not None else ():
        theirs, wanted = getattr(saved, name), getattr(model.config, name)
        if theirs != wanted:
            raise UserError(
                f"{path} was trained with {name} {_plain(theirs)}, but the model to train has {_plain(wanted)}: give "
                "classes and options with the same, or start from another checkpoint"
            )
    if unlike := _unlike(weights, ours):
        raise UserError(f"{path} does not fit the model to train: {unlike}; start from a checkpoint of the same sizes")
    model.load_state_dict(weights, strict=False)
    model.started_from = {"name": path.name, "sha256": checkpoint_sha256(path)}


def same_clip(one: nn.Module, other: nn.Module) -> bool:
    """Whether two CLIPs have the same weights, but for the rounding of half precision."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape and torch.allclose(value, second[key], rtol=2e-3, atol=1e-4)
        for key, value in first.items()
    )


def _unlike(weights: dict[str, Tensor], ours: dict[str, Tensor]) -> str | None:
    for key, value in ours.items():
        if key not in weights:
            return f"it has no {key!r}"
        if weights[key].shape != value.shape:
            return f"its {key!r} is {list(weights[key].shape)}, and {list(value.shape)} is wanted"
    return next((f"it also has {key!r}" for key in weights if key not in ours), None)


def _plain(value: object) -> str:
    if isinstance(value, Design):
        return " ".join(f"{name}={part}" for name, part in vars(value).items())
    return str(value)
