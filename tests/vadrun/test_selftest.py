"""The start-up test: what a backend computes is held against the probe, encoder and head, at every load."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.vadexport.test_certificate import spoil
from tests.vadrun.test_bundle import rehash
from vadrun import Engine, UserError
from vadrun.backends.onnxruntime import OnnxruntimeBackend
from vadrun.bundle import Bundle
from vadrun.selftest import SCORE, Found, cosines, least_cosine

BACKENDS = ("onnxruntime:cpu", "openvino:cpu")


def test_a_feature_that_is_no_number_is_wrong() -> None:
    good = np.ones((2, 4), np.float32)
    assert np.array_equal(cosines(good, good * 3), [1, 1])
    assert np.array_equal(cosines(good, np.array([[np.nan] * 4, [0] * 4], np.float32)), [-1, -1])


def test_limits_belong_to_what_is_allowed() -> None:
    assert Found(0.99, SCORE).fault(0.99) is None
    assert "wrong features of the bundle's probe (cosine 0.98, at least 0.99" in str(Found(0.98, 0.0).fault(0.99))
    assert "wrong scores of the bundle's probe (off by 0.2, at most 0.0001" in str(Found(1.0, 0.2).fault(0.99))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "constant", "factor", "wrong"),
    [
        ("encoder.fp32.onnx", "ln_post.weight", float("nan"), "features"),
        ("encoder.fp32.onnx", "blocks.1/mlp/c_fc.weight", 3.0, "features"),
        ("head.onnx", "confidence/ffn/c_fc.weight", 1.5, "scores"),
        ("head.onnx", "position", float("nan"), "scores"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    bundle_copy: Path, backend: str, name: str, constant: str, factor: float, wrong: str
) -> None:
    spoil(bundle_copy, name, constant, factor)
    with pytest.raises(
        UserError, match=rf"{backend} gives wrong {wrong} of the bundle's probe .*vadexport verify says"
    ):
        Engine.load(bundle_copy, backend)
    Engine.load(bundle_copy, backend, refuse_wrong=False).close()


def test_an_encoder_is_held_to_the_limits_of_its_certificate(bundle_copy: Path) -> None:
    spoil(bundle_copy, "encoder.fp32.onnx", "blocks.1/mlp/c_fc.weight", 1.05)
    with pytest.raises(UserError, match=r"\(cosine 0\.9999\d*, at least 0\.99999 is allowed\)"):
        Engine.load(bundle_copy, "onnxruntime:cpu")


def test_limits_of_the_users_own_are_taken_from_the_certificate(bundle_copy: Path) -> None:
    path = bundle_copy / "certificate.json"
    value = json.loads(path.read_text())
    bundle = Bundle.open(bundle_copy)
    backend: Any = SimpleNamespace(precision="fp32", encoder_file="encoder.fp32.onnx", least_cosine=None)

    def allowed(changes: dict[str, float] | None = None, **rest: Any) -> float:
        (run,) = value["runs"]
        last = run | {"changes": changes or {}} | rest.pop("run", {})
        path.write_text(json.dumps(value | {"runs": [run, last]} | rest))
        return least_cosine(bundle, backend)

    assert allowed() == 0.99999
    assert allowed({"cosine": 0.97}) == 0.97
    assert allowed({"cosine": 0.999999}) == 0.99999  # tighter ones were the run's own
    assert allowed({"cosine": 0.1}) == 0.9
    assert allowed({"cosine": 0.97}, run={"passed": False}) == 0.99999
    assert allowed({"cosine": 0.97}, bundle="0" * 64) == 0.99999
    assert allowed({"cosine": 0.97}, bundle="0" * 64, stale="relabelled") == 0.97  # the graphs are the same
    backend.precision = "bf16"
    assert allowed() == 0.998
    backend.least_cosine = 0.95  # of a TensorRT plan
    assert allowed() == 0.95
    path.write_text("{")
    assert least_cosine(bundle, backend) == 0.95
    path.unlink()
    assert least_cosine(bundle, backend) == 0.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": np.zeros((2, 32, 32, 3), np.uint8)}, r"'frames' is \[2, 32, 32, 3\], not \[n,64,64,3\]"),
        ({"features": np.zeros((5, 64), np.float32)}, r"'features' is \[5, 64\], not \[24,64\]"),
        ({"features": np.zeros((24, 32), np.float32)}, r"'features' is \[24, 32\], not \[24,64\]"),
        ({"features": np.full((24, 64), np.nan, np.float32)}, "'features' holds values that are not finite"),
        ({"track": np.zeros(7, np.float32)}, r"'track' is \[7\], not \[t,64\]"),
        ({"text": np.zeros((3, 64), np.float32)}, r"'text' is \[3, 64\], not \[14,64\]"),
        ({"track_logits": None}, "it holds no array 'track_logits'"),
    ],
)
def test_a_probe_of_another_shape_is_refused(bundle_copy: Path, change: dict[str, Any], said: str) -> None:
    with np.load(bundle_copy / "probe.npz") as data:
        arrays = {name: data[name] for name in data.files}
    np.savez_compressed(bundle_copy / "probe.npz", **{k: v for k, v in (arrays | change).items() if v is not None})
    rehash(bundle_copy, "probe.npz")
    with pytest.raises(UserError, match=rf"probe\.npz: {said}: build the bundle again"):
        Engine.load(bundle_copy, "onnxruntime:cpu")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_an_error_and_never_a_quiet_video(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        features = engine.encode(frames)
        head, encode = OnnxruntimeBackend.head, OnnxruntimeBackend.encode

        def spoiled_head(self: OnnxruntimeBackend, *given: Any) -> Any:
            logits, alignment = head(self, *given)
            alignment[0, 1, 2] = bad
            return logits, alignment

        def spoiled_encode(self: OnnxruntimeBackend, given: Any) -> Any:
            found = encode(self, given)
            found[1, 2] = bad
            return found

        monkeypatch.setattr(OnnxruntimeBackend, "head", spoiled_head)
        monkeypatch.setattr(OnnxruntimeBackend, "encode", spoiled_encode)
        said = r"gives {} that are not finite on onnxruntime:cpu: run vadexport verify"
        with pytest.raises(UserError, match=said.format("features")):
            engine.encode(frames)
        with pytest.raises(UserError, match=said.format("scores")):
            engine.score(features)
        with pytest.raises(UserError, match=said.format("scores")):
            engine.score_chunks([features, features])
        assert len(engine.logits(features)[0]) == 3  # whoever wants to look at them
