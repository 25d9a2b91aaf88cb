from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from vadrun.bundle import Bundle
from vadrun.errors import UserError


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_bundle_reads(bundles: dict[str, Path]) -> None:
    bundle = Bundle.open(bundles["xd"])
    assert bundle.model.labels[0] == "normal"
    assert (bundle.model.anomaly, bundle.model.window, bundle.model.positions) == ("alignment", 64, 256)
    assert bundle.text().shape == (7, 64)
    assert bundle.sha256 == hashlib.sha256((bundles["xd"] / "manifest.json").read_bytes()).hexdigest()
    assert bundle.encoder_precisions == ("fp32",)


def test_every_file_is_in_the_manifest_with_its_hash(bundles: dict[str, Path]) -> None:
    bundle = Bundle.open(bundles["ucf"])
    names = {path.name for path in bundles["ucf"].iterdir()}
    assert names == {"manifest.json", "certificate.json"} | {entry.name for entry in bundle.files}
    for entry in bundle.files:
        assert entry.sha256 == hashlib.sha256((bundles["ucf"] / entry.name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["encoder.fp32.onnx", "head.onnx", "text.npy", "probe.npz"])
def test_a_changed_file_is_refused(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # one bit, the same size
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is not the file that was built"):
        Bundle.open(bundle_copy)


def test_a_missing_file_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "head.onnx").unlink()
    with pytest.raises(UserError, match=r"head\.onnx is missing: copy the whole bundle"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "is not a bundle"),
        ("not json", r"manifest\.json: it is not JSON \(line 1: Expecting value\): copy the bundle again or build it"),
        ("[1]", "no schema number"),
        ('{"a": 1}', "no schema number"),
        ('{"schema": 1}', r"manifest\.json: toolkit is missing: copy the bundle again or build it again"),
        ('{"schema": 1, "toolkit": "1", "model": 3}', r"manifest\.json: \w+ is missing"),
        ('{"schema": true}', "no schema number"),
        ("[" * 100_000, "nests deeper"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=part):
        Bundle.open(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")


def test_a_newer_schema_is_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest.update(schema=2))
    with pytest.raises(UserError, match=r"newer vadclip-edge \(schema 2, this one reads up to 1\): update"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m["model"].update(anomaly="both"), "anomaly is 'both', not one of confidence, alignment"),
        (lambda m: m["model"].update(new=1), r"model\.new is not known"),
        (
            lambda m: m["model"].update(labels=["normal", 7]),
            r"model\.labels\[1\] is 7, not a text: copy the bundle again",
        ),
        (lambda m: m["model"].update(labels="normal"), r"model\.labels is 'normal', not a list"),
        (lambda m: m["model"].update(labels=["normal"] * 2), r"model\.labels\[1\] is 'normal', not named once only"),
        (lambda m: m["model"].update(labels=["normal", "a\x1b[2J"]), r"model\.labels\[1\] .* control characters"),
        (lambda m: m["model"].update(labels=["normal", "\ud800"]), "has half a character in it"),
        (lambda m: m["model"].update(positions=10**300), r"model\.positions is a number of more than 20 digits"),
        (lambda m: m["model"].update(features=0), r"model\.features is 0, not a whole number from 1"),
        (lambda m: m.update(model=[]), r"model is a list of 0, not an object"),
        (lambda m: m.update(checkpoint={}), r"checkpoint\.name is missing"),
        (
            lambda m: m["graphs"]["head.onnx"].update(kinds={"Add": "x"}),
            r"graphs\.head\.onnx\.kinds\.Add is 'x', not a",
        ),
        (
            lambda m: m["files"]["head.onnx"].update(sha256="../x"),
            r"files\.head\.onnx\.sha256 is '\.\./x', not a sha256",
        ),
        (lambda m: m["files"]["head.onnx"].update(precision="fp4"), r"precision is 'fp4', not one of fp32"),
        (lambda m: m["preprocessing"].update(size=10**9), r"manifest\.json: preprocessing: "),
        (lambda m: m.update(sampling=[1]), r"sampling is a list of 1, not an object"),
        (lambda m: m["preprocessing"].update(crop="left"), "crop is 'left'"),
        (lambda m: m["sampling"].pop("pick"), "lacks the key 'pick'"),
        (lambda m: m["files"].pop("text.npy"), "holds no text"),
        (
            lambda m: m["files"].update({"../x": m["files"]["text.npy"]}),
            "is '../x', not the name of a file in the same folder",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(bundle_copy: Path, change: Callable[[dict[str, Any]], None], part: str) -> None:
    edit(bundle_copy, change)
    with pytest.raises(UserError, match=part):
        Bundle.open(bundle_copy)


RUN = '{"date": "", "passed": true, "machine": {}, "libraries": []}'


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{bad", "it is not JSON"),
        ("[1]", "the whole is a list of 1, not an object"),
        ("{}", "bundle is missing"),
        ('{"bundle": "%(sha)s", "runs": [{}]}', r"runs\[0\]\.date is missing"),
        ('{"bundle": "%(sha)s", "runs": [%(run)s, 7]}', r"runs\[1\] is 7, not an object"),
        ('{"bundle": "%(sha)s", "runs": [], "stale": 1}', "stale is 1, not a text"),
    ],
)
def test_a_broken_certificate_is_refused(bundle_copy: Path, content: str, part: str) -> None:
    (bundle_copy / "certificate.json").write_text(content % {"sha": "0" * 64, "run": RUN})
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(UserError, match=rf"certificate\.json: {part}.*: run vadexport verify"):
        bundle.certificate()
    assert "certificate.json: " in str(bundle.certificate_remark())  # a run says so, and goes on


def test_a_fifo_in_place_of_a_file_is_not_waited_for(bundle_copy: Path) -> None:
    (bundle_copy / "certificate.json").unlink()
    os.mkfifo(bundle_copy / "certificate.json")
    with pytest.raises(UserError, match=r"certificate\.json: it is not a regular file"):
        Bundle.open(bundle_copy).certificate()
    (bundle_copy / "head.onnx").unlink()
    os.mkfifo(bundle_copy / "head.onnx")
    with pytest.raises(UserError, match=r"head\.onnx is missing"):
        Bundle.open(bundle_copy)
    (bundle_copy / "manifest.json").unlink()
    os.mkfifo(bundle_copy / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: it is not a regular file"):
        Bundle.open(bundle_copy)


def test_a_certificate_that_does_not_hold_is_remarked_on(bundle_copy: Path) -> None:
    path = bundle_copy / "certificate.json"
    bundle = Bundle.open(bundle_copy)
    assert bundle.certificate_remark() is None
    sound = json.loads(path.read_text())
    path.write_text(json.dumps(sound | {"bundle": "0" * 64}))
    assert "(it is of another bundle): run vadexport verify" in str(bundle.certificate_remark())
    path.write_text(json.dumps(sound | {"stale": "relabelled"}))
    assert "(the bundle has been relabelled since): run" in str(bundle.certificate_remark())
    path.unlink()
    assert bundle.certificate_remark() is None


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((3, 64), np.float32), r"the array is \[3, 64\], not \[14,64\]"),
        (np.zeros((14, 64), np.int64), "the array is of type int64, not of floats"),
        (np.full((14, 64), np.nan, np.float32), "the array holds values that are not finite"),
    ],
)
def test_text_that_does_not_fit_is_refused(bundle_copy: Path, array: np.ndarray, part: str) -> None:
    np.save(bundle_copy / "text.npy", array)
    rehash(bundle_copy, "text.npy")
    with pytest.raises(UserError, match=rf"text\.npy: {part}: build the bundle again"):
        Bundle.open(bundle_copy).text()


def test_a_bundle_behind_a_link_opens_and_links_in_it_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle_copy)
    assert Bundle.open(tmp_path / "current").model.features == 64
    for name in ("head.onnx", "manifest.json"):
        (bundle_copy / name).rename(tmp_path / name)
        (bundle_copy / name).symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is a link: copy what it leads to in its place \(cp -L\)"):
            Bundle.open(bundle_copy)
        (bundle_copy / name).unlink()
        (tmp_path / name).rename(bundle_copy / name)


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights.bin", "weights.bin"])
def test_a_graph_takes_weights_from_listed_files_only(bundle_copy: Path, location: str) -> None:
    model = onnx.load(bundle_copy / "head.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (bundle_copy / "weights.bin").write_bytes(tensor.raw_data)
    set_external_data(tensor, location, 0, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    (bundle_copy / "head.onnx").write_bytes(model.SerializeToString())
    rehash(bundle_copy, "head.onnx")
    with pytest.raises(
        UserError, match=rf"head\.onnx takes weights from '{location}', a file that manifest\.json does"
    ):
        Bundle.open(bundle_copy)
    (bundle_copy / "head.onnx").write_bytes(b"\xff" * 20)
    rehash(bundle_copy, "head.onnx")
    with pytest.raises(UserError, match=r"head\.onnx is not an ONNX graph \(a number in it is too long\)"):
        Bundle.open(bundle_copy)


def rehash(root: Path, name: str) -> None:
    """Make the manifest agree with a file that a test replaced."""
    data = (root / name).read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    edit(root, change)
