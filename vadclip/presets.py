"""What a released checkpoint does not say about itself: the settings of each dataset it was trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vadrun.errors import UserError
from vadrun.schema import Where, read_file, shown

Anomaly = Literal["confidence", "alignment"]
"""Which branch gives the anomaly score: sigmoid of the C-branch, or 1 - p(normal) of the A-branch."""

ANOMALY_BRANCHES: tuple[str, ...] = get_args(Anomaly)
NORMAL = 0
"""Index of the normal class among the labels, everywhere."""
_MOST_LABELS = 1000
_MOST_BYTES = 1 << 20  # of a file of labels
_MOST_CHARACTERS = 1000  # of a label; CLIP reads 75 tokens, with a prompt of one's own around it


@dataclass(frozen=True)
class Preset:
    """Settings of a dataset's released model.

    Attributes:
        name: how the dataset is called on a command line.
        window: attention window of the local module, in snippets.
        layers: temporal transformer layers that a checkpoint of this dataset has.
        heads: attention heads of the local module.
        classes: annotation name -> label that the text encoder reads, normal first.
        anomaly: the branch that the paper's figures for this dataset come from.
        mirrored: whether the test features are of the mirrored centre crop (5) or the plain one (0).
        normal: index of the normal class.
    """

    name: str
    window: int
    layers: int
    heads: int
    classes: Mapping[str, str] = field(hash=False)
    anomaly: Anomaly
    mirrored: bool
    normal: int = NORMAL

    @property
    def centre_crop(self) -> int:
        """Number of the crop that is tested on: the mirrored centre or the plain one."""
        return 5 if self.mirrored else 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The prompt labels in class order, normal first."""
        return tuple(self.classes.values())


# The labels are the released code's, "roadAccidents" in one word included: other spellings are other tokens.
PRESETS: Mapping[str, Preset] = {
    "ucf": Preset(
        name="ucf",
        window=8,
        layers=2,
        heads=1,
        classes={
            "Normal": "normal",
            "Abuse": "abuse",
            "Arrest": "arrest",
            "Arson": "arson",
            "Assault": "assault",
            "Burglary": "burglary",
            "Explosion": "explosion",
            "Fighting": "fighting",
            "RoadAccidents": "roadAccidents",
            "Robbery": "robbery",
            "Shooting": "shooting",
            "Shoplifting": "shoplifting",
            "Stealing": "stealing",
            "Vandalism": "vandalism",
        },
        anomaly="confidence",
        mirrored=True,
    ),
    "xd": Preset(
        name="xd",
        window=64,
        layers=1,
        heads=1,
        classes={
            "A": "normal",
            "B1": "fighting",
            "B2": "shooting",
            "B4": "riot",
            "B5": "abuse",
            "B6": "car accident",
            "G": "explosion",
        },
        anomaly="alignment",
        mirrored=False,
    ),
}


def get_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        UserError: there is none of that name.
    """
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        raise UserError(f"unknown dataset {shown(name)}: use one of {', '.join(PRESETS)}") from None


def check_labels(labels: Sequence[str], source: str = "labels") -> tuple[str, ...]:
    """``labels`` as a tuple with outer blanks removed, normal first.

    Raises:
        UserError: they are not a sequence of strings, one is empty, too long or has control characters, two are equal
            to the text encoder (case and spacing do not count), or there are fewer than two or absurdly many. The
            sentence starts with ``source``.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise UserError(f"{source}: expected a list of strings, got {type(labels).__name__}")
    if len(labels) > _MOST_LABELS:
        raise UserError(f"{source}: found {len(labels)} labels; name {_MOST_LABELS} at most")
    seen: dict[str, str] = {}
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise UserError(f"{source}: label {index} is {shown(label)}, which is not a string")
        key = " ".join(label.split()).casefold()
        if not key:
            raise UserError(f"{source}: label {index} is empty; remove it or name the class")
        if len(key) > _MOST_CHARACTERS:
            raise UserError(f"{source}: label {index} has {len(key)} characters; use {_MOST_CHARACTERS} at most")
        # Events, tables and terminals show it on one line.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in label.strip()):
            raise UserError(f"{source}: label {index}, {shown(label)}, has a control or half a character; remove it")
        if key in seen:
            raise UserError(f"{source}: {label.strip()!r} repeats {seen[key]!r}; each class needs its own")
        seen[key] = label.strip()
    if len(seen) < 2:
        raise UserError(f"{source}: found {len(seen)} label(s); name the normal class and at least one other")
    return tuple(seen.values())


def load_labels(path: str | Path) -> tuple[str, ...]:
    """Read a labels file: UTF-8 text, one label a line, the normal class first.

    Blank lines are skipped; ``#`` at the start of a line or after a blank begins a comment.

    Raises:
        UserError: the file cannot be read as text, or its labels do not pass :func:`check_labels`.
    """
    path = Path(path)
    where = Where(path, "name a plain UTF-8 text file of labels, one a line")
    try:
        text = read_file(path, where, most=_MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise where.error("it is not UTF-8 text") from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return check_labels([line for line in lines if line], source=str(path))
