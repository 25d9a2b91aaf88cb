"""Whether anything moves, told from the sizes of packets alone.

Where a fixed camera sees nothing move, pictures of one kind (see :class:`vadrun.backlog.Picture`) take about the same
number of bytes, and what moves takes more, or with a rate control that is short of bits less. How many, and how much
they vary, is learnt from spans of pictures that the gate found unchanged when it looked: nothing is still before there
are :data:`_FEWEST` of them. A span is still if its mean, and that of its latest half, differ from the usual by no more
than they do by themselves, and by no more than a small change would cost. An encoder that fills up a constant rate
with noise so leads to fewer still spans, not to blindness; what is missed all the same, audits tell.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

_FEWEST = 12  # spans
_SPANS = 32  # that are remembered
_SIZES = 128  # of each kind of picture, that are remembered
_FEWEST_SIZES = 8
_SPREADS = 3.0  # robust standard deviations that a still span may be off
_LEAST = 0.005  # bytes a macroblock (16 x 16 pixels): what is always allowed
_MOST = 0.3  # never more than this; what moves costs 3 to 20 bytes for each macroblock that it touches


class Stillness:
    """Learns from one video, in order.

    Args:
        width, height: of its pictures in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._blocks = max(width * height / 256, 1.0)
        self._sizes: dict[Hashable, deque[int]] = defaultdict(lambda: deque(maxlen=_SIZES))
        self._spans: deque[NDArray[np.float64]] = deque(maxlen=_SPANS)
        self._span: list[tuple[Hashable, int]] = []
        self._unknown = False

    def add(self, kind: Hashable, size: int) -> None:
        """A picture between key pictures, in display order."""
        self._span.append((kind, size))

    def unknown(self) -> None:
        """A picture of which no size is known: the span is not still."""
        self._unknown = True

    def still(self) -> bool:
        """Whether nothing has moved since the span began."""
        if self._unknown:
            return False
        if not self._span:
            return True
        found = self._excess()
        if found is None or len(self._spans) < _FEWEST:
            return False
        spans = np.stack(self._spans)
        usual = np.median(spans, axis=0)
        spread = 1.4826 * np.median(np.abs(spans - usual), axis=0)
        return bool(np.all(np.abs(found - usual) <= np.clip(_SPREADS * spread, _LEAST, _MOST)))

    def begin(self, *, unchanged: bool) -> None:
        """End the span and begin another.

        Args:
            unchanged: whether the picture was looked at where the span began and where it ends, and is the same.
        """
        if unchanged and not self._unknown:
            found = self._excess()
            if found is not None:
                self._spans.append(found)
            for kind, size in self._span:
                self._sizes[kind].append(size)
        self._span.clear()
        self._unknown = False

    def _excess(self) -> NDArray[np.float64] | None:
        """Bytes a macroblock over the usual: mean of the span and of its latest half [2]; None before much is known."""
        if not self._span or any(len(self._sizes[kind]) < _FEWEST_SIZES for kind, _ in self._span):
            return None
        usual = {kind: float(np.median(self._sizes[kind])) for kind in {kind for kind, _ in self._span}}
        excess = np.array([size - usual[kind] for kind, size in self._span]) / self._blocks
        return np.array([excess.mean(), excess[len(excess) // 2 :].mean()])
