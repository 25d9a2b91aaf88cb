from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vadrun import Bundle, backends
from vadrun.backends import openvino as backend_module
from vadrun.backends import openvino_parts
from vadrun.backends.openvino import OpenvinoBackend
from vadrun.backends.openvino_parts import in_parts
from vadrun.cache import seal

openvino = pytest.importorskip("openvino")
op = openvino.opset13

FRAMES = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), np.uint8)


def graph(bundle: Path) -> Any:
    return openvino.Core().read_model(str(Bundle.open(bundle).path("encoder")))


def features(model: Any) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(FRAMES)[0])


def linears(model: Any) -> list[tuple[int, int]]:
    """[K,N] of all linears, sorted."""
    found = (node.input_value(1) for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    return sorted(tuple(value.get_shape()) for value in found if len(value.get_partial_shape()) == 2)


def test_parts_give_the_same(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for bundle in bundles.values():
        model = graph(bundle)
        expected, before = features(model), linears(model)
        width = max(k for k, n in before if n == 4 * k)
        blocks = before.count((width, 4 * width))
        monkeypatch.setattr(openvino_parts, "MOST_BYTES", width * 64 * 2)
        taken = in_parts(model, 2)
        after = linears(model)
        # Of each block both linears of the feed-forward network, and one that makes Q, K and V, or K and V.
        assert taken == 3 * blocks
        assert min(after.count((width, 64)), after.count((64, width))) >= 4 * width // 64 * blocks
        assert not any(n > width for k, n in after if k == width)
        np.testing.assert_allclose(features(model), expected, atol=2e-6)


def test_what_fits_is_left_alone(bundles: dict[str, Path]) -> None:
    model = graph(bundles["ucf"])
    before = linears(model)
    assert in_parts(model, 2) == 0
    assert linears(model) == before


def test_pictures_of_q_k_and_v_that_are_picked_in_another_way_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_parts, "MOST_BYTES", 1)

    def attention(first: int) -> Any:
        x = op.parameter([-1, 5, 8], np.float32)
        value = op.add(op.matmul(x, np.ones((8, 24), np.float32), False, False), np.zeros(24, np.float32))
        value = op.reshape(value, np.array([0, 5, 3, 2, 4], np.int64), True)
        value = op.transpose(value, np.array([2, 0, 3, 1, 4], np.int64))
        picks = [op.gather(value, np.array(at, np.int64), np.array(0, np.int64)) for at in (first, 1, 2)]
        return openvino.Model(picks, [x])

    assert in_parts(attention(0), 2) == 1
    assert in_parts(attention(-3), 2) == 0


def network(between: Callable[[Any], Any], named: bool = False) -> Any:
    """Two linears, 8 to 128 to 8, with something in between, and behind them if they are not the output by name."""
    rng = np.random.default_rng(0)
    x = op.parameter([-1, 8], np.float32)
    hidden = op.add(op.matmul(x, rng.normal(size=(8, 128)).astype(np.float32), False, False), np.zeros(128, np.float32))
    out = op.matmul(between(hidden), rng.normal(size=(128, 8)).astype(np.float32), False, False)
    out = op.add(out, np.ones(8, np.float32))
    return openvino.Model([out if named else op.relu(out)], [x])


def test_linears_with_something_else_in_between_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_parts, "MOST_BYTES", 8 * 64 * 2)
    assert in_parts(network(op.sigmoid), 2) == 2
    assert in_parts(network(lambda hidden: op.erf(op.divide(hidden, op.constant(np.float32(1.4))))), 2) == 2
    assert in_parts(network(op.sigmoid, named=True), 2) == 0  # its output has a name that somebody asks for
    assert in_parts(network(lambda hidden: op.softmax(hidden, 1)), 2) == 0  # a unit's value depends on the others
    other = op.constant(np.ones((128, 128), np.float32))
    assert in_parts(network(lambda hidden: op.add(hidden, op.matmul(hidden, other, False, False))), 2) == 0


@pytest.fixture
def matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has them, and a small cache; to be asked for ``auto`` or bfloat16."""
    monkeypatch.setattr(backend_module, "processor_flags", lambda: frozenset({"amx_bf16", "amx_int8"}))
    monkeypatch.setattr(openvino_parts, "MOST_BYTES", 64 * 64 * 2)


def test_matrix_units_get_parts_and_keep_them(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix_units: None
) -> None:
    """Compiled once; a kept model that is damaged is compiled anew, and the latest two stay."""
    if not hasattr(openvino, "tensor_from_file"):
        pytest.skip("this OpenVINO keeps compiled models by itself only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    core = openvino.Core()
    path, settings = Bundle.open(bundles["ucf"]).path("encoder"), {"INFERENCE_PRECISION_HINT": "f32"}
    rewritten: list[int] = []

    def watched(model: Any, weight_bytes: int) -> int:
        rewritten.append(in_parts(model, weight_bytes))
        return rewritten[-1]

    monkeypatch.setattr(backend_module, "in_parts", watched)
    made = [np.array(backend_module._in_parts(core, path, settings, 2, None)(FRAMES)[0])]
    assert len(rewritten) == 1 and rewritten[0] > 0
    for _ in range(2):
        made.append(np.array(backend_module._in_parts(core, path, settings, 2, tmp_path / "kept")(FRAMES)[0]))
    (kept,) = (tmp_path / "kept").glob("*.blob")
    assert len(rewritten) == 2
    whole = kept.read_bytes()
    odd = bytearray(whole)
    odd[24] ^= 0xFF  # the library says what it is in its message, which then is no text
    weights = bytearray(whole)
    weights[len(whole) // 2] ^= 0xFF  # the library would take it
    for damaged, sealed in ((whole[: len(whole) // 2], False), (weights, False), (odd, False), (odd, True)):
        kept.write_bytes(damaged)
        if sealed:
            seal(kept)
        before = len(rewritten)
        made.append(np.array(backend_module._in_parts(core, path, settings, 2, tmp_path / "kept")(FRAMES)[0]))
        assert len(rewritten) == before + 1
    made.append(np.array(backend_module._in_parts(core, path, settings, 2, Path("/proc/none"))(FRAMES)[0]))
    for streams in (1, 2, 3):
        backend_module._in_parts(core, path, {**settings, "NUM_STREAMS": streams}, 2, tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*.blob"))) == len(list((tmp_path / "kept").glob("*.crc32"))) == 2
    for one in made[1:]:
        np.testing.assert_allclose(one, made[0], atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "plain", "expected"), [("auto", False, True), ("auto", True, False), ("fp32", False, False)]
)
def test_only_where_they_are_used(
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    matrix_units: None,
    precision: str,
    plain: bool,
    expected: bool,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if expected and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    taken: list[int] = []
    monkeypatch.setattr(backend_module, "in_parts", lambda model, weight: taken.append(in_parts(model, weight)))
    bundle = Bundle.open(bundles["ucf"])
    first, second = (
        OpenvinoBackend(bundle, "cpu", backends.Options(precision=precision, plain=plain)).encode(FRAMES)
        for _ in range(2)
    )
    assert len(taken) == expected  # the second time it was kept
    np.testing.assert_array_equal(first, second)
