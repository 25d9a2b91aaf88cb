from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests import clips
from vadrun.feeding import ReadAhead
from vadrun.video import Snippet, Video


def test_the_reader_stays_a_bounded_distance_ahead(tmp_path: Path) -> None:
    clip = clips.write_clip(tmp_path / "clip.mp4")
    made = 0

    def snippets(video: Video) -> Iterator[Snippet]:
        nonlocal made
        for index in range(1000):
            made += 1
            yield Snippet(index, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))

    reader = ReadAhead([clip], snippets, depth=4)
    reader.start()
    taken = [reader.get(None) for _ in range(3)]  # that the video begins, and two snippets
    threading.Event().wait(0.3)  # all the time it wants
    assert [type(item).__name__ for item in taken] == ["Opened", "Snippet", "Snippet"]
    assert made <= 2 + 4 + 1
    reader.stop()
    assert made < 1000
