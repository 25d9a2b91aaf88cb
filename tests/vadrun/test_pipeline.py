from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadrun import Engine, EventRule, UserError, Video, VideoResult, feeding, run_video, run_videos
from vadrun.engine import Engine as EngineClass
from vadrun.events import Event, find_events
from vadrun.gate import GateRule
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
    assert told[-1] == (result.end, pytest.approx((16 * 11 + 5) / 25, abs=0.1))
    assert told == sorted(told)


@pytest.mark.parametrize("gate", [None, GateRule(shadow=True)], ids=["plain", "gate"])
def test_a_pause_is_not_scored(engine: Engine, tmp_path: Path, gate: GateRule | None) -> None:
    """Two pieces of four seconds, forty minutes apart; the pause begins within a snippet."""
    times = [index / 25 for index in range(100)] + [2400 + index / 25 for index in range(100)]
    path = clips.write_clip(tmp_path / "clip.mp4", 200, times=times, options={"g": "20"})
    rows = Rows()
    result = run_video(engine, path, EventRule(threshold=1e-6, min_length=0, merge_gap=2), rows, gate=gate)
    assert [(event.start, event.end) for event in result.events] == [
        (0.0, pytest.approx(3.84, abs=0.01)),
        (pytest.approx(2400.0), pytest.approx(2403.84, abs=0.01)),
    ]
    assert result.snippets == 12 and result.seconds == pytest.approx(12 * 0.64, abs=0.02)
    assert result.end == pytest.approx(2403.84, abs=0.01) and result.seen.seconds == pytest.approx(8.0, abs=0.1)
    document = result.to_json(engine, EventRule(), {})
    assert document["seconds"] == round(result.seconds, 3) and document["clock_set_back"] == 0
    (gap,) = document["gaps"]
    assert (gap["start"], gap["end"]) == (pytest.approx(4.0, abs=0.05), 2400.0)
    assert document["gaps_total"] == {"count": 1, "seconds": gap["seconds"]}
    assert "the recording pauses once (from 4.0 s to 2,400.0 s)" in document["note"] and document["damage"] is None


def test_an_error_in_the_sink_ends_the_reader(engine: Engine, clip: Path) -> None:
    class Full(Rows):
        def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_video(engine, clip, EventRule(), Full())
    assert not any(thread.name.startswith("vadrun-reader") for thread in threading.enumerate())


def test_an_error_in_the_reader_comes_out(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snippets(self: Video, *rest: object, **more: object) -> Iterator[Snippet]:
        yield Snippet(0, 0.0, 0.64, np.zeros((1, 64, 64, 3), np.uint8))
        raise UserError("the disk is gone")

    monkeypatch.setattr(Video, "snippets", snippets)
    with pytest.raises(UserError, match="the disk is gone"):
        run_video(engine, clip, EventRule())


def test_batches_hold_snippets_of_several_videos(
    engine: Engine, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven snippets, a bad file, one snippet and eleven more: batches of three are full but for the last."""
    short = clips.write_clip(tmp_path / "short.mp4", 20)
    bad = tmp_path / "bad.mp4"
    bad.write_text("I am text")
    alone = [Rows(), Rows()]
    run_video(engine, clip, EventRule(), alone[0])
    run_video(engine, short, EventRule(), alone[1])
    seen: list[int] = []
    encode_each = EngineClass.encode_each

    def watch(self: Engine, arrays: Iterator[Any]) -> Iterator[Any]:
        for features in encode_each(self, arrays):
            seen.append(len(features))
            yield features

    monkeypatch.setattr(EngineClass, "encode_each", watch)
    monkeypatch.setattr(feeding, "cores", lambda: 3)
    rows = [Rows() for _ in range(4)]
    told: dict[int, float] = {}

    def tell(number: int, done: float, total: float | None) -> None:
        told[number] = done

    outcomes = dict(run_videos(engine, [clip, bad, short, clip], EventRule(), rows.__getitem__, tell))
    assert seen == [3, 3, 3, 3, 3, 3, 3, 2]
    assert sorted(outcomes) == [0, 1, 2, 3]
    error = outcomes.pop(1)
    assert isinstance(error, UserError) and "bad.mp4 cannot be opened" in str(error)
    results = {number: result for number, result in outcomes.items() if isinstance(result, VideoResult)}
    assert {number: result.snippets for number, result in results.items()} == {0: 11, 2: 1, 3: 11}
    assert told == {number: result.end for number, result in results.items()}
    assert all(result.timings.encode > 0 and result.timings.wall > 0 for result in results.values())
    for got, expected in zip(rows, (alone[0], Rows(), alone[1], alone[0]), strict=True):
        assert [row[:3] for row in got.snippets] == [row[:3] for row in expected.snippets]
        np.testing.assert_allclose([r[3] for r in got.snippets], [r[3] for r in expected.snippets], atol=1e-5)


def test_a_sink_that_cannot_be_made_costs_its_video_alone(engine: Engine, clip: Path) -> None:
    rows = Rows()

    def sinks(number: int) -> Rows:
        if number == 0:
            raise UserError("no place for it")
        return rows

    outcomes = dict(run_videos(engine, [clip, clip], EventRule(), sinks))
    assert str(outcomes[0]) == "no place for it"
    assert isinstance(outcomes[1], VideoResult) and len(rows.snippets) == 11


def test_a_sink_that_fails_costs_its_video_alone(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "cores", lambda: 2)
    rows = Rows()

    class Full(Rows):
        def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
            raise UserError("the disk is full")

    outcomes = dict(run_videos(engine, [clip, clip], EventRule(), [Full(), rows].__getitem__))
    assert str(outcomes[0]) == "the disk is full"
    assert isinstance(outcomes[1], VideoResult) and len(rows.snippets) == 11


def test_gated_videos_that_are_read_at_once_are_held_each_by_its_own(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that stand still on different pictures: one holding the other's feature would have its scores."""
    monkeypatch.setattr(feeding, "cores", lambda: 2)
    paths = [
        clips.write_clip(tmp_path / f"{number}.mp4", 16 * 8, draw=lambda _, w, h, n=number: clips.numbered(n, w, h))
        for number in (5, 2999)
    ]
    rule = GateRule(heartbeat=60, audit=1e-9)
    alone, together = [Rows(), Rows()], [Rows(), Rows()]
    for path, rows in zip(paths, alone, strict=True):
        run_video(engine, path, EventRule(), rows, gate=rule)
    for _, result in run_videos(engine, paths, EventRule(), together.__getitem__, gate=rule):
        assert isinstance(result, VideoResult) and result.gate is not None
        assert (result.gate["encoded"], result.gate["gated"]) == (1, 7)
    scores = [[row[3] for row in rows.snippets] for rows in alone]
    assert abs(scores[0][0] - scores[1][0]) > 1e-4
    for got, expected in zip(together, scores, strict=True):
        np.testing.assert_allclose([row[3] for row in got.snippets], expected, atol=1e-5)


def test_whoever_stops_early_stops_the_readers(engine: Engine, clip: Path) -> None:
    outcomes = run_videos(engine, [clip, clip, clip], EventRule())
    next(outcomes)
    outcomes.close()
    assert not any(thread.name.startswith("vadrun-reader") for thread in threading.enumerate())


def still(number: int, width: int, height: int) -> np.ndarray:
    """The same picture until frame 96, another from there on."""
    return clips.numbered(5 if number < 96 else 2999, width, height)


def test_the_gate_holds_what_stands_still(engine: Engine, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "still.mp4", 16 * 12, draw=still)
    plain, gated, shadow = Rows(), Rows(), Rows()
    run_video(engine, path, EventRule(), plain)
    rule = GateRule(heartbeat=60, audit=1e-9)
    result = run_video(engine, path, EventRule(), gated, gate=rule)
    assert result.gate is not None
    assert (result.gate["snippets"], result.gate["encoded"], result.gate["gated"]) == (12, 2, 10)
    assert result.gate["events_missed"] is None  # nothing was audited, and that is said
    assert [row[:3] for row in gated.snippets] == [row[:3] for row in plain.snippets]
    apart = np.abs(np.array([row[3] for row in gated.snippets]) - [row[3] for row in plain.snippets])
    assert apart.max() < 0.02
    result = run_video(engine, path, EventRule(), shadow, gate=replace(rule, shadow=True))
    assert result.gate is not None and (result.gate["encoded"], result.gate["gated"]) == (2, 10)
    # In the shadow everything is scored as without the gate, and what the gate would have done is known exactly.
    np.testing.assert_allclose([r[3] for r in shadow.snippets], [r[3] for r in plain.snippets], atol=1e-6)
    assert result.gate["score_error"]["mean"] == pytest.approx(apart.mean(), abs=2e-6)
    assert result.gate["score_error"]["largest"] == pytest.approx(apart.max(), abs=2e-6)


def test_audits_are_encoded_and_compared(engine: Engine, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "still.mp4", 16 * 12, draw=still)
    plain, gated = Rows(), Rows()
    run_video(engine, path, EventRule(), plain)
    result = run_video(engine, path, EventRule(), gated, gate=GateRule(heartbeat=60, audit=1.0))
    assert result.gate is not None
    assert (result.gate["gated"], result.gate["audited"], result.gate["encoded"]) == (10, 10, 12)
    # Every snippet has its own feature, so scores are those without the gate.
    np.testing.assert_allclose([r[3] for r in gated.snippets], [r[3] for r in plain.snippets], atol=1e-6)
    assert 0 < result.gate["score_error"]["mean"] <= result.gate["score_error"]["bound"] < 1
    assert result.gate["events_missed"]["estimate"] == 0


def test_events_that_the_gate_would_miss_are_counted(engine: Engine, tmp_path: Path) -> None:
    """A threshold of 1 keeps the gate shut, so nothing of the second half is seen."""
    path = clips.write_clip(tmp_path / "still.mp4", 16 * 12, draw=still)
    plain = Rows()
    run_video(engine, path, EventRule(), plain)
    scores = np.array([row[3] for row in plain.snippets])
    shut = GateRule(threshold=1.0, heartbeat=60, audit=1e-9, shadow=True)
    result = run_video(engine, path, EventRule(), gate=shut)
    assert result.gate is not None and result.gate["score_error"]["largest"] > 0
    # Put the event's threshold between what is and what the gate would have made of it.
    held = Rows()
    run_video(engine, path, EventRule(), held, gate=replace(shut, shadow=False))
    between = float((scores.max() + max(row[3] for row in held.snippets)) / 2)
    if scores.max() <= between:
        pytest.skip("this model scores the second half lower")
    rule = EventRule(threshold=between, release=between, min_length=0)
    result = run_video(engine, path, rule, gate=shut)
    assert result.events and result.gate is not None
    assert result.gate["events_missed"] == {"estimate": len(result.events), "exact": True}


def test_the_gate_wants_one_image_a_snippet(engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "bundle", replace(engine.bundle, sampling=Sampling(pick="mean")))
    with pytest.raises(UserError, match="leave out --gate"):
        run_video(engine, clip, EventRule(), gate=GateRule())
