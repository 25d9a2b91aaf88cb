"""What the pipeline makes of what readers and engine give it: stand-ins for both, so that every number is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vadrun import pipeline as module
from vadrun.calibration import Calibration
from vadrun.errors import InternalError, NoMemory, UserError
from vadrun.events import Event, EventRule
from vadrun.feeding import Closed, Encoded, Failed, Opened, Step
from vadrun.gate import GateRule, Verdict
from vadrun.pipeline import Scorer, Timings, VideoResult, as_outcome, run_video, run_videos
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.scoring import Scores
from vadrun.sources import VideoInfo
from vadrun.timeline import Seen
from vadrun.video import Snippet

INFO = VideoInfo("h264", 320, 240, 25.0, 9.0, 225, 0, False, "yuv420p", "bt601", False, None, 0.0)
EMPTY = np.empty((0, 8, 8, 3), np.uint8)
LABELS = ["normal", "odd", "strange"]
Row = tuple[int, float, float, float, list[float]]


class Counted:
    """A clock that goes on by a second whenever somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


class Rows:
    def __init__(self) -> None:
        self.snippets: list[Row] = []
        self.events: list[Event] = []

    def snippet(self, index: int, start: float, end: float, anomaly: float, classes: Any) -> None:
        self.snippets.append((index, start, end, round(anomaly, 6), [round(float(value), 6) for value in classes]))

    def event(self, event: Event) -> None:
        self.events.append(event)


class Machine:
    """An engine whose features are scores: a feature x gives the score x, and x of the first abnormal class."""

    def __init__(self, positions: int = 100) -> None:
        self.batch, self.labels, self.remark, self.why = 3, LABELS, "a remark", "the only one"
        self.scored: list[list[float]] = []
        model = SimpleNamespace(positions=positions, image_size=64, anomaly="confidence", labels=tuple(LABELS))
        self.bundle = SimpleNamespace(
            model=model,
            root=Path("/bundles/door"),
            sha256="abc",
            sampling=Sampling(),
            preprocessing=Preprocessing.for_size(64),
        )
        self.backend = SimpleNamespace(
            name="onnxruntime", device="CPU", precision="float32", library="1.30", encoder_file="encoder.onnx"
        )

    def score(self, features: Any) -> Scores:
        value = np.asarray(features, np.float32)[:, 0]
        self.scored.append([round(float(x), 3) for x in value])
        return Scores(value / 2, np.stack([1 - value, value, value / 4], axis=1), value)


class Reader:
    """A reader that has nothing to read."""

    made: Any = None

    def __init__(self, sources: Any, snippets: Any, depth: int, **rest: Any) -> None:
        self.sources, self.snippets, self.depth, self.rest = sources, snippets, depth, rest
        self.left: set[int] = set()
        self.calls: list[str] = []
        Reader.made = self

    def start(self) -> None:
        self.calls.append("start")

    def leave(self, video: int) -> None:
        self.left.add(video)

    def stop(self) -> None:
        self.calls.append("stop")


def snippet(index: int, verdict: Verdict = Verdict.ENCODE, unseen: bool = False) -> Snippet:
    return Snippet(index, 0.5 * index, 0.5 * index + 0.5, EMPTY, verdict=verdict, unseen=unseen)


def encoded(index: int, own: float, held: float | None = None, **rest: Any) -> Encoded:
    feature = np.array([own], np.float32)
    return Encoded(snippet(index, **rest), feature, feature if held is None else np.array([held], np.float32))


def closed(undecoded: int = 0, damage: str | None = None, note: str | None = None) -> Closed:
    return Closed(damage, note, 7.5, undecoded, Seen(seconds=4.0))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Step]]:
    """What the encoder's steps are; to be filled."""
    steps: list[tuple[int, Step]] = []

    class Scripted:
        made: Any = None

        def __init__(self, engine: Any, reader: Any, *, shadow: bool) -> None:
            assert reader is Reader.made
            self.seconds = {0: 11.0, 1: 12.0}
            Reader.made.encoder, self.engine, self.shadow = self, engine, shadow

        def steps(self) -> Iterator[tuple[int, Step]]:
            yield from steps

    monkeypatch.setattr(module, "Encoder", Scripted)
    monkeypatch.setattr(module, "ReadAhead", Reader)
    monkeypatch.setattr(module, "time", Counted())
    return steps


def machine(positions: int = 100) -> Any:
    return Machine(positions)


RULE = EventRule(threshold=0.5, release=0.4, min_length=0, merge_gap=0)


def test_each_video_has_its_own_scores_events_and_times(script: list[tuple[int, Step]]) -> None:
    engine, sinks = machine(positions=2), [Rows(), Rows()]
    told: list[tuple[int, float, float | None]] = []
    script += [
        (1, Opened(INFO)),  # the clock: 1
        (0, Opened(replace(INFO, duration=None))),  # 2
        (1, encoded(0, 0.1)),
        (0, encoded(0, 0.9)),
        (1, encoded(1, 0.2)),  # scored, 3 to 4
        (1, encoded(2, 0.6)),
        (1, closed(undecoded=5, damage="it ends early", note="it is short")),  # 5 to 6; closed at 7
        (0, encoded(1, 0.1)),  # 8 to 9
        (0, closed()),  # closed at 10
    ]
    outcomes = list(
        run_videos(engine, ["a.mp4", Path("b.mp4")], RULE, sinks.__getitem__, lambda *reached: told.append(reached))
    )
    assert [number for number, _ in outcomes] == [1, 0]
    results: Any = dict(outcomes)
    assert engine.scored == [[0.1, 0.2], [0.6], [0.9, 0.1]]
    assert (results[0].source, results[1].source) == (Path("a.mp4"), Path("b.mp4"))
    assert results[1] == VideoResult(
        Path("b.mp4"),
        INFO,
        snippets=3,
        seconds=1.5,
        end=1.5,
        seen=Seen(seconds=4.0),
        peak=pytest.approx(0.6),
        events=[Event(1.0, 1.5, "odd", pytest.approx(0.6), 1.25, 2, 2)],
        damage="it ends early",
        note="it is short",
        undecoded=5,
        timings=Timings(wall=6.0, decode=7.5, encode=12.0, score=2.0),
    )
    assert results[0].timings == Timings(wall=8.0, decode=7.5, encode=11.0, score=1.0)
    assert (results[0].peak, results[0].damage, results[0].note) == (pytest.approx(0.9), None, None)
    assert results[0].events == [Event(0.0, 0.5, "odd", pytest.approx(0.9), 0.25, 0, 0)] == sinks[0].events
    assert sinks[1].events == results[1].events
    assert sinks[1].snippets == [
        (0, 0.0, 0.5, 0.1, [0.9, 0.1, 0.025]),
        (1, 0.5, 1.0, 0.2, [0.8, 0.2, 0.05]),
        (2, 1.0, 1.5, 0.6, [0.4, 0.6, 0.15]),
    ]
    assert told == [
        (1, 0.5, 9.0), (0, 0.5, None), (1, 1.0, 9.0), (1, 1.5, 9.0), (1, 1.5, 9.0), (0, 1.0, None), (0, 1.0, None),
    ]  # fmt: skip
    assert Reader.made.calls == ["start", "stop"] and not Reader.made.left
    assert Reader.made.encoder.seconds == {}


def test_readers_are_told_what_to_read_and_how(script: list[tuple[int, Step]]) -> None:
    engine = machine()
    assert list(run_videos(engine, ["a.mp4", "b.mp4"], RULE)) == []
    reader = Reader.made
    assert reader.sources == [Path("a.mp4"), Path("b.mp4")] and reader.depth == 6
    assert reader.rest == {"decoder": "software", "stream": None}
    assert reader.encoder.engine is engine and reader.encoder.shadow is False
    asked: list[Any] = []
    video: Any = SimpleNamespace(snippets=lambda *values, **named: asked.append((values, named)))
    for gate, shadow in ((GateRule(), False), (GateRule(shadow=True), True)):
        assert list(run_videos(engine, ["a.mp4"], RULE, gate=gate, decoder="auto", stream=3)) == []
        assert Reader.made.rest == {"decoder": "auto", "stream": 3} and Reader.made.encoder.shadow is shadow
        Reader.made.snippets(video)
        assert asked.pop() == ((engine.bundle.sampling, engine.bundle.preprocessing), {"gate": gate})
    script += [(0, Opened(INFO)), (0, closed())]
    run_video(engine, "a.mp4", RULE, gate=GateRule(shadow=True), decoder="auto", stream=2)
    assert Reader.made.rest == {"decoder": "auto", "stream": 2} and Reader.made.encoder.shadow is True
    assert Reader.made.sources == [Path("a.mp4")] and Reader.made.calls == ["start", "stop"]
    run_video(engine, "a.mp4", RULE)
    assert Reader.made.rest == {"decoder": "software", "stream": None}


def test_without_sinks_results_are_the_same(script: list[tuple[int, Step]]) -> None:
    script += [(0, Opened(INFO)), (0, encoded(0, 0.9, 0.1, verdict=Verdict.AUDIT)), (0, closed(undecoded=3))]
    ((_, result),) = run_videos(machine(), ["a.mp4"], RULE, gate=GateRule(audit=0.5))
    assert isinstance(result, VideoResult) and len(result.events) == 1 and result.gate is not None
    assert (result.gate["audited"], result.gate["pictures_undecoded"]) == (1, 3)


def test_what_fails_costs_its_video_alone(script: list[tuple[int, Step]]) -> None:
    """A file that cannot be opened, one whose sink cannot be made, one whose sink fails, one that breaks off."""
    fault = UserError("no video")

    class Full(Rows):
        def snippet(self, *values: Any) -> None:
            raise UserError("the disk is full")

    def sinks(number: int) -> Rows:
        if number == 1:
            raise UserError("no place")
        return Full() if number == 2 else Rows()

    script += [
        (0, Failed(fault)),
        *((number, Opened(INFO)) for number in (1, 2, 3, 4)),
        *((number, encoded(0, 0.9)) for number in (1, 2, 3, 4)),
        (2, encoded(1, 0.9)),  # its chunk is full: its sink fails
        (2, encoded(2, 0.9)),
        (3, Failed(ValueError("odd"))),
        (3, encoded(1, 0.9)),
        (3, closed()),
        (1, Failed(fault)),  # of a video that was left: nobody is told
        (2, closed()),
        (4, closed()),
    ]
    told: list[int] = []
    outcomes = list(
        run_videos(machine(2), [f"{n}.mp4" for n in range(5)], RULE, sinks, lambda number, *_: told.append(number))
    )
    assert [number for number, _ in outcomes] == [0, 1, 2, 3, 4]
    found: Any = dict(outcomes)
    assert found[0] is fault
    assert (str(found[1]), str(found[2])) == ("no place", "the disk is full")
    assert str(found[3]) == "3.mp4 cannot be read for an internal error, ValueError: odd"
    assert found[4].snippets == 1 and found[4].timings.encode == 0.0
    assert Reader.made.left == {1, 2} and told == [2, 3, 4, 4]


def test_a_sink_that_fails_at_the_end_costs_its_video_as_well(script: list[tuple[int, Step]]) -> None:
    class Full(Rows):
        def event(self, event: Event) -> None:
            raise UserError("the disk is full")

    script += [(0, Opened(INFO)), (0, encoded(0, 0.9)), (0, closed()), (0, closed())]
    ((number, outcome),) = run_videos(machine(), ["a.mp4"], RULE, lambda _: Full())
    assert number == 0 and str(outcome) == "the disk is full" and Reader.made.left == {0}


def test_a_video_that_hardware_gave_up_on_begins_anew(script: list[tuple[int, Step]]) -> None:
    failed: Any = UserError("the card is busy")
    script += [(0, Opened(INFO)), *((0, encoded(index, 0.9)) for index in range(3)), (0, Opened(INFO, failed))]
    script += [*((0, encoded(index, 0.9)) for index in range(5)), (0, closed())]
    made: list[Rows] = []

    def sinks(number: int) -> Rows:
        made.append(Rows())
        return made[-1]

    ((_, result),) = run_videos(machine(2), ["a.mp4"], RULE, sinks)
    assert isinstance(result, VideoResult) and result.again == "the card is busy" and result.snippets == 5
    assert [len(rows.snippets) for rows in made] == [2, 5]
    assert result.timings.wall == 7.0  # since it was opened again
    rows = Rows()  # one video has one sink, which takes nothing twice
    once = run_video(machine(2), "a.mp4", RULE, rows)
    assert [row[0] for row in rows.snippets] == [0, 1, 2, 3, 4] and rows.events == once.events
    assert once.again == "the card is busy"


def test_a_sink_that_cannot_be_made_again_ends_its_video(script: list[tuple[int, Step]]) -> None:
    failed: Any = UserError("the card is busy")
    script += [(0, Opened(INFO)), (0, Opened(INFO, failed)), (0, encoded(0, 0.9)), (0, closed())]
    calls: list[int] = []

    def sinks(number: int) -> Rows:
        calls.append(number)
        if len(calls) == 2:
            raise UserError("no place")
        return Rows()

    ((number, error),) = run_videos(machine(), ["a.mp4"], RULE, sinks)
    assert number == 0 and str(error) == "no place" and Reader.made.left == {0}


def test_one_video_s_error_is_raised(script: list[tuple[int, Step]]) -> None:
    fault = UserError("no video")
    script += [(0, Failed(fault))]
    with pytest.raises(UserError) as raised:
        run_video(machine(), "a.mp4", RULE)
    assert raised.value is fault and Reader.made.calls == ["start", "stop"]


def test_one_video_s_progress(script: list[tuple[int, Step]]) -> None:
    told: list[tuple[float, float | None]] = []
    script += [(0, Opened(INFO)), (0, encoded(0, 0.9)), (0, closed())]
    run_video(machine(), "a.mp4", RULE, progress=lambda done, total: told.append((done, total)))
    assert told == [(0.5, 9.0), (0.5, 9.0)]


def test_nothing_is_told_twice() -> None:
    """Of each class, events that come again are known by the snippets that they are of."""
    rows = Rows()
    once = module._Once(rows)
    events = [Event(0.0, 1.0, "odd", 0.9, 0.5, 0, 2), Event(0.0, 1.0, "strange", 0.9, 0.5, 0, 1)]
    later = [Event(3.0, 4.0, "odd", 0.9, 3.5, 3, 3), Event(2.0, 4.0, "strange", 0.9, 3.5, 2, 3)]
    for given in (events, events, later):
        for event in given:
            once.event(event)
    for first in (2, 3):  # they overlap one that was told of
        once.event(Event(1.0, 4.0, "odd", 0.9, 0.5, first, 4))
    assert rows.events == [*events, *later]
    for index in (0, 1, 0, 1, 2):
        once.snippet(index, 0.5 * index, 1.0, 0.25, [0.5, index])
    assert rows.snippets == [(index, 0.5 * index, 1.0, 0.25, [0.5, index]) for index in range(3)]


def test_what_a_run_says_of_an_error_in_reading() -> None:
    path = Path("a.mp4")
    plain = UserError("no video")
    assert as_outcome(path, plain) is plain and plain.__cause__ is None
    for error in (MemoryError(), NoMemory("too little")):
        outcome = as_outcome(path, error)
        assert isinstance(outcome, NoMemory) and outcome.__cause__ is error
        assert "not enough memory to read a.mp4" in str(outcome)
    fault = ValueError("odd")
    outcome = as_outcome(path, fault)
    assert isinstance(outcome, InternalError) and outcome.__cause__ is fault
    assert str(outcome) == "a.mp4 cannot be read for an internal error, ValueError: odd"
    with pytest.raises(KeyboardInterrupt):
        as_outcome(path, KeyboardInterrupt())


def result_of(engine: Any) -> VideoResult:
    return VideoResult(Path("/videos/door.mp4"), INFO)


def test_a_result_says_where_everything_is_from() -> None:
    engine = machine()
    result = result_of(engine)
    assert (result.snippets, result.seconds, result.end, result.peak, result.undecoded) == (0, 0.0, 0.0, None, None)
    assert (result.damage, result.note, result.again, result.gate, result.events) == (None, None, None, None, [])
    assert result.timings == Timings(0.0, 0.0, 0.0, 0.0) and result.seen == Seen()
    assert result.to_json(engine, RULE, {})["peak"] is None
    event = Event(1.0, 2.0, "odd", 0.9, 1.5, 2, 3)
    result = replace(
        result,
        snippets=4,
        seconds=1.23456,
        seen=Seen(seconds=3.0),
        peak=0.12345678,
        events=[event],
        damage="it ends early",
        note="it is short",
        gate={"mode": "on"},
        timings=Timings(1.00006, 2.0, 3.0, 4.0),
    )
    assert result.to_json(engine, RULE, {"vadrun": "1"}) == {
        "source": "/videos/door.mp4",
        "path": "/videos/door.mp4",
        "video": INFO.to_json(),
        "snippets": 4,
        "seconds": 1.235,
        **Seen(seconds=3.0).to_json(),
        "peak": 0.123457,
        "events": [event.to_json()],
        "damage": "it ends early",
        "note": "it is short",
        "gate": {"mode": "on"},
        "bundle": {"path": "/bundles/door", "sha256": "abc", "remark": "a remark"},
        "backend": {
            "name": "onnxruntime",
            "device": "CPU",
            "precision": "float32",
            "library": "1.30",
            "graph": "encoder.onnx",
            "why": "the only one",
        },
        "anomaly": "confidence",
        "sampling": Sampling().to_manifest(),
        "preprocessing": Preprocessing.for_size(64).to_manifest(),
        "rule": RULE.to_json(),
        "timings": {"wall": 1.0001, "decode": 2.0, "encode": 3.0, "score": 4.0},
        "versions": {"vadrun": "1"},
    }


# -- the gate and what it costs


def gated(engine: Any, rule: Any, gate: GateRule, items: list[Encoded], sink: Rows | None = None) -> Any:
    result = result_of(engine)
    result.undecoded = 17
    scorer = Scorer(engine, rule, sink, result, gate)
    for item in items:
        scorer.push(item)
    scorer.finish()
    return result


def test_the_audit_compares_what_is_with_what_would_have_been_held() -> None:
    """The second is lost: it reaches the threshold by itself alone. The third's neighbour was held without a look."""
    items = [
        encoded(0, 0.1),
        encoded(1, 0.5, 0.1, verdict=Verdict.AUDIT),
        encoded(2, 0.1, 0.5, verdict=Verdict.AUDIT),
        encoded(3, 0.1, verdict=Verdict.HOLD, unseen=True),
    ]
    engine, rows = machine(2), Rows()
    result = gated(engine, RULE, GateRule(audit=0.5), items, rows)
    assert [row[3] for row in rows.snippets] == [0.1, 0.5, 0.1, 0.1]
    assert engine.scored == [[0.1, 0.5], [0.1, 0.1], [0.1, 0.1], [0.5, 0.1]]
    gate = result.gate
    assert (gate["snippets"], gate["encoded"], gate["gated"], gate["audited"], gate["unseen"]) == (4, 3, 3, 2, 1)
    assert gate["pictures_undecoded"] == 17 and gate["mode"] == "on"
    assert (gate["score_error"]["mean"], gate["score_error"]["largest"]) == (0.4, 0.4)
    assert gate["events_missed"]["estimate"] == 0.5  # one held, and one of the two audited is lost


def test_in_the_shadow_events_are_those_that_the_gate_would_not_have_found() -> None:
    """Of two events, the gate would hold the first at a score below the threshold."""
    values = [(0.1, 0.1), (0.9, 0.1), (0.1, 0.1), (0.9, 0.9), (0.1, 0.1), (0.9, 0.9)]
    items = [
        encoded(index, own, held, verdict=Verdict.HOLD if own != held else Verdict.ENCODE)
        for index, (own, held) in enumerate(values)
    ]
    result = gated(machine(), RULE, GateRule(shadow=True), items)
    assert [(event.start, event.end) for event in result.events] == [(0.5, 1.0), (1.5, 2.0), (2.5, 3.0)]
    assert result.gate["events_missed"] == {"estimate": 1, "exact": True}
    assert result.gate["mode"] == "shadow" and result.gate["score_error"]["largest"] == pytest.approx(0.8)


def test_what_is_known_of_the_gate_so_far() -> None:
    engine = machine(2)
    scorer = Scorer(engine, RULE, None, result_of(engine), None)
    assert scorer._shadow is None
    assert scorer.gate_so_far() is None
    scorer.push(encoded(0, 0.9))
    assert [item.snippet.index for item in scorer.chunk] == [0]
    scorer.finish()
    assert scorer.result.gate is None and scorer.chunk == []
    scorer = Scorer(engine, RULE, None, result_of(engine), GateRule(shadow=True))
    for index in range(5):
        scorer.push(encoded(index, 0.9 if index == 0 else 0.1))
    found = scorer.gate_so_far()
    assert found is not None and found["snippets"] == 4 and len(scorer.chunk) == 1
    assert scorer.result.events and found["events_missed"] == {"estimate": 0, "exact": True}


# -- a calibration in place of a rule


class Calibrated(Calibration):
    """Alarms of one class from 0.5 on, of the other from 0.7; what is shown is half of it."""

    def __init__(self, checked: list[Any]) -> None:
        object.__setattr__(self, "checked", checked)

    def check(self, bundle: Any) -> None:
        self.checked.append(bundle)  # type: ignore[attr-defined]

    def detector(self) -> Any:
        events = lambda start, end, peak: [Event(start, end, "odd", peak, start, 0, 0)]  # noqa: E731
        return SimpleNamespace(
            push=lambda index, start, end, value, classes: events(start, end, round(value, 3)) if value > 0.5 else [],
            finish=lambda: events(90.0, 91.0, 0.7),
        )

    def class_probabilities(self, anomaly: Any, alignment: Any) -> Any:
        assert anomaly.shape == alignment.shape[:1]
        return alignment / 2

    def reached(self, anomaly: Any, alignment: Any) -> Any:
        return np.stack([anomaly >= 0.5, alignment[:, 1] >= 0.7], axis=1)


def test_a_calibration_is_checked_and_finds_its_own_events(script: list[tuple[int, Step]]) -> None:
    checked: list[Any] = []
    rule, rows, engine = Calibrated(checked), Rows(), machine()
    items = [
        encoded(0, 0.6, 0.5, verdict=Verdict.AUDIT),  # reached one threshold either way
        encoded(1, 0.8, 0.6, verdict=Verdict.AUDIT),  # the second class is lost
        encoded(2, 0.1, verdict=Verdict.HOLD),
        encoded(3, 0.1, verdict=Verdict.HOLD),
    ]
    result = gated(engine, rule, GateRule(audit=0.5), items, rows)
    assert checked == [engine.bundle]
    assert [(event.start, event.peak) for event in result.events] == [(0.0, 0.6), (0.5, 0.8), (90.0, 0.7)]
    assert rows.events == result.events and rows.snippets[1][4] == [0.1, 0.4, 0.1]
    assert result.gate["events_missed"]["estimate"] == 1.0
    # In the shadow, what the held scores would have given goes through a detector of its own.
    shadow = gated(engine, rule, GateRule(shadow=True), [encoded(0, 0.6, 0.1, verdict=Verdict.HOLD)])
    assert shadow.gate["events_missed"] == {"estimate": 1, "exact": True}
    assert list(run_videos(engine, [], rule)) == []
    assert checked == [engine.bundle] * 3


def test_a_calibration_of_another_bundle_is_refused_before_anything_is_read(script: list[tuple[int, Step]]) -> None:
    class Wrong(Calibrated):
        def check(self, bundle: Any) -> None:
            raise UserError("made for another bundle")

    Reader.made = None
    with pytest.raises(UserError, match="another bundle"):
        list(run_videos(machine(), ["a.mp4"], Wrong([])))
    assert Reader.made is None
    with pytest.raises(UserError, match="another bundle"):
        Scorer(machine(), Wrong([]), None, result_of(machine()), None)
