"""From a checkpoint to a bundle: graphs, text embeddings, probe, manifest, certificate."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadcalibrate.ranges import Ranges
from vadclip.checkpoint import checkpoint_sha256, load_checkpoint
from vadclip.config import Design
from vadclip.presets import Anomaly, get_preset
from vadclip.sidecar import image_settings
from vadexport import certificate
from vadexport.checks import Changes
from vadexport.encoder_graph import encoder_graph
from vadexport.graph import OPSET, node_kinds, save_beside
from vadexport.head_graph import HeadSizes, head_graph
from vadexport.int8 import int8_graph
from vadexport.probe import drawn_frames, video_frames
from vadexport.reference import answer, class_embeddings
from vadrun.bundle import Bundle, ModelInfo, write_manifest
from vadrun.console import version
from vadrun.errors import UserError
from vadrun.files import check_place, whole_directory
from vadrun.preprocessing import STYLES, Preprocessing
from vadrun.sampling import Sampling

PRECISIONS = ("fp32", "fp16", "int8")
# What a bundle may hold beside its manifest: a build with --force replaces these and nothing else.
OTHERS = ("certificate.json", "*.onnx", "text.npy", "probe.npz", "engines")


class ParityError(Exception):
    """An artifact is further from PyTorch than allowed; the message is the table of checks."""


@dataclass(frozen=True)
class BuildOptions:
    """What ``vadexport build`` is told; None leaves a setting to the preset or the checkpoint."""

    checkpoint: Path
    out: Path
    dataset: str | None = None
    labels: Sequence[str] | None = None
    precision: str = "fp32"
    window: int | None = None
    heads: int | None = None
    anomaly: Anomaly | None = None
    mask_padding: bool = False
    clip: str | None = None
    clip_model: str | None = None
    mirror: bool | None = None
    crop: str = "center"
    sampling: Sampling | None = None
    preprocessing: str | None = None  # of vadrun.preprocessing.STYLES
    probe: Sequence[Path] = ()
    force: bool = False
    limits: Changes | None = None
    ranges: Path | None = None  # of vadcalibrate ranges, for int8


def build(options: BuildOptions, say: Callable[[str], None] = lambda text: None) -> certificate.Verification:
    """Build a bundle at ``options.out``, whole or not at all.

    Args:
        options: what to build from and how.
        say: told at the beginning of each step.

    Returns:
        The checks against PyTorch, all passed.

    Raises:
        UserError: an input cannot be used, or ``out`` exists and ``force`` is not given.
        ParityError: a check failed.
    """
    if options.precision not in PRECISIONS:
        raise UserError(f"there is no precision {options.precision!r}: take one of {', '.join(PRECISIONS)}")
    check_place(options.out, replace=options.force, marks=["manifest.json"], others=OTHERS, kind="a bundle")
    ranges = _ranges(options)
    chosen_by = ranges if ranges is None or options.probe else replace(ranges, frames=ranges.frames[::2])

    say(f"reading {options.checkpoint}")
    model = load_checkpoint(
        options.checkpoint,
        dataset=options.dataset,
        labels=options.labels,
        window=options.window,
        heads=options.heads,
        anomaly=options.anomaly,
        mask_padding=options.mask_padding,
        clip=options.clip,
        clip_model=options.clip_model,
    ).eval()
    config, names = model.config, model.annotation_names
    if config.design != Design():
        raise UserError(
            f"{options.checkpoint} is an ablation ({_named(config.design)}): train the whole model to build a bundle"
        )
    preprocessing = _preprocessing(options, config.clip.image_size, model.feature_settings, model.mirrored)
    if ranges is not None:
        _check_frames(ranges, preprocessing, options)
    sampling = _sampling(options, model.feature_settings, preprocessing)
    if options.probe:
        say(f"reading probe frames of {len(options.probe)} video{'s' if len(options.probe) > 1 else ''}")
        frames = video_frames(options.probe, sampling, preprocessing)
    elif ranges is not None:
        # What the ranges are for; the drawn frames are like no footage. Every other frame only: what int8 is chosen by
        # would say too much good of it.
        frames = ranges.frames[1::2]
    else:
        frames = drawn_frames(config.clip.image_size)

    with whole_directory(options.out, replace=options.force) as folder:
        say(f"encoding {len(config.labels)} class prompts with PyTorch")
        text = class_embeddings(model)
        np.save(folder / "text.npy", text, allow_pickle=False)

        say(f"running {len(frames)} probe frames through PyTorch")
        answer(model, frames, text).save(folder / "probe.npz")

        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        del model
        files: dict[str, tuple[str, str | None]] = {"text.npy": ("text", None), "probe.npz": ("probe", None)}
        graphs = {}
        forms = {}
        own: onnx.ModelProto | None = None
        for name, role, precision in (
            (f"encoder.{options.precision}.onnx", "encoder", options.precision),
            ("head.onnx", "head", "fp32"),
        ):
            say(f"writing {name}")
            more: dict[str, Any] = {}
            if role == "head":
                graph = _head(weights, config)
            elif chosen_by is None:
                clip = config.clip
                graph = encoder_graph(
                    _visual(weights), clip.vision_heads, options.precision, activation=clip.activation
                )
            else:
                clip = config.clip
                graph, own, record = int8_graph(_visual(weights), clip.vision_heads, chosen_by, say, clip.activation)
                more = {"int8": record.to_json()}
            graphs[name] = {"opset": OPSET, "nodes": len(graph.graph.node), "kinds": node_kinds(graph), **more}
            onnx.save(graph, folder / name)
            files[name] = (role, precision)
            if own is not None:
                form = f"encoder.{options.precision}.onnxruntime.onnx"
                graphs[form] = {"opset": OPSET, "nodes": len(own.graph.node), "kinds": node_kinds(own), "weights": name}
                save_beside(own, folder / form, folder / name)
                files[form] = (role, precision)
                forms[form] = "onnxruntime"
            own = None
            del graph
        del weights
        gc.collect()

        write_manifest(
            folder,
            toolkit=version(),
            model=ModelInfo(
                dataset=options.dataset,
                labels=tuple(config.labels),
                anomaly=config.anomaly,
                features=config.embed_dim,
                positions=config.positions,
                window=config.window,
                layers=config.layers,
                heads=config.heads,
                mask_padding=config.mask_padding,
                image_size=config.clip.image_size,
                patch_size=config.clip.patch,
                annotation_names=names or (),
            ),
            preprocessing=preprocessing,
            sampling=sampling,
            files=files,
            forms=forms,
            checkpoint={
                "name": options.checkpoint.name,
                "sha256": checkpoint_sha256(options.checkpoint),
                # What reading the same checkpoint again needs to be told (vadexport.original).
                "clip": {"weights": options.clip, "config": asdict(config.clip)},
            },
            graphs=graphs,
        )
        verification = certificate.verify(folder, say, options.limits)
        if not verification.passed:
            raise ParityError(verification.table())
        certificate.write(folder, verification, Bundle.open(folder).sha256)
    return verification


def _named(design: Design) -> str:
    whole = Design()
    return ", ".join(
        f"{f.name} {getattr(design, f.name)}"
        for f in fields(design)
        if getattr(design, f.name) != getattr(whole, f.name)
    )


def _mirror(options: BuildOptions, trained: bool | None) -> bool:
    """What was asked for, or else what the checkpoint was selected and tested on, or else the dataset's."""
    if options.mirror is not None:
        return options.mirror
    if trained is not None:
        return trained
    return options.dataset is not None and get_preset(options.dataset).mirrored


def _preprocessing(
    options: BuildOptions, size: int, trained: Mapping[str, Any] | None, mirrored: bool | None
) -> Preprocessing:
    """What was asked for, or else what the checkpoint was trained on, or else the default."""
    made = Preprocessing.for_size(
        size, crop=options.crop, mirror=_mirror(options, mirrored), style=options.preprocessing or "default"
    )
    known = None if trained is None else trained.get("preprocessing")
    if options.preprocessing is None and isinstance(known, Mapping):
        kept: dict[str, Any] = {key: known[key] for key in STYLES["default"] if key in known}
        return replace(made, **kept)
    return made


def _sampling(options: BuildOptions, trained: Mapping[str, Any] | None, preprocessing: Preprocessing) -> Sampling:
    """What was asked for, or else what the checkpoint was trained on, or else the reference's."""
    if trained is None:
        return options.sampling or Sampling()
    if trained.get("preprocessing") != image_settings(preprocessing):
        raise UserError(
            f"{options.checkpoint} was trained on features made with preprocessing"
            f" {json.dumps(trained.get('preprocessing'))}, but its bundle would have"
            f" {json.dumps(image_settings(preprocessing))}: extract the features again and train on them"
        )
    sampling = Sampling.from_manifest(trained.get("sampling") or {})
    if options.sampling not in (None, sampling):
        raise UserError(
            f"{options.checkpoint} was trained on features made with sampling {json.dumps(sampling.to_manifest())}, not"
            f" {json.dumps(options.sampling.to_manifest())}: leave --sample and --snippet-seconds out"
        )
    return sampling


def _ranges(options: BuildOptions) -> Ranges | None:
    if (options.precision == "int8") != (options.ranges is not None):
        raise UserError(
            "--precision int8 and --ranges go together: make ranges from footage of yours with vadcalibrate ranges"
        )
    if options.ranges is None:
        return None
    ranges = Ranges.load(options.ranges)
    if ranges.checkpoint != checkpoint_sha256(options.checkpoint):
        raise UserError(
            f"{options.ranges} was made with a bundle of another checkpoint than {options.checkpoint}: make ranges of "
            "this one"
        )
    return ranges


def _check_frames(ranges: Ranges, preprocessing: Preprocessing, options: BuildOptions) -> None:
    """Refuse ranges whose frames were made otherwise than the bundle makes them; crop and mirror change no range."""
    made = ranges.origin.get("preprocessing")
    wanted = image_settings(preprocessing)
    if not isinstance(made, Mapping) or any(made.get(key) != value for key, value in wanted.items()):
        raise UserError(
            f"{options.ranges} was made with a bundle of another preprocessing than {json.dumps(wanted)}: make ranges "
            "with a bundle that was built with the same --preprocessing"
        )


def _visual(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        key.removeprefix("clipmodel.visual."): value
        for key, value in weights.items()
        if key.startswith("clipmodel.visual.")
    }


def _head(weights: dict[str, NDArray[Any]], config: Any) -> onnx.ModelProto:
    sizes = HeadSizes(config.heads, config.window, config.mask_padding, config.temperature)
    return head_graph(weights, sizes)
