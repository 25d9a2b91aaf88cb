"""Checkpoints in and out: the authors' ``.pth`` files, and ``.safetensors`` that also tell what they are.

How files are read is in :mod:`vadclip.weights`; here is what the weights in them mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vadclip.clip import assembled, clip_config, clip_sizes, count_blocks, pretrained
from vadclip.clip_models import CHOICES, KnownClip, clip_beside, known_clip
from vadclip.config import ClipConfig, ModelConfig
from vadclip.model import VadCLIP
from vadclip.presets import PRESETS, Anomaly, Preset, check_labels, get_preset
from vadclip.weights import (
    WeightsFile,
    check_finite,
    check_shapes,
    checkpoint_sha256,
    read_weights,
    some,
    write_weights,
)
from vadrun.errors import UserError
from vadrun.schema import Where, parse_json

__all__ = ["checkpoint_sha256", "load_checkpoint", "load_clip", "save_checkpoint", "save_clip"]

_FORMAT = "vadclip"
_CLIP_FORMAT = "vadclip-clip"  # of a CLIP alone
_CLIP = "clipmodel."
_TOKENS = _CLIP + "token_embedding.weight"
_VOCABULARY = 49408  # of OpenAI's tokenizer
_MOST_ROWS = 7 * _VOCABULARY  # characters that the numbers of all rows take
# Keys that tell the sizes of the head; without them a file is no VadCLIP checkpoint.
_HEAD_SHAPED = (
    "frame_position_embeddings.weight",
    "text_prompt_embeddings.weight",
    "temporal.resblocks.0.attn.in_proj_weight",
    "gc1.weight",
    "linear.weight",
    "classifier.weight",
)


def load_checkpoint(
    path: str | Path,
    *,
    dataset: str | Preset | None = None,
    labels: Sequence[str] | None = None,
    window: int | None = None,
    heads: int | None = None,
    anomaly: Anomaly | None = None,
    mask_padding: bool = False,
    clip: str | None = None,
    clip_model: str | ClipConfig | None = None,
) -> VadCLIP:
    """Read a VadCLIP model: float32, on the CPU, in evaluation mode, CLIP frozen.

    Sizes come from the weights. An authors' ``.pth`` does not hold the labels, the window, the number of
    heads and the scoring branch: they come from ``dataset``, and whatever is given beside it has precedence.
    A file of :func:`save_checkpoint` holds them all: of ``dataset`` nothing is taken then, and whatever is given
    beside it has precedence again.

    Args:
        path: ``.pth`` (a state dict, bare or under ``model_state_dict`` or ``state_dict``) or
            ``.safetensors``.
        dataset: ``ucf``, ``xd`` or a preset of your own.
        labels: prompt labels, normal first.
        window: attention window of the local module, in snippets.
        heads: attention heads of the local module.
        anomaly: the branch that gives the anomaly score.
        mask_padding: exclude padded positions everywhere. A file that was saved with the mask keeps it.
        clip: open_clip's name of pretrained weights, such as ``openai``, for a file that holds no CLIP.
        clip_model: which CLIP a ``.pth`` holds (:func:`vadclip.clip_models.known_clip`), or its configuration.
            None: OpenAI's, with QuickGELU and heads of 64, as in all released checkpoints.

    Raises:
        UserError: the file or one of the settings cannot be used; the sentence says which and what to do.
    """
    path = Path(path)
    preset = dataset if dataset is None or isinstance(dataset, Preset) else get_preset(dataset)
    file = read_weights(path)
    saved = _saved(file)
    weights = file.weights
    _check_head(path, weights)
    known = _known(clip_model)
    weights, known = _with_clip(path, weights, clip, known)
    layers = count_blocks(weights, "temporal.resblocks.")
    if labels is not None:
        labels = check_labels(labels)
    if saved is not None and preset is not None:
        if labels is None and preset.labels != saved.config.labels:
            raise UserError(
                f"{path} holds a model of the labels {', '.join(saved.config.labels)}, but {preset.name!r} has"
                f" {', '.join(preset.labels)}: name the classes that it was trained with, or none"
            )
        preset = None
    if preset is not None and window is None:
        _check_layers(path, preset, layers)
    if saved is None and preset is None and (labels is None or window is None):
        raise UserError(
            f"{path} does not hold its labels and its attention window: name the dataset"
            f" ({' or '.join(PRESETS)}), or give both"
        )
    chosen: dict[str, Any] = {"labels": labels, "window": window, "heads": heads, "anomaly": anomaly}
    for name in chosen:
        if chosen[name] is None and preset is not None:
            chosen[name] = getattr(preset, name)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if mask_padding:
        chosen["mask_padding"] = True
    try:
        if saved is None:
            config = ModelConfig(**_sizes(weights, layers, known), **chosen)
        else:
            if known is not None:
                known.check(saved.config.clip, saved.config.embed_dim)
            config = replace(saved.config, **chosen)
            itself = KnownClip("its configuration", config.clip)
            if replace(config, **_sizes(weights, layers, itself)) != config:
                raise UserError("its weights and its configuration say different sizes: save the model again")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

    with torch.device("meta"):
        model = VadCLIP(config)
    check_shapes(path, weights, model, "VadCLIP checkpoint")
    weights = {key: value.to(torch.float32) for key, value in weights.items()}
    check_finite(path, weights)
    model.load_state_dict(weights, strict=True, assign=True)
    if saved is not None:
        model.feature_settings, model.mirrored = saved.feature_settings, saved.mirrored
    return model.eval()


def load_clip(path: str | Path, clip_model: str | None = None) -> nn.Module:
    """CLIP alone: of a file of open_clip's or OpenAI's weights, or out of a checkpoint of :func:`load_checkpoint`.

    Weights do not tell their CLIP's activation and heads. A file of :func:`save_clip` does, and so do OpenAI's own
    archive (``ViT-B-16.pt``) and an ``open_clip_config.json`` beside the file. For another one it has to be said.

    Args:
        path: the file.
        clip_model: which CLIP it is, see :func:`vadclip.clip_models.known_clip`.

    Raises:
        UserError: the file cannot be used, holds no CLIP, or nothing tells which one.
    """
    path = Path(path)
    file = read_weights(path)
    known = _known(clip_model)
    if "visual.proj" in file.weights:
        inner = file.weights
        itself = _told(file)
    else:
        _check_head(path, file.weights)
        if not any(key.startswith(_CLIP) for key in file.weights):
            raise UserError(f"{path} holds no CLIP (no {_CLIP}* weights): name a file that does, or openai")
        saved = _saved(file)
        inner = {key.removeprefix(_CLIP): value for key, value in file.weights.items() if key.startswith(_CLIP)}
        itself = None if saved is None else KnownClip("its configuration", saved.config.clip)
        if known is None and saved is None:
            known = known_clip("openai")  # as in all released checkpoints
    try:
        if known is None and itself is None:
            raise UserError(
                "the weights do not tell their CLIP's activation and heads: say which it is with --clip-model,"
                f" {CHOICES}"
            )
        config, embed_dim = _clip_sizes(inner, itself or known)
        for one in (itself, known):
            if one is not None:
                one.check(config, embed_dim)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return assembled(path, inner, config, embed_dim)


def save_checkpoint(model: VadCLIP, path: str | Path, *, compact: bool = False) -> None:
    """Write a model as ``.safetensors`` with its configuration, whole or not at all.

    Args:
        model: what to write.
        path: where to.
        compact: in float16, and of the token embedding only the rows that are not zero; reads back like any other.

    Raises:
        UserError: the place cannot be written to.
    """
    weights = dict(model.state_dict())
    metadata = {"format": _FORMAT, "config": model.config.to_json()}
    if model.feature_settings is not None:
        metadata["features"] = json.dumps(model.feature_settings)
    if model.mirrored is not None:
        metadata["mirrored"] = json.dumps(model.mirrored)
    if compact:
        embedding = weights[_TOKENS]
        rows = embedding.any(dim=1).nonzero().flatten()
        weights[_TOKENS] = embedding[rows]
        weights = {key: value.half() for key, value in weights.items()}
        metadata[_TOKENS] = " ".join(str(int(row)) for row in rows)
    write_weights(Path(path), weights, metadata)


def save_clip(clip: nn.Module, path: str | Path) -> None:
    """Write an ``open_clip.model.CLIP`` as ``.safetensors`` under open_clip's own names, whole or not at all.

    The file tells its sizes, heads and activation.

    Raises:
        UserError: it is no CLIP with a vision transformer, or the place cannot be written to.
    """
    config, _ = clip_config(clip)
    write_weights(Path(path), clip.state_dict(), {"format": _CLIP_FORMAT, "config": json.dumps(asdict(config))})


@dataclass(frozen=True)
class _Saved:
    """What a file of :func:`save_checkpoint` tells beside the weights."""

    config: ModelConfig
    feature_settings: dict[str, Any] | None
    mirrored: bool | None


def _saved(file: WeightsFile) -> _Saved | None:
    """What a file of :func:`save_checkpoint` tells of itself; the token embedding of a compact one is filled up."""
    path, metadata = file.path, file.metadata
    if metadata.get("format") != _FORMAT:
        return None
    where = Where(path, "get it again or save it again")
    try:
        config = ModelConfig.from_json(metadata.get("config", ""))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    settings = mirrored = None
    if "features" in metadata:
        settings = parse_json(metadata["features"], where)
        if not isinstance(settings, dict):
            raise where.error("how its features were made does not read")
    if "mirrored" in metadata:
        mirrored = parse_json(metadata["mirrored"], where)
        if not isinstance(mirrored, bool):
            raise where.error("its entry 'mirrored' is not true or false")
    if _TOKENS in metadata:
        file.weights[_TOKENS] = _with_zero_rows(where, file.weights.get(_TOKENS), metadata[_TOKENS], config.clip)
    return _Saved(config, settings, mirrored)


def _with_zero_rows(where: Where, kept: Tensor | None, numbers: str, clip: ClipConfig) -> Tensor:
    """The token embedding that a compact checkpoint holds the rows ``numbers`` of."""
    # Before any memory is taken for it.
    fits = kept is not None and kept.ndim == 2 and kept.shape[1] == clip.text_width and clip.vocab == _VOCABULARY
    try:
        rows = [int(number) for number in numbers.split()] if len(numbers) <= _MOST_ROWS else []
    except ValueError:
        rows = []
    if not fits or kept is None or len(rows) != len(kept) or not all(0 <= row < _VOCABULARY for row in rows):
        raise where.error("it is damaged: its token embeddings do not fit")
    embedding = torch.zeros(_VOCABULARY, clip.text_width, dtype=kept.dtype)
    embedding[rows] = kept
    return embedding


def _told(file: WeightsFile) -> KnownClip | None:
    """What a file of a CLIP alone, or open_clip's configuration beside it, says of its activation and heads."""
    if file.metadata.get("format") == _CLIP_FORMAT:
        where = Where(file.path, "save it again")
        data = parse_json(file.metadata.get("config", ""), where)
        try:
            return KnownClip("its configuration", ClipConfig.from_data(data, "its configuration"))
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
    if file.openai:
        return known_clip("openai")
    return clip_beside(file.path)


def _known(clip_model: str | ClipConfig | None) -> KnownClip | None:
    if isinstance(clip_model, ClipConfig):
        return KnownClip("the bundle", clip_model)
    return None if clip_model is None else known_clip(clip_model)


def _check_head(path: Path, weights: Mapping[str, Tensor]) -> None:
    if missing := [key for key in _HEAD_SHAPED if key not in weights]:
        raise UserError(f"{path} is not a VadCLIP checkpoint: it has no {some(missing)}")


def _with_clip(
    path: Path, weights: dict[str, Tensor], name: str | None, known: KnownClip | None
) -> tuple[dict[str, Tensor], KnownClip | None]:
    """The weights with those of a CLIP, and what tells about it."""
    if any(key.startswith(_CLIP) for key in weights):
        return weights, known
    if name is None:
        raise UserError(
            f"{path} holds no CLIP (no {_CLIP}* weights): name pretrained CLIP weights to use with it, such as 'openai'"
        )
    clip = pretrained(name)
    config, embed_dim = clip_config(clip)
    if known is not None:
        known.check(config, embed_dim)
    weights = {**weights, **{_CLIP + key: value for key, value in clip.state_dict().items()}}
    return weights, KnownClip(f"open_clip's {name}", config)


def _check_layers(path: Path, preset: Preset, layers: int) -> None:
    if layers == preset.layers:
        return
    others = [other.name for other in PRESETS.values() if other.layers == layers]
    hint = f"it fits the dataset {others[0]!r}, " if others else ""
    raise UserError(
        f"{path} has {layers} temporal layer(s), but the dataset {preset.name!r} expects {preset.layers}:"
        f" {hint}or give the attention window to use it all the same"
    )


def _sizes(weights: Mapping[str, Tensor], layers: int, known: KnownClip | None) -> dict[str, Any]:
    """The entries of a ModelConfig that the weights tell."""
    position = weights["frame_position_embeddings.weight"]
    if position.ndim != 2:
        raise UserError(f"'frame_position_embeddings.weight' is {list(position.shape)}, expected 2 axes")
    positions, embed_dim = position.shape
    inner = {key.removeprefix(_CLIP): value for key, value in weights.items() if key.startswith(_CLIP)}
    clip, clip_dim = _clip_sizes(inner, known)
    if known is not None:
        known.check(clip, clip_dim)
    if clip_dim != embed_dim:
        raise UserError(f"its CLIP gives features of width {clip_dim}, but its head takes {embed_dim}")
    if clip.vocab != _VOCABULARY:
        raise UserError(f"its CLIP knows {clip.vocab} tokens, but OpenAI's tokenizer has {_VOCABULARY}")
    return {"embed_dim": embed_dim, "positions": positions, "layers": layers, "clip": clip}


def _clip_sizes(weights: Mapping[str, Tensor], known: KnownClip | None) -> tuple[ClipConfig, int]:
    return clip_sizes(weights, None if known is None else known.config)
