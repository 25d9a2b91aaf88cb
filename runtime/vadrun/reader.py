"""A video file that is being decoded: its packets, and its pictures in the order of their display.

Damaged files are read as far as they go; what was wrong with them is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import av
from av.video.stream import VideoStream

from vadrun.ahead import Ahead
from vadrun.backlog import CODECS, Backlog, Picture
from vadrun.bitstream import Unit, Units, jpeg_is_broken
from vadrun.decoders import SOFTWARE, Decoder, DecoderError
from vadrun.errors import of_the_machine
from vadrun.groups import Crew, Groups, Splitter, Taken, Worker
from vadrun.owed import Owed
from vadrun.pyav import SIDE_DATA, fraction
from vadrun.skipping import AHEAD, Ranks, Skipped, Skipper
from vadrun.sources import open_container, pick_stream
from vadrun.timeline import WRAPS
from vadrun.wholeness import Faults, what_is_missing

T = TypeVar("T")

_MOST_READ_ERRORS = 100  # in a row, before a container that yields nothing more is given up


class Reader:
    """Reads a file once, from front to back.

    Args:
        path: the file.
        decoder: makes a decoder of the video stream.
        stream: FFmpeg's number of the video stream; None for the main one.

    Attributes:
        stream: the video stream.
        decoder: what decodes it.
        faults: what was wrong with the file so far.
        skipper: leaves out pictures that nobody looks at; None where that is not possible.
        backlog: decodes only what somebody asks for; None before :meth:`hold_back`.

    Raises:
        UserError: there is no such file, or it cannot be read.
        DecoderError: the decoder cannot be made.
    """

    def __init__(self, path: Path, decoder: Callable[[VideoStream], Decoder], stream: int | None = None) -> None:
        self.faults = Faults()
        self.skipper: Skipper | None = None
        self.backlog: Backlog | None = None
        self._last: av.Packet[VideoStream] | None = None
        self._ahead: Ahead | None = None
        self._more = ExitStack()  # containers of other threads
        self._path = path
        self.container = open_container(path)
        try:
            self.stream = pick_stream(self.container, path, stream)
            self._base = fraction(self.stream.time_base)  # seconds
            self.decoder = decoder(self.stream)
        except BaseException:
            self.container.close()
            raise
        self._owed = Owed(self._codec if self.decoder.name == SOFTWARE else "")
        self._headers = self._units() if self.decoder.name == SOFTWARE and self._codec in CODECS else None
        # AVI has no display times to tell the order from; hardware decodes everything.
        if self._codec == "h264":
            skips = self.decoder.name == SOFTWARE and self.container.format.name != "avi"
        else:
            skips = self.can_hold_back
        if skips:
            self.skipper = Skipper(self._ranks())

    @property
    def _codec(self) -> str:
        return self.stream.codec_context.name

    def close(self) -> None:
        """Let go of the file; may be called again."""
        if self._ahead is not None:
            self._ahead.stop()
        self._more.close()
        self.decoder.close()
        self.container.close()

    def pictures(self) -> Iterator[av.VideoFrame | Skipped]:
        """All pictures in display order, and in their places those that are not decoded; to be called once.

        Raises:
            DecoderError: a hardware decoder fails, or meets damage.
            Irregular: pictures were skipped, and which ones is in doubt.
        """
        # One packet behind the reader, to know the last one. If that is incomplete it holds half a picture at most,
        # and its error would take along the good frames that the decoder's other threads still have.
        # Further behind where pictures may be skipped, to know their order.
        behind = 1 if self.skipper is None else AHEAD
        waiting: deque[av.Packet[VideoStream]] = deque()
        for packet in self._packets():
            if self.skipper is not None:
                self.skipper.announce(packet)
            waiting.append(packet)
            if len(waiting) > behind:
                yield from self._decode_packet(waiting.popleft())
        while len(waiting) > 1:
            yield from self._decode_packet(waiting.popleft())
        last = waiting.popleft() if waiting else None
        if last is not None and not last.is_corrupt:
            yield from self._decode_packet(last)
        yield from self._decode_packet(None)
        if self.skipper is not None:
            yield from self.skipper.placed(None)
        self._end(last)

    @property
    def can_hold_back(self) -> bool:
        """Whether pictures can be decoded on demand."""
        if self.decoder.name != SOFTWARE or self._codec not in CODECS:
            return False
        # Of AVI display times are not known; of others it may not be known that new parameter sets have come.
        kind = self.container.format.name
        return kind in ("mpegts", "matroska,webm") or (SIDE_DATA and kind != "avi")

    def hold_back(
        self,
        wanted: Callable[[int], bool] | None = None,
        threads: Callable[[], int] = lambda: 1,
        moving: Callable[[], bool] = lambda: False,
        *,
        joins: bool = False,
    ) -> Iterator[Picture | av.VideoFrame]:
        """As :meth:`pictures`, in its place, but decoded only where somebody asks for it.

        Args:
            wanted: the places in display order that are asked for where something moves, if that is known.
            threads: how many may decode ahead there now; none, if it is 1.
            moving: whether something moves.
            joins: whether places are counted over pauses of the recording; else from the last pause on.
        """
        context = self.stream.codec_context
        self.skipper = None

        def decode(packet: av.Packet[VideoStream] | None) -> Sequence[av.VideoFrame]:
            return [frame for frame in self._decode_packet(packet) if not isinstance(frame, Skipped)]

        def skip(skips: bool) -> None:
            context.skip_frame = "NONREF" if skips else "DEFAULT"

        def flush() -> None:
            context.flush_buffers()
            self._owed.forget()

        packets = self._followed()
        if wanted is not None:
            crew = self._crew(lambda: lambda frame: frame, threads, [])
            self._ahead = Ahead(
                packets, Splitter(self._units(), wanted, self._ranks(joins)), crew, lambda: self.faults.count, moving
            )
            packets = self._ahead.packets()
        self.backlog = Backlog(
            packets,
            self._units(),
            decode=decode,
            skip=skip,
            flush=flush,
            faults=lambda: self.faults.count,
            ahead=self._ahead,
            base=float(self._base or 1),
            missing=lambda: self._fault("missing"),
        )
        return self._held_back(self.backlog)

    def in_groups(
        self,
        wanted: Callable[[int], bool],
        make: Callable[[], Callable[[av.VideoFrame], T]],
        threads: Callable[[], int],
        *,
        joins: bool = False,
    ) -> Iterator[Taken | Skipped]:
        """As :meth:`pictures`, in its place, but decoded only as far as is wanted, and by groups.

        Args:
            wanted: whether the picture at this place in display order is needed.
            make: makes, for each thread, what makes of a frame what is wanted of it.
            threads: how many groups may be decoded at once now.
            joins: whether places are counted over pauses of the recording; else from the last pause on.

        Raises:
            Irregular: pictures were not decoded, and which ones is in doubt.
        """
        self.skipper = None
        crew = self._crew(make, threads, [self.stream.codec_context])
        splitter = Splitter(self._units(), wanted, self._ranks(joins))
        yield from Groups(self._followed(), splitter, crew, lambda: self.faults.count).pictures()
        self._end(self._last)

    def _units(self) -> Units:
        return Units(self._codec, self.stream.codec_context.extradata)

    @property
    def wrap(self) -> float | None:
        """Seconds after which the timestamps start again at 0; None where they do not."""
        return WRAPS.get(self.container.format.name)

    def _ranks(self, joins: bool = False) -> Ranks:
        ranks = Ranks(float(self._base or 1), self.wrap)
        ranks.joins = joins
        return ranks

    def _crew(
        self,
        make: Callable[[], Callable[[av.VideoFrame], T]],
        threads: Callable[[], int],
        contexts: list[av.VideoCodecContext],
    ) -> Crew[T]:
        """Threads that decode, with these contexts and more."""

        def worker() -> Worker[T]:
            try:
                context = contexts.pop()
            except IndexError:
                # From a container of its own it knows all that the stream's own knows.
                container = self._more.enter_context(open_container(self._path))
                context = pick_stream(container, self._path, self.stream.index).codec_context
            return Worker(context, make())

        return Crew(worker, threads)

    def _held_back(self, backlog: Backlog) -> Iterator[Picture | av.VideoFrame]:
        yield from backlog.pictures()
        self._end(self._last)

    def _followed(self) -> Iterator[av.Packet[VideoStream]]:
        for packet in self._packets():
            self._last = packet
            yield packet

    def _end(self, last: av.Packet[VideoStream] | None) -> None:
        """See whether the file ends where it should; ``last`` is its last packet."""
        self.faults.cut = what_is_missing(self._path)
        if last is not None and last.is_corrupt and self.faults.cut is None:
            self.faults.cut = "it ends in the middle of a picture"

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        errors = 0
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    errors = 0
                    # An empty one would tell the decoder that the stream is over.
                    if packet.size:
                        yield packet
                return
            except IndexError:
                # Transport streams and FLV may show a stream that was not there when the file was opened. PyAV has no
                # entry for it and trips over its first packet, which is none of ours; called again, it passes over it.
                continue
            except av.FFmpegError as error:
                of_the_machine(error)
                # The container's own structure is broken here; reading may well go on behind it.
                self._fault("broken")
                errors += 1
                if errors == _MOST_READ_ERRORS:
                    return

    def _decode_packet(self, packet: av.Packet[VideoStream] | None) -> Iterator[av.VideoFrame | Skipped]:
        if packet is not None and packet.is_corrupt:
            self._fault("incomplete")
        unit: Unit | None = None
        if packet is not None and self._headers is not None and self.backlog is None:
            unit = self._headers.read(packet)
            if unit is not None and unit.number.gap:
                self._fault("missing")
        skips = False
        if packet is not None and self.skipper is not None:
            skips = self._skips(packet, unit, self.skipper)
            # The decoder takes this with the packet, for whichever of its threads gets it.
            self.stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        # On demand, a picture that does not come out is looked for again before it is counted.
        counts = self.backlog is None or not self.backlog.is_regular
        if counts and packet is not None and not skips:
            for at in self._owed.fed(packet, self.faults.reached):
                self._fault("lost", at)
        try:
            frames = self.decoder.decode(packet)
        except av.FFmpegError as error:
            of_the_machine(error)
            if packet is not None:
                self._owed.failed(packet)
            self._fault("undecoded")
            return
        if packet is not None and self._codec == "mjpeg" and jpeg_is_broken(packet):
            self._fault("patched")
        for frame in frames:
            self._owed.came(frame)
        if counts and packet is None:
            for at in self._owed.settle():
                self._fault("lost", at)
        for frame in frames:
            if frame.is_corrupt:
                self._fault("patched")
            if self.skipper is not None:
                yield from self.skipper.placed(frame)
            yield frame

    def _skips(self, packet: av.Packet[VideoStream], unit: Unit | None, skipper: Skipper) -> bool:
        """Whether the decoder leaves out this packet's picture if it is marked as one that no other depends on."""
        if self._codec == "h264":
            return skipper.skips(packet)  # its decoder knows by itself what may be left out
        if unit is None:
            skipper.doubt()
        return skipper.skips(packet, unit is not None and not unit.referred)

    def timestamp(self, frame: av.VideoFrame | Skipped | Taken | Picture) -> float | None:
        """A picture's own time in seconds, if it has one."""
        # AVI stores no display times, and FFmpeg's guess at them is wrong with B-frames; decoding times, which it
        # does store, come out in the order of display.
        stamp = frame.dts if self.container.format.name == "avi" or frame.pts is None else frame.pts
        return None if stamp is None or self._base is None else float(stamp * self._base)

    def duration(self, frame: av.VideoFrame | Skipped | Taken | Picture) -> float | None:
        """How long a picture is on display in seconds, if it says so."""
        ticks = getattr(frame, "duration", None)  # not with every PyAV
        return float(ticks * self._base) if ticks and ticks > 0 and self._base is not None else None

    def _fault(self, kind: str, at: float | None = None) -> None:
        """Count a fault, at so many seconds if that is not now.

        Hardware patches pictures without saying so: the file is left to software.
        """
        if self.decoder.name != SOFTWARE:
            raise DecoderError("meets damage")
        self.faults.note(kind, at)
        if self.skipper is not None:
            self.skipper.doubt()
