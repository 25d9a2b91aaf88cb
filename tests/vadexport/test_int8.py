"""INT8 encoders: the graph, the choice of ranges, what stays in float32, and bundles on each backend."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.golden import Golden
from tests.vadexport.test_cli import fails
from vadcalibrate.diverse import Chosen
from vadcalibrate.ranges import Ranges, collect
from vadexport import int8 as int8_module
from vadexport.build import BuildOptions, build
from vadexport.checks import LIMITS
from vadexport.cli import main
from vadexport.graph import int8_rows
from vadexport.int8 import int8_graph
from vadexport.probe import Probe, drawn_frames
from vadrun import Bundle, Engine, UserError, backends
from vadrun.backends import openvino_parts
from vadrun.selftest import cosines

LOOSE = {"cosine": 0.9, "score": 1.0, "lost": 99}  # the golden models are random: their features are near each other


@pytest.fixture(scope="module")
def ranges(bundles: dict[str, Path]) -> Ranges:
    frames = drawn_frames(64, 48)
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        chosen = Chosen(frames, engine.encode(frames), 48, 1, 0.1)
        return collect(engine.bundle, chosen)


@pytest.fixture(scope="module")
def visual(ucf: Golden) -> dict[str, np.ndarray]:
    prefix = "clipmodel.visual."
    return {k.removeprefix(prefix): v.numpy() for k, v in ucf.load().state_dict().items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def heads(ucf: Golden) -> int:
    return int(ucf.load().config.clip.vision_heads)


@pytest.fixture(scope="module")
def int8_bundle(ucf: Golden, ranges: Ranges, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    ranges.save(folder / "r.npz")
    options = BuildOptions(
        ucf.checkpoint, folder / "b", dataset="ucf", precision="int8", ranges=folder / "r.npz", limits=LOOSE
    )
    assert build(options).passed
    return folder / "b"


def test_rows_are_symmetric_and_near() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    weight[3] = 0
    rows, scales = int8_rows(weight)
    assert rows.dtype == np.int8 and (np.abs(rows.astype(int)).max(axis=1)[[0, 1, 2, 4]] == 64).all()
    assert (np.abs(rows * scales[:, None] - weight) <= scales[:, None] / 2 + 1e-7).all()
    assert not rows[3].any() and np.isfinite(scales).all()


def test_two_products_fit_into_16_bits() -> None:
    """What x86 without VNNI adds them in: an unsigned input by a weight, twice."""
    rows, _ = int8_rows(np.full((1, 2), -3.0, np.float32))
    assert int(rows.astype(int).sum()) * 255 >= -(2**15)


def test_every_linear_has_explicit_quantisation(visual: dict[str, np.ndarray], heads: int, ranges: Ranges) -> None:
    graph, _, record = int8_graph(visual, heads, ranges)
    made = {node.output[0]: node for node in graph.graph.node}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name in ranges.linears:
        left, right = (
            (made[value] for value in made[f"{name}/matmul"].input) if name not in record.kept else (None, None)
        )
        if left is None or right is None:
            continue
        assert left.op_type == right.op_type == "DequantizeLinear"
        assert made[left.input[0]].op_type == "QuantizeLinear"
        weight, zeros = constants[right.input[0]], constants[right.input[2]]
        assert weight.data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(zeros).any()  # symmetric
        assert len(onnx.numpy_helper.to_array(constants[right.input[1]])) == weight.dims[1]  # a scale for each channel
        assert onnx.numpy_helper.to_array(constants[left.input[1]]).shape == ()  # and one for the tensor
    assert record.cosine[0] >= int8_module.TARGET
    assert record.methods[record.method] == min(record.methods.values())


def test_bad_ranges_lose_to_good_ones(visual: dict[str, np.ndarray], heads: int, ranges: Ranges) -> None:
    tiny = {"tiny": tuple(0.01 * value for value in ranges.methods["percentile 100"])}
    both = dataclasses.replace(ranges, methods={**tiny, "entropy": ranges.methods["entropy"]})
    assert int8_graph(visual, heads, both)[2].method == "entropy"


def test_the_most_sensitive_linear_stays_in_float32(visual: dict[str, np.ndarray], heads: int, ranges: Ranges) -> None:
    """One linear whose range is ruined has to be found and kept out; others need not be."""
    name = ranges.linears[1]
    ruined = {
        "one": tuple(
            value * (0.003 if linear == name else 1.0) for linear, value in ranges.of("percentile 100").items()
        )
    }
    spoilt = dataclasses.replace(ranges, methods=ruined)
    graph, own, record = int8_graph(visual, heads, spoilt)
    assert name in record.kept and len(record.kept) <= 2
    weights = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert weights[f"{name}.weight"] == onnx.TensorProto.FLOAT
    assert {t.name: t.data_type for t in own.graph.initializer}[f"{name}.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.INT8 in weights.values()


def test_what_cannot_be_quantised_is_said(visual: dict[str, np.ndarray], heads: int, ranges: Ranges) -> None:
    ruined = {"all": tuple(0.001 * value for value in ranges.methods["percentile 100"])}
    with pytest.raises(UserError, match="INT8 changes the features too much"):
        int8_graph(visual, heads, dataclasses.replace(ranges, methods=ruined))
    with pytest.raises(UserError, match="of an encoder with other linears"):
        int8_graph(visual, heads, dataclasses.replace(ranges, linears=("a",) * len(ranges.linears)))


@pytest.mark.parametrize("backend", ["onnxruntime:cpu", "openvino:cpu"])
def test_a_bundle_runs_in_int8(int8_bundle: Path, bundles: dict[str, Path], ranges: Ranges, backend: str) -> None:
    probe = Probe.load(int8_bundle / "probe.npz")
    # Footage, not drawn frames, is what ranges are for; and not the frames that int8 was chosen by.
    np.testing.assert_array_equal(probe.frames, ranges.frames[1::2])
    with Engine.load(int8_bundle, backend) as engine, Engine.load(bundles["ucf"], backend, precision="fp32") as full:
        form = "encoder.int8.onnx" if backend == "openvino:cpu" else "encoder.int8.onnxruntime.onnx"
        assert engine.backend.precision == "int8" and engine.backend.encoder_file == form
        cosine = cosines(engine.encode(probe.frames), full.encode(probe.frames))
    assert 0.99 < cosine.min() < 1 - 1e-7
    with pytest.raises(UserError, match="finds no"):
        Engine.load(int8_bundle, backend, precision="fp32")
    with pytest.raises(UserError, match="has no int8 encoder, only fp32"):
        Engine.load(bundles["ucf"], backend, precision="int8")


@pytest.mark.parametrize(
    ("flags", "has"),
    [("sse2 avx2", False), ("sse2 avx2 avx_vnni", True), ("sse2 avx512_vnni", True), ("fp asimd", True), ("", True)],
)
def test_which_processors_multiply_int8(monkeypatch: pytest.MonkeyPatch, flags: str, has: bool) -> None:
    monkeypatch.setattr(backends, "processor_flags", lambda: frozenset(flags.split()))
    assert backends.multiplies_int8() is has


@pytest.mark.parametrize(("instructions", "taken"), [(True, "openvino"), (False, "onnxruntime")])
def test_auto_takes_what_gains_from_int8(
    int8_bundle: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, instructions: bool, taken: str
) -> None:
    monkeypatch.setattr(backends, "multiplies_int8", lambda: instructions)
    with Engine.load(int8_bundle) as engine:
        assert engine.backend.name == taken or engine.backend.device == "cuda"
    with Engine.load(bundles["ucf"]) as engine:
        assert engine.backend.name == "openvino" or engine.backend.device == "cuda"
    with Engine.load(int8_bundle, "openvino") as engine:
        assert engine.backend.name == "openvino", "a backend that the user named is never replaced"


def test_the_bundle_tells_how_it_was_made(int8_bundle: Path, bundles: dict[str, Path]) -> None:
    manifest = json.loads((int8_bundle / "manifest.json").read_text())
    made = manifest["graphs"]["encoder.int8.onnx"]["int8"]
    assert made["method"] in made["methods"] and made["ranges"]["frames"] == 36
    run = json.loads((int8_bundle / "certificate.json").read_text())["runs"][0]
    assert {check["precision"] for check in run["checks"] if check["artifact"] != "head"} == {"int8"}
    assert all(check["limits"]["cosine"] == 0.9 for check in run["checks"] if check["artifact"] == "encoder")
    sizes = [Bundle.open(root).file("encoder").bytes for root in (int8_bundle, bundles["ucf"])]
    assert sizes[0] < 0.6 * sizes[1]  # in so small a model the patch embedding and the graph itself count
    assert LIMITS["int8"].lost == 0


def test_inspect_tells_it_too(int8_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(int8_bundle)]) == 0
    said = capsys.readouterr().out
    assert "int8 ranges by" in said and "for onnxruntime alone, weights in encoder.int8.onnx" in said


def test_the_form_for_onnxruntime_gives_the_same_and_takes_no_room(int8_bundle: Path) -> None:
    bundle = Bundle.open(int8_bundle)
    general, own = (bundle.file("encoder", "int8", backend) for backend in (None, "onnxruntime"))
    assert (general.backend, own.backend) == (None, "onnxruntime")
    assert bundle.file("encoder", backend="openvino") == general and bundle.encoder_precisions == ("int8",)
    assert own.bytes < 0.15 * general.bytes
    model = onnx.load(int8_bundle / own.name, load_external_data=False)
    operators = {(node.domain, node.op_type) for node in model.graph.node}
    assert ("com.microsoft", "MatMulIntegerToFloat") in operators and ("", "DequantizeLinear") not in operators
    frames = Probe.load(int8_bundle / "probe.npz").frames
    features = []
    for entry in (general, own):
        session = onnxruntime.InferenceSession(str(int8_bundle / entry.name), providers=["CPUExecutionProvider"])
        features.append(session.run(None, {"frames": frames})[0])
    np.testing.assert_allclose(features[1], features[0], atol=1e-4)


def test_bad_input(ucf: Golden, xd: Golden, ranges: Ranges, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.npz"
    ranges.save(path)
    build_of = ("--checkpoint", ucf.checkpoint, "--dataset", "ucf", "--out", tmp_path / "b")
    for arguments, said in (
        ((*build_of, "--precision", "int8"), "go together"),
        ((*build_of, "--ranges", path), "go together"),
        ((*build_of, "--precision", "int8", "--ranges", tmp_path / "none.npz"), "does not exist"),
        (
            (
                "--checkpoint",
                xd.checkpoint,
                "--dataset",
                "xd",
                "--out",
                tmp_path / "b",
                "--precision",
                "int8",
                "--ranges",
                path,
            ),
            "was made with a bundle of another checkpoint",
        ),
        (
            (*build_of, "--precision", "int8", "--ranges", path, "--preprocessing", "reference"),
            "was made with a bundle of another preprocessing",
        ),
    ):
        assert said in fails(capsys, "build", *arguments)
    assert not (tmp_path / "b").exists()


def test_it_builds_strongly_typed_with_tensorrt(int8_bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from vadexport.compile import CompileOptions, compile_bundle
    from vadexport.plan_builder import BuilderOptions

    compiled = compile_bundle(CompileOptions(int8_bundle, builder=BuilderOptions(targets=((8, 6), (8, 9)))))
    assert (compiled.plans.encoder.precision, compiled.plans.encoder.typing) == ("int8", "strong")


def test_openvino_takes_int8_in_parts(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For processors with matrix units; what is quantised stays so, and gives the same but for rounding."""
    openvino = pytest.importorskip("openvino")
    bundle = Bundle.open(int8_bundle)
    frames = drawn_frames(64, 4)
    core, path, settings = openvino.Core(), str(bundle.path("encoder", "int8")), {"INFERENCE_PRECISION_HINT": "f32"}
    expected = np.array(core.compile_model(path, "CPU", settings)(frames)[0])
    model = core.read_model(path)
    quantised = sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    monkeypatch.setattr(openvino_parts, "MOST_BYTES", 64 * 64)
    assert openvino_parts.in_parts(model, 1) > 0
    assert sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops()) > quantised
    found = np.array(core.compile_model(model, "CPU", settings)(frames)[0])
    assert cosines(found, expected).min() > 0.9999
