"""The certificate on footage of the user's own: what each backend and precision changes in it, against float32.

The reference is PyTorch with the checkpoint, or else a float32 graph of the same checkpoint on onnxruntime, which the
build has held against PyTorch to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vadclip.groundtruth import Event as LabelledEvent
from vadclip.groundtruth import read_annotations, video_name
from vadclip.intervals import LEAST_VIDEOS
from vadexport.checks import Limits, arithmetic
from vadexport.comparison import (
    Difference,
    EventChanges,
    event_changes,
    ranking_differences,
)
from vadrun.bundle import Bundle
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventRule, find_events
from vadrun.inputs import named_videos
from vadrun.scoring import Scores, score_differences, scores_from_logits
from vadrun.selftest import cosines
from vadrun.video import Snippet, Video

_CHUNK = 64  # snippets whose images are in memory at once
_PARTS = 16  # of a snippet, each of which is anomalous or not: its frames, where it has 16

Floats = NDArray[np.float32]


class Reference(Protocol):
    """What is taken for right."""

    description: str

    def encode(self, frames: NDArray[np.uint8]) -> Floats:
        """Features [n,d] of frames uint8 RGB [n,S,S,3]."""

    def logits(self, features: Floats, text: Floats) -> tuple[Floats, Floats]:
        """Logits [n] and alignment logits [n,m] of features [n,d] and class embeddings [m,d]."""


class _Torch:
    def __init__(self, bundle: Bundle, checkpoint: Path) -> None:
        try:
            import torch

            from vadclip.images import normalise
            from vadexport.original import original
        except ModuleNotFoundError as error:
            raise UserError(
                f"--checkpoint needs {error.name}, which is not installed: pip install 'vadclip-edge[export]', or give "
                "--reference with a float32 bundle of the same checkpoint"
            ) from error
        self._model = original(bundle, checkpoint)
        self._torch, self._normalise = torch, normalise
        self.description = f"PyTorch {torch.__version__} float32"

    def encode(self, frames: NDArray[np.uint8]) -> Floats:
        with self._torch.inference_mode():
            parts = [self._model.encode_image(self._normalise(frames[i : i + 8])) for i in range(0, len(frames), 8)]
            return np.asarray(self._torch.cat(parts).numpy(), np.float32)

    def logits(self, features: Floats, text: Floats) -> tuple[Floats, Floats]:
        with self._torch.inference_mode():
            logits, alignment = self._model.score(self._torch.from_numpy(features), self._torch.from_numpy(text))
        return logits.numpy(), alignment.numpy()


class _Graph:
    def __init__(self, bundle: Bundle, root: Path) -> None:
        other = Bundle.open(root)
        if other.manifest["checkpoint"]["sha256"] != bundle.manifest["checkpoint"]["sha256"]:
            raise UserError(f"{root} is of another checkpoint than {bundle.root}: name a bundle of the same one")
        if "fp32" not in other.encoder_precisions:
            raise UserError(
                f"{root} holds no float32 encoder to compare with: give --checkpoint with what it was built from, or "
                "--reference with a float32 bundle of the same checkpoint"
            )
        self._engine = Engine.load(root, "onnxruntime:cpu", precision="fp32")
        self.description = f"float32 graph of {root} on {self._engine.backend.library}"

    def encode(self, frames: NDArray[np.uint8]) -> Floats:
        return self._engine.encode(frames)

    def logits(self, features: Floats, text: Floats) -> tuple[Floats, Floats]:
        return self._engine.logits(features, text)


def open_reference(bundle: Bundle, checkpoint: Path | None, reference: Path | None) -> Reference:
    """What to compare with: the checkpoint, another bundle, or the bundle's own float32 graph.

    Raises:
        UserError: it is of another checkpoint, or there is none.
    """
    if checkpoint is not None:
        return _Torch(bundle, checkpoint)
    return _Graph(bundle, reference or bundle.root)


@dataclass(frozen=True)
class FootageCheck:
    """One backend and precision on all footage.

    Attributes:
        backend, precision: as in the other checks.
        reference: what it is compared with.
        videos, hours: of footage; pauses of the recording do not count.
        cosine_min, cosine_median: of the features.
        score_max, score_mean: differences of the probabilities.
        events: gained, lost, shifted.
        auc, ap: in percent, with the difference and its interval; None without labels.
        limits: what is allowed.
        passed: whether that holds.
    """

    backend: str
    precision: str
    reference: str
    videos: int
    hours: float
    cosine_min: float
    cosine_median: float
    score_max: float
    score_mean: float
    events: EventChanges
    auc: Difference | None
    ap: Difference | None
    limits: Limits
    passed: bool


@dataclass
class _Answers:
    """The reference's answers for one video."""

    path: Path
    spans: NDArray[np.float64]
    features: Floats
    scores: Scores
    anomalous: NDArray[np.float64]


@dataclass
class FootageCertificate:
    """Compares engines on the same videos; the reference answers once.

    Args:
        bundle: what is checked.
        videos: files and folders.
        reference: of :func:`open_reference`.
        annotations: events of the videos, in any of the formats of :mod:`vadclip.groundtruth`; None without. Stretches
            of the bundle's normal class, by its annotation name or its label, are no anomalies; classes that the bundle
            does not have are.
        rule: what an event is.
        say: told what is being done.

    Raises:
        UserError: no videos, one that cannot be read, or annotations of other videos.
    """

    bundle: Bundle
    videos: Sequence[Path]
    reference: Reference
    annotations: Path | None = None
    rule: EventRule = field(default_factory=EventRule)
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self._paths = named_videos(self.videos)
        labelled = None if self.annotations is None else read_annotations(self.annotations)
        if labelled is not None:
            named = {video_name(path.name) for path in self._paths}
            labelled = {name: self._anomalies(events) for name, events in labelled.items() if name in named}
            if not labelled:
                raise UserError(f"{self.annotations} has no event in any of the videos: name the file of these videos")
        self.say(f"running {len(self._paths)} videos through {self.reference.description}")
        text = self.bundle.text()
        self._answers = [self._answer(path, text, labelled) for path in self._paths]

    def __call__(self, engine: Engine, limits: Limits) -> FootageCheck:
        """Compare an engine with the reference."""
        cosine, differences, measured = [], [], []
        changes = EventChanges()
        finite = True
        for answers in self._answers:
            features, _ = _features(answers.path, self.bundle, engine.encode)
            cosine.append(cosines(features, answers.features))
            if not np.isfinite(features).all():
                finite = False
                continue
            scores = engine.score(features)
            if not scores.finite:
                finite = False
                continue
            differences.append(score_differences(scores, answers.scores))
            changes += event_changes(self._events(scores, answers), self._events(answers.scores, answers))
            measured.append(scores.anomaly)
        auc = ap = None
        if finite and self.annotations is not None:
            found = ranking_differences(
                measured, [a.scores.anomaly for a in self._answers], [a.anomalous for a in self._answers]
            )
            if found is not None:
                auc, ap = found
        cosine_all = np.concatenate(cosine)
        all_differences = np.concatenate(differences) if finite else np.ones(1)
        low, largest = float(cosine_all.min()), float(all_differences.max())
        passed = (
            finite
            and low >= limits.cosine
            and largest <= limits.score
            and changes.sure_lost <= limits.lost
            and (limits.shifted is None or changes.shifted <= limits.shifted)
            and (limits.auc is None or auc is None or -auc.difference <= limits.auc)
        )
        return FootageCheck(
            backend=f"{engine.backend.name}:{engine.backend.device}",
            precision=arithmetic(engine)[1],
            reference=self.reference.description,
            videos=len(self._answers),
            hours=sum(float(np.diff(answers.spans).sum()) for answers in self._answers) / 3600,
            cosine_min=low,
            cosine_median=float(np.median(cosine_all)),
            score_max=largest,
            score_mean=float(all_differences.mean()),
            events=changes,
            auc=auc,
            ap=ap,
            limits=limits,
            passed=bool(passed),
        )

    def _anomalies(self, events: Sequence[LabelledEvent]) -> tuple[LabelledEvent, ...]:
        """The events of abnormal classes, whether the bundle has the class or not."""
        model = self.bundle.model
        normal = {name.casefold() for name in (model.labels[0], *model.annotation_names[:1])}
        return tuple(event for event in events if event.label is None or event.label.casefold() not in normal)

    def _events(self, scores: Scores, answers: _Answers) -> list[Event]:
        labels = list(self.bundle.model.labels)
        return find_events(scores.anomaly, scores.alignment, answers.spans, self.rule, labels)

    def _answer(self, path: Path, text: Floats, labelled: Mapping[str, tuple[LabelledEvent, ...]] | None) -> _Answers:
        features, snippets = _features(path, self.bundle, self.reference.encode)
        spans = np.array([(s.start, s.end) for s in snippets])
        scores = scores_from_logits(*self.reference.logits(features, text), self.bundle.model.anomaly)
        events = () if labelled is None else labelled.get(video_name(path.name), ())
        frames = np.array([(s.first_frame, s.frames) for s in snippets])
        return _Answers(path, spans, features, scores, _anomalous(frames, events))


def footage_table(checks: Sequence[FootageCheck]) -> str:
    """The checks on footage for people."""
    header = ["backend", "precision", "cosine min, median", "score max, mean", "events"]
    header += ["lost (sure)", "gained", "shift"]
    labelled = any(check.auc is not None for check in checks)
    header += ["AUC", "AP"] if labelled else []
    rows = []
    for c in checks:
        row = [
            c.backend,
            c.precision,
            f"{c.cosine_min:.5f}, {c.cosine_median:.5f}",
            f"{c.score_max:.1e}, {c.score_mean:.1e}",
            str(c.events.reference),
            f"{c.events.lost} ({c.events.sure_lost})",
            str(c.events.gained),
            f"{c.events.shifted:.1f} s",
        ]
        row += [_points(c.auc), _points(c.ap)] if labelled else []
        rows.append([*row, "pass" if c.passed else "FAIL"])
    first = checks[0]
    lines = [
        f"{first.videos} videos, {first.hours * 60:.1f} minutes, against {first.reference}",
        table([*header, ""], rows),
        *dict.fromkeys(f"allowed in {c.precision}: {c.limits}" for c in checks),
    ]
    if any(check.auc is not None and check.auc.low is None for check in checks):
        lines.append(f"AUC and AP have intervals from {LEAST_VIDEOS} videos on: resamples of fewer are too much alike")
    return "\n".join(lines)


def _points(value: Difference | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None else f" ({value.low:+.2f} to {value.high:+.2f})"
    return f"{value.measured:.2f}, {value.difference:+.2f}{interval}"


def _features(
    path: Path, bundle: Bundle, encode: Callable[[NDArray[np.uint8]], Floats]
) -> tuple[Floats, list[Snippet]]:
    """Features [n,d] of a video's snippets, and the snippets without their images."""
    features, kept = [], []
    with Video(path) as video:
        for chunk in _chunks(video.snippets(bundle.sampling, bundle.preprocessing)):
            images = np.concatenate([snippet.images for snippet in chunk])
            encoded = encode(images).reshape(len(chunk), len(images) // len(chunk), -1)
            features.append(encoded.mean(axis=1))
            kept += [snippet.without_images() for snippet in chunk]
        if video.damage is not None:
            raise UserError(f"{video.damage}; leave it out")
    return np.concatenate(features), kept


def _chunks(snippets: Iterator[Snippet]) -> Iterator[list[Snippet]]:
    chunk: list[Snippet] = []
    for snippet in snippets:
        chunk.append(snippet)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _anomalous(covered: NDArray[np.int64], events: Sequence[LabelledEvent]) -> NDArray[np.float64]:
    """Share of each snippet's frames that are in an event, [n]; ``covered`` [n,2] are first frames and counts."""
    share = (np.arange(_PARTS) + 0.5) / _PARTS
    frames = covered[:, :1] + share * covered[:, 1:]
    inside = np.zeros(frames.shape, bool)
    for event in events:
        inside |= (frames >= event.start) & (frames < event.end)
    return np.asarray(inside.mean(axis=1))
