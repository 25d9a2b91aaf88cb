"""Small clips whose every frame shows its own number, made with the encoders that PyAV brings."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from vadrun.preprocessing import Preprocessing
from vadrun.pyav import SIDE_DATA

Image = NDArray[np.uint8]

# The number is drawn as 12 bits, in blocks that lie within every centre crop, as shares of width and height.
_COLUMNS = np.linspace(0.26, 0.74, 4)
_ROWS = np.linspace(0.2, 0.8, 3)
_BLOCK = (0.12, 0.22)

_QUIET = {
    "libx264": {"preset": "veryfast", "x264-params": "log-level=none"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "crf": "15"},
    "libaom-av1": {"cpu-used": "8", "usage": "realtime"},
}


def numbered(number: int, width: int, height: int) -> Image:
    """A picture, RGB uint8 [h,w,3], that shows a number from 0 to 4095."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(12):
        x, y = _COLUMNS[bit % 4], _ROWS[bit // 4]
        left, right = round((x - _BLOCK[0] / 2) * width), round((x + _BLOCK[0] / 2) * width)
        top, bottom = round((y - _BLOCK[1] / 2) * height), round((y + _BLOCK[1] / 2) * height)
        image[top:bottom, left:right] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: Image) -> int:
    """The number on a preprocessed picture, RGB uint8 [S,S,3], centre crop."""
    preprocessing = Preprocessing.for_size(image.shape[0])
    (width, height), (first_row, first_column) = preprocessing.resize, preprocessing.corner
    number = 0
    for bit in range(12):
        x = round(_COLUMNS[bit % 4] * width) - first_column
        y = round(_ROWS[bit // 4] * height) - first_row
        block = image[y - 1 : y + 2, x - 1 : x + 2].mean()
        assert block < 70 or block > 185, f"no number can be read: bit {bit} is {block}"
        number |= int(block > 128) << bit
    return number


def write_clip(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (160, 120),
    rate: int = 25,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    draw: Callable[[int, int, int], Image] = numbered,
    prepare: Callable[[Any], None] = lambda stream: None,
    audio: bool = False,
    rotation: int = 0,
) -> Path:
    """Encode a clip; the container follows from the name.

    Args:
        path: where to.
        frames: how many.
        codec: the encoder.
        size: width and height as they are displayed.
        rate: frames per second.
        pixel_format: of the stored pictures.
        options: for the encoder.
        container_options: for the muxer.
        times: each frame's time in seconds, for a variable rate; milliseconds count.
        draw: makes the picture of a frame number, width and height.
        prepare: is given the stream before it is used.
        audio: add a second of silence as a second stream.
        rotation: 90, 180 or 270: store the pictures turned, and mark that they are to be turned by so many
            degrees counterclockwise for display (MP4 only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size if rotation % 180 == 0 else size[::-1]
    base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.options = {**_QUIET.get(codec, {}), **(options or {})}
        if times is not None:
            stream.codec_context.time_base = base
        prepare(stream)
        sound: Any = container.add_stream("aac", rate=16000) if audio else None
        for index in range(frames):
            image = np.ascontiguousarray(np.rot90(draw(index, *size), -rotation // 90))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pixel_format != "rgb24":
                frame = frame.reformat(format=pixel_format, dst_color_range=2 if pixel_format.startswith("yuvj") else 1)
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_silence(container, sound)
    if rotation:
        _mark_rotation(path, rotation)
    return path


def skippable(path: Path) -> Path:
    """A name for a clip of which frames can be left out: of MP4 they are from PyAV 16 on, of Matroska always."""
    return path if SIDE_DATA or path.suffix != ".mp4" else path.with_suffix(".mkv")


def write_streams(path: Path, *colours: tuple[int, int, int], frames: int = 40) -> Path:
    """A file with a video stream of 160x120 for each colour, RGB; the container follows from the name."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for _ in colours:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.options = 160, 120, "yuv420p", _QUIET["libx264"]
            streams.append(stream)
        pictures = [np.full((120, 160, 3), colour, np.uint8) for colour in colours]
        for index in range(frames):
            for stream, picture in zip(streams, pictures, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def write_sound(path: Path, *, cover: bool = False) -> Path:
    """A file with a second of silence and no picture, but for the cover if there is one."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        if cover:
            add_cover(container)
        _add_silence(container, sound)
    return path


def add_cover(container: Any) -> None:
    """Add a stream that holds a cover picture of 640x480."""
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 640, 480, "yuvj420p"
    stream.disposition = Disposition.attached_pic.value
    container.mux(stream.encode(av.VideoFrame(640, 480, "yuvj420p")))
    container.mux(stream.encode(None))


def cut(path: Path, share: float, *, multiple: int = 1) -> Path:
    """Keep the first part of a file, in a whole number of ``multiple`` bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) // multiple * multiple])
    return path


def spoil(path: Path, share: float, count: int) -> Path:
    """Overwrite ``count`` bytes in a file, from ``share`` of its length on."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : at + count] = np.random.default_rng(5).bytes(count)
    path.write_bytes(data)
    return path


def set_clock(path: Path, picture: int, seconds: float) -> Path:
    """Move all timestamps of a transport stream from a picture on, the clock's own (PCR) included.

    Args:
        path: a file of :func:`write_clip`, with one stream of pictures (ISO/IEC 13818-1, 2.4.3).
        picture: the first one that is moved, in the order of decoding.
        seconds: by how much; negative to set the clock back.
    """
    data = bytearray(path.read_bytes())
    ticks, begun = round(seconds * 90000), 0
    for at in range(0, len(data), 188):
        first, control = data[at + 1] & 0x40, data[at + 3] >> 4 & 3
        if (data[at + 1] << 8 | data[at + 2]) & 0x1FFF != 0x100:
            continue
        begun += bool(first)
        if begun <= picture:
            continue
        if control & 2 and data[at + 4] and data[at + 5] & 0x10:
            clock = int.from_bytes(data[at + 6 : at + 12], "big")
            moved = (clock >> 15) + ticks & (1 << 33) - 1
            data[at + 6 : at + 12] = (moved << 15 | clock & 0x7FFF).to_bytes(6, "big")
        if first:
            start = at + 4 + (data[at + 4] + 1 if control & 2 else 0)
            for field in range(2 if data[start + 7] & 0x40 else 1):
                _move(data, start + 9 + 5 * field, ticks)
    path.write_bytes(data)
    return path


def _move(data: bytearray, at: int, ticks: int) -> None:
    """Move a PTS or DTS: 33 bits in five bytes, with a marker behind each part."""
    b = data[at : at + 5]
    value = (b[0] >> 1 & 7) << 30 | b[1] << 22 | b[2] >> 1 << 15 | b[3] << 7 | b[4] >> 1
    value = value + ticks & (1 << 33) - 1
    data[at : at + 5] = bytes(
        [
            b[0] & 0xF1 | value >> 29 & 0xE,
            value >> 22 & 255,
            value >> 14 & 0xFE | 1,
            value >> 7 & 255,
            value << 1 & 0xFE | 1,
        ]
    )


def _add_silence(container: Any, stream: Any) -> None:
    for index in range(16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, index * 1000, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _mark_rotation(path: Path, degrees: int) -> None:
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    mark_matrix(path, cosine, -sine, sine, cosine)


def mark_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write the display matrix of the first track header (ISO/IEC 14496-12, 8.3.2)."""
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd")
    assert data[at + 4] == 0, "only version 0 is known here"
    data[at + 44 : at + 80] = matrix
    path.write_bytes(data)
    return path
