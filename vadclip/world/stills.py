"""Captioned still pictures of many scenes, for a CLIP that shall know more places than the videos show.

``python -m vadclip.world.stills --out DIR`` draws each few pictures in a world of its own, whose seeds no data set
of videos has, and compresses them as cameras do.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vadclip.world.clips import LABELS, Clip, make_clip
from vadclip.world.regions import PHRASES, Region, regions
from vadrun.console import ProgressLine, run_command
from vadrun.errors import UserError
from vadrun.files import whole_file, write_json
from vadrun.preprocessing import Preprocessing

SIZE = 128
"""S, pixels of the encoder that the pictures are for."""
_FIRST_SEED = 1_000_000
_PER_WORLD = 4
_LABELS = (0.4, 0.15, 0.15, 0.15, 0.15)  # shares of LABELS, the normal one first
_PICTURES, _CAPTIONS = "pictures.npy", "captions.json"
_QUALITY = (25, 80)  # of JPEG

_Told = tuple[str, str, list[Region]]  # caption, label, what is where


@dataclass(frozen=True)
class Stills:
    """N pictures.

    Attributes:
        pictures: uint8 RGB [N,H,W,3], whole, shrunk to the size that the runtime crops from (S=128: 146x194).
        captions: N sentences.
        labels: N of ``LABELS``: what the moment shows.
        regions: for each picture what is where in it.
    """

    pictures: NDArray[np.uint8]
    captions: Sequence[str]
    labels: Sequence[str]
    regions: Sequence[Sequence[Region]]

    @property
    def event(self) -> NDArray[np.bool_]:
        """bool [N], true where the moment shows an event."""
        return np.array([label != LABELS[0] for label in self.labels])


def write_stills(
    folder: Path,
    count: int = 40000,
    seed: int = 0,
    jobs: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``pictures.npy`` and ``captions.json``.

    Args:
        folder: where to; made if it is not there.
        count: N, rounded up to a multiple of 4.
        seed: another one gives other worlds.
        jobs: processes; 0 for one to each core.
        progress: told the pictures done, and of how many.

    Raises:
        UserError: the folder cannot be written to.
    """
    worlds = -(-count // _PER_WORLD)
    width, height = Preprocessing.for_size(SIZE).resize
    told: list[_Told] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / _PICTURES) as temporary:
            shape = (worlds * _PER_WORLD, height, width, 3)
            pictures = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
                first = _FIRST_SEED * (seed + 1)
                for number, (drawn, found) in enumerate(pool.map(_draw, range(first, first + worlds), chunksize=8)):
                    pictures[number * _PER_WORLD : (number + 1) * _PER_WORLD] = drawn
                    told += found
                    progress((number + 1) * _PER_WORLD, worlds * _PER_WORLD)
            pictures.flush()
            del pictures
            captions, labels, places = zip(*told, strict=True)
            boxes = [[[each.phrase, *(round(share, 4) for share in each.box)] for each in found] for found in places]
            value = {"captions": captions, "labels": labels, "phrases": PHRASES, "regions": boxes}
            write_json(folder / _CAPTIONS, value)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name a writable folder") from error


def read_stills(folder: Path) -> Stills:
    """What :func:`write_stills` wrote; the pictures are mapped, not read.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        told = json.loads((folder / _CAPTIONS).read_text(encoding="utf-8"))
        if told["phrases"] != list(PHRASES):
            raise ValueError("their regions are described in other phrases")
        regions = [[Region(phrase, tuple(box)) for phrase, *box in places] for places in told["regions"]]
        found = Stills(np.load(folder / _PICTURES, mmap_mode="r"), told["captions"], told["labels"], regions)
        if not len(found.pictures) == len(found.captions) == len(found.labels) == len(found.regions):
            raise ValueError("pictures and captions differ in number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no whole stills ({error}): python -m vadclip.world.stills makes them"
        ) from error
    return found


def _draw(seed: int) -> tuple[NDArray[np.uint8], list[_Told]]:
    """Pictures [4,H,W,3] of one world, and what is told of them."""
    rng = np.random.default_rng(seed)
    label = str(rng.choice(LABELS, p=_LABELS))
    clip = make_clip(seed, "train", label, 0, seconds=(8.0, 12.0))
    chosen = _moments(clip, rng)
    captions = dict(clip.captions)
    width, height = Preprocessing.for_size(SIZE).resize
    pictures = [_through_a_camera(picture, rng, width, height) for picture in clip.pictures(chosen)]
    during = [any(first <= frame < end for first, end in clip.intervals) for frame in chosen]
    told = [
        (captions[frame], label if event else LABELS[0], regions(clip.stage, frame))
        for frame, event in zip(chosen, during, strict=True)
    ]
    return np.stack(pictures), told


def _moments(clip: Clip, rng: np.random.Generator) -> list[int]:
    """Frames with a caption: of an event three in four, where it is long enough."""
    frames = np.array([frame for frame, _ in clip.captions])
    during = np.array([any(first <= frame < end for first, end in clip.intervals) for frame in frames])
    inside, outside = frames[during], frames[~during]
    taken = rng.permutation(inside)[: _PER_WORLD - 1]
    rest = rng.permutation(outside)[: _PER_WORLD - len(taken)]
    chosen = [*taken, *rest]
    return sorted(int(frame) for frame in (*chosen, *rng.choice(frames, _PER_WORLD - len(chosen))))


def _through_a_camera(
    picture: NDArray[np.uint8], rng: np.random.Generator, width: int, height: int
) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=int(rng.integers(*_QUALITY)))
    frame = av.VideoFrame.from_ndarray(np.asarray(Image.open(stream)), format="rgb24")
    return frame.reformat(width, height, interpolation="AREA").to_ndarray().astype(np.uint8, copy=False)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m vadclip.world.stills", description="Draw captioned pictures of many scenes."
    )
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to")
    p.add_argument("--count", type=int, default=40000, metavar="N", help="pictures (default 40000)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    p.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one to each core)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_command("vadclip.world.stills", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.count < 1 or arguments.seed < 0 or arguments.jobs < 0:
        raise UserError("--count must be 1 or more, --seed and --jobs not negative")

    line = ProgressLine("drawing")
    progress = partial(line.count, what="pictures")
    write_stills(arguments.out, arguments.count, arguments.seed, arguments.jobs, progress)
    line.clear()
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
