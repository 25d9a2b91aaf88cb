"""CLIP, built with open_clip's classes: its sizes, its heads and activation, and its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from vadclip.clip_models import HEAD_WIDTH, pretrained_file
from vadclip.config import Activation, ClipConfig
from vadclip.weights import check_finite, check_shapes, read_weights
from vadrun.errors import UserError

_WIDEST = 1024  # of OpenAI's: ViT-L/14

_SHAPED = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "text_projection": 2,
}


@dataclass(frozen=True)
class Untold:
    """What the weights of a CLIP do not tell."""

    activation: Activation
    vision_heads: int
    text_heads: int


def clip_sizes(weights: Mapping[str, Tensor], known: Untold | ClipConfig | None = None) -> tuple[ClipConfig, int]:
    """Sizes of a CLIP with a vision transformer, and its embed dimension d, from OpenAI-named weights.

    The activation and the numbers of heads are not in the weights: they come from ``known``, or are OpenAI's
    (QuickGELU, heads of 64). Whether the sizes are those of ``known`` is the caller's to check.

    Raises:
        UserError: a key that tells a size is missing, the sizes do not fit each other, or OpenAI has released no CLIP
            of these widths.
    """
    for key, rank in _SHAPED.items():
        if key not in weights:
            raise UserError(f"CLIP's weight {key!r} is missing: only vision transformers are supported")
        if weights[key].ndim != rank:
            raise UserError(f"CLIP's weight {key!r} is {list(weights[key].shape)}, expected {rank} axes")
    vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = math.isqrt(max(len(weights["visual.positional_embedding"]) - 1, 0))
    context, text_width = weights["positional_embedding"].shape
    if known is None:
        for name, width in (("vision", vision_width), ("text", text_width)):
            if width % HEAD_WIDTH or width > _WIDEST:
                raise UserError(
                    f"CLIP's {name} width {width} is not a multiple of {HEAD_WIDTH} up to {_WIDEST}, as with every"
                    f" CLIP of OpenAI: say which it is with --clip-model"
                )
    config = ClipConfig(
        image_size=grid * patch,
        patch=patch,
        vision_width=vision_width,
        vision_layers=count_blocks(weights, "visual.transformer.resblocks."),
        vision_heads=_heads(vision_width, known.vision_heads if known else None),
        text_width=text_width,
        text_layers=count_blocks(weights, "transformer.resblocks."),
        text_heads=_heads(text_width, known.text_heads if known else None),
        context=context,
        vocab=len(weights["token_embedding.weight"]),
        activation=known.activation if known else "quickgelu",
    )
    return config, weights["text_projection"].shape[1]


def _heads(width: int, told: int | None) -> int:
    if told is None:
        return width // HEAD_WIDTH
    return told if width % told == 0 else 1  # the widths differ then, and so says KnownClip.check


def count_blocks(weights: Mapping[str, object], prefix: str) -> int:
    """How many transformer layers there are under ``prefix`` (keys ``PREFIX<number>.rest``)."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)}
    # Without the gaps that only a damaged file has: its greatest number may be anything.
    count = 0
    while str(count) in numbers:
        count += 1
    return count


def clip_config(clip: Any) -> tuple[ClipConfig, int]:
    """Sizes, heads and activation of an ``open_clip.model.CLIP`` with a vision transformer, and its d.

    Raises:
        UserError: it is another kind of CLIP.
    """
    try:
        vision, text = (tower.resblocks[0] for tower in (clip.visual.transformer, clip.transformer))
        activations = {_activation(block.mlp.gelu) for block in (vision, text)}
        heads = vision.attn.num_heads, text.attn.num_heads
    except (AttributeError, IndexError) as error:
        raise UserError("only CLIP models with a vision transformer are supported: use such as ViT-B-16") from error
    if len(activations) > 1 or None in activations:
        raise UserError("this CLIP's activation is neither QuickGELU nor GELU: use one of open_clip's ViT models")
    (activation,) = activations
    assert activation is not None
    return clip_sizes(clip.state_dict(), Untold(activation, *heads))


def _activation(module: nn.Module) -> Activation | None:
    if isinstance(module, QuickGELU):
        return "quickgelu"
    return "gelu" if isinstance(module, nn.GELU) and module.approximate == "none" else None


def build_clip(embed_dim: int, config: ClipConfig) -> nn.Module:
    """An ``open_clip.model.CLIP`` of these sizes, freshly initialised.

    Under ``torch.device("meta")`` it takes no memory: its weights are then to be assigned, and only its
    causal mask, which no state dict carries, is real.
    """
    vision = CLIPVisionCfg(
        layers=config.vision_layers,
        width=config.vision_width,
        head_width=config.vision_width // config.vision_heads,
        patch_size=config.patch,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context,
        vocab_size=config.vocab,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    clip: nn.Module = CLIP(embed_dim, vision_cfg=vision, text_cfg=text, quick_gelu=config.activation == "quickgelu")
    mask = torch.full((config.context, config.context), -math.inf, device="cpu").triu(1)
    clip.register_buffer("attn_mask", mask, persistent=False)
    return clip


def assembled(path: Path, weights: Mapping[str, Tensor], config: ClipConfig, embed_dim: int) -> nn.Module:
    """A frozen CLIP of these weights: float32, on the CPU, in evaluation mode.

    Args:
        path: the file that they come from, for messages.

    Raises:
        UserError: a weight is missing, unknown, of another size than the others call for, or not finite.
    """
    with torch.device("meta"):
        clip = build_clip(embed_dim, config)
    check_shapes(path, weights, clip, "CLIP")
    weights = {key: value.to(torch.float32) for key, value in weights.items()}
    check_finite(path, weights)
    clip.load_state_dict(weights, strict=True, assign=True)
    return clip.requires_grad_(False).eval()


def pretrained(name: str) -> nn.Module:
    """A CLIP with weights that open_clip names: a tag of ViT-B/16 such as ``openai``, or ``MODEL/TAG``.

    They are downloaded on first use, and are float32 on the CPU.

    Raises:
        UserError: there is no such tag, or its weights are not here and cannot be downloaded.
    """
    found = pretrained_file(name)
    weights = read_weights(found.path).weights
    try:
        config, embed_dim = clip_sizes(weights, found.known.config)
        found.known.check(config, embed_dim)
    except UserError as error:
        raise UserError(f"{found.path}: {error}") from error
    return assembled(found.path, weights, config, embed_dim)
