"""CLIP, built with open_clip's classes from whatever sizes OpenAI-named weights have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from vadclip.config import ClipConfig
from vadrun.errors import UserError

ARCHITECTURE = "ViT-B-16-quickgelu"
"""open_clip's name of the CLIP that the released models are built on."""

_HEAD_WIDTH = 64  # of every CLIP that OpenAI released

_SHAPED = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "text_projection": 2,
}


def clip_sizes(weights: Mapping[str, Tensor]) -> tuple[ClipConfig, int]:
    """Sizes of a CLIP with a vision transformer, and its embed dimension d, from OpenAI-named weights.

    Raises:
        UserError: a key that tells a size is missing, or the sizes do not fit each other.
    """
    for key, rank in _SHAPED.items():
        if key not in weights:
            raise UserError(f"CLIP's weight {key!r} is missing: only vision transformers are supported")
        if weights[key].ndim != rank:
            raise UserError(f"CLIP's weight {key!r} is {list(weights[key].shape)}, expected {rank} axes")
    vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = math.isqrt(max(len(weights["visual.positional_embedding"]) - 1, 0))
    context, text_width = weights["positional_embedding"].shape
    for name, width in (("vision", vision_width), ("text", text_width)):
        if width % _HEAD_WIDTH:
            raise UserError(f"CLIP's {name} width {width} is not a multiple of {_HEAD_WIDTH}")
    config = ClipConfig(
        image_size=grid * patch,
        patch=patch,
        vision_width=vision_width,
        vision_layers=count_blocks(weights, "visual.transformer.resblocks."),
        vision_heads=vision_width // _HEAD_WIDTH,
        text_width=text_width,
        text_layers=count_blocks(weights, "transformer.resblocks."),
        text_heads=text_width // _HEAD_WIDTH,
        context=context,
        vocab=len(weights["token_embedding.weight"]),
    )
    return config, weights["text_projection"].shape[1]


def count_blocks(weights: Mapping[str, object], prefix: str) -> int:
    """How many transformer layers there are under ``prefix`` (keys ``PREFIX<number>.rest``)."""
    numbers = (key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def build_clip(embed_dim: int, config: ClipConfig) -> nn.Module:
    """An ``open_clip.model.CLIP`` of these sizes with QuickGELU, freshly initialised.

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
    clip: nn.Module = CLIP(embed_dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    mask = torch.full((config.context, config.context), -math.inf, device="cpu").triu(1)
    clip.register_buffer("attn_mask", mask, persistent=False)
    return clip


def pretrained(name: str) -> nn.Module:
    """ViT-B/16 with the pretrained weights that open_clip calls ``name``, such as ``openai``.

    They are downloaded on first use, and are float32 on the CPU.

    Raises:
        UserError: there is no such tag, or its weights cannot be downloaded.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(ARCHITECTURE)
    if name not in tags:
        raise UserError(f"unknown CLIP weights {name!r} for {ARCHITECTURE}: use one of {', '.join(tags)}")
    try:
        clip: Any = open_clip.create_model(ARCHITECTURE, pretrained=name, precision="fp32", device="cpu")
    except Exception as error:  # open_clip, huggingface_hub and urllib each fail with types of their own
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"CLIP weights {name!r} for {ARCHITECTURE} cannot be downloaded ({lines[0]}):"
            " connect to the internet once, or use a checkpoint that holds CLIP"
        ) from error
    module: nn.Module = clip
    return module
