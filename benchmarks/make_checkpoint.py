"""Write a seeded, untrained checkpoint in the format of the VadCLIP authors.

For measurements where no trained checkpoint is at hand: speed and memory do not depend on what the weights are.
Its scores mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import measure
from vadclip.untrained import SMALL, VIT_B_16, save_released_format, untrained

SIZES = {"vit-b-16": (VIT_B_16, 512), "small": (SMALL, 64)}  # CLIP's sizes, and the width of its features


def main() -> int:
    """Write the checkpoint and say how large it is."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.make_checkpoint", description=__doc__)
    p.add_argument("--dataset", choices=("ucf", "xd"), default="ucf", help="whose release it resembles (default ucf)")
    p.add_argument("--size", choices=tuple(SIZES), default="vit-b-16", help="of CLIP (default: as released)")
    p.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .pth file to write")
    arguments = p.parse_args()
    clip, width = SIZES[arguments.size]
    model = untrained(arguments.dataset, clip, width, arguments.seed)
    save_released_format(model, arguments.out)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"{arguments.out}: {weights / 1e6:.1f} million weights, {arguments.out.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    measure.main("make_checkpoint", main)
