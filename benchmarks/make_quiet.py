"""Make footage of a fixed camera's quiet hours: now and then somebody walks through, and at the end comes an event.

The scene, its light and its camera's noise are those of the event's clip (an explosion of the test split). It is kept
at a high quality, with a key frame every two seconds; give it to ``benchmarks.make_video`` for other sizes, rates,
codecs and qualities.
"""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks import measure
from vadclip.world import make_clip, routine
from vadclip.world.actors import Stage
from vadclip.world.render import Renderer


def main() -> int:
    """Draw the file."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.make_quiet", description=__doc__)
    p.add_argument("out", type=Path, metavar="FILE", help="what to write; its ending names the container")
    p.add_argument("--minutes", type=float, default=3.0, metavar="MIN", help="of quiet (default 3)")
    p.add_argument("--label", default="explosion", metavar="NAME", help="the event (default explosion)")
    p.add_argument("--number", type=int, default=1, metavar="N", help="of the event's clip (default 1)")
    p.add_argument(
        "--walkers", type=float, default=0.5, metavar="N", help="people a minute, at random moments (default 0.5)"
    )
    a = p.parse_args()
    clip = make_clip(0, "test", a.label, a.number, seconds=(20.0, 21.0))
    stage = clip.stage
    frames = round(60 * a.minutes * clip.fps)
    empty = Stage(stage.scene, stage.light, stage.fps, frames, np.random.default_rng(0))
    for _ in range(round(a.walkers * a.minutes)):
        routine.walker(empty)
    quiet = Renderer(empty, np.random.default_rng(clip.noise)).frames()
    first, end = clip.intervals[0]
    with av.open(str(a.out), "w") as container:
        stream = container.add_stream("libx264", rate=clip.fps)
        stream.options = {"preset": "veryfast", "crf": "18"}
        stream.codec_context.gop_size = 2 * clip.fps
        for index, picture in enumerate(itertools.chain(quiet, clip.frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if index == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts, frame.time_base = index, Fraction(1, clip.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    walking = sum(int((empty.in_view(person)).sum()) for person in empty.people)
    print(f"{a.out}: somebody walks in {walking} of {frames} frames")
    print(f"{a.out}: {frames + clip.frame_count} frames, {a.label} in frames {frames + first} to {frames + end}")
    return 0


if __name__ == "__main__":
    measure.main("make_quiet", main)
