"""How to train: the released recipe, the paper's, and one for tens of videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vadclip.losses import CONTRASTS, Contrast
from vadrun.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        name: for the log.
        lr: AdamW's learning rate.
        epochs: how many.
        batch: rows in a batch; if ``balanced``, normal rows and as many abnormal ones.
        balanced: draw normal and abnormal rows apart.
        milestones: epochs, counted from 0, from which on the learning rate is multiplied by ``gamma`` once more.
        gamma: see there.
        weight_decay: AdamW's.
        contrast: form of the contrastive text loss.
        contrast_weight: lambda.
        one_label: a video of several classes counts for the first of them only (in class order).
        evaluate_every: score the model after batch 0 + this, 0 + twice this, ... of an epoch, counted from 0,
            and at the end of an epoch that had none; 0: at the end of each epoch.
        roll_back: after each epoch go on from the best weights so far; the optimizer's moments stay.
        mixed: compute in bfloat16 on CUDA, unless another precision is asked for.
        seed: of the order of the rows and of the validation part.

    Raises:
        UserError: a value is out of range.
    """

    name: str
    lr: float
    epochs: int
    batch: int
    balanced: bool
    contrast_weight: float
    contrast: Contrast = "mean-abs"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    weight_decay: float = 0.01
    one_label: bool = False
    evaluate_every: int = 0
    roll_back: bool = False
    mixed: bool = True
    seed: int = 234

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("evaluate_every", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: use a whole number of at least {least}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr is {self.lr}: use a number above 0")
        if self.contrast not in CONTRASTS:
            raise UserError(f"contrast is {self.contrast!r}: use one of {', '.join(CONTRASTS)}")

    def lr_at(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)

    def of_epochs(self, epochs: int) -> Recipe:
        """This recipe stretched over another number of epochs: each milestone stays at its share of the training.

        A milestone that falls into an epoch is moved to the end of it.

        Example:
            >>> RECIPES["reference"]["ucf"].of_epochs(5).milestones
            (2, 4)
        """
        milestones = tuple(-(-milestone * epochs // self.epochs) for milestone in self.milestones)
        return replace(self, epochs=epochs, milestones=milestones)

    @property
    def schedule(self) -> str:
        """The learning rate over the epochs, in words; epochs count from 1, as in the log."""
        steps = [milestone + 1 for milestone in self.milestones if milestone < self.epochs]
        if not steps:
            return f"learning rate {self.lr:g} throughout"
        epochs = " and again from epoch ".join(map(str, steps))
        return f"learning rate {self.lr:g}, times {self.gamma:g} from epoch {epochs}"


RECIPES: dict[str, dict[str, Recipe]] = {
    "reference": {
        "ucf": Recipe(
            "reference", 2e-5, 10, 64, True, 1e-1, milestones=(4, 8), evaluate_every=10, roll_back=True, mixed=False
        ),
        "xd": Recipe("reference", 1e-5, 10, 96, False, 1e-4, milestones=(3, 6, 10), roll_back=True, mixed=False),
    },
    "paper": {
        "ucf": Recipe("paper", 1e-5, 10, 64, False, 1e-1, contrast="sum-positive", one_label=True),
        "xd": Recipe("paper", 2e-5, 20, 64, False, 1e-4, contrast="sum-positive", one_label=True),
    },
    # Ours, for tens of videos: small batches and many epochs, so that there are a few hundred steps.
    "small": {
        "ucf": Recipe("small", 2e-4, 50, 8, True, 1e-1, milestones=(40,), mixed=False),
        "xd": Recipe("small", 2e-4, 50, 8, True, 1e-4, milestones=(40,), mixed=False),
    },
}


def get_recipe(name: str, dataset: str = "ucf") -> Recipe:
    """The recipe called ``name`` for a dataset; classes of one's own are trained as UCF-Crime is.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: use one of {', '.join(RECIPES)}")
    return RECIPES[name].get(dataset, RECIPES[name]["ucf"])
