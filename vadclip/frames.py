"""Folders of numbered images that are the frames of a video, as data sets such as ShanghaiTech come.

Only the images that a snippet takes are decoded.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vadrun.errors import UserError
from vadrun.inputs import EXTENSIONS, find_videos, named_videos
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.pyav import open_input
from vadrun.sampling import Sampled, Sampler, Sampling
from vadrun.schema import Where, read_file
from vadrun.sources import pick_stream
from vadrun.video import Snippet, Video

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_LEAST = 2  # images that make a folder one of frames
_FORMATS = (
    (b"\xff\xd8", "jpeg_pipe"),
    (b"\x89PNG", "png_pipe"),
    (b"BM", "bmp_pipe"),
    (b"RIFF", "webp_pipe"),
    (b"II*\0", "tiff_pipe"),
    (b"MM\0*", "tiff_pipe"),
)
_MOST_BYTES = 256 << 20  # of an image file


class FolderInfo(NamedTuple):
    """What is known of a folder of frames: its length in seconds, and remarks as a video has them."""

    duration: float
    remarks: tuple[str, ...] = ()


class FrameFolder:
    """A folder of images that is read like a :class:`vadrun.video.Video`.

    The frames are its images in natural order (``frame2`` before ``frame10``), one every ``1 / rate`` seconds. An image
    that cannot be decoded is replaced by its nearest neighbour, so that later frames keep their places.

    Args:
        path: the folder.
        rate: frames per second.

    Raises:
        UserError: it cannot be listed or holds too few images, or the rate cannot be used.
    """

    def __init__(self, path: Path, rate: float) -> None:
        check_rate(rate)
        self.path = path
        try:
            names = [name for name in os.listdir(path) if _is_image(name)]
        except OSError as error:
            raise UserError(f"{path} cannot be listed ({error.strerror}): check the folder") from error
        if len(names) < _LEAST:
            raise UserError(f"{path} holds {len(names)} images: name a folder of a video's frames")
        self._names = sorted(names, key=natural_order)
        self._rate = rate
        self._broken: list[str] = []
        self._gap = _first_gap(self._names)
        self.info = FolderInfo(len(names) / rate)

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return len(self._names)

    @property
    def damage(self) -> str | None:
        """What is wrong with it, as a sentence; complete when all snippets have been read."""
        parts = []
        if self._gap is not None:
            parts.append(f"numbers are missing after {self._gap}, so later frames count as earlier ones")
        if self._broken:
            parts.append(f"{len(self._broken)} of its images cannot be decoded, the first is {self._broken[0]}")
        return f"{self.path} is damaged: {'; '.join(parts)}" if parts else None

    def snippets(
        self,
        sampling: Sampling | None = None,
        preprocessing: Preprocessing | None = None,
        crops: Sequence[tuple[str, bool]] | None = None,
        *,
        joins: bool = False,
    ) -> Iterator[Snippet]:
        """As :meth:`vadrun.video.Video.snippets`.

        Raises:
            UserError: no image near one that is wanted can be decoded.
        """
        convert = Preprocessor(preprocessing, crops)

        def image(index: int) -> NDArray[np.uint8]:
            return convert(self.frame(index))

        sampler: Sampler[int, NDArray[np.uint8]] = Sampler(sampling or Sampling(), image, joins=joins)
        for index in range(len(self._names)):
            yield from map(_snippet, sampler.push(index, index / self._rate, 1 / self._rate))
        yield from map(_snippet, sampler.finish())

    def frame(self, index: int) -> av.VideoFrame:
        """The frame of this number, or the nearest that decodes.

        Raises:
            UserError: none near it does.
        """
        near = sorted(range(max(index - 8, 0), min(index + 9, len(self._names))), key=lambda i: (abs(i - index), i))
        for place in near:
            name = self._names[place]
            if name in self._broken:
                continue
            frame = decode_image(self.path / name)
            if frame is not None:
                return frame
            self._broken.append(name)
        raise UserError(f"{self.path / self._names[index]} and the images around it cannot be decoded: copy them again")


def _snippet(found: Sampled[NDArray[np.uint8]]) -> Snippet:
    return Snippet(
        found.index,
        found.start,
        found.end,
        np.stack(found.images),
        found.short,
        first_frame=found.first_frame,
        frames=found.frames,
    )


def decode_image(path: Path) -> av.VideoFrame | None:
    """The picture in an image file; None where there is none that decodes."""
    try:
        data = read_file(path, Where(path, "copy it again"), most=_MOST_BYTES)
        kind = next((kind for magic, kind in _FORMATS if data.startswith(magic)), None)
        if kind is None:
            return None
        # By its content and from memory, so that no name is taken for a pattern, an address or a playlist.
        with open_input(io.BytesIO(data), format=kind) as container:
            for frame in container.decode(pick_stream(container, path)):
                return None if frame.is_corrupt else frame
    except (UserError, av.FFmpegError, OSError, ValueError, IndexError):  # UserError: it is no file, or is too large
        return None
    return None


def check_rate(rate: float) -> None:
    """Refuse a rate that no frames have.

    Raises:
        UserError: it is not above 0, or beyond 1000.
    """
    if not 0 < rate <= 1000:
        raise UserError(f"the rate of folders of frames is {rate:g}: give --rate in frames per second, such as 25")


def frame_folders(top: Path) -> list[Path]:
    """The folders from ``top`` on down that hold images and no videos, in natural order; hidden ones are left out."""
    found = []
    for where, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if sum(map(_is_image, names)) >= _LEAST and not any(Path(name).suffix.lower() in EXTENSIONS for name in names):
            found.append(Path(where))
    return sorted(found, key=lambda path: natural_order(str(path)))


def named_footage(paths: Sequence[Path], rate: float | None) -> list[Path]:
    """What a command line names: files, the videos in folders, and with a rate the folders of frames in them.

    Raises:
        UserError: a path that cannot be used, or a folder with nothing to read in it.
    """
    found: list[Path] = []
    for path in paths:
        folders = frame_folders(path) if path.is_dir() else []
        if folders and rate is None and not find_videos(path):
            raise UserError(
                f"{path} holds images and no video files: if they are the frames of videos, give their frames per"
                " second as --rate"
            )
        if folders and rate is not None:
            found += [*find_videos(path), *folders]
        else:
            found += named_videos([path])
    return list(dict.fromkeys(found))


def open_footage(path: Path, rate: float | None, stream: int | None = None) -> Video | FrameFolder:
    """A video file, or a folder of frames.

    Raises:
        UserError: it cannot be opened; a folder without a rate.
    """
    if rate is not None and path.is_dir():
        return FrameFolder(path, rate)
    return Video(path, stream=stream)


def footage_name(path: Path) -> str:
    """What the results of a video are called: its file's name without the ending, or its folder's whole name."""
    return path.name if path.is_dir() else path.stem


def natural_order(name: str) -> tuple[str | int, ...]:
    """A key to sort by in which numbers count as numbers: text and numbers in turn."""
    return tuple(int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d{1,300})", name)))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGES


def _first_gap(names: Sequence[str]) -> str | None:
    """The image after which numbers are missing, if all names are one text with a number in steps of one size."""
    series = []
    for name in names:
        match = re.fullmatch(r"(.*?)(\d{1,18})(\D*)", name)
        if match is None:
            return None
        series.append((match[1], int(match[2]), match[3].lower()))
    if len({(before, after) for before, _, after in series}) > 1:
        return None
    numbers = [number for _, number, _ in series]
    steps = np.diff(numbers)
    usual = int(np.median(steps))
    wrong = np.flatnonzero(steps > usual)
    return names[int(wrong[0])] if len(wrong) else None
