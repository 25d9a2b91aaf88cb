from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import LENGTHS, Golden
from tests.vadrun.test_bundle import edit, rehash
from vadexport.probe import Probe
from vadrun import Engine, UserError, backends
from vadrun.backends.onnxruntime import OnnxruntimeBackend
from vadrun.backends.openvino import OpenvinoBackend
from vadrun.bundle import Bundle
from vadrun.selftest import measure

BACKENDS = ("onnxruntime", "openvino")


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_scores(bundles: dict[str, Path], golden: Golden, backend: str) -> None:
    with Engine.load(bundles[golden.dataset], backend) as engine:
        assert engine.labels == golden.config["labels"]
        for n in LENGTHS:
            scores = engine.score(golden[f"features_{n}"].numpy())
            np.testing.assert_allclose(scores.confidence, golden[f"prob1_{n}"].numpy().reshape(-1), atol=1e-4)
            abnormal = golden[f"prob2_{n}"].numpy().reshape(-1)
            np.testing.assert_allclose(1 - scores.alignment[:, 0], abnormal, atol=1e-4)
            expected = scores.confidence if golden.dataset == "ucf" else abnormal
            np.testing.assert_allclose(scores.anomaly, expected, atol=1e-4)
            assert scores.anomaly.dtype == scores.confidence.dtype == scores.alignment.dtype == np.float32
            assert len(scores) == n


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoding_does_not_depend_on_the_batch(bundles: dict[str, Path], backend: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    with Engine.load(bundles["ucf"], backend, batch=4, precision="fp32") as engine:
        together = engine.encode(frames)
        alone = np.concatenate([engine.encode(frame[None]) for frame in frames])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        # The arrays are the caller's: the next call must not write into them.
        before = together.copy()
        engine.encode(frames[::-1])
        np.testing.assert_array_equal(together, before)


def test_backends_agree(bundles: dict[str, Path]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    found = []
    for backend in BACKENDS:
        with Engine.load(bundles["ucf"], backend, precision="fp32") as engine:
            found.append(engine.encode(frames))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_in_nothing_out(bundles: dict[str, Path], backend: str) -> None:
    with Engine.load(bundles["ucf"], backend) as engine:
        features = engine.encode(np.zeros((0, 64, 64, 3), np.uint8))
        assert features.shape == (0, 64)
        scores = engine.score(features)
        assert scores.anomaly.shape == (0,) and scores.alignment.shape == (0, 14)


def test_wrong_arrays_are_refused(bundles: dict[str, Path]) -> None:
    with Engine.load(bundles["ucf"]) as engine:
        with pytest.raises(UserError, match=r"frames are float32 .* uint8 RGB \[n,64,64,3\]"):
            engine.encode(np.zeros((1, 64, 64, 3), np.float32))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"frames are uint8 \[1, 32, 64, 3\]"):
            engine.encode(np.zeros((1, 32, 64, 3), np.uint8))
        with pytest.raises(UserError, match=r"features are \[5, 512\]: this bundle takes \[n,64\]"):
            engine.score(np.zeros((5, 512), np.float32))
        features = np.zeros((5, 64), np.float32)
        features[3, 2] = np.nan
        with pytest.raises(UserError, match=r"snippet 3 is not finite \(1 of 5"):
            engine.score(features)


def test_auto_takes_openvino_before_onnxruntime_on_a_cpu(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OnnxruntimeBackend,
        "unavailable",
        classmethod(lambda cls, device: "has no CUDA here" if device == "cuda" else None),
    )
    with Engine.load(bundles["ucf"]) as engine:
        assert engine.backend.name == "openvino"
        assert "onnxruntime:cuda has no CUDA here" in engine.why
    monkeypatch.setattr(OpenvinoBackend, "unavailable", classmethod(lambda cls, device: "is not installed"))
    with Engine.load(bundles["ucf"]) as engine:
        assert (engine.backend.name, engine.backend.device) == ("onnxruntime", "cpu")
        assert "openvino:cpu is not installed" in engine.why


def test_a_named_backend_is_never_replaced(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        OpenvinoBackend, "unavailable", classmethod(lambda cls, device: backends.Missing("is not installed"))
    )
    with pytest.raises(
        UserError, match=r"openvino:cpu is not installed; to install: pip install 'vadclip-edge\[cpu\]'"
    ):
        Engine.load(bundles["ucf"], "openvino")
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        assert engine.why == "named by the user"


def test_no_backend_at_all(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (OnnxruntimeBackend, OpenvinoBackend):
        missing = classmethod(lambda cls, device: backends.Missing("is not installed"))
        monkeypatch.setattr(kind, "unavailable", missing)
    assert backends.available() == []
    with pytest.raises(UserError, match=r"no backend can run .*pip install 'vadclip-edge\[cpu\]'"):
        Engine.load(bundles["ucf"])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"backend": "tensorflow"},
            "there is no backend 'tensorflow': take one of auto, tensorrt, onnxruntime, openvino",
        ),
        ({"backend": "openvino:cuda"}, "there is no backend 'openvino:cuda'"),
        ({"precision": "int4"}, "there is no precision 'int4'"),
        ({"precision": "int8"}, "has no int8 encoder, only fp32: leave out --precision, or make one with vadexport"),
        ({"precision": "int8", "backend": "onnxruntime:cuda"}, "has no int8 encoder, only fp32"),
        ({"backend": "onnxruntime:cpu", "precision": "fp16"}, "does not compute in fp16 on cpu"),
        ({"batch": 0}, "the batch is 0"),
        ({"threads": 0}, "the number of threads is 0"),
    ],
)
def test_wrong_options_are_refused(bundles: dict[str, Path], options: dict[str, str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Engine.load(bundles["ucf"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_with_other_sizes_is_refused(bundle_copy: Path, backend: str) -> None:
    edit(bundle_copy, lambda manifest: manifest["model"].update(positions=128))
    with pytest.raises(UserError, match=r"head graph .* takes features of \[\?,256,64\], .* \[\?,128,64\]"):
        Engine.load(bundle_copy, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_encoder_with_other_sizes_is_refused(bundle_copy: Path, backend: str) -> None:
    edit(bundle_copy, lambda manifest: manifest["model"].update(image_size=32))
    with pytest.raises(UserError, match=r"encoder graph .* takes frames of \[\?,64,64,3\]"):
        Engine.load(bundle_copy, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_none_is_one_sentence(bundle_copy: Path, backend: str) -> None:
    (bundle_copy / "head.onnx").write_bytes(b"\x08\x08")  # an ONNX model without a graph
    rehash(bundle_copy, "head.onnx")
    with pytest.raises(UserError, match=r"cannot load .*head\.onnx") as caught:
        Engine.load(bundle_copy, backend)
    assert "\n" not in str(caught.value)


def test_auto_goes_on_where_a_library_cannot_load_the_graphs(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    def broken(self: object, *arguments: object) -> None:
        raise RuntimeError("Check failed\nno kernel for this processor")

    monkeypatch.setattr(openvino.Core, "compile_model", broken)
    with Engine.load(bundles["ucf"]) as engine:
        assert engine.backend.name == "onnxruntime"
        assert "openvino:cpu cannot load" in engine.why and "no kernel for this processor" in engine.why
    with pytest.raises(UserError, match="openvino:cpu cannot load"):
        Engine.load(bundles["ucf"], "openvino")


def test_the_head_of_another_model_is_refused(bundle_copy: Path) -> None:
    # xd has 7 classes, but the class count is dynamic; its width is the same, so only the hash tells.
    shutil.copy(bundle_copy / "encoder.fp32.onnx", bundle_copy / "head.onnx")
    rehash(bundle_copy, "head.onnx")
    with pytest.raises(UserError, match=r"the head graph in .* has no input 'features'"):
        Engine.load(bundle_copy, "onnxruntime:cpu")


def test_bf16_is_a_stated_choice(bundles: dict[str, Path]) -> None:
    with Engine.load(bundles["ucf"], "openvino", precision="fp32") as engine:
        assert engine.backend.precision == "fp32"
    import openvino

    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with Engine.load(bundles["ucf"], "openvino") as engine:
        assert engine.backend.precision == ("bf16" if capable else "fp32")
        assert engine.backend.precision in engine.description
    if not capable:
        with pytest.raises(UserError, match="does not compute in bf16 on this CPU"):
            Engine.load(bundles["ucf"], "openvino", precision="bf16")


def test_openvino_reports_to_nobody(bundles: dict[str, Path]) -> None:
    code = f"""
import sys
from vadrun import Engine
Engine.load({str(bundles["ucf"])!r}, "openvino")
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encoding_one_array_after_the_other_is_encoding_each(bundles: dict[str, Path]) -> None:
    frames = Probe.load(bundles["ucf"] / "probe.npz").frames
    arrays = [frames[:0], frames[:7], frames[7:8], frames[:0], frames[:0], frames[8:20], frames[:0]]
    with Engine.load(bundles["ucf"], "onnxruntime:cpu", batch=3) as engine:
        found = list(engine.encode_each(iter(arrays)))
        assert [len(features) for features in found] == [len(array) for array in arrays]
        for array, features in zip(arrays, found, strict=True):
            np.testing.assert_allclose(features, engine.encode(array), atol=1e-5)
        with pytest.raises(UserError, match="give uint8 RGB"):
            list(engine.encode_each([frames[:2], frames[:2].astype(np.float32)]))


def test_a_backend_is_given_no_more_frames_than_it_takes(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    encode = OnnxruntimeBackend.encode

    def counted(self: OnnxruntimeBackend, frames: np.ndarray) -> np.ndarray:
        given.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(OnnxruntimeBackend, "encode", counted)
    monkeypatch.setattr(OnnxruntimeBackend, "batch_limit", 5)
    with Engine.load(bundles["ucf"], "onnxruntime:cpu", batch=8) as engine:
        engine.encode(np.zeros((12, 64, 64, 3), np.uint8))
        assert (engine.batch, given) == (5, [5, 5, 5, 2])  # the first are the start-up test's


def wrong_at(attempts: set[int], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let OpenVINO's engines of these numbers see every frame upside down; returns each one's ``Options.plain``."""
    loaded: list[bool] = []
    begin, encode = OpenvinoBackend.__init__, OpenvinoBackend.encode

    def counted(self: OpenvinoBackend, bundle: Bundle, device: str, options: backends.Options) -> None:
        begin(self, bundle, device, options)
        self.wrong = len(loaded) in attempts  # type: ignore[attr-defined]
        loaded.append(options.plain)

    def turned(self: OpenvinoBackend, frames: np.ndarray) -> np.ndarray:
        return encode(self, np.ascontiguousarray(255 - frames[:, ::-1]) if self.wrong else frames)  # type: ignore[attr-defined]

    monkeypatch.setattr(OpenvinoBackend, "__init__", counted)
    monkeypatch.setattr(OpenvinoBackend, "encode", turned)
    return loaded


def test_a_backend_that_comes_up_wrong_is_compiled_anew(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = wrong_at({0}, monkeypatch)
    with Engine.load(bundles["ucf"], "openvino") as engine:
        assert re.search(
            r"openvino:cpu gave wrong features of the bundle's probe \(cosine -?0\.\d+, at least", engine.why
        )
        assert loaded == [False, True]
        assert measure(engine.bundle, engine.backend).cosine > 0.99


def test_a_backend_that_stays_wrong_is_not_used(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_at(set(range(10)), monkeypatch)
    with Engine.load(bundles["ucf"]) as engine:
        assert engine.backend.name == "onnxruntime"
        assert "openvino:cpu gives wrong features" in engine.why
    with pytest.raises(UserError, match=r"gives wrong features of the bundle's probe \(.* vadexport verify says"):
        Engine.load(bundles["ucf"], "openvino")
    # Who is to say how wrong it is can load it.
    with Engine.load(bundles["ucf"], "openvino", refuse_wrong=False) as engine:
        assert measure(engine.bundle, engine.backend).cosine < 0.9


def test_plain_openvino_keeps_nothing_and_has_one_stream(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    OpenvinoBackend(Bundle.open(bundles["ucf"]), "cpu", backends.Options()).close()
    assert any(tmp_path.rglob("*.blob"))
    backend = OpenvinoBackend(Bundle.open(bundles["ucf"]), "cpu", backends.Options(plain=True))
    assert len(backend._encoders) == 1 and not any(tmp_path.rglob("*.blob"))  # what may have been wrong is gone, too


@pytest.mark.parametrize(("threads", "parts"), [(1, [7]), (2, [2, 2, 2, 1]), (5, [1] * 7)])
def test_onnxruntime_computes_parts_of_a_batch_side_by_side(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, threads: int, parts: list[int]
) -> None:
    frames = Probe.load(bundles["ucf"] / "probe.npz").frames[:7]
    with Engine.load(bundles["ucf"], "openvino:cpu", precision="fp32") as engine:
        expected = engine.encode(frames)
    given: list[int] = []
    part = OnnxruntimeBackend._part

    def watched(self: OnnxruntimeBackend, some: np.ndarray) -> np.ndarray:
        given.append(len(some))
        return part(self, some)

    monkeypatch.setattr(OnnxruntimeBackend, "_part", watched)
    with Engine.load(bundles["ucf"], "onnxruntime:cpu", threads=threads) as engine:
        given.clear()  # of the start-up test
        np.testing.assert_allclose(engine.encode(frames), expected, atol=1e-5)
        assert sorted(given, reverse=True) == parts
        np.testing.assert_allclose(engine.encode(frames[:1]), expected[:1], atol=1e-5)
