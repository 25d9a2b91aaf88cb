from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import clips
from tests.golden import Golden
from vadclip import save_checkpoint
from vadclip.initial import new_model
from vadclip.presets import PRESETS
from vadclip.sidecar import image_settings
from vadexport import build as build_module
from vadexport.build import BuildOptions, ParityError, build
from vadexport.probe import Probe, drawn_frames
from vadrun import Bundle, Engine, UserError, Video
from vadrun.gate import GateRule
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling


def manifest(root: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((root / "manifest.json").read_text())
    return value


def test_a_bundle_of_the_authors_checkpoint(bundles: dict[str, Path], golden: Golden) -> None:
    root = bundles[golden.dataset]
    found = manifest(root)
    assert found["schema"] == 1
    assert found["model"]["labels"] == golden.config["labels"]
    assert found["model"]["window"] == golden.config["window"]
    assert found["preprocessing"]["mirror"] is (golden.dataset == "ucf")
    assert found["checkpoint"]["name"] == golden.checkpoint.name
    np.testing.assert_allclose(np.load(root / "text.npy"), golden["text_features"].numpy(), atol=1e-4)
    for name in ("encoder.fp32.onnx", "head.onnx"):
        graph = onnx.load(root / name)
        assert found["graphs"][name]["nodes"] == len(graph.graph.node)
        assert sum(found["graphs"][name]["kinds"].values()) == len(graph.graph.node)


def test_the_same_checkpoint_gives_the_same_bundle(bundles: dict[str, Path], ucf: Golden, tmp_path: Path) -> None:
    build(BuildOptions(ucf.checkpoint, tmp_path / "again", dataset="ucf"))
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (bundles["ucf"] / "manifest.json").read_bytes()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_half_precision_bundle(golden: Golden, tmp_path: Path, backend: str) -> None:
    out = tmp_path / "half"
    verification = build(BuildOptions(golden.checkpoint, out, dataset=golden.dataset, precision="fp16"))
    encoders = [c for c in verification.checks if c.artifact == "encoder"]
    # Where the processor has bfloat16, OpenVINO computes in that by default, and has limits of its own.
    assert {c.limits.cosine for c in encoders if c.precision == "fp32 (fp16 weights)"} == {0.999}
    assert {c.limits.cosine for c in encoders if c.precision == "bf16"} <= {0.998}
    assert {c.limits.score for c in verification.checks if c.artifact == "head"} == {1e-4}
    assert manifest(out)["files"]["encoder.fp16.onnx"]["precision"] == "fp16"
    full = golden.load()
    probe = Probe.load(out / "probe.npz")
    with Engine.load(out, backend, precision="fp32") as engine:
        assert engine.backend.encoder_file == "encoder.fp16.onnx"
        features = engine.encode(probe.frames)
    cosine = (
        (features * probe.features).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(probe.features, axis=1)
    )
    assert cosine.min() >= 0.999
    assert not np.array_equal(features, probe.features)
    assert full.config.embed_dim == features.shape[1]


def test_our_own_format_needs_no_dataset(ucf: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(ucf.load(), path)
    build(BuildOptions(path, tmp_path / "bundle"))
    found = manifest(tmp_path / "bundle")
    assert found["model"]["dataset"] is None
    assert found["model"]["labels"] == ucf.config["labels"]


def test_the_bundle_samples_as_the_model_was_trained(ucf: Golden, tmp_path: Path) -> None:
    model, path = ucf.load(), tmp_path / "model.safetensors"
    made = {
        "sampling": Sampling(pick="first").to_manifest(),
        "preprocessing": image_settings(Preprocessing.for_size(64)),
    }
    model.feature_settings = made
    save_checkpoint(model, path)
    build(BuildOptions(path, tmp_path / "bundle"))
    assert manifest(tmp_path / "bundle")["sampling"] == made["sampling"]
    with pytest.raises(UserError, match=r"trained on features made with sampling .*first.*, not .*mean"):
        build(BuildOptions(path, tmp_path / "other", sampling=Sampling(pick="mean")))
    model.feature_settings = {**made, "preprocessing": {"size": 32}}
    save_checkpoint(model, path)
    with pytest.raises(UserError, match=r"made with preprocessing .*32.*, but its bundle would have"):
        build(BuildOptions(path, tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_the_bundle_makes_images_as_the_model_was_trained(ucf: Golden, tmp_path: Path) -> None:
    model, path = ucf.load(), tmp_path / "model.safetensors"
    reference = Preprocessing.for_size(64, style="reference")
    model.feature_settings = {"sampling": Sampling().to_manifest(), "preprocessing": image_settings(reference)}
    save_checkpoint(model, path)
    build(BuildOptions(path, tmp_path / "bundle", mirror=False))
    assert Preprocessing.from_manifest(manifest(tmp_path / "bundle")["preprocessing"]) == reference
    with pytest.raises(UserError, match=r"made with preprocessing .*\"bilinear\".*, but its bundle would have"):
        build(BuildOptions(path, tmp_path / "other", preprocessing="default"))


def test_a_bundle_with_the_references_pixels(ucf: Golden, tmp_path: Path) -> None:
    """The probe, scoring with and without the gate, and the gate's calibration follow the manifest."""
    out = tmp_path / "bundle"
    video = clips.write_clip(tmp_path / "clip.mp4", 80, size=(1280, 720), draw=_stripes)
    build(BuildOptions(ucf.checkpoint, out, dataset="ucf", preprocessing="reference", probe=[video]))
    found = manifest(out)["preprocessing"]
    assert (found["interpolation"], found["untagged"]) == ("bilinear", "bt601-always")
    bundle = Bundle.open(out)
    with Video(video) as opened:
        reference = [snippet.images[0] for snippet in opened.snippets(bundle.sampling, bundle.preprocessing)]
    np.testing.assert_array_equal(Probe.load(out / "probe.npz").frames, np.stack(reference))
    with Video(video) as opened:
        ours = next(opened.snippets(bundle.sampling, Preprocessing.for_size(64, mirror=True))).images[0]
    assert np.abs(reference[0].astype(int) - ours).mean() > 9
    with Video(video) as opened:
        judged = opened.snippets(bundle.sampling, bundle.preprocessing, gate=GateRule())
        held = [snippet.images[0] for snippet in judged if len(snippet.images)]
    np.testing.assert_array_equal(held[0], reference[0])
    with pytest.raises(UserError, match="no preprocessing 'opencv': take one of default, reference"):
        build(BuildOptions(ucf.checkpoint, tmp_path / "other", dataset="ucf", preprocessing="opencv"))


def _stripes(number: int, width: int, height: int) -> np.ndarray:
    """So fine that a filter that averages makes them grey."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, (np.arange(width) + number) % 6 < 3] = (200, 120, 60)
    return image


def test_the_bundle_looks_where_the_model_was_tested(ucf: Golden, tmp_path: Path) -> None:
    model, path = new_model(PRESETS["ucf"], ucf.load().clipmodel), tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    for name, mirror, expected in (("own", None, True), ("asked", False, False)):
        build(BuildOptions(path, tmp_path / name, mirror=mirror))
        assert manifest(tmp_path / name)["preprocessing"]["mirror"] is expected


def test_what_the_user_chooses_is_in_the_bundle(ucf: Golden, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = BuildOptions(
        ucf.checkpoint,
        out,
        dataset="ucf",
        labels=("normal", "fighting", "a person on the ground"),
        anomaly="alignment",
        mask_padding=True,
        mirror=False,
        crop="top-left",
        sampling=Sampling(pick="mean", by="time", seconds=0.5),
    )
    build(options)
    found = manifest(out)
    assert found["model"]["labels"] == ["normal", "fighting", "a person on the ground"]
    assert (found["model"]["anomaly"], found["model"]["mask_padding"]) == ("alignment", True)
    assert (found["preprocessing"]["mirror"], found["preprocessing"]["crop"]) == (False, "top-left")
    assert found["sampling"] == {"frames": 16, "pick": "mean", "by": "time", "seconds": 0.5}
    with Engine.load(out) as engine:
        scores = engine.score(ucf["features_37"].numpy())
        np.testing.assert_allclose(scores.anomaly, 1 - scores.alignment[:, 0], atol=1e-6)


def test_probing_with_footage(ucf: Golden, tmp_path: Path) -> None:
    video = clips.write_clip(tmp_path / "clip.mp4", 80)
    build(BuildOptions(ucf.checkpoint, tmp_path / "bundle", dataset="ucf", probe=[video]))
    frames = Probe.load(tmp_path / "bundle" / "probe.npz").frames
    assert frames.shape == (5, 64, 64, 3)
    with pytest.raises(UserError, match=r"nothing\.mp4 does not exist"):
        build(BuildOptions(ucf.checkpoint, tmp_path / "b2", dataset="ucf", probe=[tmp_path / "nothing.mp4"]))


def test_drawn_frames_have_structure_and_never_change() -> None:
    frames = drawn_frames(64)
    assert np.array_equal(frames, drawn_frames(64))
    neighbours = np.abs(frames[..., 1:, :].astype(int) - frames[..., :-1, :]).mean()
    assert 1 < neighbours < 20  # noise would have about 85
    assert frames.std() > 30
    assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_what_exists_is_kept_without_force(bundle_copy: Path, ucf: Golden) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="exists already: give --force"):
        build(BuildOptions(ucf.checkpoint, bundle_copy, dataset="ucf"))
    assert (bundle_copy / "manifest.json").read_bytes() == before
    (bundle_copy / "extra").touch()
    with pytest.raises(UserError, match="holds extra, which is no part of a bundle and would be lost"):
        build(BuildOptions(ucf.checkpoint, bundle_copy, dataset="ucf", force=True))
    (bundle_copy / "extra").unlink()
    (bundle_copy / "text.npy").write_bytes(b"damaged")
    build(BuildOptions(ucf.checkpoint, bundle_copy, dataset="ucf", force=True))
    assert Bundle.open(bundle_copy).text().size


def test_force_never_takes_a_folder_that_is_no_bundle(ucf: Golden, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="is not a bundle and not empty, so it is not replaced"):
        build(BuildOptions(ucf.checkpoint, tmp_path / "photos", dataset="ucf", force=True))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        build(BuildOptions(ucf.checkpoint, tmp_path / "file", dataset="ucf", force=True))
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.parametrize("step", ["reading", "encoding", "running", "writing encoder", "writing head", "checking"])
def test_an_interrupt_leaves_nothing(ucf: Golden, tmp_path: Path, step: str) -> None:
    def say(text: str) -> None:
        if text.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(BuildOptions(ucf.checkpoint, tmp_path / "bundle", dataset="ucf"), say)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "artifact"),
    [("encoder", "encoder"), ("head", "head")],
)
def test_a_graph_that_differs_from_pytorch_stops_the_build(
    ucf: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, artifact: str
) -> None:
    true_graph = getattr(build_module, f"{part}_graph")

    def wrong(weights: dict[str, np.ndarray], *rest: Any, **options: Any) -> onnx.ModelProto:
        key = "ln_post.weight" if part == "encoder" else "linear.bias"
        spoilt = weights | {key: weights[key] + np.linspace(0, 0.5, weights[key].size, dtype=np.float32)}
        graph: onnx.ModelProto = true_graph(spoilt, *rest, **options)
        return graph

    monkeypatch.setattr(build_module, f"{part}_graph", wrong)
    with pytest.raises(ParityError) as caught:
        build(BuildOptions(ucf.checkpoint, tmp_path / "bundle", dataset="ucf"))
    failed = [line for line in str(caught.value).splitlines() if line.endswith("FAIL")]
    assert any(line.startswith(artifact) for line in failed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"precision": "int4"}, "there is no precision 'int4': take one of fp32, fp16, int8"),
        ({"dataset": "shanghai"}, "shanghai"),
        ({"crop": "left"}, "crop is 'left'"),
    ],
)
def test_wrong_options_are_refused(ucf: Golden, tmp_path: Path, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        build(BuildOptions(**({"checkpoint": ucf.checkpoint, "out": tmp_path / "b", "dataset": "ucf"} | options)))
    assert list(tmp_path.iterdir()) == []
