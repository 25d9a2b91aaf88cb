"""The fp16 encoder on an NVIDIA GPU: TensorRT and onnxruntime against PyTorch and against what the card can do at all.

``python -m benchmarks.gpu`` needs a GPU, PyTorch, and what is to be measured: ``tensorrt`` or ``tensorrt-rtx`` with
``cuda-bindings``, ``onnxruntime-gpu``. What is missing or fails is left out, with what it said. Every contender gets
uint8 frames in the host's memory and returns float32 features there. Results go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from vadclip.checkpoint import load_checkpoint
from vadclip.images import CLIP_MEAN, CLIP_STD
from vadclip.untrained import save_released_format, untrained
from vadexport.build import BuildOptions, build
from vadexport.checks import check_engine
from vadexport.compile import CompileOptions, compile_bundle, report
from vadexport.probe import Probe
from vadrun.backends import about
from vadrun.console import table, version
from vadrun.cuda import Gpu, NoCuda, gpus
from vadrun.engine import Engine
from vadrun.errors import UserError

IMAGE_GFLOP = 35.0  # ViT-B/16 on 224x224, a multiply and an add counted as two
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "tensorrt", "tensorrt_rtx", "onnxruntime-gpu", "cuda-bindings", "numpy")

Encode = Callable[[Iterator[NDArray[np.uint8]]], Iterator[NDArray[np.float32]]]


@dataclass
class Contender:
    """One way to encode: images per second by batch, or what it said when it failed."""

    name: str
    images: dict[int, list[float]] = field(default_factory=dict)
    cosine: float | None = None  # smallest, of the probe's features with PyTorch float32's
    load: float | None = None  # seconds until it is ready
    head_ms: float | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)
    said: str | None = None


def main() -> int:
    """Measure, print, write."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: a seeded one with ViT-B/16's sizes")
    p.add_argument("--batches", default="1,8,32,64", metavar="N,...", help="default 1,8,32,64")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="of each contender and batch (default 5)")
    p.add_argument("--images", type=int, default=1024, metavar="N", help="in a round (default 1024)")
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    p.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    a = p.parse_args()
    gpu = _gpu()
    batches = [int(part) for part in a.batches.split(",")]
    print(measure.machine(*LIBRARIES))
    print(f"{gpu.name}, compute {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory / 2**30:.0f} GiB, CUDA {gpu.cuda}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = a.checkpoint
        if checkpoint is None:
            checkpoint = Path(folder) / "seeded.pth"
            save_released_format(untrained("ucf"), checkpoint)
        bundle = Path(folder) / "bundle"
        build(BuildOptions(checkpoint, bundle, dataset="ucf", precision="fp16"), print)
        probe = Probe.load(bundle / "probe.npz")
        ceiling = _attempt(lambda: matrix_ceiling() * 1000 / IMAGE_GFLOP)
        found = [*pytorch(checkpoint, probe, batches, a), *engines(bundle, probe, batches, a)]
        copies = _attempt(lambda: {n: copy_ms(n, probe.frames.shape[1]) for n in batches})
    result = {
        "date": str(date.today()),
        "gpu": asdict(gpu),
        "machine": measure.machine(*LIBRARIES).splitlines(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "backends": about(),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "bf16_ceiling_images_per_second": ceiling,
        "copies_ms": copies,
        "contenders": [asdict(contender) for contender in found],
    }
    print(summary(found, batches, ceiling))
    a.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    target = a.out / f"{date.today()}-{slug}.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {target}")
    return 0


def _gpu() -> Gpu:
    try:
        gpu = gpus()[0]
    except NoCuda as error:
        raise UserError(f"this machine {error}: run this benchmark where there is an NVIDIA GPU") from error
    if not torch.cuda.is_available():
        raise UserError("this PyTorch has no CUDA: install a build that has, since it is the base of all ratios")
    return gpu


def matrix_ceiling() -> float:
    """TFLOP/s of a large bfloat16 matrix product, the best of several: what the card gives to anyone."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def product() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    product()
    return float(2 * 8192**3 / min(measure.timed(product) for _ in range(20)) / 1e12)


def copy_ms(batch: int, size: int) -> float:
    """Milliseconds to bring a batch of frames from pinned memory to the GPU."""
    host = torch.zeros(batch, size, size, 3, dtype=torch.uint8).pin_memory()
    device = torch.zeros_like(host, device="cuda")

    def copy() -> None:
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    copy()
    return statistics.median(1000 * measure.timed(copy) for _ in range(20))


def pytorch(checkpoint: Path, probe: Probe, batches: list[int], a: argparse.Namespace) -> list[Contender]:
    """open_clip's encoder in float16, eager and compiled."""
    model = load_checkpoint(checkpoint, dataset="ucf")
    visual: Any = model.clipmodel.visual.eval().half().cuda()
    mean, std = (torch.tensor(value, device="cuda").view(1, 3, 1, 1) * 255 for value in (CLIP_MEAN, CLIP_STD))

    def encoder(forward: Any) -> Encode:
        def encode(parts: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
            with torch.inference_mode():
                for part in parts:
                    frames = torch.from_numpy(part).cuda(non_blocking=True).permute(0, 3, 1, 2)
                    yield forward(((frames - mean) / std).half()).float().cpu().numpy()

        return encode

    found = [_contender("PyTorch fp16 eager", lambda: encoder(visual), probe, batches, a)]
    if not a.no_compile:
        found.append(
            _contender("PyTorch fp16 torch.compile", lambda: encoder(torch.compile(visual)), probe, batches, a)
        )
    return found


def engines(bundle: Path, probe: Probe, batches: list[int], a: argparse.Namespace) -> list[Contender]:
    """The bundle on TensorRT and on onnxruntime's CUDA provider."""
    found = []
    for name in ("tensorrt", "onnxruntime:cuda"):
        label = f"vadrun {name} fp16"
        try:
            found.append(_engine(bundle, name, label, probe, batches, a))
        except Exception as error:  # whatever a library says is a result
            found.append(Contender(label, said=_said(error)))
    return found


def _engine(bundle: Path, name: str, label: str, probe: Probe, batches: list[int], a: argparse.Namespace) -> Contender:
    if name == "tensorrt":
        best = sorted(batches)[len(batches) // 2]
        print(report(compile_bundle(CompileOptions(bundle, (min(batches), best, max(batches))), print)))
    began = time.perf_counter()
    with Engine.load(bundle, name, batch=max(batches)) as engine:
        load = time.perf_counter() - began
        print(engine.description)
        contender = _contender(label, lambda: engine.encode_each, probe, batches, a)
        contender.load = load
        contender.checks = [asdict(check) for check in check_engine(engine, probe)]
        chunk = np.resize(probe.track, (1, engine.bundle.model.positions, probe.track.shape[1]))
        lengths, text = np.array([chunk.shape[1]]), engine.bundle.text()

        def head() -> None:
            engine.backend.head(chunk, lengths, text)

        for _ in range(5):  # the first ones prepare, and become a graph
            head()
        contender.head_ms = 1000 * statistics.median(measure.timed(head) for _ in range(50))
    return contender


def _contender(
    name: str, make: Callable[[], Encode], probe: Probe, batches: list[int], a: argparse.Namespace
) -> Contender:
    contender = Contender(name)
    try:
        encode = make()
        features = np.concatenate(list(encode(iter([probe.frames]))))
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(probe.features, axis=1)
        contender.cosine = float(((features * probe.features).sum(1) / norms).min())
        for batch in batches:
            frames = np.ascontiguousarray(np.resize(probe.frames, (batch, *probe.frames.shape[1:])))
            count = max(1, a.images // batch)

            def work(frames: NDArray[np.uint8] = frames, count: int = count) -> None:
                for _ in encode(frames for _ in range(count)):
                    pass

            work()
            contender.images[batch] = [batch * count / measure.timed(work) for _ in range(a.rounds)]
            print(f"{name}, batch {batch}: {measure.spread(contender.images[batch], 0)} images/s")
    except Exception as error:
        contender.said = _said(error)
    return contender


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    print(f"left out: {text}")
    return text[:500]


def summary(found: list[Contender], batches: list[int], ceiling: float | str) -> str:
    """The table: images per second, the ratio to PyTorch eager, and the share of the card's own ceiling."""
    base = found[0].images
    rows = []
    for contender in found:
        cells = [contender.name]
        for batch in batches:
            images = contender.images.get(batch)
            if not images:
                cells.append("-")
                continue
            middle = statistics.median(images)
            ratio = f" {middle / statistics.median(base[batch]):.2f}x" if base.get(batch) else ""
            share = f" {middle / ceiling:.0%}" if isinstance(ceiling, float) else ""
            cells.append(f"{middle:.0f}{ratio}{share}")
        cells += [f"{contender.cosine:.5f}" if contender.cosine is not None else "-"]
        cells += [f"{contender.head_ms:.2f}" if contender.head_ms is not None else "-"]
        rows.append(cells)
    lines = [table(["encoder", *(f"batch {batch}" for batch in batches), "cosine", "head ms"], rows)]
    lines.append("images/s, times PyTorch eager at the same batch, share of the bfloat16 matrix ceiling")
    lines += [f"{contender.name}: {contender.said}" for contender in found if contender.said]
    return "\n".join(lines)


if __name__ == "__main__":
    measure.main("gpu", main)
