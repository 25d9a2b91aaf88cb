"""How features were made: ``features.json`` beside them, and what keeps two kinds from being mixed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadclip.metrics import FRAMES_PER_SNIPPET
from vadrun.errors import UserError
from vadrun.schema import Anything, Record, Table, Text, load_json

if TYPE_CHECKING:  # the reader of videos is not needed here
    from vadrun.preprocessing import Preprocessing

SIDECAR = "features.json"
_DECISIVE = ("encoder", "sampling", "preprocessing")  # the number type changes nothing that matters

_SIDECAR = Record(
    {},
    {"encoder": Text(plain=False), "sampling": Table(Anything()), "preprocessing": Table(Anything())},
    others=Anything(),
)

FeatureSettings = Mapping[str, Any]
"""``encoder`` (a name), ``sampling`` and ``preprocessing`` (as in a bundle's manifest, without crop and mirror)."""


def image_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What of the preprocessing all crops have in common; which one it is tells the number in a file's name."""
    values = preprocessing.to_manifest()
    del values["crop"], values["mirror"]
    return values


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """How the features in a folder were made, or None where nothing says.

    Raises:
        UserError: the sidecar does not read.
    """
    path = folder / SIDECAR
    if not os.path.lexists(path):
        return None
    return dict(load_json(path, _SIDECAR, "extract into another folder"))


def common_settings(paths: Iterable[Path]) -> dict[str, Any] | None:
    """How the feature files of a list were made; None where no folder says, as with the authors' files.

    Raises:
        UserError: two folders say different things, or one says nothing and another does.
    """
    found: dict[Path, dict[str, Any] | None] = {}
    for path in paths:
        if path.parent not in found:
            found[path.parent] = read_sidecar(path.parent)
    folders = list(found)
    for folder in folders[1:]:
        one, other = found[folders[0]], found[folder]
        if (one is None) != (other is None):
            silent, telling = (folders[0], folder) if one is None else (folder, folders[0])
            raise UserError(
                f"the list mixes features: {telling} has a {SIDECAR} that tells how they were made, {silent} has none:"
                " extract all of them with the same settings"
            )
        if one is not None and other is not None:
            key = differing(one, other)
            if key is not None:
                raise UserError(
                    f"the list mixes features: {folders[0]} was made with {key} {json.dumps(one.get(key))}, {folder}"
                    f" with {json.dumps(other.get(key))}: extract all of them with the same settings"
                )
    return found[folders[0]] if folders else None


def differing(one: FeatureSettings, other: FeatureSettings) -> str | None:
    """The first decisive setting in which two differ; one that either does not tell is not compared."""
    for key in _DECISIVE:
        if key in one and key in other and one[key] != other[key]:
            return key
    return None


def check_test_features(
    settings: FeatureSettings | None, trained: FeatureSettings | None, what: str, sha256: str | None = None
) -> None:
    """Refuse test features that frames cannot be told from, or that were made in another way than the model's.

    Args:
        settings: of the test features.
        trained: what the model was trained on or, of a bundle, what it runs with.
        what: the model, for the message.
        sha256: of the model's own checkpoint, whose CLIP may have made the test features.

    Raises:
        UserError: they do not fit.
    """
    if settings is None:
        return
    sampling = settings.get("sampling")
    if isinstance(sampling, Mapping) and (sampling.get("by"), sampling.get("frames")) != ("frames", FRAMES_PER_SNIPPET):
        raise UserError(
            f"the test features' snippets are not of {FRAMES_PER_SNIPPET} frames ({json.dumps(dict(sampling))}), and"
            " frame-level truth is: extract them again without --snippet-seconds"
        )
    if trained is None:
        return
    made_by, wanted = str(settings.get("encoder", "")), str(trained.get("encoder", ""))
    if made_by and wanted and not _same_encoder(made_by, wanted) and not _of_file(made_by, sha256):
        raise UserError(
            f"the test features were made by the CLIP {made_by!r}, but {what} wants those of {wanted!r}: extract them"
            " with the same --encoder"
        )
    for key in ("sampling", "preprocessing"):
        if key in trained and settings.get(key, trained[key]) != trained[key]:
            raise UserError(
                f"the test features were made with {key} {json.dumps(settings[key])}, but {what} wants"
                f" {json.dumps(trained[key])}: extract them with the same settings"
            )


def check_clip(paths: Iterable[Path], name: str) -> None:
    """Refuse features of another CLIP than the one that is to be trained with, as far as the sidecar tells.

    Args:
        paths: of the feature files.
        name: of :func:`vadclip.extract.clip_name`. Features of a bundle's encoder cannot be compared with it.

    Raises:
        UserError: they were made by another one, or in several ways.
    """
    made_by = str((common_settings(paths) or {}).get("encoder", name))
    if not _same_encoder(made_by, name):
        raise UserError(
            f"the features were made by the CLIP {made_by!r}, but --clip is {name!r}: name the CLIP that made them"
        )


def _identity(encoder: str) -> list[str | None]:
    """SHA-256 (or open_clip's tag) and arithmetic: without the file's name, which may change."""
    return [*encoder.rsplit(" ", 2)[1:]]


def _of_file(encoder: str, sha256: str | None) -> bool:
    """Whether it is PyTorch's float32 of a file."""
    words = encoder.rsplit(" ", 2)
    return len(words) == 3 and words[1] == sha256 and words[2].split(",")[0] == "fp32"


def _same_encoder(one: str, other: str) -> bool:
    """Whether two may be the same: a bundle's graph cannot be compared with anything."""
    if any(name.rsplit(" ", 2)[0].endswith(".onnx") for name in (one, other)):
        return True
    return _identity(one) == _identity(other)
