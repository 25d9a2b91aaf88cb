"""Frames that differ, and the ranges that are taken from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import clips
from vadcalibrate.cli import main
from vadcalibrate.diverse import Chosen, choose_frames, furthest_first
from vadcalibrate.ranges import PERCENTILES, Ranges, collect, linear_inputs
from vadrun import Bundle, Engine, UserError

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def long_quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred equal snippets, and then something else for twenty."""

    def draw(number: int, width: int, height: int) -> np.ndarray:
        return clips.numbered(0 if number < 1600 else number, width, height)

    return clips.write_clip(tmp_path_factory.mktemp("quiet") / "yard.mp4", 16 * 120, size=(64, 48), draw=draw)


def test_the_furthest_comes_first() -> None:
    angles = np.array([0.0, 0.01, 0.02, 1.5, 0.8, 0.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    order, reach = furthest_first(features, 3)
    assert set(order.tolist()[1:]) >= {3} and len(set(np.round(angles[order], 1))) == 3
    assert 0 <= reach < 1e-3
    everything, _ = furthest_first(features, 6)
    assert len(everything) == 4 or len(everything) == 3  # equal rows are one picture


def test_frames_come_from_the_whole_length(bundles: dict[str, Path], long_quiet: Path) -> None:
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        chosen = choose_frames(engine, [long_quiet], 16)
    assert chosen.candidates == 120 and chosen.videos == 1
    assert 8 <= len(chosen.frames) <= 16
    equal = np.abs(chosen.frames.astype(int) - chosen.frames[0]).mean(axis=(1, 2, 3)) < 2
    assert equal.sum() <= 2  # one of the hundred equal ones, not a share of them


def test_one_grey_frame_a_thousand_times_is_refused(bundles: dict[str, Path], tmp_path: Path, capsys: Printed) -> None:
    def grey(number: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), 128, np.uint8)

    video = clips.write_clip(tmp_path / "grey.mp4", 1000, size=(64, 48), draw=grey)
    arguments = ["ranges", "--engine", str(bundles["ucf"]), "--videos", str(video), "--out", str(tmp_path / "r.npz")]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "the 62 frames of this footage show only 1 different pictures" in err and "Traceback" not in err
    assert not (tmp_path / "r.npz").exists()


@pytest.fixture(scope="module")
def chosen(bundles: dict[str, Path]) -> Chosen:
    from vadexport.probe import drawn_frames

    frames = drawn_frames(64)
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        return Chosen(frames, engine.encode(frames), 24, 1, 0.1)


def test_ranges_are_those_of_the_activations(bundles: dict[str, Path], chosen: Chosen) -> None:
    import onnxruntime

    bundle = Bundle.open(bundles["ucf"])
    ranges = collect(bundle, chosen)
    assert set(ranges.methods) == {"entropy", *(f"percentile {p:g}" for p in PERCENTILES)}
    assert len(ranges.frames) == 6  # every fourth is kept to check with
    assert ranges.checkpoint == bundle.manifest["checkpoint"]["sha256"]
    model = onnx.load(bundle.path("encoder"))
    inputs = linear_inputs(model)
    assert tuple(inputs) == ranges.linears and "proj" not in inputs
    assert {name.split("/", 1)[1] for name in inputs} >= {"attn/qkv", "attn/out", "mlp/c_fc", "mlp/c_proj"}
    name = "blocks.0/mlp/c_proj"
    model.graph.output.append(onnx.ValueInfoProto(name=inputs[name]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    used = chosen.frames[np.arange(24) % 4 != 3]
    values = np.abs(session.run([inputs[name]], {"frames": used})[0])
    assert ranges.of("percentile 100")[name] == pytest.approx(values.max(), rel=1e-5)
    for percentile in (99.9, 99.99):
        expected = np.percentile(values, percentile)
        assert ranges.of(f"percentile {percentile:g}")[name] == pytest.approx(expected, rel=0.03)
    assert 0 < ranges.of("entropy")[name] <= values.max() * 1.001


def test_a_file_of_ranges(bundles: dict[str, Path], chosen: Chosen, tmp_path: Path) -> None:
    ranges = collect(Bundle.open(bundles["ucf"]), chosen)
    ranges.save(tmp_path / "r.npz")
    again = Ranges.load(tmp_path / "r.npz")
    assert again.methods == ranges.methods and again.linears == ranges.linears and again.origin == ranges.origin
    np.testing.assert_array_equal(again.frames, ranges.frames)
    with pytest.raises(UserError, match="does not exist"):
        Ranges.load(tmp_path / "none.npz")
    with np.load(tmp_path / "r.npz") as data:
        sound = {name: data[name] for name in data.files}
    facts = json.loads(str(sound["facts"]))
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UserError, match=r"text\.npz: it is not a whole \.npz archive .*: make it with vadcalibrate"):
        Ranges.load(tmp_path / "text.npz")
    for changed, said in (
        ({"facts": None}, "it holds no array 'facts'"),
        ({"facts": np.array("{")}, "it is not JSON"),
        ({"facts": np.array(json.dumps(facts | {"kind": "another"}))}, "kind is 'another', not one of vadclip-edge"),
        ({"facts": np.array(json.dumps(facts | {"origin": {}}))}, "origin.frames is missing"),
        ({"facts": np.array(json.dumps(facts | {"linears": ["a"]}))}, "its ranges are not those of its linears"),
        ({name: found * 0 for name, found in sound.items() if name.startswith("method")}, "a range in it is not above"),
        ({"frames": np.zeros((2, 4, 5, 3), np.uint8)}, r"'frames' is \[2, 4, 5, 3\], not \[k,size,size,3\]"),
    ):
        arrays = {name: value for name, value in (sound | changed).items() if value is not None}
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(UserError, match=rf"other\.npz: {said}.*: make it with vadcalibrate ranges"):
            Ranges.load(tmp_path / "other.npz")


def test_bad_input(bundles: dict[str, Path], tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "empty").mkdir()
    engine = ("--engine", bundles["ucf"])
    folder = tmp_path / "f.npz"
    folder.mkdir()
    for arguments, said in (
        ((*engine, "--videos", tmp_path / "empty", "--out", tmp_path / "r.npz"), "holds no video files"),
        ((*engine, "--videos", tmp_path, "--out", tmp_path / "r.txt"), "give a file that ends in .npz"),
        ((*engine, "--videos", tmp_path, "--out", folder), "give a file that ends in .npz"),
        ((*engine, "--videos", tmp_path, "--out", tmp_path / "r.npz", "--frames", 3), "--frames is 3: give 8 or more"),
    ):
        assert main(["ranges", *(str(argument) for argument in arguments)]) == 2
        assert said in capsys.readouterr().err
