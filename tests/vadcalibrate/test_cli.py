"""``vadcalibrate`` from videos to a report, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import clips
from vadcalibrate.cli import main
from vadcalibrate.diverse import choose_frames
from vadcalibrate.footage import read_footage
from vadrun import Bundle, Calibration, Engine, UserError
from vadrun.cli import main as vadrun

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(6):
        clips.write_clip(
            folder / f"r{number}.mp4", 16 * 8, draw=lambda n, w, h, k=number: clips.numbered(n + 300 * k, w, h)
        )
    return folder


def alarms(bundle: Path, out: Path, *arguments: object) -> int:
    given = [str(argument) for argument in arguments]
    return main(["alarms", "--engine", str(bundle), "--out", str(out), "--backend", "onnxruntime:cpu", *given])


def refused(capsys: Printed, code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("vadcalibrate: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_from_videos_to_a_report(bundles: dict[str, Path], recordings: Path, tmp_path: Path, capsys: Printed) -> None:
    bundle, out = bundles["xd"], tmp_path / "gate.json"
    model = Bundle.open(bundle).model
    label, name = model.labels[1], model.annotation_names[1]  # "fighting", which the data set calls "B1"
    assert name != label
    events = tmp_path / "events.csv"
    events.write_text(f"video,label,start,end\nr1,{name},20,90\nr2,{label},10,100\n")
    labelled = [recordings / f"r{number}.mp4" for number in (1, 2, 3, 4, 5)]
    rate = ("--false-alarms-per-day", 1e5)
    clip = recordings / "r0.mp4"
    options = ("--camera", "gate", "--labelled", *labelled, "--annotations", events)
    assert alarms(bundle, out, "--normal", clip, *rate, *options) == 0
    printed = capsys.readouterr().out
    assert label in printed and "a day with 95% confidence" in printed and "of 2" in printed
    assert f"calibration in {out}; next: vadrun VIDEO --engine {bundle} --calibration {out}\n" in printed
    calibration = Calibration.read(out)
    calibration.check(Bundle.open(bundle))
    assert calibration.camera == "gate" and calibration.probabilities is not None
    assert calibration.document["total"]["at_most"] <= 1e5
    assert vadrun([str(clip), "--engine", str(bundle), "--calibration", str(out), "--json"]) == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    # The same footage raises the alarms that were counted in it.
    assert len(video["events"]) == calibration.document["total"]["count"]

    report = tmp_path / "report"
    assert main(["report", str(out), "--out", str(report)]) == 0
    names = {path.name for path in report.iterdir()}
    assert names == {"index.html", "scores.png", "alarms.png", "events.png", "reliability.png"}
    page = (report / "index.html").read_text()
    assert "Calibration of gate" in page and all(name in page for name in names - {"index.html"})
    assert "exists already" in refused(capsys, main(["report", str(out), "--out", str(report)]))
    assert main(["report", str(out), "--out", str(report), "--force"]) == 0
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "keep.txt").write_text("x")
    for place, said in ((precious, "is not a report and not empty"), (precious / "keep.txt", "is a file")):
        assert said in refused(capsys, main(["report", str(out), "--out", str(place), "--force"]))
    assert (precious / "keep.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_where_frames_are_in_footage_with_a_pause(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    """From the video and from its results. An MP4 gives its rate as a mean over the pause."""
    times = [index / 25 for index in range(200)] + [2400 + index / 25 for index in range(200)]
    path = clips.write_clip(tmp_path / name, 400, times=times, options={"g": "8", "bf": "2"})
    out = tmp_path / "out"
    assert vadrun([str(path), "--engine", str(bundles["xd"]), "--backend", "onnxruntime:cpu", "--out", str(out)]) == 0
    with Engine.load(bundles["xd"], "onnxruntime:cpu") as engine:
        for source in (path, out):
            (clip,) = read_footage([source], engine)
            assert clip.unlisted == 0 and clip.rate == pytest.approx(25, rel=0.01)
            assert clip.seconds_of(100, 150) == pytest.approx((4.0, 6.0, 0.0), abs=0.05)
            assert clip.seconds_of(190, 200) == pytest.approx((7.6, 8.0, 0.0), abs=0.05)
            assert clip.seconds_of(200, 225) == pytest.approx((2400.0, 2401.0, 0.0), abs=0.05)
            assert clip.seconds_of(175, 225) == pytest.approx((7.0, 2401.0, 2392.0), abs=0.05)
        result = json.loads((out / "clip" / "result.json").read_text())
        result["gaps"][0]["end"] = 0
        (out / "clip" / "result.json").write_text(json.dumps(result))
        with pytest.raises(UserError, match="has gaps that do not follow each other: run vadrun --out again"):
            read_footage([out], engine)


def test_pauses_of_the_footage_are_said(bundles: dict[str, Path], tmp_path: Path, capsys: Printed) -> None:
    """By all three that read videos; --quiet says nothing."""
    times = [index / 25 for index in range(200)] + [2400 + index / 25 for index in range(200)]
    path = clips.write_clip(tmp_path / "clip.mp4", 400, times=times, options={"g": "8"})
    bundle, said = bundles["xd"], "vadcalibrate: clip.mp4: the recording pauses once (from 8.0 s to 2,400.0 s)"
    run = ("--engine", str(bundle), "--backend", "onnxruntime:cpu", "--out")
    gate = ["gate", "--videos", str(path), *run, str(tmp_path / "g.json"), "--allow-short"]
    for quiet in ([], ["--quiet"]):
        alarms(bundle, tmp_path / "a.json", "--normal", path, "--false-alarms-per-day", 1e5, *quiet)
        assert (said in capsys.readouterr().err) != bool(quiet)
        main([*gate, *quiet])
        assert (said in capsys.readouterr().err) != bool(quiet)
    told: list[str] = []
    with Engine.load(bundle, "onnxruntime:cpu") as engine:
        choose_frames(engine, [path], 8, remark=told.append)
    assert [f"vadcalibrate: {text}".startswith(said) for text in told] == [True]


def test_results_of_vadrun_are_footage_too(
    bundles: dict[str, Path], recordings: Path, tmp_path: Path, capsys: Printed
) -> None:
    bundle, results = bundles["xd"], tmp_path / "results"
    assert (
        vadrun([str(recordings), "--engine", str(bundle), "--backend", "onnxruntime:cpu", "--out", str(results)]) == 0
    )
    rate = ("--false-alarms-per-day", 2e5, "--json", "--quiet")
    documents = []
    for name, source in (("a", results), ("b", recordings)):
        capsys.readouterr()
        assert alarms(bundle, tmp_path / f"{name}.json", "--normal", source, *rate) == 0
        documents.append(json.loads(capsys.readouterr().out))
    a, b = documents
    assert a["footage"]["videos"] == b["footage"]["videos"] == 6
    assert a["footage"]["hours"] == pytest.approx(b["footage"]["hours"], rel=1e-3)
    thresholds = [{label: entry["threshold"] for label, entry in value["classes"].items()} for value in documents]
    assert thresholds[0] == pytest.approx(thresholds[1])

    broken = shutil.copytree(results / "r0", tmp_path / "r0")
    text = (broken / "scores.csv").read_text().splitlines()
    cells = text[3].split(",")
    (broken / "scores.csv").write_text("\n".join([*text[:3], ",".join([*cells[:3], "nan", *cells[4:]]), *text[4:]]))
    said = refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    assert "scores that are not finite, the first at 1.3 s (1 of 8 snippets)" in said
    cells = text[3].split(",")
    (broken / "scores.csv").write_text("\n".join([*text[:3], ",".join([cells[0], "nan", *cells[2:]]), *text[4:]]))
    said = refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    assert "times are not finite or do not rise" in said
    (broken / "scores.csv").write_text("\n".join(text) + "\n")
    value = json.loads((broken / "result.json").read_text())
    for changed, expected in (
        ({"rule": None}, "result.json: rule is null, not an object: run vadrun --out again"),
        ({"video": value["video"] | {"width": "x"}}, "result.json: video.width is 'x', not a whole number"),
        ({"bundle": "x"}, "result.json: bundle is 'x', not an object"),
        ({"gate": 7}, "result.json: gate is 7, not an object"),
        ({"gate": {"mode": "on"}}, "is of a run with --gate"),
    ):
        (broken / "result.json").write_text(json.dumps({**value, **changed}))
        assert expected in refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    (broken / "result.json").write_text(json.dumps(value))
    (broken / "more.mp4").write_bytes(b"x")
    said = refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    assert "holds both results of vadrun and videos (1 video, such as more.mp4)" in said
    (broken / "more.mp4").unlink()
    (broken / "scores.csv").write_text("snippet\nx\n")
    said = refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    assert "scores.csv: it does not read as scores (could not convert string to float: 'x')" in said
    (broken / "scores.csv").write_text("snippet,start,end\n1,0,1\n")
    said = refused(capsys, alarms(bundle, tmp_path / "c.json", "--normal", broken, *rate))
    assert "scores.csv: it has 3 columns, not snippet, start, end, anomaly and the classes" in said
    said = refused(capsys, alarms(bundles["ucf"], tmp_path / "c.json", "--normal", results, *rate))
    assert "is of another bundle than" in said
    assert not (tmp_path / "c.json").exists()


def test_bad_input(bundles: dict[str, Path], recordings: Path, tmp_path: Path, capsys: Printed) -> None:
    bundle, out, clip = bundles["xd"], tmp_path / "c.json", recordings / "r0.mp4"
    events = tmp_path / "events.csv"
    label = Bundle.open(bundle).model.labels[1]
    events.write_text(f"video,label,start,end\nr0,{label},20,90\n")
    normal = ("--normal", clip)
    (tmp_path / "empty").mkdir()
    copy = shutil.copy(clip, tmp_path / "copy.mp4")
    spelt = recordings / ".." / recordings.name / "r0.mp4"
    for arguments, said in (
        ((*normal, "--false-alarms-per-day", 0), "give a number above 0"),
        ((*normal, "--false-alarms-per-day", 1, "--confidence", 1), "give 0.5 or more and less than 1"),
        ((*normal, "--false-alarms-per-day", 1, "--labelled", clip), "go together"),
        ((*normal, "--false-alarms-per-day", 0.5), "cannot show 0.5 false alarms a day"),
        ((*normal, *normal[1:], "--false-alarms-per-day", 1e5), "is there twice"),
        ((*normal, spelt, "--false-alarms-per-day", 1e5), "is there twice"),
        ((*normal, copy, "--false-alarms-per-day", 1e5), "is there twice"),
        (
            ("--normal", spelt, "--false-alarms-per-day", 1e5, "--labelled", clip, "--annotations", events),
            "is given as normal, but has labelled events",
        ),
        (("--normal", tmp_path / "empty", "--false-alarms-per-day", 1), "holds no video files"),
        (("--normal", tmp_path / "none.mp4", "--false-alarms-per-day", 1), "does not exist"),
        (
            (*normal, "--false-alarms-per-day", 1e5, "--labelled", clip, "--annotations", events),
            "is given as normal, but has labelled events",
        ),
    ):
        assert said in refused(capsys, alarms(bundle, out, *arguments, "--quiet")), arguments
    assert not out.exists()
    assert "name a folder that does" not in refused(
        capsys, alarms(bundle, tmp_path / "no" / "c.json", *normal, "--false-alarms-per-day", 1)
    )
    out.write_text("{}")
    assert "is not a calibration file" in refused(capsys, main(["report", str(out), "--out", str(tmp_path / "r")]))


def test_short_footage_on_request(bundles: dict[str, Path], recordings: Path, tmp_path: Path, capsys: Printed) -> None:
    out = tmp_path / "c.json"
    clip = recordings / "r0.mp4"
    code = alarms(bundles["xd"], out, "--normal", clip, "--false-alarms-per-day", 0.5, "--allow-short")
    if code == 0:  # the model is not trained: it may alarm at any level
        assert "too short to show the 0.5 a day" in capsys.readouterr().out
        assert Calibration.read(out).document["total"]["shown"] is False
    else:
        assert "alarms even at a threshold" in refused(capsys, code)
