"""Make test footage from a clip, in one of two ways.

By default the clip is decoded, scaled and encoded again, frame for frame (at another rate it plays faster or
slower; with ``--keep-time`` frames are repeated or left out instead), over and over until the length is reached.
With ``--remux`` its packets are repeated as they are, so hours of video take seconds; the clip is then only repeated
as a whole, so the file may be a little longer than asked. Sound is left out either way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.reformatter import Colorspace

from benchmarks import measure
from vadrun.errors import UserError
from vadrun.pyav import fraction, open_input

# Fast presets: cameras' encoders have little time too. They close their groups; x265 would not by itself.
OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=error:open-gop=0"},
    "libsvtav1": {"preset": "10"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "mpeg4": "mpeg4"}


def open_clip(source: Path) -> InputContainer:
    """Open the clip.

    Raises:
        UserError: it is no video.
    """
    try:
        container = open_input(str(source))
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{source} cannot be opened as a video ({error.strerror}): name another clip") from None
    if not container.streams.video:
        raise UserError(f"{source} has no video stream: name another clip")
    return container


def frames(source: Path) -> Iterator[av.VideoFrame]:
    """The clip's frames, without end."""
    while True:
        with open_clip(source) as container:
            container.streams.video[0].thread_type = "AUTO"
            empty = True
            for frame in container.decode(video=0):
                empty = False
                yield frame
        if empty:
            raise UserError(f"no frame of {source} can be decoded: name another clip")


def at_rate(source: Path, rate: Fraction) -> Iterator[av.VideoFrame]:
    """The clip's frames, without end, at another rate and the same speed."""
    with open_clip(source) as container:
        own = fraction(container.streams.video[0].average_rate) or Fraction(25)
    shown = 0
    for index, frame in enumerate(frames(source), 1):
        while shown * own < index * rate:
            yield frame
            shown += 1


def encode(
    source: Path, out: Path, size: tuple[int, int], rate: Fraction, codec: str, kbit: int, count: int, keep_time: bool
) -> int:
    """Write ``count`` frames of the clip at another size and rate; returns how many it wrote."""
    width, height = size
    encoder = ENCODERS.get(codec, codec)
    with av.open(str(out), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=OPTIONS.get(encoder, {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = round(2 * rate)  # a key frame every two seconds, as cameras have them
        stream.bit_rate = 1000 * kbit
        # High definition is BT.709 and says so, small pictures are BT.601.
        large = height >= 720
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1 if large else 6
        pictures = at_rate(source, rate) if keep_time else frames(source)
        for index, frame in zip(range(count), pictures, strict=False):
            from_large = frame.height >= 720
            picture = frame.reformat(
                width,
                height,
                "yuv420p",
                src_colorspace=Colorspace.ITU709 if from_large else Colorspace.ITU601,
                dst_colorspace=Colorspace.ITU709 if large else Colorspace.ITU601,
            )
            picture.pts, picture.time_base = index, 1 / rate
            picture.pict_type = 0  # or the clip's key frames would be taken over
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return count


def remux(source: Path, out: Path, seconds: float) -> int:
    """Repeat the clip's packets until ``seconds`` are reached; returns the number of frames.

    Raises:
        UserError: the clip does not begin with a key frame, or its timestamps do not allow it.
    """
    start, span, base, packets = clip_span(source)
    repeats = -int(-seconds // float(span * base))
    last: int | None = None
    with av.open(str(out), "w") as container, open_clip(source) as template:
        stream = container.add_stream_from_template(template.streams.video[0], opaque=True)
        for repeat in range(repeats):
            with open_clip(source) as clip:
                for packet in clip.demux(clip.streams.video[0]):
                    if packet.size == 0 or packet.pts is None or packet.dts is None:
                        continue
                    packet.pts += repeat * span - start
                    packet.dts += repeat * span - start
                    if last is not None and packet.dts <= last:
                        raise UserError(f"{source} has uneven timestamps: encode it first, without --remux")
                    last = packet.dts
                    packet.stream = stream
                    container.mux(packet)
    return repeats * packets


def clip_span(source: Path) -> tuple[int, int, Fraction, int]:
    """First display time and length of the clip in ticks, the tick in seconds, and the number of packets.

    Raises:
        UserError: as :func:`remux`.
    """
    shown: list[int] = []
    longest = 0
    with open_clip(source) as clip:
        if clip.format.name == "avi":
            raise UserError(f"{source} is AVI, which stores no display times: encode it first, without --remux")
        stream = clip.streams.video[0]
        for packet in clip.demux(stream):
            if packet.size == 0:
                continue
            if not shown and not packet.is_keyframe:
                raise UserError(f"{source} does not begin with a key frame: encode it first, without --remux")
            if packet.pts is None or packet.dts is None:
                raise UserError(f"{source} has packets without timestamps: encode it first, without --remux")
            shown.append(packet.pts)
            longest = max(longest, packet.duration or 0)
        base = fraction(stream.time_base)
    if not shown or base is None:
        raise UserError(f"{source} holds no packets of video: name another clip")
    shown.sort()
    # The last frame is on display for as long as one usually is.
    usual = longest or (shown[-1] - shown[0]) // max(len(shown) - 1, 1)
    return shown[0], shown[-1] - shown[0] + usual, base, len(shown)


def check(path: Path, expected: int) -> None:
    """Decode the file.

    Raises:
        UserError: it has another number of frames, or one that is damaged.
    """
    count = 0
    with open_clip(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        last = -1.0
        for frame in container.decode(video=0):
            count += 1
            if frame.is_corrupt or frame.time is None or frame.time <= last:
                raise UserError(f"{path}: frame {count} is damaged or out of order: make it from another clip")
            last = frame.time
    if count != expected:
        raise UserError(f"{path} decodes to {count} frames, not {expected}: make it from another clip")


def picture_size(text: str) -> tuple[int, int]:
    """``WxH`` as two numbers."""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> int:
    """Make the file."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.make_video", description=__doc__)
    p.add_argument("source", type=Path, metavar="CLIP", help="the clip to repeat")
    p.add_argument("out", type=Path, metavar="FILE", help="what to write; its ending names the container")
    p.add_argument("--seconds", type=float, required=True, metavar="SEC", help="length of the file")
    p.add_argument("--remux", action="store_true", help="repeat the packets, without encoding")
    p.add_argument("--size", type=picture_size, default=(1920, 1080), metavar="WxH", help="default 1920x1080")
    p.add_argument("--rate", type=Fraction, default=Fraction(30), metavar="FPS", help="frames per second (default 30)")
    p.add_argument("--codec", default="h264", metavar="NAME", help=f"{', '.join(ENCODERS)} (default h264)")
    p.add_argument("--kbit", type=int, default=4000, metavar="N", help="kilobits per second (default 4000)")
    p.add_argument("--keep-time", action="store_true", help="play at the clip's own speed, whatever the rate")
    p.add_argument("--check", action="store_true", help="decode the file afterwards and count its frames")
    a = p.parse_args()
    if a.remux:
        count = remux(a.source, a.out, a.seconds)
    else:
        count = encode(a.source, a.out, a.size, a.rate, a.codec, a.kbit, round(a.seconds * a.rate), a.keep_time)
    if a.check:
        check(a.out, count)
    print(f"{a.out}: {count} frames, {a.out.stat().st_size / 1e6:.1f} MB{', checked' if a.check else ''}")
    return 0


if __name__ == "__main__":
    measure.main("make_video", main)
