"""What an epoch of training costs, and what of that is reading: packed features against the arithmetic of the model.

    python -m benchmarks.training

Makes feature files of UCF-Crime's number and size (16,000 of about 100 snippets, 512 wide, float16; 1.6 GB), packs
them, reads an epoch without a model, and then times steps of a full-size model (ViT-B/16's text encoder, window 8,
T = 256). An epoch is the steps' median times their number.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Others, machine, main, spread
from vadclip.data import Fetcher, ahead, epoch_rows, open_store
from vadclip.lists import FeatureList
from vadclip.losses import vadclip_losses
from vadclip.presets import get_preset
from vadclip.recipes import get_recipe
from vadclip.untrained import untrained

WIDTH, POSITIONS = 512, 256


def make_files(folder: Path, count: int, snippets: int) -> FeatureList:
    """Feature files of random numbers, half of them of normal videos, and their list."""
    random = np.random.default_rng(0)
    classes = get_preset("ucf").classes
    pool = random.standard_normal((4 * snippets, WIDTH)).astype(np.float16)
    paths, targets = [], np.zeros((count, len(classes)), np.float32)
    for index in range(count):
        path = folder / f"video{index:05d}__0.npy"
        first = int(random.integers(snippets))
        np.save(path, pool[first : first + int(random.integers(snippets // 2, 3 * snippets // 2 + 1))])
        paths.append(path)
        targets[index, 0 if index % 2 else 1 + index // 2 % (len(classes) - 1)] = 1
    names = list(classes)
    labels = tuple(names[int(row.argmax())] for row in targets)
    return FeatureList("made up", tuple(paths), labels, targets)


def body() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=16000, metavar="N")
    parser.add_argument("--snippets", type=int, default=100, metavar="N", help="of a file, on average")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="training steps that are timed")
    arguments = parser.parse_args()
    print(machine("torch", "numpy"))
    others = Others()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = make_files(folder, arguments.files, arguments.snippets)
        began = time.perf_counter()
        store = open_store(listed, WIDTH, POSITIONS, folder / "cache")
        packing = time.perf_counter() - began
        size = (folder / "cache" / "features.bin").stat().st_size
        print(f"packing, once: {len(listed)} files, {size / 1e9:.2f} GB, {len(listed) / packing:.0f} files a second")

        recipe = get_recipe("reference", "ucf")
        batches = epoch_rows(listed.normal, recipe.batch, recipe.balanced, 0, 0)
        fetcher = Fetcher(store, POSITIONS, WIDTH)
        began = time.perf_counter()
        rows = sum(len(rows) for rows, _ in ahead(fetcher, batches))
        reading = time.perf_counter() - began
        print(
            f"reading alone, an epoch of {len(batches)} batches: {reading:.1f} s, {rows / reading:.0f} files a second"
        )

        targets = torch.from_numpy(listed.targets)
        profile = cProfile.Profile()
        steps = profile.runcall(_steps, fetcher, batches[: arguments.steps + 1], targets, recipe.contrast_weight)
    parts = ("waiting for features", "forward", "loss and backward", "optimizer")
    total = [sum(step) for step in steps]
    print(f"a step of {len(batches[0])} rows: {spread(total, 2)} s, of which")
    for index, part in enumerate(parts):
        share = [100 * step[index] / sum(step) for step in steps]
        print(f"  {part:22} {spread([step[index] for step in steps], 3)} s, {spread(share)} %")
    epoch = float(np.median(total)) * len(batches)
    print(f"an epoch: about {epoch / 60:.1f} minutes; reading it alone is {100 * reading / epoch:.1f} % of that")
    print("profile of the training thread, by time in the function itself:")
    for line in _top(profile):
        print(f"  {line}")
    print(others)
    return 0


def _steps(
    fetcher: Fetcher, batches: list[np.ndarray], targets: torch.Tensor, weight: float
) -> list[tuple[float, float, float, float]]:
    """Seconds of the parts of every step but the first, which warms up."""
    model = untrained("ucf").train()
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-5)
    found = []
    mark = time.perf_counter()
    for rows, (features, lengths) in ahead(fetcher, batches):
        times = [mark, time.perf_counter()]
        text = model.encode_text(model.config.labels)
        logits, alignment = model(features, lengths, text)
        times.append(time.perf_counter())
        wanted = targets[torch.from_numpy(rows)]
        losses = vadclip_losses(logits, alignment, text, wanted, lengths, contrast_weight=weight)
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter())
        optimizer.step()
        mark = time.perf_counter()
        times.append(mark)
        waited, forward, backward, stepped = np.diff(times).tolist()
        found.append((waited, forward, backward, stepped))
    return found[1:]


def _top(profile: cProfile.Profile, count: int = 8) -> list[str]:
    rows = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = sum(row[2] for row in rows.values())
    ordered = sorted(rows.items(), key=lambda item: -item[1][2])[:count]
    return [f"{100 * row[2] / whole:5.1f} %  {row[2]:.2f} s  {Path(key[0]).name}:{key[2]}" for key, row in ordered]


if __name__ == "__main__":
    main("benchmarks.training", body)
