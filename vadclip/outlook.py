"""What can be said of a training before and after it: whether it can learn and choose, and whether it learnt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vadclip.config import ModelConfig
from vadclip.data import epoch_rows
from vadclip.lists import FeatureList
from vadclip.presets import NORMAL
from vadclip.recipes import Recipe
from vadclip.runs import RunState

LEAST_TRAVEL = 2e-3
"""Sum of the learning rate over all steps: AdamW moves a weight by at most about that. Both released recipes have 0.011
to 0.012 on their data sets; the demo's training has 0.015."""
LEAST_OF_EACH = 10
"""Normal and abnormal validation videos: an AUC near 0.8 of 10 and 10 has a standard error of 0.1."""
LEAST_GAIN = 0.05
"""Share by which a loss must be below that of a model that knows how frequent classes are, and nothing of videos."""

SMALL = "for tens of videos there is --preset small"


@dataclass(frozen=True)
class Outlook:
    """What is said before training: plain lines, and warnings."""

    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def outlook(
    listed: FeatureList,
    held: FeatureList | None,
    recipe: Recipe,
    names: Sequence[str],
    score: str | None,
    started: bool = False,
) -> Outlook:
    """What a training will be.

    Args:
        listed: what is trained on.
        held: the validation part; None without one.
        recipe: how.
        names: of the m classes, for the lines.
        score: of :func:`score_name`; None where nothing is selected.
        started: whether the weights are of a checkpoint, which few steps are enough for.
    """
    steps = len(epoch_rows(listed.normal, recipe.batch, recipe.balanced, recipe.seed, 0))
    travel = sum(recipe.lr_at(epoch) for epoch in range(recipe.epochs)) * steps
    lines = [
        f"training on {_count(listed, names)}",
        f"recipe {recipe.name}: {_plural(recipe.epochs, 'epoch')} of {_plural(steps, 'step')}, "
        f"{steps * recipe.epochs} steps in all; {recipe.schedule}",
    ]
    warnings = []
    if travel < LEAST_TRAVEL and not started:
        warnings.append(
            f"{steps * recipe.epochs} steps at this learning rate hardly move the weights: use more epochs, smaller "
            f"batches or a larger learning rate; {SMALL}"
        )
    if held is not None:
        lines.append(f"validation on {_count(held, names)}; they are not trained on")
        normal = int(held.normal.sum())
        if min(normal, len(held) - normal) < LEAST_OF_EACH:
            warnings.append(
                f"{normal} normal and {len(held) - normal} abnormal validation videos are too few to choose weights "
                f"by: train on all videos with --select last; {SMALL}"
            )
        there, chosen = (set(np.flatnonzero(part.targets.sum(axis=0)).tolist()) for part in (listed, held))
        missing = [names[c] for c in sorted(there - chosen)]
        if missing:
            lines.append(f"no validation video has the class {_either(missing)}")
    if score is not None:
        lines.append(f"score: {score}; the weights with the best one are kept")
    return Outlook(tuple(lines), tuple(warnings))


def score_name(select: str, config: ModelConfig) -> str | None:
    """What the score of a run is, such as ``validation AUC (videos)``; None where nothing is selected."""
    figure = "AUC" if config.anomaly == "confidence" else "AP"
    return {"validation": f"validation {figure} (videos)", "test": f"test {figure} (frames)"}.get(select)


def hindsight(
    state: RunState, listed: FeatureList, recipe: Recipe, config: ModelConfig, chance: float | None
) -> list[str]:
    """Why a finished run is not to be trusted, in sentences; none where nothing speaks against it.

    Args:
        state: at the end.
        listed: what was trained on.
        recipe: how.
        config: of the model.
        chance: the score of a model that guesses; None without scores.
    """
    found = []
    reported = 0 if config.anomaly == "confidence" else 1
    loss, guess = state.losses_of(recipe.epochs - 1)[reported], _guesses(listed, recipe)[reported]
    if not loss < (1 - LEAST_GAIN) * guess:
        found.append(
            f"the model learnt nothing: its loss at the end, {loss:.3f}, is not below the {guess:.3f} of guessing by "
            f"how frequent classes are; train longer or with a larger learning rate ({SMALL})"
        )
    if chance is not None and state.best is not None and not state.best > chance:
        found.append(
            f"the best score, {state.best:.3f}, is not better than chance ({chance:.3f}): the model tells nothing on "
            "the videos that it was selected on"
        )
    return found


def _guesses(listed: FeatureList, recipe: Recipe) -> tuple[float, float]:
    """BCE and NCE (nats) of a model that predicts how frequent classes are among the rows that it is shown."""
    targets = listed.targets / listed.targets.sum(axis=1, keepdims=True)
    normal, others = targets[listed.normal].mean(axis=0), targets[~listed.normal].mean(axis=0)
    share = 0.5 if recipe.balanced else float(listed.normal.mean())
    classes = share * normal + (1 - share) * others
    return _entropy(np.array([share, 1 - share])), _entropy(classes)


def _entropy(shares: np.ndarray) -> float:
    return -sum(float(p) * math.log(p) for p in shares if p > 0)


def _count(listed: FeatureList, names: Sequence[str]) -> str:
    """``21 videos (9 normal; 12 abnormal: 6 fire, 6 fight)``, and of how many rows where there are several crops."""
    rows = dict(zip(listed.videos, listed.targets, strict=True))  # a row for each video, of whichever crop
    classes: Counter[str] = Counter()
    for row in rows.values():
        classes.update(names[int(c)] for c in np.flatnonzero(row) if c != NORMAL)
    normal = sum(bool(row[NORMAL]) for row in rows.values())
    files = f" in {len(listed)} rows" if len(listed) > len(rows) else ""
    each = ", ".join(f"{count} {name}" for name, count in classes.items())
    return f"{_plural(len(rows), 'video')}{files} ({normal} normal; {len(rows) - normal} abnormal: {each})"


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
