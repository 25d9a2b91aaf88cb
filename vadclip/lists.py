"""Lists of feature files with video-level labels, and the classes that those labels name.

A list is the authors' CSV: a header ``path,label``, one feature file a row, and where a video has several crops a
row for each (``NAME__0.npy`` to ``NAME__9.npy``), or one row for a file that holds all ten ([n,10,d]).
"""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.features import CROPS, count_snippets, holds_ten_crops, read_features
from vadclip.moved import places
from vadclip.presets import ANOMALY_BRANCHES, NORMAL, PRESETS, Preset, check_labels
from vadclip.tables import read_table, required
from vadclip.yaml_text import MOST_BYTES, parse_yaml
from vadrun.errors import UserError
from vadrun.inputs import EXTENSIONS, redacted
from vadrun.schema import Where, parse_json, read_file, shown

_CROP = re.compile(r"__(\d+)$")
_MOST_NAME = 200  # characters
_FILLER = "0"  # XD-Violence's labels name three classes always: "B1-B2-0", "G-0-0"
_OWN = {"name", "classes", "window", "layers", "heads", "anomaly", "mirrored"}
_OWN_DEFAULTS = {"window": 8, "layers": 2, "heads": 1, "anomaly": "confidence", "mirrored": False}


@dataclass(frozen=True)
class FeatureList:
    """N feature files and their classes.

    Attributes:
        source: where the list comes from, for messages.
        paths: the files.
        labels: each file's label as it was written.
        targets: float32 [N,m], 1 at each of a file's classes; column 0 is the normal class.
        within: for a row that is one crop of a file [n,10,d], which one; None for a file [n,d]. Empty: of all rows.
    """

    source: str
    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    targets: NDArray[np.float32]
    within: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def normal(self) -> NDArray[np.bool_]:
        """bool [N], true where the video is normal."""
        return self.targets[:, NORMAL] > 0

    @property
    def videos(self) -> tuple[str, ...]:
        """The video that each file is of: its path without the crop number and the ending."""
        return tuple(_CROP.sub("", str(_without_ending(path))) for path in self.paths)

    @property
    def crops(self) -> tuple[int | None, ...]:
        """Each row's crop number, of the file's name or within the file; None where there is none."""
        found = (_CROP.search(path.stem) for path in self.paths)
        named = tuple(int(match[1]) if match else None for match in found)
        return tuple(name if crop is None else crop for name, crop in zip(named, self._within, strict=True))

    @property
    def _within(self) -> tuple[int | None, ...]:
        return self.within or (None,) * len(self)

    def read(self, index: int, width: int | None) -> NDArray[np.floating]:
        """The features [n,d] of a row, as :func:`vadclip.features.read_features`."""
        return read_features(self.paths[index], width, self._within[index])

    def count(self, index: int, width: int | None) -> int:
        """The snippets n of a row, as :func:`vadclip.features.count_snippets`."""
        return count_snippets(self.paths[index], width, self._within[index])

    def subset(self, rows: Sequence[int] | NDArray[np.integer]) -> FeatureList:
        """The list of these rows, in this order."""
        index = [int(row) for row in rows]
        return FeatureList(
            self.source,
            tuple(self.paths[i] for i in index),
            tuple(self.labels[i] for i in index),
            self.targets[index],
            tuple(self.within[i] for i in index) if self.within else (),
        )

    def fingerprint(self) -> str:
        """Hex SHA-256 of the paths, crops and labels: equal lists, equal fingerprints."""
        digest = hashlib.sha256()
        for path, crop, label in zip(self.paths, self._within, self.labels, strict=True):
            digest.update(f"{path}\0{'' if crop is None else f'crop {crop} of '}{label}\n".encode())
        return digest.hexdigest()


def _without_ending(path: Path) -> Path:
    # Names of videos have points in them, so only endings that are known come off.
    return path.with_suffix("") if path.suffix.lower() in EXTENSIONS | {".npy"} else path


def load_list(path: str | Path, preset: Preset, root: str | Path | None = None, *, videos: bool = False) -> FeatureList:
    """Read a training or test list.

    Paths that were written on another machine are found as :func:`vadclip.moved.places` says. Whether the files
    exist is not an error here: see :func:`without_missing`.

    Args:
        path: the CSV, UTF-8, header ``path,label``.
        preset: whose annotation names (or prompt labels) the labels are, several joined by ``-``.
        root: folder that the files have moved to.
        videos: whether it may list videos, because nobody reads the files.

    Raises:
        UserError: the file cannot be read, has another form, holds no row, names videos, or a label is unknown.
    """
    path = Path(path)
    rows = _read_rows(path)
    if not rows:
        raise UserError(f"{path} lists no feature file: add rows of path,label below the header")
    video = next((text for _, text, _ in rows if Path(text).suffix.lower() in EXTENSIONS), None)
    if video is not None and not videos:
        raise UserError(
            f"{path} lists videos (such as {video}) where feature files are wanted: run vadclip extract on it, and name"
            " the list that it writes beside the features"
        )
    known = _known_labels(preset)
    targets = np.zeros((len(rows), len(preset.labels)), dtype=np.float32)
    for index, (line, _, label) in enumerate(rows):
        classes = _classes(label, known)
        if classes is None:
            raise UserError(
                f"{path}, line {line}: the label {label!r} is unknown to {preset.name!r}:"
                f" use one of {', '.join(preset.classes)}, several joined by '-'"
            )
        if NORMAL in classes and len(classes) > 1:
            raise UserError(
                f"{path}, line {line}: the label {label!r} is normal and abnormal at once: name one or the other"
            )
        targets[index, classes] = 1.0
    files = places(path, [text for _, text, _ in rows], root)
    return FeatureList(str(path), files, tuple(label for _, _, label in rows), targets)


def read_video_list(
    path: str | Path, root: str | Path | None = None, *, folders: bool = False
) -> list[tuple[Path, str]]:
    """A list of videos in place of feature files, as ``vadclip extract`` takes it: each video and its label.

    Paths are found as in :func:`load_list`; what the labels mean is not looked at. With ``folders`` it may name folders
    of frames.

    Raises:
        UserError: the file cannot be read, has another form, holds no row, or a video is missing.
    """
    path = Path(path)
    rows = _read_rows(path)
    if not rows:
        raise UserError(f"{path} lists no video: add rows of path,label below the header")
    if features := next((text for _, text, _ in rows if Path(text).suffix.lower() == ".npy"), None):
        raise UserError(
            f"{path} lists feature files (such as {features}) where videos are wanted: name the list of the videos"
        )
    videos = places(path, [text for _, text, _ in rows], root, Path.exists)
    folder = next((video for video in videos if video.is_dir()), None)
    if folder is not None and not folders:
        raise UserError(
            f"{path} lists folders (such as {folder}) where video files are wanted: if they hold the frames of videos,"
            " give their frames per second as --rate"
        )
    missing = [video for video in videos if not video.exists()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(videos)} videos are missing, the first is {redacted(missing[0])}:"
            " name the folder they are in with --root, or take them off the list"
        )
    return [(video, label) for video, (_, _, label) in zip(videos, rows, strict=True)]


def without_missing(listed: FeatureList, allow_missing: bool | None = None) -> tuple[FeatureList, int]:
    """The files of a list that exist, and how many do not. A file of ten crops becomes a row for each of them.

    Args:
        listed: the list.
        allow_missing: whether some may be missing; None where the user has no such choice, as of a test list, whose
            figures would then be of other videos.

    Raises:
        UserError: some are missing and ``allow_missing`` is not true, or none is there.
    """
    there = [index for index, path in enumerate(listed.paths) if path.is_file()]
    missing = len(listed) - len(there)
    if not missing:
        return _with_crops(listed), 0
    first = next(path for path in listed.paths if not path.is_file())
    what = f"{listed.source}: {missing} of {len(listed)} feature files are missing, the first is {first}"
    if not there:
        raise UserError(f"{what}: name the folder they are in with --root")
    if not allow_missing:
        way = "take them off the list" if allow_missing is None else "allow missing files to go on without them"
        raise UserError(f"{what}: name the folder they moved to with --root, or {way}")
    return _with_crops(listed.subset(there)), missing


def _with_crops(listed: FeatureList) -> FeatureList:
    """A row for each crop of the files that hold ten; those whose names end in a crop's number hold one."""
    if listed.within:
        return listed
    several = [crop is None and holds_ten_crops(path) for path, crop in zip(listed.paths, listed.crops, strict=True)]
    if not any(several):
        return listed
    rows: list[tuple[int, int | None]] = []
    for index, ten in enumerate(several):
        rows += [(index, crop) for crop in range(CROPS)] if ten else [(index, None)]
    return replace(listed.subset([index for index, _ in rows]), within=tuple(crop for _, crop in rows))


def check_apart(training: FeatureList, test: FeatureList) -> None:
    """Refuse a test list of videos that are trained on: the same files, or copies of them in another folder.

    Videos in different folders may have one name; they are the same if so are the features of one crop, byte by byte.

    Raises:
        UserError: some are in both; the sentence counts them and names the first.
    """
    known: dict[tuple[str, int | None], list[Path]] = {}
    for path, video, crop in zip(training.paths, training.videos, training.crops, strict=True):
        known.setdefault((Path(video).name, crop), []).append(path)
    trained = {str(Path(video).resolve()) for video in training.videos}
    both = []
    for path, video, crop in zip(test.paths, test.videos, test.crops, strict=True):
        copies = (other for other in known.get((Path(video).name, crop), ()) if other.is_file())
        if str(Path(video).resolve()) in trained or any(filecmp.cmp(path, other, shallow=False) for other in copies):
            both.append(video)
    both = list(dict.fromkeys(both))
    if both:
        raise UserError(
            f"{test.source} tests on {len(both)} of {len(set(test.videos))} videos that {training.source} trains on,"
            f" the first is {both[0]}: take them off one of the lists"
        )


def split_by_video(listed: FeatureList, fraction: float, seed: int) -> tuple[FeatureList, FeatureList]:
    """A training and a validation part; all crops of a video are in the same one.

    About ``fraction`` of the normal and of the abnormal videos, at least one of each, goes to the validation part;
    among the abnormal ones every label has about its share.

    Raises:
        UserError: the fraction is none, or the validation part would have no normal or no abnormal video.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation part is {fraction} of the videos: use a share between 0 and 1")
    videos = np.array(listed.videos)
    label_of = dict(zip(videos, listed.labels, strict=True))
    chosen: set[str] = set()
    generator = np.random.default_rng(seed)
    normal_of = dict(zip(videos, listed.normal, strict=True))
    for normal in (True, False):
        side = sorted(video for video in label_of if normal_of[video] == normal)
        # Shuffled, then in order of label (sorted() is stable): every k-th video is a share of each label.
        side = sorted(generator.permutation(side).tolist(), key=lambda video: label_of[video])
        wanted = min(max(round(fraction * len(side)), 1), len(side) - 1)
        if wanted < 1:
            kind = "normal" if normal else "abnormal"
            raise UserError(
                f"{listed.source} has {len(side)} {kind} video(s), too few to set some aside for validation:"
                " add videos or select without validation"
            )
        chosen.update(side[int(position)] for position in (np.arange(wanted) + 0.5) * len(side) / wanted)
    held = np.array([video in chosen for video in videos])
    return listed.subset(np.flatnonzero(~held)), listed.subset(np.flatnonzero(held))


def one_crop(listed: FeatureList, crop: int) -> FeatureList:
    """One row of each video: its crop of this number or, where there is none, its first row."""
    rows: dict[str, int] = {}
    for index, (video, number) in enumerate(zip(listed.videos, listed.crops, strict=True)):
        if video not in rows or number == crop:
            rows[video] = index
    return listed.subset(sorted(rows.values()))


def crop_remark(chosen: FeatureList, crop: int) -> str | None:
    """What :func:`one_crop` took in place of the crop that it was to take, in a sentence; None if it took that one.

    A file without a crop's number is taken for the plain centre, crop 0.
    """
    other = [index for index, number in enumerate(chosen.crops) if (number or 0) != crop]
    if not other:
        return None
    return (
        f"{chosen.source} has no crop {crop} of {len(other)} of {len(chosen)} videos"
        f" (in place of the first: {chosen.paths[other[0]].name})"
    )


def load_classes(path: str | Path) -> Preset:
    """Read a user's own classes from a YAML or JSON file.

    ``classes`` is a mapping of annotation names to the prompts that CLIP reads, or a list of prompts that are
    annotation names too, the normal class first. The rest may be left out::

        name: shop
        classes:
          Normal: normal
          Theft: a person hiding goods
        window: 8            # attention window, in snippets
        layers: 2
        anomaly: confidence  # or alignment

    Raises:
        UserError: the file cannot be read, has another form, or an entry cannot be used.
    """
    path = Path(path)
    data = _parse(path)
    if not isinstance(data, Mapping) or "classes" not in data:
        raise UserError(f"{path} has no entry 'classes': list the normal class first, then the others")
    if unknown := [key for key in data if key not in _OWN]:
        raise UserError(f"{path} has the unknown entry {shown(unknown[0])}: use {', '.join(sorted(_OWN))}")
    classes = data["classes"]
    if not isinstance(classes, Mapping):
        prompts = check_labels(classes, str(path))
        names: tuple[str, ...] = prompts
    else:
        prompts = check_labels(list(classes.values()), str(path))
        names = tuple(str(name) if isinstance(name, str | int) else "" for name in classes)
    for name in names:
        if name.strip() != name or name in ("", _FILLER) or not name.isprintable() or len(name) > _MOST_NAME:
            raise UserError(f"{path}: {shown(name)} cannot be the name of a class: use a word or a number above 0")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two classes have one name, once as a number and once as a word: rename one")
    settings: dict[str, Any] = {key: data.get(key, default) for key, default in _OWN_DEFAULTS.items()}
    for key in ("window", "layers", "heads"):
        if not isinstance(settings[key], int) or isinstance(settings[key], bool) or settings[key] < 1:
            raise UserError(f"{path}: {key} is {shown(settings[key])}: use a whole number of at least 1")
    if settings["anomaly"] not in ANOMALY_BRANCHES:
        raise UserError(f"{path}: anomaly is {shown(settings['anomaly'])}: use one of {', '.join(ANOMALY_BRANCHES)}")
    if not isinstance(settings["mirrored"], bool):
        raise UserError(f"{path}: mirrored is {shown(settings['mirrored'])}: use true or false")
    name = data.get("name", path.stem)
    if not isinstance(name, str | int) or not str(name).isprintable() or len(str(name)) > _MOST_NAME:
        raise UserError(f"{path}: name is {shown(name)}: use a word")
    name = str(name)
    if name in PRESETS:
        raise UserError(f"{path}: the name {name!r} is a built-in dataset's: choose another")
    return Preset(name=name, classes=dict(zip(names, prompts, strict=True)), **settings)


def _parse(path: Path) -> object:
    where = Where(path, "name a file of classes, YAML or JSON, as in the documentation")
    raw = read_file(path, where, most=MOST_BYTES)
    if path.suffix.lower() == ".json":
        return parse_json(raw, where)
    try:
        return parse_yaml(raw.decode("utf-8-sig"), where)
    except UnicodeDecodeError:
        raise where.error("it is not UTF-8 text") from None


def _read_rows(path: Path) -> list[tuple[int, str, str]]:
    """Line number, path and label of every row that is not blank."""
    rows = read_table(path, ("path", "label"))
    return [(line, required(path, line, row, "path"), required(path, line, row, "label")) for line, row in rows]


def _known_labels(preset: Preset) -> dict[str, int]:
    known = {label: index for index, label in enumerate(preset.labels)}
    known.update((name, index) for index, name in enumerate(preset.classes))  # names have precedence
    return known


def _classes(label: str, known: Mapping[str, int]) -> list[int] | None:
    """The classes that a label names; None if it is unknown or names none."""
    if label in known:  # first, for a class that has a "-" in its own name
        return [known[label]]
    parts = [part.strip() for part in label.split("-")]
    parts = [part for part in parts if part != _FILLER]
    if not parts or any(part not in known for part in parts):
        return None
    return sorted({known[part] for part in parts})
