from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.clips import Image, write_clip
from vadrun.gate import GateRule
from vadrun.hdr import tone_map, transfer_of
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.video import Video

NUMBERS = {"PQ": 16, "HLG": 18}
TO_BT2020 = np.array(  # BT.2087-0, from BT.709
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
Floats = NDArray[np.float64]


def hdr_codes(light: Floats, transfer: str) -> Floats:
    """R'G'B', 0 to 1, of light [...,3] with BT.2020 primaries, in which 1 is 203 cd/m2 (ITU-R BT.2100-2)."""
    nits = 203 * light
    if transfer == "PQ":  # the inverse EOTF
        power = (nits / 10000) ** 0.1593017578125
        return np.asarray(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)
    luminance = np.maximum(nits @ [0.2627, 0.6780, 0.0593] / 1000, 1e-9)[..., None]
    scene = nits / 1000 * luminance ** ((1 - 1.2) / 1.2)  # the inverse OOTF, then the OETF
    logarithmic = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithmic)


def mapped(light: Floats, transfer: str, *, bt2020: bool = True) -> NDArray[np.uint8]:
    codes = np.rint(65535 * np.clip(hdr_codes(light, transfer), 0, 1)).astype(np.uint16)
    return tone_map(codes.reshape(1, -1, 3), transfer, bt2020=bt2020).reshape(light.shape)


def bt1886(levels: Any) -> Floats:
    return np.asarray((np.asarray(levels, float) / 255) ** 2.4)


@pytest.mark.parametrize("transfer", NUMBERS)
def test_what_sdr_can_show_looks_as_in_sdr(transfer: str) -> None:
    levels = np.stack(np.meshgrid(*[[0, 16, 60, 128, 200, 226]] * 3), axis=-1).reshape(-1, 3)
    found = mapped(bt1886(levels) @ TO_BT2020.T, transfer).astype(int)
    # The matrix of the test has four digits: dark components beside bright ones are off by more.
    assert np.abs(found - levels)[levels.min(axis=1) > 16].max() <= 2
    assert np.abs(found - levels).max() <= 12
    plain = mapped(bt1886(levels), transfer, bt2020=False).astype(int)
    assert np.abs(plain - levels).max() <= 1


@pytest.mark.parametrize("transfer", NUMBERS)
def test_brighter_light_is_compressed_up_to_the_peak(transfer: str) -> None:
    nits = np.array([100, 150, 203, 300, 500, 800, 1000])
    found = mapped(np.repeat(nits[:, None] / 203, 3, axis=1), transfer).astype(int)
    assert (found.max(axis=1) - found.min(axis=1) <= 1).all()  # grey stays grey
    assert (np.diff(found[:, 0]) > 0).all()
    assert found[0, 0] == pytest.approx(255 * (100 / 203) ** (1 / 2.4), abs=1)
    assert 235 <= found[2, 0] <= 245  # SDR white is near the top, not at it
    assert found[-1, 0] >= 254


def test_bright_colours_keep_their_hue() -> None:
    light = np.array([[3.0, 1.5, 0.75], [0.6, 0.3, 0.15]])
    bright, dim = bt1886(mapped(light, "PQ", bt2020=False))
    np.testing.assert_allclose(bright / bright[0], dim / dim[0], atol=0.01)


def test_every_code_gives_a_level() -> None:
    for transfer in NUMBERS:
        codes = np.stack(np.meshgrid(*[[0, 9000, 30000, 65535]] * 3), axis=-1).reshape(1, -1, 3).astype(np.uint16)
        image = tone_map(codes, transfer)
        assert image.dtype == np.uint8 and image.shape == codes.shape
        assert (image[0, 0] == 0).all() and (image[0, -1] == 255).all()


# -- video


def scene(number: int, width: int, height: int) -> Image:
    """Smooth colours, none brighter than the knee."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([30 + 160 * x / width, 30 + 160 * y / height, 110 + 0 * x], axis=-1).astype(np.uint8)


def hdr_clip(path: Path, transfer: str, frames: int = 40, *, primaries: int = 9) -> Path:
    """The scene in 10 bits, by default with the primaries of BT.2020."""

    def draw(number: int, width: int, height: int) -> Image:
        light = bt1886(scene(number, width, height))
        codes = hdr_codes(light @ TO_BT2020.T if primaries == 9 else light, transfer)
        return np.rint(255 * codes).astype(np.uint8)

    def prepare(stream: Any) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries = NUMBERS[transfer], primaries
        context.colorspace = 6  # BT.601, by which the clip is made YUV

    return write_clip(path, frames, pixel_format="yuv420p10le", draw=draw, prepare=prepare, options={"crf": "4"})


def images(path: Path, gate: GateRule | None = None, **options: Any) -> tuple[NDArray[np.uint8], Any]:
    with Video(path, **options) as video:
        found = [snippet.images[0] for snippet in video.snippets(gate=gate) if len(snippet.images)]
        return np.stack(found), video.info


@pytest.mark.parametrize("transfer", NUMBERS)
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_hdr_video_looks_as_in_sdr_and_is_named(tmp_path: Path, transfer: str, name: str) -> None:
    expected, plain = images(write_clip(tmp_path / f"sdr-{name}", 40, draw=scene, options={"crf": "4"}))
    path = hdr_clip(tmp_path / name, transfer)
    assert (plain.hdr, plain.remarks) == (None, ())
    for gate in (None, GateRule()):  # decoded by groups, and on demand
        found, info = images(path, gate)
        assert info.hdr == transfer
        assert info.remarks == (f"is HDR ({transfer}), and is tone-mapped to SDR for the encoder",)
        assert np.abs(found[0].astype(int) - expected[0]).mean() < 2


def test_hdr_with_the_primaries_of_bt709_keeps_them(tmp_path: Path) -> None:
    if not hasattr(av.VideoFrame, "color_primaries"):
        pytest.skip("PyAV 17 names a frame's primaries")
    expected, _ = images(write_clip(tmp_path / "sdr.mkv", 17, draw=scene, options={"crf": "4"}))
    found, _ = images(hdr_clip(tmp_path / "a.mkv", "PQ", 17, primaries=1))
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_a_bare_frame_has_the_transfer_of_its_stream() -> None:
    frame = av.VideoFrame(320, 240, "yuv420p10le")
    frame.colorspace, frame.color_range = 9, 1
    for plane in frame.planes:
        plane.update(np.full(plane.buffer_size // 2, 600, "<u2").tobytes())
    assert [transfer_of(frame, number) for number in (0, 1, 16, 18)] == [None, None, "PQ", "HLG"]
    sdr, hdr = (Preprocessor(Preprocessing(), transfer=number)(frame) for number in (1, 16))
    assert np.abs(sdr.astype(int) - hdr).mean() > 20
    if hasattr(frame, "color_trc"):
        frame.color_trc = 1
        assert transfer_of(frame, 16) is None
