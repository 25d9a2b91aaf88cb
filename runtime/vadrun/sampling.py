"""Which frames of a video become which snippet.

Pure logic over frames of any type. Frames are fed in display order; only those that are sampled are converted,
each at most once, and memory does not grow with the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Generic, Literal, TypeVar

from vadrun.errors import UserError
from vadrun.schema import shown
from vadrun.timeline import LONGEST_PAUSE, LONGEST_SHOWN, Pauses, Seen, Timeline

FrameT = TypeVar("FrameT")
ImageT = TypeVar("ImageT")

# Matroska rounds timestamps to the millisecond: a frame may be this much late and still be in time.
_ROUNDING = 0.001
# Where neither the stream nor its timestamps say how long a frame lasts.
_FRAME_SECONDS = 0.04

MOST_FRAMES = 1024  # of a snippet: for the mean, so many images are in memory
_SHORTEST, _LONGEST = 0.01, 3600.0  # seconds of a snippet by time

PICKS = ("first", "middle", "mean")
WAYS = ("frames", "time")


@dataclass(frozen=True)
class Sampling:
    """How snippets are cut and which frames stand for them; stored in the bundle's manifest.

    Attributes:
        frames: frames of a snippet; by time, the number of images that ``mean`` takes from it.
        pick: ``first``, ``middle`` (frame ``frames // 2``) or ``mean`` (the feature's mean over all frames).
        by: ``frames``: a snippet is so many frames, as the reference has it; ``time``: it is so many seconds,
            for cameras whose rate is not that of the training videos.
        seconds: length of a snippet by time; None by frames.

    Raises:
        UserError: a value that is not allowed; names the attribute.
    """

    frames: int = 16
    pick: Literal["first", "middle", "mean"] = "middle"
    by: Literal["frames", "time"] = "frames"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if type(self.frames) is not int or not 1 <= self.frames <= MOST_FRAMES:
            raise _wrong("frames", self.frames, f"a whole number from 1 to {MOST_FRAMES}")
        if self.pick not in PICKS:
            raise _wrong("pick", self.pick, f"one of {', '.join(PICKS)}")
        if self.by not in WAYS:
            raise _wrong("by", self.by, f"one of {', '.join(WAYS)}")
        seconds = self.seconds
        if self.by == "frames":
            if seconds is not None:
                raise _wrong("seconds", seconds, "left out when snippets are cut by frames")
        elif isinstance(seconds, bool) or not isinstance(seconds, int | float) or not _SHORTEST <= seconds <= _LONGEST:
            raise _wrong("seconds", seconds, f"{_SHORTEST:g} to {_LONGEST:g} when snippets are cut by time")

    @property
    def images_per_snippet(self) -> int:
        """Images k of every snippet: 1, or ``frames`` for ``mean``."""
        return self.frames if self.pick == "mean" else 1

    def to_manifest(self) -> dict[str, Any]:
        """Plain JSON values, one for each attribute."""
        return asdict(self)

    @classmethod
    def from_manifest(cls, values: dict[str, Any]) -> Sampling:
        """The reverse of :meth:`to_manifest`.

        Raises:
            UserError: a key is unknown or missing, or its value is not allowed.
        """
        return cls(**check_keys("sampling", values, [field.name for field in fields(cls)]))


@dataclass(frozen=True)
class Sampled(Generic[ImageT]):
    """One snippet's images.

    Attributes:
        index: 0 for the first snippet that was made, counting up by one.
        start, end: seconds, as the timestamps have them; ``end`` is where the next snippet may start.
        images: what ``convert`` returned, ``Sampling.images_per_snippet`` of them.
        short: the whole video is shorter than one snippet, and this is what there is of it.
        first_frame: number of its first frame, counted from 0 in display order over all frames that were pushed.
        frames: how many frames it covers. By time, those that are on display in it, so that two snippets may share one.
    """

    index: int
    start: float
    end: float
    images: tuple[ImageT, ...]
    short: bool = False
    first_frame: int = 0
    frames: int = 0


class Sampler(Generic[FrameT, ImageT]):
    """Cuts a stream of frames into snippets.

    By frames, snippet k is frames 16k to 16k+15 (for ``frames`` = 16). It is made once it is whole, and the tail is
    dropped, as the reference does. It ends where the next frame starts, or at a pause when its last frame ends.

    By time, snippet k covers [k * seconds, (k+1) * seconds) from the first timestamp on, and takes the frame
    that is on display at its start (``first``), at its centre (``middle``), or at evenly spaced times (``mean``:
    at i/16 of its length), so slow cameras repeat frames. It is made only where something is on display for
    all of it: not within a pause, and not past the end. A frame stands for 60 seconds at most.

    A pause of the recording (:class:`vadrun.timeline.Pauses`) belongs to no snippet. Frames before it are not joined
    with frames behind it: a snippet that is not whole is dropped, as at the end of a video, and the next one begins
    with the first frame behind the pause.

    Either way a video without a whole snippet gives one, with ``short`` set, of what lies behind its last pause: where
    its pick would lie past the end it takes the last frame, and ``mean`` repeats that.

    Args:
        sampling: the rule.
        convert: makes an image of a frame; called for the frames that are sampled only.
        seen: is told how long frames were on display, and of the gaps between them.
        joins: by frames, a snippet takes 16 frames whatever pauses lie between them, as the reference does.
    """

    def __init__(
        self,
        sampling: Sampling,
        convert: Callable[[FrameT], ImageT],
        seen: Seen | None = None,
        *,
        joins: bool = False,
    ) -> None:
        self.sampling = sampling
        self.seen = seen or Seen()
        self._timeline = Timeline()
        self._pauses = Pauses()
        self._cutter: _ByFrames[FrameT, ImageT] | _ByTime[FrameT, ImageT]
        if sampling.by == "time":
            self._cutter = _ByTime(sampling, convert)
        else:
            self._cutter = _ByFrames(sampling, convert, joins)
        self._longest = LONGEST_SHOWN if sampling.by == "time" else math.inf
        self._second: _Placed[FrameT] | None = None  # the second frame, while it may be behind a pause
        self._last: float | None = None
        self._step = _FRAME_SECONDS  # how long the last frame is on display, as far as it is known
        self._usual: float | None = None

    def push(self, frame: FrameT, time: float | None, duration: float | None = None) -> list[Sampled[ImageT]]:
        """Take the next frame in display order; return the snippets that are complete with it.

        Args:
            frame: kept until the next one comes, at most; a second frame that comes late until the third was taken.
            time: its timestamp in seconds, or None if the stream has none.
            duration: how long it is on display in seconds, if known.
        """
        step = duration if duration is not None and duration > 0 else self._usual or _FRAME_SECONDS
        new = _Placed(frame, self._timeline.place(time, step), step)
        done: list[Sampled[ImageT]] = []
        if self._last is None:
            self._begin(new)
            return done
        before = self._last
        if self._second is not None:
            before = self._second.time
            done = self._late(new.time - before)
        pause = self._pauses.judge(new.time - before)
        if pause is None:
            self._second = new
            return done
        return done + self._take(new, pause)

    def finish(self) -> list[Sampled[ImageT]]:
        """The snippets that the end of the stream completes."""
        if self._last is None:
            return []
        done = [] if self._second is None else self._late(self._second.step)
        lasts = self._step
        if lasts > LONGEST_PAUSE:
            # The gap to a frame that never came, or a mean over pauses: not a frame's time.
            lasts = min(lasts, self._usual or LONGEST_SHOWN)
        until = self._last + min(lasts, self._longest)
        self.seen.shown(self._last, until, until)
        return done + self._cutter.finish(until)

    def _late(self, following: float) -> list[Sampled[ImageT]]:
        """Take the second frame, now that it is known how far the third is from it."""
        second, self._second = self._second, None
        assert second is not None and self._last is not None
        pause = self._pauses.judge(second.time - self._last, following)
        if pause:
            self._usual = following
        return self._take(second, bool(pause))

    def _take(self, new: _Placed[FrameT], pause: bool) -> list[Sampled[ImageT]]:
        assert self._last is not None
        until = new.time
        if pause:
            until = min(until, self._last + min(self._step, self._usual or self._step))
        else:
            self._usual = new.time - self._last
        until = min(until, self._last + self._longest)
        self.seen.shown(self._last, until, new.time)
        done = self._cutter.ended(until, new.time)
        self._begin(new)
        return done

    def _begin(self, new: _Placed[FrameT]) -> None:
        self._cutter.began(new.frame, new.time)
        self._last, self._step = new.time, new.step


@dataclass(frozen=True)
class _Placed(Generic[FrameT]):
    """A frame with its place in time, and how long it is on display as far as it is known; seconds."""

    frame: FrameT
    time: float
    step: float


# The two ways to cut. Their calls alternate: a frame began, it ended, the next began, ..., finish.


class _ByFrames(Generic[FrameT, ImageT]):
    def __init__(self, sampling: Sampling, convert: Callable[[FrameT], ImageT], joins: bool) -> None:
        self._convert = convert
        self._joins = joins
        self._length = sampling.frames
        self._wanted = {"first": range(1), "middle": range(self._length // 2, self._length // 2 + 1)}.get(
            sampling.pick, range(self._length)
        )
        self._index = 0
        self._number = 0  # of the next frame
        self._count = 0
        self._start = 0.0
        self._images: list[ImageT] = []
        self._whole: Sampled[ImageT] | None = None  # complete but for its end
        self._spare: FrameT | None = None  # the only frame of a video that ends before the pick

    def began(self, frame: FrameT, time: float) -> None:
        if self._count == 0:
            self._start = time
        if self._count in self._wanted:
            self._images.append(self._convert(frame))
            self._spare = None
        elif self._index == 0 and not self._images:
            self._spare = frame
        self._count += 1
        self._number += 1
        if self._count == self._length:
            self._whole = self._cut(time, tuple(self._images))
            self._images = []
            self._index += 1
            self._count = 0

    def ended(self, until: float, following: float) -> list[Sampled[ImageT]]:
        done = []
        if self._whole is not None:
            done = [replace(self._whole, end=until)]
            self._whole = None
        elif following > until and not self._joins:  # a pause: what is not whole is dropped
            self._count, self._images, self._spare = 0, [], None
        return done

    def finish(self, until: float) -> list[Sampled[ImageT]]:
        if self._whole is None and self._index == 0 and self._count > 0:
            if self._spare is not None:
                self._images.append(self._convert(self._spare))
            images = _filled(self._images, len(self._wanted))
            self._whole = self._cut(until, images, short=True)
            self._index += 1
        self._count = 0
        return self.ended(until, until)

    def _cut(self, end: float, images: tuple[ImageT, ...], *, short: bool = False) -> Sampled[ImageT]:
        return Sampled(self._index, self._start, end, images, short, self._number - self._count, self._count)


class _ByTime(Generic[FrameT, ImageT]):
    def __init__(self, sampling: Sampling, convert: Callable[[FrameT], ImageT]) -> None:
        assert sampling.seconds is not None
        self._convert = convert
        self._seconds = float(sampling.seconds)
        count = sampling.images_per_snippet
        self._offsets = [0.5] if sampling.pick == "middle" else [image / count for image in range(count)]
        self._origin: float | None = None
        self._cell = 0  # the part of the time grid that is being filled
        self._images: list[ImageT] = []
        self._index = 0
        self._frame: FrameT | None = None
        self._image: ImageT | None = None  # the frame's, once it has been asked for
        self._time = 0.0
        self._number = -1  # of the frame
        self._first: int | None = None  # number of the frame that is on display where the snippet starts

    def began(self, frame: FrameT, time: float) -> None:
        if self._origin is None:
            self._origin = time
        self._number += 1
        self._frame, self._image, self._time = frame, None, time

    def ended(self, until: float, following: float) -> list[Sampled[ImageT]]:
        done = self._show(until, _ROUNDING)
        if following > until:  # a gap: go on with the first snippet that lies behind it
            assert self._origin is not None
            cell = math.ceil((following - self._origin - _ROUNDING) / self._seconds)
            if cell > self._cell:
                self._cell, self._images, self._first = cell, [], None
        return done

    def finish(self, until: float) -> list[Sampled[ImageT]]:
        # Durations are not exact: a last snippet that lacks less than half a frame of the training rate is whole.
        done = self._show(until, max(_ROUNDING, self._seconds / 32))
        if self._index == 0 and self._frame is not None:
            if len(self._images) < len(self._offsets):
                self._images.append(self._shown())
            images = _filled(self._images, len(self._offsets))
            done = [self._cut(min(self._at(0.0), self._time), until, images, short=True)]
            self._index = 1
        self._frame = None
        return done

    def _show(self, until: float, slack: float) -> list[Sampled[ImageT]]:
        """Take what the present frame is wanted for, up to the end of its time on display."""
        done: list[Sampled[ImageT]] = []
        while True:
            if self._first is None and self._at(0.0) < until - _ROUNDING:
                self._first = self._number
            if len(self._images) < len(self._offsets):
                if self._at(self._offsets[len(self._images)]) >= until - _ROUNDING:
                    return done
                self._images.append(self._shown())
                continue
            end = self._at(1.0)
            if end > until + slack:
                return done
            done.append(self._cut(self._at(0.0), end, tuple(self._images)))
            self._index += 1
            self._cell += 1
            self._images, self._first = [], None

    def _cut(self, start: float, end: float, images: tuple[ImageT, ...], *, short: bool = False) -> Sampled[ImageT]:
        first = self._number if self._first is None else self._first
        return Sampled(self._index, start, end, images, short, first, self._number + 1 - first)

    def _at(self, share: float) -> float:
        assert self._origin is not None
        return self._origin + (self._cell + share) * self._seconds

    def _shown(self) -> ImageT:
        if self._image is None:
            assert self._frame is not None
            self._image = self._convert(self._frame)
        return self._image


def check_keys(section: str, values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """A copy of ``values``, which must have exactly these keys.

    Raises:
        UserError: names the section of the manifest and the first key that is unknown or missing.
    """
    if not isinstance(values, dict):
        raise UserError(f"the manifest's {section} is {shown(values)}, not a table: build the bundle again")
    for key in values:
        if key not in keys:
            raise UserError(
                f"the manifest's {section} has the unknown key {shown(key)}: it may be from a newer version, so "
                "update vadclip-edge or build the bundle again"
            )
    for key in keys:
        if key not in values:
            raise UserError(f"the manifest's {section} lacks the key {key!r}: build the bundle again")
    return dict(values)


def _filled(images: list[ImageT], count: int) -> tuple[ImageT, ...]:
    return tuple(images + images[-1:] * (count - len(images)))


def _wrong(key: str, value: object, allowed: str) -> UserError:
    return UserError(f"sampling: {key} is {shown(value)} but must be {allowed}")
