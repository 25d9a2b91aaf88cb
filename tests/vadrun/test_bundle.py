from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
        ("not json", "does not read as JSON"),
        ("[1]", "no schema number"),
        ('{"a": 1}', "no schema number"),
        ('{"schema": 1}', "has no entry 'model'"),
        ('{"schema": 1, "model": 3}', "does not read"),
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
        (lambda m: m["model"].update(anomaly="both"), "anomaly is 'both'"),
        (lambda m: m["model"].update(new=1), "unexpected keyword argument 'new'"),
        (lambda m: m["preprocessing"].update(crop="left"), "crop is 'left'"),
        (lambda m: m["sampling"].pop("pick"), "lacks the key 'pick'"),
        (lambda m: m["files"].pop("text.npy"), "holds no text"),
        (lambda m: m["files"].update({"../x": m["files"]["text.npy"]}), "a file outside the bundle"),
    ],
)
def test_a_wrong_manifest_is_refused(bundle_copy: Path, change: Callable[[dict[str, Any]], None], part: str) -> None:
    edit(bundle_copy, change)
    with pytest.raises(UserError, match=part):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "content", ["{bad", "[1]", "{}", '{"runs": [{}]}', '{"runs": [{"machine": 1, "libraries": []}]}']
)
def test_a_broken_certificate_is_refused(bundle_copy: Path, content: str) -> None:
    (bundle_copy / "certificate.json").write_text(content)
    with pytest.raises(UserError, match=r"certificate\.json .*run vadexport verify"):
        Bundle.open(bundle_copy).certificate()


def test_text_that_does_not_fit_is_refused(bundle_copy: Path) -> None:
    np.save(bundle_copy / "text.npy", np.zeros((3, 64), np.float32))
    rehash(bundle_copy, "text.npy")
    with pytest.raises(UserError, match=r"text\.npy is \[3, 64\], but 14 labels of width 64"):
        Bundle.open(bundle_copy).text()


def rehash(root: Path, name: str) -> None:
    """Make the manifest agree with a file that a test replaced."""
    data = (root / name).read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    edit(root, change)
