"""Evaluate a checkpoint or a bundle on a test list of feature files, as the paper does.

Everything that can be wrong with the list, the feature files and the ground truth is found before the first
video is scored; only NaN in a feature file waits until that file is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vadclip.features import count_snippets, read_features
from vadclip.groundtruth import (
    COUNTS_COLUMN,
    Annotations,
    Event,
    VideoTruth,
    ground_truth,
    read_annotations,
    read_counts,
    video_name,
)
from vadclip.lists import FeatureList, load_classes, load_list, one_crop, without_missing
from vadclip.metrics import (
    IOU,
    MODES,
    DetectionMap,
    FrameMetrics,
    detection_map,
    frame_metrics,
)
from vadclip.presets import ANOMALY_BRANCHES, NORMAL, PRESETS, Preset
from vadclip.sidecar import FeatureSettings, check_test_features, common_settings, image_settings
from vadrun.console import run_command, table, version
from vadrun.errors import UserError
from vadrun.files import whole_directory, write_json
from vadrun.scoring import Scores, scores_from_logits

if TYPE_CHECKING:
    from vadclip.model import VadCLIP
    from vadrun.engine import Engine

# Which of the IoU thresholds the class table shows.
_SHOWN = (0, 2, 4)
# Counts of snippets from two decoders differ by one now and then.
_COUNT_SLACK = 2

Progress = Callable[[int, int], None]
"""Called with the number of videos that are scored and of all."""


class Scorer(Protocol):
    """What is evaluated: a model that turns the features of one video into scores.

    Attributes:
        labels: the m labels, normal first.
        width: d, the width of the features that it takes.
        anomaly: the branch that gives its anomaly score.
        description: what it is and on what it runs, in one line.
        sha256: of the checkpoint file, or of the bundle's manifest; None for a model that is no file.
        feature_settings: how its features are to be made (:mod:`vadclip.sidecar`); None where nothing says.
    """

    labels: Sequence[str]
    width: int
    anomaly: str
    description: str
    sha256: str | None
    feature_settings: FeatureSettings | None

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""


class ModelScorer:
    """A PyTorch model.

    Args:
        model: in evaluation mode; moved to ``device``.
        device: of torch, such as "cpu" or "cuda:0"; "auto" is a GPU where there is one.

    Raises:
        UserError: no such device, or a label has no tokens or too many.
    """

    def __init__(self, model: VadCLIP, device: str = "auto", sha256: str | None = None) -> None:
        import torch

        from vadclip.device import find_device

        place = find_device(device, model)
        self._model = model.eval()
        with torch.no_grad():
            self._text = self._model.encode_text(model.config.labels)
        self.labels: Sequence[str] = model.config.labels
        self.width = model.config.embed_dim
        self.anomaly: str = model.config.anomaly
        self.description = f"PyTorch {torch.__version__} on {place}"
        self.sha256 = sha256
        self.feature_settings: FeatureSettings | None = model.feature_settings

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""
        import torch

        logits, alignment = self._model.score(torch.from_numpy(features), self._text)
        return scores_from_logits(logits.cpu().numpy(), alignment.cpu().numpy(), self.anomaly)

    def adapt(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """X (Eq. 1) [k,d]: at most one chunk of a video's features [n,d] after the LGT-Adapter, k = min(n, T)."""
        import torch

        positions = self._model.config.positions
        part = torch.from_numpy(features[:positions]).to(self._text)
        padded = torch.nn.functional.pad(part, (0, 0, 0, positions - len(part)))[None]
        with torch.no_grad():
            after = self._model.video_features(padded, torch.tensor([len(part)]))[0, : len(part)]
        found: NDArray[np.float32] = after.cpu().numpy()
        return found


class EngineScorer:
    """A bundle in one of the runtime's backends."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.labels: Sequence[str] = engine.labels
        self.width = engine.bundle.model.features
        self.anomaly = engine.bundle.model.anomaly
        self.description = engine.description
        self.sha256: str | None = engine.bundle.sha256
        self.feature_settings: FeatureSettings | None = {
            "sampling": engine.bundle.sampling.to_manifest(),
            "preprocessing": image_settings(engine.bundle.preprocessing),
        }

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""
        return self._engine.score(features)


@dataclass(frozen=True)
class ScoredVideo:
    """A test video with its truth and its scores.

    Attributes:
        features: its feature file.
        classes: annotation names of the classes in its video-level label; the normal one for a normal video.
        truth: its anomalous frames.
        events: its annotated events, each with its class; None where the annotations tell no classes.
        confidence: float32 [n], anomaly score of the C-branch.
        alignment: float32 [n,m], class probabilities of the A-branch.
    """

    features: Path
    classes: tuple[str, ...]
    truth: VideoTruth
    events: tuple[Event, ...] | None
    confidence: NDArray[np.float32]
    alignment: NDArray[np.float32]

    def anomaly(self, branch: str) -> NDArray[np.floating]:
        """Anomaly scores [n]: of the C-branch ("confidence") or 1 - p(normal) of the A-branch ("alignment")."""
        if branch == "confidence":
            return self.confidence
        # In float64, where the difference is exact and makes no ties.
        score: NDArray[np.floating] = 1.0 - self.alignment[:, NORMAL].astype(np.float64)
        return score


@dataclass(frozen=True)
class ClassRow:
    """One class in the per-class table.

    Attributes:
        name: the class as annotations name it.
        videos: test videos that have it in their label.
        events: its annotated events; None for the normal class, and where the annotations have no classes.
        auc: frame AUC of the reported branch over its videos and the normal ones; None where that has no meaning.
        detection: mode -> average precision at each IoU in percent, None for a class that the mode leaves out.
    """

    name: str
    videos: int
    events: int | None
    auc: float | None
    detection: Mapping[str, tuple[float, ...] | None]


@dataclass(frozen=True)
class Evaluation:
    """All figures of one model on one test list.

    Attributes:
        class_names: as annotations name them, the normal one first.
        branch: the branch that the model's figures are reported from.
        frames: branch -> frame metrics.
        detection: mode -> detection mAP; empty where the annotations have no classes.
        videos: what the figures are of, in order of the list.
    """

    class_names: tuple[str, ...]
    branch: str
    frames: Mapping[str, FrameMetrics]
    detection: Mapping[str, DetectionMap]
    videos: Sequence[ScoredVideo]

    @cached_property
    def classes(self) -> list[ClassRow]:
        """A row for each class, the normal one first."""
        return [self._row(name) for name in self.class_names]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        truths = [video.truth for video in self.videos]
        return {
            "videos": len(truths),
            "normal_videos": sum(truth.normal for truth in truths),
            "frames": sum(truth.frames for truth in truths),
            "anomalous_frames": sum(int(truth.mask.sum()) for truth in truths),
            "branch": self.branch,
            "frame_metrics": {branch: found.to_json() for branch, found in self.frames.items()},
            "detection_map": {mode: found.to_json() for mode, found in self.detection.items()},
            "classes": [
                {
                    "name": row.name,
                    "videos": row.videos,
                    "events": row.events,
                    "auc": row.auc,
                    "detection": dict(row.detection),
                }
                for row in self.classes
            ],
        }

    def table(self) -> str:
        """The figures as tables for people, in percent."""
        rows = [
            [
                f"{branch} (reported)" if branch == self.branch else branch,
                *(_percent(value, 100) for value in (found.auc, found.ap, found.ano_auc)),
            ]
            for branch, found in self.frames.items()
        ]
        parts = ["Frames, in percent", table(["branch", "AUC", "AP", "AnoAUC"], rows, right=(1, 2, 3)), ""]
        if self.detection:
            header = ["mode", *(f"IoU {threshold:g}" for threshold in IOU), "AVG"]
            rows = [[mode, *map(_percent, found.map), _percent(found.avg)] for mode, found in self.detection.items()]
            parts += ["Detection mAP, in percent", table(header, rows, right=range(1, len(header))), ""]
        else:
            parts += ["No detection mAP: the annotations do not tell the class of each event.", ""]
        parts += ["Classes: frame AUC against the normal videos and detection AP, in percent", self._class_table()]
        return "\n".join(parts)

    def _class_table(self) -> str:
        header = ["class", "videos", "events", "AUC"]
        for mode in self.detection:
            header += [f"{mode} {IOU[0]:g}", *(f"{IOU[k]:g}" for k in _SHOWN[1:]), "AVG"]
        rows = []
        for row in self.classes:
            cells = [row.name, str(row.videos), "-" if row.events is None else str(row.events), _percent(row.auc, 100)]
            for values in row.detection.values():
                shown = [None] * len(_SHOWN) if values is None else [values[k] for k in _SHOWN]
                mean = None if values is None else sum(values) / len(values)
                cells += [_percent(value) for value in (*shown, mean)]
            rows.append(cells)
        return table(header, rows, right=range(1, len(header)))

    def _row(self, name: str) -> ClassRow:
        videos = [video for video in self.videos if name in video.classes]
        detection = {mode: found.per_class.get(name) for mode, found in self.detection.items()}
        if name == self.class_names[NORMAL]:
            return ClassRow(name, len(videos), None, None, detection)
        events = None
        if self.detection:
            events = sum(event.label == name for video in self.videos for event in video.events or ())
        normal = [video for video in self.videos if video.truth.normal]
        return ClassRow(name, len(videos), events, self._auc([*videos, *normal]), detection)

    def _auc(self, videos: Sequence[ScoredVideo]) -> float | None:
        try:
            return _frame_metrics(videos, self.branch).auc
        except UserError:  # no frames, or frames of one kind only
            return None


def classes_of(labels: Sequence[str], own: Preset | None = None) -> Preset:
    """The classes of a model with these labels: annotation names and the rest.

    They are ``own``'s, or those of the data set whose released labels these are, or else the labels themselves.

    Raises:
        UserError: ``own`` has other labels.
    """
    if own is not None:
        if own.labels != tuple(labels):
            raise UserError(
                f"the classes {own.name!r} have the labels {', '.join(own.labels)}, but the model has "
                f"{', '.join(labels)}: name the classes that it was trained with"
            )
        return own
    for preset in PRESETS.values():
        if tuple(labels) == preset.labels:
            return preset
    return Preset("own", 1, 1, 1, {label: label for label in labels}, "confidence", mirrored=False)


@dataclass(frozen=True)
class TestSet:
    """A test list that has been checked against its annotations.

    Attributes:
        listed: one feature file of each video.
        class_names: as annotations name them, the normal one first.
        truths: the anomalous frames of each video.
        detection: the same from the file that tells events with their classes; None where none does.
        settings: how the features were made (:mod:`vadclip.sidecar`); None where nothing says.
    """

    __test__ = False  # no test of pytest's

    listed: FeatureList
    class_names: tuple[str, ...]
    truths: Sequence[VideoTruth]
    detection: Sequence[VideoTruth] | None
    settings: FeatureSettings | None


def read_test_set(
    listed: FeatureList,
    preset: Preset,
    width: int,
    annotations: Annotations,
    event_annotations: Annotations | None = None,
    counts: Mapping[str, int] | None = None,
) -> TestSet:
    """Check everything that can be wrong with a test list but the feature files' numbers.

    Args:
        listed: the test list, read with ``preset``; one feature file of each video.
        preset: of :func:`classes_of`.
        width: d, what the model takes.
        annotations: which frames are anomalous.
        event_annotations: the events with their classes for the detection mAP, where ``annotations`` do not
            tell them: XD-Violence has a file for each.
        counts: snippets that each video should have, to check the feature files against.

    Raises:
        UserError: see the module; the sentence names the file or the video.
    """
    settings = common_settings(listed.paths)
    snippets = _count_all(listed, width)
    if counts is not None:
        _check_counts(snippets, counts)
    truths = ground_truth(annotations, snippets)
    _check_labels(listed, truths)
    anomalous = sum(int(truth.mask.sum()) for truth in truths)
    if anomalous in (0, sum(truth.frames for truth in truths)):
        kind = "normal" if anomalous else "anomalous"
        raise UserError(f"{listed.source} has no {kind} frame to tell from the others: list videos of both kinds")
    events = truths if event_annotations is None else ground_truth(event_annotations, snippets)
    return TestSet(listed, tuple(preset.classes), truths, _with_classes(events, preset), settings)


def evaluate(scorer: Scorer, test: TestSet, progress: Progress | None = None) -> Evaluation:
    """Score a test list and compute all figures.

    Args:
        scorer: what is evaluated.
        test: of :func:`read_test_set`.
        progress: called after each video.

    Raises:
        UserError: the features were made otherwise than the model's, or a feature file's numbers cannot be used.
    """
    check_test_features(test.settings, scorer.feature_settings, "the model")
    names, listed = test.class_names, test.listed
    classes = [tuple(names[c] for c in np.flatnonzero(row)) for row in listed.targets]
    scored = []
    for index, (path, truth) in enumerate(zip(listed.paths, test.truths, strict=True)):
        scores = scorer.score(read_features(path, scorer.width).astype(np.float32, copy=False))
        of_video = None if test.detection is None else test.detection[index].events
        scored.append(ScoredVideo(path, classes[index], truth, of_video, scores.confidence, scores.alignment))
        if progress is not None:
            progress(index + 1, len(listed))
    frames = {branch: _frame_metrics(scored, branch) for branch in ANOMALY_BRANCHES}
    detection = {}
    if test.detection is not None:
        # A normal video keeps the label of the authors' arrays, which the two modes treat as each has to.
        segments = [truth.segments for truth in test.detection]
        labels = [truth.labels for truth in test.detection]
        predictions = [video.alignment for video in scored]
        detection = {mode: detection_map(predictions, segments, labels, names, mode) for mode in MODES}
    return Evaluation(names, scorer.anomaly, frames, detection, scored)


def open_scorer(
    path: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> Scorer:
    """A bundle (a folder) or a checkpoint (a file), ready to score.

    Args:
        path: the bundle or the checkpoint.
        backend: of the runtime, for a bundle.
        threads: inference threads, for a bundle.
        device: of torch, for a checkpoint.
        settings: what :func:`vadclip.checkpoint.load_checkpoint` takes besides, for a checkpoint.

    Raises:
        UserError: it cannot be opened, or settings of a checkpoint are given for a bundle, which has its own.
    """
    path = Path(path)
    given = {name: value for name, value in settings.items() if value}
    if path.is_dir():
        if given:
            raise UserError(f"{path} is a bundle, which holds its {', '.join(given)} itself: leave these options out")
        from vadrun.engine import Engine

        return EngineScorer(Engine.load(path, backend, threads=threads))
    try:
        from vadclip.checkpoint import checkpoint_sha256, load_checkpoint
    except ModuleNotFoundError as error:
        raise UserError(
            f"evaluating a checkpoint needs {error.name}, which is not installed: pip install 'vadclip-edge[train]'"
        ) from error
    if backend != "auto":
        raise UserError(f"{path} is no bundle, and only bundles run in the backend {backend!r}: leave it out")
    return ModelScorer(load_checkpoint(path, **given), device, checkpoint_sha256(path))


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    origin: Mapping[str, Any],
    *,
    force: bool = False,
    pictures: Callable[[Path], None] | None = None,
) -> None:
    """Write ``evaluation.json`` (figures and where they come from) and ``evaluation.txt`` (the tables).

    Args:
        evaluation: what is written.
        folder: where, whole or not at all.
        origin: what the figures are of, as plain data.
        force: replace a folder that is there.
        pictures: called with the folder to add to it, see :mod:`vadclip.report`.

    Raises:
        UserError: the folder exists and ``force`` is false, or it cannot be written to.
    """
    with whole_directory(folder, replace=force) as temporary:
        write_json(temporary / "evaluation.json", {"origin": dict(origin), **evaluation.to_json()})
        (temporary / "evaluation.txt").write_text(evaluation.table() + "\n", encoding="utf-8")
        if pictures is not None:
            pictures(temporary)


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip evaluate``."""
    p.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint file, or the folder of a bundle")
    p.add_argument("--list", required=True, type=Path, metavar="CSV", help="test list: path,label of feature files")
    p.add_argument(
        "--annotations", required=True, type=Path, metavar="FILE", help="anomalous frames, as the data set has them"
    )
    p.add_argument(
        "--events",
        type=Path,
        metavar="FILE",
        help="events with their classes, if not in --annotations (XD-Violence: the multi-class file)",
    )
    p.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the list lie now")
    p.add_argument("--classes", type=Path, metavar="FILE", help="your own classes, as in training (YAML or JSON)")
    p.add_argument(
        "--crop", type=int, metavar="N", help="of several crops in the list (default 5 for UCF-Crime, 0 for others)"
    )
    p.add_argument("--counts", type=Path, metavar="CSV", help="snippets of each video, to check the features against")
    p.add_argument(
        "--counts-column", default=COUNTS_COLUMN, metavar="NAME", help=f"its column (default {COUNTS_COLUMN})"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="write evaluation.json and evaluation.txt here")
    p.add_argument("--pictures", action="store_true", help="draw pictures there too: open its index.html")
    p.add_argument("--force", action="store_true", help="replace a folder that is already there")
    p.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    b = p.add_argument_group("how to run")
    b.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle: onnxruntime, openvino, ...")
    b.add_argument("--threads", type=int, metavar="N", help="inference threads of a bundle")
    b.add_argument("--device", default="auto", metavar="NAME", help="of a checkpoint: cpu, cuda, ... (default auto)")
    m = p.add_argument_group("what a checkpoint's weights do not tell")
    m.add_argument("--dataset", metavar="NAME", help="ucf or xd: labels, window and scoring branch of that release")
    m.add_argument("--window", type=int, metavar="N", help="attention window of the local module, in snippets")
    m.add_argument("--heads", type=int, metavar="N", help="attention heads of the local module")
    m.add_argument("--anomaly", metavar="BRANCH", help="confidence or alignment: the branch that is reported")
    m.add_argument("--mask-padding", action="store_true", help="the model was trained with padding masked")
    m.add_argument("--clip", metavar="TAG", help="CLIP for a checkpoint without it: an open_clip tag such as openai")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    if arguments.out is not None and arguments.out.exists() and not arguments.force:
        raise UserError(f"{arguments.out} exists already: name another folder or give --force")
    if arguments.pictures:
        if arguments.out is None:
            raise UserError("there is no place for pictures: give a folder to --out")
        if find_spec("matplotlib") is None:
            raise UserError("pictures need matplotlib, which is not installed: pip install 'vadclip-edge[train]'")
    own = None if arguments.classes is None else load_classes(arguments.classes)
    annotations = read_annotations(arguments.annotations)
    events = None if arguments.events is None else read_annotations(arguments.events)
    counts = None if arguments.counts is None else read_counts(arguments.counts, arguments.counts_column)
    scorer = open_scorer(
        arguments.model,
        backend=arguments.backend,
        threads=arguments.threads,
        device=arguments.device,
        dataset=arguments.dataset or own,
        window=arguments.window,
        heads=arguments.heads,
        anomaly=arguments.anomaly,
        mask_padding=arguments.mask_padding,
        clip=arguments.clip,
    )
    preset = classes_of(scorer.labels, own)
    listed, _ = without_missing(load_list(arguments.list, preset, arguments.root))
    crop = arguments.crop if arguments.crop is not None else preset.centre_crop
    progress = None if arguments.quiet or not sys.stderr.isatty() else _print_progress
    test = read_test_set(one_crop(listed, crop), preset, scorer.width, annotations, events, counts)
    evaluation = evaluate(scorer, test, progress)
    origin = {
        "toolkit": version(),
        "model": str(arguments.model),
        "sha256": scorer.sha256,
        "runs_on": scorer.description,
        "list": str(arguments.list),
        "annotations": str(arguments.annotations),
        "events": None if arguments.events is None else str(arguments.events),
    }
    if arguments.out is not None:
        draw = None
        if arguments.pictures:
            from vadclip.report import write_pictures

            adapt = scorer.adapt if isinstance(scorer, ModelScorer) else None
            draw = partial(write_pictures, evaluation, adapt=adapt)
        write_evaluation(evaluation, arguments.out, origin, force=arguments.force, pictures=draw)
    if arguments.json:
        print(json.dumps({"origin": origin, **evaluation.to_json()}, indent=2, ensure_ascii=False))
        return 0
    print(evaluation.table())
    if arguments.out is not None:
        print(f"\nresults in {arguments.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """``python -m vadclip.evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="vadclip evaluate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_command("vadclip evaluate", lambda: run(arguments))


def _frame_metrics(videos: Sequence[ScoredVideo], branch: str) -> FrameMetrics:
    return frame_metrics(
        [video.anomaly(branch) for video in videos],
        [video.truth.mask for video in videos],
        [video.truth.normal for video in videos],
    )


def _count_all(listed: FeatureList, width: int) -> dict[str, int]:
    """Video name -> snippets of its feature file."""
    snippets: dict[str, int] = {}
    for path in listed.paths:
        name = video_name(str(path))
        if name in snippets:
            raise UserError(f"{listed.source} lists the video {name!r} twice: name one feature file of each video")
        snippets[name] = count_snippets(path, width)
    return snippets


def _check_counts(snippets: Mapping[str, int], counts: Mapping[str, int]) -> None:
    wrong = [name for name, count in snippets.items() if abs(counts.get(name, count) - count) > _COUNT_SLACK]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{len(wrong)} of {len(snippets)} feature files do not have the length of their video, the first is "
            f"{name!r} with {snippets[name]} snippets instead of {counts[name]}: extract them again"
        )


def _check_labels(listed: FeatureList, truths: Sequence[VideoTruth]) -> None:
    """The list and the annotations must call the same videos normal: names that do not meet would go unseen."""
    wrong = [i for i, truth in enumerate(truths) if bool(listed.normal[i]) != truth.normal]
    if wrong:
        truth = truths[wrong[0]]
        raise UserError(
            f"{listed.source} and the annotations disagree on {len(wrong)} of {len(listed)} videos, the first is "
            f"{truth.name!r}: its label is {listed.labels[wrong[0]]!r}, but {len(truth.events) or 'no'} events are "
            "annotated; name the annotations of this list, or correct one of them"
        )


def _with_classes(truths: Sequence[VideoTruth], preset: Preset) -> list[VideoTruth] | None:
    """The truths with their events' classes as the preset names them; None where an event has no class."""
    known = {label: name for name, label in preset.classes.items()}
    known.update((name, name) for name in preset.classes)
    found = []
    for truth in truths:
        events = []
        for event in truth.events:
            if event.label is None:
                return None
            if event.label not in known:
                raise UserError(
                    f"the annotations name the class {event.label!r} in {truth.name!r}, which the model does not "
                    f"know: its classes are {', '.join(preset.classes)}"
                )
            events.append(replace(event, label=known[event.label]))
        found.append(replace(truth, events=tuple(events)))
    return found


def _percent(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.2f}"


def _print_progress(done: int, total: int) -> None:
    sys.stderr.write("\r\x1b[K" if done == total else f"\r\x1b[Kscored {done} of {total} videos")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
