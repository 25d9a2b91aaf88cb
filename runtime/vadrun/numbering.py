"""The numbers that H.264 and HEVC give their pictures, read without decoding: what is missing shows in them.

Every picture has an order count (POC), which rises in display order from one closed key picture to the next. H.264 also
counts the pictures that others are predicted from (``frame_num``). Both are in the header of each slice.
"""

from __future__ import annotations

from typing import NamedTuple

HEADER = 96  # bytes of a unit that are read; what is needed of a slice is in the first 20
# H.264 profiles whose parameter sets tell the chroma format (ITU-T H.264, 7.3.2.1.1).
_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


class Number(NamedTuple):
    """What a picture's number says.

    Attributes:
        order: its order count, or None.
        gap: whether a picture that later ones may be predicted from is missing before it, in the order of decoding.
    """

    order: int | None
    gap: bool = False


class Bits:
    """Reads a unit bit by bit (ITU-T H.264, 7.2 and 9.1). Raises IndexError at its end."""

    def __init__(self, unit: bytes) -> None:
        data = unit[:HEADER].replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        """An unsigned number of so many bits."""
        self._left -= count
        if self._left < 0:
            raise IndexError("the unit ends early")
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)


class _Sequence(NamedTuple):
    """What a sequence parameter set says of numbers."""

    order_bits: int  # of the order count; 0 where it has none
    planes: bool  # whether colour planes are coded apart
    count_bits: int = 0  # of frame_num
    gaps: bool = False  # whether frame_num may have gaps
    fields: bool = False


class _Picture(NamedTuple):
    """What a picture parameter set says of a slice's header."""

    sequence: int
    output: bool = False
    extra: int = 0  # bits


class Numbering:
    """Reads the numbers of one stream's pictures, in the order of decoding.

    Args:
        codec: ``h264`` or ``hevc``.
    """

    def __init__(self, codec: str) -> None:
        self._is_h264 = codec == "h264"
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, _Picture] = {}
        self._before = 0  # order count of the last picture that the next one's is told from
        self._count: int | None = None  # frame_num of the last picture that others may be predicted from

    def forget(self) -> None:
        """The parameter sets are others from here on, and are not known."""
        self._sequences.clear()
        self._pictures.clear()

    def learn(self, unit: bytes) -> None:
        """Take note of a parameter set; other units are passed over."""
        try:
            if self._is_h264:
                self._learn_h264(unit)
            else:
                self._learn_hevc(unit)
        except IndexError:
            pass  # a damaged one: slices that need it cannot be read

    def read(self, unit: bytes) -> Number:
        """The number of a picture, of its first slice."""
        try:
            return self._read_h264(unit) if self._is_h264 else self._read_hevc(unit)
        except (IndexError, KeyError):
            self._count = None
            return Number(None)

    def _unwrapped(self, low: int, bits: int) -> int:
        """The order count whose last bits are given, near that of before (ITU-T H.264, 8.2.1.1)."""
        size = 1 << bits
        return self._before + (low - self._before + size // 2) % size - size // 2

    def _learn_h264(self, unit: bytes) -> None:
        bits, kind = Bits(unit[1:]), unit[0] & 31
        if kind == 8:
            number = bits.ue()
            self._pictures[number] = _Picture(bits.ue())
        if kind != 7:
            return
        profile, _, number = bits.u(8), bits.u(16), bits.ue()
        planes = False
        if profile in _CHROMA:
            chroma = bits.ue()
            planes = chroma == 3 and bool(bits.u(1))
            bits.ue(), bits.ue(), bits.u(1)
            if bits.u(1):
                return self._unreadable(number)  # scaling lists: no camera has them
        count_bits, kind = bits.ue() + 4, bits.ue()
        order_bits = bits.ue() + 4 if kind == 0 else 0
        if kind == 1:
            return self._unreadable(number)
        bits.ue()
        gaps = bool(bits.u(1))
        bits.ue(), bits.ue()
        self._sequences[number] = _Sequence(order_bits, planes, count_bits, gaps, fields=not bits.u(1))
        return None

    def _unreadable(self, sequence: int) -> None:
        self._sequences.pop(sequence, None)

    def _read_h264(self, unit: bytes) -> Number:
        bits, closed, referred = Bits(unit[1:]), unit[0] & 31 == 5, unit[0] & 0x60 > 0
        bits.ue(), bits.ue()
        sequence = self._sequences[self._pictures[bits.ue()].sequence]
        if sequence.planes:
            bits.u(2)
        count, last = bits.u(sequence.count_bits), self._count
        gap = not (closed or sequence.gaps or last is None or count in (last, (last + 1) % (1 << sequence.count_bits)))
        if closed or referred or gap:
            self._count = count
        if sequence.fields and bits.u(1):
            return Number(None)  # one of two fields
        if closed:
            bits.ue()
            self._before = 0
        if not sequence.order_bits:
            return Number(None, gap)
        order = self._unwrapped(bits.u(sequence.order_bits), sequence.order_bits)
        if referred:
            self._before = order
        return Number(order, gap)

    def _learn_hevc(self, unit: bytes) -> None:
        bits, kind = Bits(unit[2:]), unit[0] >> 1 & 63
        if kind == 34:
            number, sequence = bits.ue(), bits.ue()
            bits.u(1)
            self._pictures[number] = _Picture(sequence, bool(bits.u(1)), bits.u(3))
        if kind != 33:
            return
        bits.u(4)
        layers = bits.u(3)
        bits.u(1 + 96)
        told = [(bits.u(1), bits.u(1)) for _ in range(layers)]
        if layers:
            bits.u(2 * (8 - layers))
        bits.u(sum(88 * profile + 8 * level for profile, level in told))
        number = bits.ue()
        planes = bits.ue() == 3 and bool(bits.u(1))
        bits.ue(), bits.ue()
        if bits.u(1):
            bits.ue(), bits.ue(), bits.ue(), bits.ue()
        bits.ue(), bits.ue()
        self._sequences[number] = _Sequence(bits.ue() + 4, planes)

    def _read_hevc(self, unit: bytes) -> Number:
        bits, kind, layer = Bits(unit[2:]), unit[0] >> 1 & 63, unit[1] & 7
        if not bits.u(1):
            return Number(None)
        if 16 <= kind <= 23:
            bits.u(1)
        picture = self._pictures[bits.ue()]
        sequence = self._sequences[picture.sequence]
        order = 0
        if kind not in (19, 20):
            bits.u(picture.extra)
            bits.ue()
            if picture.output and not bits.u(1):
                return Number(None)  # it is not shown
            if sequence.planes:
                bits.u(2)
            order = self._unwrapped(bits.u(sequence.order_bits), sequence.order_bits)
        if layer == 1 and (kind >= 16 or (kind % 2 and kind not in (7, 9))):
            self._before = order
        return Number(order)


class Succession:
    """Checks the order counts of one stream's pictures, in display order within each closed group."""

    def __init__(self) -> None:
        self._step: int | None = None  # between two pictures that follow each other; 1 or 2

    def follows(self, before: int | None, order: int | None) -> bool | None:
        """Whether a picture follows another directly: False where one is missing between.

        None where it does not come after it at all. True where nothing is known of either.
        """
        if before is None or order is None:
            return True
        step = order - before
        if step <= 0:
            return None
        if self._step is None:
            self._step = step
        known, self._step = self._step, min(self._step, step)
        return step == known
