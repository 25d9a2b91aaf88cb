"""Training that starts from a checkpoint's weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden import Golden
from tests.vadclip.test_train import one_thread, quiet, toy_model, toy_set
from vadclip import load_checkpoint, save_checkpoint
from vadclip.cli import main
from vadclip.initial import new_model, same_clip, start_from
from vadclip.presets import Preset
from vadclip.recipes import get_recipe
from vadclip.train import train
from vadrun.errors import UserError

__all__ = ["one_thread"]  # for all tests here

SHOP = Preset("shop", 8, 2, 1, {"quiet": "normal", "theft": "a person hiding goods"}, "confidence", mirrored=False)


def test_the_head_is_the_checkpoints_and_the_classes_are_ones_own(ucf: Golden) -> None:
    """An authors' file, whose classes, window and branch it does not say."""
    source = ucf.load()
    model = new_model(SHOP, source.clipmodel, seed=3)
    start_from(model, ucf.checkpoint)
    weights = source.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model.config.labels == SHOP.labels and model.annotation_names == ("quiet", "theft")
    assert model.started_from is not None and model.started_from["name"] == ucf.checkpoint.name


def test_what_does_not_fit_is_said(ucf: Golden, xd: Golden, tmp_path: Path) -> None:
    clip = ucf.load().clipmodel
    with pytest.raises(UserError, match=r"has 1 temporal layer.*has 2: give classes with 'layers: 1'"):
        start_from(new_model(SHOP, clip), xd.checkpoint)
    for name, changed, said in (
        ("window", {"window": 16}, "trained with window 16, but the model to train has 8"),
        ("mask", {"mask_padding": True}, "trained with mask_padding True, but the model to train has False"),
        ("heads", {"heads": 2}, "trained with heads 2, but the model to train has 1"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(ucf.load(**changed), path)
        with pytest.raises(UserError, match=said):
            start_from(new_model(SHOP, clip), path)
    short = {key: value[:100] if "frame_position" in key else value for key, value in ucf.weights.items()}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"_embeddings.weight' is \[100, 64\], and \[256, 64\] is wanted"):
        start_from(new_model(SHOP, clip), tmp_path / "short.pth")
    more = {**ucf.weights, "gc9.weight": torch.zeros(1)}
    torch.save(more, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"it also has 'gc9\.weight'"):
        start_from(new_model(SHOP, clip), tmp_path / "more.pth")
    narrow = {key: value[..., :32] if "frame_position" in key else value for key, value in ucf.weights.items()}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(UserError, match="takes features of width 32, but those of the CLIP"):
        start_from(new_model(SHOP, clip), tmp_path / "narrow.pth")


def test_clips_are_the_same_but_for_rounding(ucf: Golden, xd: Golden) -> None:
    clip, other = ucf.load().clipmodel, ucf.load().clipmodel
    with torch.no_grad():
        for value in other.parameters():
            value.copy_(value.half().float())
    assert same_clip(clip, other)
    with torch.no_grad():
        other.text_projection.mul_(1.5)
    assert not same_clip(clip, other)
    assert not same_clip(clip, xd.load().clipmodel)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run and its checkpoint say what it started from; another start is another run."""
    listed, _ = toy_set(tmp_path / "features", 12, seed=0)
    rows = [f"{path},{label}" for path, label in zip(listed.paths, listed.labels, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    classes = {"classes": {"normal": "normal", "fire": "a fire", "fight": "fight"}, "layers": 1}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    first = new_model(replace(SHOP, layers=1), toy_model().clipmodel, seed=5)
    save_checkpoint(first, tmp_path / "first.safetensors")
    out = tmp_path / "run"
    command = ["train", "--list", tmp_path / "list.csv", "--classes", tmp_path / "classes.json", "--out", out]
    command += ["--preset", "small", "--epochs", 2, "--batch", 3, "--init"]
    begin = [str(part) for part in [*command, tmp_path / "first.safetensors"]]
    assert main(begin) in (0, 1)
    printed = capsys.readouterr().out
    assert f"starting from the weights of {tmp_path / 'first.safetensors'}" in printed
    assert "recipe small: 2 epochs of 2 steps, 4 steps in all" in printed
    told = json.loads((out / "run.json").read_text())
    assert told["started from"]["name"] == "first.safetensors" and told["selection"] == "last"
    found = load_checkpoint(out / "best.safetensors")
    assert found.started_from == told["started from"]
    assert found.annotation_names == ("normal", "fire", "fight") and found.config.labels[1] == "a fire"

    save_checkpoint(found, tmp_path / "second.safetensors")
    assert main([str(part) for part in [*command, tmp_path / "second.safetensors"]]) == 2
    said = capsys.readouterr().err
    assert "started from name was first.safetensors and is now second.safetensors" in said
    assert main(begin) in (0, 1)
    assert f"the run in {out} is finished: nothing is left to train" in capsys.readouterr().out


def test_the_small_recipe_learns_from_twenty_videos(tmp_path: Path) -> None:
    """The released one does not, and both say how it went."""
    listed, _ = toy_set(tmp_path / "features", 21, seed=0)
    doubts = {}
    for name in ("small", "reference"):
        result = train(
            toy_model(),
            listed,
            tmp_path / name,
            get_recipe(name),
            select="last" if name == "small" else "validation",
            cache=False,
            say=quiet,
        )
        doubts[name] = result.doubts
    assert doubts["small"] == ()
    assert any("learnt nothing" in sentence for sentence in doubts["reference"])
