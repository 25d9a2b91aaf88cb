from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from vadrun import Bundle, UserError, Video, feeding
from vadrun.cli import main
from vadrun.console import FilesProgress
from vadrun.files import writing
from vadrun.places import Place
from vadrun.sinks import ResultFolder, ResultFolders

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("clips") / "door.mp4", 16 * 6)


@pytest.fixture
def engine(bundles: dict[str, Path]) -> str:
    return str(bundles["xd"])  # its scores are neither all 0 nor all 1


def run(engine: str, *arguments: object) -> int:
    return main([str(argument) for argument in arguments] + ["--engine", engine, "--backend", "onnxruntime:cpu"])


def refused(capsys: Printed, code: int) -> str:
    """The one sentence of a command that had to refuse."""
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vadrun: ")]
    assert len(lines) == 1
    return lines[0]


def test_results_on_disk(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    assert run(engine, clip, "--out", tmp_path / "out", "--threshold", 0.001, "--min-length", 0) == 0
    folder = tmp_path / "out" / "door"
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl", "result.json", "scores.csv"]
    bundle = Bundle.open(engine)
    with (folder / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["snippet", "start", "end", "anomaly", *bundle.model.labels]
    assert [int(row["snippet"]) for row in rows] == list(range(6))
    assert [float(row["start"]) for row in rows] == pytest.approx([0.64 * i for i in range(6)], abs=1e-3)
    for row in rows:
        assert 0 <= float(row["anomaly"]) <= 1
        assert sum(float(row[label]) for label in bundle.model.labels) == pytest.approx(1, abs=1e-4)
    result = json.loads((folder / "result.json").read_text())
    assert result["bundle"]["sha256"] == bundle.sha256
    assert result["backend"]["name"] == "onnxruntime"
    assert set(result["versions"]) == {"vadclip-edge", "numpy", "av", "onnxruntime"}
    assert result["snippets"] == 6 and result["timings"]["wall"] > 0
    assert result["rule"]["threshold"] == 0.001
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events == result["events"] != []
    printed = capsys.readouterr().out
    assert "start" in printed and events[0]["label"] in printed and f"results in {tmp_path / 'out'}" in printed


def test_json_is_all_there_is_on_stdout(engine: str, clip: Path, capsys: Printed) -> None:
    assert run(engine, clip, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [video["source"] for video in document["videos"]] == [str(clip)]
    assert document["errors"] == []


def test_quiet_says_nothing_on_stderr(engine: str, clip: Path, capsys: Printed) -> None:
    assert run(engine, clip, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert run(engine, clip) == 0
    assert "onnxruntime:cpu fp32" in capsys.readouterr().err  # what was taken, and why


@pytest.mark.parametrize(
    ("words", "mode"), [(["--gate"], "on"), (["--gate", "on"], "on"), (["--gate", "shadow"], "shadow")]
)
def test_the_gate_is_said_and_stored(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed, words: list[str], mode: str
) -> None:
    """Wherever the option stands, a video after it is a video."""
    common = ["--engine", engine, "--backend", "onnxruntime:cpu", "--out", str(tmp_path), "--gate-audit", "0.5"]
    assert main([*words, str(clip), *common]) == 0
    assert "gate: " in capsys.readouterr().out
    gate = json.loads((tmp_path / "door" / "result.json").read_text())["gate"]
    assert gate["mode"] == mode and gate["snippets"] == 6 and gate["rule"]["audit"] == 0.5
    assert main([str(clip), *common, *words]) == 0


def test_without_the_gate_nothing_is_said_of_it(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    assert run(engine, clip, "--out", tmp_path, "--gate", "off") == 0
    assert "gate: " not in capsys.readouterr().out
    assert json.loads((tmp_path / "door" / "result.json").read_text())["gate"] is None
    said = refused(capsys, run(engine, clip, "--gate-threshold", 0.1, "--gate-audit", 0.5))
    assert "--gate-threshold, --gate-audit without --gate does nothing: add --gate" in said
    assert "the gate's audit is 0" in refused(capsys, run(engine, clip, "--gate", "--gate-audit", 0))


def test_folders_and_equal_names(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    for name in ("a/door.mp4", "b/door.mp4", "b/door.mkv", "b/yard.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(clip.read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("not a video")
    assert run(engine, tmp_path / "a", tmp_path / "b", clip.parent, "--out", tmp_path / "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["videos"]) == 5
    places = {video["source"]: Path(video["results"]).name for video in document["videos"]}
    assert places[str(tmp_path / "b" / "door.mkv")] == "door.mkv"
    assert places[str(tmp_path / "b" / "door.mp4")] == "door.mp4"  # another one lies beside it
    assert places[str(tmp_path / "b" / "yard.mp4")] == "yard"
    assert len(set(places.values())) == 5 == len(list((tmp_path / "out").iterdir()))
    for video in places.values():
        assert (tmp_path / "out" / video / "scores.csv").exists()


def test_videos_are_told_in_their_order_whichever_is_done_first(
    engine: str, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is long, the second is none, the third is done before the first."""
    monkeypatch.setattr(feeding, "cores", lambda: 3)
    videos = [clips.write_clip(tmp_path / "long.mp4", 16 * 40), tmp_path / "bad.mp4", tmp_path / "short.mp4"]
    videos[1].write_text("I am text")
    clips.write_clip(videos[2], 16)
    assert run(engine, *videos, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines() if " scored in " in line] == [
        str(videos[0]),
        str(videos[2]),
    ]
    assert "bad.mp4 cannot be opened" in printed.err and "1 of 3 videos have no results" in printed.err
    for name, count in (("long", 40), ("short", 1)):
        assert json.loads((tmp_path / "out" / name / "result.json").read_text())["snippets"] == count
        assert len((tmp_path / "out" / name / "scores.csv").read_text().splitlines()) == count + 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["long", "short"]


def test_results_that_cannot_be_put_in_place_cost_their_video_alone(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = clips.write_clip(tmp_path / "other.mp4", 16 * 3)
    keep = ResultFolder.keep

    def full(self: ResultFolder, value: dict[str, Any]) -> Path:
        if self.place.folder.name == "door":
            with writing(self.place.folder):
                raise OSError(28, "No space left on device")
        return keep(self, value)

    monkeypatch.setattr(ResultFolder, "keep", full)
    assert run(engine, clip, other, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "door: No space left on device; free some space" in printed.err
    assert "other.mp4: 0:01.9 scored" in printed.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]


def test_all_folders_are_dropped_though_one_cannot_be_closed(tmp_path: Path) -> None:
    def fail() -> None:
        raise UserError("a full disk")

    wanted = [Place(name, tmp_path / name, tmp_path / f"{name}-0") for name in "abc"]
    with pytest.raises(KeyboardInterrupt), ResultFolders(wanted, ["normal"]) as folders:
        for number in range(3):
            folder = folders.begin(number)
            assert folder is not None
            folder._stack.callback(fail)
        assert len(list(tmp_path.iterdir())) == 3
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_all_folders_are_dropped_though_a_signal_comes_in_between(tmp_path: Path) -> None:
    def signalled() -> None:
        raise SystemExit(143)

    wanted = [Place(name, tmp_path / name, tmp_path / f"{name}-0") for name in "abc"]
    with pytest.raises(SystemExit), ResultFolders(wanted, ["normal"]) as folders:
        for number in range(3):
            folder = folders.begin(number)
            assert folder is not None
            folder._stack.callback(signalled)
    assert list(tmp_path.iterdir()) == []


def test_progress_over_several_files() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    progress = FilesProgress(["a.mp4", "b.mp4", "c.mp4"], stream=terminal)
    progress.update(1, 5.0, 10.0)
    assert "vadrun  0 of 3 videos" in terminal.getvalue() and "left" in terminal.getvalue()
    progress.done(1)
    assert terminal.getvalue().endswith("\r\x1b[K")
    time.sleep(0.25)  # it draws no oftener
    progress.update(0, 5.0, None)
    assert terminal.getvalue().splitlines()[-1].count("1 of 3 videos") == 1


def test_a_second_run_replaces_the_first(engine: str, clip: Path, tmp_path: Path) -> None:
    for threshold in (0.3, 0.4):
        assert run(engine, clip, "--out", tmp_path, "--threshold", threshold) == 0
        assert json.loads((tmp_path / "door" / "result.json").read_text())["rule"]["threshold"] == threshold
    assert [path.name for path in tmp_path.iterdir()] == ["door"]


def test_another_video_of_that_name_replaces_nothing(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    videos = [clips.write_clip(tmp_path / name / "cam.mp4", 16 * count) for name, count in (("a", 2), ("b", 3))]
    places = []
    for video in (*videos, *reversed(videos)):
        assert run(engine, video, "--out", tmp_path / "out", "--json") == 0
        places.append(json.loads(capsys.readouterr().out)["videos"][0]["results"])
    assert places[0] == places[3] == str(tmp_path / "out" / "cam") and places[1] == places[2] != places[0]
    for place, video, count in zip(places, videos, (2, 3), strict=False):
        result = json.loads((Path(place) / "result.json").read_text())
        assert (result["path"], result["snippets"]) == (str(video), count)
    assert run(engine, videos[1], "--out", tmp_path / "out") == 0
    assert f"results in {places[1]}: the place named after the file is taken" in capsys.readouterr().out


def test_the_path_below_a_folder_is_kept(engine: str, clip: Path, tmp_path: Path) -> None:
    video = tmp_path / "recordings" / "2024" / "cam.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(clip.read_bytes())
    assert run(engine, tmp_path / "recordings", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "2024" / "cam" / "result.json").exists()


def test_a_name_that_is_none_for_a_folder_stays_below_out(engine: str, clip: Path, tmp_path: Path) -> None:
    """The stem of ``..mp4`` is a dot, which is --out itself, and that of ``...mp4`` what it lies in."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("mine")
    for name in ("..mp4", "...mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    before = {path.name for path in tmp_path.iterdir()}
    assert run(engine, tmp_path / "..mp4", tmp_path / "...mp4", "--out", tmp_path / "out") == 0
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "out" / "result.json").read_text() == "mine"
    assert len(list((tmp_path / "out").glob("video-*/result.json"))) == 2


def test_files_that_others_have_put_beside_results_stay(engine: str, clip: Path, tmp_path: Path) -> None:
    assert run(engine, clip, "--out", tmp_path) == 0
    (tmp_path / "door" / "notes.txt").write_text("mine")
    assert run(engine, clip, "--out", tmp_path, "--threshold", 0.4) == 0
    assert (tmp_path / "door" / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "door" / "result.json").read_text())["rule"]["threshold"] == 0.4
    assert [path.name for path in tmp_path.iterdir()] == ["door"]


def test_names_of_any_kind(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    """Not UTF-8, as from sticks of other systems, and as long as names may be."""
    strange, long = os.fsdecode(b"b\xe9"), "监" * 82
    for name in (strange, long):
        (tmp_path / f"{name}.mp4").write_bytes(clip.read_bytes())
    videos = [tmp_path / f"{name}.mp4" for name in (strange, long)]
    assert run(engine, *videos, "--out", tmp_path / "out") == 0
    assert "b\\xe9.mp4: 0:03.8 scored" in capsys.readouterr().out
    for name in (strange, long):
        text = (tmp_path / "out" / name / "result.json").read_bytes().decode("utf-8")
        assert json.loads(text)["source"].endswith(("b\\xe9.mp4", f"{long}.mp4"))
    assert run(engine, *videos, "--json") == 0
    assert json.loads(capsys.readouterr().out)["videos"][0]["source"].endswith("b\\xe9.mp4")


def test_output_that_nobody_reads_costs_no_results(engine: str, clip: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vadrun.cli", str(clip), "--engine", engine, "--backend", "onnxruntime:cpu"]
    ended = subprocess.run([*command, "--out", str(tmp_path), "--quiet"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "door" / "result.json").exists()


@pytest.mark.parametrize("error", [TypeError("no such thing"), MemoryError()])
def test_an_error_of_ours_or_of_the_machine_costs_its_video_alone(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    other = clips.write_clip(tmp_path / "other.mp4", 16 * 3)
    snippets = Video.snippets

    def fails(self: Video, *arguments: Any, **more: Any) -> Any:
        yield from snippets(self, *arguments, **more)
        if self.path == clip:
            raise error

    monkeypatch.setattr(Video, "snippets", fails)
    monkeypatch.setattr(feeding, "cores", lambda: 1)  # the reader goes on with the next video
    code = run(engine, clip, other, "--out", tmp_path / "out", "--quiet")
    printed = capsys.readouterr()
    if isinstance(error, MemoryError):
        assert code == 2 and f"vadrun: there is not enough memory to read {clip}" in printed.err
    else:
        assert code == 70 and f"vadrun: {clip}: internal error: TypeError in test_cli.py" in printed.err
        assert "please report it" in printed.err
    assert "Traceback" not in printed.err and "damaged" not in printed.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]


def test_a_full_disk_is_said_of_each_video_when_it_begins(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResultFolder, "snippet", lambda *arguments: pytest.fail("it has begun"))
    monkeypatch.setattr("vadrun.sinks.csv.writer", full)
    other = clips.write_clip(tmp_path / "other.mp4", 16 * 3)
    assert run(engine, clip, other, "--out", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vadrun: ")]
    assert [" No space left on device; free some space" in line for line in lines] == [True, True, False]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_a_read_hangs(engine: str, clip: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As a share does that has gone: the reader's thread never comes back."""
    code = f"""
import sys, threading
from vadrun import Video, cli
snippets = Video.snippets
def hangs(self, *arguments, **more):
    yield next(snippets(self, *arguments, **more))
    print("hangs", flush=True)
    threading.Event().wait()
Video.snippets = hangs
sys.exit(cli.main({[str(clip), "--engine", engine, "--backend", "onnxruntime:cpu", "--out", str(tmp_path)]!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"hangs\n"
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_not_replaced(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "door").mkdir()
    (tmp_path / "door" / "photo.jpg").touch()
    assert run(engine, clip, "--out", tmp_path, "--json") == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert [path.name for path in (tmp_path / "door").iterdir()] == ["photo.jpg"]
    assert Path(video["results"]).name.startswith("door-")


def test_a_damaged_video_is_code_one(engine: str, tmp_path: Path, capsys: Printed) -> None:
    whole = clips.write_clip(tmp_path / "whole.mp4", 160, container_options={"movflags": "faststart"})
    path = clips.cut(whole, 0.6)
    assert run(engine, path, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert f"vadrun: warning: {path} is damaged" in printed.err
    folder = tmp_path / "out" / path.stem
    result = json.loads((folder / "result.json").read_text())
    assert result["damage"] is not None
    assert len((folder / "scores.csv").read_text().splitlines()) == 1 + result["snippets"] > 1


def test_a_pipe_in_a_folder_costs_that_entry_alone(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(clip.read_bytes())
    assert run(engine, tmp_path, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "a.mp4 is a pipe, not a regular file" in printed.err and "1 of 2 videos have no results" in printed.err
    assert (tmp_path / "out" / "b" / "result.json").is_file()


def test_an_address_is_refused_without_its_password(engine: str, capsys: Printed) -> None:
    said = refused(capsys, run(engine, "rtsp://admin:secret@127.0.0.1:9/1"))
    assert "rtsp://...@127.0.0.1:9/... is an address" in said and "secret" not in said


def test_one_bad_file_does_not_cost_the_others(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("I am text")
    assert run(engine, bad, clip, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "bad.mp4 cannot be opened as a video" in printed.err
    assert "1 of 2 videos have no results" in printed.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["door"]


def test_a_second_video_stream_is_said_and_can_be_chosen(engine: str, tmp_path: Path, capsys: Printed) -> None:
    path = clips.write_streams(tmp_path / "two.mp4", (200, 30, 30), (30, 30, 200))

    def result(*options: object) -> tuple[dict[str, Any], str]:
        out = tmp_path / f"out{len(options)}"
        assert run(engine, path, "--out", out, *options) == 0
        return json.loads((out / "two" / "result.json").read_text()), capsys.readouterr().err

    first, said = result()
    (remark,) = first["video"]["remarks"]
    assert first["video"]["stream"] == 0
    assert remark.startswith("holds 2 video streams") and f"two.mp4: {remark}" in said
    second, said = result("--stream", 1, "--quiet")
    assert second["video"]["stream"] == 1 and said == ""
    assert second["peak"] != first["peak"]
    assert "has no video stream 7" in refused(capsys, run(engine, path, "--stream", 7))


def test_inputs_that_cannot_be_used(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed, bundle_copy: Path
) -> None:
    sound = clips.write_sound(tmp_path / "sound.mp4")
    assert "does not exist" in refused(capsys, run(engine, tmp_path / "nothing.mp4"))
    assert "has no video stream" in refused(capsys, run(engine, sound))
    (tmp_path / "empty").mkdir()
    assert "holds no video files" in refused(capsys, run(engine, tmp_path / "empty"))
    assert "is not a bundle" in refused(capsys, run(str(tmp_path), clip))
    assert "does not exist" in refused(capsys, run(str(tmp_path / "nowhere"), clip))
    assert "threshold is 2" in refused(capsys, run(engine, clip, "--threshold", 2))
    assert "is a file: give a folder to --out" in refused(capsys, run(engine, clip, "--out", sound))
    assert "there is no backend 'tflite'" in refused(
        capsys, main([str(clip), "--engine", engine, "--backend", "tflite"])
    )
    (bundle_copy / "text.npy").write_bytes(b"")
    assert "text.npy is not the file that was built" in refused(capsys, run(str(bundle_copy), clip))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_on_disk(engine: str, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    tmp_path.chmod(0o500)
    assert "cannot write to" in refused(capsys, run(engine, clip, "--out", tmp_path / "out"))


def test_an_unwritable_place(engine: str, clip: Path, capsys: Printed) -> None:
    assert "cannot write to" in refused(capsys, run(engine, clip, "--out", "/proc/nowhere"))


def test_help_and_import_load_nothing_heavy() -> None:
    code = """
import sys, vadrun
from vadrun.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"numpy", "av", "torch", "onnx", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_running_never_imports_torch(engine: str, clip: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "open_clip", "safetensors", "torchvision", "vadclip", "vadexport"):
    sys.modules[name] = None
from vadrun.cli import main
assert main([{str(clip)!r}, "--engine", {engine!r}, "--backend", "onnxruntime:cpu"]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("count", [1, 2])
def test_terminating_a_run_leaves_no_half_results(engine: str, tmp_path: Path, count: int) -> None:
    videos = [clips.write_clip(tmp_path / f"long{number}.mp4", 4000, size=(320, 240)) for number in range(count)]
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-m", "vadrun.cli", *map(str, videos), "--engine", engine]
    command += ["--out", str(out), "--backend", "onnxruntime:cpu", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # loaded
        begun = min(count, feeding.cores())
        until = time.monotonic() + 30
        while len([path for path in out.iterdir() if path.is_dir()]) < begun and time.monotonic() < until:
            time.sleep(0.005)
        process.terminate()
        process.stderr.read()
    assert process.returncode in (143, -15)
    assert [path.name for path in out.iterdir()] == []


def test_a_stale_certificate_is_remarked_on(bundle_copy: Path, clip: Path, tmp_path: Path, capsys: Printed) -> None:
    path = bundle_copy / "certificate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stale": "relabelled"}))
    assert run(str(bundle_copy), clip, "--out", tmp_path / "out") == 0
    said = "does not hold for this bundle (the bundle has been relabelled since): run vadexport verify"
    assert said in capsys.readouterr().err
    (result,) = (tmp_path / "out").rglob("result.json")
    assert said in json.loads(result.read_text())["bundle"]["remark"]


def test_a_wrong_name_costs_no_other_video_its_results(
    engine: str, clip: Path, tmp_path: Path, capsys: Printed
) -> None:
    (tmp_path / "empty").mkdir()
    wrong = [tmp_path / "nothing.mp4", tmp_path / "empty", "rtsp://admin:secret@door/1"]
    assert run(engine, *wrong, clip, "--out", tmp_path / "out", "--json") == 2
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [Path(video["results"]) for video in document["videos"]] == [tmp_path / "out" / "door"]
    assert (tmp_path / "out" / "door" / "scores.csv").exists()
    for number, part in enumerate(["nothing.mp4 does not exist", "holds no video files", "is an address"]):
        assert part in document["errors"][number] and f"vadrun: {document['errors'][number]}\n" in printed.err
    assert "secret" not in printed.out + printed.err
    assert printed.err.endswith("vadrun: 3 of 4 videos have no results\n")


def test_wrong_names_alone_are_all_told(tmp_path: Path, capsys: Printed) -> None:
    assert run(str(tmp_path / "nowhere"), tmp_path / "a.mp4", tmp_path / "b.mp4") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
