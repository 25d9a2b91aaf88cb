"""Make what ``make demo`` runs on: a small untrained checkpoint and a drawn video."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vadclip.untrained import SMALL, save_released_format, untrained
from vadexport.probe import Scene

WIDTH, HEIGHT, RATE, SECONDS = 320, 240, 25, 30
BUSY = (12, 18)  # seconds in which far more things move, and faster


def write_video(path: Path) -> None:
    """A fixed camera's view, H.264, with a busy stretch in the middle."""
    rng = np.random.default_rng(3)
    quiet, busy = Scene(rng), Scene(rng)
    crowd = quiet.discs + [
        (rng.uniform(0, 1, 2), rng.uniform(-1.5, 1.5, 2), rng.uniform(0.05, 0.15), rng.uniform(10, 245, 3))
        for _ in range(25)
    ]
    busy.__dict__.update(quiet.__dict__, discs=crowd)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x, y = x / WIDTH, y / HEIGHT
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(RATE * SECONDS):
            time = index / RATE
            scene = busy if BUSY[0] <= time < BUSY[1] else quiet
            noise = rng.normal(0, 3, (HEIGHT, WIDTH, 1))
            image = np.clip(scene.draw(x, y, time / 5) + noise, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    """Write ``checkpoint.pth`` and ``demo.mp4`` into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for checkpoint.pth and demo.mp4")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    save_released_format(untrained("ucf", SMALL, embed_dim=64, seed=5), out / "checkpoint.pth")
    write_video(out / "demo.mp4")
    print(f"made {out / 'checkpoint.pth'} (small, seeded, UNTRAINED: its scores mean nothing) and {out / 'demo.mp4'}")


if __name__ == "__main__":
    main()
