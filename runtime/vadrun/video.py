"""Video files: decoded frames with their times, and the snippets that are cut from them.

Damaged files are read as far as they go, and say so afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vadrun import decoders
from vadrun.backends import cores
from vadrun.backlog import Picture
from vadrun.decoders import SOFTWARE
from vadrun.errors import UserError
from vadrun.gate import Gate, GateRule, Looked, Verdict
from vadrun.groups import Taken
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.reader import Reader
from vadrun.sampling import Sampled, Sampler, Sampling
from vadrun.skipping import Irregular, Skipped
from vadrun.sources import describe
from vadrun.stillness import Stillness
from vadrun.timeline import LONGEST_PAUSE, Pauses, Seen, Timeline
from vadrun.wholeness import what_is_missing

T = TypeVar("T")

_SAME = 0.001  # seconds by which times may differ that are the same


class Decoded(NamedTuple):
    """A frame, its time in seconds from the first one, and how long it is on display in seconds."""

    frame: av.VideoFrame
    time: float
    duration: float


Place = av.VideoFrame | Skipped | Taken | Picture
"""A frame, a picture that is left out, one that was made into an image, or one that is decoded if somebody asks."""


class Shown(NamedTuple):
    """The same of a picture's place."""

    frame: Place
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
        unseen: whether the gate's verdict fell without a look at the picture.
        first_frame, frames: the frames that it covers, see :class:`vadrun.sampling.Sampled`. Annotations count frames
            like this; a pause of the recording has none.
    """

    index: int
    start: float
    end: float
    images: NDArray[np.uint8]
    short: bool = False
    verdict: Verdict = Verdict.ENCODE
    unseen: bool = False
    first_frame: int = 0
    frames: int = 0

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
        stream: FFmpeg's number of the video stream to read; None for the main one.

    Attributes:
        info: what is known of it; see :class:`VideoInfo`.
        decoded: frames read so far.
        at_once: how many groups of pictures may be decoded at once now, where that is not always ``threads``.
        stopped: whether nobody wants any more of it; asked while it is read a second time.
        note: what the user should know of a sound file, as a clause without the file's name, or None.
        seen: how much of it was seen so far, and the gaps between.

    Raises:
        UserError: there is no such file, it cannot be read, no picture in it can be decoded, or not with the decoder
            that is named.
        DecoderFailed: while reading: a hardware decoder met what only software can read, damage for instance.
    """

    looks_ahead = True  # whether pictures may be left undecoded by what comes after them in the file

    def __init__(
        self, path: str | Path, *, threads: int = 0, decoder: str = SOFTWARE, stream: int | None = None
    ) -> None:
        self.path = Path(path)
        self._stream = stream
        self._threads = threads
        self.at_once: Callable[[], int] | None = None
        self.stopped: Callable[[], bool] = lambda: False
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
        self.seen = Seen()
        self._gates: list[Gate] = []  # that look at its pictures
        self._anew = False  # whether the reader stands before the first picture again
        self._reader = self._new_reader(lambda stream: decoders.SoftwareDecoder(stream, self._threads))
        try:
            # The first frame is decoded here, so a file without any is refused before any work has begun.
            self._frames: Iterator[Place] = self._reader.pictures()
            first = next(self._frames, None)
            self._first = first if isinstance(first, av.VideoFrame) else None
            if self._first is None:
                why = what_is_missing(self.path) or "it may be damaged, encrypted, or of a kind that FFmpeg lacks"
                raise UserError(f"{self.path}: no picture in it can be decoded ({why}): copy or record it again")
            start = self._reader.timestamp(self._first) or 0.0
            self._transfer = self._reader.stream.codec_context.color_trc  # for frames that do not name theirs
            self.info = describe(self.path, self._reader.container, self._reader.stream, self._first, start)
        except BaseException:
            self._reader.close()
            raise

    def _new_reader(self, decoder: Callable[[VideoStream], decoders.Decoder]) -> Reader:
        return Reader(self.path, decoder, self._stream)

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
        self._frames = iter(())
        self._reader.close()

    @property
    def damage(self) -> str | None:
        """What was wrong with the file, as a sentence; None if nothing was.

        Complete only when every frame has been read; damage in pictures that no snippet needs may go unseen.
        """
        parts = self._reader.faults.parts()
        if not parts:
            return None
        return f"{self.path} is damaged, and only what could be decoded was read: {', '.join(parts)}"

    @property
    def undecoded(self) -> int:
        """Pictures so far that were never decoded, because the gate had no need to look at them."""
        return 0 if self._reader.backlog is None else self._reader.backlog.undecoded

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
        timeline = Timeline(self._reader.wrap, self.seen)
        usual = 1 / self.info.rate
        for frame, stamp in self._stamped():
            duration = self._reader.duration(frame) or usual
            time = timeline.place(stamp, duration)
            self.decoded += 1
            self._reader.faults.reached = time + min(duration, LONGEST_PAUSE)
            yield Shown(frame, time, duration)

    def _stamped(self) -> Iterator[tuple[Place, float | None]]:
        """All frames with their timestamps in seconds from the first one's, None where they have none.

        One that is alone in being much later than those around it is wrong, and left out. To see that, a frame behind a
        pause waits for the next one.
        """
        begun = not self._anew
        pauses = Pauses()
        last: float | None = None
        late: tuple[Place, float] | None = None
        for frame in self._all():
            stamp = self._reader.timestamp(frame)
            if stamp is not None:
                stamp -= self.info.start
            if not begun and stamp is not None and stamp < 0:
                # A decoder that has met later parameter sets can do more than one that reads on from the beginning.
                self._reader.faults.note("lost", 0.0)
                continue
            begun = True
            if late is not None:
                assert last is not None
                alone = stamp is not None and last < stamp < min(last + LONGEST_PAUSE, late[1])
                yield late[0], None if alone else late[1]
                last, late = last if alone else late[1], None
            if stamp is not None and last is not None and stamp > last and pauses.judge(stamp - last, math.inf):
                late = frame, stamp
                continue
            last = stamp if stamp is not None else last
            yield frame, stamp
        if late is not None:
            yield late

    def snippets(
        self,
        sampling: Sampling | None = None,
        preprocessing: Preprocessing | None = None,
        crops: Sequence[tuple[str, bool]] | None = None,
        gate: GateRule | None = None,
        *,
        joins: bool = False,
    ) -> Iterator[Snippet]:
        """The video's snippets in order; only the frames that are sampled are converted.

        Args:
            sampling: which frames become a snippet.
            preprocessing: what is done to them.
            crops: (where, mirrored) of several crops to take instead of the one that ``preprocessing`` names.
            gate: holds snippets in which nothing has changed; they come without images, and are not converted.
            joins: by frames, a snippet takes 16 frames whatever pauses of the recording lie between them: for features
                whose truth counts frames.

        Raises:
            UserError: a gate, and several images to a snippet.
        """
        sampling = sampling or Sampling()
        preprocessing = preprocessing or Preprocessing()
        if gate is not None:
            _check_one_image(sampling)
        wanted = _wanted(sampling)
        if gate is not None and self._reader.can_hold_back:
            self._hold_back(wanted if self.looks_ahead else None, joins)
        elif gate is None and wanted is not None and self.looks_ahead and self._reader.can_hold_back:
            self._group(wanted, lambda: Preprocessor(preprocessing, crops, self._transfer), joins)
        elif wanted is not None and self._reader.skipper is not None:
            length = sampling.frames
            self._reader.skipper.ranks.joins = joins
            # A first snippet may be all there is, and then another of its frames is looked at.
            self._reader.skipper.wanted = lambda rank: rank < length or wanted(rank)
        yield from self._again_if_irregular(lambda: self._cut(sampling, preprocessing, crops, gate, joins))

    def shadows(
        self, sampling: Sampling, preprocessing: Preprocessing, gates: Sequence[GateRule]
    ) -> Iterator[tuple[Snippet, tuple[Verdict, ...]]]:
        """The snippets with their images, and what each of several gates would have said: one pass for all of them.

        Raises:
            UserError: several images to a snippet.
        """
        _check_one_image(sampling)
        if self._reader.can_hold_back:
            self._hold_back(_wanted(sampling), joins=False)
        self._reader.skipper = None
        rules = [replace(gate, shadow=True) for gate in gates]
        yield from self._shadows(sampling, preprocessing, rules)

    def _again_if_irregular(self, read: Callable[[], Iterator[Snippet]]) -> Iterator[Snippet]:
        """What ``read`` gives; where it finds the stream irregular, the rest of what a second reading gives."""
        index, end = 0, 0.0
        try:
            for snippet in read():
                index, end = index + 1, snippet.end
                yield snippet
        except Irregular:
            # Once more from the beginning, with every picture decoded. What has been given is the same, unless
            # pictures that nobody needed are damaged and do not come out: then later ones are counted otherwise.
            self._reader.close()
            known = self.info
            self._open()
            self.info, self._reader.skipper = known, None
            for snippet in read():
                if self.stopped():
                    return
                if index == 0 or snippet.start > end - _SAME:
                    yield replace(snippet, index=index)
                    index += 1

    def _share(self) -> int:
        return self._threads or cores() if self.at_once is None else self.at_once()

    def _group(self, wanted: Callable[[int], bool], make: Callable[[], Preprocessor], joins: bool) -> None:
        """Begin anew, and decode only what is wanted, by groups."""
        self._reader.close()
        self._reader = self._new_reader(lambda stream: decoders.SoftwareDecoder(stream, 1))
        self._anew = True
        self._frames = self._reader.in_groups(wanted, make, self._share, joins=joins)

    def _hold_back(self, wanted: Callable[[int], bool] | None, joins: bool) -> None:
        """Begin anew, and decode only what is asked for; ``wanted`` in any case, where something moves."""
        self._reader.close()
        # Threads that work on several pictures at a time would have to decode more of them to give one.
        self._reader = self._new_reader(lambda stream: decoders.SoftwareDecoder(stream, self._threads, at_once=True))
        self._anew = True
        self._frames = self._reader.hold_back(
            wanted if self._share() > 1 or self.at_once is not None else None,
            self._share,
            lambda: any(gate.moving for gate in self._gates),
            joins=joins,
        )

    def _cut(
        self,
        sampling: Sampling,
        preprocessing: Preprocessing,
        crops: Sequence[tuple[str, bool]] | None,
        gate: GateRule | None,
        joins: bool,
    ) -> Iterator[Snippet]:
        convert = Preprocessor(preprocessing, crops, self._transfer)
        guard = None if gate is None else self._guard(gate, preprocessing, convert)

        def looked(frame: Place) -> Looked:
            if isinstance(frame, Skipped):
                raise Irregular
            if isinstance(frame, Taken):
                return Looked(frame.made, Verdict.ENCODE)
            if guard is not None:
                return guard(frame)
            assert not isinstance(frame, Picture)  # nothing is held back without a gate
            return Looked(convert(frame), Verdict.ENCODE)

        for sampled in self._sampled(sampling, looked, [] if guard is None else [guard], joins=joins):
            yield _snippet(sampled, sampled.images, preprocessing.size)

    def _shadows(
        self, sampling: Sampling, preprocessing: Preprocessing, gates: Sequence[GateRule]
    ) -> Iterator[tuple[Snippet, tuple[Verdict, ...]]]:
        convert = Preprocessor(preprocessing, transfer=self._transfer)
        image: Any = None
        guards = [self._guard(gate, preprocessing, lambda frame: image) for gate in gates]

        def looked(frame: Place) -> tuple[Looked, tuple[Verdict, ...]]:
            nonlocal image
            assert not isinstance(frame, Skipped | Taken)  # the gates look at all of them
            image = convert(frame.frame() if isinstance(frame, Picture) else frame)
            return Looked(image, Verdict.ENCODE), tuple(guard(frame).verdict for guard in guards)

        for sampled in self._sampled(sampling, looked, guards):
            ((found, verdicts),) = sampled.images
            yield _snippet(sampled, [found], preprocessing.size), verdicts

    def _guard(
        self, gate: GateRule, preprocessing: Preprocessing, convert: Callable[[av.VideoFrame], NDArray[np.uint8]]
    ) -> Gate:
        sizes = None if self._reader.backlog is None else Stillness(self.info.width, self.info.height)
        self._gates.append(Gate(gate, preprocessing, convert, sizes))
        return self._gates[-1]

    def _sampled(
        self, sampling: Sampling, looked: Callable[[Place], T], guards: Sequence[Gate], *, joins: bool = False
    ) -> Iterator[Sampled[T]]:
        """What the sampler makes of the pictures, all of which pass the gates."""
        self.seen = Seen()
        sampler: Sampler[Place, T] = Sampler(sampling, looked, self.seen, joins=joins)
        scored = 0.0
        for frame, time, duration in self.shown():
            if not isinstance(frame, Skipped | Taken):
                for guard in guards:
                    guard.passes(frame, time)
            for sampled in sampler.push(frame, time, duration):
                scored += sampled.end - sampled.start
                yield sampled
            if not isinstance(frame, Skipped | Taken):
                for guard in guards:
                    guard.passed(frame)
        notes = []
        for sampled in sampler.finish():
            if sampled.short:
                length = f"{sampling.frames} frames" if sampling.by == "frames" else f"{sampling.seconds:g} s"
                count = f"{self.decoded} frame{'' if self.decoded == 1 else 's'}"
                pieces = "" if self.seen.longest is None else " between pauses"
                notes = [f"with {count}{pieces} it is shorter than a snippet of {length}, and taken for one"]
            scored += sampled.end - sampled.start
            yield sampled
        self.note = "; ".join([*notes, *self.seen.remarks(scored)]) or None

    def _take_hardware(self, kinds: Sequence[Any], *, required: bool) -> None:
        """Go on with the first hardware decoder that gives the first picture as software has; the file begins anew."""
        assert self._first is not None
        reasons: list[str] = []
        for kind in kinds:
            reason = kind.unavailable() or decoders.unfit(self._reader.container.format.name, self._first)
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
        reader: Reader | None = None
        try:
            reader = self._new_reader(lambda stream: kind(stream, first))
            frames = reader.pictures()
            found = next(frames, None)
            assert not isinstance(found, Skipped)
            decoders.check_first(found, first)
        except BaseException:
            # Software stands where it stood: behind its first picture.
            if reader is not None:
                reader.close()
            raise
        self._reader.close()
        self._reader, self._frames = reader, frames
        self._first = found
        self.info = replace(self.info, decoder=kind.name)

    def _all(self) -> Iterator[Place]:
        if self._first is None:
            raise RuntimeError(f"{self.path} has been read or closed: open it again")
        first, self._first = self._first, None
        if not self._anew:
            yield first
        del first
        try:
            yield from self._frames
        except decoders.DecoderError as error:
            raise decoders.DecoderFailed(
                f"{self.path}: the {self._reader.decoder.name} decoder {error} at {self._reader.faults.reached:.1f} s: "
                "decode this file in software"
            ) from error


def _wanted(sampling: Sampling) -> Callable[[int], bool] | None:
    """Which places in display order a sampling looks at, in a video of a snippet or more; None: any."""
    place = {"first": 0, "middle": sampling.frames // 2}.get(sampling.pick)
    if sampling.by != "frames" or place is None:
        return None
    return lambda rank: rank % sampling.frames == place


def _check_one_image(sampling: Sampling) -> None:
    """Refuse a gate where a snippet has several images."""
    if sampling.images_per_snippet > 1:
        raise UserError(
            f"the gate judges one image of each snippet, and this bundle takes {sampling.images_per_snippet} "
            "(--sample mean): leave out --gate, or build the bundle with --sample middle"
        )


def _snippet(sampled: Sampled[Any], looked: Sequence[Looked], size: int) -> Snippet:
    images = [one.image for one in looked if one.image is not None]
    stacked = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
    return Snippet(
        sampled.index,
        sampled.start,
        sampled.end,
        stacked,
        sampled.short,
        looked[0].verdict,
        looked[0].unseen,
        sampled.first_frame,
        sampled.frames,
    )
