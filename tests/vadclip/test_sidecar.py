"""Features that were made in different ways do not meet: not in a list, a test, or a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vadclip.sidecar import SIDECAR, check_clip, check_test_features, common_settings, differing, image_settings
from vadrun.errors import UserError
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling

MADE: dict[str, Any] = {
    "encoder": "clip.safetensors abc fp32",
    "sampling": Sampling().to_manifest(),
    "preprocessing": image_settings(Preprocessing.for_size(64)),
    "dtype": "float16",
}


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir()
    if changes.pop("told", True):
        (path / SIDECAR).write_text(json.dumps({**MADE, **changes}))
    np.save(path / "a__0.npy", np.zeros((2, 64)))
    return path / "a__0.npy"


def test_a_list_has_the_settings_of_its_folders(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other", dtype="float32")
    assert common_settings([one, one, other]) == MADE
    assert common_settings([folder(tmp_path / "authors", told=False)]) is None
    assert common_settings([]) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder", "another"), ("sampling", Sampling(pick="mean").to_manifest()), ("preprocessing", {"size": 1})],
)
def test_a_list_does_not_mix(tmp_path: Path, key: str, value: object) -> None:
    paths = [folder(tmp_path / "one"), folder(tmp_path / "other", **{key: value})]
    with pytest.raises(UserError, match=rf"mixes features: .*one was made with {key} .*other with"):
        common_settings(paths)
    assert differing(MADE, {**MADE, key: value}) == key


def test_a_list_does_not_mix_known_with_unknown(tmp_path: Path) -> None:
    paths = [folder(tmp_path / "one"), folder(tmp_path / "authors", told=False)]
    for order in (paths, paths[::-1]):
        with pytest.raises(UserError, match=r"one has a features.json .*authors has none"):
            common_settings(order)


def test_a_sidecar_that_does_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "one")
    (path.parent / SIDECAR).write_text("[1, 2]")
    with pytest.raises(UserError, match="the whole is a list of 2, not an object: extract into another folder"):
        common_settings([path])


def test_test_features_fit_the_model() -> None:
    check_test_features(None, MADE, "the model")
    check_test_features(MADE, None, "the model")
    check_test_features({**MADE, "encoder": "encoder.fp32.onnx abd fp32"}, MADE, "the model")
    check_test_features({**MADE, "encoder": "renamed.pth abc fp32"}, MADE, "the model")
    check_test_features({**MADE, "encoder": "best.safetensors abd fp32"}, MADE, "the model", sha256="abd")
    with pytest.raises(UserError, match=r"made by the CLIP 'clip.safetensors abd fp32', but the model wants those of"):
        check_test_features({**MADE, "encoder": "clip.safetensors abd fp32"}, MADE, "the model", sha256="abe")
    with pytest.raises(UserError, match=r"made with sampling .*first.* but the model wants .*middle"):
        check_test_features({**MADE, "sampling": Sampling(pick="first").to_manifest()}, MADE, "the model")
    by_time = Sampling(by="time", seconds=0.5).to_manifest()
    with pytest.raises(UserError, match="without --snippet-seconds"):
        check_test_features({**MADE, "sampling": by_time}, {**MADE, "sampling": by_time}, "the model")


def test_the_clip_is_the_one_that_made_the_features(tmp_path: Path) -> None:
    for made, name, same in (
        ("my clip.pth abc fp32", "renamed.pth abc fp32", True),
        ("clip.pth abc fp32", "clip.pth abd fp32", False),
        ("open_clip openai fp32", "clip.pth abc fp32", False),
        ("encoder.fp32.onnx abc fp32", "clip.pth abd fp32", True),  # cannot be compared
        ("encoder.fp32.onnx abc bf16", "clip.pth abd fp32", True),
    ):
        place = tmp_path / made.replace(" ", "-")
        path = folder(place.with_name(place.name + name[:3]), encoder=made)
        if same:
            check_clip([path], name)
        else:
            with pytest.raises(UserError, match="name the CLIP that made them"):
                check_clip([path], name)
