from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden import Golden
from vadclip import save_checkpoint
from vadclip.checkpoint import load_clip
from vadclip.clip import build_clip
from vadclip.untrained import SMALL, save_released_format, untrained
from vadexport import certificate
from vadexport.build import BuildOptions, build
from vadexport.cli import main
from vadexport.probe import Probe
from vadexport.relabel import ClassName, read_classes, relabel
from vadrun import Bundle, Engine, EventRule, UserError, run_video

DEMO = Path(__file__).parents[2] / "demo"


def labels_file(folder: Path, *lines: str) -> Path:
    path = folder / "labels.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def named(*labels: str) -> list[ClassName]:
    return [ClassName(label, label) for label in labels]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "bundle"
    build(BuildOptions(DEMO / "checkpoint.safetensors", out))
    return out


def test_a_class_that_was_added_is_found(demo: Path) -> None:
    """Where the video has an explosion, and the bundle no such class, an event has the name of the class that is added.

    Of a fire the model has never had a class.
    """
    others = [ClassName("normal", "normal"), *named("fighting", "accident", "riot")]
    truth = (DEMO / "truth.csv").read_text().splitlines()
    _, start, end = next(line.split(",") for line in truth if line.startswith("explosion"))
    for added in ([], [ClassName("blaze", "a fire on the ground")]):
        relabel(demo, [*others, *added], checkpoint=DEMO / "checkpoint.safetensors")
        with Engine.load(demo, "onnxruntime") as engine:
            assert engine.labels == [entry.label for entry in (*others, *added)]
            events = run_video(engine, DEMO / "demo.mp4", EventRule()).events
        there = [e.label for e in events if e.start < float(end) and float(start) < e.end]
        elsewhere = [e.label for e in events if not (e.start < float(end) and float(start) < e.end)]
        assert elsewhere == ["fighting", "accident", "riot"]
        assert there == ["blaze"] if added else "blaze" not in there
    assert certificate.verify(demo).passed


@pytest.mark.parametrize("kept_in", ["pth", "safetensors"])
def test_the_activation_of_the_clip_stays_what_it_is(tmp_path: Path, kept_in: str) -> None:
    """A checkpoint with a CLIP of LAION's kind: build is told, or its own format tells; relabel knows it then."""
    model = untrained("ucf", replace(SMALL, activation="gelu", text_heads=4), 64)
    with torch.no_grad():
        for tower in (model.clipmodel.visual.transformer, model.clipmodel.transformer):
            for block in tower.resblocks:
                block.mlp.c_fc.weight.mul_(8)
    checkpoint, told = tmp_path / f"model.{kept_in}", None
    if kept_in == "pth":
        save_released_format(model, checkpoint)
        told = tmp_path / "clip.json"
        vision = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 2}
        text = {"width": 64, "heads": 4, "layers": 2}
        told.write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}), encoding="utf-8")
    else:
        save_checkpoint(model, checkpoint)
    bundle = tmp_path / "bundle"
    dataset = ["--dataset", "ucf"] if told else []
    options = ["--clip-model", str(told)] if told else []
    assert main(["build", "--checkpoint", str(checkpoint), "--out", str(bundle), *dataset, *options]) == 0
    relabel(bundle, named("normal", "fire"), checkpoint=checkpoint)
    with torch.no_grad():
        expected = model.encode_text(["normal", "fire"]).numpy()
        model.clipmodel = build_clip(64, replace(SMALL, text_heads=4)).eval()
        model.clipmodel.load_state_dict(load_clip(checkpoint, str(told) if told else None).state_dict())
        other = model.encode_text(["normal", "fire"]).numpy()
    np.testing.assert_allclose(np.load(bundle / "text.npy"), expected, atol=1e-5)
    assert np.abs(other - expected).max() > 1e-3
    assert certificate.verify(bundle).passed


def test_a_bundle_of_before_is_relabelled(bundle_copy: Path, ucf: Golden) -> None:
    """Its manifest says nothing of the CLIP, which is OpenAI's then."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    del manifest["checkpoint"]["clip"]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    assert relabel(bundle_copy, named("normal", "fire"), checkpoint=ucf.checkpoint).labels == ("normal", "fire")


def test_graphs_and_engines_are_the_same_files(bundle_copy: Path, ucf: Golden) -> None:
    engine = bundle_copy / "engines" / "some-gpu" / "encoder.plan"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"plan")
    kept = [engine, bundle_copy / "encoder.fp32.onnx", bundle_copy / "head.onnx"]
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in kept}
    old = Bundle.open(bundle_copy)
    done = relabel(bundle_copy, named("normal", "fighting", "a person on the ground"), checkpoint=ucf.checkpoint)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in kept} == before
    assert done.added == ("a person on the ground",) and "abuse" in done.dropped
    new = Bundle.open(bundle_copy)
    assert new.sha256 != old.sha256 and new.model.labels == ("normal", "fighting", "a person on the ground")
    # What stayed has the embedding that it had, and it is what a build with these labels makes.
    np.testing.assert_allclose(new.text()[1], np.load(bundle_copy / "text.npy")[1])
    again = bundle_copy.parent / "again"
    labels = ("normal", "fighting", "a person on the ground")
    build(BuildOptions(ucf.checkpoint, again, dataset="ucf", labels=labels))
    np.testing.assert_allclose(Bundle.open(again).text(), new.text(), atol=1e-6)
    # The certificate is the old bundle's, and says so until it is made again.
    assert certificate.verify(bundle_copy).passed
    value = json.loads((bundle_copy / "certificate.json").read_text())
    assert value["bundle"] == old.sha256 and value["stale"].endswith("run vadexport verify")
    certificate.write(bundle_copy, certificate.verify(bundle_copy), new.sha256)
    assert "stale" not in json.loads((bundle_copy / "certificate.json").read_text())


def test_embeddings_from_elsewhere_need_no_torch(bundle_copy: Path, ucf: Golden, tmp_path: Path) -> None:
    text = np.random.default_rng(0).normal(size=(3, Bundle.open(bundle_copy).model.features)).astype(np.float32)
    np.save(tmp_path / "text.npy", text)
    labels = labels_file(tmp_path, "normal", "door: an open door", "gate  # a comment")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "from vadexport.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        [*command, "relabel", bundle_copy, "--labels", labels, "--text", tmp_path / "text.npy"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert run.returncode == 0, run.stderr
    assert "3 classes: normal, door, gate (added door, gate; dropped abuse" in run.stdout
    assert "run vadexport verify" in run.stdout and "vadcalibrate alarms" in run.stdout
    with Engine.load(bundle_copy, "onnxruntime") as engine:
        assert engine.labels == ["normal", "door", "gate"]
        np.testing.assert_array_equal(engine.bundle.text(), text)
        assert engine.score(ucf["features_37"].numpy()).alignment.shape == (37, 3)
    # The graphs are still held against PyTorch, with the classes that it answered for.
    verification = certificate.verify(bundle_copy)
    assert verification.passed
    assert len(Probe.load(bundle_copy / "probe.npz").text) == 14


def test_inspect_tells_prompts_and_the_old_certificate(
    bundle_copy: Path, ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = labels_file(tmp_path, "normal", "theft: a person takes a bag")
    arguments = ["relabel", str(bundle_copy), "--labels", str(labels), "--checkpoint", str(ucf.checkpoint)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle_copy)]) == 0
    said = capsys.readouterr().out
    assert "theft by 'a person takes a bag'" in said and "the certificate is of another bundle" in said


def test_what_is_refused(bundle_copy: Path, ucf: Golden, xd: Golden, tmp_path: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    width = Bundle.open(bundle_copy).model.features
    wrong, zero, damaged = tmp_path / "wrong.npy", tmp_path / "zero.npy", tmp_path / "damaged.npy"
    np.save(wrong, np.ones((3, width), np.float32))
    np.save(zero, np.zeros((2, width), np.float32))
    damaged.write_bytes(b"no array")
    two = named("normal", "fire")
    for classes, source, said in (
        (two, {"checkpoint": xd.checkpoint}, "is not the checkpoint that"),
        (two, {"checkpoint": tmp_path / "none"}, "does not exist"),
        (two, {"text": wrong}, r"not \[2,\d+\]: give embeddings of these 2 labels of width \d+"),
        (two, {"text": zero}, "a class whose embedding is zero"),
        (two, {"text": damaged}, "is not in NumPy's format"),
        (named("fire", "normal"), {"text": wrong}, "put it first"),
        (named("normal", "word " * 80), {"checkpoint": ucf.checkpoint}, "shorten it"),
    ):
        with pytest.raises(UserError, match=said):
            relabel(bundle_copy, classes, **source)
    assert (bundle_copy / "manifest.json").read_bytes() == before
    assert not [path for path in bundle_copy.parent.iterdir() if path.name.startswith(".bundle")]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("normal", ": words"), "has no label"),
        (("normal", "fire:"), "has no prompt"),
        (("normal", "fire: a", "fire: b"), "repeats"),
        (("normal",), "at least one other"),
    ],
)
def test_labels_files_that_are_wrong(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_classes(labels_file(tmp_path, *lines))


def test_more_classes_than_an_engine_takes(bundle_copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from vadexport.compile import CompileOptions, compile_bundle
    from vadexport.plan_builder import BuilderOptions

    folder = compile_bundle(CompileOptions(bundle_copy, builder=BuilderOptions(targets=((8, 6),)))).folder
    width = Bundle.open(bundle_copy).model.features
    np.save(tmp_path / "many.npy", np.ones((65, width), np.float32))
    many = named("normal", *(f"class {number}" for number in range(64)))
    with pytest.raises(UserError, match="65 classes are more than the 64 that the engine"):
        relabel(bundle_copy, many, text=tmp_path / "many.npy")
    np.save(tmp_path / "some.npy", np.ones((20, width), np.float32))
    done = relabel(bundle_copy, many[:20], text=tmp_path / "some.npy")
    assert done.engines == 1 and (folder / "encoder.plan").is_file()
