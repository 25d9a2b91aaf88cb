"""Feature files from videos: one float array [n,d] per video and crop, as the released training reads them.

Reading, sampling and resizing are the runtime's own, so that what is trained is what is run. A sidecar
(``features.json``) records how the features were made; a folder never holds two kinds.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.features import count_snippets
from vadclip.frames import check_rate, footage_name, open_footage
from vadclip.sidecar import SIDECAR, image_settings, read_sidecar
from vadclip.tables import read_text
from vadrun.errors import UserError
from vadrun.files import sha256, write_bytes, write_csv, write_json, writing
from vadrun.pipeline import as_outcome
from vadrun.preprocessing import TEN_CROPS, Preprocessing
from vadrun.sampling import Sampling
from vadrun.schema import Maybe, Record, Table, Text, Whole, load_json

DTYPES = ("float16", "float32")
DAMAGE = "damage.json"
"""Beside the features: which of their videos could not be read to the end."""


@dataclass(frozen=True)
class Encoder:
    """Something that turns frames into features, and what it is."""

    encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 RGB [n,S,S,3] -> [n,d]
    size: int  # S
    name: str  # for the sidecar: what features depend on
    batch: int
    preprocessing: Preprocessing | None = None  # a bundle's own


@dataclass(frozen=True)
class ExtractOptions:
    """How features are made; all of it goes into the sidecar.

    Attributes:
        crops: 1 (the centre) or 10 (0 centre, 1 to 4 corners, 5 to 9 their mirrors).
        sampling: which frames stand for a snippet.
        dtype: of the files, ``float16`` or ``float32``.
        stream: FFmpeg's number of the video stream to read; None for each file's main one.
        rate: frames per second of folders of frames; None: no folder is read as a video.
        preprocessing: ``default`` or ``reference``, see :meth:`Preprocessing.for_size`; None: as the bundle that
            encodes, or default.
    """

    crops: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    dtype: str = "float16"
    stream: int | None = None
    rate: float | None = None
    preprocessing: str | None = None

    def __post_init__(self) -> None:
        if self.crops not in (1, 10):
            raise UserError(f"crops is {self.crops}: use 1 (the centre) or 10")
        if self.dtype not in DTYPES:
            raise UserError(f"the type of features is {self.dtype!r}: use one of {', '.join(DTYPES)}")
        if self.rate is not None:
            check_rate(self.rate)


@dataclass
class Report:
    """What became of the videos."""

    written: int = 0
    kept: int = 0  # whole before
    damaged: list[str] = field(default_factory=list)  # sentences; their features go as far as the video does
    failed: dict[Path, UserError] = field(default_factory=dict)  # those without features
    remarks: list[str] = field(default_factory=list)  # sentences on sound videos


def extract(
    videos: Sequence[Path],
    out: Path,
    encoder: Encoder,
    options: ExtractOptions,
    progress: Callable[[Path, float, float | None], None] = lambda video, done, total: None,
) -> Report:
    """Write ``NAME__0.npy`` (to ``NAME__9.npy``) for every video; go on where an earlier run stopped.

    Args:
        videos: the files, or folders of frames; their names without extension must differ.
        out: the folder for the features.
        encoder: CLIP's image encoder, from a bundle or a checkpoint.
        options: how.
        progress: told the video, the seconds of it that are done, and its length.

    Returns:
        The report; a video that cannot be read, whatever the error, is listed there and does not stop the others.

    Raises:
        UserError: the folder holds features that were made otherwise, or two videos have one name.
    """
    names = [footage_name(video) for video in videos]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"two videos are called {name!r}, and so would be their features: rename one")
    if encoder.preprocessing is not None and options.preprocessing is None:
        preprocessing = encoder.preprocessing
    else:
        preprocessing = Preprocessing.for_size(encoder.size, style=options.preprocessing or "default")
    _check_sidecar(out, encoder, options, preprocessing)
    report = Report()
    known = _read_damage(out)
    for name, video in zip(names, videos, strict=True):
        targets = [out / f"{name}__{index}.npy" for index in range(options.crops)]
        # What was damaged and has another size now has been got again.
        bytes_then, sentence = known.get(name, (None, None))
        if _whole(targets) and (sentence is None or bytes_then == _size(video)):
            report.kept += 1
            if sentence is not None:
                report.damaged.append(sentence)
            continue
        try:
            features, damage, remarks = _features(video, encoder, options, preprocessing, progress)
        except Exception as error:  # whatever is wrong with this video or our reading of it must not cost the others
            report.failed[video] = as_outcome(video, error)
            continue
        if damage is not None:
            # Before the features: what is written if the disk is full in between must not pass for a whole video.
            known[name] = (_size(video), damage)
            _write_damage(out, known)
            report.damaged.append(damage)
        for target, values in zip(targets, features, strict=True):
            _write(target, values.astype(options.dtype))
        report.written += 1
        report.remarks += [f"{video.name}: {remark}" for remark in remarks]
        if damage is None and sentence is not None:  # only now that the new features are there
            del known[name]
            _write_damage(out, known)
    return report


def check_list(path: Path, source: Path) -> None:
    """Refuse to write the list of the features of the videos in ``source`` over anything but such a list.

    Raises:
        UserError: ``path`` is the list of videos itself, or something that :func:`write_list` has not written.
    """
    if not path.exists():
        return
    if path.samefile(source):
        raise UserError(
            f"the list of features would take the place of {source}, the list of videos: give another --out"
        )
    try:
        header, *rows = read_text(path, "a list of features").splitlines()
    except (UserError, ValueError):  # ValueError: it is empty
        header, rows = "", []
    if header != "path,label" or not all(re.match(r'"?[^/\\]+__\d\.npy"?,', row) for row in rows):
        raise UserError(f"{path} is in the way of the list of features and is no such list: give another --out")


def write_list(path: Path, videos: Sequence[tuple[Path, str]], crops: int) -> int:
    """Write the list that training and evaluation read, beside the features of these videos; a row for each crop.

    Videos without features, because they could not be read, are left out.

    Returns:
        How many of the videos it names.
    """
    rows = []
    for video, label in videos:
        names = [f"{footage_name(video)}__{index}.npy" for index in range(crops)]
        if all((path.parent / name).is_file() for name in names):
            rows.append([(name, label) for name in names])
    write_csv(path, [("path", "label"), *chain.from_iterable(rows)])
    return len(rows)


def _features(
    path: Path,
    encoder: Encoder,
    options: ExtractOptions,
    preprocessing: Preprocessing,
    progress: Callable[[Path, float, float | None], None],
) -> tuple[NDArray[np.float32], str | None, tuple[str, ...]]:
    """Features [crops,n,d] of one video, what was wrong with it, and remarks on what it holds."""
    parts: list[NDArray[np.float32]] = []
    waiting: list[NDArray[np.uint8]] = []  # [k*c,S,S,3] of each snippet whose images are not encoded yet

    def encode() -> None:
        images = np.concatenate(waiting)
        rows = np.concatenate(
            [encoder.encode(images[i : i + encoder.batch]) for i in range(0, len(images), encoder.batch)]
        )
        for its in np.split(rows, np.cumsum([len(snippet) for snippet in waiting])[:-1]):
            # [k*c,d] -> the mean over the snippet's k images
            parts.append(its.reshape(-1, options.crops, its.shape[-1]).mean(axis=0, dtype=np.float32))
        waiting.clear()

    with open_footage(path, options.rate, options.stream) as video:
        # Truth at frame level counts frames, whatever their times say.
        for snippet in video.snippets(options.sampling, preprocessing, TEN_CROPS[: options.crops], joins=True):
            waiting.append(snippet.images.reshape(-1, *snippet.images.shape[2:]))
            if sum(map(len, waiting)) >= encoder.batch:
                encode()
                progress(path, snippet.end, video.info.duration)
        if waiting:
            encode()
        return np.stack(parts, axis=1), video.damage, video.info.remarks


def settings(encoder: Encoder, options: ExtractOptions, preprocessing: Preprocessing) -> dict[str, Any]:
    """What the sidecar holds: everything that features depend on."""
    found: dict[str, Any] = {
        "encoder": encoder.name,
        "sampling": options.sampling.to_manifest(),
        "preprocessing": image_settings(preprocessing),
        "dtype": options.dtype,
        "stream": options.stream,
    }
    if options.sampling.by == "time" and options.rate is not None:
        found["rate"] = options.rate  # cut by frames, features do not depend on it
    return found


def _check_sidecar(out: Path, encoder: Encoder, options: ExtractOptions, preprocessing: Preprocessing) -> None:
    wanted = settings(encoder, options, preprocessing)
    found = read_sidecar(out)
    if found is None:
        if out.exists() and any(out.glob("*__[0-9].npy")):
            raise UserError(f"{out} holds features that do not say how they were made: give another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SIDECAR, wanted)
        return
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{out} holds features made with {key} {json.dumps(found.get(key))}, not {json.dumps(value)}: "
                "give another --out, or the same settings"
            )


_DAMAGED = Table(Record({"bytes": Maybe(Whole()), "damage": Text(plain=False)}), key=Text(plain=False), most=100_000)


def _read_damage(out: Path) -> dict[str, tuple[int | None, str]]:
    """Video name -> size in bytes and what is wrong with it, of those whose features do not go to their end."""
    path = out / DAMAGE
    if not os.path.lexists(path):
        return {}
    content = load_json(path, _DAMAGED, "remove it, or give another --out", most=64 << 20)
    return {name: (entry["bytes"], entry["damage"]) for name, entry in content.items()}


def _write_damage(out: Path, known: Mapping[str, tuple[int | None, str]]) -> None:
    if not known:
        (out / DAMAGE).unlink(missing_ok=True)
        return
    write_json(out / DAMAGE, {name: {"bytes": size, "damage": damage} for name, (size, damage) in known.items()})


def _size(video: Path) -> int | None:
    try:
        if video.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(video))
        return video.stat().st_size
    except OSError:
        return None


def _whole(targets: Sequence[Path]) -> bool:
    """Whether all crops of a video are there, readable and of one length; if not, they are made again."""
    try:
        return len({count_snippets(path, None) for path in targets}) == 1
    except UserError:
        return False


def _write(path: Path, values: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    with writing(path):
        write_bytes(path, content.getbuffer())


def clip_name(source: str, clip: Any) -> str:
    """What a sidecar calls a CLIP of :func:`open_clip_model`: a file by its name and SHA-256, then its arithmetic.

    The same weights give other features with another activation or other heads than OpenAI's, so these are named too.
    """
    from vadclip.clip import clip_config
    from vadclip.clip_models import HEAD_WIDTH

    config, _ = clip_config(clip)
    arithmetic = "fp32"
    if config.activation != "quickgelu":
        arithmetic += f",{config.activation}"
    if config.vision_width != HEAD_WIDTH * config.vision_heads:
        arithmetic += f",heads={config.vision_heads}"
    if _is_file(source):
        return f"{Path(source).name} {sha256(Path(source))} {arithmetic}"
    return f"open_clip {source} {arithmetic}"


def open_clip_model(source: str, clip_model: str | None = None) -> Any:
    """The CLIP of a file (:func:`vadclip.checkpoint.load_clip`) or of open_clip's pretrained weights by name.

    Args:
        source: a file of weights, or a name as :func:`vadclip.clip.pretrained` takes it.
        clip_model: which CLIP a file is, where nothing else tells.

    Raises:
        UserError: neither of the two, or it cannot be loaded.
    """
    from vadclip.clip import pretrained

    if _is_file(source):
        from vadclip.checkpoint import load_clip

        return load_clip(source, clip_model)
    if clip_model is not None:
        raise UserError(f"{source} is a name of weights, not a file, and says which CLIP it is: leave --clip-model out")
    return pretrained(source)


def _is_file(source: str) -> bool:
    path = Path(source)
    return path.exists() or bool(path.suffix)


def open_encoder(
    source: str,
    *,
    batch: int = 8,
    backend: str = "auto",
    precision: str = "auto",
    clip_model: str | None = None,
) -> Encoder:
    """The image encoder of a bundle's folder, or of a CLIP as :func:`open_clip_model` takes it.

    A bundle is the fast one and needs no torch; its backend and arithmetic are part of the name.

    Raises:
        UserError: none of these, or it cannot be loaded.
    """
    path = Path(source)
    if path.is_dir():
        if clip_model is not None:
            raise UserError(f"{source} is a bundle, which says which CLIP it holds: leave --clip-model out")
        from vadrun.engine import Engine

        engine = Engine.load(path, backend, precision=precision, batch=batch)
        model, graph = engine.bundle.model, engine.backend.encoder_file
        digest = next(entry.sha256 for entry in engine.bundle.files if entry.name == graph)
        name = f"{graph} {digest} {engine.backend.precision}"
        return Encoder(engine.encode, model.image_size, name, batch, engine.bundle.preprocessing)
    import torch

    from vadclip.device import find_device
    from vadclip.images import normalise

    clip = open_clip_model(source, clip_model)
    device = find_device(model=clip.eval())

    @torch.inference_mode()
    def encode(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: torch.Tensor = clip.encode_image(normalise(frames).to(device))
        return np.asarray(features.cpu().numpy(), np.float32)

    return Encoder(encode, int(clip.visual.image_size[0]), clip_name(source, clip), batch)
