"""Make the demo video and its truth: clips of the synthetic world's test split, one after the other."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vadclip.world import make_clip
from vadclip.world.dataset import X264
from vadrun.files import write_csv

# Scenes of the test split, which neither CLIP nor VadCLIP has seen: (label, number of the clip).
CLIPS = (
    ("normal", 0),
    ("fighting", 9),
    ("normal", 4),
    ("accident", 4),
    ("normal", 2),
    ("riot", 4),
    ("normal", 1),
    ("explosion", 3),
)
SECONDS = (12.0, 14.0)


def main() -> None:
    """Write ``demo.mp4`` and ``truth.csv`` (``label,start,end``, seconds) into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for demo.mp4 and truth.csv")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str]] = []
    index = 0
    options = {"crf": "27", "preset": "slow", "x264-params": X264}
    temporary = out / ".demo.tmp.mp4"  # an interrupt leaves the old one
    with av.open(str(temporary), "w") as container:
        stream: Any = None
        for label, number in CLIPS:
            clip = make_clip(0, "test", label, number, seconds=SECONDS)
            if stream is None:
                stream = container.add_stream("libx264", rate=clip.fps, options=options)
                stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for first, end in clip.intervals:
                rows.append((label, f"{(index + first) / clip.fps:.3f}", f"{(index + end) / clip.fps:.3f}"))
            for picture in clip.frames:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, clip.fps)
                container.mux(stream.encode(frame))
                index += 1
        container.mux(stream.encode(None))
    temporary.replace(out / "demo.mp4")
    write_csv(out / "truth.csv", [("label", "start", "end"), *rows])
    print(f"{out / 'demo.mp4'}: {index} frames, {len(rows)} events")


if __name__ == "__main__":
    main()
