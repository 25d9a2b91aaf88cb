from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from vadrun import decoders, feeding
from vadrun.decoders import SOFTWARE
from vadrun.feeding import Of, ReadAhead, readers
from vadrun.video import Snippet, Video


def counted(tmp_path: Path, each: int) -> tuple[ReadAhead, list[int]]:
    """A reader of many snippets, one of so many with an image, and the numbers of those that it has made."""
    made: list[int] = []

    def snippets(video: Video) -> Iterator[Snippet]:
        for index in range(5000):
            made.append(index)
            yield Snippet(index, 0.0, 1.0, np.zeros((int(index % each == 0), 2, 2, 3), np.uint8))

    return ReadAhead([clips.write_clip(tmp_path / "clip.mp4")], snippets, depth=4), made


def test_the_reader_stays_a_bounded_distance_ahead(tmp_path: Path) -> None:
    reader, made = counted(tmp_path, 1)
    reader.start()
    taken = [reader.get(None) for _ in range(3)]  # that the video begins, and two snippets
    threading.Event().wait(0.3)  # all the time it wants
    assert all(isinstance(item, Of) for item in taken)
    assert [type(item.item).__name__ for item in taken if isinstance(item, Of)] == ["Opened", "Snippet", "Snippet"]
    assert len(made) <= 2 + 4 + 1
    reader.stop()
    assert len(made) < 1000


def test_what_the_gate_holds_does_not_keep_the_reader_waiting(tmp_path: Path) -> None:
    reader, made = counted(tmp_path, 10)
    reader.start()
    for expected in (41, 141):  # four with images, and the fifth is made
        until = time.monotonic() + 20
        while len(made) < expected and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)  # all the time it wants
        assert len(made) == expected
        for _ in range(101 if expected == 41 else 0):  # that the video begins, and ten with images
            reader.get(None)
    reader.stop()


def test_files_are_read_at_once_up_to_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three wait for each other in the middle of their reading, and all come out whole."""
    monkeypatch.setattr(feeding, "cores", lambda: 2)
    paths = [clips.write_clip(tmp_path / f"{name}.mp4", 20) for name in "abc"]
    both = threading.Barrier(2)
    reading: set[str] = set()

    def snippets(video: Video) -> Iterator[Snippet]:
        reading.add(threading.current_thread().name)
        if video.path.stem != "c":
            both.wait(timeout=20)
        for index in range(5):
            yield Snippet(index, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))

    reader = ReadAhead(paths, snippets, depth=4)
    reader.start()
    made: dict[int, list[str]] = {0: [], 1: [], 2: []}
    while isinstance(taken := reader.get(None), Of):
        made[taken.video].append(type(taken.item).__name__)
    reader.stop()
    assert reading == {"vadrun-reader-0", "vadrun-reader-1"}
    assert list(made.values()) == [["Opened", *["Snippet"] * 5, "Closed"]] * 3


def test_how_many_files_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "cores", lambda: 4)
    for kind in (decoders.CudaDecoder, decoders.GstreamerDecoder):
        monkeypatch.setattr(kind, "unavailable", lambda: "is not here")
    assert [readers(files, SOFTWARE) for files in (0, 1, 3, 9)] == [0, 1, 3, 4]
    assert readers(9, "auto") == 4
    monkeypatch.setattr(decoders.CudaDecoder, "unavailable", lambda: None)
    assert [readers(files, "auto") for files in (0, 1, 9)] == [0, 1, 1]
    assert readers(9, SOFTWARE) == 4
    monkeypatch.setattr(feeding, "cores", lambda: 64)
    assert readers(100, SOFTWARE) == feeding.MOST_READERS


def test_what_nobody_wants_is_not_read_on(tmp_path: Path) -> None:
    paths = [clips.write_clip(tmp_path / f"{name}.mp4", 20) for name in "ab"]
    made = 0

    def snippets(video: Video) -> Iterator[Snippet]:
        nonlocal made
        for index in range(1000 if video.path.stem == "a" else 3):
            made += video.path.stem == "a"
            yield Snippet(index, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))

    reader = ReadAhead(paths, snippets, depth=4)
    reader.leave(0)
    reader.start()
    while isinstance(reader.get(None), Of):
        pass
    reader.stop()
    assert made < 10


def test_the_last_file_has_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "cores", lambda: 4)
    paths = [clips.write_clip(tmp_path / f"{name}.mp4", 20) for name in "ab"]
    both, first_is_done = threading.Barrier(2), threading.Event()
    shares: dict[str, list[int]] = {"a": [], "b": []}

    def snippets(video: Video) -> Iterator[Snippet]:
        yield Snippet(0, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))
        assert video.at_once is not None
        both.wait(timeout=20)
        shares[video.path.stem].append(video.at_once())
        both.wait(timeout=20)
        if video.path.stem == "b":
            first_is_done.wait(timeout=20)
            threading.Event().wait(0.2)
            shares["b"].append(video.at_once())

    reader = ReadAhead(paths, snippets, depth=4)
    reader.start()
    while isinstance(made := reader.get(None), Of):
        if made.video == 0 and isinstance(made.item, feeding.Closed):
            first_is_done.set()
    reader.stop()
    assert shares == {"a": [2], "b": [2, 4]}


def test_a_read_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a share that has gone away: whoever stops is not kept waiting for ever."""
    waits = threading.Event()

    def snippets(video: Video) -> Iterator[Snippet]:
        yield Snippet(0, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))
        waits.wait()

    monkeypatch.setattr("vadrun.interrupts.PATIENCE", 0.05)
    reader = ReadAhead([clips.write_clip(tmp_path / "a.mp4", 20)], snippets, depth=4)
    reader.start()
    reader.get(None)
    reader.stop()
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("vadrun-reader")]
    assert thread.daemon  # it does not keep the process, either
    waits.set()
    thread.join()
