from __future__ import annotations

import threading
import time
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
from vadrun.live import DELAY, Metrics, run_live
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
        self.reports: list[tuple[int, Metrics]] = []

    def provisional(self, camera: int, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        assert (camera, index) not in self.first
        self.first[camera, index] = anomaly

    def final(self, camera: int, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        assert (camera, index) in self.first and (camera, index) not in self.last
        self.last[camera, index] = anomaly

    def event(self, camera: int, event: Event) -> None:
        self.events.append(event)

    def metrics(self, camera: int, metrics: Metrics) -> None:
        self.reports.append((camera, metrics))

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


def shorten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the engine a head of 4 positions; what comes back fills with the lengths it is given."""
    bundle, real = engine.bundle, engine.backend.head
    seen: list[int] = []

    def head(features: Any, lengths: Any, text: Any) -> Any:
        padded = np.zeros((len(features), bundle.model.positions, features.shape[2]), np.float32)
        padded[:, : features.shape[1]] = features
        logits, alignment = real(padded, lengths, text)
        seen.extend(lengths)
        return logits[:, :4], alignment[:, :4]

    monkeypatch.setattr(engine.backend, "head", head)
    monkeypatch.setattr(engine, "bundle", replace(bundle, model=replace(bundle.model, positions=4)))
    return seen


def test_full_chunks_are_final_before_the_end(
    engine: Engine, films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a head of 4 positions, nine snippets are two full chunks and one that the end fills."""
    seen = shorten(engine, monkeypatch)
    sink = Kept()
    run_live(engine, films[:1], EventRule(), sink)
    assert sorted(index for _, index in sink.last) == list(range(9))
    assert max(seen) == 4 and seen.count(4) >= 2


def test_the_head_waits_as_long_as_it_says(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score comes within the stated bound, and one call of the head is for several snippets."""
    films = [clips.write_clip(tmp_path / f"{n}.mp4", 16 * 30, rate=RATE) for n in range(2)]  # 4 s
    longest = {"encode": 0.0, "score_chunks": 0.0}
    passes = 0

    def timed(name: str) -> None:
        real = getattr(engine, name)

        def call(argument: Any) -> Any:
            nonlocal passes
            began = time.monotonic()
            found = real(argument)
            longest[name] = max(longest[name], time.monotonic() - began)
            if name == "score_chunks":
                passes += len(argument)
            return found

        monkeypatch.setattr(engine, name, call)

    timed("encode")
    timed("score_chunks")
    cameras = run_live(engine, films, EventRule())
    assert [camera.scored for camera in cameras] == [30, 30]
    bound = DELAY + longest["encode"] + longest["score_chunks"]
    assert max(delay for camera in cameras for delay in camera.delays) <= bound + 0.5
    # Each of the two is scored once in DELAY seconds, and at its end; they last 4 s.
    assert 2 * 2 <= passes <= 2 * (4 / DELAY + 2)


def test_no_score_waits_where_nothing_can_come_in_time(engine: Engine, tmp_path: Path) -> None:
    slow = clips.write_clip(tmp_path / "slow.mp4", 16 * 3, rate=10)  # a snippet lasts 1.6 s
    (camera,) = run_live(engine, [slow], EventRule())
    # Without waiting for the head it takes WAIT seconds and little more.
    assert camera.scored == 3 and min(camera.delays) < DELAY - 0.5


@pytest.mark.parametrize("shadow", [False, True])
def test_metrics_tell_what_the_gate_costs(
    engine: Engine, films: list[Path], monkeypatch: pytest.MonkeyPatch, shadow: bool
) -> None:
    shorten(engine, monkeypatch)
    monkeypatch.setattr("vadrun.live.METRICS", 0.1)
    sink = Kept()
    cameras = run_live(engine, films[:2], EventRule(), sink, GateRule(audit=0.5, shadow=shadow))
    assert {camera for camera, _ in sink.reports} == {0, 1}
    reports = [metrics for camera, metrics in sink.reports if camera == 0]
    assert len(reports) >= 4
    scored = [metrics.scored for metrics in reports]
    assert scored == sorted(scored) and scored[-1] <= 9
    assert reports[-1].delay is not None and reports[-1].seconds > 0
    gates = [metrics.gate for metrics in reports if metrics.gate is not None]
    assert len(gates) == len(reports)
    # The first chunk is full after half of the film: there are figures before its end.
    whole = gates[-1]
    assert whole["snippets"] in (4, 8) and gates[0]["snippets"] == 0
    if shadow:
        assert whole["score_error"]["mean"] >= 0 and whole["events_missed"]["exact"]
    elif whole["audited"]:
        assert whole["score_error"]["bound"] <= 1 and whole["events_missed"]["confidence"] == 0.95
    assert cameras[0].result is not None and cameras[0].result.gate is not None
    assert cameras[0].result.gate["snippets"] == 9


def test_each_camera_may_have_its_own_rule_and_gate(engine: Engine, films: list[Path]) -> None:
    low, high = EventRule(threshold=0.01, min_length=0), EventRule(threshold=1.0, min_length=0)
    with_gate, without = run_live(engine, films[:2], [low, high], gate=[GateRule(), None])
    assert with_gate.result is not None and without.result is not None
    assert with_gate.result.events and not without.result.events
    assert with_gate.result.gate is not None and without.result.gate is None
    with pytest.raises(ValueError, match="1 rules or gates for 2 cameras"):
        run_live(engine, films[:2], [low])


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
