"""Pictures of an evaluation: PNG files and an ``index.html`` that shows them, all in one folder.

Score curves over the truth (the paper's Figure 4), ROC and precision-recall curves, what the A-branch takes for
what, and a map of features before and after the LGT-Adapter (Figure 3).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vadclip.evaluation import Evaluation, ScoredVideo
from vadclip.metrics import FRAMES_PER_SNIPPET
from vadclip.presets import NORMAL
from vadrun.files import printable

Adapt = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Features [n,d] of a video -> [k,d] after the adapter, of its first k <= n snippets."""

INDEX = "index.html"
_CURVES = 60  # videos with a picture of their own, so that a large test set stays quick
_POINTS = 1000  # snippets on the map of features
_LEAST_POINTS = 10  # fewer make no map
_PERPLEXITY = 30.0  # of t-SNE
_DPI = 100
_STYLE = (
    "body{font-family:sans-serif;margin:2em auto;max-width:72em;padding:0 1em}"
    "pre{background:#f4f4f4;padding:1em;overflow-x:auto}img{max-width:100%}"
)


def write_pictures(evaluation: Evaluation, folder: Path, adapt: Adapt | None = None) -> None:
    """Draw all pictures into an existing folder, and write its ``index.html``.

    Args:
        evaluation: what is drawn.
        folder: where the files go.
        adapt: the model's adapter; without it (a bundle holds it inside the head's graph) there is no map of
            features.

    Raises:
        UserError: a feature file that is needed for the map cannot be read any more.
    """
    figures: list[tuple[str, str, Figure]] = [("curves.png", "ROC and precision-recall curves", _curves(evaluation))]
    if any(video.events and video.alignment is not None for video in evaluation.videos):
        title = "Classes of the A-branch: rows are the truth, columns what a snippet was taken for"
        figures.append(("confusion.png", title, _confusion(evaluation)))
    if adapt is not None and sum(video.snippets for video in evaluation.videos) >= _LEAST_POINTS:
        figures.append(("features.png", "Features before and after the LGT-Adapter (t-SNE)", _map(evaluation, adapt)))
    for name, _, figure in figures:
        figure.savefig(folder / name, dpi=_DPI)
    sections = [(title, [(name, title)]) for name, title, _ in figures]

    (folder / "videos").mkdir()
    chosen = _chosen(evaluation.videos)
    shown = []
    for index, video in enumerate(chosen):
        name = f"videos/{index:03d}-{re.sub('[^A-Za-z0-9_.-]', '_', video.truth.name)}.png"
        _scores(video, evaluation.branch).savefig(folder / name, dpi=_DPI)
        shown.append((name, video.truth.name))
    count = f"{len(chosen)} of {len(evaluation.videos)} videos"
    sections.append((f"Anomaly scores; annotated events are shaded ({count})", shown))
    (folder / INDEX).write_text(printable(_page(evaluation.table(), sections)), encoding="utf-8")


def _page(figures: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>VadCLIP evaluation</title><style>{_STYLE}</style></head>',
        f"<body><h1>VadCLIP evaluation</h1><pre>{html.escape(figures)}</pre>",
    ]
    for title, pictures in sections:
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts += [f'<p><img src="{html.escape(name)}" alt="{html.escape(what)}"></p>' for name, what in pictures]
    return "\n".join([*parts, "</body></html>", ""])


def _chosen(videos: Sequence[ScoredVideo]) -> list[ScoredVideo]:
    """Abnormal videos first, then normal ones, evenly from the whole list where there are too many."""
    ordered = [video for video in videos if not video.truth.normal]
    ordered += [video for video in videos if video.truth.normal]
    if len(ordered) <= _CURVES:
        return ordered
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, _CURVES).round().astype(int)]


def _scores(video: ScoredVideo, branch: str) -> Figure:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    frames = np.arange(video.snippets + 1) * FRAMES_PER_SNIPPET
    for name, score in video.scores.items():
        width = 1.8 if name == branch else 0.8
        axes.stairs(score, frames, label=name, linewidth=width, baseline=None)
    for event in video.truth.events:
        axes.axvspan(event.start, min(event.end, video.truth.frames), color="tab:red", alpha=0.18, linewidth=0)
    if all(score.min() >= 0 and score.max() <= 1 for score in video.scores.values()):
        axes.set(ylim=(-0.02, 1.02))
    axes.set(xlim=(0, video.truth.frames), xlabel="frame", ylabel="anomaly score")
    # A "$" in a name would begin a formula.
    axes.set_title(f"{video.truth.name} ({', '.join(video.classes)})".replace("$", r"\$"), fontsize=9)
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _curves(evaluation: Evaluation) -> Figure:
    from sklearn.metrics import precision_recall_curve, roc_curve

    truth = np.concatenate([video.truth.mask for video in evaluation.videos])
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    for branch, found in evaluation.frames.items():
        score = np.concatenate([np.repeat(video.scores[branch], FRAMES_PER_SNIPPET) for video in evaluation.videos])
        false, true, _ = roc_curve(truth, score)
        roc.plot(false, true, label=f"{branch}: AUC {100 * found.auc:.2f} %")
        precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
        pr.step(recall, precision, where="post", label=f"{branch}: AP {100 * found.ap:.2f} %")
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    pr.axhline(float(truth.mean()), color="grey", linewidth=0.8, linestyle="--")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    pr.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    roc.legend(loc="lower right")
    pr.legend(loc="upper right")
    return figure


def snippet_classes(video: ScoredVideo, names: Sequence[str]) -> NDArray[np.int64]:
    """The true class [n] of each snippet, by its middle frame; of two events at once the later in the list."""
    found = np.full(video.snippets, NORMAL, np.int64)
    middle = np.arange(len(found)) * FRAMES_PER_SNIPPET + FRAMES_PER_SNIPPET // 2
    for event in video.events or ():
        if event.label is not None:
            found[(middle >= event.start) & (middle < event.end)] = names.index(event.label)
    return found


def confusion(evaluation: Evaluation) -> NDArray[np.int64]:
    """How many snippets of each true class (rows) the A-branch takes for each class (columns), [m,m]."""
    count = len(evaluation.class_names)
    out = np.zeros((count, count), np.int64)
    for video in evaluation.videos:
        if video.alignment is None:
            continue
        np.add.at(out, (snippet_classes(video, evaluation.class_names), video.alignment.argmax(axis=1)), 1)
    return out


def _confusion(evaluation: Evaluation) -> Figure:
    counts = confusion(evaluation)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.5 * len(counts)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(share >= 0.005):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ticks = range(len(counts))
    axes.set_xticks(ticks, evaluation.class_names, rotation=90)
    axes.set_yticks(
        ticks, [f"{name} ({n})" for name, n in zip(evaluation.class_names, counts.sum(axis=1), strict=True)]
    )
    axes.set(xlabel="taken for", ylabel="truth (snippets)")
    figure.colorbar(image, label="share of the row")
    return figure


def _map(evaluation: Evaluation, adapt: Adapt) -> Figure:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(0)
    share = max(_POINTS // len(evaluation.videos), 1)
    before, after, classes = [], [], []
    for index in random.permutation(len(evaluation.videos))[:_POINTS]:
        video = evaluation.videos[index]
        assert video.features is not None  # an adapter has features to adapt
        features = video.features().astype(np.float32, copy=False)
        adapted = adapt(features)
        rows = np.sort(random.permutation(len(adapted))[:share])
        before.append(features[rows])
        after.append(adapted[rows])
        if video.events is None:
            mask = video.truth.mask[rows * FRAMES_PER_SNIPPET + FRAMES_PER_SNIPPET // 2]
            abnormal = evaluation.class_names.index(video.classes[-1])
            classes.append(np.where(mask, abnormal, NORMAL))
        else:
            classes.append(snippet_classes(video, evaluation.class_names)[rows])
    label = np.concatenate(classes)
    figure = Figure(figsize=(11, 5), layout="constrained")
    colours = colormaps["tab20"]
    for axes, title, parts in zip(figure.subplots(1, 2), ("before", "after"), (before, after), strict=True):
        points = np.concatenate(parts)
        settings: dict[str, Any] = {"perplexity": min(_PERPLEXITY, (len(points) - 1) / 3), "random_state": 0}
        # Its threads wait for each other at every step, which takes many times as long on a busy machine.
        with threadpool_limits(1):
            places = TSNE(init="pca", **settings).fit_transform(points)
        for c in np.unique(label):
            of_class = label == c
            axes.scatter(*places[of_class].T, s=6, color=colours(c % 20), label=evaluation.class_names[c])
        axes.set(title=f"{title} the adapter", xticks=[], yticks=[])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, markerscale=2)
    return figure
