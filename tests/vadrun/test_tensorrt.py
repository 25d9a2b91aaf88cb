"""What of the TensorRT backend is not TensorRT's or CUDA's: which plans it takes, and its errors without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vadrun.test_plans import ORIN, plan_set
from vadrun import Bundle, Engine, UserError
from vadrun.backends import BackendError, Options
from vadrun.backends import tensorrt as module
from vadrun.backends.tensorrt import TensorrtBackend
from vadrun.cuda import NoCuda, gpus
from vadrun.plans import ENGINES


def without_gpu() -> bool:
    try:
        gpus()
    except NoCuda:
        return True
    return False


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
    assert "(here was not checked on Orin): run vadexport compile" in refused(bundle_copy, Options())


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.skipif(not without_gpu(), reason="a GPU is here")
def test_cuda_that_does_not_start_is_a_reason(bundle_copy: Path) -> None:
    plan_set(Bundle.open(bundle_copy), bundle_copy / ENGINES / "here")
    assert "does not start: CUDA failed with cudaError" in refused(bundle_copy, Options())
