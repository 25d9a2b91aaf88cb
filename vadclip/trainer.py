"""The training loop, resumable to the last bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vadclip.checkpoint import save_checkpoint
from vadclip.data import FeatureStore, Fetcher, Progress, ahead, epoch_rows
from vadclip.lists import FeatureList
from vadclip.losses import vadclip_losses
from vadclip.model import VadCLIP
from vadclip.outlook import hindsight
from vadclip.ranks import Ranks
from vadclip.recipes import Recipe
from vadclip.runs import LOG, RunFolder, RunState, reading_state
from vadclip.selection import Scorer
from vadrun.errors import UserError

Precision = Literal["auto", "float32", "mixed"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a run has led to.

    Attributes:
        score: the best one; None with ``select="last"``.
        epoch: where it was found, from 0.
        checkpoint: the file of the selected weights.
        doubts: why the model is not to be trusted, in sentences; empty where nothing speaks against it.
        score_name: what the score is, such as ``validation AUC (videos)``.
    """

    score: float | None
    epoch: int
    checkpoint: Path
    doubts: tuple[str, ...] = ()
    score_name: str = "score"


class Trainer:
    """One run; :func:`vadclip.train.train` is the short way to it.

    Args:
        model: changed in place; its CLIP stays as it is.
        listed: rows to train on.
        store: their features.
        recipe: how.
        scorer: what models are selected by; None keeps the last one.
        folder: of the run.
        device: where to compute.
        precision: see :func:`is_mixed`.
        save_seconds: at most so much work is lost when the run is killed.
        say: takes one line of the log.
        board: a ``SummaryWriter`` that gets the log's numbers, or None.
        ranks: the processes that train together; each computes its share of every batch.
        score_name: what the lines call the score.
        chance: the score of a model that guesses; None where it is not known.
    """

    def __init__(
        self,
        model: VadCLIP,
        listed: FeatureList,
        store: FeatureStore,
        recipe: Recipe,
        scorer: Scorer | None,
        folder: RunFolder,
        device: torch.device,
        precision: Precision = "auto",
        save_seconds: float = 300.0,
        say: Say = print,
        board: Any = None,
        ranks: Ranks | None = None,
        score_name: str | None = None,
        chance: float | None = None,
    ) -> None:
        self._board, self._ranks = board, ranks or Ranks()
        self._model, self._recipe, self._scorer, self._say = model.to(device), recipe, scorer, say
        self._folder, self._device, self._save_seconds = folder, device, save_seconds
        self._mixed = is_mixed(precision, recipe, device)
        self._score_name, self._chance, self._listed = score_name or "score", chance, listed
        targets = listed.targets
        if recipe.one_label:
            targets = np.eye(targets.shape[1], dtype=np.float32)[targets.argmax(axis=1)]
        self._targets = torch.from_numpy(targets)
        self._fetch = Fetcher(store, model.config.positions, model.config.embed_dim)
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._best: dict[str, Tensor] = {}
        self._state = RunState()

    def fit(self, progress: Progress | None = None) -> Result:
        """Train from where the folder's state is to the end.

        Raises:
            UserError: the folder holds another run or cannot be written to, a feature file has changed, or a loss
                is not finite.
        """
        recipe = self._recipe
        self._resume()
        state = self._state
        saved = time.monotonic()
        while state.epoch < recipe.epochs:
            batches = epoch_rows(self._listed.normal, recipe.batch, recipe.balanced, recipe.seed, state.epoch)
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
                state.best, state.best_epoch, state.best_batch = score, state.epoch, state.batch
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
            for name, value in zip(LOG[3:8], state.log[-1][3:8], strict=True):
                if value != "":
                    self._board.add_scalar(name, value, state.rows)
            self._board.flush()
        text = f"epoch {state.epoch + 1}/{self._recipe.epochs}  batch {state.batch}/{batches}  lr {lr:.1e}"
        text += "  bce {:.4f}  nce {:.4f}  cts {:.4f}".format(*means)
        self._say(text if score is None else f"{text}  {self._score_name} {score:.4f}  best {state.best:.4f}")

    def _load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(weights[name])

    def _save(self) -> None:
        if self._ranks.first:
            weights = {name: value.detach() for name, value in self._parameters.items()}
            self._folder.save(self._state, weights, self._best, self._optimizer.state_dict())

    def _resume(self) -> None:
        found = self._folder.load(self._device)
        if found is None:
            return
        state, content = found
        with reading_state(self._folder.out / "state.pt"):
            if content["best"]:
                self._load(content["best"])  # only to see that they fit
            self._load(content["weights"])
            self._optimizer.load_state_dict(content["optimizer"])
        self._state, self._best = state, content["best"]
        if state.epoch >= self._recipe.epochs:
            self._say(f"the run in {self._folder.out} is finished: nothing is left to train")
        else:
            self._say(f"going on at epoch {state.epoch + 1}, batch {state.batch}")

    def _save_best(self) -> None:
        """Write the best weights as a checkpoint; the model stays as it is."""
        if not self._ranks.first:
            return
        current = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._load(self._best)
        save_checkpoint(self._model, self._folder.out / "best.safetensors")
        self._load(current)

    def _finish(self) -> Result:
        out, state = self._folder.out, self._state
        self._model.eval()
        if self._ranks.first:
            save_checkpoint(self._model, out / "last.safetensors")
        if self._best:
            self._load(self._best)
            where = f"in epoch {state.best_epoch + 1}, after batch {state.best_batch}"
            self._say(f"best {self._score_name} {state.best:.4f} {where}")
        if self._ranks.first:
            save_checkpoint(self._model, out / "best.safetensors")
        self._ranks.wait()
        epoch = state.best_epoch if self._best else self._recipe.epochs - 1
        doubts = hindsight(state, self._listed, self._recipe, self._model.config, self._chance)
        return Result(state.best, epoch, out / "best.safetensors", tuple(doubts), self._score_name)


def is_mixed(precision: Precision, recipe: Recipe, device: torch.device) -> bool:
    """Whether the model is computed in bfloat16 where PyTorch's autocast finds that safe.

    Losses and scores are float32 always. ``auto`` is mixed on CUDA, but for a recipe that is float32 by itself, such as
    the released one.
    """
    return precision == "mixed" or (precision == "auto" and device.type == "cuda" and recipe.mixed)
