"""The whole chain of commands on toy footage: videos, features, checkpoint, figures, bundle."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from tests.golden import Golden
from vadclip.cli import _ExtractProgress, main
from vadexport.cli import main as vadexport
from vadrun import Engine
from vadrun.console import clock

CLASSES = {"name": "toy", "classes": {"quiet": "normal", "flash": "a bright flash"}}


def test_from_videos_to_a_bundle(ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bright(number: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), 40 + 200 * (16 <= number < 48), np.uint8)

    def dark(number: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), 40 + number % 7, np.uint8)

    videos = tmp_path / "videos"
    videos.mkdir()
    rows = []
    for index in range(12):
        label = "flash" if index % 2 else "quiet"
        clips.write_clip(videos / f"{label}{index:02d}.mp4", 64, draw=bright if index % 2 else dark)
        rows.append(f"{label}{index:02d}__0.npy,{label}")
    (tmp_path / "train.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))

    features, run = tmp_path / "features", tmp_path / "run"
    assert main(["extract", str(videos), "--encoder", str(ucf.checkpoint), "--out", str(features)]) == 0
    common = [
        "--list",
        str(tmp_path / "train.csv"),
        "--root",
        str(features),
        "--classes",
        str(tmp_path / "classes.json"),
    ]
    train = ["train", *common, "--clip", str(ucf.checkpoint), "--out", str(run), "--batch", "4", "--epochs", "2"]
    assert main([*train, "--select", "last"]) == 1
    captured = capsys.readouterr()
    assert "checkpoint in" in captured.out
    assert "2 epochs of 1 step, 2 steps in all; learning rate 2e-05, times 0.1 from epoch 2" in captured.out
    assert "2 steps at this learning rate hardly move the weights" in captured.err
    assert "the model learnt nothing: its loss at the end" in captured.err

    annotations = [f"flash{index:02d},flash,16,48" for index in range(1, 12, 2)]
    seconds = ["video,label,start,end", *annotations]
    (tmp_path / "truth.csv").write_text("\n".join(seconds) + "\n")
    evaluate = [
        "evaluate",
        str(run / "best.safetensors"),
        *common,
        "--annotations",
        str(tmp_path / "truth.csv"),
        "--json",
        "--quiet",
    ]
    assert main(evaluate) == 0
    figures = capsys.readouterr().out

    out = tmp_path / "bundle"
    assert vadexport(["build", "--checkpoint", str(run / "best.safetensors"), "--out", str(out)]) == 0
    with Engine.load(out) as engine:
        assert engine.labels == ["normal", "a bright flash"]
        assert engine.bundle.model.annotation_names == ("quiet", "flash")

    # The names are in the checkpoint and in the bundle, which need no file of classes; one may be given all the same.
    checkpoint = json.loads(figures)
    capsys.readouterr()
    place = common.index("--classes")
    for model in (run / "best.safetensors", out):
        for given in (common[:place], common):
            command = [
                "evaluate",
                str(model),
                *given,
                "--annotations",
                str(tmp_path / "truth.csv"),
                "--json",
                "--quiet",
            ]
            assert main(command) == 0, capsys.readouterr().err
            found = json.loads(capsys.readouterr().out)
            assert [row["name"] for row in found["classes"]] == ["quiet", "flash"]
            assert found["frame_metrics"]["alignment"] == pytest.approx(
                checkpoint["frame_metrics"]["alignment"], abs=1e-3
            )


def test_progress_tells_the_time_left_of_all_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = iter([0.0, 60.0, 180.0])
    monkeypatch.setattr("vadrun.console.time.monotonic", lambda: next(now))
    shown = Terminal()
    videos = [Path(f"{name}.mp4") for name in "abcd"]
    progress = _ExtractProgress(videos, shown)
    progress(videos[1], 30.0, 60.0)  # the first one was there already
    progress(videos[2], 15.0, 30.0)
    first, second = shown.getvalue().split("\x1b[K")[1:]
    assert "video 2 of 4, b.mp4: 0:30.0 of 1:00.0" in first and first.rstrip("\r").endswith(
        f"{clock(60 / 0.5 * 2.5)} left"
    )
    assert second.endswith(f"{clock(180 / 1.5 * 1.5)} left")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--dataset", "ucf", "--classes", "c.json"], "give either --dataset"),
        ([], "give either --dataset"),
        (["--dataset", "shanghai"], "shanghai"),
        (["--dataset", "ucf", "--recipe", "secret"], "unknown recipe 'secret'"),
        (["--dataset", "ucf", "--epochs", "0"], "epochs is 0"),
        (["--dataset", "ucf"], "list.csv"),
        (["--dataset", "ucf", "--select", "last", "--validation", "0.2"], "sets no videos aside"),
        (["--dataset", "ucf", "--preset", "small", "--validation", "0.2"], "--select last sets no videos aside"),
        (["--dataset", "ucf", "--preset", "small", "--recipe", "paper"], "--preset has a recipe of its own"),
    ],
)
def test_training_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    command = ["train", "--list", str(tmp_path / "list.csv"), "--out", str(tmp_path / "run"), *arguments]
    assert main(command) == 2
    printed = capsys.readouterr().err.strip()
    assert part in printed and "\n" not in printed
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_the_machine_is_said_before_training(
    ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("path,label\na__0.npy,Normal\nb__0.npy,Arson\n")
    common = ["--list", str(tmp_path / "list.csv"), "--clip", str(ucf.checkpoint), "--dataset", "ucf"]
    common += ["--out", str(tmp_path / "run")]
    assert main(["train", *common, "--device", "gpu"]) == 2
    assert "the device 'gpu' cannot be used" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", *common, "--test-list", "t.csv", "--annotations", "a.txt"]) == 2
    assert "start vadclip ablate without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
