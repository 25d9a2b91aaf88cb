"""HDR video as the SDR that encoders have been trained on: PQ and HLG (ITU-R BT.2100-2), tone-mapped.

Phones record HDR by default, and its code values taken for SDR give a flat, pale picture. The steps, per pixel:

1. code value to light on a display of 1000 cd/m2: PQ's EOTF, or HLG's inverse OETF and OOTF (gamma 1.2);
2. BT.2020 primaries to BT.709's (BT.2087), where the video does not say that it has others;
3. 203 cd/m2, the white of BT.2408, becomes SDR white. Light up to 0.75 of that stays as it is, so that what SDR can
   show looks as in SDR; brighter light is compressed, 1000 cd/m2 to 1 (Reinhard's extended curve on the largest of R, G
   and B, so that hues stay);
4. light to code value by the inverse of BT.1886 (gamma 2.4), as an SDR display of the same scene would get it.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np
from numpy.typing import NDArray

# Transfer characteristics by their number in the stream (ISO/IEC 23091-2).
TRANSFERS = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = frozenset({0, 2, 3})
_BT2020, _BT709 = 9, 1

_WHITE, _PEAK = 203.0, 1000.0  # cd/m2
_KNEE = 0.75  # of SDR white
_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020

# SDR code values of square roots of light, by the inverse of BT.1886.
_CODES = np.rint(255 * np.linspace(0, 1, 1 << 16) ** (2 / 2.4)).astype(np.uint8)

Floats = NDArray[np.float32]


def transfer_of(frame: av.VideoFrame, stream: int = 0) -> str | None:
    """``PQ`` or ``HLG`` if a frame is HDR, else None.

    Args:
        frame: a decoded frame.
        stream: the transfer characteristic of its stream, for frames that do not say: those of hardware decoders, and
            all of PyAV before 17.
    """
    own = int(getattr(frame, "color_trc", 0))
    return TRANSFERS.get(stream if own in _UNSPECIFIED else own)


def has_bt2020_primaries(frame: av.VideoFrame) -> bool:
    """Whether a frame's primaries are BT.2020's: those of HDR, unless it names BT.709's."""
    return int(getattr(frame, "color_primaries", _BT2020)) != _BT709


def tone_map(codes: NDArray[np.uint16], transfer: str, *, bt2020: bool = True) -> NDArray[np.uint8]:
    """SDR RGB, uint8 [h,w,3], of full-range HDR code values R'G'B', uint16 [h,w,3]."""
    light = _to_light(transfer)[codes.reshape(-1, 3)]
    if transfer == "HLG":
        luminance = light @ _LUMINANCE  # HLG's OOTF, BT.2100-2 table 5: from the scene to a display of 1000 cd/m2
        light *= (np.float32(_PEAK / _WHITE) * np.power(luminance, np.float32(0.2)))[:, None]
    if bt2020:
        light = np.maximum(light @ _FROM_BT2020.T, 0.0)
    light *= _compression(np.maximum(np.maximum(light[:, 0], light[:, 1]), light[:, 2]))[:, None]
    # The square root spreads the table's entries over the dark tones.
    places = np.sqrt(np.minimum(light, 1.0)) * np.float32(len(_CODES) - 1) + np.float32(0.5)
    return np.asarray(_CODES[places.astype(np.uint16)].reshape(codes.shape), np.uint8)


def _compression(largest: Floats) -> Floats:
    """What light is multiplied by, of its largest component; 1 is SDR white in both."""
    over = np.maximum(largest - _KNEE, 0.0) / (1 - _KNEE)
    most = (_PEAK / _WHITE - _KNEE) / (1 - _KNEE)
    rolled = _KNEE + (1 - _KNEE) * np.minimum(over * (1 + over / most**2) / (1 + over), 1.0)
    return np.where(over > 0, rolled / np.maximum(largest, _KNEE), 1.0).astype(np.float32)


@cache
def _to_light(transfer: str) -> Floats:
    """Light of each of 65,536 code values: of the display for PQ, 1 being SDR white; of the scene, 0 to 1, for HLG."""
    code = np.arange(1 << 16) / ((1 << 16) - 1)
    if transfer == "PQ":  # the EOTF, BT.2100-2 table 4
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        root = code ** (1 / m2)
        nits = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
        return (nits / _WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # the inverse OETF, BT.2100-2 table 5
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
