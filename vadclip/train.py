"""Training with video-level labels, resumable to the last bit.

A run lives in one folder: ``best.safetensors`` (the model that was selected), ``last.safetensors``, ``log.csv``,
``run.json`` (what it was told) and ``state.pt`` (where it is; gone on from when the same run is started again).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vadclip.checkpoint import save_checkpoint
from vadclip.clip import clip_config
from vadclip.config import Design, ModelConfig
from vadclip.data import FeatureStore, Fetcher, Progress, ahead, epoch_rows, open_store
from vadclip.lists import FeatureList, crop_remark, one_crop, split_by_video, without_missing
from vadclip.losses import vadclip_losses
from vadclip.model import VadCLIP
from vadclip.presets import Preset
from vadclip.prompt import tokenize
from vadclip.ranks import Ranks, join, leave
from vadclip.recipes import Recipe
from vadclip.selection import Scorer, video_scorer
from vadclip.sidecar import common_settings
from vadrun.errors import UserError
from vadrun.files import whole_file, write_json

Select = Literal["validation", "test", "last"]
Precision = Literal["auto", "float32", "mixed"]
Say = Callable[[str], None]

_LOG = ("epoch", "batch", "rows", "lr", "loss_bce", "loss_nce", "loss_cts", "score", "best", "seconds")
_STATE = 1


@dataclass(frozen=True)
class Result:
    """What a run has led to: the best score (None with ``select="last"``), its epoch from 0, and the file."""

    score: float | None
    epoch: int
    checkpoint: Path


def new_model(
    preset: Preset, clip: nn.Module, seed: int = 0, design: Design | None = None, *, mask_padding: bool = False
) -> VadCLIP:
    """A model to train: the head fresh from ``seed``, CLIP as given and frozen.

    A design of one branch is scored by that branch, another one by the preset's.

    Args:
        preset: classes and sizes of the head.
        clip: an ``open_clip.model.CLIP``, such as :func:`vadclip.clip.pretrained` gives.
        mask_padding: exclude padded positions everywhere, as the released models do not.

    Raises:
        UserError: as of :func:`new_config`.
    """
    config = new_config(preset, clip, design, mask_padding=mask_padding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VadCLIP(config, clip)
    model.mirrored = preset.mirrored
    return model


def new_config(
    preset: Preset, clip: nn.Module, design: Design | None = None, *, mask_padding: bool = False
) -> ModelConfig:
    """The configuration of :func:`new_model`'s model.

    Raises:
        UserError: the CLIP's sizes do not fit, or a label has no tokens or too many.
    """
    sizes, width = clip_config(clip)
    design = design or Design()
    config = ModelConfig(
        width,
        preset.window,
        preset.layers,
        preset.labels,
        preset.anomaly if design.branches == "both" else design.branches,
        preset.heads,
        clip=sizes,
        design=design,
        mask_padding=mask_padding,
    )
    tokenize(config.labels, config)
    return config


@dataclass
class _State:
    """Where a run is, between two batches."""

    epoch: int = 0
    batch: int = 0  # of the epoch, the next one to train on
    best: float | None = None
    best_epoch: int = -1
    evaluated: bool = False  # in this epoch
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])  # of the losses, and their number
    rows: int = 0  # trained on, of all epochs
    seconds: float = 0.0  # of this epoch
    log: list[list[Any]] = field(default_factory=list)


class Trainer:
    """One run; :func:`train` is the short way to it.

    Args:
        model: changed in place; its CLIP stays as it is.
        listed: rows to train on.
        store: their features.
        recipe: how.
        scorer: what models are selected by; None keeps the last one.
        out: folder of the run.
        run: what makes this run this run; another one is not gone on with.
        device: where to compute.
        precision: ``mixed`` computes the model in bfloat16 where PyTorch's autocast finds that safe, the losses
            and the scores in float32; ``auto`` does so on CUDA.
        save_seconds: at most so much work is lost when the run is killed.
        say: takes one line of the log.
        board: a ``SummaryWriter`` that gets the log's numbers, or None.
        ranks: the processes that train together; each computes its share of every batch.
    """

    def __init__(
        self,
        model: VadCLIP,
        listed: FeatureList,
        store: FeatureStore,
        recipe: Recipe,
        scorer: Scorer | None,
        out: Path,
        run: dict[str, Any],
        device: torch.device,
        precision: Precision = "auto",
        save_seconds: float = 300.0,
        say: Say = print,
        board: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._board, self._ranks = board, ranks or Ranks()
        self._model, self._recipe, self._scorer, self._say = model.to(device), recipe, scorer, say
        self._out, self._run, self._device, self._save_seconds = out, run, device, save_seconds
        self._mixed = precision == "mixed" or (precision == "auto" and device.type == "cuda")
        self._normal = listed.normal
        targets = listed.targets
        if recipe.one_label:
            targets = np.eye(targets.shape[1], dtype=np.float32)[targets.argmax(axis=1)]
        self._targets = torch.from_numpy(targets)
        self._fetch = Fetcher(store, model.config.positions, model.config.embed_dim)
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._best: dict[str, Tensor] = {}
        self._state = _State()

    def fit(self, progress: Progress | None = None) -> Result:
        """Train from where the folder's state is to the end."""
        recipe, state = self._recipe, self._state
        if self._resume():
            state = self._state
            self._say(f"going on at epoch {state.epoch + 1}, batch {state.batch}")
        saved = time.monotonic()
        while state.epoch < recipe.epochs:
            batches = epoch_rows(self._normal, recipe.batch, recipe.balanced, recipe.seed, state.epoch)
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.lr_at(state.epoch)
            mark = time.monotonic()
            shares = map(self._ranks.share, islice(batches, state.batch, None))
            for rows, (features, lengths) in ahead(self._fetch, shares):
                whole = len(batches[state.batch])
                self._step(rows, features, lengths, self._ranks.weight(whole))
                state.batch, state.rows = state.batch + 1, state.rows + whole
                now = time.monotonic()
                state.seconds, mark = state.seconds + now - mark, now
                if recipe.evaluate_every and state.batch > 1 and (state.batch - 1) % recipe.evaluate_every == 0:
                    self._evaluate(len(batches))
                if progress is not None:
                    progress(state.epoch * len(batches) + state.batch, recipe.epochs * len(batches))
                if time.monotonic() - saved > self._save_seconds:
                    self._save()
                    saved = time.monotonic()
            if not state.evaluated:
                self._evaluate(len(batches))
            elif state.sums[-1]:  # the batches since the last evaluation
                self._log(len(batches), None)
            if recipe.roll_back and self._best:
                self._load(self._best)
            state.epoch, state.batch, state.evaluated, state.seconds = state.epoch + 1, 0, False, 0.0
            self._save()
            if state.best_epoch == state.epoch - 1:
                self._save_best()
            saved = time.monotonic()
        return self._finish()

    def _step(self, rows: NDArray[np.integer], features: Tensor, lengths: Tensor, share: float) -> None:
        """Learn from a batch, of which ``share`` are the rows of this process."""
        model, recipe = self._model, self._recipe
        model.train()
        features, lengths = features.to(self._device), lengths.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            text = model.encode_text(model.config.labels)
            logits, alignment = model(features, lengths, text)
        targets = self._targets[torch.from_numpy(rows)].to(self._device)
        losses = vadclip_losses(
            logits,
            alignment,
            text,
            targets,
            lengths,
            contrast_weight=recipe.contrast_weight,
            contrast=recipe.contrast,
        )
        # All terms are means over rows (or the same for all), so the shares' sums weigh as one batch does.
        found = torch.stack([losses.bce, losses.nce, losses.contrast]).detach()
        values = self._ranks.sum(found * share).tolist()
        if not np.isfinite(values).all():
            raise UserError(
                f"the loss is not finite in epoch {self._state.epoch + 1}, batch {self._state.batch + 1}:"
                " train with a smaller learning rate or in float32"
            )
        self._optimizer.zero_grad()
        (losses.of(model.config.design.branches) * share).backward()  # type: ignore[no-untyped-call]
        self._ranks.sum_gradients(self._parameters.values())
        self._optimizer.step()
        self._state.sums = [total + value for total, value in zip(self._state.sums, [*values, 1.0], strict=True)]

    def _evaluate(self, batches: int) -> None:
        state = self._state
        state.evaluated = True
        score = None
        if self._scorer is not None:
            self._model.eval()
            score = self._ranks.agree(self._scorer(self._model) if self._ranks.first else None, self._device)
            assert score is not None
            if state.best is None or score > state.best:
                state.best, state.best_epoch = score, state.epoch
                self._best = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._log(batches, score)

    def _log(self, batches: int, score: float | None) -> None:
        """Write a row of the mean losses since the last one, of this epoch."""
        state = self._state
        bce, nce, contrast, count = state.sums
        state.sums = [0.0, 0.0, 0.0, 0.0]
        lr = self._recipe.lr_at(state.epoch)
        means = [round(value / max(count, 1), 6) for value in (bce, nce, contrast)]
        rounded = ["" if value is None else round(value, 6) for value in (score, state.best)]
        state.log.append([state.epoch + 1, state.batch, state.rows, lr, *means, *rounded, round(state.seconds, 1)])
        if self._board is not None:
            for name, value in zip(_LOG[3:8], state.log[-1][3:8], strict=True):
                if value != "":
                    self._board.add_scalar(name, value, state.rows)
            self._board.flush()
        text = f"epoch {state.epoch + 1}/{self._recipe.epochs}  batch {state.batch}/{batches}  lr {lr:.1e}"
        text += "  bce {:.4f}  nce {:.4f}  cts {:.4f}".format(*means)
        self._say(text if score is None else f"{text}  score {score:.4f}  best {state.best:.4f}")

    def _load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(weights[name])

    def _save(self) -> None:
        if not self._ranks.first:
            return
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([_LOG, *self._state.log])
        _write(self._out / "log.csv", lambda path: path.write_text(stream.getvalue(), encoding="utf-8"))
        content = {
            "format": _STATE,
            "run": json.dumps(self._run, sort_keys=True),
            "state": asdict(self._state),
            "weights": {name: value.detach() for name, value in self._parameters.items()},
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
        }
        _write(self._out / "state.pt", lambda path: torch.save(content, path))

    def _resume(self) -> bool:
        path = self._out / "state.pt"
        if not path.exists():
            return False
        try:
            content = torch.load(path, map_location=self._device, weights_only=True)
            run = json.loads(content["run"])
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise UserError(f"{path} is damaged ({type(error).__name__}): remove it to begin again") from error
        ours = json.loads(json.dumps(self._run))
        # The first in order tells most: another list has other contents too. What an earlier version has not written
        # down cannot be compared.
        if differing := [key for key in {**ours, **run} if key in run and run[key] != ours.get(key)]:
            raise UserError(
                f"{self._out} holds a run with another {differing[0]}: give the same to go on, or another folder"
            )
        self._load(content["weights"])
        self._best = content["best"]
        self._optimizer.load_state_dict(content["optimizer"])
        self._state = _State(**content["state"])
        return True

    def _save_best(self) -> None:
        """Write the best weights as a checkpoint; the model stays as it is."""
        if not self._ranks.first:
            return
        current = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._load(self._best)
        save_checkpoint(self._model, self._out / "best.safetensors")
        self._load(current)

    def _finish(self) -> Result:
        self._model.eval()
        if self._ranks.first:
            save_checkpoint(self._model, self._out / "last.safetensors")
        if self._best:
            self._load(self._best)
        if self._ranks.first:
            save_checkpoint(self._model, self._out / "best.safetensors")
        self._ranks.wait()
        epoch = self._state.best_epoch if self._best else self._recipe.epochs - 1
        return Result(self._state.best, epoch, self._out / "best.safetensors")


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
    progress: Progress | None = None,
) -> Result:
    """Train a model, or go on with the run that ``out`` holds.

    The same call with the same inputs gives the same weights on the same machine with the same number of threads,
    also when it was killed and started again in between. Every input is checked before the first step.

    Args:
        model: from :func:`new_model` or a checkpoint; changed in place, its CLIP excepted.
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
        precision: see :class:`Trainer`.
        save_seconds: see there.
        tensorboard: write the log as event files too.
        say: takes one line of the log.
        progress: told the batches done, and of how many.

    Raises:
        UserError: an input cannot be used, or ``out`` holds another run.
    """
    out = Path(out)
    ranks, place = join(str(device))
    if not ranks.first:
        say, progress, tensorboard = _silent, None, False
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError("TensorBoard is not installed: pip install tensorboard, or leave --tensorboard out")
    if listed.targets.shape[1] != len(model.config.labels):
        raise UserError(
            f"{listed.source} has {listed.targets.shape[1]} classes, but the model has {len(model.config.labels)}:"
            " use the classes it was made for"
        )
    if (select == "test") != (scorer is not None):
        raise UserError("selection on the test list needs a test list, and no other selection takes one")
    listed, missing = without_missing(listed, allow_missing)
    if missing:
        say(f"{missing} feature files are missing and left out")
    model.feature_settings = common_settings(listed.paths)
    held: FeatureList | None = None
    if select == "validation":
        listed, held = split_by_video(listed, validation, recipe.seed)
        held = one_crop(held, crop)
        if (remark := crop_remark(held, crop)) is not None:
            say(remark)
        say(f"weights are selected on {len(held)} videos of the training list, which are not trained on")
    elif select == "test":
        say("weights are selected on the TEST list, as the released code does: the test score is then optimistic")
    if listed.normal.all() or not listed.normal.any():
        kind = "abnormal" if listed.normal.all() else "normal"
        raise UserError(f"{listed.source} has no {kind} video to train on: training needs both kinds")
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
        "training list": listed.fingerprint(),
        "selection": [select, validation if held else 0],
        "configuration": json.loads(model.config.to_json()),
        "precision": precision,
        "features": model.feature_settings,
        "contents of the feature files": digests,
        "crop to validate on": crop if held else None,
        "test list": test_set,
        "initial model": _weights_sha256(model),
    }
    if ranks.first and not (out / "state.pt").exists():
        write_json(out / "run.json", run)
    if ranks.first:
        ranks.wait()
    say(f"training on {len(listed)} feature files ({int(listed.normal.sum())} normal), recipe {recipe.name}")
    board = _board(out) if tensorboard else None
    try:
        with _deterministic():
            return Trainer(
                model, listed, store, recipe, scorer, out, run, place, precision, save_seconds, say, board, ranks
            ).fit(progress)
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


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    try:
        with whole_file(path) as temporary:
            write(temporary)
    except (OSError, RuntimeError) as error:  # torch.save says a full disk with a RuntimeError
        raise UserError(f"{path} cannot be written ({error}): make room or name another folder") from error
