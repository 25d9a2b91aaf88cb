from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadrun import Engine, EventRule, run_video
from vadrun.events import Event
from vadrun.gate import GateRule
from vadrun.live import run_live
from vadrun.scoring import Scores
from vadrun.video import Video

RATE = 120  # frames per second, so that a snippet lasts 0.13 s and tests end soon


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.first: dict[tuple[int, int], float] = {}
        self.last: dict[tuple[int, int], float] = {}
        self.rows: list[tuple[int, float, float, float]] = []
        self.events: list[Event] = []

    def provisional(self, camera: int, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        assert (camera, index) not in self.first
        self.first[camera, index] = anomaly

    def final(self, camera: int, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        assert (camera, index) in self.first and (camera, index) not in self.last
        self.last[camera, index] = anomaly

    def event(self, camera: int, event: Event) -> None:
        self.events.append(event)

    # As the sink of a file.
    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        self.rows.append((index, start, end, anomaly))


class Plain(Kept):
    def event(self, event: Any) -> None:  # type: ignore[override]
        self.events.append(event)


@pytest.fixture(scope="module")
def engine(bundles: dict[str, Path]) -> Iterator[Engine]:
    with Engine.load(bundles["xd"], "onnxruntime:cpu", batch=3) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("live")
    return [
        clips.write_clip(folder / f"{n}.mp4", 16 * n, rate=RATE, draw=lambda i, w, h: clips.numbered(i // 40 * 9, w, h))
        for n in (9, 7, 11)
    ]


@pytest.mark.parametrize("gate", [None, GateRule(audit=0.4)])
def test_final_scores_are_those_of_files(engine: Engine, films: list[Path], gate: GateRule | None) -> None:
    middle = EventRule(threshold=0.3, release=0.2, min_length=0)
    sink = Kept()
    cameras = run_live(engine, films, middle, sink, gate)
    for number, (camera, film) in enumerate(zip(cameras, films, strict=True)):
        plain = Plain()
        result = run_video(engine, film, middle, plain, gate=gate)
        assert camera.result is not None and camera.failure is None
        scores = [sink.last[number, index] for index in range(result.snippets)]
        np.testing.assert_allclose(scores, [row[3] for row in plain.rows], atol=1e-5)
        assert [(e.start, e.end, e.label) for e in camera.result.events] == [
            (e.start, e.end, e.label) for e in result.events
        ]
        assert camera.result.gate == result.gate
        assert len(camera.delays) == result.snippets
    assert set(sink.first) == set(sink.last)
    # They are played at their own speed: nothing is scored before it has been shown.
    assert min(delay for camera in cameras for delay in camera.delays) > -0.05


def test_a_first_score_is_that_of_the_video_so_far(engine: Engine, films: list[Path], tmp_path: Path) -> None:
    sink = Kept()
    (camera,) = run_live(engine, films[1:2], EventRule(), sink)
    with Video(films[1]) as video:
        snippets = list(video.snippets(engine.bundle.sampling, engine.bundle.preprocessing))
    features = engine.encode(np.concatenate([s.images for s in snippets]))
    so_far = {n: engine.score(features[:n]).anomaly for n in range(1, len(features) + 1)}
    for (_, index), score in sink.first.items():
        # Which others were there when it was scored depends on the machine; some number of them must fit.
        apart = min(abs(float(so_far[n][index]) - score) for n in so_far if n > index)
        assert apart < 1e-5
    assert camera.result is not None and camera.result.snippets == len(snippets)


def test_chunks_in_one_call_are_chunks_on_their_own(engine: Engine) -> None:
    d = engine.bundle.model.features
    rng = np.random.default_rng(2)
    videos = [rng.standard_normal((n, d)).astype(np.float32) for n in (1, 5, engine.bundle.model.positions)] * 4
    together = engine.score_chunks(videos)
    assert len(together) == 12
    for scores, features in zip(together, videos, strict=True):
        alone = engine.score(features)
        assert isinstance(scores, Scores) and len(scores) == len(features)
        np.testing.assert_allclose(scores.anomaly, alone.anomaly, atol=1e-5)
        np.testing.assert_allclose(scores.alignment, alone.alignment, atol=1e-5)
    assert engine.score_chunks([]) == []


def test_full_chunks_are_final_before_the_end(engine: Engine, films: list[Path], monkeypatch: Any) -> None:
    """With a head of 4 positions, nine snippets are two full chunks and one that the end fills."""
    bundle = engine.bundle
    backend = engine.backend
    seen: list[int] = []

    def head(features: Any, lengths: Any, text: Any) -> Any:
        padded = np.zeros((len(features), bundle.model.positions, features.shape[2]), np.float32)
        padded[:, : features.shape[1]] = features
        logits, alignment = real(padded, lengths, text)
        seen.extend(lengths)
        return logits[:, :4], alignment[:, :4]

    real = backend.head
    monkeypatch.setattr(backend, "head", head)
    monkeypatch.setattr(engine, "bundle", replace(bundle, model=replace(bundle.model, positions=4)))
    sink = Kept()
    run_live(engine, films[:1], EventRule(), sink)
    assert sorted(index for _, index in sink.last) == list(range(9))
    assert max(seen) == 4 and seen.count(4) >= 2


def test_a_camera_that_fails_does_not_stop_the_others(engine: Engine, films: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("I am text")
    cameras = run_live(engine, [bad, films[1]], EventRule())
    assert cameras[0].result is None and "cannot be opened" in str(cameras[0].failure)
    assert cameras[0].delay() is None
    assert cameras[1].result is not None and cameras[1].result.snippets == 7


def test_stopping(engine: Engine, tmp_path: Path) -> None:
    long = clips.write_clip(tmp_path / "long.mp4", 16 * 40, rate=16)  # 40 s
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    (camera,) = run_live(engine, [long], EventRule(), stop=stop)
    assert camera.result is not None and camera.result.snippets <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("vadrun-camera")]


def test_an_error_in_the_sink_comes_out(engine: Engine, films: list[Path]) -> None:
    class Full(Kept):
        def provisional(self, *rest: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_live(engine, films, EventRule(), Full())
    assert not [t for t in threading.enumerate() if t.name.startswith("vadrun-camera")]
