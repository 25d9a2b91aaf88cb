"""Every graph that a bundle can hold builds, strongly typed, with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.golden import Golden
from tests.vadexport.test_cli import fails
from vadcalibrate.ranges import linear_inputs
from vadclip.model import VadCLIP
from vadclip.untrained import SMALL, untrained
from vadexport.build import BuildOptions, build
from vadexport.checks import LIMITS, Check
from vadexport.cli import main
from vadexport.compile import CompileError, CompileOptions, compile_bundle, encoder_shapes, head_shapes
from vadexport.encoder_graph import encoder_graph
from vadexport.head_graph import HeadSizes, head_graph
from vadexport.plan_builder import BuilderOptions, PlanBuilder, available_memory, memory_advice, memory_need
from vadrun import Bundle, UserError
from vadrun.backends import Options
from vadrun.backends.onnxruntime import OnnxruntimeBackend
from vadrun.bundle import BundleFile
from vadrun.cuda import Gpu
from vadrun.files import sha256
from vadrun.plans import PlanError, PlanSet, find_plans

trt = pytest.importorskip("tensorrt_rtx")

ELSEWHERE = BuilderOptions(targets=((8, 6), (8, 9)))
ROOT = Path(__file__).parents[2]


def weights(model: VadCLIP) -> dict[str, Any]:
    return {key: value.numpy() for key, value in model.state_dict().items()}


@cache
def full_size() -> VadCLIP:
    return untrained("ucf")


def network_types(path: Path) -> tuple[dict[str, str], set[str]]:
    """Types of the inputs and outputs as TensorRT parses them, and those of the matrix products."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    products = {str(x.get_output(0).dtype) for x in layers if x.type == trt.LayerType.MATRIX_MULTIPLY}
    return {x.name: str(x.dtype).removeprefix("DataType.") for x in tensors}, products


ENCODER_TYPES = {"frames": "UINT8", "features": "FLOAT"}
HEAD_TYPES = {"features": "FLOAT", "lengths": "INT64", "text": "FLOAT", "logits": "FLOAT", "alignment": "FLOAT"}


def typed(bundle: Path, precision: str) -> None:
    """The graphs of a bundle take, give and multiply the types that they should."""
    products = {"DataType.HALF" if precision == "fp16" else "DataType.FLOAT"}
    assert network_types(bundle / f"encoder.{precision}.onnx") == (ENCODER_TYPES, products)
    assert network_types(bundle / "head.onnx") == (HEAD_TYPES, {"DataType.FLOAT"})


def built(path: Path, precision: str, shapes: dict[str, list[list[int]]]) -> None:
    """Build for both targets; the plan is whole and said so."""
    entry = BundleFile(path.name, "encoder", precision, sha256(path), path.stat().st_size)
    builder = PlanBuilder(trt, ELSEWHERE, None, print)
    plan = builder.build(path, entry, path.with_suffix(".plan"), shapes)
    assert plan.typing == "strong"
    size = path.with_suffix(".plan").stat().st_size
    assert 0.4 < size / path.stat().st_size < 4
    assert plan.sha256 == sha256(path.with_suffix(".plan"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_full_size_encoder_builds(tmp_path: Path, precision: str) -> None:
    prefix = "clipmodel.visual."
    visual = {k.removeprefix(prefix): v for k, v in weights(full_size()).items() if k.startswith(prefix)}
    path = tmp_path / f"encoder.{precision}.onnx"
    heads = full_size().config.clip.vision_heads
    # Which ranges INT8 has changes nothing of what is built.
    ranges = dict.fromkeys(linear_inputs(encoder_graph(visual, heads)), 8.0) if precision == "int8" else None
    onnx.save(encoder_graph(visual, heads, precision, ranges), path)
    types, products = network_types(path)
    assert types == ENCODER_TYPES
    assert products == {"DataType.HALF" if precision == "fp16" else "DataType.FLOAT"}
    built(path, precision, {"frames": [[n, 224, 224, 3] for n in (1, 8, 32)]})


@pytest.mark.slow
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("dataset", ["ucf", "xd"])
def test_the_full_size_heads_build(tmp_path: Path, dataset: str, mask_padding: bool) -> None:
    model = untrained(dataset, SMALL, embed_dim=512)  # the image encoder is no part of the head
    config = model.config
    path = tmp_path / "head.onnx"
    sizes = HeadSizes(config.heads, config.window, mask_padding, config.temperature)
    onnx.save(head_graph(weights(model), sizes), path)
    types, products = network_types(path)
    assert types == HEAD_TYPES
    assert products == {"DataType.FLOAT"}
    shapes = {
        "features": [[n, 256, 512] for n in (1, 1, 8)],
        "lengths": [[n] for n in (1, 1, 8)],
        "text": [[n, 512] for n in (2, len(config.labels), 64)],
    }
    built(path, "fp32", shapes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_demo_bundle_compiles(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "demo"
    build(BuildOptions(ROOT / "demo" / "checkpoint.safetensors", out, precision=precision))
    compiled = compile_bundle(CompileOptions(out, builder=ELSEWHERE))
    assert compiled.plans.encoder.precision == precision
    typed(out, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_bundles_compile(golden: Golden, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "bundle"
    build(BuildOptions(golden.checkpoint, out, dataset=golden.dataset, precision=precision))
    compiled = compile_bundle(CompileOptions(out, builder=ELSEWHERE))
    typed(out, precision)
    assert compiled.plans == PlanSet.read(compiled.folder)
    assert compiled.plans.targets == ["8.6", "8.9"]
    assert not compiled.plans.passed  # nobody has run it yet
    assert (compiled.folder / "build.log").is_file()
    bundle = Bundle.open(out)  # engines are no part of the manifest
    profiles: Mapping[str, object] = {**encoder_shapes(bundle, (1, 8, 32)), **head_shapes(bundle)}
    assert {**compiled.plans.encoder.profile, **compiled.plans.head.profile} == profiles


def test_the_command(bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(bundle_copy), "--for", "8.6", "--batch", "1,4,4", "--low-memory"]) == 0
    printed = capsys.readouterr()
    assert "not checked" in printed.out
    assert "building encoder in fp32" in printed.err
    (sidecar,) = bundle_copy.glob("engines/*/build.json")
    assert json.loads(sidecar.read_text())["encoder"]["profile"]["frames"][2][0] == 4


ORIN = Gpu(0, "Orin", (8, 7), 8 << 30, "12.6", True)
A2000 = Gpu(0, "NVIDIA RTX A2000", (8, 6), 6 << 30, "13.0")


class OnTheCpu(OnnxruntimeBackend):
    """Stands for TensorRT's backend: it takes a folder of plans, and runs the bundle's graphs."""

    name, device = "tensorrt", "cuda"

    def __init__(self, bundle: Bundle, device: str, options: Options, folder: Path) -> None:
        assert (folder / "encoder.plan").is_file()
        super().__init__(bundle, "cpu", options)

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        return None

    def layers(self) -> list[str]:
        return ["__myl_fc", "__mha_v2"]


@pytest.fixture
def carried(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with plans for 8.6 that were built elsewhere, as if it had come to a machine with such a GPU."""
    folder = compile_bundle(CompileOptions(bundle_copy, builder=ELSEWHERE)).folder
    assert not PlanSet.read(folder).checks
    monkeypatch.setattr("vadexport.compile._gpu", lambda: A2000)
    monkeypatch.setattr("vadexport.plan_check.gpus", lambda: (A2000,))
    monkeypatch.setattr("vadexport.plan_check.TensorrtBackend", OnTheCpu)
    return folder


def found_by_the_runtime(bundle: Path, gpu: Gpu = A2000) -> Path | None:
    try:
        return find_plans(Bundle.open(bundle), gpu, "tensorrt_rtx", trt.__version__)[0]
    except PlanError:
        return None


@pytest.mark.parametrize("command", ["compile", "verify"])
def test_engines_from_elsewhere_are_checked_on_the_device_and_taken(
    bundle_copy: Path, carried: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    built = sha256(carried / "encoder.plan")
    assert found_by_the_runtime(bundle_copy) is None
    for _ in range(2):  # the second time there is nothing new to do
        assert main([command, str(bundle_copy)]) == 0
        assert "building" not in capsys.readouterr().err
    assert found_by_the_runtime(bundle_copy) == carried and sha256(carried / "encoder.plan") == built
    plans = PlanSet.read(carried)
    assert plans.checked_on == [A2000.name] and plans.encoder.attention == 1
    assert found_by_the_runtime(bundle_copy, replace(A2000, name="NVIDIA RTX 3060")) is None


def test_engines_from_elsewhere_that_are_wrong_here_are_not_taken(
    bundle_copy: Path, carried: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = OnnxruntimeBackend.encode
    monkeypatch.setattr(OnTheCpu, "encode", lambda self, frames: encode(self, frames)[:, ::-1], raising=False)
    assert main(["verify", str(bundle_copy)]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "tensorrt:" in line]
    assert {row[0]: row[-1] for row in rows} == {"encoder": "FAIL", "head": "pass", "chain": "FAIL"}
    assert found_by_the_runtime(bundle_copy) is None and not PlanSet.read(carried).checks
    Bench(monkeypatch, gpu=A2000)  # where what is built here is right
    assert main(["compile", str(bundle_copy)]) == 0
    assert "building anew: they are further from PyTorch" in capsys.readouterr().err
    found = found_by_the_runtime(bundle_copy)
    assert found is not None and found.name.startswith("rtx-a2000-sm86-")


def test_options_of_the_build_build(bundle_copy: Path, carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(monkeypatch, gpu=A2000)
    assert main(["compile", str(bundle_copy), "--batch", "1,4,4"]) == 0
    assert not PlanSet.read(carried).checks and len(list(carried.parent.glob("*/build.json"))) == 2


def test_an_fp16_build_compiles_where_it_can(
    ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("vadexport.compile.can_compile", lambda: True)
    monkeypatch.setattr("vadexport.cli._compile_with", lambda options: called.append(options) or 0)
    for precision, times in (("fp32", 0), ("fp16", 1)):
        out = tmp_path / precision
        arguments = ["--checkpoint", str(ucf.checkpoint), "--dataset", "ucf", "--out", str(out)]
        assert main(["build", *arguments, "--precision", precision]) == 0
        assert len(called) == times


def test_a_bundle_is_whole_whatever_becomes_of_its_engines(
    ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: object) -> int:
        raise UserError("the tensorrt backend needs cuda-bindings")

    monkeypatch.setattr("vadexport.compile.can_compile", lambda: True)
    monkeypatch.setattr("vadexport.cli._compile_with", broken)
    arguments = ["--checkpoint", str(ucf.checkpoint), "--dataset", "ucf", "--out", str(tmp_path / "b")]
    assert main(["build", *arguments, "--precision", "fp16"]) == 0
    printed = capsys.readouterr()
    assert f"bundle in {tmp_path / 'b'}" in printed.out
    assert "no engines for this machine: the tensorrt backend needs cuda-bindings" in printed.err


def test_bad_input(bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (("--batch", "1,8"), "--batch is '1,8': give MIN,OPT,MAX"),
        (("--batch", "4,2,8"), "is no range"),
        (("--batch", "0,2,8"), "is no range"),
        (("--for", "87"), "--for is '87': give compute capabilities such as 8.6,8.9"),
        (("--for", "8.7"), "builds for no GPU of compute capability 8.7: take one of"),
        (("--memory", "0"), "--memory is 0"),
        (("--for", "8.6", "--version-compatible"), "fit only the release that built them"),
    ):
        assert said in fails(capsys, "compile", bundle_copy, *arguments)
    assert "does not exist" in fails(capsys, "compile", tmp_path / "none", "--for", "8.6")
    assert not (bundle_copy / "engines").exists()


def test_a_graph_that_tensorrt_refuses_leaves_nothing(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"frames": [[1, 1, 1, 3]] * 3}  # not what the graph takes
    monkeypatch.setattr("vadexport.compile.encoder_shapes", lambda bundle, batch: shapes)
    before = compile_bundle_error(bundle_copy)
    assert "TensorRT cannot build" in before
    assert not list(bundle_copy.glob("engines/*"))


def compile_bundle_error(bundle: Path) -> str:
    with pytest.raises(UserError) as error:
        compile_bundle(CompileOptions(bundle, builder=ELSEWHERE))
    return str(error.value)


def test_earlier_engines_stay_when_a_build_fails(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compile_bundle(CompileOptions(bundle_copy, builder=ELSEWHERE)).folder
    kept = shutil.copytree(folder, bundle_copy.parent / "kept")
    monkeypatch.setattr("vadexport.compile.encoder_shapes", lambda bundle, batch: {"frames": [[1, 1, 1, 3]] * 3})
    compile_bundle_error(bundle_copy)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in kept.iterdir()}


def test_two_do_not_compile_one_bundle_at_once(bundle_copy: Path) -> None:
    place = os.open(bundle_copy, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        assert "is being compiled by another process" in compile_bundle_error(bundle_copy)
    finally:
        os.close(place)
    compile_bundle(CompileOptions(bundle_copy, builder=ELSEWHERE))


class Bench:
    """A GPU that is not there: fp16 is right on it where ``guilty`` are in float32."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *guilty: str, gpu: Gpu = ORIN) -> None:
        self.guilty = set(guilty)
        self.builds: list[list[str]] = []
        self.said: list[str] = []
        monkeypatch.setattr("vadexport.compile._gpu", lambda: gpu)
        monkeypatch.setattr(
            "vadexport.compile.PlanBuilder", lambda trt, options, *rest: PlanBuilder(trt, ELSEWHERE, *rest)
        )
        monkeypatch.setattr("vadexport.compile._Work.checked", lambda work, plans: self.checked(plans))

    def checked(self, plans: PlanSet) -> tuple[PlanSet, list[Check]]:
        held = plans.encoder.held
        self.builds.append(held)
        limits = LIMITS["fp16"]
        score = 1e-4 if self.guilty <= set(held) else 0.3
        events = 0 if score < limits.score else 1
        checks = [
            Check("head", "tensorrt:cuda", "fp32", None, None, 1e-6, 1e-7, 0, 0, LIMITS["fp32"], True),
            Check("chain", "tensorrt:cuda", "fp16", 1, 1, score, score, events, 0, limits, score <= limits.score),
        ]
        return replace(plans, checks=[asdict(check) for check in checks]), checks

    def compile(self, bundle: Path, **options: Any) -> PlanSet:
        self.builds.clear()
        return compile_bundle(CompileOptions(bundle, **options), self.said.append).plans


@pytest.fixture
def half(ucf: Golden, tmp_path: Path) -> Path:
    out = tmp_path / "half"
    build(BuildOptions(ucf.checkpoint, out, dataset="ucf", precision="fp16"))
    return out


def test_what_fp16_cannot_is_found_kept_and_used_again(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, "blocks.1/mlp")
    plans = bench.compile(half)
    assert plans.encoder.held == ["blocks.1/mlp"] and plans.passed
    assert bench.builds[0] == [] and len(bench.builds) > 3
    (folder,) = half.glob("engines/orin-*")
    assert PlanSet.read(folder) == plans
    assert sha256(folder / "encoder.plan") == plans.encoder.sha256
    assert any(line == "in float32: blocks.1/mlp" for line in bench.said)
    assert any("MiB of memory, and" in line for line in bench.said)
    again = bench.compile(half)
    assert bench.builds == [["blocks.1/mlp"]] and again.encoder.held == ["blocks.1/mlp"]


def test_fp16_that_is_right_stays(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    assert bench.compile(half).encoder.held == []
    assert bench.builds == [[]]


def test_an_engine_that_nothing_mends_is_refused(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(monkeypatch, "no part of it")
    with pytest.raises(CompileError, match="float32 in all of its parts does not mend that") as error:
        bench.compile(half)
    assert not all(check.passed for check in error.value.checks)
    assert not list(half.glob("engines/*"))
    assert main(["compile", str(half), "--keep-failed"]) == 1
    shown = capsys.readouterr()
    assert "FAIL" in shown.out and "(kept in" in shown.err
    (kept,) = half.glob("engines/*-failed")
    assert {"encoder.plan", "head.plan", "build.json", "build.log"} <= {path.name for path in kept.iterdir()}
    assert not PlanSet.read(kept).passed


def test_int8_that_misses_its_limits_is_not_searched_for_parts(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of an int8 graph is float16: there is nothing that float32 could mend, and no other build is made."""
    graph = half / "encoder.int8.onnx"
    (half / "encoder.fp16.onnx").rename(graph)
    manifest = json.loads((half / "manifest.json").read_text())
    entry = manifest["files"].pop("encoder.fp16.onnx") | {"precision": "int8"}
    manifest["files"][graph.name] = entry
    (half / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("vadexport.plan_builder.parts_of", lambda trt, network: [])
    bench = Bench(monkeypatch, "no part of it")
    with pytest.raises(CompileError, match="misses its limits in int8: build the bundle with --precision fp16"):
        bench.compile(half)
    assert bench.builds == [[]]


def test_what_a_build_needs() -> None:
    usual, little = BuilderOptions(), BuilderOptions(low_memory=True)
    assert memory_need(165 << 20, usual) > memory_need(165 << 20, little) > 1000
    assert memory_need(165 << 20, BuilderOptions(memory_mib=64)) < memory_need(165 << 20, little)
    assert "give --low-memory" in memory_advice(3000, 2000, usual)
    assert "add swap" in memory_advice(3000, 2000, little)
    assert memory_advice(1000, 2000, usual).endswith("2000 MiB are free")
    assert memory_advice(1000, None, usual) == "the build needs about 1000 MiB of memory"
    available = available_memory()
    assert available is None or available > 10
