from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import clips
from tests.golden import Golden
from vadclip.cli import main
from vadclip.clip import build_clip
from vadclip.extract import Encoder, ExtractOptions, _features
from vadclip.images import normalise
from vadclip.lists import load_list
from vadclip.presets import PRESETS
from vadclip.untrained import SMALL
from vadexport.build import BuildOptions, build
from vadrun import Engine, Video
from vadrun.preprocessing import TEN_CROPS, Preprocessing
from vadrun.sampling import Sampling


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    clips.write_clip(folder / "a.mp4", 16 * 3 + 4, draw=_uneven)
    clips.write_clip(folder / "b.mp4", 16 * 2, draw=_uneven)
    return folder


def _uneven(number: int, width: int, height: int) -> np.ndarray:
    """Every crop and its mirror look different."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    return np.stack([red, 255 * y / height, (red * 7 + number * 5) % 255], axis=-1).astype(np.uint8)


def run(*arguments: object) -> int:
    return main(["extract", *(str(argument) for argument in arguments)])


def test_features_are_the_runtimes(footage: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """xd's bundle runs on the centre crop, which is crop 0; ucf's on its mirror, which is crop 5."""
    assert run(footage, "--encoder", bundles["xd"], "--out", tmp_path, "--crops", 10, "--dtype", "float32") == 0
    for name, n in (("a", 3), ("b", 2)):
        files = [np.load(tmp_path / f"{name}__{index}.npy") for index in range(10)]
        assert {values.shape for values in files} == {(n, 64)}
        assert all(values.dtype == np.float32 for values in files)
        assert len({values.tobytes() for values in files}) == 10
        with Engine.load(bundles["xd"]) as engine, Video(footage / f"{name}.mp4") as video:
            images = [s.images[0] for s in video.snippets(engine.bundle.sampling, engine.bundle.preprocessing)]
            np.testing.assert_allclose(files[0], engine.encode(np.stack(images)), atol=1e-5)
            np.testing.assert_allclose(files[5], engine.encode(np.stack(images)[:, :, ::-1]), atol=1e-5)
        with Engine.load(bundles["xd"]) as engine, Video(footage / f"{name}.mp4") as video:
            corner = Preprocessing.for_size(64, crop="bottom-right")
            images = [s.images[0] for s in video.snippets(None, corner)]
            np.testing.assert_allclose(files[4], engine.encode(np.stack(images)), atol=1e-5)


def test_a_checkpoint_gives_what_its_bundle_gives(
    footage: Path, bundles: dict[str, Path], ucf: Golden, tmp_path: Path
) -> None:
    options = ("--dtype", "float32", "--sample", "mean")
    assert run(footage, "--encoder", bundles["ucf"], "--precision", "fp32", "--out", tmp_path / "bundle", *options) == 0
    assert run(footage, "--encoder", ucf.checkpoint, "--out", tmp_path / "torch", *options) == 0
    for name in ("a", "b"):
        fast, slow = (np.load(tmp_path / kind / f"{name}__0.npy") for kind in ("bundle", "torch"))
        np.testing.assert_allclose(fast, slow, atol=1e-4)


def test_features_of_the_references_pixels(
    footage: Path, bundles: dict[str, Path], ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "bundle"
    build(BuildOptions(ucf.checkpoint, reference, dataset="ucf", mirror=False, preprocessing="reference"))
    common = (footage / "a.mp4", "--precision", "fp32", "--dtype", "float32")
    # A bundle's own pixels, if nothing else is asked for.
    assert run(*common, "--encoder", reference, "--out", tmp_path / "own") == 0
    assert run(*common, "--encoder", bundles["ucf"], "--out", tmp_path / "asked", "--preprocessing", "reference") == 0
    assert run(*common, "--encoder", reference, "--out", tmp_path / "ours", "--preprocessing", "default") == 0
    own, asked, ours = (np.load(tmp_path / name / "a__0.npy") for name in ("own", "asked", "ours"))
    np.testing.assert_allclose(own, asked, atol=1e-5)
    assert np.abs(own - ours).max() > 1e-3
    made = json.loads((tmp_path / "asked" / "features.json").read_text())["preprocessing"]
    assert (made["interpolation"], made["untagged"]) == ("bilinear", "bt601-always")
    # The two are never mixed.
    assert run(*common, "--encoder", bundles["ucf"], "--out", tmp_path / "asked") == 2
    assert "holds features made with preprocessing" in capsys.readouterr().err
    assert run(*common, "--encoder", reference, "--out", tmp_path / "x", "--preprocessing", "cv2") == 2
    assert "no preprocessing 'cv2'" in capsys.readouterr().err


def test_another_stream_of_a_video_can_be_chosen(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clips.write_streams(tmp_path / "two.mp4", (200, 30, 30), (30, 30, 200))
    assert run(path, "--encoder", bundles["xd"], "--out", tmp_path / "first") == 0
    assert "two.mp4: holds 2 video streams, and stream 0" in capsys.readouterr().err
    assert run(path, "--encoder", bundles["xd"], "--out", tmp_path / "second", "--stream", 1) == 0
    first, second = (np.load(tmp_path / name / "two__0.npy") for name in ("first", "second"))
    assert not np.allclose(first, second, atol=0.01)
    # A folder never holds features of two streams.
    assert run(path, "--encoder", bundles["xd"], "--out", tmp_path / "second") == 2
    assert "holds features made with stream 1, not null" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch", "crops", "sample", "calls"),
    [(2, 1, "middle", [2, 1]), (32, 1, "middle", [3]), (16, 10, "middle", [16, 4, 10]), (32, 1, "mean", [32, 16])],
)
def test_batches_hold_images_of_several_snippets(
    footage: Path, batch: int, crops: int, sample: str, calls: list[int]
) -> None:
    """However they are cut, a snippet's feature is the mean of its own images."""
    given: list[int] = []

    def encode(frames: np.ndarray) -> np.ndarray:
        given.append(len(frames))
        return frames.reshape(len(frames), -1)[:, ::97].astype(np.float32)

    sampling = Sampling(pick=sample)
    encoder = Encoder(encode, 64, "none", batch)
    preprocessing = Preprocessing.for_size(64)
    features, _, _ = _features(
        footage / "a.mp4", encoder, ExtractOptions(crops, sampling, "float32"), preprocessing, lambda *_: None
    )
    assert given == calls
    with Video(footage / "a.mp4") as video:
        for number, snippet in enumerate(video.snippets(sampling, preprocessing, TEN_CROPS[:crops])):
            for crop in range(crops):
                wanted = snippet.images[:, crop].reshape(len(snippet.images), -1)[:, ::97].astype(np.float32).mean(0)
                np.testing.assert_allclose(features[crop, number], wanted, rtol=1e-6)


def test_half_precision_files_by_default(footage: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    assert run(footage / "a.mp4", "--encoder", bundles["ucf"], "--out", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a__0.npy", "features.json"]
    assert np.load(tmp_path / "a__0.npy").dtype == np.float16


def test_it_goes_on_where_it_stopped(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (footage, "--encoder", bundles["ucf"], "--out", tmp_path, "--crops", 10)
    assert run(*command) == 0
    kept = (tmp_path / "a__3.npy").stat().st_mtime_ns
    good = (tmp_path / "b__7.npy").read_bytes()
    wide = good.replace(b"(2, 64)", b"(9, 64)")
    for broken in (b"half a file", b"", good[:40], good[:-8], wide):
        (tmp_path / "b__7.npy").write_bytes(broken)
        capsys.readouterr()
        assert run(*command) == 0
        assert "1 videos written, 1 were there already" in capsys.readouterr().out
        assert (tmp_path / "a__3.npy").stat().st_mtime_ns == kept
        assert (tmp_path / "b__7.npy").read_bytes() == good


def test_a_broken_video_is_told_at_the_end(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    assert run(bad, footage / "a.mp4", "--encoder", bundles["ucf"], "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "bad.mp4 cannot be opened as a video" in error and "1 of 2 videos have no features" in error
    assert (tmp_path / "out" / "a__0.npy").exists()
    assert run(bad, "--encoder", bundles["ucf"], "--out", tmp_path / "out2") == 2


def test_a_fault_of_ours_costs_only_its_own_video(
    footage: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def features(path: Path, *rest: Any) -> Any:
        if path.name == "a.mp4":
            raise ZeroDivisionError("who would have thought")
        return _features(path, *rest)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vadclip.extract._features", features)
    assert run(footage, "--encoder", bundles["ucf"], "--out", tmp_path / "out") == 70
    error = capsys.readouterr().err
    assert "a.mp4: internal error: ZeroDivisionError" in error and "crash.txt" in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b__0.npy", "features.json"}
    monkeypatch.setattr("vadclip.extract._features", _features)
    assert run(footage, "--encoder", bundles["ucf"], "--out", tmp_path / "out") == 0


def test_damage_is_told_again(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of half a video are there to be skipped, but nobody should take them for whole."""
    whole, video = tmp_path / "whole.mkv", tmp_path / "half.mkv"
    clips.write_clip(whole, 16 * 6, draw=_uneven)
    video.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    command = (video, "--encoder", bundles["ucf"], "--out", tmp_path / "out")
    said = []
    for _ in range(2):
        assert run(*command) == 1
        said.append(capsys.readouterr())
    assert "half.mkv is damaged" in said[0].err and said[0].err.splitlines()[-1] == said[1].err.splitlines()[-1]
    assert "1 were there already" in said[1].out
    video.write_bytes(whole.read_bytes())
    assert run(*command) == 0
    assert np.load(tmp_path / "out" / "half__0.npy").shape == (6, 64)
    assert not (tmp_path / "out" / "damage.json").exists()


def test_features_of_half_a_video_never_pass_for_whole(
    footage: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the disk is full, a second run either makes the features again or says that the video is damaged."""
    whole, video = tmp_path / "whole.mkv", tmp_path / "half.mkv"
    clips.write_clip(whole, 16 * 6, draw=_uneven)
    video.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    replaced = Path.replace
    for allowed in range(4):
        out = tmp_path / f"out{allowed}"
        left = [allowed]

        def full(self: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
            return replaced(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            assert run(video, "--encoder", bundles["ucf"], "--out", out) == (1 if allowed == 3 else 2)
        assert allowed == 3 or "No space left" in capsys.readouterr().err
        assert run(video, "--encoder", bundles["ucf"], "--out", out) == 1
        assert "half.mkv is damaged" in capsys.readouterr().err
        assert not [path for path in out.iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize("change", [("--sample", "first"), ("--dtype", "float32"), ("--snippet-seconds", 0.5)])
def test_two_kinds_of_features_never_mix(
    footage: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[object, ...],
) -> None:
    assert run(footage, "--encoder", bundles["ucf"], "--out", tmp_path) == 0
    assert run(footage, "--encoder", bundles["ucf"], "--out", tmp_path, *change) == 2
    assert "holds features made with" in capsys.readouterr().err
    assert run(footage, "--encoder", bundles["xd"], "--out", tmp_path) == 2
    assert "made with encoder" in capsys.readouterr().err


def test_features_of_unknown_making_are_left_alone(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x__0.npy", np.zeros((3, 64)))
    assert run(footage, "--encoder", bundles["ucf"], "--out", tmp_path) == 2
    assert "do not say how they were made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x__0.npy"]


def test_inputs_that_cannot_be_used(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.mkv").write_bytes((footage / "a.mp4").read_bytes())
    cases = [
        ((footage, other, "--encoder", bundles["ucf"]), "two videos are called 'a'"),
        ((footage, "--encoder", bundles["ucf"], "--crops", 5), "crops is 5"),
        ((footage, "--encoder", bundles["ucf"], "--dtype", "int8"), "'int8'"),
        ((footage, "--encoder", tmp_path / "nothing.pth"), "nothing.pth does not exist"),
        ((footage, "--encoder", "laion9"), "unknown CLIP weights 'laion9'"),
        ((tmp_path / "nothing.mp4", "--encoder", bundles["ucf"]), "does not exist"),
    ]
    for arguments, part in cases:
        assert run(*arguments, "--out", tmp_path / "out") == 2
        assert part in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_sidecar_tells_the_encoder(footage: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    assert run(footage / "b.mp4", "--encoder", bundles["ucf"], "--out", tmp_path, "--backend", "onnxruntime:cpu") == 0
    sidecar = json.loads((tmp_path / "features.json").read_text())
    manifest = json.loads((bundles["ucf"] / "manifest.json").read_text())
    graph = manifest["files"]["encoder.fp32.onnx"]
    assert sidecar["encoder"] == f"encoder.fp32.onnx {graph['sha256']} fp32"
    assert sidecar["sampling"]["pick"] == "middle" and sidecar["preprocessing"]["resize"] == [97, 73]


def test_a_list_of_features_takes_no_other_files_place(
    footage: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.mp4").write_bytes((footage / "a.mp4").read_bytes())
    listed, other = tmp_path / "train.csv", tmp_path / "out" / "train.csv"
    listed.write_text("path,label\na.mp4,Normal\n")
    other.parent.mkdir()
    other.write_text("path,label\nb.mp4,Normal\n")
    command = (listed, "--encoder", bundles["ucf"], "--out")
    with monkeypatch.context() as patch:
        patch.setattr("vadclip.extract.open_encoder", lambda *_, **__: pytest.fail("too late"))
        assert run(*command, tmp_path) == 2
        assert "would take the place of" in capsys.readouterr().err
        assert run(*command, other.parent) == 2
        assert "in the way of the list of features" in capsys.readouterr().err
    assert listed.read_text() == "path,label\na.mp4,Normal\n" and other.read_text() == "path,label\nb.mp4,Normal\n"
    assert [run(*command, tmp_path / "new") for _ in range(2)] == [0, 0]  # its own list is written again


def test_normalisation_is_clips() -> None:
    image = normalise(np.full((1, 2, 2, 3), 255, np.uint8))
    assert torch.allclose(image[0, :, 0, 0], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-4)


def test_a_list_of_videos_gives_a_list_of_features(
    footage: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, out = tmp_path / "train.csv", tmp_path / "out"
    (tmp_path / "bad.mp4").write_text("text")
    listed.write_text(f"path,label\n/elsewhere/a.mp4,Normal\n{tmp_path}/bad.mp4,Abuse\nb.mp4,Abuse-Arson\n")
    assert run(listed, "--encoder", bundles["ucf"], "--out", out) == 2
    assert "3 of 3 videos are missing" not in (error := capsys.readouterr().err) and "2 of 3 videos" in error
    assert not out.exists()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((footage / name).read_bytes())
    assert run(listed, "--root", tmp_path, "--encoder", bundles["ucf"], "--out", out, "--crops", 10) == 2
    assert f"list of 2 of 3 videos in {out / 'train.csv'}" in capsys.readouterr().out
    found = load_list(out / "train.csv", PRESETS["ucf"])
    assert len(found) == 20 and found.crops[:10] == tuple(range(10)) and all(path.is_file() for path in found.paths)
    assert found.labels[::10] == ("Normal", "Abuse-Arson")


def test_the_kind_of_a_clip_is_asked_for_and_kept(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights alone do not tell it; features of one kind are not mixed with those of another."""
    clip = build_clip(64, replace(SMALL, activation="gelu"))
    torch.save(clip.state_dict(), tmp_path / "clip.bin")
    model = {"embed_dim": 64, "vision_cfg": {"image_size": 64, "width": 128, "layers": 2}}
    model["text_cfg"] = {"width": 64, "heads": 1, "layers": 2}
    (tmp_path / "laion.json").write_text(json.dumps(model), encoding="utf-8")
    source = [footage, "--encoder", tmp_path / "clip.bin", "--out", tmp_path / "out"]
    assert run(*source) == 2
    assert "activation and heads: say which it is with --clip-model, openai (Op" in capsys.readouterr().err
    assert run(*source, "--clip-model", tmp_path / "laion.json") == 0
    sidecar = json.loads((tmp_path / "out" / "features.json").read_text(encoding="utf-8"))
    assert sidecar["encoder"].startswith("clip.bin ") and sidecar["encoder"].endswith(" fp32,gelu")
    assert run(*source, "--clip-model", "openai") == 2
    assert "holds features made with encoder" in capsys.readouterr().err
    assert run(*source, "--clip-model", "ViT-B-16") == 2
    assert "its CLIP's image_size is 64, but open_clip's ViT-B-16 has 224" in capsys.readouterr().err
    assert run(footage, "--encoder", "openai", "--out", tmp_path / "out", "--clip-model", "openai") == 2
    assert "leave --clip-model out" in capsys.readouterr().err
    # Beside the file under open_clip's name, the configuration is found.
    (tmp_path / "laion.json").rename(tmp_path / "open_clip_config.json")
    assert run(*source) == 0
