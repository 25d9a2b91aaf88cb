import io
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden import Golden
from vadclip import VadCLIP, checkpoint_sha256, get_preset, load_checkpoint, save_checkpoint
from vadclip.checkpoint import load_clip, save_clip
from vadclip.clip import build_clip
from vadrun.errors import UserError

Weights = dict[str, Tensor]


def refused(path: Path, **options: Any) -> str:
    """The one sentence that a file is refused with, which names it."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **{"dataset": "ucf", **options})
    sentence = str(error.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence


def save(weights: object, folder: Path, name: str = "model.pth") -> Path:
    torch.save(weights, folder / name)
    return folder / name


def same(model: VadCLIP, weights: Weights) -> bool:
    return all(torch.equal(value, weights[key].float()) for key, value in model.state_dict().items())


# --- what is read


def test_authors_file(golden: Golden) -> None:
    model = load_checkpoint(str(golden.checkpoint), dataset=golden.dataset)
    preset, config = get_preset(golden.dataset), model.config
    assert (config.labels, config.window, config.heads) == (preset.labels, preset.window, preset.heads)
    assert (config.anomaly, config.layers, config.mask_padding) == (preset.anomaly, preset.layers, False)
    assert (config.embed_dim, config.positions) == (64, 256)
    clip = config.clip
    assert (clip.image_size, clip.patch, clip.vision_width, clip.vision_layers, clip.vision_heads) == (64, 16, 64, 2, 1)
    assert (clip.text_width, clip.text_layers, clip.text_heads, clip.context, clip.vocab) == (64, 2, 1, 77, 49408)
    assert not model.training and same(model, golden.weights)
    assert not any(value.requires_grad for value in model.clipmodel.parameters())
    assert model.linear.weight.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"epoch": 3, "model_state_dict": weights, "ap": 0.8},
        lambda weights: {"state_dict": weights},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}},
    ],
)
def test_wrapped_state_dicts(xd: Golden, tmp_path: Path, wrap: Callable[[Weights], object]) -> None:
    assert same(load_checkpoint(save(wrap(xd.weights), tmp_path), dataset="xd"), xd.weights)


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_training_checkpoint_with_a_numpy_score(xd: Golden, tmp_path: Path, module: bytes) -> None:
    path = save({"model_state_dict": xd.weights, "ap": np.float64(0.8)}, tmp_path)
    written = tmp_path / "written.pth"  # as under NumPy 1 and 2
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data = re.sub(rb"numpy\._?core\.multiarray", module, data)
                assert module in data
            new.writestr(name, data)
    assert same(load_checkpoint(written, dataset="xd"), xd.weights)


def test_file_of_torch_before_1_6(xd: Golden, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(xd.weights, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path, dataset="xd"), xd.weights)


def test_half_precision_becomes_float32(xd: Golden, tmp_path: Path) -> None:
    half = {key: value.half() if key.startswith("clipmodel.") else value for key, value in xd.weights.items()}
    model = load_checkpoint(save(half, tmp_path), dataset="xd")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert same(model, half)


def test_safetensors_without_our_configuration(xd: Golden, tmp_path: Path) -> None:
    save_file(xd.weights, tmp_path / "plain.safetensors")
    assert same(load_checkpoint(tmp_path / "plain.safetensors", dataset="xd"), xd.weights)
    assert "name the dataset" in refused(tmp_path / "plain.safetensors", dataset=None)


def test_settings_have_precedence_over_the_preset(xd: Golden) -> None:
    config = xd.load(labels=["normal", "fire"], window=16, heads=2, anomaly="confidence", mask_padding=True).config
    assert (config.labels, config.window, config.heads) == (("normal", "fire"), 16, 2)
    assert (config.anomaly, config.mask_padding) == ("confidence", True)


def test_settings_without_a_preset(xd: Golden) -> None:
    config = load_checkpoint(xd.checkpoint, labels=("normal", "fire"), window=16).config
    assert (config.labels, config.window, config.heads, config.anomaly) == (("normal", "fire"), 16, 1, "confidence")
    for options in ({}, {"window": 16}, {"labels": ("normal", "fire")}):
        assert "name the dataset (ucf or xd), or give both" in refused(xd.checkpoint, dataset=None, **options)


def test_preset_of_ones_own(xd: Golden) -> None:
    preset = replace(get_preset("xd"), name="site", window=32, classes={"n": "normal", "f": "fire"})
    config = load_checkpoint(xd.checkpoint, dataset=preset).config
    assert (config.window, config.labels) == (32, ("normal", "fire"))


def test_preset_with_other_layers(ucf: Golden, xd: Golden) -> None:
    sentence = refused(xd.checkpoint, dataset="ucf")
    assert "has 1 temporal layer(s), but the dataset 'ucf' expects 2: it fits the dataset 'xd'" in sentence
    assert "expects 1: it fits the dataset 'ucf'" in refused(ucf.checkpoint, dataset="xd")
    # Who gives the window knows what they do.
    assert load_checkpoint(xd.checkpoint, dataset="ucf", window=8).config.layers == 1


# --- CLIP from elsewhere


def test_file_without_clip(xd: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {key: value for key, value in xd.weights.items() if not key.startswith("clipmodel.")}
    path = save(head, tmp_path)
    assert "holds no CLIP (no clipmodel.* weights): name pretrained CLIP weights" in refused(path, dataset="xd")

    clip = build_clip(64, xd.load().config.clip)
    inner = {key.removeprefix("clipmodel."): value for key, value in xd.weights.items() if key not in head}
    clip.load_state_dict(inner)
    monkeypatch.setattr("vadclip.checkpoint.pretrained", {"openai": clip}.__getitem__)
    model = load_checkpoint(path, dataset="xd", clip="openai")
    assert same(model, xd.weights)
    assert not any(value.requires_grad for value in model.clipmodel.parameters())


def test_unknown_pretrained_clip(xd: Golden, tmp_path: Path) -> None:
    path = save({key: value for key, value in xd.weights.items() if not key.startswith("clipmodel.")}, tmp_path)
    with pytest.raises(UserError, match=r"^unknown CLIP weights 'opena' for ViT-B-16-quickgelu: use one of openai"):
        load_checkpoint(path, dataset="xd", clip="opena")


# --- our own format


def test_safetensors_round_trip_is_exact(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = golden.load(labels=["normal", "Überfall"], mask_padding=True, anomaly="alignment")
    save_checkpoint(model, path)
    again = load_checkpoint(path)
    assert again.config == model.config and same(again, golden.weights)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    text = again.encode_text(again.config.labels)
    for got, expected in zip(
        again.score(golden["features_37"], text), model.score(golden["features_37"], text), strict=True
    ):
        assert torch.equal(got, expected)


def test_compact_file(ucf: Golden, tmp_path: Path) -> None:
    """Half precision, and no rows of words that are zero; how its features were made is kept."""
    model, path = ucf.load(), tmp_path / "model.safetensors"
    with torch.no_grad():
        embedding = model.clipmodel.token_embedding.weight
        kept = torch.zeros(len(embedding), dtype=torch.bool)
        kept[[5, 320, 49406, 49407]] = True
        embedding[~kept] = 0.0
    model.feature_settings = {"encoder": "e", "sampling": {"frames": 16}}
    save_checkpoint(model, path, compact=True)
    assert path.stat().st_size < sum(value.numel() for value in model.state_dict().values()) / 3
    again = load_checkpoint(path)
    assert again.feature_settings == model.feature_settings and again.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float()), key


def test_compact_file_that_is_damaged(ucf: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(ucf.load(), path, compact=True)
    with safe_open(path, "pt") as stream:
        weights, metadata = {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata()  # noqa: SIM118
    for key, value, expected in (
        ("clipmodel.token_embedding.weight", "0 1", "token embeddings do not fit"),
        ("clipmodel.token_embedding.weight", "0 x", "token embeddings do not fit"),
        ("features", "[1]", "how its features were made does not read"),
    ):
        save_file(weights, path, metadata={**metadata, key: value})
        assert expected in refused(path, dataset=None)


def test_clip_alone(xd: Golden, tmp_path: Path) -> None:
    """Out of a VadCLIP checkpoint, or a file of open_clip's weights."""
    clip = load_clip(xd.checkpoint)
    save_clip(clip, tmp_path / "clip.safetensors")
    again = load_clip(tmp_path / "clip.safetensors").state_dict()
    assert list(again) == list(clip.state_dict())
    assert all(torch.equal(again[key], value) for key, value in clip.state_dict().items())
    assert "is not a VadCLIP checkpoint" in refused(tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="is not a VadCLIP checkpoint: it has no"):
        load_clip(save({"a": torch.zeros(1)}, tmp_path))


def test_saved_settings_can_be_changed_but_the_mask_stays(xd: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(xd.load(mask_padding=True), path)
    config = load_checkpoint(path, labels=["normal", "fire"], window=16).config
    assert (config.labels, config.window, config.mask_padding) == (("normal", "fire"), 16, True)
    assert config.anomaly == "alignment"


def test_saved_settings_win_over_a_dataset(xd: Golden, tmp_path: Path) -> None:
    """A data set's file of classes says how to train, and must not change what was trained."""
    path = tmp_path / "model.safetensors"
    model = xd.load(window=16, anomaly="confidence")
    model.mirrored = True
    save_checkpoint(model, path)
    again = load_checkpoint(path, dataset="xd")
    assert again.config == model.config and again.mirrored is True
    assert load_checkpoint(path, dataset="xd", window=32, anomaly="alignment").config.window == 32
    assert "holds a model of the labels normal, fighting" in refused(path, dataset="ucf")
    assert xd.load().mirrored is None


def test_saved_file_is_readable_as_the_users_other_files(xd: Golden, tmp_path: Path) -> None:
    save_checkpoint(xd.load(), tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model.safetensors", "other")}
    assert len(modes) == 1


def test_failed_save_leaves_the_old_file(xd: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("old", encoding="utf-8")

    def full(weights: Weights, name: Path, metadata: dict[str, str]) -> None:
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vadclip.weights.save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        save_checkpoint(xd.load(), path)
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == [path.name]


def test_save_into_no_folder(xd: Golden, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.model\.safetensors cannot be written .*name a file in a writable"):
        save_checkpoint(xd.load(), tmp_path / "none" / "model.safetensors")


def test_configuration_that_does_not_fit(xd: Golden, tmp_path: Path) -> None:
    model = xd.load()
    path = tmp_path / "model.safetensors"
    model.config = replace(model.config, layers=3)
    save_checkpoint(model, path)
    assert "its weights and its configuration say different sizes" in refused(path, dataset=None)
    save_file(model.state_dict(), path, metadata={"format": "vadclip", "config": "{"})
    assert "the model configuration: it is not JSON" in refused(path, dataset=None)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    assert checkpoint_sha256(path) == sha256(b"weights").hexdigest()
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        checkpoint_sha256(tmp_path / "none.pth")


# --- files that are no checkpoint


class Code:
    """Would leave a trace if it were ever unpickled."""

    trace = ""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.trace),)


@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
def test_pickle_with_code_is_refused_unread(tmp_path: Path, write: str) -> None:
    code = Code()
    code.trace = str(tmp_path / "trace")
    path = tmp_path / "model.pth"
    if write == "pickle":
        path.write_bytes(pickle.dumps({"weight": code}))
    else:
        torch.save({"weight": code}, path, _use_new_zipfile_serialization=write == "zip")
    assert "refused unread" in refused(path)
    assert not Path(code.trace).exists()


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    sentence = refused(save(nn.Linear(2, 2), tmp_path))
    assert "it names torch.nn.modules.linear.Linear) and was refused unread: save its state dict" in sentence


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist: name a checkpoint" in refused(tmp_path / "none.pth")
    assert "is not a file: name a checkpoint" in refused(tmp_path)


def zip_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_pkl", ".pkl"), data)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.pth", b"", "is not a checkpoint: name a .pth"),
        ("model.pth", b"<html>404: not found</html>", "is not a checkpoint: name a .pth"),
        ("model.pth", bytes(range(100)), "is not a checkpoint: name a .pth"),
        ("model.safetensors", b"version https://git-lfs", "is not a checkpoint: name a .pth"),
        ("model.safetensors", b"\x08" + bytes(7) + b"{not json", "is damaged or no .safetensors file"),
        ("model.pth", zip_of(readme=b"hello"), "is a zip archive without weights"),
        ("model.pth", zip_of(constants_pkl=b"", data_pkl=b""), "is damaged"),
        ("model.pth", zip_of(data_pkl=b""), "is damaged (RuntimeError): get it again"),
        ("model.pth", b"PK\x03\x04 cut short", "is damaged or incomplete"),
        ("model.pth", b"\x80\x02", "is damaged (EOFError): get it again"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refused(path)


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_file_that_was_cut_short(xd: Golden, tmp_path: Path, kept: float) -> None:
    whole = xd.checkpoint.read_bytes()
    path = tmp_path / "model.pth"
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "is damaged" in refused(path)
    save_checkpoint(xd.load(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "is damaged" in refused(path)


# --- state dicts that do not fit


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ([1, 2], "holds no state dict (list)"),
        ({}, "holds no state dict (dict)"),
        (torch.zeros(2), "holds no state dict (Tensor)"),
        ({"epoch": 3, "weights": {}}, "its entry 'epoch' is no weight"),
        ({"counts": torch.zeros(2, dtype=torch.int64)}, "its entry 'counts' is no weight"),
        (
            {"fc.weight": torch.zeros(2, 2)},
            "it has no 'frame_position_embeddings.weight', 'text_prompt_embeddings.weight',"
            " 'temporal.resblocks.0.attn.in_proj_weight' and 3 more",
        ),
    ],
)
def test_other_contents(tmp_path: Path, loaded: object, expected: str) -> None:
    assert expected in refused(save(loaded, tmp_path))


def drop(*keys: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key not in keys}


def put(key: str, value: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, key: value}


def edit(key: str, value: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        changed = weights[key].clone()
        changed.view(-1)[-1] = value
        return {**weights, key: changed}

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop("mlp1.c_fc.bias"), "is not a whole VadCLIP checkpoint: it has no 'mlp1.c_fc.bias'"),
        (drop("clipmodel.visual.ln_post.bias"), "it has no 'clipmodel.visual.ln_post.bias'"),
        (drop("clipmodel.visual.proj"), "'visual.proj' is missing: only vision transformers"),
        (put("gate.weight", torch.zeros(2)), "is not a VadCLIP checkpoint: it also has 'gate.weight'"),
        (put("classifier.weight", torch.zeros(1, 32)), "'classifier.weight' is [1, 32], but the other weights call"),
        (put("frame_position_embeddings.weight", torch.zeros(64)), "is [64], expected 2 axes"),
        (put("frame_position_embeddings.weight", torch.zeros(256, 32)), "features of width 64, but its head takes 32"),
        (put("clipmodel.positional_embedding", torch.zeros(77)), "'positional_embedding' is [77], expected 2 axes"),
        (put("clipmodel.positional_embedding", torch.zeros(77, 60)), "text width 60 is not a multiple of 64"),
        (put("clipmodel.positional_embedding", torch.zeros(20, 64)), "leave no room for a label"),
        (put("clipmodel.token_embedding.weight", torch.zeros(100, 64)), "knows 100 tokens"),
        (put("clipmodel.visual.positional_embedding", torch.zeros(18, 64)), "do not fit each other"),
        (edit("gc3.weight", float("nan")), "NaN or infinite weights in 'gc3.weight'"),
        (edit("clipmodel.visual.proj", float("inf")), "NaN or infinite weights in 'clipmodel.visual.proj'"),
        (edit("clipmodel.logit_scale", float("-inf")), "NaN or infinite weights in 'clipmodel.logit_scale'"),
    ],
)
def test_weights_that_do_not_fit(
    xd: Golden, tmp_path: Path, change: Callable[[Weights], Weights], expected: str
) -> None:
    assert expected in refused(save(change(xd.weights), tmp_path), dataset="xd")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "shanghai"}, "unknown dataset 'shanghai': use one of ucf, xd"),
        ({"labels": "normal"}, "labels: expected a list of strings, got str"),
        ({"labels": ["normal", ""]}, "labels: label 1 is empty"),
        ({"labels": ["normal", "fire", "Fire"]}, "labels: 'Fire' repeats 'fire'"),
        ({"labels": ["normal", None]}, "labels: label 1 is null, which is not a string"),
        ({"window": 0}, "window is 0: use a whole number"),
        ({"heads": 5}, "embed_dim 64 is not a multiple of heads 5"),
        ({"anomaly": "both"}, "anomaly is 'both'"),
    ],
)
def test_settings_that_do_not_fit(xd: Golden, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        xd.load(**options)
    assert "\n" not in str(error.value)
