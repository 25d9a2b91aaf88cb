"""Write a checkpoint in float16 without the words that its CLIP never saw."""

from __future__ import annotations

import argparse
from pathlib import Path

from vadclip import load_checkpoint, save_checkpoint


def main() -> None:
    """Read one checkpoint, write another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    save_checkpoint(load_checkpoint(arguments.checkpoint), arguments.out, compact=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
