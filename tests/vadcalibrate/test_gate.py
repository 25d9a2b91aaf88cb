"""The gate's threshold: what thresholds would have done, bounds, the choice, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadcalibrate.cli import main
from vadcalibrate.gate import Measured, Trial, choose, error_bound, measure, stretches_needed
from vadrun import Bundle, Calibration, Engine, EventRule, UserError, run_video
from vadrun.audit import upper_mean
from vadrun.cli import main as vadrun
from vadrun.gate import GateRule

Printed = pytest.CaptureFixture[str]
RULE = EventRule(threshold=0.3, release=0.2, min_length=0)
RNG = np.random.default_rng(5)


def draw(n: int, width: int, height: int) -> np.ndarray:
    """A picture that stands still for two snippets, and in which a small thing moves all the time."""
    image = clips.numbered(n // 32 * 37, width, height)
    left = width // 2 + n // 16 % 3 * 5
    image[height // 2 : height // 2 + 8, left : left + 8] = 235
    return image


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("gate")
    return [clips.write_clip(folder / f"g{number}.mp4", 16 * 9 + number, draw=draw) for number in range(2)]


@pytest.fixture(scope="module")
def engine(bundles: dict[str, Path]) -> Iterator[Engine]:
    with Engine.load(bundles["xd"], "onnxruntime:cpu", batch=3) as loaded:
        yield loaded


def measured(
    *errors: np.ndarray, seconds: float = 1.0, lengths: tuple[int, ...] = (), missed: tuple[int, ...] = ()
) -> Measured:
    """Trials with these errors, of snippets that last so long, in videos of so many snippets."""
    lengths = lengths or (len(errors[0]),)
    found = missed or (0,) * len(errors)
    trials = [Trial(0.01 * (at + 1), 10 * at, values, found[at]) for at, values in enumerate(errors)]
    starts = np.concatenate([np.arange(length) * seconds for length in lengths])
    video = np.repeat(np.arange(len(lengths)), lengths)
    return Measured(GateRule(), trials, starts, video, len(starts) * seconds, 2, frozenset({(320, 240)}))


def test_a_threshold_does_what_the_shadow_says(engine: Engine, recordings: list[Path]) -> None:
    """Heartbeat, audits, chunks and events included, in one pass instead of one for each threshold."""
    thresholds = (0.0, 0.01, 0.05, 0.3)
    rule = GateRule(heartbeat=3.0, audit=0.2)
    found = measure(engine, recordings, rule, RULE, thresholds=thresholds)
    assert found.videos == 2 and found.pictures == {(160, 120)}
    for trial in found.trials:
        shadow = GateRule(trial.threshold, rule.heartbeat, rule.audit, shadow=True)
        results = [run_video(engine, path, RULE, gate=shadow) for path in recordings]
        gates: list[dict[str, Any]] = [result.gate for result in results if result.gate is not None]
        assert trial.held == sum(gate["gated"] - gate["audited"] for gate in gates)
        assert trial.missed == sum(gate["events_missed"]["estimate"] for gate in gates)
        at = 0
        for gate in gates:
            part = trial.errors[at : at + gate["snippets"]]
            assert part.mean() == pytest.approx(gate["score_error"]["mean"], abs=2e-6)
            at += gate["snippets"]
        assert at == len(trial.errors) == 18
        assert found.events == sum(len(result.events) for result in results)
    held = [trial.held for trial in found.trials]
    assert held == sorted(held) and held[0] < held[-1]
    assert found.trials[0].errors.mean() < found.trials[-1].errors.mean()


def test_chunks_do_not_forget_what_is_held(
    engine: Engine, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk may begin with a snippet that is held, by a feature of the chunk before."""
    from dataclasses import replace

    bundle, head, positions = engine.bundle, engine.backend.head, engine.bundle.model.positions

    def short(features: Any, lengths: Any, text: Any) -> Any:
        padded = np.zeros((len(features), positions, features.shape[2]), np.float32)
        padded[:, : features.shape[1]] = features
        logits, alignment = head(padded, lengths, text)
        return logits[:, :3], alignment[:, :3]

    monkeypatch.setattr(engine.backend, "head", short)
    monkeypatch.setattr(engine, "bundle", replace(bundle, model=replace(bundle.model, positions=3)))
    rule = GateRule(heartbeat=100.0, audit=1e-9)
    (trial,) = measure(engine, recordings[:1], rule, RULE, thresholds=(1.0,)).trials
    shadow = run_video(engine, recordings[0], RULE, gate=GateRule(1.0, 100.0, 1e-9, shadow=True))
    assert trial.held == 8 and shadow.gate is not None
    assert trial.errors.mean() == pytest.approx(shadow.gate["score_error"]["mean"], abs=2e-6)


def test_the_bound_is_on_means_of_minutes() -> None:
    errors = RNG.random(600 * 60) * 0.02
    bound = error_bound(errors, measured(errors), 0.95)
    assert bound.stretch == 60 and bound.count == 600
    assert bound.at_most == pytest.approx(upper_mean(errors.reshape(600, 60).mean(axis=1)), abs=1e-6)


def test_the_bound_holds_with_ends_of_videos() -> None:
    """Half of the stretches are short ones; of 200 bounds of 95% at most 8% may fail."""
    failures = 0
    for _ in range(200):
        lengths = (70,) * 40
        # A third of the whole minutes is off by 0.1, and so is a third of the ends.
        errors = (
            np.concatenate([np.full(size, 0.1 * (RNG.random() < 1 / 3)) for _ in range(40) for size in (60, 10)])
            + RNG.random(2800) * 1e-3
        )
        bound = error_bound(errors, measured(errors, lengths=lengths), 0.95)
        failures += bound.at_most < 0.1 / 3 + 0.5e-3
    assert failures / 200 <= 0.08


def test_stretches_grow_where_they_depend_on_each_other() -> None:
    busy = np.repeat(RNG.random(60) < 0.3, 10)  # for ten minutes at a time
    errors = np.repeat(busy * 0.05, 60) + RNG.random(36000) * 1e-3
    bound = error_bound(errors, measured(errors), 0.95)
    assert bound.stretch > 240 and bound.at_most > upper_mean(errors.reshape(600, 60).mean(axis=1))


def test_the_largest_threshold_that_is_allowed() -> None:
    def level(mean: float) -> np.ndarray:
        return RNG.random(600 * 60) * 2 * mean

    rising = [level(mean) for mean in (0.001, 0.004, 0.03, 0.002)]
    chosen = choose(measured(*rising), 0.02, 0.95)
    # The last one would do, but a test that fails is the last.
    assert chosen.trial.threshold == pytest.approx(0.02) and chosen.shown and chosen.bound.at_most <= 0.02
    assert choose(measured(*rising), 0.05, 0.95).trial.threshold == pytest.approx(0.04)
    with_miss = choose(measured(*rising, missed=(0, 1, 0, 0)), 0.05, 0.95)
    assert with_miss.trial.threshold == pytest.approx(0.01)


def test_short_footage_is_told_and_taken_on_request() -> None:
    few = measured(np.full(600, 0.001), np.full(600, 0.01), np.full(600, 0.2))
    hours = stretches_needed(0.02, 0.95) / 60
    with pytest.raises(UserError, match=rf"0.17 hours of footage cannot show .* takes {hours:.1f} hours"):
        choose(few, 0.02, 0.95)
    chosen = choose(few, 0.02, 0.95, allow_short=True)
    assert chosen.trial.threshold == pytest.approx(0.02) and not chosen.shown and chosen.bound.at_most > 0.02


def test_a_camera_on_which_nothing_may_be_held() -> None:
    with pytest.raises(UserError, match=r"even at a threshold of 0.01 scores would be off by 0.3000 on average"):
        choose(measured(np.full(600, 0.3)), 0.02, 0.95, allow_short=True)
    with pytest.raises(UserError, match=r"1 of 2 events would be missed"):
        choose(measured(np.zeros(600), missed=(1,)), 0.02, 0.95, allow_short=True)


def test_how_many_stretches_are_needed() -> None:
    for wanted in (0.02, 0.2):
        count = stretches_needed(wanted, 0.95)
        assert upper_mean(np.zeros(count)) <= wanted < upper_mean(np.zeros(count - 1))


# The command.


def gate(bundle: Path, out: Path, *arguments: object) -> int:
    given = [str(argument) for argument in arguments]
    return main(["gate", "--engine", str(bundle), "--out", str(out), "--backend", "onnxruntime:cpu", *given])


def refused(capsys: Printed, code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("vadcalibrate: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def alarms(bundle: Path, out: Path, clip: Path, *arguments: object) -> int:
    where = ["--engine", str(bundle), "--out", str(out), "--backend", "onnxruntime:cpu", "--normal", str(clip)]
    return main(["alarms", *where, "--false-alarms-per-day", "1e5", "--quiet", *map(str, arguments)])


def test_from_videos_to_a_gated_run(
    bundles: dict[str, Path], recordings: list[Path], tmp_path: Path, capsys: Printed
) -> None:
    bundle, out, clip = bundles["xd"], tmp_path / "door.json", recordings[0]
    assert gate(bundle, out, "--videos", *recordings, "--camera", "door", "--error", 0.5, "--allow-short") == 0
    printed = capsys.readouterr().out
    assert "<- chosen" in printed and "this footage is too short to show the 0.5" in printed
    calibration = Calibration.read(out)
    calibration.check(Bundle.open(bundle))
    assert calibration.camera == "door" and calibration.gate is not None and not calibration.rules
    arguments = [str(clip), "--engine", str(bundle), "--backend", "onnxruntime:cpu", "--calibration", str(out)]
    assert vadrun([*arguments, "--gate", "--json"]) == 0
    told = capsys.readouterr()
    assert f"camera door, gate at {calibration.gate.threshold:g}, a mean score error of at most" in told.err
    (video,) = json.loads(told.out)["videos"]
    rule = video["gate"]["rule"]
    assert rule["threshold"] == calibration.gate.threshold != GateRule().threshold
    assert rule["calibration"] == calibration.sha256 and rule["heartbeat"] == 10.0
    assert video["rule"]["threshold"] == 0.5  # the file says nothing of alarms
    # Events may be told in the usual way, the gate only once.
    assert vadrun([*arguments, "--gate", "shadow", "--threshold", "0.4"]) == 0
    capsys.readouterr()
    assert vadrun([*arguments, "--gate", "--gate-threshold", "0.1"]) == 2
    assert "leave out --gate-threshold" in capsys.readouterr().err
    assert vadrun(arguments) == 2
    assert "holds a gate and no alarms: add --gate" in capsys.readouterr().err

    report = tmp_path / "report"
    assert main(["report", str(out), "--out", str(report)]) == 0
    assert {path.name for path in report.iterdir()} == {"index.html", "gate.png"}
    assert "Calibration of door" in (report / "index.html").read_text()


def test_alarms_and_gate_share_a_file(
    bundles: dict[str, Path], recordings: list[Path], tmp_path: Path, capsys: Printed
) -> None:
    bundle, clip = bundles["xd"], recordings[0]
    allowed = ("--videos", *recordings, "--error", 0.5, "--allow-short", "--quiet")
    both = []
    for first in ("alarms", "gate"):
        out = tmp_path / f"{first}.json"
        if first == "alarms":
            assert alarms(bundle, out, clip, "--camera", "door") == 0
            assert gate(bundle, out, *allowed) == 0
        else:
            assert gate(bundle, out, *allowed, "--camera", "door") == 0
            assert alarms(bundle, out, clip) == 0
        calibration = Calibration.read(out)
        assert calibration.camera == "door" and calibration.rules and calibration.gate is not None
        both.append(calibration)
    assert both[0].rules == both[1].rules
    # Made after the alarms, the gate goes by their events.
    by = [calibration.document["gate"]["events"]["rule"] for calibration in both]
    assert set(by[0]["classes"]) == set(both[0].rules) and by[1]["threshold"] == 0.5
    # Once more, each replaces its own part.
    out = tmp_path / "alarms.json"
    assert gate(bundle, out, *allowed, "--heartbeat", 5) == 0
    again = Calibration.read(out)
    assert again.gate is not None and again.gate.heartbeat == 5.0 and again.rules == both[0].rules
    report = tmp_path / "report"
    assert main(["report", str(out), "--out", str(report)]) == 0
    assert {path.name for path in report.iterdir()} == {"index.html", "scores.png", "alarms.png", "gate.png"}
    capsys.readouterr()

    before = out.read_bytes()
    other = Bundle.open(bundles["ucf"])
    for arguments, bundle_given, said in (
        (("--camera", "yard"), bundle, "holds alarms for the camera door, not for yard"),
        ((), other.root, "holds alarms for another bundle"),
    ):
        assert said in refused(capsys, gate(bundle_given, out, *allowed, *arguments))
    assert "holds a gate for the camera door, not for yard" in refused(
        capsys, alarms(bundle, out, clip, "--camera", "yard")
    )
    assert out.read_bytes() == before


def test_a_calibration_without_a_gate(
    bundles: dict[str, Path], recordings: list[Path], tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "c.json"
    assert alarms(bundles["xd"], out, recordings[0]) == 0
    arguments = [str(recordings[0]), "--engine", str(bundles["xd"]), "--backend", "onnxruntime:cpu"]
    assert vadrun([*arguments, "--calibration", str(out), "--gate", "--gate-threshold", "0.1"]) == 0
    assert "holds no gate, so its threshold is 0.1" in capsys.readouterr().err


def test_bad_input(bundles: dict[str, Path], recordings: list[Path], tmp_path: Path, capsys: Printed) -> None:
    bundle, out, clip = bundles["xd"], tmp_path / "c.json", recordings[0]
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut.mkv"
    clips.write_clip(cut, 16 * 9)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    videos = ("--videos", clip)
    for arguments, said in (
        ((*videos, "--error", 0), "--error is 0: give a share"),
        ((*videos, "--error", "nan"), "--error is nan: give a share"),
        ((*videos, "--confidence", 1), "give 0.5 or more and less than 1"),
        ((*videos, "--heartbeat", 0), "the gate's heartbeat is 0 s"),
        (videos, "of footage cannot show a mean score error of 0.02 with 95% confidence"),
        (("--videos", tmp_path / "empty"), "holds no video files"),
        (("--videos", tmp_path / "none.mp4"), "does not exist"),
        (("--videos", cut), "is damaged, and only what could be decoded was read"),
    ):
        assert said in refused(capsys, gate(bundle, out, *arguments, "--quiet")), arguments
    assert not out.exists()
    assert "give a file in a folder that is there" in refused(capsys, gate(bundle, tmp_path / "no" / "c.json", *videos))
    out.write_text("{}")
    said = refused(capsys, gate(bundle, out, *videos))
    assert "is there already and cannot be kept" in said and "is not a calibration file" in said
    assert out.read_text() == "{}"


def test_a_file_that_holds_nothing(tmp_path: Path, bundles: dict[str, Path]) -> None:
    bundle = Bundle.open(bundles["xd"])
    value = {
        "schema": 1,
        "kind": "vadclip-edge calibration",
        "camera": None,
        "bundle": bundle.sha256,
        "labels": list(bundle.model.labels),
        "sampling": bundle.sampling.to_manifest(),
    }
    path = tmp_path / "c.json"
    for changes, said in (
        ({}, "it holds neither alarms nor a gate"),
        ({"gate": {"threshold": 0.1, "audit": 0.05}}, "gate.heartbeat is missing"),
        ({"gate": {"threshold": 7, "heartbeat": 10, "audit": 0.05}}, "gate.threshold is 7, not a number from 0 to 1"),
    ):
        path.write_text(json.dumps(value | changes))
        with pytest.raises(UserError, match=said):
            Calibration.read(path)


def test_a_feature_that_is_not_finite(engine: Engine, recordings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.backend.encode

    def broken(frames: Any) -> Any:
        features = real(frames)
        features[1] = np.nan
        return features

    monkeypatch.setattr(engine.backend, "encode", broken)
    with pytest.raises(UserError, match="gives features that are not finite on onnxruntime:cpu"):
        measure(engine, recordings, GateRule(), RULE)


def test_a_bundle_with_several_images_to_a_snippet(
    engine: Engine, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    bundle = engine.bundle
    monkeypatch.setattr(engine, "bundle", replace(bundle, sampling=replace(bundle.sampling, pick="mean")))
    with pytest.raises(UserError, match="takes 16 \\(--sample mean\\)"):
        measure(engine, recordings, GateRule(), RULE)
