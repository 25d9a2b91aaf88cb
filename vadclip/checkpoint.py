"""Checkpoints in and out: the authors' ``.pth`` files, and ``.safetensors`` that also tell what they are.

Nothing in a checkpoint is ever executed, and weights are mapped from the file, not copied, wherever they are
float32 already.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vadclip.clip import build_clip, clip_sizes, count_blocks, pretrained
from vadclip.config import ModelConfig
from vadclip.model import VadCLIP
from vadclip.presets import PRESETS, Anomaly, Preset, annotation_names, check_labels, get_preset
from vadrun.errors import UserError
from vadrun.files import sha256

_FORMAT = "vadclip"
_CLIP = "clipmodel."
_TOKENS = _CLIP + "token_embedding.weight"
_VOCABULARY = 49408  # of OpenAI's tokenizer
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
        clip: open_clip's tag of pretrained weights, such as ``openai``, for a file that holds no CLIP.

    Raises:
        UserError: the file or one of the settings cannot be used; the sentence says which and what to do.
    """
    path = Path(path)
    preset = dataset if dataset is None or isinstance(dataset, Preset) else get_preset(dataset)
    names = None if preset is None else {label: name for name, label in preset.classes.items()}
    loaded, saved = _read(path)
    weights = _tensors(path, loaded)
    _check_head(path, weights)
    weights = _with_clip(path, weights, clip)
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
        sizes = _sizes(weights, layers)
        if saved is None:
            config = ModelConfig(**sizes, **chosen)
        else:
            config = replace(saved.config, **chosen)
            if replace(config, **sizes) != config:
                raise UserError("its weights and its configuration say different sizes: save the model again")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

    with torch.device("meta"):
        model = VadCLIP(config)
    _check_shapes(path, weights, model)
    weights = {key: value.to(torch.float32) for key, value in weights.items()}
    _check_finite(path, weights)
    model.load_state_dict(weights, strict=True, assign=True)
    if saved is not None:
        model.feature_settings, model.mirrored = saved.feature_settings, saved.mirrored
        model.started_from = saved.started_from
        if saved.annotation_names is not None:
            names = dict(zip(saved.config.labels, saved.annotation_names, strict=True))
    model.annotation_names = annotation_names(config.labels, names)
    return model.eval()


def load_clip(path: str | Path) -> nn.Module:
    """CLIP alone: of a file of open_clip's weights, or out of a checkpoint that :func:`load_checkpoint` takes.

    Raises:
        UserError: the file cannot be used, or holds no CLIP.
    """
    path = Path(path)
    weights = _tensors(path, _read(path)[0])
    if "visual.proj" in weights:
        inner = weights
    else:
        _check_head(path, weights)
        weights = _with_clip(path, weights, None)
        inner = {key.removeprefix(_CLIP): value for key, value in weights.items() if key.startswith(_CLIP)}
    try:
        config, embed_dim = clip_sizes(inner)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with torch.device("meta"):
        clip = build_clip(embed_dim, config)
    inner = {key: value.to(torch.float32) for key, value in inner.items()}
    _check_finite(path, inner)
    try:
        clip.load_state_dict(inner, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} holds a CLIP whose weights do not fit each other: get it again") from error
    return clip.requires_grad_(False).eval()


def load_head(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """The weights of a VadCLIP checkpoint without its CLIP, float32, and its configuration if the file holds one.

    Raises:
        UserError: the file cannot be used, or is no VadCLIP checkpoint.
    """
    path = Path(path)
    loaded, saved = _read(path)
    weights = _tensors(path, loaded)
    _check_head(path, weights)
    head = {key: value.to(torch.float32) for key, value in weights.items() if not key.startswith(_CLIP)}
    _check_finite(path, head)
    return head, None if saved is None else saved.config


def holds_clip(path: str | Path) -> bool:
    """Whether a checkpoint holds a CLIP beside its head.

    Raises:
        UserError: the file cannot be used.
    """
    path = Path(path)
    return any(key.startswith(_CLIP) for key in _tensors(path, _read(path)[0]))


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
    if model.annotation_names is not None:
        metadata["annotation_names"] = json.dumps(model.annotation_names)
    if model.started_from is not None:
        metadata["started_from"] = json.dumps(dict(model.started_from))
    if compact:
        embedding = weights[_TOKENS]
        rows = embedding.any(dim=1).nonzero().flatten()
        weights[_TOKENS] = embedding[rows]
        weights = {key: value.half() for key, value in weights.items()}
        metadata[_TOKENS] = " ".join(str(int(row)) for row in rows)
    _write(Path(path), weights, metadata)


def save_clip(clip: nn.Module, path: str | Path) -> None:
    """Write an ``open_clip.model.CLIP`` as ``.safetensors`` under open_clip's own names, whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    _write(Path(path), clip.state_dict(), {})


def _write(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(weights, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors leaves 0600, which other users could not read
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}): name a file in a writable folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a checkpoint file's bytes.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    _check_file(path)
    return sha256(path)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist: name a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path} is not a file: name a checkpoint file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a readable file") from error


@dataclass(frozen=True)
class _Saved:
    """What a file of :func:`save_checkpoint` tells beside the weights."""

    config: ModelConfig
    feature_settings: dict[str, Any] | None
    mirrored: bool | None
    annotation_names: tuple[str, ...] | None
    started_from: dict[str, str] | None


def _read(path: Path) -> tuple[object, _Saved | None]:
    """What the file holds, by its first bytes rather than its name, and what it tells if it is ours."""
    _check_file(path)
    with path.open("rb") as stream:
        start = stream.read(9)
    # First, because the length that a .safetensors file begins with may look like one of the other two.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if start[:2] == b"PK":
        return _read_archive(path), None
    if start[:1] == b"\x80":  # what pickles begin with: torch.save before 1.6, or pickle.dump
        return _unpickle(path, mmap=False), None
    raise UserError(f"{path} is not a checkpoint: name a .pth file of torch.save or a .safetensors file")


def _read_safetensors(path: Path) -> tuple[object, _Saved | None]:
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no .safetensors file ({error}): get it again") from error
    if metadata.get("format") != _FORMAT:
        return weights, None
    try:
        config = ModelConfig.from_json(metadata.get("config", ""))
        settings = dict(json.loads(metadata["features"])) if "features" in metadata else None
        mirrored = bool(json.loads(metadata["mirrored"])) if "mirrored" in metadata else None
        names = _names(json.loads(metadata["annotation_names"]), config) if "annotation_names" in metadata else None
        started = dict(json.loads(metadata["started_from"])) if "started_from" in metadata else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: its metadata does not read ({error}); save it again") from error
    if _TOKENS in metadata:
        weights[_TOKENS] = _with_zero_rows(path, weights.get(_TOKENS), metadata[_TOKENS], config.clip.vocab)
    return weights, _Saved(config, settings, mirrored, names, started)


def _names(value: object, config: ModelConfig) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("annotation_names is no list of names")
    if len({*value}) != len(config.labels) or len(value) != len(config.labels):
        raise ValueError("annotation_names is not one name for each class")
    return tuple(value)


def _with_zero_rows(path: Path, kept: Tensor | None, numbers: str, count: int) -> Tensor:
    """The token embedding that a compact checkpoint holds the rows ``numbers`` of."""
    try:
        rows = torch.tensor([int(number) for number in numbers.split()])
        if kept is None:
            raise ValueError("they are not there")
        embedding = torch.zeros(count, kept.shape[1], dtype=kept.dtype)
        embedding[rows] = kept
    except (ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: its token embeddings do not fit ({error}); get it again") from error
    return embedding


def _read_archive(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is damaged or incomplete ({error}): get it again") from error
    if "constants.pkl" in members:
        raise UserError(f"{path} is a TorchScript program, not a checkpoint: name a file of weights")
    if "data.pkl" not in members:
        raise UserError(f"{path} is a zip archive without weights: name a file of torch.save")
    return _unpickle(path, mmap=True)


def _unpickle(path: Path, mmap: bool) -> object:
    try:
        with _plain_numbers():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {found[1]}" if found else "it was not written by torch.save"
        raise UserError(
            f"{path} is a pickle that may run code ({what}) and was refused unread: save its state dict alone"
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"{path} is damaged ({type(error).__name__}): get it again") from error


def _plain_numbers() -> AbstractContextManager[object]:
    """Let NumPy numbers through: the authors' training checkpoints hold their best score as one."""
    # The (object, name) pairs below came to torch with this function, in 2.6.
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    return torch.serialization.safe_globals(
        [
            (scalar, "numpy.core.multiarray.scalar"),  # written under NumPy 1
            (scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
        ]
    )


def _tensors(path: Path, loaded: object) -> dict[str, Tensor]:
    """The floating-point state dict in what a file holds, without wrappings."""
    for wrapping in ("model_state_dict", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapping), Mapping):
            loaded = loaded[wrapping]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{path} holds no state dict ({type(loaded).__name__}): name a VadCLIP checkpoint")
    weights: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise UserError(f"{path} is not a VadCLIP checkpoint: its entry {key!r} is no weight")
        # torch.nn.DataParallel puts "module." before every key.
        weights[key.removeprefix("module.")] = value
    return weights


def _check_head(path: Path, weights: Mapping[str, Tensor]) -> None:
    if missing := [key for key in _HEAD_SHAPED if key not in weights]:
        raise UserError(f"{path} is not a VadCLIP checkpoint: it has no {_some(missing)}")


def _with_clip(path: Path, weights: dict[str, Tensor], tag: str | None) -> dict[str, Tensor]:
    if any(key.startswith(_CLIP) for key in weights):
        return weights
    if tag is None:
        raise UserError(
            f"{path} holds no CLIP (no {_CLIP}* weights): name pretrained CLIP weights to use with it, such as 'openai'"
        )
    return {**weights, **{_CLIP + key: value for key, value in pretrained(tag).state_dict().items()}}


def _check_layers(path: Path, preset: Preset, layers: int) -> None:
    if layers == preset.layers:
        return
    others = [other.name for other in PRESETS.values() if other.layers == layers]
    hint = f"it fits the dataset {others[0]!r}, " if others else ""
    raise UserError(
        f"{path} has {layers} temporal layer(s), but the dataset {preset.name!r} expects {preset.layers}:"
        f" {hint}or give the attention window to use it all the same"
    )


def _sizes(weights: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
    """The entries of a ModelConfig that the weights tell."""
    position = weights["frame_position_embeddings.weight"]
    if position.ndim != 2:
        raise UserError(f"'frame_position_embeddings.weight' is {list(position.shape)}, expected 2 axes")
    positions, embed_dim = position.shape
    inner = {key.removeprefix(_CLIP): value for key, value in weights.items() if key.startswith(_CLIP)}
    clip, clip_dim = clip_sizes(inner)
    if clip_dim != embed_dim:
        raise UserError(f"its CLIP gives features of width {clip_dim}, but its head takes {embed_dim}")
    if clip.vocab != _VOCABULARY:
        raise UserError(f"its CLIP knows {clip.vocab} tokens, but OpenAI's tokenizer has {_VOCABULARY}")
    return {"embed_dim": embed_dim, "positions": positions, "layers": layers, "clip": clip}


def _check_shapes(path: Path, weights: Mapping[str, Tensor], model: VadCLIP) -> None:
    expected = model.state_dict()
    if missing := [key for key in expected if key not in weights]:
        raise UserError(f"{path} is not a whole VadCLIP checkpoint: it has no {_some(missing)}")
    if unknown := [key for key in weights if key not in expected]:
        raise UserError(f"{path} is not a VadCLIP checkpoint: it also has {_some(unknown)}")
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise UserError(
                f"{path} has sizes that do not fit each other: {key!r} is {list(weights[key].shape)},"
                f" but the other weights call for {list(value.shape)}"
            )


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for key, value in weights.items():
        # NaN and inf come through to the extremes; isfinite of every weight would take memory for each.
        if not torch.stack(torch.aminmax(value)).isfinite().all():
            raise UserError(f"{path} has NaN or infinite weights in {key!r}: use an earlier checkpoint")


def _some(keys: Iterable[str]) -> str:
    """The first three keys and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(repr(key) for key in keys[:3]) + more
