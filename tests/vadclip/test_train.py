"""Training: a toy set is learned, a killed run goes on to the same weights, wrong input is said beforehand."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.golden import Golden
from vadclip import ModelConfig, VadCLIP, load_checkpoint
from vadclip.config import ClipConfig
from vadclip.device import find_device
from vadclip.initial import new_model
from vadclip.lists import FeatureList
from vadclip.presets import PRESETS, Preset
from vadclip.recipes import RECIPES, Recipe, get_recipe
from vadclip.selection import snippet_scorer
from vadclip.train import Result, train
from vadclip.trainer import is_mixed
from vadclip.untrained import SMALL
from vadrun.errors import UserError

WIDTH, POSITIONS = 64, 32
CLIP = ClipConfig(**{**vars(SMALL), "text_layers": 1, "vision_layers": 1, "vision_width": 64, "vision_heads": 1})
RECIPE = Recipe("toy", 1e-3, 4, 8, True, 1e-1, milestones=(3,), evaluate_every=2, roll_back=True)

LEARN = replace(RECIPE, epochs=12, milestones=(), evaluate_every=0, roll_back=False)


def toy_model(seed: int = 0) -> VadCLIP:
    config = ModelConfig(WIDTH, 8, 1, ("normal", "fire", "fight"), positions=POSITIONS, clip=CLIP)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VadCLIP(config).eval()


def toy_set(folder: Path, videos: int, seed: int) -> tuple[FeatureList, list[NDArray[np.bool_]]]:
    """Features like CLIP's (norm 10, neighbours alike); an event adds its class's direction for some snippets."""
    folder.mkdir(parents=True, exist_ok=True)
    events = np.linalg.qr(np.random.default_rng(99).standard_normal((WIDTH, 3)))[0].T
    generator = np.random.default_rng(seed)
    paths, targets, truth = [], np.zeros((videos, 3), dtype=np.float32), []
    for index in range(videos):
        kind = (0, 1, 0, 2)[index % 4]
        length = int(generator.integers(12, 44))
        scene = 8 * events[0] + 0.5 * generator.standard_normal(WIDTH)
        features = scene + 0.2 * generator.standard_normal((length, WIDTH))
        marks = np.zeros(length, dtype=bool)
        if kind:
            start = int(generator.integers(0, length - 6))
            marks[start : start + 6] = True
            features[marks] += 6 * events[kind]
        targets[index, kind] = 1
        path = folder / f"v{index:03d}__0.npy"
        np.save(path, features.astype(np.float16))
        paths.append(path)
        truth.append(marks)
    labels = tuple(("normal", "fire", "fight")[kind] for kind in targets.argmax(axis=1))
    return FeatureList("toy", tuple(paths), labels, targets), truth


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these only lose by more, and on busy cores they lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> FeatureList:
    return toy_set(tmp_path_factory.mktemp("toy"), 60, seed=0)[0]


def quiet(_: str) -> None: ...


def run(toy: FeatureList, out: Path, recipe: Recipe = RECIPE, **options: Any) -> tuple[VadCLIP, Result]:
    model = toy_model()
    result = train(model, toy, out, recipe, **{"say": quiet, "save_seconds": 1e9, **options})
    return model, result


@pytest.fixture(scope="module")
def whole(toy: FeatureList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("run") / "whole"
    run(toy, out)
    return out


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_toy_set_is_learned(toy: FeatureList, tmp_path: Path) -> None:
    """From video-level labels alone to snippets of videos that were not trained on."""
    held, truth = toy_set(tmp_path / "held", 24, seed=1)
    score = snippet_scorer(held, truth, toy_model().config)
    _, result = run(toy, tmp_path / "run", LEARN, select="last")
    before, after = score(toy_model()), score(load_checkpoint(result.checkpoint))
    assert before < 0.7
    assert after > 0.85


def test_the_log_and_the_files(whole: Path) -> None:
    rows = rows_of(whole)
    assert [(row["epoch"], row["batch"]) for row in rows] == [(str(epoch), "3") for epoch in range(1, 5)]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    assert float(rows[-1]["loss_bce"]) < float(rows[0]["loss_bce"])
    assert [row["rows"] for row in rows] == ["48", "96", "144", "192"]
    assert float(rows[-1]["best"]) == max(float(row["score"]) for row in rows)
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "best.safetensors",
        "features",
        "features-validation",
        "last.safetensors",
        "log.csv",
        "run.json",
        "state.pt",
    }


def same_weights(one: Path, other: Path) -> bool:
    files = ("best.safetensors", "last.safetensors")
    pairs = [(load_checkpoint(one / name).state_dict(), load_checkpoint(other / name).state_dict()) for name in files]
    return all(torch.equal(first[key], second[key]) for first, second in pairs for key in first)


def stop_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("stops", "save_seconds"), [((2, 5, 11), -1.0), ((8,), 1e9)])
def test_an_interrupted_run_ends_with_the_same_weights(
    toy: FeatureList, whole: Path, tmp_path: Path, stops: tuple[int, ...], save_seconds: float
) -> None:
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(toy, tmp_path / "run", progress=stop_after(stop), save_seconds=save_seconds)
    said: list[str] = []
    _, result = run(toy, tmp_path / "run", say=said.append)
    assert any(line.startswith("going on at epoch") for line in said)
    assert same_weights(tmp_path / "run", whole)
    kept = ("epoch", "batch", "rows", "lr", "loss_bce", "loss_nce", "loss_cts", "score", "best")
    assert [[row[name] for name in kept] for row in rows_of(tmp_path / "run")] == [
        [row[name] for name in kept] for row in rows_of(whole)
    ]
    assert run(toy, tmp_path / "run")[1] == result  # done already


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.vadclip.test_train import run, toy_set

torch.set_num_threads(1)  # the order of sums depends on it

def kill(done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)

run(toy_set(Path(sys.argv[1]), 60, seed=0)[0], Path(sys.argv[2]), progress=kill, save_seconds=-1.0)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_goes_on_to_the_same_weights(toy: FeatureList, whole: Path, tmp_path: Path) -> None:
    folder = toy.paths[0].parent
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "run" / "last.safetensors").exists()
    run(toy, tmp_path / "run")
    assert same_weights(tmp_path / "run", whole)


def test_only_the_head_changes(whole: Path) -> None:
    before, after = toy_model().state_dict(), load_checkpoint(whole / "last.safetensors").state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any(key.startswith("clipmodel.") for key in changed)
    assert {"text_prompt_embeddings.weight", "gc1.weight", "classifier.bias", "mlp1.c_fc.weight"} <= changed


def test_selection_on_the_test_list_says_so(toy: FeatureList, tmp_path: Path) -> None:
    said: list[str] = []
    scores = iter([0.5, 0.9, 0.7])
    recipe = replace(RECIPE, epochs=3, evaluate_every=0)
    _, result = run(toy, tmp_path / "run", recipe, select="test", scorer=lambda _: next(scores), say=said.append)
    assert any("selected on the TEST list" in line for line in said)
    assert (result.score, result.epoch, result.score_name) == (0.9, 1, "test AUC (frames)")
    assert [row["score"] for row in rows_of(tmp_path / "run")] == ["0.5", "0.9", "0.7"]


def test_roll_back_goes_on_from_the_best_weights(toy: FeatureList, tmp_path: Path) -> None:
    ends = {}
    for roll_back in (True, False):
        scores = iter([0.9, 0.1])
        recipe = replace(RECIPE, epochs=2, evaluate_every=0, roll_back=roll_back)
        out = tmp_path / str(roll_back)
        run(toy, out, recipe, select="test", scorer=lambda _, scores=scores: next(scores))
        best, last = (load_checkpoint(out / name).state_dict() for name in ("best.safetensors", "last.safetensors"))
        ends[roll_back] = all(torch.equal(best[key], last[key]) for key in best)
    assert ends == {True: True, False: False}


def test_all_is_trained_on_without_selection(toy: FeatureList, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, balanced=False, batch=24, contrast="sum-positive", one_label=True)
    _, result = run(toy, tmp_path / "run", recipe, select="last", cache=False, precision="mixed")
    (row,) = rows_of(tmp_path / "run")
    assert (row["rows"], row["batch"], row["score"]) == ("60", "3", "")
    assert result == Result(None, 0, tmp_path / "run" / "best.safetensors", result.doubts)
    assert "the model learnt nothing: its loss at the end" in result.doubts[0]  # after three steps
    assert not (tmp_path / "run" / "features").exists()


def test_a_model_may_be_trained_with_its_padding_masked(toy: FeatureList, tmp_path: Path) -> None:
    """The mask is in the configuration, so it is in the checkpoint; what the padding holds then changes nothing."""
    classes = {"normal": "normal", "fire": "fire", "fight": "fight"}
    preset = Preset("toy", 8, 1, 1, classes, "confidence", mirrored=False)
    models = {
        masked: new_model(preset, toy_model().clipmodel, 0, mask_padding=masked).eval() for masked in (False, True)
    }
    features = torch.randn(1, models[True].config.positions, WIDTH)
    changed = features.clone()
    changed[:, 20:] = torch.randn_like(changed[:, 20:])
    for masked, model in models.items():
        with torch.no_grad():
            before, after = (model.video_features(x, torch.tensor([20]))[:, :20] for x in (features, changed))
        assert torch.equal(before, after) == masked
    result = train(models[True], toy, tmp_path / "run", replace(RECIPE, epochs=1), select="last", say=quiet)
    assert load_checkpoint(result.checkpoint).config.mask_padding


def test_another_run_is_not_gone_on_with(toy: FeatureList, whole: Path) -> None:
    before = (whole / "state.pt").read_bytes()
    for changed, said in (
        (lambda: run(toy, whole, replace(RECIPE, lr=2e-3)), "(lr was 0.001 and is now 0.002)"),
        (
            lambda: run(toy, whole, RECIPE.of_epochs(8), select="last"),
            "(epochs was 4 and is now 8; selection was validation and is now last; validation was 0.1 and is now none)",
        ),
        (lambda: run(toy.subset(range(50)), whole), "(training list files was 60 and is now 50)"),
        (lambda: train(toy_model(seed=1), toy, whole, RECIPE, say=quiet), "(the initial model is another one)"),
    ):
        with pytest.raises(UserError) as error:
            changed()
        assert f"holds a finished run with other settings {said}" in str(error.value)
        assert str(error.value).endswith("give the same to go on, or another folder")
    assert (whole / "state.pt").read_bytes() == before


def test_a_run_does_not_go_on_over_other_features(toy: FeatureList, tmp_path: Path) -> None:
    files = [tmp_path / "features" / path.name for path in toy.paths]
    files[0].parent.mkdir()
    for file, path in zip(files, toy.paths, strict=True):
        file.write_bytes(path.read_bytes())
    listed, recipe = replace(toy, paths=tuple(files)), replace(RECIPE, epochs=1)
    run(listed, tmp_path / "run", recipe)
    files[5].touch()
    run(listed, tmp_path / "run", recipe)  # the same numbers at another time
    np.save(files[5], np.load(files[5]) + np.float16(0.5))
    for cache in (True, False):
        with pytest.raises(UserError, match=r"settings \(the content of the feature files is another one\)"):
            run(listed, tmp_path / "run", recipe, cache=cache)


def test_every_batch_is_logged_once(toy: FeatureList, tmp_path: Path) -> None:
    """An epoch has 6 batches: those after the last evaluation have a row of their own."""
    recipe = replace(RECIPE, epochs=2, batch=4, evaluate_every=4)
    run(toy, tmp_path / "run", recipe)
    rows = rows_of(tmp_path / "run")
    assert [(row["batch"], row["score"] == "") for row in rows] == [("5", False), ("6", True)] * 2
    run(toy, tmp_path / "whole", replace(recipe, evaluate_every=0))
    first, second, whole = (float(row["loss_bce"]) for row in (*rows[:2], rows_of(tmp_path / "whole")[0]))
    assert (5 * first + second) / 6 == pytest.approx(whole, abs=1e-5)


def test_a_damaged_state_is_said(toy: FeatureList, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"state\.pt is damaged .*: remove it to begin again"):
        run(toy, tmp_path)


def test_a_pipe_in_the_place_of_a_state_is_not_waited_for(toy: FeatureList, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: it is not a regular file: remove it to begin again"):
        run(toy, tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["weights"], None, "weights is missing"),
        (["format"], 2, "format is 2, not a whole number from 1 to 1"),
        (["run"], "[" * 100, "it nests deeper than"),
        (["run"], "7", "the whole is 7, not an object"),
        (["state", "epoch"], "one", "state.epoch is 'one', not a whole number"),
        (["state", "epoch"], None, "state.epoch is missing"),
        (["state", "sums"], [0.0], "state.sums is a list of 1, not a list of 4"),
        (["state", "log"], [[1, 2]], "state.log[0] is a list of 2, not a list of 10"),
        (["state", "log"], [[1, 2, 3, "x", 0.0, 0.0, 0.0, "", "", 0.0]], "state.log[0].lr is 'x', not a finite number"),
        (["weights"], {"a": 1}, "weights.a is 1, not a tensor"),
        (["weights"], {"a": torch.zeros(1)}, "state.pt is damaged (KeyError)"),
        (["best"], {"a": torch.zeros(1)}, "state.pt is damaged (KeyError)"),
        (["best"], {}, "it has a best score without its weights"),
        (["optimizer"], {}, "state.pt is damaged (KeyError)"),
        (["optimizer"], [], "optimizer is a list of 0, not an object"),
    ],
)
def test_what_a_state_lacks_is_said(
    toy: FeatureList, whole: Path, tmp_path: Path, keys: list[str], value: Any, said: str
) -> None:
    content = torch.load(whole / "state.pt", weights_only=True)
    place = content if len(keys) == 1 else content[keys[0]]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(UserError) as error:
        run(toy, tmp_path)
    assert said in str(error.value) and str(error.value).endswith("remove it to begin again")


def test_wrong_input_is_said_before_training(toy: FeatureList, tmp_path: Path) -> None:
    for select in ("last", "validation"):
        with pytest.raises(UserError, match="toy has no abnormal video to train on, all 30 are normal"):
            run(toy.subset(np.flatnonzero(toy.normal)), tmp_path, select=select)
        with pytest.raises(UserError, match="toy has no normal video to train on, all 30 are abnormal"):
            run(toy.subset(np.flatnonzero(~toy.normal)), tmp_path, select=select)
    with pytest.raises(UserError, match="toy has 14 classes, but the model has 3"):
        run(replace(toy, targets=np.zeros((60, 14), dtype=np.float32)), tmp_path)
    with pytest.raises(UserError, match="selection on the test list needs a test list"):
        run(toy, tmp_path, select="test")
    gone = replace(toy, paths=(*toy.paths[:-1], tmp_path / "gone.npy"))
    with pytest.raises(UserError, match=r"1 of 60 feature files are missing, the first is .*gone\.npy"):
        run(gone, tmp_path)
    with pytest.raises(UserError, match="has 12 snippets, but its ground truth has 3"):
        path = tmp_path / "t.npy"
        np.save(path, np.ones((12, WIDTH), dtype=np.float32))
        listed = FeatureList("one", (path,), ("Normal",), np.ones((1, 1), np.float32))
        snippet_scorer(listed, [np.zeros(3, dtype=bool)], toy_model().config)
    assert not (tmp_path / "state.pt").exists()


def test_recipes() -> None:
    ucf, xd = get_recipe("reference", "ucf"), get_recipe("reference", "xd")
    assert [ucf.lr_at(epoch) for epoch in (0, 3, 4, 8)] == pytest.approx([2e-5, 2e-5, 2e-6, 2e-7])
    assert [xd.lr_at(epoch) for epoch in (2, 3, 6)] == pytest.approx([1e-5, 1e-6, 1e-7])
    assert (ucf.balanced, ucf.batch, xd.balanced, xd.batch) == (True, 64, False, 96)
    assert get_recipe("paper", "shop") == RECIPES["paper"]["ucf"]
    assert xd.of_epochs(20).milestones == (6, 12, 20) and ucf.of_epochs(5).milestones == (2, 4)
    # A milestone within an epoch waits for its end: never two where one was.
    assert xd.of_epochs(2).milestones == (1, 2, 2) and xd.of_epochs(2).lr_at(1) == pytest.approx(1e-6)
    assert ucf.of_epochs(1).schedule == "learning rate 2e-05 throughout"
    assert xd.schedule == "learning rate 1e-05, times 0.1 from epoch 4 and again from epoch 7"
    with pytest.raises(UserError, match="epochs is 0"):
        ucf.of_epochs(0)
    with pytest.raises(UserError, match="unknown recipe 'fast': use one of reference, paper, small"):
        get_recipe("fast")
    with pytest.raises(UserError, match="lr is 0: use a number above 0"):
        replace(ucf, lr=0)
    with pytest.raises(UserError, match="epochs is 0: use a whole number of at least 1"):
        replace(ucf, epochs=0)


def test_the_released_recipe_is_float32_on_cuda_unless_asked() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for dataset in ("ucf", "xd"):
        reference, paper = get_recipe("reference", dataset), get_recipe("paper", dataset)
        assert not is_mixed("auto", reference, cuda) and is_mixed("mixed", reference, cuda)
        assert is_mixed("auto", paper, cuda) and not is_mixed("auto", paper, cpu)
        assert not is_mixed("float32", paper, cuda)


def test_float32_on_cuda_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        find_device("cpu")
        assert torch.backends.cudnn.allow_tf32
        monkeypatch.setattr("vadclip.device.torch.empty", lambda *a, **k: None)  # there may be no GPU here
        find_device("cuda")
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_new_model_takes_its_sizes_from_the_preset_and_clip(ucf: Golden) -> None:
    clip = ucf.load().clipmodel
    model = new_model(PRESETS["xd"], clip, seed=5)
    assert (model.config.layers, model.config.window, model.config.embed_dim) == (1, 64, 64)
    assert model.config.labels == PRESETS["xd"].labels
    assert torch.equal(new_model(PRESETS["xd"], clip, seed=5).gc1.weight, model.gc1.weight)
    assert not any(value.requires_grad for value in model.clipmodel.parameters())


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_tensorboard_is_asked_for_before_anything_is_written(toy: FeatureList, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TensorBoard is not installed: pip install tensorboard"):
        run(toy, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
