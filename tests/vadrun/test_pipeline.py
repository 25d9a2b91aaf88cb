from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadrun import Engine, EventRule, UserError, Video, run_video
from vadrun.engine import Engine as EngineClass
from vadrun.events import Event, find_events
from vadrun.pipeline import _Reader
from vadrun.sampling import Sampling
from vadrun.video import Snippet


class Rows:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.snippets: list[tuple[int, float, float, float]] = []
        self.classes: list[np.ndarray] = []
        self.events: list[Event] = []

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        self.snippets.append((index, start, end, anomaly))
        self.classes.append(np.array(classes))

    def event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def engine(bundles: dict[str, Path]) -> Iterator[Engine]:
    with Engine.load(bundles["xd"], "onnxruntime", batch=3) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 16 * 11 + 5)


def by_hand(engine: Engine, clip: Path) -> Any:
    """The same numbers one after the other, without the pipeline."""
    with Video(clip) as video:
        snippets = list(video.snippets(engine.bundle.sampling, engine.bundle.preprocessing))
    features = np.stack([engine.encode(s.images).mean(axis=0) for s in snippets])
    return snippets, engine.score(features)


def test_the_pipeline_gives_what_the_steps_give(engine: Engine, clip: Path) -> None:
    snippets, scores = by_hand(engine, clip)
    middle = float(np.median(scores.anomaly))
    rule = EventRule(threshold=middle, release=0.99 * middle, min_length=0, merge_gap=0)
    rows = Rows()
    result = run_video(engine, clip, rule, rows)
    assert result.snippets == len(snippets) == len(rows.snippets) == 11
    assert [row[:3] for row in rows.snippets] == [(s.index, s.start, s.end) for s in snippets]
    np.testing.assert_allclose([row[3] for row in rows.snippets], scores.anomaly, atol=1e-5)
    np.testing.assert_allclose(rows.classes, scores.alignment, atol=1e-5)
    spans = np.array([(s.start, s.end) for s in snippets])
    expected = find_events(scores.anomaly, scores.alignment, spans, rule, engine.labels)
    assert expected
    assert [(e.start, e.end, e.label) for e in rows.events] == [(e.start, e.end, e.label) for e in expected]
    assert rows.events == result.events
    assert result.peak == pytest.approx(scores.anomaly.max(), abs=1e-5)
    assert result.damage is None and result.note is None


def test_chunks_are_scored_as_they_fill(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of 4 positions, 11 snippets are three chunks, scored on their own and in order."""
    bundle = engine.bundle
    monkeypatch.setattr(engine, "bundle", replace(bundle, model=replace(bundle.model, positions=4)))
    seen: list[int] = []
    score = EngineClass.score

    def watch(self: Engine, features: Any) -> Any:
        seen.append(len(features))
        with monkeypatch.context() as patch:
            patch.setattr(self, "bundle", bundle)
            return score(self, features)

    monkeypatch.setattr(EngineClass, "score", watch)
    rows = Rows()
    run_video(engine, clip, EventRule(), rows)
    assert seen == [4, 4, 3]
    assert [row[0] for row in rows.snippets] == list(range(11))


def test_mean_sampling_averages_features(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "bundle", replace(engine.bundle, sampling=Sampling(pick="mean")))
    rows = Rows()
    run_video(engine, clip, EventRule(), rows)
    _, scores = by_hand(engine, clip)
    np.testing.assert_allclose([row[3] for row in rows.snippets], scores.anomaly, atol=1e-4)


def test_a_video_shorter_than_a_snippet(engine: Engine, tmp_path: Path) -> None:
    result = run_video(engine, clips.write_clip(tmp_path / "short.mp4", 8), EventRule())
    assert result.snippets == 1
    assert result.note is not None and "8 frames" in result.note
    assert result.damage is None


def test_damage_gives_scores_up_to_it(engine: Engine, tmp_path: Path) -> None:
    whole = clips.write_clip(tmp_path / "whole.mp4", 160, container_options={"movflags": "faststart"})
    rows, cut_rows = Rows(), Rows()
    run_video(engine, whole, EventRule(), rows)
    result = run_video(engine, clips.cut(whole, 0.6), EventRule(), cut_rows)
    assert result.damage is not None
    assert 0 < result.snippets < 10
    assert [row[:3] for row in cut_rows.snippets][:-1] == [row[:3] for row in rows.snippets][: result.snippets - 1]


def test_progress_is_told_in_seconds(engine: Engine, clip: Path) -> None:
    told: list[tuple[float, float | None]] = []
    result = run_video(engine, clip, EventRule(), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (result.seconds, pytest.approx((16 * 11 + 5) / 25, abs=0.1))
    assert told == sorted(told)


def test_an_error_in_the_sink_ends_the_reader(engine: Engine, clip: Path) -> None:
    class Full(Rows):
        def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_video(engine, clip, EventRule(), Full())
    assert "vadrun-reader" not in {thread.name for thread in threading.enumerate()}


def test_an_error_in_the_reader_comes_out(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snippets(self: Video, *rest: object) -> Iterator[Snippet]:
        yield Snippet(0, 0.0, 0.64, np.zeros((1, 64, 64, 3), np.uint8))
        raise UserError("the disk is gone")

    monkeypatch.setattr(Video, "snippets", snippets)
    with pytest.raises(UserError, match="the disk is gone"):
        run_video(engine, clip, EventRule())


def test_the_reader_stays_a_bounded_distance_ahead() -> None:
    made = 0

    def snippets() -> Iterator[Snippet]:
        nonlocal made
        for index in range(1000):
            made += 1
            yield Snippet(index, 0.0, 1.0, np.zeros((1, 2, 2, 3), np.uint8))

    with _Reader(snippets(), depth=4) as reader:
        batches = reader.batches(2)
        first = next(batches)
        threading.Event().wait(0.3)  # all the time it wants
        assert made <= 4 + len(first) + 1
    assert made < 1000
