"""What only a GPU can show: ``pytest -m gpu``. Left out where none is, and where its libraries are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.clips import write_clip
from tests.golden import Golden
from vadexport.build import BuildOptions, build
from vadexport.checks import check_engine, checks_table
from vadexport.compile import CompileOptions, compile_bundle
from vadexport.probe import Probe
from vadrun import Engine, UserError, Video
from vadrun.backends.onnxruntime import OnnxruntimeBackend
from vadrun.backends.tensorrt import TensorrtBackend
from vadrun.cuda import NoCuda, gpus
from vadrun.decoders import reasons


def missing() -> str | None:
    try:
        gpus()
    except NoCuda as error:
        return f"this machine {error}"
    return None


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, ucf: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / str(request.param)
    build(BuildOptions(ucf.checkpoint, out, dataset="ucf", precision=request.param))
    return out


@pytest.fixture(scope="module")
def compiled(bundle: Path) -> Path:
    reason = TensorrtBackend.unavailable("cuda")
    if reason is not None:
        pytest.skip(f"tensorrt {reason}")
    assert compile_bundle(CompileOptions(bundle, (1, 4, 8)), print).plans.passed
    return bundle


def test_tensorrt_says_what_pytorch_says(compiled: Path) -> None:
    with Engine.load(compiled, "tensorrt") as engine:
        checks = check_engine(engine, Probe.load(compiled / "probe.npz"))
    assert all(check.passed for check in checks), checks_table(checks)


def test_overlap_and_graphs_change_nothing(compiled: Path) -> None:
    frames = Probe.load(compiled / "probe.npz").frames
    parts = [frames[start : start + count] for start, count in ((0, 8), (8, 8), (16, 8), (0, 3), (3, 8), (11, 8))] * 4
    with Engine.load(compiled, "tensorrt") as engine:
        alone = [engine.encode(part) for part in parts]
        together = list(engine.encode_each(parts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_classes_need_no_other_engine(compiled: Path) -> None:
    features = Probe.load(compiled / "probe.npz").track[None, :256]
    with Engine.load(compiled, "tensorrt") as engine:
        text = engine.bundle.text()
        _, few = engine.backend.head(features, np.array([256]), text[:2])
        _, all_of_them = engine.backend.head(features, np.array([256]), text)
    np.testing.assert_allclose(few, all_of_them[..., :2], atol=1e-4)


def test_auto_takes_it(compiled: Path) -> None:
    with Engine.load(compiled) as engine:
        assert (engine.backend.name, engine.backend.device) == ("tensorrt", "cuda")


def test_a_spoilt_plan_is_one_sentence(compiled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compiled, tmp_path / "copy"))
    (plan,) = copy.glob("engines/*/encoder.plan")
    plan.write_bytes(plan.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not the file that was built"):
        Engine.load(copy, "tensorrt")
    with Engine.load(copy) as engine:
        assert "tensorrt:cuda" in engine.why


def test_onnxruntime_says_what_pytorch_says(bundle: Path) -> None:
    reason = OnnxruntimeBackend.unavailable("cuda")
    if reason is not None:
        pytest.skip(f"onnxruntime {reason}")
    with Engine.load(bundle, "onnxruntime:cuda") as engine:
        checks = check_engine(engine, Probe.load(bundle / "probe.npz"))
    assert all(check.passed for check in checks), checks_table(checks)


@pytest.mark.parametrize("name", [name for name, _ in reasons()])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_hardware_decodes_what_software_does(tmp_path: Path, name: str, codec: str) -> None:
    reason = dict(reasons())[name]
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    clip = write_clip(tmp_path / "clip.mp4", 64, codec=codec, size=(640, 480))
    with Video(clip, decoder=name) as video, Video(clip) as software:
        found, expected = list(video.snippets()), list(software.snippets())
    assert [(s.start, s.end) for s in found] == [(s.start, s.end) for s in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours.images.astype(int) - theirs.images).mean() < 1
