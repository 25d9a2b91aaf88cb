"""The gate: encode only where something happens.

A snippet whose picture has not changed since the last one that was encoded may take that one's feature. The gate
compares the luma of sampled frames, averaged over cells of 8 x 8 pixels of the encoder's picture (for 224 pixels 28
x 28 cells), within the crop that the encoder sees. What it forgives: a light change (a gain and an offset for the
whole picture), noise (three of its standard deviations, estimated from the cells themselves), and shaking (a quarter
of a cell along the luma's gradient). A light change that is larger, a camera that moves and a picture of another size
open it, and so does a heartbeat. Audits say what it costs: see :mod:`vadrun.audit`.
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

from vadrun.errors import UserError
from vadrun.preprocessing import SCALER_THREADS, Preprocessing, plane_rows, quarter_turns

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

_CELL = 8  # side of a cell in pixels of the encoder's picture
_LEVEL = 5.0  # grey levels beyond what is forgiven that make a cell changed
_SHAKE = 0.25  # of a cell
_NOISE = 3.0  # standard deviations
_MOST_NOISE = 2.0  # grey levels; a larger estimate means that most of the picture has changed
_GAINS = (0.7, 1.4)
_LARGEST_LIGHT = 30.0  # grey levels (at mid-grey) that count as the same scene in another light
_KEPT = 0.75  # share of the cells that the light is fitted to: a quarter may be hidden by what moves


class Verdict(Enum):
    """What becomes of a sampled frame."""

    ENCODE = "encode"
    HOLD = "hold"  # the last encoded feature stands for it
    AUDIT = "audit"  # it would be held, but is encoded to see what holding would have changed


class Looked(NamedTuple):
    """A sampled frame as the encoder takes it (uint8 [S,S,3], or [c,S,S,3]; None if it is held), and the verdict."""

    image: Image | None
    verdict: Verdict


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
    """

    def __init__(self, rule: GateRule, preprocessing: Preprocessing, convert: Callable[[av.VideoFrame], Image]) -> None:
        self.now = 0.0  # seconds; to be set before a frame is looked at
        self._rule = rule
        self._convert = convert
        self._grid = LumaGrid(preprocessing)
        self._random = np.random.default_rng(rule.seed)
        self._held: Floats | None = None  # the grid of the last encoded frame
        self._encoded = 0.0  # seconds, of that frame
        self._looked = 0.0  # seconds, of the frame before

    def __call__(self, frame: av.VideoFrame) -> Looked:
        """Judge a frame; it is converted only if it is to be encoded."""
        verdict = self._judge(self._grid(frame))
        hold = verdict is Verdict.HOLD and not self._rule.shadow
        return Looked(None if hold else self._convert(frame), verdict)

    def _judge(self, grid: Floats) -> Verdict:
        step = self.now - self._looked
        self._looked = self.now
        verdict = Verdict.ENCODE
        held = self._held
        # The next look may come one step later, and would then be too late for the heartbeat.
        in_time = self.now + step - self._encoded <= self._rule.heartbeat
        if held is not None and in_time and changed(grid, held) <= self._rule.threshold:
            verdict = Verdict.AUDIT if self._random.random() < self._rule.audit else Verdict.HOLD
        if verdict is not Verdict.HOLD:
            self._held, self._encoded = grid, self.now
        return verdict


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
        turns = quarter_turns(frame)
        width, height = self._size if turns % 2 == 0 else self._size[::-1]
        small = self._reformatter.reformat(
            frame, width=width, height=height, format="gray8", interpolation=int(Interpolation.AREA), **SCALER_THREADS
        )
        levels = np.rot90(plane_rows(small.planes[0])[:, :width], turns)
        return np.array(levels[self._rows, self._columns], np.float32)


def changed(now: Floats, held: Floats) -> float:
    """Share of the cells that differ between two grids [r,c], beyond light, noise and shaking; 1 for another scene."""
    gain, offset = _light(now, held)
    if abs(offset + (gain - 1.0) * 128.0) > _LARGEST_LIGHT:
        return 1.0
    difference = np.abs(now - gain * held - offset)
    noise = min(1.4826 * float(np.median(difference)), _MOST_NOISE)
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
        kept = residual <= np.quantile(residual, _KEPT)
        kept_x, kept_y = x[kept], y[kept]
    return gain, offset


def _gradient(grid: Floats) -> Floats:
    """Grey levels from a cell to the next, the steeper way of the two."""
    padded = np.pad(grid, 1, mode="edge")
    across = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2])
    down = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
    return np.asarray(np.maximum(across, down) / 2, np.float32)
