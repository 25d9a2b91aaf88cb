"""What is said of a training before and after it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vadclip.config import ModelConfig
from vadclip.lists import FeatureList
from vadclip.outlook import LEAST_OF_EACH, hindsight, outlook, score_name
from vadclip.recipes import RECIPES, Recipe
from vadclip.runs import RunState

NAMES = ("quiet", "fire", "fight")
REFERENCE, SMALL = RECIPES["reference"]["ucf"], RECIPES["small"]["ucf"]
CONFIG = ModelConfig(64, 8, 1, ("normal", "a fire", "a fight"), positions=32)


def listed(normal: int, fire: int, fight: int, crops: int = 1) -> FeatureList:
    kinds = np.repeat([0, 1, 2], [normal, fire, fight])
    paths = [Path(f"v{i:03d}__{crop}.npy") for i in range(len(kinds)) for crop in range(crops)]
    targets = np.repeat(np.eye(3, dtype=np.float32)[kinds], crops, axis=0)
    return FeatureList("list", tuple(paths), tuple(NAMES[row.argmax()] for row in targets), targets)


def test_a_small_list_is_said_to_be_too_small() -> None:
    """21 videos with the released recipe: one step an epoch, and a validation part that nothing can be chosen by."""
    found = outlook(listed(9, 5, 4), listed(1, 2, 0), REFERENCE, NAMES, "validation AUC (videos)")
    assert found.lines == (
        "training on 18 videos (9 normal; 9 abnormal: 5 fire, 4 fight)",
        "recipe reference: 10 epochs of 1 step, 10 steps in all; learning rate 2e-05, times 0.1 from epoch 5 and again "
        "from epoch 9",
        "validation on 3 videos (1 normal; 2 abnormal: 2 fire); they are not trained on",
        "no validation video has the class fight",
        "score: validation AUC (videos); the weights with the best one are kept",
    )
    few, blind = found.warnings
    assert few.startswith("10 steps at this learning rate hardly move the weights") and "--preset small" in few
    assert blind.startswith("1 normal and 2 abnormal validation videos are too few to choose weights by")


def test_nothing_speaks_against_the_released_training_or_the_small_preset() -> None:
    """UCF-Crime has 800 normal and 810 abnormal videos to train on, of ten crops each."""
    large = outlook(listed(720, 365, 364, crops=10), listed(80, 41, 40), REFERENCE, NAMES, "AUC")
    assert large.warnings == () and "1449 videos in 14490 rows" in large.lines[0]
    assert "10 epochs of 112 steps, 1120 steps in all" in large.lines[1]
    assert outlook(listed(8, 7, 6), None, SMALL, NAMES, None).warnings == ()
    assert len(outlook(listed(8, 7, 6), None, REFERENCE, NAMES, None).warnings) == 1
    # From weights that know something few steps are enough.
    assert outlook(listed(8, 7, 6), None, REFERENCE, NAMES, None, started=True).warnings == ()


@pytest.mark.parametrize(("normal", "fire", "warned"), [(10, 10, False), (9, 10, True), (10, 9, True)])
def test_a_validation_part_is_large_enough_from_ten_of_each_on(normal: int, fire: int, warned: bool) -> None:
    assert LEAST_OF_EACH == 10
    found = outlook(listed(100, 100, 0), listed(normal, fire, 0), replace(REFERENCE, lr=1e-3), NAMES, "AUC")
    assert bool(found.warnings) == warned


def test_a_score_has_a_name() -> None:
    other = replace(CONFIG, anomaly="alignment")
    assert score_name("validation", CONFIG) == "validation AUC (videos)"
    assert score_name("test", other) == "test AP (frames)"
    assert score_name("last", CONFIG) is None


def state(bce: float, nce: float, best: float | None = None) -> RunState:
    """One epoch in two rows of the log: of three batches and of one."""
    rows = [[1, 3, 48, 1e-4, bce - 0.1, nce, 0.0, "", "", 1.0], [1, 4, 64, 1e-4, bce + 0.3, nce, 0.0, "", "", 1.0]]
    return RunState(epoch=1, best=best, log=rows)


def test_what_learnt_nothing_is_said() -> None:
    """Guessing by how frequent classes are costs ln 2 in a balanced batch, and 1.5 ln 2 with two classes alike."""
    recipe = Recipe("r", 1e-4, 1, 4, True, 0.1)
    videos, alignment = listed(20, 5, 5), replace(CONFIG, anomaly="alignment")
    assert state(0.4, 1.0).losses_of(0) == pytest.approx((0.4, 1.0))
    assert hindsight(state(0.65, 9.0), videos, recipe, CONFIG, None) == []
    (said,) = hindsight(state(0.67, 0.0), videos, recipe, CONFIG, None)
    assert said.startswith("the model learnt nothing: its loss at the end, 0.670, is not below the 0.693 of guessing")
    assert hindsight(state(9.0, 0.98), videos, recipe, alignment, None) == []
    (said,) = hindsight(state(0.0, 1.0), videos, recipe, alignment, None)
    assert "1.000, is not below the 1.040 of guessing" in said
    unbalanced = replace(recipe, balanced=False)  # 20 of 30 are normal
    (said,) = hindsight(state(0.62, 0.0), videos, unbalanced, CONFIG, None)
    assert "is not below the 0.637 of guessing" in said
    assert "learnt nothing" in hindsight(state(float("nan"), 0.0), videos, recipe, CONFIG, None)[0]


def test_a_score_that_is_no_better_than_chance_is_said() -> None:
    recipe, videos = Recipe("r", 1e-4, 1, 4, True, 0.1), listed(20, 5, 5)
    assert hindsight(state(0.1, 0.1, best=0.6), videos, recipe, CONFIG, 0.5) == []
    for best in (0.0, 0.5):
        (said,) = hindsight(state(0.1, 0.1, best=best), videos, recipe, CONFIG, 0.5)
        assert f"the best score, {best:.3f}, is not better than chance (0.500)" in said
    assert hindsight(state(0.1, 0.1, best=0.2), videos, recipe, CONFIG, None) == []
