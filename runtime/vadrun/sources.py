"""Video files: opening them, and what is known of them.

FFmpeg's own log stays silent, as PyAV leaves it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vadrun.decoders import SOFTWARE
from vadrun.errors import UserError, of_the_machine
from vadrun.hdr import transfer_of
from vadrun.inputs import check_regular, why_unreadable
from vadrun.preprocessing import colour_of, orientation_of
from vadrun.pyav import fraction, open_input
from vadrun.unscored import other_recordings, other_streams, stream_name
from vadrun.wholeness import what_is_missing

MOST_PIXELS = 40_000_000
"""Of a picture that is decoded: 8192x4320 and some more. A file of a few bytes may claim any size, and a decoder takes
memory for several pictures at once."""
_NOMINAL_RATE = 25.0  # frames per second, where a stream says nothing


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once its first frame is decoded.

    Attributes:
        codec: FFmpeg's name of it: ``h264``, ``hevc``, ...
        width, height: of the stored picture in pixels, before it is rotated.
        rate: nominal frames per second; with a variable rate, the mean.
        duration: seconds that the file promises; None if it promises nothing.
        frames: how many frames that should be, or None.
        rotation: degrees that the picture is turned counterclockwise for display: 0, 90, 180 or 270.
        mirrored: whether it is flipped left to right before that.
        pixel_format: FFmpeg's name.
        matrix: colour matrix that is used, ``bt601``, ``bt709``, ...
        full_range: whether levels are taken for full range (0 to 255) or limited (16 to 235).
        hdr: ``PQ`` or ``HLG`` if it is HDR, which is tone-mapped to SDR; else None.
        start: the first frame's timestamp in seconds; all other times are counted from it.
        stream: FFmpeg's number of the video stream that is read.
        remarks: what the user should know of what the file holds and of how it is shown, each a sentence without
            the file's name ("holds 2 video streams, ...").
        decoder: ``software``, ``cuda`` or ``gstreamer``.
        decoder_why: why software decodes where something else was asked for, or None.
    """

    codec: str
    width: int
    height: int
    rate: float
    duration: float | None
    frames: int | None
    rotation: int
    mirrored: bool
    pixel_format: str
    matrix: str
    full_range: bool
    hdr: str | None
    start: float
    stream: int = 0
    remarks: tuple[str, ...] = ()
    decoder: str = SOFTWARE
    decoder_why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, one for each attribute."""
        return {**asdict(self), "remarks": list(self.remarks)}


def open_container(path: Path) -> InputContainer:
    """Open a file, or say in one sentence why not."""
    check_regular(path)
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise why_unreadable(path, error) from None
    if empty:
        raise UserError(f"{path} is empty: copy or record it again")
    try:
        # "file:" because a colon in a name would be taken for a protocol. A playlist in disguise may not reach out
        # to the network.
        return open_input(f"file:{path}", container_options={"protocol_whitelist": "file"})
    except av.FFmpegError as error:
        of_the_machine(error)
        why = what_is_missing(path) or "its content is of no kind that FFmpeg knows"
        raise UserError(f"{path} cannot be opened as a video ({why}): check the file, or copy it again") from None


def pick_stream(container: InputContainer, path: Path, number: int | None = None) -> VideoStream:
    """The video stream with FFmpeg's ``number``, or the main one; cover pictures do not count.

    Raises:
        UserError: there is no such stream, no video stream at all, FFmpeg cannot decode it, or its picture has more
            than :data:`MOST_PIXELS` pixels.
    """
    streams = _video_streams(container)
    if not streams:
        holds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{path} has no video stream (it holds: {holds}): give a file with pictures")
    if number is None:
        best = container.streams.best("video")
        number = best.index if best is not None and best in streams else streams[0].index
    stream = next((stream for stream in streams if stream.index == number), None)
    if stream is None:
        names = ", ".join(map(stream_name, streams))
        raise UserError(f"{path} has no video stream {number}: its video is {names}; give one of these numbers")
    if stream.codec_context is None:
        raise UserError(f"{path} is in a video codec that this FFmpeg cannot decode: convert it to H.264")
    context = stream.codec_context
    if context.width * context.height > MOST_PIXELS:
        raise UserError(
            f"{path} has a picture of {context.width}x{context.height}, and more than {MOST_PIXELS // 10**6} million "
            "pixels are not decoded: scale it down, or check the file"
        )
    context.options = {"max_pixels": str(MOST_PIXELS)}  # also if it grows later in the file
    return stream


def _video_streams(container: InputContainer) -> list[VideoStream]:
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def describe(
    path: Path, container: InputContainer, stream: VideoStream, first: av.VideoFrame, start: float
) -> VideoInfo:
    """What is known of a video by its first frame, which is shown at ``start`` seconds."""
    pids = [stream.id for stream in container.streams]
    remarks = [*other_streams(_video_streams(container), stream), *other_recordings(path, pids)]
    rate = next(
        (
            float(rate)
            for rate in map(fraction, (stream.average_rate, stream.guessed_rate, stream.base_rate))
            if rate is not None and 0 < rate <= 1000
        ),
        _NOMINAL_RATE,
    )
    duration, base = None, fraction(stream.time_base)
    if stream.duration is not None and base is not None:
        duration = float(stream.duration * base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    frames = stream.frames or (round(duration * rate) if duration else None)
    matrix, full_range = colour_of(first)
    orientation = orientation_of(first)
    hdr = transfer_of(first, stream.codec_context.color_trc)
    if hdr is not None:
        remarks.append(f"is HDR ({hdr}), and is tone-mapped to SDR for the encoder")
    return VideoInfo(
        codec=stream.codec_context.codec.canonical_name,
        width=first.width,
        height=first.height,
        rate=rate,
        duration=duration,
        frames=frames,
        rotation=90 * orientation.turns,
        mirrored=orientation.mirrored,
        hdr=hdr,
        pixel_format=first.format.name,
        matrix=matrix,
        full_range=full_range,
        start=start,
        stream=stream.index,
        remarks=tuple(remarks),
    )
