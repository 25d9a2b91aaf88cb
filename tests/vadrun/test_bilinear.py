from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vadrun.bilinear import resize

SIZES = [(320, 240), (1280, 720), (1920, 1080), (340, 256), (680, 512), (101, 77), (2, 3), (1, 1)]


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3)).astype(np.uint8)


def exact(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.float64]:
    """Bilinear interpolation between the four nearest pixels, whose centres lie half a pixel in."""
    x = np.clip((np.arange(width) + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    y = np.clip((np.arange(height) + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, image.shape[1] - 1), np.minimum(top + 1, image.shape[0] - 1)
    across, down = (x - left)[None, :, None], (y - top)[:, None, None]
    source = image.astype(float)
    upper = source[top][:, left] * (1 - across) + source[top][:, right] * across
    lower = source[bottom][:, left] * (1 - across) + source[bottom][:, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_bilinear_interpolation_to_the_level(size: tuple[int, int]) -> None:
    image = noise(*size)
    found = resize(image, 340, 256)
    assert found.shape == (256, 340, 3) and found.dtype == np.uint8
    assert np.abs(found - exact(image, 340, 256)).max() < 1
    assert abs((found - exact(image, 340, 256)).mean()) < 0.2


def test_opencvs_rounding_is_kept() -> None:
    """What cv2.resize(image, (5, 3), interpolation=cv2.INTER_LINEAR) gives, of OpenCV 4.10 and 5.0."""
    image = (np.arange(8 * 7 * 3) * 37 % 256).astype(np.uint8).reshape(8, 7, 3)
    assert resize(image, 5, 3)[..., 0].tolist() == [
        [30, 185, 84, 137, 139],
        [54, 132, 109, 162, 163],
        [78, 79, 132, 185, 187],
    ]


def test_the_same_size_is_the_same_image() -> None:
    image = noise(340, 256)
    np.testing.assert_array_equal(resize(image, 340, 256), image)


def test_nothing_but_the_four_nearest_counts() -> None:
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[::3, ::5] = 255
    assert resize(image, 340, 256).std() > 35  # a filter that averages gives a flat picture


def test_rows_with_padding_are_taken_as_they_are() -> None:
    padded = noise(128, 90)
    np.testing.assert_array_equal(resize(padded[:, :101], 64, 48), resize(padded[:, :101].copy(), 64, 48))
