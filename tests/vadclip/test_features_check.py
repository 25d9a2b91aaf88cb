"""Features that somebody has are recognised by what made them, and told apart from what did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import clips
from tests.vadclip.test_frames import write_folder
from vadclip import features_check
from vadclip.cli import main
from vadclip.extract import Encoder, ExtractOptions, extract
from vadclip.features_check import Findings, check, preprocessings, read_given
from vadrun.errors import UserError
from vadrun.preprocessing import STYLES
from vadrun.sampling import Sampling, _ByFrames

SIZE = 32
RNG = np.random.default_rng(3)


def encode(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An encoder that tells small differences: every fourth pixel both ways, without the mean."""
    flat = images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32)
    return (flat - flat.mean(axis=1, keepdims=True)) / np.float32(100)


ENCODER = Encoder(encode, SIZE, "pixels", 16)


def moving(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Every frame, crop and mirror looks different."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 3 + number * 11 + y * 2) % 255
    green = (255 * x * y // (width * height) + 7 * number) % 255
    return np.stack([red, green, (y * 5 - x + 3 * number) % 255], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("a", 16 * 6 + 5), ("b", 16 * 5)):
        clips.write_clip(folder / f"{name}.mp4", frames, draw=moving, options={"crf": "4"})
    return folder


def made(videos: Path, out: Path, crops: int = 1, pick: str = "middle") -> Path:
    options = ExtractOptions(crops, Sampling(pick=pick), "float16")  # type: ignore[arg-type]
    extract(sorted(videos.glob("*.mp4")), out, ENCODER, options)
    return out


def found(videos: Path, features: dict[str, dict[int | None, NDArray[np.floating]]], **options: int) -> Findings:
    given = [features_check.Given(name, videos / f"{name}.mp4", crops) for name, crops in features.items()]
    return check(given, ENCODER, **options)  # type: ignore[arg-type]


def loaded(folder: Path, crop: int = 0) -> dict[str, dict[int | None, NDArray[np.floating]]]:
    return {name: {crop: np.load(folder / f"{name}__{crop}.npy")} for name in ("a", "b")}


@pytest.mark.parametrize(("pick", "crop"), [("first", 3), ("middle", 5), ("mean", 0)])
def test_the_settings_are_found(videos: Path, tmp_path: Path, pick: str, crop: int) -> None:
    folder = made(videos, tmp_path / "f", 10, pick)
    findings = found(videos, loaded(folder, crop))
    assert len(findings.ranked[crop]) == 3 * 17 * 10 * len(STYLES)
    best = findings.best[crop]
    assert findings.reproduced
    assert (best.sample, best.crop, best.shift) == (pick, crop, 0) and best.cosine > 0.9999
    assert best.preprocessing == next(iter(preprocessings(SIZE)))
    other = next(one for one in findings.ranked[crop] if (one.sample, one.crop) != (pick, crop))
    assert other.cosine < best.cosine - 0.001
    assert findings.verdict().startswith(f"Reproduced by --sample {pick}, crop {crop}, --preprocessing default")
    assert findings.remarks() == [] and findings.counts == {"a": (6, 6, 101), "b": (5, 5, 80)}


def test_crops_in_another_order_are_named(videos: Path, tmp_path: Path) -> None:
    folder = made(videos, tmp_path / "f", 10)
    features = {name: {1: np.load(folder / f"{name}__3.npy"), 5: np.load(folder / f"{name}__5.npy")} for name in "ab"}
    findings = found(videos, features, snippets=2)
    assert [one.crop for one in findings.best.values()] == [3, 5]
    assert "What is given as crop 1 is nearest to crop 3." in findings.remarks()


def test_a_frame_that_no_option_gives(videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = _ByFrames.__init__

    def last(self: _ByFrames[Any, Any], *rest: Any) -> None:
        plain(self, *rest)
        self._wanted = range(15, 16)

    with monkeypatch.context() as patch:
        patch.setattr(_ByFrames, "__init__", last)
        patch.setattr("vadrun.video._wanted", lambda sampling: None)  # no picture is left out
        folder = made(videos, tmp_path / "f", pick="first")
    findings = found(videos, loaded(folder))
    assert not findings.reproduced and findings.best[0].sample == "frame 15"
    assert "They are of frame 15 of each snippet, which no --sample gives." in findings.remarks()


@pytest.mark.parametrize("shift", [-1, 1])
def test_features_that_are_late_or_early(videos: Path, tmp_path: Path, shift: int) -> None:
    folder = made(videos, tmp_path / "f")
    features = {name: {0: np.roll(np.load(folder / f"{name}__0.npy"), shift, axis=0)} for name in "ab"}
    findings = found(videos, features, snippets=3)
    assert not findings.reproduced and findings.best[0].shift == shift
    assert f"They are 1 snippet {'late' if shift > 0 else 'early'}." in findings.remarks()


def test_other_lengths_and_counts_are_said(videos: Path, tmp_path: Path) -> None:
    folder = made(videos, tmp_path / "f")
    plain = loaded(folder)
    lengths = {name: np.linalg.norm(one[0].astype(float), axis=1, keepdims=True) for name, one in plain.items()}
    unit = {name: {0: one[0] / lengths[name]} for name, one in plain.items()}
    findings = found(videos, unit)
    assert not findings.reproduced and "they were normalised or scaled after CLIP" in findings.text()
    kept = {name: {0: np.concatenate([one[0], one[0][-1:]])} for name, one in plain.items()}
    findings = found(videos, kept)
    assert findings.reproduced and findings.counts["a"] == (7, 6, 101)
    text = findings.text()
    assert "2 of 2 videos have another number of snippets, such as 'a': 7 are given, and its 101 frames make 6" in text
    assert "the incomplete last snippet was kept" in text
    every = {name: {0: np.repeat(one[0], 16, axis=0)} for name, one in plain.items()}
    findings = found(videos, every)
    assert not findings.reproduced and "that is one for every 1.05 frames, not for 16" in findings.text()


def test_what_nothing_reproduces(videos: Path) -> None:
    features = {name: {None: RNG.standard_normal((6, 192)).astype(np.float32)} for name in ("a", "b")}
    findings = found(videos, features)
    assert not findings.reproduced
    text = findings.text()
    assert "Not reproduced: the nearest is" in text and "Likely reasons: another CLIP" in text
    plain = json.loads(json.dumps(findings.to_json(), allow_nan=False))
    assert plain["reproduced"] is False and len(plain["remarks"]) >= 1


def test_a_still_video_tells_nothing_apart(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    clips.write_clip(tmp_path / "v" / "a.mp4", 64, draw=lambda number, w, h: moving(0, w, h))
    folder = made(tmp_path / "v", tmp_path / "f", pick="first")
    findings = found(tmp_path / "v", {"a": {0: np.load(folder / "a__0.npy")}})
    assert findings.reproduced and " other ones cannot be told from it here" in findings.verdict()
    assert findings.best[0].sample == "middle"  # the default, of those that are alike


def test_frames_are_encoded_once(videos: Path, tmp_path: Path) -> None:
    folder = made(videos, tmp_path / "f")
    count = 0

    def counting(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal count
        count += len(images)
        return encode(images)

    given = read_given("a", videos / "a.mp4", [(folder / "a__0.npy", None, 0)])
    check([given], Encoder(counting, SIZE, "counting", 16), snippets=2)
    assert count <= 2 * 16 * 10 * len(STYLES) + 1  # one more image tells the width


def test_the_command(
    videos: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, listed = tmp_path / "f", tmp_path / "list.csv"
    bundle = str(bundles["ucf"])
    assert main(["extract", str(videos), "--encoder", bundle, "--out", str(out), "--sample", "first"]) == 0
    listed.write_text("path;label\nD:\\f\\a__0.npy;Normal\nD:\\f\\b__0.npy;x\nD:\\f\\gone__0.npy;x\n")
    common = ["features", "check", "--videos", str(videos), "--encoder", bundle, "--most", "1", "--snippets", "2"]
    capsys.readouterr()
    assert main([*common, "--list", str(listed), "--root", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reproduced"] and list(told["videos"]) == ["b"] and told["best"][0]["given_crop"] == 0
    values = np.load(out / "b__0.npy")
    ten = tmp_path / "ten"
    ten.mkdir()
    np.save(ten / "b.npy", np.repeat(values[:, None], 10, axis=1) + RNG.standard_normal((5, 10, 64)).astype(np.float16))
    assert main([*common, "--list", str(ten)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("b; encoder ") and "Not reproduced" in text
    for arguments, part in (
        (["--list", str(listed)], "names the Windows path"),
        (["--list", str(listed), "--root", str(tmp_path / "no")], "none of the 3 files of"),
        (["--list", str(out), "--snippets", "0"], "--snippets is 0"),
        (["--list", str(out), "--clip-model", "openai"], "leave --clip-model out"),
        (["--list", str(videos)], "holds no .npy files"),
    ):
        assert main([*common, *arguments]) == 2
        assert part in capsys.readouterr().err
    np.save(tmp_path / "ten" / "b.npy", np.ones((5, 7), np.float32))
    assert main([*common, "--list", str(ten)]) == 2
    assert "has features of 7 numbers, but the encoder makes 64" in capsys.readouterr().err
    (tmp_path / "ten" / "b.npy").rename(tmp_path / "ten" / "c.npy")
    assert main([*common, "--list", str(ten)]) == 2
    assert (
        "has no video of any of the 1 features: 'c' is such a name, and 'a' is one of a video"
        in capsys.readouterr().err
    )
    listed.write_text("path,label\na.mp4,Normal\n")
    assert main([*common, "--list", str(listed)]) == 2
    assert "lists a.mp4 where feature files (.npy) are wanted" in capsys.readouterr().err


def test_folders_of_frames(tmp_path: Path) -> None:
    write_folder(tmp_path / "v" / "01", 40)
    options = ExtractOptions(rate=25.0)
    extract([tmp_path / "v" / "01"], tmp_path / "f", ENCODER, options)
    given = read_given("01", tmp_path / "v" / "01", [(tmp_path / "f" / "01__0.npy", None, 0)])
    findings = check([given], ENCODER, snippets=2, rate=25.0)
    assert findings.reproduced and findings.best[0].sample == "middle" and findings.counts == {"01": (2, 2, 40)}
    with pytest.raises(UserError, match="is a folder"):
        check([given], ENCODER)
