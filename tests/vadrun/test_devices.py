from __future__ import annotations

import json
from pathlib import Path

import pytest

from vadrun import backends, cuda
from vadrun.cli import main
from vadrun.cuda import Gpu, NoCuda


def test_it_tells_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    text = capsys.readouterr().out
    for part in (
        "processor",
        "GPU",
        "onnxruntime providers",
        "openvino CPU",
        "decoder cuda",
        "decoder gstreamer",
        "tensorrt:cuda",
    ):
        assert part in text


def test_json_tells_what_auto_takes(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json", "--engine", str(bundles["ucf"])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["backend"] for entry in found["auto"]] == [label for label, _ in backends.reasons()]
    first = next(entry["backend"] for entry in found["auto"] if entry["not here"] is None)
    assert found["choice"].startswith(first)
    assert ("no_gpu" in found) == (found["gpus"] == [])


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--engine", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = Gpu(0, "Orin", (8, 7), 8 << 30, "12.6")
    monkeypatch.setattr("vadrun.devices.gpus", lambda: (gpu,))
    assert main(["devices"]) == 0
    assert "Orin, compute 8.7, 8.0 GiB, CUDA 12.6" in capsys.readouterr().out


def test_no_driver_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(NoCuda, match="finds no NVIDIA driver"):
        cuda.gpus.__wrapped__()


class Driver:
    """As much of libcuda as is asked: one GPU, or an error of ``cuInit``."""

    def __init__(self, error: int = 0, count: int = 1) -> None:
        self.error, self.count = error, count

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDriverGetVersion(self, number: object) -> int:
        return self._give(number, 12060)

    def cuDeviceGetCount(self, number: object) -> int:
        return self._give(number, self.count)

    def cuDeviceGet(self, device: object, index: int) -> int:
        return self._give(device, index)

    def cuDeviceGetName(self, name: object, size: int, device: object) -> int:
        name.value = b"Orin"  # type: ignore[attr-defined]
        return 0

    def cuDeviceTotalMem_v2(self, memory: object, device: object) -> int:
        return self._give(memory, 8 << 30)

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> int:
        return self._give(value, {75: 8, 76: 7, 18: 1}[attribute])

    def _give(self, pointer: object, value: int) -> int:
        pointer._obj.value = value  # type: ignore[attr-defined]
        return 0


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    assert cuda.gpus.__wrapped__() == (Gpu(0, "Orin", (8, 7), 8 << 30, "12.6", integrated=True),)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(error=804))
    with pytest.raises(NoCuda, match=r"does not start \(CUDA error 804\)"):
        cuda.gpus.__wrapped__()
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(count=0))
    with pytest.raises(NoCuda, match="finds no GPU"):
        cuda.gpus.__wrapped__()
