from __future__ import annotations

import av
import numpy as np
import pytest

from tests import clips
from vadrun.backlog import Picture
from vadrun.errors import UserError
from vadrun.gate import Gate, GateRule, LumaGrid, Verdict, changed
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.stillness import Stillness
from vadrun.video import Video

RNG = np.random.default_rng(3)
SMOOTH = Preprocessing()


def scene(rows: int = 28, columns: int = 28) -> np.ndarray:
    """A grid of a plausible picture: slow slopes and a few edges."""
    y, x = np.mgrid[0:rows, 0:columns]
    picture = 90 + 40 * np.sin(x / 9) + 30 * np.cos(y / 7)
    picture[:, 12:] += 25
    return np.asarray(picture, np.float32)


def noisy(picture: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    return np.asarray(picture + RNG.normal(0, sigma, picture.shape), np.float32)


def test_an_equal_picture_has_not_changed() -> None:
    assert changed(scene(), scene()) == 0.0
    assert changed(noisy(scene()), noisy(scene())) < 0.005


def test_the_share_that_has_changed() -> None:
    now = scene()
    now[10:14, 3:8] += 60  # 20 of 784 cells
    assert changed(now, scene()) == pytest.approx(20 / 784, abs=2 / 784)
    assert changed(noisy(now), noisy(scene())) == pytest.approx(20 / 784, abs=6 / 784)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 15.0), (1.15, -8.0), (0.85, 10.0)])
def test_a_light_change_is_no_change_and_hides_none(gain: float, offset: float) -> None:
    lit = gain * scene() + offset
    assert changed(noisy(lit), scene()) < 0.005
    moved = lit.copy()
    moved[4:9, 18:22] -= 50  # 20 cells
    assert changed(noisy(moved), scene()) == pytest.approx(20 / 784, abs=4 / 784)


def test_another_light_altogether_opens_the_gate() -> None:
    assert changed(scene() + 60, scene()) == 1.0
    assert changed(0.7 * scene() - 10, scene()) == 1.0


def test_shaking_is_forgiven_and_a_move_is_not() -> None:
    fine = np.repeat(np.repeat(scene(), 8, 0), 8, 1)
    fine[80:160, 60:70] += 70  # a pole

    def grid(shift: int) -> np.ndarray:
        return np.asarray(np.roll(fine, shift, 1).reshape(28, 8, 28, 8).mean(axis=(1, 3)), np.float32)

    assert changed(grid(1), grid(0)) < 0.01
    assert changed(grid(24), grid(0)) > 0.05


def test_a_flat_picture_has_no_gain() -> None:
    flat = np.full((28, 28), 40, np.float32)
    assert changed(flat + 3, flat) == 0.0


def frame(number: int, size: tuple[int, int] = (320, 240)) -> object:
    return av.VideoFrame.from_ndarray(clips.numbered(number, *size), format="rgb24").reformat(format="yuv420p")


def test_the_grid_is_what_the_encoder_sees() -> None:
    grid = LumaGrid(SMOOTH)(frame(0b101010101010))
    assert grid.shape == (28, 28) and grid.dtype == np.float32
    # The same blocks, by the encoder's own picture.
    image = Preprocessor(SMOOTH)(frame(0b101010101010)).mean(axis=2)
    image = image.reshape(28, 8, 28, 8).mean(axis=(1, 3))
    assert np.corrcoef(grid.ravel(), image.ravel())[0, 1] > 0.95


def test_a_turned_picture_has_a_turned_grid(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    grids = []
    for rotation in (0, 90, 180, 270):
        with Video(clips.write_clip(tmp_path / f"{rotation}.mp4", 1, rotation=rotation)) as video:
            grids.append(LumaGrid(SMOOTH)(next(video.frames()).frame))
    for grid in grids[1:]:
        assert np.corrcoef(grids[0].ravel(), grid.ravel())[0, 1] > 0.95


def verdicts(numbers: list[int], rule: GateRule, step: float = 0.5) -> list[Verdict]:
    converted: list[object] = []

    def convert(frame: object) -> np.ndarray:
        converted.append(frame)
        return np.zeros((224, 224, 3), np.uint8)

    gate = Gate(rule, SMOOTH, convert)
    found = []
    for at, number in enumerate(numbers):
        gate.passes(frame(number), at * step)
        looked = gate(frame(number))
        assert (looked.image is None) == (looked.verdict is Verdict.HOLD and not rule.shadow)
        found.append(looked.verdict)
    assert len(converted) == sum(rule.shadow or verdict is not Verdict.HOLD for verdict in found)
    return found


ENCODE, HOLD, AUDIT = Verdict.ENCODE, Verdict.HOLD, Verdict.AUDIT


@pytest.mark.parametrize("shadow", [False, True])
def test_the_first_and_what_changes_is_encoded(shadow: bool) -> None:
    rule = GateRule(audit=1e-9, shadow=shadow)
    assert verdicts([1, 1, 1, 7, 7, 1], rule) == [ENCODE, HOLD, HOLD, ENCODE, HOLD, ENCODE]


def test_the_heart_beats_in_time() -> None:
    found = verdicts([1] * 10, GateRule(heartbeat=1.5, audit=1e-9))
    assert found == [ENCODE, HOLD, HOLD, ENCODE, HOLD, HOLD, ENCODE, HOLD, HOLD, ENCODE]
    # A step that would end after the beat is not waited for.
    assert verdicts([1] * 5, GateRule(heartbeat=1.2, audit=1e-9)) == [ENCODE, HOLD, ENCODE, HOLD, ENCODE]
    assert verdicts([1] * 3, GateRule(heartbeat=0.1)) == [ENCODE] * 3


def test_audits_are_drawn_by_chance_and_again_the_same() -> None:
    rule = GateRule(audit=0.3, heartbeat=1e6)
    found = verdicts([1] * 200, rule)
    assert found == verdicts([1] * 200, rule)
    assert found != verdicts([1] * 200, GateRule(audit=0.3, heartbeat=1e6, seed=1))
    assert 35 <= found.count(AUDIT) <= 85 and found.count(ENCODE) == 1


def test_a_slow_change_adds_up() -> None:
    """It is compared with what was encoded, not with the frame before."""
    gate = Gate(GateRule(audit=1e-9, heartbeat=1e6), SMOOTH, lambda frame: np.zeros((224, 224, 3), np.uint8))
    found = []
    for at in range(8):
        grid = scene()
        grid[5:12, 5:12] += 2.0 * at
        gate.passes(frame(0), float(at))
        found.append(gate._judge(grid, True))
    assert found.count(ENCODE) >= 2 and found[1] is HOLD


class Undecoded(Picture):
    """A picture of a camera that sees nothing move, and whether somebody has looked at it."""

    def __init__(self, number: int, *, is_key: bool = False) -> None:
        self.number, self.is_key, self.kind, self.size, self.looked = number, is_key, (1, False), 100, False

    def frame(self) -> av.VideoFrame:
        self.looked = True
        return frame(self.number)  # type: ignore[return-value]


class Still(Stillness):
    """Packets whose sizes never say that anything moves."""

    def still(self) -> bool:
        return True


def looks(numbers: list[int], step: float = 0.5) -> list[bool]:
    """Which of the sampled pictures are looked at."""
    rule = GateRule(audit=1e-9, heartbeat=1e6)
    gate = Gate(rule, SMOOTH, lambda frame: np.zeros((224, 224, 3), np.uint8), Still(320, 240))
    found = []
    for at, number in enumerate(numbers):
        picture = Undecoded(number)
        gate.passes(picture, at * step)
        assert gate(picture).unseen is not picture.looked
        gate.passed(picture)
        found.append(picture.looked)
    return found


def test_sizes_are_trusted_behind_four_looks_and_for_two_and_a_half_seconds() -> None:
    """Encoded, four looks, then five pictures within 2.5 s unseen, and a look again."""
    unseen = [False] * 5
    assert looks([1] * 17) == [True] * 5 + unseen + [True] + unseen + [True]


def test_a_change_takes_four_more_looks() -> None:
    """The eleventh, which is looked at again, shows another scene: it is encoded."""
    found = looks([1] * 10 + [7] * 11)
    assert found == [True] * 5 + [False] * 5 + [True] * 5 + [False] * 5 + [True]


def test_pictures_further_apart_are_all_looked_at() -> None:
    assert looks([1] * 12, step=2.5) == [True] * 5 + [False, True] * 3 + [False]
    assert looks([1] * 12, step=2.6) == [True] * 12


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"heartbeat": 0}, "heartbeat is 0 s"),
        ({"heartbeat": float("inf")}, "heartbeat is inf s"),
        ({"audit": 0.0}, "audit is 0"),
        ({"audit": 1.5}, "audit is 1.5"),
    ],
)
def test_values_that_are_not_allowed(values: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        GateRule(**values)  # type: ignore[arg-type]
