"""Decoders: what makes pictures of a stream's packets. FFmpeg on the CPU, or hardware where the platform has it.

Hardware gets the packets that the reader of :mod:`vadrun.video` takes from the file, so that containers, times and
damage are dealt with in one place. It hands over bare pictures: what a picture is tagged with is taken from the first
one, which software has decoded. Where that is not enough the file is left to software; a decoder's first picture is
compared with software's before it is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.codec import CodecContext
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.stream import VideoStream

from vadrun.cuda import NoCuda, gpus
from vadrun.errors import UserError
from vadrun.preprocessing import Orientation, Preprocessor, orientation_of
from vadrun.pyav import DURATIONS, fraction

SOFTWARE = "software"
_MOST_LEVELS = 3.0  # of 255, by which a first picture may differ from software's in the mean

# What GStreamer calls a codec, and FFmpeg's filter to the form of it that its parsers take from everywhere.
_PARSERS = {"h264": ("h264", "h264_mp4toannexb"), "hevc": ("h265", "hevc_mp4toannexb")}


class DecoderError(Exception):
    """A hardware decoder cannot be used here, or for this file; the message is a clause that says why."""


class DecoderFailed(UserError):
    """A hardware decoder gave up on a file that it had begun; software can read it from the start."""


class Decoder(Protocol):
    """What the reader needs of a decoder."""

    name: str

    def decode(self, packet: av.Packet[VideoStream] | None) -> Sequence[av.VideoFrame]:
        """Pictures that are ready, in display order, ``pts`` in the stream's time base; for None all that are left.

        Raises:
            av.FFmpegError: the software decoder cannot decode the packet, and goes on with the next.
            DecoderError: a hardware decoder fails.
        """

    def close(self) -> None:
        """Let go of the decoder."""


class SoftwareDecoder:
    """FFmpeg on the CPU.

    Args:
        stream: of an opened file.
        threads: 0 for one to each core.
        at_once: each picture as soon as it can be: no threads that work on several at a time.
    """

    name = SOFTWARE

    def __init__(self, stream: VideoStream, threads: int = 0, *, at_once: bool = False) -> None:
        stream.thread_type = "SLICE" if at_once else "AUTO"
        stream.thread_count = threads
        self._context = stream.codec_context

    def decode(self, packet: av.Packet[VideoStream] | None) -> Sequence[av.VideoFrame]:
        return self._context.decode(packet)

    def close(self) -> None:
        pass  # it is the container's


class CudaDecoder:
    """The GPU's decoder (NVDEC) through FFmpeg; pictures come back to the host as NV12 or P010.

    Args:
        stream: of an opened file.
        first: its first picture, decoded by software.

    Raises:
        DecoderError: it cannot decode the stream.
    """

    name = "cuda"

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot work here, or None; whether it does shows with a file."""
        if "cuda" not in map(str, hwdevices_available()):
            return "is not compiled into this PyAV"
        try:
            gpus()
        except NoCuda as error:
            return str(error)
        return None

    def __init__(self, stream: VideoStream, first: av.VideoFrame) -> None:
        self._first = first
        self._lengths: dict[int, int] = {}  # by pts, of the pictures that are under way
        try:
            self._context = self._opened(stream)
        except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
            raise DecoderError(f"does not start ({error})") from error

    def decode(self, packet: av.Packet[VideoStream] | None) -> Sequence[av.VideoFrame]:
        if packet is not None and packet.pts is not None and packet.duration:
            self._lengths[packet.pts] = packet.duration
        try:
            frames: list[av.VideoFrame] = self._context.decode(packet)
        except av.FFmpegError as error:
            raise DecoderError(f"cannot decode a packet ({error.strerror})") from error
        for frame in frames:
            _dress(frame, self._first, self._lengths.pop(frame.pts, 0) if frame.pts is not None else 0)
        return frames

    def close(self) -> None:
        self._context = None

    def _opened(self, stream: VideoStream) -> Any:
        codec = stream.codec_context.codec.canonical_name  # FFmpeg's own decoder of that name is the one with hardware
        context: Any = CodecContext.create(codec, "r", hwaccel=HWAccel("cuda", allow_software_fallback=False))
        if not context.is_hwaccel:
            raise DecoderError(f"has nothing for {codec}")
        context.extradata = stream.codec_context.extradata
        context.open()
        return context


class GstreamerDecoder:
    """A Jetson's decoder (NVDEC) through GStreamer's nvv4l2decoder; pictures come back to the host as NV12.

    Args:
        stream: of an opened file.
        first: its first picture, decoded by software.

    Raises:
        DecoderError: it cannot decode the stream.
    """

    name = "gstreamer"
    # From a parser's output to NV12 in the host's memory.
    elements = "nvv4l2decoder ! nvvidconv"
    _needed = "nvv4l2decoder"
    _MOST_UNDER_WAY = 48  # pictures: more than any codec reorders
    _PATIENCE = 5_000_000_000  # nanoseconds without a picture until it is taken for stuck

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot work here, or None; whether it does shows with a file."""
        gst = _gstreamer()
        if isinstance(gst, str):
            return gst
        if gst.ElementFactory.find(cls._needed) is None:
            return f"finds no {cls._needed}, which a Jetson has"
        return None

    def __init__(self, stream: VideoStream, first: av.VideoFrame) -> None:
        codec = stream.codec_context.codec.canonical_name
        if codec not in _PARSERS:
            raise DecoderError(f"has nothing for {codec}")
        gst = _gstreamer()
        if isinstance(gst, str):
            raise DecoderError(gst)
        self._gst: Any = gst
        self._first, self._base = first, fraction(stream.time_base)
        self._stamps: dict[int, tuple[int, int]] = {}  # microseconds -> pts and duration in the stream's time base
        kind, to_annex_b = _PARSERS[codec]
        self._filter = BitStreamFilterContext(to_annex_b, stream)
        try:
            self._pipeline = gst.parse_launch(
                f"appsrc name=in format=time is-live=false caps=video/x-{kind},stream-format=byte-stream,alignment=au"
                f" ! {kind}parse ! {self.elements} ! video/x-raw,format=NV12 ! appsink name=out sync=false"
            )
        except Exception as error:  # GLib's own exception class is only known once gi is imported
            raise DecoderError(f"does not start ({error})") from error
        self._in, self._out = self._pipeline.get_by_name("in"), self._pipeline.get_by_name("out")
        self._pipeline.set_state(gst.State.PLAYING)

    def decode(self, packet: av.Packet[VideoStream] | None) -> Sequence[av.VideoFrame]:
        for part in self._filter.filter(packet):
            self._push(part)
        if packet is None:
            self._in.emit("end-of-stream")
        frames: list[av.VideoFrame] = []
        while True:
            # Without a reason to wait, only what is there is taken.
            wait = packet is None or len(self._stamps) > self._MOST_UNDER_WAY
            sample = self._out.emit("try-pull-sample", self._PATIENCE if wait else 0)
            self._raise_its_errors()
            if sample is not None:
                frames.append(self._frame(sample))
            elif packet is None and not self._out.get_property("eos"):
                raise DecoderError("is stuck at the end of the file")
            elif packet is not None and wait:
                raise DecoderError("is stuck")
            else:
                return frames

    def close(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)

    def _push(self, packet: av.Packet[VideoStream]) -> None:
        if packet.pts is None or self._base is None:
            raise DecoderError("needs packets with display times")
        # To the microsecond: what a V4L2 device keeps of a time.
        stamp = round(packet.pts * self._base * 1_000_000) + 10_000_000
        self._stamps[stamp] = packet.pts, packet.duration or 0
        buffer = self._gst.Buffer.new_wrapped(bytes(packet))
        buffer.pts = stamp * 1000
        if self._in.emit("push-buffer", buffer) != self._gst.FlowReturn.OK:
            self._raise_its_errors()
            raise DecoderError("takes no more packets")

    def _frame(self, sample: Any) -> av.VideoFrame:
        video = import_module("gi.repository.GstVideo")
        buffer, info = sample.get_buffer(), video.VideoInfo.new_from_caps(sample.get_caps())
        meta = video.buffer_get_video_meta(buffer)
        offsets, strides = (meta.offset, meta.stride) if meta is not None else (info.offset, info.stride)
        frame = av.VideoFrame(info.width, info.height, "nv12")
        mapped, memory = buffer.map(self._gst.MapFlags.READ)
        if not mapped:
            raise DecoderError("gives a picture that cannot be read")
        try:
            for index, plane in enumerate(frame.planes):
                rows = np.frombuffer(memory.data, np.uint8, strides[index] * plane.height, offsets[index])
                padded = np.zeros((plane.height, plane.line_size), np.uint8)
                used = min(plane.line_size, strides[index])
                padded[:, :used] = rows.reshape(plane.height, strides[index])[:, :used]
                plane.update(padded.tobytes())
        finally:
            buffer.unmap(memory)
        stamp = round(buffer.pts / 1000)
        if stamp not in self._stamps:
            raise DecoderError("gives a picture with a time that no packet has")
        frame.pts, length = self._stamps.pop(stamp)
        _dress(frame, self._first, length)
        return frame

    def _raise_its_errors(self) -> None:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        if message is not None:
            raise DecoderError(f"fails ({message.parse_error()[0].message})")


_HARDWARE: tuple[Any, ...] = (CudaDecoder, GstreamerDecoder)
NAMES = ("auto", SOFTWARE, *(kind.name for kind in _HARDWARE))


def reasons() -> list[tuple[str, str | None]]:
    """Each hardware decoder in the order in which "auto" tries them, and why it cannot be tried here (None: it can)."""
    return [(kind.name, kind.unavailable()) for kind in _HARDWARE]


def wanted(name: str) -> list[Any]:
    """The classes that ``name`` of :data:`NAMES` allows, in the order in which they are tried; software always can.

    Raises:
        UserError: an unknown name.
    """
    if name not in NAMES:
        raise UserError(f"there is no decoder {name!r}: take one of {', '.join(NAMES)}")
    return [kind for kind in _HARDWARE if name in ("auto", kind.name)]


def unfit(container: str, first: av.VideoFrame) -> str | None:
    """Why a file has to be left to software, or None: what bare pictures do not tell, and nothing else does.

    Args:
        container: FFmpeg's name of the format.
        first: the first picture, decoded by software.
    """
    if orientation_of(first) != Orientation():
        return "does not keep the rotation of this file"
    if container == "avi":
        return "does not keep the order of an AVI file"
    return None


def check_first(found: av.VideoFrame | None, first: av.VideoFrame) -> None:
    """Hold a hardware decoder's first picture against software's.

    Raises:
        DecoderError: it is another picture, or none.
    """
    if found is None:
        raise DecoderError("gives no picture")
    if found.pts != first.pts:
        raise DecoderError("begins at another time than software")
    if (found.width, found.height) != (first.width, first.height):
        raise DecoderError(f"gives {found.width}x{found.height} in place of {first.width}x{first.height}")
    images = [Preprocessor()(frame).astype(np.float32) for frame in (found, first)]
    if float(np.abs(images[0] - images[1]).mean()) > _MOST_LEVELS:
        raise DecoderError("gives another picture than software")


def _dress(frame: av.VideoFrame, first: av.VideoFrame, length: int) -> None:
    """Give a bare picture the colours of the first one, and its own duration."""
    frame.colorspace, frame.color_range = first.colorspace, first.color_range
    if hasattr(frame, "color_trc"):  # PyAV 17 has it
        frame.color_trc, frame.color_primaries = first.color_trc, first.color_primaries
    if length and DURATIONS:
        frame.duration = length


@cache
def _gstreamer() -> Any:
    """GStreamer, initialised, or why it is not there."""
    if find_spec("gi") is None:
        return "needs GStreamer's Python bindings: apt install python3-gi gir1.2-gst-plugins-base-1.0"
    try:
        gi = import_module("gi")
        for name in ("Gst", "GstApp", "GstVideo"):
            gi.require_version(name, "1.0")
        gst = import_module("gi.repository.Gst")
        import_module("gi.repository.GstApp")
        gst.init(None)
    except (ImportError, ValueError) as error:
        return f"cannot load GStreamer ({error})"
    return gst
