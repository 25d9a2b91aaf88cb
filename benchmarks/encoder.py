"""Milliseconds per image of a bundle's encoder on every backend, against open_clip's in PyTorch.

All encode the same frames. They take turns, round by round, so that whatever else the machine does meets each
of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from vadclip.checkpoint import load_checkpoint
from vadclip.images import normalise
from vadexport.probe import Probe
from vadrun import backends
from vadrun.bundle import Bundle
from vadrun.console import table
from vadrun.engine import Engine
from vadrun.errors import UserError

BASE = "PyTorch eager fp32"


@dataclass
class Contender:
    """An encoder that takes part."""

    name: str
    call: Callable[[], NDArray[np.float32]]
    rounds: int
    seconds: list[float] = field(default_factory=list)
    cosine: float = 1.0  # of its features with the base's, the smallest


def pytorch(bundle: Bundle, checkpoint: Path, frames: NDArray[np.uint8], rounds: int, slow: int) -> list[Contender]:
    """open_clip's encoder with the checkpoint's weights, in float32 and under bfloat16 autocast.

    Both get frames that are normalised already, which the graphs do themselves.
    """
    model = bundle.model
    loaded = load_checkpoint(checkpoint, labels=model.labels, window=model.window, heads=model.heads)
    # A copy: the loaded weights are pages of the file, which may be slower to read than memory of its own.
    visual: Any = copy.deepcopy(loaded.clipmodel.visual).eval()
    # Autocast keeps its bfloat16 copies of weights only of those that could be trained. Without this it would
    # convert all of them again for every batch.
    visual.requires_grad_(True)
    images = normalise(frames)

    def eager() -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(visual(images).numpy(), np.float32)

    def autocast() -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return np.asarray(visual(images).float().numpy(), np.float32)

    found = [Contender(BASE, eager, rounds)]
    if slow > 0:
        found.append(Contender("PyTorch autocast bf16", autocast, slow))
    return found


def engines(
    stack: ExitStack, folders: list[Path], frames: NDArray[np.uint8], rounds: int, threads: int | None
) -> list[Contender]:
    """The encoders of bundles, one for each backend and precision that works here."""
    found: dict[str, Contender] = {}
    for folder in folders:
        for name, device in backends.available():
            for precision in ("auto", "fp32"):
                try:
                    engine = Engine.load(
                        folder, f"{name}:{device}", precision=precision, threads=threads, batch=len(frames)
                    )
                except UserError as error:
                    print(f"left out: {error}")
                    continue
                label = f"{name}:{device} {engine.backend.precision}, {engine.backend.encoder_file}"
                if label in found:
                    engine.close()
                    continue
                stack.enter_context(engine)
                found[label] = Contender(label, lambda engine=engine: engine.encode(frames), rounds)  # type: ignore[misc]
    return list(found.values())


def turns(contenders: list[Contender], rounds: int) -> None:
    """One call of each to warm up, then ``rounds`` rounds; fills in their seconds and cosines."""
    base = contenders[0].call()
    for contender in contenders:
        other = contender.call()
        norms = np.linalg.norm(base, axis=1) * np.linalg.norm(other, axis=1)
        contender.cosine = float(((base * other).sum(1) / norms).min())
    for number in range(rounds):
        for contender in contenders:
            if number < contender.rounds:
                contender.seconds.append(measure.timed(contender.call))


def report(contenders: list[Contender], batch: int) -> str:
    """The table."""
    base = contenders[0].seconds
    rows = [
        [
            c.name,
            measure.spread([1000 * s / batch for s in c.seconds]),
            measure.spread(measure.ratios(base, c.seconds), 2),
            str(len(c.seconds)),
            f"{c.cosine:.6f}",
        ]
        for c in contenders
    ]
    header = ["encoder", "ms per image", "times as fast", "rounds", "cosine"]
    return table(header, rows, right=(1, 2, 3, 4))


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    p.add_argument("--bundle", type=Path, nargs="+", required=True, metavar="DIR", help="bundles of the checkpoint")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="what they were built from")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="images per call (default 8, as vadrun)")
    p.add_argument("--rounds", type=int, default=10, metavar="N", help="default 10")
    p.add_argument("--threads", type=int, metavar="N", help="of each library (default: its own choice)")
    p.add_argument(
        "--autocast-rounds",
        type=int,
        metavar="N",
        help="rounds of bfloat16 autocast; 0 leaves it out (default: all, or 1 where the processor lacks bfloat16, "
        "since there it takes seconds per image)",
    )
    a = p.parse_args()
    slow = a.autocast_rounds
    if slow is None:
        slow = a.rounds if measure.has_bfloat16() else 1
    if a.threads is not None:
        torch.set_num_threads(a.threads)
    bundle = Bundle.open(a.bundle[0])
    probe = Probe.load(bundle.path("probe")).frames
    frames = np.ascontiguousarray(probe[np.arange(a.batch) % len(probe)])
    print(measure.machine("torch", "open_clip_torch", "onnxruntime", "openvino", "numpy"))
    others = measure.Others()
    size = bundle.model.image_size
    theirs = a.threads or "their own choice (one to a core)"
    print(f"batch {a.batch} of {size}x{size}; threads: torch {torch.get_num_threads()}, others {theirs}")
    with ExitStack() as stack:
        # The bfloat16 copies live until the outermost autocast ends.
        stack.enter_context(torch.autocast("cpu", enabled=False))
        contenders = pytorch(bundle, a.checkpoint, frames, a.rounds, min(slow, a.rounds))
        contenders += engines(stack, a.bundle, frames, a.rounds, a.threads)
        turns(contenders, a.rounds)
    print(report(contenders, a.batch))
    print(
        f"median (smallest to largest); times as fast as {BASE}, within each round; cosine: smallest, with its features"
    )
    if not measure.has_bfloat16():
        print("no bfloat16 instructions here: autocast is emulated, and no backend offers bf16")
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("encoder", main)
