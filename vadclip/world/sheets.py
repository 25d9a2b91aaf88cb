"""Contact sheets: frames of many clips on one picture, to look at what is made."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vadclip.world.camera import HEIGHT, WIDTH
from vadclip.world.clips import LABELS, Clip, make_clip
from vadrun.files import whole_file

_COLUMNS = 5


def contact_sheet(path: str | Path, seed: int = 0, split: str = "train", clips: int = 2) -> Path:
    """Write a PNG with a row for each clip, ``clips`` rows for each label.

    A row of a clip with an event shows the moment before it, three of it, and one after it.
    """
    path = Path(path)
    rows = [make_clip(seed, split, label, number, seconds=(9.0, 11.0)) for label in LABELS for number in range(clips)]
    sheet = Image.new("RGB", (WIDTH * _COLUMNS, HEIGHT * len(rows)))
    for row, clip in enumerate(rows):
        wanted = _moments(clip)
        for index, picture in enumerate(clip.frames):
            for column, moment in enumerate(wanted):
                if moment == index:
                    sheet.paste(Image.fromarray(picture), (WIDTH * column, HEIGHT * row))
    with whole_file(path) as temporary:
        sheet.save(temporary)
    return path


def _moments(clip: Clip) -> list[int]:
    last = clip.frame_count - 1
    if not clip.intervals:
        return [last * (1 + 2 * column) // (2 * _COLUMNS) for column in range(_COLUMNS)]
    first, end = clip.intervals[0]
    length = end - first
    return [max(0, first - 20), min(first + 8, last), first + length // 3, first + 2 * length // 3, min(last, end + 15)]
