"""The gate: encode only where something happens.

A snippet whose picture has not changed since the last one that was encoded may take that one's feature. The gate
compares the luma of sampled frames, averaged over cells of 8 x 8 pixels of the encoder's picture (for 224 pixels 28
x 28 cells), within the crop that the encoder sees. What it forgives: a light change (a gain and an offset for the
whole picture), noise (three of its standard deviations, estimated from the cells themselves), and shaking (a quarter
of a cell along the luma's gradient). A light change that is larger, a camera that moves and a picture of another size
open it, and so does a heartbeat. Audits say what it costs: see :mod:`vadrun.audit`.

Where pictures are decoded only on demand (:mod:`vadrun.backlog`) most are not even looked at. The key picture of each
closed group is, unless the next one comes in time; in between, a sampled frame is held undecoded while the sizes of
packets say that nothing has moved (:mod:`vadrun.stillness`). That is not begun before some looks in a row have found
the scene unchanged, so what walks through is followed by looks, and it is not gone on with for longer than
:data:`_UNSEEN` seconds without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vadrun.backlog import Picture
from vadrun.errors import UserError
from vadrun.preprocessing import SCALER_THREADS, Preprocessing, orientation_of, plane_rows
from vadrun.stillness import Stillness

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

_CELL = 8  # side of a cell in pixels of the encoder's picture
_LEVEL = 5.0  # grey levels beyond what is forgiven that make a cell changed
_SHAKE = 0.25  # of a cell
_NOISE = 3.0  # standard deviations
_MOST_NOISE = 2.0  # grey levels; a larger estimate means that most of the picture has changed
_GAINS = (0.7, 1.4)
_LARGEST_LIGHT = 30.0  # grey levels (at mid-grey) that count as the same scene in another light
_CALM = 4  # looks in a row that find nothing changed, before sizes are trusted
_UNSEEN = 2.5  # seconds: cameras have a key picture every one or two
_KEPT = 0.75  # share of the cells that the light is fitted to: a quarter may be hidden by what moves


class Verdict(Enum):
    """What becomes of a sampled frame."""

    ENCODE = "encode"
    HOLD = "hold"  # the last encoded feature stands for it
    AUDIT = "audit"  # it would be held, but is encoded to see what holding would have changed


class Looked(NamedTuple):
    """A sampled frame as the encoder takes it (uint8 [S,S,3], or [c,S,S,3]; None if it is held), and the verdict.

    ``unseen``: the verdict fell without a look at the picture.
    """

    image: Image | None
    verdict: Verdict
    unseen: bool = False


@dataclass(frozen=True)
class GateRule:
    """When a snippet is held.

    Attributes:
        threshold: share of the picture that must change to open the gate, 0 to 1.
        heartbeat: seconds; at least this often a snippet is encoded.
        audit: share of held snippets that are encoded anyway, by chance.
        shadow: only count: everything is encoded and scored as without the gate.
        seed: of the audits' draws.
        calibration: sha256 of the calibration file that the threshold is from, or None.

    Raises:
        UserError: a value that is not allowed.
    """

    threshold: float = 0.01
    heartbeat: float = 10.0
    audit: float = 0.05
    shadow: bool = False
    seed: int = 0
    calibration: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise UserError(f"the gate's threshold is {self.threshold:g}: give a share of the picture from 0 to 1")
        if not (math.isfinite(self.heartbeat) and self.heartbeat > 0.0):
            raise UserError(f"the gate's heartbeat is {self.heartbeat:g} s: give a number of seconds above 0")
        if not 0.0 < self.audit <= 1.0:
            raise UserError(f"the gate's audit is {self.audit:g}: give a share above 0 and at most 1")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, one for each attribute."""
        return asdict(self)


class Gate:
    """Looks at the sampled frames of one video, in order; not to be shared between threads.

    Args:
        rule: when a snippet is held.
        preprocessing: what the encoder sees of a frame.
        convert: makes the encoder's image of a frame.
        stillness: learns the sizes of packets; None to look at all sampled frames.
    """

    def __init__(
        self,
        rule: GateRule,
        preprocessing: Preprocessing,
        convert: Callable[[av.VideoFrame], Image],
        stillness: Stillness | None = None,
    ) -> None:
        self.now = 0.0  # seconds
        self._rule = rule
        self._convert = convert
        self._grid = LumaGrid(preprocessing)
        self._random = np.random.default_rng(rule.seed)
        self._held: Floats | None = None  # the grid of the last encoded frame
        self._encoded = 0.0  # seconds, of that frame
        self._asked = 0.0  # seconds, of the sampled frame before
        self._stillness = stillness
        self._calm = 0  # looks in a row that found nothing changed
        self._seen = 0.0  # seconds, of the last look
        self._from_look = False  # whether the present span of pictures began with one
        self._key = 0.0  # seconds, of the last key picture
        self._group = math.inf  # seconds between the last two
        self._near_key = False  # whether no sampled frame has come since

    @property
    def moving(self) -> bool:
        """Whether the last look found a change."""
        return self._calm == 0

    def passes(self, frame: av.VideoFrame | Picture, time: float) -> None:
        """A picture goes by at so many seconds, sampled or not; all do, in display order."""
        self.now = time
        if self._stillness is None:
            return
        if not isinstance(frame, Picture):
            self._stillness.unknown()
        elif frame.is_key:
            self._key, self._group, self._near_key = time, time - self._key, True
        else:
            self._stillness.add(frame.kind, frame.size)

    def passed(self, frame: av.VideoFrame | Picture) -> None:
        """It has gone by. Key pictures are looked at: a scene that changes slowly shows in them.

        While sizes can be trusted until the next one comes, that one will do.
        """
        if isinstance(frame, Picture) and frame.is_key and self._held is not None and self._seen < self.now:
            later = self.now + self._group - self._seen <= _UNSEEN
            if not (later and self._trusts_sizes()):
                self._look(self._grid(frame.frame()), self._held)

    def __call__(self, frame: av.VideoFrame | Picture) -> Looked:
        """Judge a sampled frame; it is decoded only if need be, and converted only if it is to be encoded."""
        in_time = self._in_time()
        unseen = in_time and isinstance(frame, Picture) and self._trusts_sizes()
        if unseen:
            verdict = self._hold_or_audit()
            if verdict is Verdict.AUDIT:
                self._take(self._grid(_decoded(frame)))
            else:
                assert self._stillness is not None
                self._stillness.begin(unchanged=False)
                self._from_look = False
        else:
            verdict = self._judge(self._grid(_decoded(frame)), in_time)
        hold = verdict is Verdict.HOLD and not self._rule.shadow
        return Looked(None if hold else self._convert(_decoded(frame)), verdict, unseen)

    def _in_time(self) -> bool:
        """Whether the heartbeat can wait for another sampled frame."""
        heartbeat = self._rule.heartbeat
        wait = self.now - self._asked
        # Frames right behind a key picture take the least decoding: better the last such one than one in between.
        if self._near_key and self._calm >= _CALM and self._group <= heartbeat / 2:
            wait += self._group
        self._asked, self._near_key = self.now, False
        # The next one may come so much later, and would then be too late.
        return self.now + wait - self._encoded <= heartbeat

    def _trusts_sizes(self) -> bool:
        return (
            self._stillness is not None
            and self._held is not None
            and self._calm >= _CALM
            and self.now - self._seen <= _UNSEEN
            and self._stillness.still()
        )

    def _judge(self, grid: Floats, in_time: bool) -> Verdict:
        held = self._held
        same = held is not None and self._look(grid, held)
        verdict = self._hold_or_audit() if same and in_time else Verdict.ENCODE
        if verdict is not Verdict.HOLD:
            self._take(grid)
        return verdict

    def _hold_or_audit(self) -> Verdict:
        return Verdict.AUDIT if self._random.random() < self._rule.audit else Verdict.HOLD

    def _take(self, grid: Floats) -> None:
        """The frame of this grid is encoded."""
        if self._held is not None and self._seen < self.now:
            self._look(grid, self._held)
        self._held, self._encoded, self._seen = grid, self.now, self.now
        self._from_look = True

    def _look(self, grid: Floats, held: Floats) -> bool:
        """Whether a picture is as the last encoded one; sizes are learnt from this."""
        same = changed(grid, held) <= self._rule.threshold
        if self._stillness is not None:
            self._stillness.begin(unchanged=same and self._from_look)
        self._from_look = same
        self._calm = self._calm + 1 if same else 0
        self._seen = self.now
        return same


def _decoded(frame: av.VideoFrame | Picture) -> av.VideoFrame:
    return frame.frame() if isinstance(frame, Picture) else frame


class LumaGrid:
    """Mean luma of cells of the encoder's picture, in one pass of swscale over the luma plane alone."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        width, height = preprocessing.resize
        self._size = max(round(width / _CELL), 1), max(round(height / _CELL), 1)
        # The crop may lie anywhere between the cells: take those that it touches.
        (row, column), side = preprocessing.corner, preprocessing.size
        down, across = self._size[1] / height, self._size[0] / width
        self._rows = slice(int(row * down), math.ceil((row + side) * down))
        self._columns = slice(int(column * across), math.ceil((column + side) * across))
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Floats:
        """Grey levels float32 [rows,columns] of a frame of any size and pixel format."""
        orientation = orientation_of(frame)
        width, height = self._size if orientation.turns % 2 == 0 else self._size[::-1]
        small = self._reformatter.reformat(
            frame, width=width, height=height, format="gray8", interpolation=int(Interpolation.AREA), **SCALER_THREADS
        )
        levels = orientation.upright(plane_rows(small.planes[0])[:, :width])
        return np.array(levels[self._rows, self._columns], np.float32)


def changed(now: Floats, held: Floats) -> float:
    """Share of the cells that differ between two grids [r,c], beyond light, noise and shaking; 1 for another scene."""
    gain, offset = _light(now, held)
    if abs(offset + (gain - 1.0) * 128.0) > _LARGEST_LIGHT:
        return 1.0
    difference = np.abs(now - gain * held - offset)
    noise = min(1.4826 * _quantile(difference, 0.5), _MOST_NOISE)
    forgiven = _SHAKE * _gradient(held) + _NOISE * noise + _LEVEL
    return float(np.mean(difference > forgiven))


def _light(now: Floats, held: Floats) -> tuple[float, float]:
    """Gain and offset that take ``held`` to ``now``: least squares, then again on the cells that fit best."""
    gain, offset = 1.0, 0.0
    x, y = held.ravel(), now.ravel()
    kept_x, kept_y = x, y
    for _ in range(2):
        mean_x, mean_y = float(kept_x.mean()), float(kept_y.mean())
        spread = float(((kept_x - mean_x) ** 2).mean())
        if spread > 25.0:  # a flat picture tells nothing of the gain
            slope = float(((kept_x - mean_x) * (kept_y - mean_y)).mean()) / spread
            gain = min(max(slope, _GAINS[0]), _GAINS[1])
        offset = mean_y - gain * mean_x
        residual = np.abs(y - gain * x - offset)
        kept = residual <= _quantile(residual, _KEPT)
        kept_x, kept_y = x[kept], y[kept]
    return gain, offset


def _quantile(values: Floats, share: float) -> float:
    """The value that this share of the others does not exceed; NumPy's own takes many times as long for so few."""
    place = int(share * (values.size - 1))
    return float(np.partition(values.ravel(), place)[place])


def _gradient(grid: Floats) -> Floats:
    """Grey levels from a cell to the next, the steeper way of the two."""
    padded = np.pad(grid, 1, mode="edge")
    across = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2])
    down = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
    return np.asarray(np.maximum(across, down) / 2, np.float32)
