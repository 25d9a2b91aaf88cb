"""Video files: decoded frames with their times, and the snippets that are cut from them.

Damaged files are read as far as they go, and say so afterwards. FFmpeg's own log stays silent, as PyAV leaves it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vadrun import decoders
from vadrun.decoders import SOFTWARE
from vadrun.errors import UserError
from vadrun.gate import Gate, GateRule, Looked, Verdict
from vadrun.preprocessing import Preprocessing, Preprocessor, colour_of, quarter_turns
from vadrun.sampling import Sampled, Sampler, Sampling, Timeline
from vadrun.skipping import AHEAD, Irregular, Skipped, Skipper
from vadrun.wholeness import what_is_missing

# fmt: off
EXTENSIONS = frozenset({
    ".264", ".265", ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg",
    ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on

_NOMINAL_RATE = 25.0  # frames per second, where a stream says nothing
_MOST_READ_ERRORS = 100  # in a row, before a container that yields nothing more is given up


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
        pixel_format: FFmpeg's name.
        matrix: colour matrix that is used, ``bt601``, ``bt709``, ...
        full_range: whether levels are taken for full range (0 to 255) or limited (16 to 235).
        start: the first frame's timestamp in seconds; all other times are counted from it.
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
    pixel_format: str
    matrix: str
    full_range: bool
    start: float
    decoder: str = SOFTWARE
    decoder_why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, one for each attribute."""
        return asdict(self)


class Decoded(NamedTuple):
    """A frame, its time in seconds from the first one, and how long it is on display in seconds."""

    frame: av.VideoFrame
    time: float
    duration: float


class Shown(NamedTuple):
    """The same of a frame, or of a picture that was not decoded."""

    frame: av.VideoFrame | Skipped
    time: float
    duration: float


@dataclass(frozen=True, eq=False)
class Snippet:
    """A piece of video and the images that stand for it.

    Attributes:
        index: 0 for the video's first snippet.
        start, end: seconds from the video's first frame.
        images: RGB uint8 [k,S,S,3], k = ``Sampling.images_per_snippet``; [k,c,S,S,3] if c crops were asked for; k = 0
            if the gate holds the snippet.
        short: the whole video is shorter than one snippet.
        verdict: the gate's; without a gate every snippet is to be encoded.
    """

    index: int
    start: float
    end: float
    images: NDArray[np.uint8]
    short: bool = False
    verdict: Verdict = Verdict.ENCODE

    def without_images(self) -> Snippet:
        """The same without its images: uint8 [0,S,S,3]."""
        return replace(self, images=np.empty((0, *self.images.shape[1:]), np.uint8))


class Video:
    """A video file that is open for reading, once, from front to back.

    >>> with Video("door.mp4") as video:                                   # doctest: +SKIP
    ...     for snippet in video.snippets():
    ...         print(snippet.start, snippet.end, snippet.images.shape)
    ...     print(video.damage)

    Args:
        path: the file.
        threads: decoding threads of the software decoder; 0 for one to each core.
        decoder: ``software``, ``cuda``, ``gstreamer``, or ``auto`` for the first that gives this file's first picture
            as software does.

    Attributes:
        info: what is known of it; see :class:`VideoInfo`.
        decoded: frames read so far.
        note: what the user should know of a sound file, as a clause without the file's name, or None.

    Raises:
        UserError: there is no such file, it cannot be read, no picture in it can be decoded, or not with the decoder
            that is named.
        DecoderFailed: while reading: a hardware decoder met what only software can read, damage for instance.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, decoder: str = SOFTWARE) -> None:
        self.path = Path(path)
        self._threads = threads
        hardware = decoders.wanted(decoder)
        self._open()
        if hardware:
            try:
                self._take_hardware(hardware, required=decoder != "auto")
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        """Open the file for software to decode from its beginning."""
        self.decoded = 0
        self.note: str | None = None
        self._faults = _Faults()
        self._skipper: Skipper | None = None
        self._container = _open(self.path)
        try:
            self._stream = _pick_stream(self._container, self.path)
            self._decoder: decoders.Decoder = decoders.SoftwareDecoder(self._stream, self._threads)
            # AVI has no display times to tell the order from.
            if self._stream.codec_context.name == "h264" and self._container.format.name != "avi":
                self._skipper = Skipper()
            # The first frame is decoded here, so a file without any is refused before any work has begun.
            self._frames: Iterator[av.VideoFrame | Skipped] = self._decode()
            first = next(self._frames, None)
            self._first = first if isinstance(first, av.VideoFrame) else None
            if self._first is None:
                why = what_is_missing(self.path) or "it may be damaged, encrypted, or of a kind that FFmpeg lacks"
                raise UserError(f"{self.path}: no picture in it can be decoded ({why}): copy or record it again")
            self.info = self._describe(self._first)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; may be called again."""
        self._first = None
        self._frames = iter(())  # it refers to this object, which would keep both alive
        self._decoder.close()
        self._container.close()

    @property
    def damage(self) -> str | None:
        """What was wrong with the file, as a sentence; None if nothing was.

        Complete only when every frame has been read.
        """
        parts = self._faults.parts()
        if not parts:
            return None
        return f"{self.path} is damaged, and only what could be decoded was read: {', '.join(parts)}"

    def __iter__(self) -> Iterator[Decoded]:
        return self.frames()

    def frames(self) -> Iterator[Decoded]:
        """All frames in display order, unconverted, with times that strictly increase from 0.

        A frame should be let go before many more are read: the decoder's pool is behind it.
        """
        for frame, time, duration in self.shown():
            assert isinstance(frame, av.VideoFrame)  # nothing is skipped but for snippets
            yield Decoded(frame, time, duration)

    def shown(self) -> Iterator[Shown]:
        """The same, and in their places the pictures that are not decoded because no snippet needs them."""
        timeline = Timeline()
        usual = 1 / self.info.rate
        for frame in self._all():
            stamp = self._timestamp(frame)
            duration = self._duration(frame) or usual
            time = timeline.place(None if stamp is None else stamp - self.info.start, duration)
            self.decoded += 1
            self._faults.reached = time + duration
            yield Shown(frame, time, duration)

    def snippets(
        self,
        sampling: Sampling | None = None,
        preprocessing: Preprocessing | None = None,
        crops: Sequence[tuple[str, bool]] | None = None,
        gate: GateRule | None = None,
    ) -> Iterator[Snippet]:
        """The video's snippets in order; only the frames that are sampled are converted.

        Args:
            sampling: which frames become a snippet.
            preprocessing: what is done to them.
            crops: (where, mirrored) of several crops to take instead of the one that ``preprocessing`` names.
            gate: holds snippets in which nothing has changed; they come without images, and are not converted.

        Raises:
            UserError: a gate, and several images to a snippet.
        """
        sampling = sampling or Sampling()
        preprocessing = preprocessing or Preprocessing()
        if gate is not None and sampling.images_per_snippet > 1:
            raise UserError(
                f"the gate judges one image of each snippet, and this bundle takes {sampling.images_per_snippet} "
                "(--sample mean): leave out --gate, or build the bundle with --sample middle"
            )
        self._skip(sampling)
        done = 0
        try:
            for snippet in self._cut(sampling, preprocessing, crops, gate):
                done += 1
                yield snippet
        except Irregular:
            # Once more from the beginning, with every picture decoded; what has been given is the same.
            self._container.close()
            known = self.info
            self._open()
            self.info, self._skipper = known, None
            yield from islice(self._cut(sampling, preprocessing, crops, gate), done, None)

    def _skip(self, sampling: Sampling) -> None:
        """Leave out what the sampling passes over, but for a first snippet that may be all there is."""
        length = sampling.frames
        wanted = {"first": 0, "middle": length // 2}.get(sampling.pick)
        if self._skipper is not None and sampling.by == "frames" and wanted is not None:
            self._skipper.wanted = lambda rank: rank < length or rank % length == wanted

    def _cut(
        self,
        sampling: Sampling,
        preprocessing: Preprocessing,
        crops: Sequence[tuple[str, bool]] | None,
        gate: GateRule | None,
    ) -> Iterator[Snippet]:
        convert = Preprocessor(preprocessing, crops)
        guard = None if gate is None else Gate(gate, preprocessing, convert)

        def looked(frame: av.VideoFrame | Skipped) -> Looked:
            if isinstance(frame, Skipped):
                raise Irregular
            return Looked(convert(frame), Verdict.ENCODE) if guard is None else guard(frame)

        sampler = Sampler(sampling, looked)
        for frame, time, duration in self.shown():
            if guard is not None:
                guard.now = time
            for sampled in sampler.push(frame, time, duration):
                yield _snippet(sampled, preprocessing.size)
        for sampled in sampler.finish():
            if sampled.short:
                length = f"{sampling.frames} frames" if sampling.by == "frames" else f"{sampling.seconds:g} s"
                count = f"{self.decoded} frame{'' if self.decoded == 1 else 's'}"
                self.note = f"with {count} it is shorter than a snippet of {length}, and taken for one"
            yield _snippet(sampled, preprocessing.size)

    def _take_hardware(self, kinds: Sequence[Any], *, required: bool) -> None:
        """Go on with the first hardware decoder that gives the first picture as software has; the file begins anew."""
        assert self._first is not None
        reasons: list[str] = []
        for kind in kinds:
            reason = kind.unavailable() or decoders.unfit(self._container.format.name, self._first)
            if reason is None:
                try:
                    self._restart(kind, self._first)
                    return
                except decoders.DecoderError as error:
                    reason = str(error)
            reasons.append(f"{kind.name} {reason}")
        why = "; ".join(reasons)
        if required:
            raise UserError(f"{self.path} cannot be decoded as asked: {why}; take --decoder auto or software")
        self.info = replace(self.info, decoder_why=why)

    def _restart(self, kind: Any, first: av.VideoFrame) -> None:
        before = self._container, self._stream, self._decoder, self._frames, self._faults, self._skipper
        try:
            self._container = _open(self.path)
            self._stream = _pick_stream(self._container, self.path)
            self._decoder = kind(self._stream, first)
            self._faults = _Faults()
            self._skipper = None  # the hardware decodes everything
            self._frames = self._decode()
            found = next(self._frames, None)
            assert not isinstance(found, Skipped)
            decoders.check_first(found, first)
        except BaseException:
            # Software stands where it stood: behind its first picture.
            if self._decoder is not before[2]:
                self._decoder.close()
            if self._container is not before[0]:
                self._container.close()
            self._container, self._stream, self._decoder, self._frames, self._faults, self._skipper = before
            raise
        before[0].close()
        self._first = found
        self.info = replace(self.info, decoder=kind.name)

    def _fault(self, kind: str) -> None:
        """Count a fault; with hardware, which patches pictures without saying so, leave the file to software."""
        if self._decoder.name != SOFTWARE:
            raise decoders.DecoderError("meets damage")
        self._faults.note(kind)
        if self._skipper is not None:
            self._skipper.doubt()

    def _all(self) -> Iterator[av.VideoFrame | Skipped]:
        if self._first is None:
            raise RuntimeError(f"{self.path} has been read or closed: open it again")
        first, self._first = self._first, None
        yield first
        del first
        try:
            yield from self._frames
        except decoders.DecoderError as error:
            raise decoders.DecoderFailed(
                f"{self.path}: the {self._decoder.name} decoder {error} at {self._faults.reached:.1f} s: "
                "decode this file in software"
            ) from error

    def _decode(self) -> Iterator[av.VideoFrame | Skipped]:
        # One packet behind the reader, to know the last one. If that is incomplete it holds half a picture at most,
        # and its error would take along the good frames that the decoder's other threads still have.
        # Further behind where pictures may be skipped, to know their order.
        behind = 1 if self._skipper is None else AHEAD
        waiting: deque[av.Packet[VideoStream]] = deque()
        for packet in self._packets():
            if self._skipper is not None:
                self._skipper.announce(packet)
            waiting.append(packet)
            if len(waiting) > behind:
                yield from self._decode_packet(waiting.popleft())
        while len(waiting) > 1:
            yield from self._decode_packet(waiting.popleft())
        last = waiting.popleft() if waiting else None
        if last is not None and not last.is_corrupt:
            yield from self._decode_packet(last)
        yield from self._decode_packet(None)
        if self._skipper is not None:
            yield from self._skipper.placed(None)
        self._faults.cut = what_is_missing(self.path)
        if last is not None and last.is_corrupt and self._faults.cut is None:
            self._faults.cut = "it ends in the middle of a picture"

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        errors = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    # An empty one would tell the decoder that the stream is over.
                    if packet.size:
                        yield packet
                return
            except IndexError:
                # Transport streams and FLV may show a stream that was not there when the file was opened. PyAV has no
                # entry for it and trips over its first packet, which is none of ours; called again, it passes over it.
                continue
            except av.FFmpegError:
                # The container's own structure is broken here; reading may well go on behind it.
                self._fault("broken")
                errors += 1
                if errors == _MOST_READ_ERRORS:
                    return

    def _decode_packet(self, packet: av.Packet[VideoStream] | None) -> Iterator[av.VideoFrame | Skipped]:
        if packet is not None and packet.is_corrupt:
            self._fault("incomplete")
        if packet is not None and self._skipper is not None:
            # The decoder takes this with the packet, for whichever of its threads gets it.
            self._stream.codec_context.skip_frame = "NONREF" if self._skipper.skips(packet) else "DEFAULT"
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            self._fault("undecoded")
            return
        for frame in frames:
            if frame.is_corrupt:
                self._fault("patched")
            if self._skipper is not None:
                yield from self._skipper.placed(frame)
            yield frame

    def _timestamp(self, frame: av.VideoFrame | Skipped) -> float | None:
        # AVI stores no display times, and FFmpeg's guess at them is wrong with B-frames; decoding times, which it
        # does store, come out in the order of display.
        stamp = frame.dts if self._container.format.name == "avi" or frame.pts is None else frame.pts
        base = self._stream.time_base
        return None if stamp is None or base is None else float(stamp * base)

    def _duration(self, frame: av.VideoFrame | Skipped) -> float | None:
        ticks, base = getattr(frame, "duration", None), self._stream.time_base  # PyAV 15 has it
        return float(ticks * base) if ticks and ticks > 0 and base is not None else None

    def _describe(self, first: av.VideoFrame) -> VideoInfo:
        stream, container = self._stream, self._container
        rate = next(
            (
                float(rate)
                for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate)
                if rate is not None and 0 < rate <= 1000
            ),
            _NOMINAL_RATE,
        )
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        frames = stream.frames or (round(duration * rate) if duration else None)
        matrix, full_range = colour_of(first)
        return VideoInfo(
            codec=stream.codec_context.codec.canonical_name,
            width=first.width,
            height=first.height,
            rate=rate,
            duration=duration,
            frames=frames,
            rotation=90 * quarter_turns(first),
            pixel_format=first.format.name,
            matrix=matrix,
            full_range=full_range,
            start=self._timestamp(first) or 0.0,
        )


def read_snippets(
    path: str | Path,
    sampling: Sampling | None = None,
    preprocessing: Preprocessing | None = None,
    *,
    threads: int = 0,
) -> Iterator[Snippet]:
    """The snippets of a video file; use :class:`Video` where damage matters.

    Raises:
        UserError: as :class:`Video`.
    """
    with Video(path, threads=threads) as video:
        yield from video.snippets(sampling, preprocessing)


def find_videos(folder: str | Path) -> list[Path]:
    """Video files in a folder and all folders below it, by their extensions, sorted; hidden ones are left out.

    Raises:
        UserError: it is no folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder: check the name")
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(where, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)


def named_videos(paths: Sequence[Path]) -> list[Path]:
    """What a command line names: files as they are, folders as the videos in them; nothing twice.

    Raises:
        UserError: a path that does not exist, or a folder without videos.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            videos = find_videos(path)
            if not videos:
                raise UserError(f"{path} holds no video files: name a folder that does, or the files themselves")
            found += videos
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: check the name")
    return list(dict.fromkeys(found))


# What can go wrong while reading, as one and as several.
_FAULTS = {
    "incomplete": ("packet is incomplete", "packets are incomplete"),
    "undecoded": ("packet could not be decoded", "packets could not be decoded"),
    "patched": ("picture has errors", "pictures have errors"),
    "broken": ("place of its container could not be read", "places of its container could not be read"),
}


class _Faults:
    """What went wrong while reading."""

    def __init__(self) -> None:
        self.cut: str | None = None  # how the file ends too early
        self.reached = 0.0  # seconds that have been decoded
        self._first: float | None = None  # seconds, of the first fault
        self._counts = dict.fromkeys(_FAULTS, 0)

    def note(self, kind: str) -> None:
        """Count a fault of one of the kinds in ``_FAULTS``."""
        if self._first is None:
            self._first = self.reached
        self._counts[kind] += 1

    def parts(self) -> list[str]:
        """Clauses for a sentence; none if all is well."""
        parts = [] if self.cut is None else [f"{self.cut} (read up to {self.reached:.1f} s)"]
        counted = [f"{count} {_FAULTS[kind][count > 1]}" for kind, count in self._counts.items() if count > 0]
        if counted:
            parts.append(f"{', '.join(counted)} (from about {self._first:.1f} s on)")
        return parts


def _open(path: Path) -> InputContainer:
    """Open a file, or say in one sentence why not."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a video file")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the name") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions, or run as a user who may") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the disk or the connection") from None
    if empty:
        raise UserError(f"{path} is empty: copy or record it again")
    try:
        # "file:" because a colon in a name would be taken for a protocol. A playlist in disguise may not reach out
        # to the network, and tags in another encoding than UTF-8 are no reason to refuse a video.
        return av.open(f"file:{path}", "r", container_options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError:
        why = what_is_missing(path) or "its content is of no kind that FFmpeg knows"
        raise UserError(f"{path} cannot be opened as a video ({why}): check the file, or copy it again") from None


def _pick_stream(container: InputContainer, path: Path) -> VideoStream:
    """The main video stream; cover pictures do not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        holds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{path} has no video stream (it holds: {holds}): give a file with pictures")
    best = container.streams.best("video")
    stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    if stream.codec_context is None:
        raise UserError(f"{path} is in a video codec that this FFmpeg cannot decode: convert it to H.264")
    return stream


def _snippet(sampled: Sampled[Looked], size: int) -> Snippet:
    images = [looked.image for looked in sampled.images if looked.image is not None]
    stacked = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
    return Snippet(sampled.index, sampled.start, sampled.end, stacked, sampled.short, sampled.images[0].verdict)
