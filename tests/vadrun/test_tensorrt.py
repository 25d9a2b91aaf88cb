"""What of the TensorRT backend is not TensorRT's or CUDA's: buffers, shapes, padding, and its errors without a GPU."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.vadrun.test_plans import ORIN, plan_set
from vadrun import Bundle, Engine, UserError
from vadrun.backends import BackendError, Options
from vadrun.backends import tensorrt as module
from vadrun.backends.tensorrt import LoadedEngine, TensorrtBackend, padded
from vadrun.cuda import NoCuda, gpus
from vadrun.plans import ENGINES


def without_gpu() -> bool:
    try:
        gpus()
    except NoCuda:
        return True
    return False


class HostCuda:
    """The memory of a GPU that is the host's own."""

    stream = 0

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def memory(self, size: int) -> int:
        return int(self.pinned(size).ctypes.data)

    def pinned(self, size: int) -> np.ndarray:
        self.kept.append(np.full(size, 255, np.uint8))
        return self.kept[-1]

    def upload(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    download = upload

    def wait(self) -> None:
        pass


class Doubling:
    """An engine with one input x float32 [B,3] whose output y [B] is twice the sum of a row."""

    device_memory_size_v2 = 16

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def create_execution_context(self, strategy: object) -> Doubling:
        return self

    def get_tensor_dtype(self, name: str) -> type:
        return np.float32

    def set_device_memory(self, address: int, size: int) -> None:
        assert address and size == 16

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:1]

    def execute_async_v3(self, stream: int) -> bool:
        def at(name: str, *shape: int) -> np.ndarray:
            count = int(np.prod(shape))
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(shape)

        at("y", self.shape[0])[:] = 2 * at("x", *self.shape).sum(axis=1)
        return True


def doubling(least: int) -> LoadedEngine:
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0), nptype=lambda kind: kind)
    cuda: Any = HostCuda()
    return LoadedEngine(trt, Doubling(), cuda, cuda.memory(16), ["y"], {"x": ([least, 3], [4, 3])})


@pytest.mark.parametrize("least", [1, 3])
def test_rows_go_through_whatever_their_number(least: int) -> None:
    engine = doubling(least)
    rng = np.random.default_rng(0)
    for count in (4, 1, 2, 3):  # a larger batch first: nothing of it may be left in the next
        x = rng.standard_normal((count, 3)).astype(np.float32)
        np.testing.assert_allclose(engine.run({"x": x})["y"], 2 * x.sum(axis=1), rtol=1e-6)


def test_results_are_the_callers() -> None:
    engine = doubling(1)
    first = engine.run({"x": np.ones((2, 3), np.float32)})["y"]
    engine.run({"x": np.zeros((2, 3), np.float32)})
    assert first.tolist() == [6.0, 6.0]


def test_other_layouts_and_types_are_made_right() -> None:
    x = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(4, 3))
    assert doubling(1).run({"x": x})["y"].tolist() == [6.0, 24.0, 42.0, 60.0]


def test_padding_keeps_what_is_there() -> None:
    value = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert padded(value, 2) is value
    assert padded(value, 4).tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]


@pytest.mark.skipif(not without_gpu(), reason="a GPU is here")
def test_without_a_gpu_the_named_backend_stops_and_auto_goes_on(bundles: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"tensorrt:cuda (finds no NVIDIA driver|is not installed|has an NVIDIA)"):
        Engine.load(bundles["ucf"], "tensorrt")
    with Engine.load(bundles["ucf"]) as engine:
        assert engine.backend.name != "tensorrt"
        assert "tensorrt:cuda" in engine.why


def test_nothing_of_tensorrt_is_imported_to_find_that_it_cannot_run() -> None:
    code = (
        "import sys; from vadrun import backends; backends.reasons();"
        "print([name for name in sys.modules if name.startswith('tensorrt')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had an Orin and TensorRT 10.3.0; what would touch either must not be reached."""
    monkeypatch.setattr(module, "gpus", lambda: (ORIN,))
    monkeypatch.setattr(module, "installed", lambda: ["tensorrt"])
    monkeypatch.setattr(module, "import_tensorrt", lambda name: SimpleNamespace(__version__="10.3.0"))


def refused(bundle: Path, options: Options) -> str:
    with pytest.raises(BackendError) as error:
        TensorrtBackend(Bundle.open(bundle), "cuda", options)
    return str(error.value)


@pytest.mark.usefixtures("with_a_gpu")
def test_engines_that_do_not_fit_are_refused_before_tensorrt_sees_them(bundle_copy: Path) -> None:
    folder = bundle_copy / ENGINES / "here"
    assert "finds no engine in" in refused(bundle_copy, Options())
    plan_set(Bundle.open(bundle_copy), folder)
    assert refused(bundle_copy, Options("fp16")) == "has an engine in fp32, not fp16"
    (folder / "head.plan").write_bytes(b"he")
    assert "not the file that was built" in refused(bundle_copy, Options())


@pytest.mark.usefixtures("with_a_gpu")
def test_engines_that_were_not_checked_are_not_taken(bundle_copy: Path) -> None:
    plan_set(Bundle.open(bundle_copy), bundle_copy / ENGINES / "here", checks=[])
    assert "(here was not checked on a GPU): run vadexport compile" in refused(bundle_copy, Options())


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.skipif(not without_gpu(), reason="a GPU is here")
def test_cuda_that_does_not_start_is_a_reason(bundle_copy: Path) -> None:
    plan_set(Bundle.open(bundle_copy), bundle_copy / ENGINES / "here")
    assert "does not start: CUDA failed with cudaError" in refused(bundle_copy, Options())
