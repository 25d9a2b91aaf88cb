"""What the gate spares the decoder, and what it overlooks: reading only, without an encoder.

Each video is read with the gate on the bitstream, with the gate on decoded pictures alone (every picture is decoded),
and without a gate. A still that was none is a snippet that was held or audited by the sizes of its packets, and whose
sampled picture has changed by the luma gate's measure against the last picture that was encoded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import measure
from vadrun.console import table
from vadrun.gate import GateRule, LumaGrid, Verdict, changed
from vadrun.preprocessing import Preprocessing
from vadrun.reader import Reader
from vadrun.sampling import Sampling
from vadrun.video import Snippet, Video


def read(path: Path, rule: GateRule | None, *, on_demand: bool = True) -> tuple[list[Snippet], int, int, float]:
    """Snippets without their images, pictures, how many of those were not decoded, and CPU seconds."""
    began = time.process_time()
    able = Reader.can_hold_back if on_demand else False
    with mock.patch.object(Reader, "can_hold_back", able), Video(path) as video:
        snippets = [snippet.without_images() for snippet in video.snippets(gate=rule)]
        return snippets, video.decoded, video.undecoded, time.process_time() - began


def overlooked(path: Path, snippets: list[Snippet], threshold: float) -> list[float]:
    """Changed shares of the pictures that were taken for still and are not."""
    sampling, grid = Sampling(), LumaGrid(Preprocessing())
    found: list[float] = []
    held = None
    with Video(path) as video:
        waiting = iter(snippets)
        for at, frame in enumerate(video.frames()):
            if at % sampling.frames != sampling.frames // 2 or (snippet := next(waiting, None)) is None:
                continue
            now = grid(frame.frame)
            if snippet.unseen and held is not None and (share := changed(now, held)) > threshold:
                found.append(share)
            if snippet.verdict is not Verdict.HOLD:
                held = now
    return found


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    p.add_argument("--audit", type=float, default=GateRule().audit, metavar="SHARE", help="as vadrun's --gate-audit")
    a = p.parse_args()
    print(measure.machine("av"))
    others = measure.Others()
    rule = GateRule(audit=a.audit)
    rows = []
    for path in a.videos:
        plain, _, _, all_seconds = read(path, None)
        luma, _, _, luma_seconds = read(path, rule, on_demand=False)
        gated, pictures, undecoded, seconds = read(path, rule)
        wrong = overlooked(path, gated, rule.threshold)
        rows.append(
            [
                path.name,
                str(len(plain)),
                f"{np.mean([s.verdict is not Verdict.ENCODE for s in luma]):.0%}",
                f"{np.mean([s.verdict is not Verdict.ENCODE for s in gated]):.0%}",
                f"{np.mean([s.unseen for s in gated]):.0%}",
                f"{undecoded / pictures:.0%}",
                f"{all_seconds / seconds:.2f}",
                f"{luma_seconds / seconds:.2f}",
                f"{len(wrong)} of {sum(s.unseen for s in gated)}",
                f"{max(wrong, default=0.0):.1%}",
            ]
        )
    header = ["", "snippets", "gated by luma", "gated", "unseen", "pictures undecoded", "times without a gate"]
    header += ["times luma alone", "stills that were none", "most changed"]
    print(table(header, rows, right=tuple(range(1, 10))))
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("gate", main)
