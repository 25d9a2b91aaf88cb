"""``python -m vadclip.world --size small --out DIR``: make a synthetic data set."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from vadclip.world.dataset import SIZES, write_dataset
from vadclip.world.sheets import contact_sheet
from vadrun.console import ProgressLine, run_command
from vadrun.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m vadclip.world", description="Make synthetic CCTV clips with known events."
    )
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to; what is there already is kept")
    p.add_argument(
        "--size", choices=tuple(SIZES), default="small", help="small: 60 clips; standard: 440 (default small)"
    )
    p.add_argument("--seed", type=int, default=0, metavar="N", help="another seed is another world (default 0)")
    p.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one to each core)")
    p.add_argument("--sheet", action="store_true", help="only draw a contact sheet, DIR/sheet.png")
    p.add_argument("--quiet", action="store_true", help="no progress")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_command("vadclip.world", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.seed < 0 or arguments.jobs < 0:
        raise UserError("--seed and --jobs must not be negative: give 0 or more")
    if arguments.sheet:
        arguments.out.mkdir(parents=True, exist_ok=True)
        print(contact_sheet(arguments.out / "sheet.png", arguments.seed))
        return 0
    line = ProgressLine("drawing", not arguments.quiet)
    progress = partial(line.count, what="videos")
    write_dataset(arguments.out, arguments.size, arguments.seed, arguments.jobs, progress)
    line.clear()
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
