from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from tests.clips import write_clip
from vadrun import pyav
from vadrun.video import Video


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_tags_that_are_not_utf8_are_no_reason_to_refuse_a_file(tmp_path: Path, name: str) -> None:
    """As cameras in Latin-1 or GBK write them; PyAV 14 to 18 would fail, PyAV 19 has no argument for it."""
    path = write_clip(tmp_path / name, prepare=lambda stream: stream.container.metadata.update(title="Eingang_XXXX"))
    data = path.read_bytes()
    assert b"Eingang_XXXX" in data
    path.write_bytes(data.replace(b"Eingang_XXXX", "Eingang_Süd".encode("latin-1") + b"\xff"))
    with pyav.open_input(str(path)) as container:
        assert container.metadata["title"].startswith("Eingang_S")
    with Video(path) as video:
        assert len(list(video.snippets())) == 2


def test_what_is_known_is_a_fraction(tmp_path: Path) -> None:
    with pyav.open_input(str(write_clip(tmp_path / "clip.mp4"))) as container:
        stream = container.streams.video[0]
        base, rate = pyav.fraction(stream.time_base), pyav.fraction(stream.average_rate)
    assert isinstance(base, Fraction) and base > 0
    assert isinstance(rate, Fraction) and rate == 25


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 0), (0, 0)])
def test_what_is_not_known_is_none(numerator: int, denominator: int) -> None:
    """PyAV 19 has 0/1 or a denominator of 0 for it, of which a Fraction cannot be made."""
    assert pyav.fraction(SimpleNamespace(numerator=numerator, denominator=denominator)) is None
    assert pyav.fraction(None) is None


def test_the_newest_pyav_needs_no_argument_for_tags() -> None:
    assert bool(pyav._TAGS) == (int(av.__version__.split(".")[0]) < 19)


def test_the_log_is_turned_off(tmp_path: Path) -> None:
    """As torchvision leaves it; threads that log while their decoder is closed would wait for ever."""
    path = write_clip(tmp_path / "clip.mp4")
    av.logging.set_level(av.logging.ERROR)
    try:
        with Video(path):
            assert av.logging.get_level() is None
    finally:
        av.logging.set_level(None)
