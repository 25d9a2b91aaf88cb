"""Training with video-level labels: what is checked and said before it, and the run itself.

The loop is in :mod:`vadclip.trainer`, the run's files are in :mod:`vadclip.runs`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from vadclip.data import Progress, check_kinds, open_store
from vadclip.lists import FeatureList, crop_remark, one_crop, split_by_video, without_missing
from vadclip.model import VadCLIP
from vadclip.outlook import outlook, score_name
from vadclip.ranks import join, leave
from vadclip.recipes import Recipe
from vadclip.runs import RunFolder
from vadclip.selection import Scorer, video_scorer
from vadclip.sidecar import common_settings
from vadclip.trainer import Precision, Result, Say, Trainer
from vadrun.errors import UserError
from vadrun.files import write_json

Select = Literal["validation", "test", "last"]


def train(
    model: VadCLIP,
    listed: FeatureList,
    out: str | Path,
    recipe: Recipe,
    *,
    select: Select = "validation",
    scorer: Scorer | None = None,
    test_set: str | None = None,
    validation: float = 0.1,
    crop: int = 0,
    allow_missing: bool = False,
    cache: bool | Path = True,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    save_seconds: float = 300.0,
    tensorboard: bool = False,
    say: Say = print,
    warn: Say | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train a model, or go on with the run that ``out`` holds.

    The same call with the same inputs gives the same weights on the same machine with the same number of threads,
    also when it was killed and started again in between. Every input is checked before the first step.

    Args:
        model: from :func:`vadclip.initial.new_model` or a checkpoint; changed in place, its CLIP excepted.
        listed: the training list.
        out: folder of the run; made if it is not there.
        recipe: see :func:`get_recipe`.
        select: ``validation`` keeps the weights that are best on a part of the training list that is then not
            trained on; ``test`` those that are best by ``scorer``, which the released code lets the TEST list
            decide; ``last`` the last ones, trained on all of the list.
        scorer: for ``select="test"``: :func:`snippet_scorer` or :func:`video_scorer` of the test list.
        test_set: what tells this test list from others (:attr:`vadclip.testset.TestSet.fingerprint`): a run is not
            gone on with by another one's scores.
        validation: share of the videos that are set aside.
        crop: number of the crop to validate on, :attr:`vadclip.presets.Preset.centre_crop`.
        allow_missing: go on without the files that are not there.
        cache: keep a packed copy of the features in the run's folder, or in this one, which runs may share that set
            the same videos aside.
        device: such as ``cpu`` or ``cuda``.
        precision: see :func:`vadclip.trainer.is_mixed`.
        save_seconds: at most so much work is lost when the run is killed.
        tensorboard: write the log as event files too.
        say: takes one line of the log.
        warn: takes what speaks against this training, in a sentence; None: ``say``, after "warning: ".
        progress: told the batches done, and of how many.

    Raises:
        UserError: an input cannot be used, or ``out`` holds another run.
    """
    out = Path(out)
    ranks, place = join(str(device))
    if not ranks.first:
        say, warn, progress, tensorboard = _silent, _silent, None, False
    warn = warn or (lambda sentence: say(f"warning: {sentence}"))
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError("TensorBoard is not installed: pip install tensorboard, or leave --tensorboard out")
    if listed.targets.shape[1] != len(model.config.labels):
        raise UserError(
            f"{listed.source} has {listed.targets.shape[1]} classes, but the model has {len(model.config.labels)}:"
            " use the classes it was made for"
        )
    if (select == "test") != (scorer is not None):
        raise UserError("selection on the test list needs a test list, and no other selection takes one")
    check_kinds(listed)
    listed, missing = without_missing(listed, allow_missing)
    if missing:
        say(f"{missing} feature files are missing and left out")
        check_kinds(listed)
    model.feature_settings = common_settings(listed.paths)
    whole, held = listed, None
    if select == "validation":
        listed, held = split_by_video(listed, validation, recipe.seed)
        held = one_crop(held, crop)
        if (remark := crop_remark(held, crop)) is not None:
            say(remark)
    elif select == "test":
        say("weights are selected on the TEST list, as the released code does: the test score is then optimistic")
    score = score_name(select, model.config)
    before = outlook(
        listed, held, recipe, model.annotation_names or model.config.labels, score, model.started_from is not None
    )
    for line in before.lines:
        say(line)
    for sentence in before.warnings:
        warn(sentence)
    chance = None
    if model.config.anomaly == "confidence":
        chance = 0.5  # of an AUC
    elif held is not None:
        chance = float(1 - held.normal.mean())  # of an AP
    width, positions = model.config.embed_dim, model.config.positions
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}): name a folder for the run") from error
    if not ranks.first:
        ranks.wait()  # until rank 0 has packed the features
    packed = out if cache is True else cache
    store = open_store(listed, width, positions, packed / "features" if packed else None)
    digests = [store.digest]
    if held is not None:
        kept = open_store(held, width, positions, packed / "features-validation" if packed else None)
        scorer = video_scorer(kept, held.normal, model.config)
        digests.append(kept.digest)
    run = {
        "recipe": asdict(recipe),
        "selection": select,
        "validation": validation if held else None,
        "score": score,
        "started from": None if model.started_from is None else dict(model.started_from),
        "training list": {"files": len(whole), "sha256": whole.fingerprint()},
        "configuration": json.loads(model.config.to_json()),
        "precision": precision,
        "features": model.feature_settings,
        "content of the feature files": digests,
        "crop to validate on": crop if held else None,
        "test list": test_set,
        "initial model": _weights_sha256(model),
    }
    if ranks.first and not (out / "state.pt").exists():
        write_json(out / "run.json", run)
    if ranks.first:
        ranks.wait()
    board = _board(out) if tensorboard else None
    try:
        with _deterministic():
            trainer = Trainer(
                model,
                listed,
                store,
                recipe,
                scorer,
                RunFolder(out, run, recipe.epochs),
                place,
                precision,
                save_seconds,
                say,
                board,
                ranks,
                score,
                chance if scorer is not None else None,
            )
            return trainer.fit(progress)
    finally:
        leave()


def _silent(line: str) -> None:
    """What the other processes than rank 0 have to say."""


def _board(out: Path) -> Any:
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let PyTorch prefer algorithms that always give the same bits."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _weights_sha256(model: VadCLIP) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
