"""The gate's numbers one by one: what counts as changed, the light, the grid, and when sizes are trusted."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest

from vadrun.backlog import Picture
from vadrun.gate import Gate, GateRule, Looked, LumaGrid, Verdict, _gradient, _light, _quantile, changed
from vadrun.preprocessing import Preprocessing
from vadrun.stillness import Stillness

SMALL = Preprocessing.for_size(64)
ENCODE, HOLD, AUDIT = Verdict.ENCODE, Verdict.HOLD, Verdict.AUDIT


def ramp(step: float = 8.0) -> np.ndarray:
    """Rises from left to right by so many levels a cell."""
    return np.asarray(np.tile(np.arange(28) * step, (28, 1)), np.float32)


def with_one(grid: np.ndarray, more: float, at: tuple[int, int] = (14, 14)) -> np.ndarray:
    """The same with one cell brighter."""
    grid = grid.copy()
    grid[at] += more
    return grid


# -- what counts as changed


def cells(now: np.ndarray, held: np.ndarray) -> int:
    """How many have changed."""
    return round(changed(now, held) * now.size)


def test_a_cell_has_changed_beyond_five_levels() -> None:
    flat = np.full((28, 28), 100, np.float32)
    assert [cells(with_one(flat, more), flat) for more in (5.0, 5.1, -5.0, -5.1)] == [0, 1, 0, 1]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_quarter_of_the_steeper_slope_is_forgiven(transposed: bool) -> None:
    """Eight levels a cell either way, in the picture that was encoded: two levels more."""
    held = ramp().T if transposed else ramp()
    assert [cells(with_one(held, more), held) for more in (6.9, 7.1)] == [0, 1]
    flat = np.full((28, 28), 108, np.float32)
    stripes = flat.copy()
    stripes[10:18, 14] += 20  # the slopes of what is new are not forgiven
    assert cells(stripes, flat) == 8


def test_three_deviations_of_the_noise_are_forgiven_up_to_two_levels() -> None:
    flat = np.full((28, 28), 100, np.float32)
    signs = np.where(np.indices((28, 28)).sum(0) % 2, 1.0, -1.0).astype(np.float32)
    signs[14, 14] = 0  # the cell that is looked at
    noisy = flat + signs  # a median of 1: a deviation of 1.48, and 9.45 levels in all
    assert [cells(with_one(noisy, more), flat) for more in (9.3, 9.6)] == [0, 1]
    noisier = flat + 3 * signs  # 4.45 of deviation, of which 2 are believed
    assert [cells(with_one(noisier, more), flat) for more in (10.8, 11.2)] == [0, 1]


def test_a_light_that_shifts_mid_grey_by_more_than_thirty_levels_is_another_scene() -> None:
    flat = np.full((28, 28), 100, np.float32)
    assert [changed(flat + more, flat) for more in (30.0, -30.0, 30.1, -30.1)] == [0.0, 0.0, 1.0, 1.0]
    held = ramp(6.0) + 20
    assert changed(1.3 * held - 38.4, held) == 0.0  # a gain about mid-grey
    assert changed(1.3 * held - 38.4 - 29, held) == 0.0 and changed(1.3 * held - 38.4 - 31, held) == 1.0
    assert changed(1.3 * held - 38.4 + 29.8, held) == 0.0 and changed(1.3 * held - 38.4 + 30.2, held) == 1.0
    assert changed(0.8 * held + 25.6 + 29, held) == 0.0 and changed(0.8 * held + 25.6 + 31, held) == 1.0


# -- the light


def test_the_light_is_the_line_through_the_cells_that_fit() -> None:
    """A fifth of the picture is hidden by something bright, and counts for nothing in the end."""
    held = ramp(5.0)
    now = 1.2 * held - 15
    assert _light(now, held) == pytest.approx((1.2, -15.0), abs=1e-3)
    now[:, 2:7] = 250
    assert _light(now, held) == pytest.approx((1.2, -15.0), abs=0.8)


def test_the_light_is_fitted_twice() -> None:
    """By least squares to all cells, and to the three quarters that this fits best."""
    held = ramp(5.0)
    now = np.asarray(1.1 * held - 8 + np.random.default_rng(6).normal(0, 6, held.shape), np.float32)
    x, y = held.ravel().astype(np.float64), now.ravel().astype(np.float64)
    slope, offset = np.polyfit(x, y, 1)
    off = np.abs(y - slope * x - offset)
    kept = off <= np.sort(off)[int(0.75 * (off.size - 1))]
    assert _light(now, held) == pytest.approx(tuple(np.polyfit(x[kept], y[kept], 1)), abs=1e-3)


@pytest.mark.parametrize(
    ("times", "gain"), [(1.39, 1.39), (1.5, 1.4), (3.0, 1.4), (0.71, 0.71), (0.5, 0.7), (-1.0, 0.7)]
)
def test_a_gain_is_bounded_and_the_rest_is_offset(times: float, gain: float) -> None:
    held = ramp(4.0)
    found, offset = _light(times * held + 10, held)
    assert found == pytest.approx(gain, abs=1e-4)
    if found == pytest.approx(times, abs=1e-4):
        assert offset == pytest.approx(10.0, abs=1e-2)


def test_a_gain_wants_contrast() -> None:
    """Five levels of deviation are not enough, six are."""
    signs = np.where(np.indices((28, 28)).sum(0) % 2, 1.0, -1.0).astype(np.float32)
    assert _light(1.2 * (100 + 5 * signs), 100 + 5 * signs) == pytest.approx((1.0, 20.0), abs=1e-3)
    assert _light(1.2 * (100 + 5.05 * signs), 100 + 5.05 * signs) == pytest.approx((1.2, 0.0), abs=1e-3)
    assert _light(1.2 * (100 + 6 * signs), 100 + 6 * signs) == pytest.approx((1.2, 0.0), abs=1e-3)


def test_a_quantile_is_one_of_the_values() -> None:
    values = np.random.default_rng(2).permutation(101).astype(np.float32)
    assert [_quantile(values, share) for share in (0.0, 0.5, 0.75, 1.0)] == [0, 50, 75, 100]
    assert _quantile(values.reshape(1, 101), 0.755) == 75
    assert _quantile(np.array([3, 1], np.float32), 0.5) == 1


def test_the_gradient_is_that_of_the_steeper_way() -> None:
    y, x = np.mgrid[0:5, 0:6].astype(np.float32)
    found = _gradient(3 * x - 2 * y)
    assert found.dtype == np.float32 and found.shape == (5, 6)
    np.testing.assert_array_equal(found[:, 1:-1], 3)
    np.testing.assert_array_equal(found[1:-1, [0, -1]], 2)  # half a slope at the border; the other way is steeper
    np.testing.assert_array_equal(found[[0, 0, -1, -1], [0, -1, 0, -1]], 1.5)
    np.testing.assert_array_equal(_gradient(3 * x - 2 * y), _gradient(2 * y - 3 * x))
    np.testing.assert_array_equal(_gradient((7 * y).T), 7 * np.array([0.5, 1, 1, 1, 0.5]) * np.ones((6, 1)))


# -- the grid


def grey(width: int, height: int, columns: np.ndarray | None = None, rows: np.ndarray | None = None) -> av.VideoFrame:
    """A frame whose luma is that of its columns and rows together."""
    luma = np.zeros((height, width)) + (0 if columns is None else columns[None, :])
    luma += 0 if rows is None else rows[:, None]
    return av.VideoFrame.from_ndarray(luma.astype(np.uint8), format="gray")


@pytest.mark.parametrize(
    ("preprocessing", "rows", "columns"),
    [  # of 32 by 42 or 43 cells that are 8 by 8 pixels of 340x256; of 9 by 12 of 97x73
        (Preprocessing(), (2, 30), (7, 35)),
        (Preprocessing(crop="top-left"), (0, 28), (0, 28)),
        (Preprocessing(crop="bottom-right"), (4, 32), (14, 42)),
        (SMALL, (0, 9), (1, 10)),
        (Preprocessing(resize=(8, 8), size=8), (0, 1), (0, 1)),
        (Preprocessing(resize=(3, 3), size=2), (0, 1), (0, 1)),
    ],
)
def test_the_grid_has_the_cells_that_the_crop_touches(
    preprocessing: Preprocessing, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    width, height = (max(round(side / 8), 1) for side in preprocessing.resize)
    found = LumaGrid(preprocessing)(grey(width * 10, height * 10, np.repeat(np.arange(width) * 5, 10)))
    assert found.dtype == np.float32 and found.shape == (rows[1] - rows[0], columns[1] - columns[0])
    np.testing.assert_allclose(found, np.tile(np.arange(*columns) * 5, (len(found), 1)), atol=1)
    found = LumaGrid(preprocessing)(grey(width * 10, height * 10, None, np.repeat(np.arange(height) * 7, 10)))
    np.testing.assert_allclose(found, np.tile(np.arange(*rows)[:, None] * 7, (1, found.shape[1])), atol=1)


def test_the_grid_of_colours_is_their_luma() -> None:
    colours = np.zeros((256, 340, 3), np.uint8) + np.array([200, 90, 30], np.uint8)
    grid = LumaGrid(Preprocessing())(av.VideoFrame.from_ndarray(colours, format="rgb24"))
    assert grid.shape == (28, 28)
    np.testing.assert_allclose(grid, 0.299 * 200 + 0.587 * 90 + 0.114 * 30, atol=8)


def test_a_cell_is_the_mean_of_all_of_its_pixels() -> None:
    """Stripes that are finer than a cell leave no trace."""
    grid = LumaGrid(Preprocessing())(grey(420 * 3, 320 * 3, np.tile([0.0, 200.0], 630)))
    np.testing.assert_allclose(grid, 100, atol=3)


# -- what the gate does in time


class Sizes(Stillness):
    """Notes what it is told; trusts or does not, as it is bid."""

    def __init__(self) -> None:
        super().__init__(320, 240)
        self.told: list[Any] = []
        self.trusted = True

    def add(self, kind: Any, size: int) -> None:
        self.told.append((kind, size))

    def unknown(self) -> None:
        self.told.append("unknown")

    def begin(self, *, unchanged: bool) -> None:
        self.told.append(unchanged)

    def still(self) -> bool:
        return self.trusted


class Place(Picture):
    """A picture of one grey, and whether somebody has looked at it."""

    def __init__(self, grey: int = 100, *, key: bool = False, size: int = 50) -> None:
        self.grey, self.is_key, self.kind, self.size, self.looked = grey, key, (1, False), size, False

    def frame(self) -> av.VideoFrame:
        self.looked = True
        return av.VideoFrame.from_ndarray(np.full((73, 97), self.grey, np.uint8), format="gray")


class Camera:
    """A gate, and pictures that pass it."""

    def __init__(self, rule: GateRule | None = None, sizes: Sizes | None = None) -> None:
        self.sizes = sizes or Sizes()
        self.gate = Gate(rule or GateRule(audit=1e-9, heartbeat=1e6), SMALL, self.convert, self.sizes)

    def convert(self, frame: av.VideoFrame) -> Any:
        return np.full((64, 64, 3), frame.to_ndarray()[0, 0], np.uint8)

    def shows(self, picture: Place, time: float, *, sampled: bool = True) -> Looked | None:
        self.gate.passes(picture, time)
        looked = self.gate(picture) if sampled else None
        self.gate.passed(picture)
        return looked

    def calms(self, count: int = 5, step: float = 0.5) -> float:
        """Show so many equal pictures that sizes are trusted; the time of the last."""
        for at in range(count):
            self.shows(Place(), at * step)
        return (count - 1) * step


def test_sizes_are_told_of_every_picture_but_the_key_ones() -> None:
    camera = Camera()
    camera.shows(Place(size=70), 0.0, sampled=False)
    camera.shows(Place(key=True), 0.1, sampled=False)
    camera.gate.passes(av.VideoFrame(16, 16, "yuv420p"), 0.2)
    assert camera.sizes.told == [((1, False), 70), "unknown"] and camera.gate.now == 0.2
    without = Gate(GateRule(), SMALL, camera.convert)
    without.passes(Place(), 0.3)
    assert without.now == 0.3


def test_a_span_teaches_sizes_if_looks_at_both_ends_agree() -> None:
    camera = Camera()
    camera.shows(Place(100), 0.0)  # encoded: nothing to compare with
    camera.shows(Place(100), 0.5)
    camera.shows(Place(200), 1.0)  # another: encoded
    camera.shows(Place(200), 1.5)
    told = [what for what in camera.sizes.told if not isinstance(what, tuple)]
    assert told == [True, False, True]
    assert not camera.gate.moving
    camera.shows(Place(20), 2.0)
    assert camera.gate.moving
    # A span that begins with a picture that nobody has looked at teaches nothing.
    camera = Camera()
    at = camera.calms()
    camera.sizes.told.clear()
    looked = camera.shows(Place(), at + 0.5)
    assert looked == Looked(None, HOLD, True) and camera.sizes.told == [((1, False), 50), False]
    camera.sizes.trusted = False
    camera.shows(Place(), at + 1.0)
    camera.shows(Place(), at + 1.5)
    assert [what for what in camera.sizes.told if not isinstance(what, tuple)] == [False, False, True]


def test_a_change_at_a_key_picture_teaches_nothing_until_the_next_look() -> None:
    """It is not encoded, so the span behind it did not begin with a picture that is as the encoded one."""
    camera = Camera()
    camera.shows(Place(100), 0.0)
    camera.shows(Place(200, key=True), 0.5, sampled=False)
    camera.shows(Place(100), 1.0)
    camera.shows(Place(100), 1.5)
    assert [what for what in camera.sizes.told if not isinstance(what, tuple)] == [False, False, True]


def test_the_share_that_opens_the_gate_is_more_than_the_threshold() -> None:
    """Two of the 81 cells of the grid."""
    held = np.full((9, 9), 100, np.float32)
    now = held.copy()
    now[4, 4:6] += 50
    for threshold, verdict in ((2 / 81, HOLD), (2 / 81 - 1e-6, ENCODE), (0.0, ENCODE), (1.0, HOLD)):
        gate = Gate(GateRule(threshold, audit=1e-9), SMALL, lambda frame: np.zeros((64, 64, 3), np.uint8))
        assert [gate._judge(held, True), gate._judge(now, True)] == [ENCODE, verdict]
        assert gate._judge(held, False) is ENCODE  # the heart beats


def test_what_is_encoded_is_the_picture_and_what_is_held_is_none() -> None:
    camera = Camera()
    first, second = camera.shows(Place(100), 0.0), camera.shows(Place(100), 0.5)
    assert first is not None and first.verdict is ENCODE and not first.unseen
    assert first.image is not None and (first.image == 100).all()
    assert second == Looked(None, HOLD, False)
    shadow = Camera(GateRule(audit=1e-9, heartbeat=1e6, shadow=True))
    shadow.calms()
    looked = shadow.shows(Place(103), 2.5)
    assert looked is not None and looked.image is not None
    assert (looked.verdict, looked.unseen) == (HOLD, True) and (looked.image == 103).all()


def test_an_audit_of_what_nobody_looked_at_is_a_look() -> None:
    """The picture becomes the one that later ones are compared with, and its age counts from now."""
    camera = Camera(GateRule(audit=1.0, heartbeat=1e6))
    at = camera.calms()
    camera.sizes.told.clear()
    looked = camera.shows(Place(104), at + 0.5)
    assert looked is not None and (looked.verdict, looked.unseen) == (AUDIT, True)
    assert looked.image is not None and (looked.image == 104).all()
    assert camera.sizes.told == [((1, False), 50), True]
    assert camera.gate._held is not None and (camera.gate._held == 104).all()
    assert (camera.gate._encoded, camera.gate._seen) == (at + 0.5, at + 0.5) and camera.gate._from_look
    # One that has changed takes the trust away.
    camera.shows(Place(200), at + 1.0)
    assert camera.gate.moving and (camera.gate._held == 200).all()


def test_a_heart_that_beats_looks_and_learns() -> None:
    camera = Camera(GateRule(audit=1e-9, heartbeat=2.5))
    assert camera.calms() == 2.0
    looked = camera.shows(Place(), 2.5)
    assert looked is not None and (looked.verdict, looked.unseen) == (ENCODE, False)
    assert camera.gate._calm == 5 and not camera.gate.moving  # it was looked at once, not twice


# -- key pictures


def test_a_key_picture_is_looked_at_unless_the_next_one_comes_in_time() -> None:
    """Sizes are trusted for two and a half seconds: at a key picture each second every second one will do."""
    camera = Camera()
    keys = []
    for at in range(40):
        picture = Place(key=at % 4 == 0)
        camera.shows(picture, at * 0.25, sampled=at % 2 == 1)
        if picture.is_key:
            keys.append(picture.looked)
    # The first comes before anything is encoded. Looks are at 0.25 (encoded), 0.75, 1 (key), 1.25, 1.75, and 4 (key).
    assert keys == [False, True, False, False, True, False, True, False, True, False]


def test_the_first_key_picture_and_those_of_one_moment_are_not_looked_at() -> None:
    camera = Camera()
    first = Place(key=True)
    camera.shows(first, 0.0, sampled=False)
    assert not first.looked  # nothing has been encoded
    camera.shows(Place(), 0.5)
    camera.sizes.told.clear()
    sampled = Place(key=True)
    camera.shows(sampled, 1.0)  # looked at as a sampled one, and not again
    assert camera.sizes.told == [True] and camera.gate._calm == 1
    camera.shows(Place(), 1.5, sampled=False)
    later = Place(key=True)
    camera.shows(later, 2.0, sampled=False)
    assert later.looked and camera.gate._calm == 2
    camera.shows(Place(), 2.5, sampled=False)
    camera.shows(last := Place(), 3.0, sampled=False)
    assert not last.looked  # no key picture


def test_a_key_picture_is_looked_at_where_sizes_are_not_trusted() -> None:
    camera = Camera()
    camera.shows(Place(key=True), 0.0, sampled=False)
    for at in range(1, 7):
        camera.shows(Place(), 0.1 * at)
    camera.sizes.trusted = False
    camera.shows(key := Place(key=True), 0.8, sampled=False)  # the next one in 0.8 s would be in time
    assert key.looked
    camera.sizes.trusted = True
    camera.shows(key := Place(key=True), 1.6, sampled=False)
    assert not key.looked
    camera.shows(key := Place(key=True), 2.5, sampled=False)  # 1.7 s since the look, and 0.9 to the next one
    assert key.looked


def test_the_next_key_picture_may_come_at_the_last_moment() -> None:
    """A look at 1 s, a key picture at 1.75 and the next one 1.75 later: 2.5 s in all; and a tick more is too late."""
    for first, looked in ((0.0, False), (-0.001, True)):
        camera = Camera()
        camera.shows(Place(key=True), first, sampled=False)
        for at in range(5):
            camera.shows(Place(), 0.2 * at + 0.2)
        camera.shows(key := Place(key=True), 1.75, sampled=False)
        assert key.looked is looked


# -- the heartbeat's choice of a picture


def beats(key_every: int, heartbeat: float, count: int = 80) -> list[int]:
    """Which of the pictures, of four a second, every second of which is sampled, are encoded."""
    camera = Camera(GateRule(audit=1e-9, heartbeat=heartbeat))
    found = []
    for at in range(count):
        looked = camera.shows(Place(key=at % key_every == 0), at * 0.25, sampled=at % 2 == 1)
        if looked is not None and looked.verdict is ENCODE:
            found.append(at)
    return found


def test_the_heart_beats_with_the_picture_behind_a_key_one() -> None:
    """Once the scene is calm: the last such one in time, where key pictures come at twice the pace of the beat."""
    # A key picture each second: those behind one are 1, 5, 9, ... The beat is due at 4 s, 16 pictures.
    assert beats(4, 4.0) == [1, 13, 25, 37, 49, 61, 73]
    assert beats(4, 5.0) == [1, 17, 33, 49, 65]
    # Key pictures each two seconds, a beat of four: half of it, and no more.
    assert beats(8, 4.0) == [1, 9, 17, 25, 33, 41, 49, 57, 65, 73]
    # Rarer ones do not hasten it.
    assert beats(8, 3.5) == [1, 15, 29, 43, 57, 71]
    assert beats(1000, 4.0) == [1, 17, 33, 49, 65]
    # Half a second more than a beat that ends behind a key picture: pictures that are not behind one do not end it.
    assert beats(4, 4.75) == [1, 17, 33, 49, 65]


@pytest.mark.parametrize("values", [{"threshold": 0.0}, {"threshold": 1.0}, {"audit": 1.0}, {"heartbeat": 0.5}])
def test_the_bounds_of_a_rule_are_allowed(values: dict[str, float]) -> None:
    found = GateRule(seed=3, calibration="abc", **values).to_json()  # type: ignore[arg-type]
    defaults = {"threshold": 0.01, "heartbeat": 10.0, "audit": 0.05, "shadow": False}
    assert found == {**defaults, **values, "seed": 3, "calibration": "abc"}
