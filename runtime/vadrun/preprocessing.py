"""From a decoded frame to the encoder's input, in one scaling pass.

With ``interpolation="bilinear"`` it is two passes instead: full-size RGB, and OpenCV's resizing of that.

swscale goes from the decoder's planes straight to the small RGB image: no full-size RGB image is ever made.
Its bilinear filter widens with the reduction, so shrinking does not alias. HDR is made SDR on the small image
(:mod:`vadrun.hdr`). The pixel aspect ratio is ignored: the whole stored picture is scaled to one size, as the released
code's feature extraction does.

Needs PyAV 14.2: older ones cannot combine scaler flags and do not know a frame's rotation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vadrun.bilinear import resize
from vadrun.errors import UserError
from vadrun.hdr import has_bt2020_primaries, tone_map, transfer_of
from vadrun.sampling import check_keys

T = TypeVar("T", bound=np.generic)

REFERENCE_SIZE = 224
REFERENCE_RESIZE = (340, 256)

CROPS = ("center", "top-left", "top-right", "bottom-left", "bottom-right")
# The ten crops of feature files, by their number: where, and whether mirrored.
TEN_CROPS = tuple((crop, mirror) for mirror in (False, True) for crop in CROPS)
INTERPOLATIONS = ("bilinear-antialias", "bilinear")
UNTAGGED = ("by-size", "bt601", "bt709", "bt601-always")
# By the name of --preprocessing, what makes an image of a frame.
STYLES = {
    "default": {"interpolation": "bilinear-antialias", "untagged": "by-size"},
    "reference": {"interpolation": "bilinear", "untagged": "bt601-always"},
}

# Colour matrices by their number in the stream (AVColorSpace, ISO/IEC 23091-2).
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# The same by swscale's own numbers (SWS_CS_*).
_SWS_MATRICES = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9, "rgb": 5}
_LIMITED, _FULL = int(ColorRange.MPEG), int(ColorRange.JPEG)

# SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND, which PyAV names only from 17 on. Without them colours are up to 3 of
# 255 off; with them below 1, for about a millisecond per image.
_SWS_FLAGS = int(Interpolation.BILINEAR) | 0x2000 | 0x40000

# OpenCV's own, with which swscale makes full-size RGB in its fastest and least exact way.
_OPENCV_FLAGS = int(Interpolation.BICUBIC)

_PYAV = int(av.__version__.split(".")[0])
# From PyAV 17 on swscale may use threads of its own; an image this small gains nothing from them.
SCALER_THREADS: dict[str, int] = {"threads": 1} if _PYAV >= 17 else {}

_LEVELS = np.arange(256)
_EXPAND = np.clip(np.rint((_LEVELS - 16) * (255 / 219)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a frame before the encoder sees it; stored in the bundle's manifest.

    Attributes:
        resize: width and height in pixels that the whole picture is scaled to; its aspect is not kept.
        size: side of the square that is cut from it, in pixels.
        crop: where it is cut: ``center``, ``top-left``, ``top-right``, ``bottom-left`` or ``bottom-right``.
        mirror: flip the square left to right.
        interpolation: ``bilinear-antialias``, or ``bilinear``: what ``cv2.resize`` with ``INTER_LINEAR`` makes of the
            full-size RGB picture, which aliases. HDR is antialiased in any case.
        untagged: colour matrix of streams that name none: ``bt601``, ``bt709``, or ``by-size``: BT.709 from a
            width of 1280 or a height above 576 on, BT.601 below, as players do. ``bt601-always`` is BT.601 whatever the
            stream says, as OpenCV 4 decodes; HDR keeps its own.

    Raises:
        UserError: a value that is not allowed; names the attribute.
    """

    resize: tuple[int, int] = REFERENCE_RESIZE
    size: int = REFERENCE_SIZE
    crop: str = "center"
    mirror: bool = False
    interpolation: str = "bilinear-antialias"
    untagged: str = "by-size"

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise _wrong("size", self.size, "a whole number of pixels from 1 on")
        sides = self.resize
        if not (isinstance(sides, tuple) and len(sides) == 2 and all(type(side) is int for side in sides)):
            raise _wrong("resize", sides, "width and height in whole pixels")
        if min(sides) < self.size:
            raise _wrong("resize", sides, f"at least the size of the crop, {self.size}, both ways")
        if type(self.mirror) is not bool:
            raise _wrong("mirror", self.mirror, "true or false")
        for key, allowed in (("crop", CROPS), ("interpolation", INTERPOLATIONS), ("untagged", UNTAGGED)):
            if getattr(self, key) not in allowed:
                raise _wrong(key, getattr(self, key), f"one of {', '.join(allowed)}")

    @classmethod
    def for_size(
        cls, size: int, *, crop: str = "center", mirror: bool = False, style: str = "default"
    ) -> Preprocessing:
        """The reference's geometry for an encoder of ``size`` pixels: 340x256 in proportion (64: 97x73).

        Args:
            size: side of the encoder's images in pixels.
            crop, mirror: as attributes.
            style: ``default``, or ``reference``: pixels as the released features' extraction made them, with OpenCV.

        Raises:
            UserError: there is no such style.
        """
        if style not in STYLES:
            raise UserError(f"there is no preprocessing {style!r}: take one of {', '.join(STYLES)}")
        width, height = REFERENCE_RESIZE
        resize = (round(width * size / REFERENCE_SIZE), round(height * size / REFERENCE_SIZE))
        return cls(resize=resize, size=size, crop=crop, mirror=mirror, **STYLES[style])

    def to_manifest(self) -> dict[str, Any]:
        """Plain JSON values, one for each attribute."""
        return {**asdict(self), "resize": list(self.resize)}

    @classmethod
    def from_manifest(cls, values: dict[str, Any]) -> Preprocessing:
        """The reverse of :meth:`to_manifest`.

        Raises:
            UserError: a key is unknown or missing, or its value is not allowed.
        """
        known = check_keys("preprocessing", values, [field.name for field in fields(cls)])
        if isinstance(known["resize"], list):
            known["resize"] = tuple(known["resize"])
        return cls(**known)

    @property
    def corner(self) -> tuple[int, int]:
        """First row and first column of the crop in the resized picture."""
        return self.corner_of(self.crop)

    def corner_of(self, crop: str) -> tuple[int, int]:
        """The same for any of :data:`CROPS`."""
        width, height = self.resize
        rows, columns = height - self.size, width - self.size
        if crop == "center":
            return rows // 2, columns // 2
        return (0 if crop.startswith("top") else rows), (0 if crop.endswith("left") else columns)


class Preprocessor:
    """Applies a :class:`Preprocessing` to frames, one after the other; not to be shared between threads.

    The scaler's tables are kept as long as frames have the same size and format.
    """

    def __init__(
        self,
        preprocessing: Preprocessing | None = None,
        crops: Sequence[tuple[str, bool]] | None = None,
        transfer: int = 0,
    ) -> None:
        """With ``crops`` (where, mirrored) one frame gives that many images instead of the one crop.

        ``transfer`` is the stream's transfer characteristic, for frames that do not name theirs.
        """
        self.preprocessing = preprocessing or Preprocessing()
        self._transfer = transfer
        self._crops = crops
        self._reformatter = VideoReformatter()
        self._colour: tuple[str, bool] | None = None

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """RGB uint8 [size,size,3], contiguous, of a frame of any size and pixel format; [c,size,size,3] with crops.

        Colour matrix, range and rotation are those that the frame is tagged with.
        """
        wanted = self.preprocessing
        orientation = orientation_of(frame)
        width, height = wanted.resize if orientation.turns % 2 == 0 else wanted.resize[::-1]
        transfer = transfer_of(frame, self._transfer)
        untagged = wanted.untagged
        if transfer is not None and untagged == "bt601-always":
            untagged = "by-size"
        matrix, full = colour_of(frame, untagged)
        whole = transfer is None and wanted.interpolation == "bilinear"
        if self._colour not in (None, (matrix, full)):
            # Up to PyAV 16 a scaler that has seen another matrix does not go back to BT.601.
            self._reformatter = VideoReformatter()
        self._colour = matrix, full
        # Until FFmpeg 8 grey follows its range tag, since then it is always taken for full range.
        grey_limited = _is_grey(frame) and not full
        source_range = _FULL if full or grey_limited else _LIMITED
        scaled = self._reformatter.reformat(
            # PyAV 17 scales the two fields of an interlaced frame apart, which leaves combs in the small image.
            _unflagged(frame) if _PYAV >= 17 and frame.interlaced_frame else frame,
            width=frame.width if whole else width,
            height=frame.height if whole else height,
            format="rgb24" if transfer is None else "rgb48le",
            interpolation=_OPENCV_FLAGS if whole else _SWS_FLAGS,
            src_colorspace=_SWS_MATRICES[matrix],
            dst_colorspace=_SWS_MATRICES[matrix],
            src_color_range=source_range,
            # Up to PyAV 16 matrix and range are set only where source and destination differ in one of them.
            # RGB has no range of its own, so the other one is safe to name.
            dst_color_range=_LIMITED if source_range == _FULL else _FULL,
            **SCALER_THREADS,
        )
        rows = plane_rows(scaled.planes[0])
        if transfer is None:
            image = rows[:, : 3 * scaled.width].reshape(scaled.height, scaled.width, 3)
            if whole:
                image = resize(image, width, height)
        else:
            codes = np.ascontiguousarray(rows[:, : 6 * width]).view("<u2").reshape(height, width, 3)
            image = tone_map(codes, transfer, bt2020=has_bt2020_primaries(frame))
        image = orientation.upright(image)
        if grey_limited:
            image = _EXPAND[image]
        if self._crops is not None:
            return np.stack([self._cut(image, crop, mirror) for crop, mirror in self._crops])
        # A copy, whatever the layout: the view would keep the scaled picture alive.
        return np.array(self._cut(image, wanted.crop, wanted.mirror), order="C")

    def _cut(self, image: NDArray[np.uint8], crop: str, mirror: bool) -> NDArray[np.uint8]:
        top, left = self.preprocessing.corner_of(crop)
        size = self.preprocessing.size
        image = image[top : top + size, left : left + size]
        return image[:, ::-1] if mirror else image


class Orientation(NamedTuple):
    """What makes a stored picture stand upright.

    Attributes:
        turns: quarter turns counterclockwise, 0 to 3.
        mirrored: whether it is flipped left to right first.
    """

    turns: int = 0
    mirrored: bool = False

    def upright(self, image: NDArray[T]) -> NDArray[T]:
        """A view of an image [h,w,...] that stands upright."""
        return np.rot90(image[:, ::-1] if self.mirrored else image, self.turns)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How a frame is to be turned and flipped, by its display matrix.

    PyAV tells the angle alone, which for a mirrored picture may be that of its mirror image. The matrix (ISO/IEC
    14496-12, 6.2.2) takes a point to p' = a p + c q, q' = b p + d q, q downwards. It mirrors where its determinant is
    negative.
    """
    side_data: Any = frame.side_data  # its keys are not what PyAV's types say
    data = side_data.get(SideData.DISPLAYMATRIX)
    if data is None or len(matrix := bytes(data)) < 20:
        return Orientation(round(frame.rotation / 90) % 4)
    a, b, _, c, d = np.frombuffer(matrix[:20], "=i4").astype(np.float64)  # 16.16
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b  # of the picture that has been flipped left to right
    return Orientation(round(-math.degrees(math.atan2(b, a)) / 90) % 4, mirrored)


def colour_of(frame: av.VideoFrame, untagged: str = "by-size") -> tuple[str, bool]:
    """Colour matrix of a frame, and whether its levels fill the full range.

    Args:
        frame: any decoded frame.
        untagged: the rule for frames without a known matrix, or for all, as in :class:`Preprocessing`.

    Returns:
        ``bt601``, ``bt709``, ``bt2020``, ``fcc``, ``smpte240m`` or ``rgb``, and the range. Untagged YUV is
        limited range, untagged grey full.
    """
    name = frame.format.name
    if frame.format.is_rgb:
        return "rgb", True
    matrix = "bt601" if untagged == "bt601-always" else _MATRICES.get(int(frame.colorspace))
    if matrix is None:
        large = frame.width >= 1280 or frame.height > 576
        matrix = ("bt709" if large else "bt601") if untagged == "by-size" else untagged
    tagged = int(frame.color_range)
    if _is_grey(frame):
        return matrix, tagged != _LIMITED
    return matrix, tagged == _FULL or name.startswith("yuvj")


def _wrong(key: str, value: object, allowed: str) -> UserError:
    return UserError(f"preprocessing: {key} is {value!r} but must be {allowed}")


def _is_grey(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith(("gray", "ya"))


def _unflagged(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture without the interlaced flag, which PyAV lets nobody clear."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        padded = np.zeros((target.height, target.line_size), np.uint8)
        used = min(source.line_size, target.line_size)
        padded[:, :used] = plane_rows(source)[:, :used]
        target.update(padded.tobytes())
    return copy


def plane_rows(plane: Any) -> NDArray[np.uint8]:
    """A plane's bytes [rows, bytes to a row with its padding], not copied."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
