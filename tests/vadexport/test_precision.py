"""The search for what needs float32, against a measure that is made up, and the networks that come of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from vadclip.untrained import SMALL, untrained
from vadexport.encoder_graph import encoder_graph
from vadexport.plan_builder import BuilderOptions, PlanBuilder
from vadexport.precision import hold_by_flag, hold_strongly, parts_of, search, smallest
from vadrun.bundle import BundleFile

PARTS = ["ln_pre", *(f"blocks.{i}/{part}" for i in range(12) for part in ("ln_1", "attn", "ln_2", "mlp")), "ln_post"]


def needing(*guilty: str) -> tuple[Any, list[list[str]]]:
    """A measure that is right where all of ``guilty`` are in float32, and what it was asked."""
    asked: list[list[str]] = []

    def right(held: list[str]) -> bool:
        asked.append(list(held))
        return set(guilty) <= set(held)

    return right, asked


@pytest.mark.parametrize(
    "guilty",
    [
        ["blocks.7/mlp"],
        ["ln_pre"],
        ["blocks.0/attn", "blocks.11/attn"],
        ["ln_pre", "blocks.3/ln_1", "blocks.3/mlp", "blocks.8/attn", "ln_post"],
        [f"blocks.{i}/mlp" for i in range(12)],
        PARTS,
    ],
)
def test_exactly_the_parts_that_are_needed_are_found(guilty: list[str]) -> None:
    right, asked = needing(*guilty)
    assert search(PARTS, right) == guilty
    assert len({tuple(held) for held in asked}) == len(asked)  # nothing is built twice


def test_one_guilty_part_costs_few_builds() -> None:
    for part in PARTS:
        right, asked = needing(part)
        assert search(PARTS, right) == [part]
        assert len(asked) <= 16


def test_where_float32_does_not_help_one_build_tells() -> None:
    asked: list[list[str]] = []
    assert search(PARTS, lambda held: asked.append(held) or False) is None  # type: ignore[func-returns-value]
    assert asked == [PARTS]


def test_none_of_the_result_can_be_left_out() -> None:
    # Any three of these do: no part is needed by itself.
    some = {"a", "d", "e", "h", "k"}

    def right(held: Any) -> bool:
        return len(some & set(held)) >= 3

    found = smallest(list("abcdefghijkl"), right)
    assert len(found) == 3 and set(found) <= some


trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = untrained("ucf", SMALL)
    prefix = "clipmodel.visual."
    weights = {k.removeprefix(prefix): v.numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}
    path = tmp_path_factory.mktemp("graph") / "encoder.fp16.onnx"
    onnx.save(encoder_graph(weights, model.config.clip.vision_heads, "fp16"), path)
    return path


class Parsed:
    """A network with what must outlive it."""

    def __init__(self, path: Path) -> None:
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self.logger)
        assert self.parser.parse_from_file(str(path))

    def types(self, kinds: set[str]) -> dict[str, str]:
        """Output type of the layers of these kinds."""
        layers = [self.network.get_layer(index) for index in range(self.network.num_layers)]
        return {x.name: x.get_output(0).dtype.name for x in layers if x.type.name in kinds}


WORK = {"MATRIX_MULTIPLY", "SOFTMAX", "NORMALIZATION", "ELEMENTWISE", "ACTIVATION"}


def test_the_parts_of_the_graph(graph: Path) -> None:
    parts = parts_of(trt, Parsed(graph).network)
    assert parts[:5] == ["embedding/half", "ln_pre", "blocks.0/ln_1", "blocks.0/attn", "blocks.0/ln_2"]
    assert {"blocks.0/mlp", "blocks.1/class_token", "blocks.1/attn", "ln_post", "proj/matmul"} <= set(parts)
    assert not [part for part in parts if part.startswith(("patches", "frames", "ONNXTRT"))]


@pytest.mark.parametrize(
    "held",
    [["blocks.0/attn"], ["ln_pre", "blocks.1/mlp"], ["embedding/half", "ln_pre"], ["ln_post", "proj/matmul"], None],
)
def test_held_parts_compute_in_float32_and_nothing_else_does(graph: Path, held: list[str] | None) -> None:
    parsed = Parsed(graph)
    wanted = parts_of(trt, parsed.network) if held is None else held
    before = parsed.types(WORK)
    hold_strongly(trt, parsed.network, wanted)
    after = parsed.types(WORK)
    assert after.keys() == before.keys()
    for name, kind in before.items():
        inside = "/".join(name.split("/")[:2]) in wanted
        # Helpers and the shapes' own arithmetic are no part of the graph.
        if kind == "HALF" and not name.startswith("ONNXTRT_"):
            assert after[name] == ("FLOAT" if inside else "HALF"), name
        elif kind != "HALF":
            assert after[name] == kind
    assert parsed.network.get_output(0).dtype == trt.DataType.FLOAT


def test_held_parts_build(graph: Path, tmp_path: Path) -> None:
    entry = BundleFile(graph.name, "encoder", "fp16", "0" * 64, graph.stat().st_size)
    shapes = {"frames": [[n, 64, 64, 3] for n in (1, 8, 8)]}
    said: list[str] = []
    builder = PlanBuilder(trt, BuilderOptions(targets=((8, 6),)), None, said.append)
    for held in (["blocks.0/attn", "blocks.1/mlp"], parts_of(trt, Parsed(graph).network)):
        plan = builder.build(graph, entry, tmp_path / "encoder.plan", shapes, held)
        assert plan.held == held and plan.typing == "strong"
        assert builder.parts == parts_of(trt, Parsed(graph).network)
    assert "building encoder in fp16 but for 2 parts in float32" in said


def test_by_flag_the_layers_themselves_are_told() -> None:
    # TensorRT-RTX has no flags: this is the network as TensorRT 10 would have it, as far as it is asked.
    def layer(name: str, kind: str, dtype: str) -> Any:
        told: list[Any] = []
        output = SimpleNamespace(dtype=dtype)
        return SimpleNamespace(
            name=name,
            type=f"LayerType.{kind}",
            num_outputs=1,
            get_output=lambda index: output,
            set_output_type=lambda index, to: told.append(to),
            told=told,
            precision=None,
        )

    layers = [
        layer("blocks.0/ln_1.weight", "CONSTANT", "half"),
        layer("blocks.0/ln_1", "NORMALIZATION", "half"),
        layer("blocks.0/attn/qk", "MATRIX_MULTIPLY", "half"),
        layer("blocks.0/attn/shape", "GATHER", "int64"),
        layer("blocks.0/attn/half", "CAST", "half"),
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    fake: Any = SimpleNamespace(DataType=SimpleNamespace(FLOAT="float", HALF="half"))
    hold_by_flag(fake, network, ["blocks.0/attn"])
    assert [x.precision for x in layers] == [None, None, "float", None, None]
    assert [x.told for x in layers] == [[], [], ["float"], [], []]
