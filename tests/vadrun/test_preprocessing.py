from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

from tests import clips
from vadrun import preprocessing as module
from vadrun.bilinear import resize
from vadrun.errors import UserError
from vadrun.preprocessing import CROPS, TEN_CROPS, Orientation, Preprocessing, Preprocessor, colour_of, orientation_of

# Levels of Y, U and V at 8 bits: greys, primaries and mixed colours, within the limited range.
PATCHES = [
    (16, 128, 128),
    (235, 128, 128),
    (81, 90, 240),
    (145, 54, 34),
    (41, 240, 110),
    (120, 100, 150),
    (180, 128, 90),
]
# Kr and Kb (ITU-R BT.601, BT.709 and BT.2020, FCC 73.682, SMPTE 240M), and the number that streams name them by.
MATRICES = {
    "bt601": (0.299, 0.114, 6),
    "bt709": (0.2126, 0.0722, 1),
    "bt2020": (0.2627, 0.0593, 9),
    "fcc": (0.3, 0.11, 4),
    "smpte240m": (0.212, 0.087, 7),
}
LIMITED, FULL = 1, 2


def textbook_rgb(levels: tuple[int, ...], matrix: str, full: bool) -> NDArray[np.float64]:
    """RGB of 8-bit Y'CbCr levels, 0 to 255 (ITU-R BT.601-7 and BT.709-6)."""
    kr, kb, _ = MATRICES[matrix]
    y, u, v = levels
    if full:
        luma, cb, cr = y / 255, (u - 128) / 255, (v - 128) / 255
    else:
        luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.asarray(np.clip(np.array([red, green, blue]) * 255, 0, 255))


def patch(
    levels: tuple[int, ...],
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (320, 240),
    colorspace: int = 2,
    color_range: int = 0,
) -> av.VideoFrame:
    """A frame of one colour."""
    frame = av.VideoFrame(*size, pixel_format)
    frame.colorspace, frame.color_range = colorspace, color_range
    for index, plane in enumerate(frame.planes):
        if pixel_format.endswith("10le"):
            data = np.full(plane.buffer_size // 2, 4 * levels[index], "<u2").tobytes()
        elif pixel_format == "nv12" and index == 1:
            data = bytes(levels[1:]) * (plane.buffer_size // 2)
        else:
            data = bytes([levels[index]]) * plane.buffer_size
        plane.update(data)
    return frame


def rgb_frame(image: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def scene(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth, and different everywhere: [h,w,3]."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = x * 255 / width, y * 255 / height
    return np.stack([across, down, (across + down) / 2], 2).astype(np.uint8)


# -- geometry


@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    [
        ("center", slice(16, 240), slice(58, 282)),
        ("top-left", slice(0, 224), slice(0, 224)),
        ("top-right", slice(0, 224), slice(116, 340)),
        ("bottom-left", slice(32, 256), slice(0, 224)),
        ("bottom-right", slice(32, 256), slice(116, 340)),
    ],
)
def test_crops_are_those_of_the_reference(crop: str, rows: slice, columns: slice) -> None:
    image = scene(340, 256)  # nothing to scale
    result = Preprocessor(Preprocessing(crop=crop))(rgb_frame(image))
    np.testing.assert_array_equal(result, image[rows, columns])


def test_mirrors_are_the_crops_flipped() -> None:
    frame = rgb_frame(scene(320, 240))
    for crop in CROPS:
        plain = Preprocessor(Preprocessing(crop=crop))(frame)
        mirrored = Preprocessor(Preprocessing(crop=crop, mirror=True))(frame)
        np.testing.assert_array_equal(mirrored, plain[:, ::-1])


@pytest.mark.parametrize("size", [(320, 240), (1920, 1080), (240, 320), (101, 77), (16, 16)])
def test_the_whole_picture_is_scaled_whatever_its_aspect(size: tuple[int, int]) -> None:
    result = Preprocessor(Preprocessing(size=256))(rgb_frame(scene(*size)))
    expected = scene(340, 256)[:, 42:298]
    blur = 1.5 * 255 / min(size) + 2
    assert np.abs(result.astype(int) - expected).max() <= blur


def test_the_result_is_a_small_array_of_its_own() -> None:
    for mirror in (False, True):
        result = Preprocessor(Preprocessing(mirror=mirror))(rgb_frame(scene(640, 480)))
        assert result.shape == (224, 224, 3)
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert result.base is None or result.base.nbytes == result.nbytes


def test_other_sizes_keep_the_proportions() -> None:
    assert Preprocessing.for_size(224) == Preprocessing()
    small = Preprocessing.for_size(64, crop="center", mirror=True)
    assert (small.resize, small.size, small.mirror) == ((97, 73), 64, True)
    assert small.corner == (4, 16)
    assert Preprocessor(small)(rgb_frame(scene(320, 240))).shape == (64, 64, 3)


def test_fine_patterns_do_not_alias_when_shrunk() -> None:
    checkers = ((np.indices((1080, 1920)).sum(0) % 2) * 255).astype(np.uint8)
    result = Preprocessor()(rgb_frame(np.repeat(checkers[..., None], 3, 2)))
    assert np.abs(result.astype(int) - 127).max() <= 8


def test_a_frame_takes_one_scaling_pass_and_the_scaler_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counting] = []

    class Counting:
        def __init__(self) -> None:
            self.calls: list[dict[str, Any]] = []
            self.real = av.video.reformatter.VideoReformatter()
            made.append(self)

        def reformat(self, frame: av.VideoFrame, **arguments: Any) -> av.VideoFrame:
            assert frame.format.name == "yuv420p"
            self.calls.append(arguments)
            return self.real.reformat(frame, **arguments)

    monkeypatch.setattr(module, "VideoReformatter", Counting)
    preprocessor = Preprocessor()
    for _ in range(5):
        preprocessor(patch((100, 128, 128)))
    (scaler,) = made
    assert len(scaler.calls) == 5
    assert all((call["width"], call["height"]) == (340, 256) for call in scaler.calls)


def test_one_preprocessor_takes_frames_of_changing_size() -> None:
    preprocessor = Preprocessor()
    first = preprocessor(rgb_frame(scene(320, 240)))
    preprocessor(patch((50, 128, 128), "yuv422p", (640, 480)))
    np.testing.assert_array_equal(preprocessor(rgb_frame(scene(320, 240))), first)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), Orientation(0, False)),
        ((0, 1, -1, 0), Orientation(3, False)),
        ((-1, 0, 0, -1), Orientation(2, False)),
        ((0, -1, 1, 0), Orientation(1, False)),
        ((-1, 0, 0, 1), Orientation(0, True)),
        ((1, 0, 0, -1), Orientation(2, True)),
        ((2, 0, 0, 2), Orientation(0, False)),
        ((0.704, 0.710, -0.710, 0.704), Orientation(3, False)),  # 45.2 degrees
        ((0.710, 0.704, -0.704, 0.710), Orientation(0, False)),
        ((0, 1, 1, 0), Orientation(1, True)),
        ((0, -1, -1, 0), Orientation(3, True)),
        ((0, 0, 0, 0), Orientation(0, False)),  # of nobody; it mirrors nothing
    ],
)
def test_a_display_matrix_is_a_turn_and_a_flip(matrix: tuple[float, ...], expected: Orientation) -> None:
    a, b, c, d = (round(65536 * value) for value in matrix)
    data = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], "=i4").tobytes()
    frame: Any = SimpleNamespace(side_data={SideData.DISPLAYMATRIX: data}, rotation=77.0)
    assert orientation_of(frame) == expected
    frame = SimpleNamespace(side_data={SideData.DISPLAYMATRIX: data[:19]}, rotation=-90.0)
    assert orientation_of(frame) == Orientation(3, False)
    frame = SimpleNamespace(side_data={SideData.DISPLAYMATRIX: data[:20]}, rotation=-90.0)
    assert orientation_of(frame) == expected
    frame = SimpleNamespace(side_data={}, rotation=316.0)
    assert orientation_of(frame) == Orientation(0, False)  # the nearest quarter turn


def test_a_picture_is_flipped_first_and_turned_then() -> None:
    image = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    np.testing.assert_array_equal(Orientation(1, True).upright(image), np.rot90(np.fliplr(image)))
    np.testing.assert_array_equal(Orientation(3, False).upright(image), np.rot90(image, 3))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_turned_pictures_are_scaled_and_cut_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4", 1, size=(320, 240), draw=lambda number, w, h: scene(w, h))
    found = []
    copy = tmp_path / "turned.mp4"
    copy.write_bytes(path.read_bytes())
    for marked in (path, clips.mark_matrix(copy, *matrix)):
        with av.open(str(marked)) as container:
            found.append(next(container.decode(video=0)))
    stored, turned = found
    upright = orientation_of(turned).upright(stored.to_ndarray(format="rgb24"))
    for preprocessing in (Preprocessing((300, 200), 150, "top-left"), Preprocessing((200, 300), 180, "bottom-right")):
        image = Preprocessor(preprocessing)(turned)
        assert image.flags.c_contiguous
        assert np.abs(image.astype(int) - Preprocessor(preprocessing)(rgb_frame(upright))).max() <= 6


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "nv12", "gray", "rgb24"])
@pytest.mark.parametrize("size", [(64, 48), (102, 78)])
def test_a_picture_without_its_interlaced_flag_is_the_same_to_the_byte(
    pixel_format: str, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    frame = rgb_frame(noise).reformat(format=pixel_format)
    copy = module._unflagged(frame)
    assert (copy.width, copy.height, copy.format.name) == (frame.width, frame.height, frame.format.name)
    np.testing.assert_array_equal(copy.to_ndarray(), frame.to_ndarray())


def test_interlaced_pictures_are_scaled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Combs of two levels become their mean; PyAV 17 and later would scale the two fields apart."""

    def combed(number: int, width: int, height: int) -> NDArray[np.uint8]:
        image = np.full((height, width, 3), 60, np.uint8)
        image[::2] = 180
        return image

    options = {"x264-params": "log-level=none:interlaced=1", "crf": "1"}
    path = clips.write_clip(tmp_path / "i.mkv", 1, size=(320, 480), draw=combed, options=options)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.interlaced_frame and not module._unflagged(frame).interlaced_frame
    np.testing.assert_array_equal(module._unflagged(frame).to_ndarray(), frame.to_ndarray())
    passed: list[av.VideoFrame] = []
    unflagged = module._unflagged
    monkeypatch.setattr(module, "_unflagged", lambda frame: passed.append(frame) or unflagged(frame))
    image = Preprocessor(Preprocessing(size=200, resize=(200, 200)))(frame)
    assert np.abs(image[10:-10].astype(int) - 120).max() <= 20
    assert passed == ([frame] if module._PYAV >= 17 else [])
    for version, count in ((16, 0), (17, 1)):
        passed.clear()
        monkeypatch.setattr(module, "_PYAV", version)
        Preprocessor()(frame)
        Preprocessor()(patch((100, 128, 128)))
        assert len(passed) == count


def test_the_smallest_crop_is_a_pixel() -> None:
    assert Preprocessor(Preprocessing(resize=(1, 1), size=1))(rgb_frame(scene(32, 24))).shape == (1, 1, 3)


# -- colour


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le"])
def test_tagged_colours_are_the_textbook_ones(matrix: str, full: bool, pixel_format: str) -> None:
    preprocessor = Preprocessor()
    for levels in PATCHES:
        frame = patch(levels, pixel_format, (320, 240), MATRICES[matrix][2], FULL if full else LIMITED)
        difference = preprocessor(frame) - textbook_rgb(levels, matrix, full)
        assert np.abs(difference).max() <= 2, (levels, difference[0, 0])


@pytest.mark.parametrize("pixel_format", ["yuvj420p", "yuvj422p", "yuvj444p"])
def test_jpeg_formats_are_full_range_without_a_tag(pixel_format: str) -> None:
    for levels in PATCHES:
        assert colour_of(patch(levels, pixel_format)) == ("bt601", True)
        result = Preprocessor()(patch(levels, pixel_format))
        assert np.abs(result - textbook_rgb(levels, "bt601", True)).max() <= 2


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ((320, 240), "bt601"),
        ((1278, 576), "bt601"),
        ((720, 576), "bt601"),
        ((1280, 720), "bt709"),
        ((1280, 480), "bt709"),
        ((720, 578), "bt709"),
        ((720, 577), "bt709"),
        ((1920, 1080), "bt709"),
    ],
)
def test_untagged_colours_follow_the_size_as_in_players(size: tuple[int, int], matrix: str) -> None:
    levels = (81, 90, 240)
    assert colour_of(patch(levels, size=size)) == (matrix, False)
    assert np.abs(Preprocessor()(patch(levels, size=size)) - textbook_rgb(levels, matrix, False)).max() <= 2


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_the_matrix_of_untagged_streams_can_be_set(matrix: str) -> None:
    levels = (81, 90, 240)
    for size in ((320, 240), (1920, 1080)):
        result = Preprocessor(Preprocessing(untagged=matrix))(patch(levels, size=size))
        assert np.abs(result - textbook_rgb(levels, matrix, False)).max() <= 2
        tagged = patch(levels, size=size, colorspace=MATRICES["bt2020"][2])
        assert colour_of(tagged, matrix) == ("bt2020", False)


def test_a_change_of_tags_between_frames_is_followed() -> None:
    preprocessor = Preprocessor()
    for matrix, full in (("bt601", False), ("bt709", True), ("bt709", False), ("bt601", True)):
        frame = patch((120, 100, 150), "yuv420p", (320, 240), MATRICES[matrix][2], FULL if full else LIMITED)
        assert np.abs(preprocessor(frame) - textbook_rgb((120, 100, 150), matrix, full)).max() <= 2


class Recorded:
    """A scaler that remembers what it was asked for; the real one does the work."""

    made: ClassVar[list[Recorded]] = []

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.real = av.video.reformatter.VideoReformatter()
        self.made.append(self)

    def reformat(self, frame: av.VideoFrame, **arguments: Any) -> av.VideoFrame:
        self.calls.append(arguments)
        return self.real.reformat(frame, **arguments)


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    monkeypatch.setattr(Recorded, "made", [])
    monkeypatch.setattr(module, "VideoReformatter", Recorded)
    return Recorded.made


def test_a_change_of_tags_gets_a_new_scaler_and_no_other_does(scalers: list[Recorded]) -> None:
    """Up to PyAV 16 a scaler that has seen another matrix does not go back to BT.601."""
    preprocessor = Preprocessor()
    for colorspace, color_range, count in [
        (6, LIMITED, 1), (6, LIMITED, 1), (1, LIMITED, 2), (1, FULL, 3), (1, FULL, 3), (6, LIMITED, 4),
    ]:  # fmt: skip
        preprocessor(patch((120, 100, 150), colorspace=colorspace, color_range=color_range))
        assert len(scalers) == count


@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_the_scaler_is_told_everything(scalers: list[Recorded], color_range: int) -> None:
    """Matrix and range of the source; the same matrix and the other range for RGB, which has neither."""
    Preprocessor()(patch((120, 100, 150), colorspace=9, color_range=color_range))
    assert scalers[0].calls == [
        {
            "width": 340,
            "height": 256,
            "format": "rgb24",
            "interpolation": module._SWS_FLAGS,
            "src_colorspace": 9,
            "dst_colorspace": 9,
            "src_color_range": color_range,
            "dst_color_range": FULL if color_range == LIMITED else LIMITED,
            **module.SCALER_THREADS,
        }
    ]


def test_rgb_and_grey_with_alpha_are_full_range() -> None:
    assert colour_of(rgb_frame(scene(32, 24))) == ("rgb", True)
    assert colour_of(av.VideoFrame(32, 24, "ya8")) == ("bt601", True)


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
def test_limited_grey_is_scaled_as_full_and_widened_after(scalers: list[Recorded], pixel_format: str) -> None:
    """FFmpeg 8 takes all grey for full range, older ones do not: so it is always told that."""
    for tag in (LIMITED, FULL, 0):
        Preprocessor()(patch((100,), pixel_format, color_range=tag))
        asked = scalers[-1].calls[0]
        assert (int(asked["src_color_range"]), int(asked["dst_color_range"])) == (FULL, LIMITED)


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (16, 0), (17, 1), (126, 128), (235, 255), (255, 255)])
def test_limited_grey_has_black_at_16_and_white_at_235(level: int, expected: int) -> None:
    result = Preprocessor()(patch((level,), "gray", color_range=LIMITED))
    assert (result == expected).all()
    assert (Preprocessor()(patch((level,), "gray", color_range=FULL)) == level).all()


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
@pytest.mark.parametrize(("tag", "expected"), [(FULL, 100), (0, 100), (LIMITED, (100 - 16) * 255 / 219)])
def test_grey_follows_its_range(pixel_format: str, tag: int, expected: float) -> None:
    result = Preprocessor()(patch((100,), pixel_format, color_range=tag))
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "gbrp", "bgra"])
@pytest.mark.parametrize("size", [(320, 240), (1920, 1080)])
def test_rgb_sources_stay_as_they_are(pixel_format: str, size: tuple[int, int]) -> None:
    colour = np.zeros((size[1], size[0], 3), np.uint8) + np.array([200, 90, 30], np.uint8)
    result = Preprocessor()(rgb_frame(colour).reformat(format=pixel_format))
    assert np.abs(result.astype(int) - [200, 90, 30]).max() <= 1


# -- the reference's pixels

REFERENCE = Preprocessing.for_size(224, style="reference")


def opencv(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Full-size RGB as swscale makes it by default, which is what OpenCV 4 asks for, resized to 340x256."""
    rgb = av.video.reformatter.VideoReformatter().reformat(
        frame, format="rgb24", interpolation="BICUBIC", src_colorspace=5, dst_colorspace=5
    )
    return resize(rgb.to_ndarray(), 340, 256)


@pytest.mark.parametrize("size", [(320, 240), (1280, 720), (1918, 1080)])
@pytest.mark.parametrize("colorspace", [2, 1])  # OpenCV 4 reads no tag
def test_the_reference_has_opencvs_pixels(size: tuple[int, int], colorspace: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    frame = rgb_frame(noise).reformat(format="yuv420p", dst_color_range=1)
    frame.colorspace, frame.color_range = colorspace, LIMITED
    whole = opencv(frame).astype(int)
    found = Preprocessor(REFERENCE)(frame).astype(int)
    assert np.abs(found - whole[16:240, 58:282]).max() <= 1
    crops = Preprocessor(REFERENCE, TEN_CROPS)(frame)
    assert np.abs(crops[4] - whole[32:, 116:]).max() <= 1
    assert np.abs(crops[9] - whole[32:, 116:][:, ::-1]).max() <= 1
    if size[0] > 1000:  # and they are other ones than ours
        assert np.abs(found - Preprocessor()(frame).astype(int)).mean() > 9


@pytest.mark.parametrize("colorspace", [2, 1, 9])
def test_bt601_always_reads_no_tag(colorspace: int) -> None:
    levels = (81, 90, 240)
    frame = patch(levels, size=(1920, 1080), colorspace=colorspace)
    assert colour_of(frame, "bt601-always") == ("bt601", False)
    for preprocessing in (REFERENCE, Preprocessing(untagged="bt601-always")):
        assert np.abs(Preprocessor(preprocessing)(frame) - textbook_rgb(levels, "bt601", False)).max() <= 3


@pytest.mark.parametrize("pixel_format", ["yuvj420p", "nv12", "yuv420p10le", "gray", "rgb24"])
def test_the_reference_takes_all_formats(pixel_format: str) -> None:
    levels = (120, 100, 150)
    if pixel_format == "rgb24":
        frame, expected = rgb_frame(np.full((480, 640, 3), levels, np.uint8)), np.array(levels, float)
    elif pixel_format == "gray":
        frame, expected = patch(levels[:1], "gray", (640, 480), color_range=LIMITED), np.full(3, (120 - 16) * 255 / 219)
    else:
        frame = patch(levels, pixel_format, (640, 480))
        expected = textbook_rgb(levels, "bt601", pixel_format == "yuvj420p")
    assert np.abs(Preprocessor(REFERENCE)(frame) - expected).max() <= 3


def test_hdr_is_tone_mapped_for_the_reference_as_well() -> None:
    frame = patch((100, 110, 140), "yuv420p10le", (1280, 720), colorspace=9, color_range=LIMITED)
    ours, reference = (Preprocessor(p, transfer=16)(frame) for p in (Preprocessing(), REFERENCE))
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("size", [(640, 480), (1280, 720)])
def test_hdr_without_a_matrix_follows_the_size_for_the_reference_as_well(size: tuple[int, int]) -> None:
    frame = patch((100, 110, 140), "yuv420p10le", size)
    results = [
        Preprocessor(Preprocessing(untagged=untagged), transfer=16)(frame)
        for untagged in ("bt601-always", "by-size", "bt601", "bt709")
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[3 if size[0] == 1280 else 2])
    assert (results[2] != results[3]).any()


def test_hdr_is_told_by_the_frame_or_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def mapped(codes: NDArray[np.uint16], transfer: str, **named: Any) -> NDArray[np.uint8]:
        asked.append((codes.shape, transfer, named))
        return (codes >> 8).astype(np.uint8)

    frame = patch((100, 110, 140), "yuv420p10le", colorspace=9, color_range=LIMITED)
    monkeypatch.setattr(module, "tone_map", mapped)
    monkeypatch.setattr(module, "has_bt2020_primaries", lambda one: ("primaries", one is frame))
    monkeypatch.setattr(module, "transfer_of", lambda one, stream: "HLG" if one is frame and stream == 18 else None)
    Preprocessor(transfer=18)(frame)
    assert asked == [((256, 340, 3), "HLG", {"bt2020": ("primaries", True)})]
    Preprocessor()(frame)
    assert len(asked) == 1


def test_an_unknown_style_is_refused() -> None:
    assert Preprocessing.for_size(224) == Preprocessing.for_size(224, style="default") == Preprocessing()
    with pytest.raises(UserError, match="no preprocessing 'opencv': take one of default, reference"):
        Preprocessing.for_size(224, style="opencv")


# -- the manifest


def test_the_manifest_holds_everything() -> None:
    for preprocessing in (
        Preprocessing(),
        Preprocessing.for_size(64, crop="bottom-right", mirror=True),
        Preprocessing((300, 300), 256, "top-left", untagged="bt709"),
        REFERENCE,
    ):
        manifest = json.loads(json.dumps(preprocessing.to_manifest()))
        assert Preprocessing.from_manifest(manifest) == preprocessing


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"size": 0}, "size"),
        ({"size": "224"}, "size"),
        ({"size": True}, "size"),
        ({"resize": [340]}, "resize"),
        ({"resize": [340.0, 256]}, "resize"),
        ({"resize": 340}, "resize"),
        ({"resize": [340, 200]}, "resize"),
        ({"crop": "centre"}, "crop"),
        ({"crop": None}, "crop"),
        ({"mirror": 1}, "mirror"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"untagged": "bt2020"}, "untagged"),
        ({"mean": [0.5]}, "mean"),
    ],
)
def test_wrong_manifests_are_refused_by_name(change: dict[str, object], names: str) -> None:
    with pytest.raises(UserError, match=rf"preprocessing.*\b{names}\b"):
        Preprocessing.from_manifest({**Preprocessing().to_manifest(), **change})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"size": 5000}, "size is 5000 but must be a whole number of pixels from 1 to 4096"),
        ({"size": 0}, "size is 0 but must be a whole number of pixels from 1 to 4096"),
        ({"resize": 340}, "resize is 340 but must be width and height in whole pixels"),
        (
            {"resize": (340, 200)},
            "resize is a list of 2 but must be at least the size of the crop, 224, and at most 4096, both ways",
        ),
        ({"mirror": 1}, "mirror is 1 but must be true or false"),
        ({"untagged": "x"}, "untagged is 'x' but must be one of by-size, bt601, bt709, bt601-always"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        Preprocessing(**values)
    assert str(raised.value) == f"preprocessing: {text}"


def test_the_largest_picture() -> None:
    largest = Preprocessing(resize=(4096, 4096), size=4096)
    assert (largest.size, largest.corner) == (4096, (0, 0))


def test_a_size_takes_crop_and_style() -> None:
    made = Preprocessing.for_size(64, crop="top-right", style="reference")
    assert made == Preprocessing((97, 73), 64, "top-right", False, "bilinear", "bt601-always")


def test_the_section_of_the_manifest_is_named() -> None:
    with pytest.raises(UserError, match=r"^the manifest's preprocessing lacks the key 'resize'"):
        Preprocessing.from_manifest({})


def test_a_missing_key_is_refused_by_name() -> None:
    manifest = Preprocessing().to_manifest()
    del manifest["untagged"]
    with pytest.raises(UserError, match=r"preprocessing.*'untagged'"):
        Preprocessing.from_manifest(manifest)


@pytest.mark.parametrize("values", [{"size": 10**9}, {"resize": (10**400, 300)}, {"resize": (340, 5000)}])
def test_a_picture_is_bounded(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"preprocessing: (size|resize) is .* (at most|to) 4096"):
        Preprocessing(**values)
