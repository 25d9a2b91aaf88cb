import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.golden import Golden
from vadclip.checkpoint import save_checkpoint
from vadclip.cli import main
from vadclip.evaluate import Evaluation, Progress, classes_of, read_test_set
from vadclip.evaluate import evaluate as evaluate_set
from vadclip.groundtruth import Annotations, read_annotations
from vadclip.lists import FeatureList, load_classes, load_list
from vadclip.metrics import detection_map, frame_metrics
from vadclip.presets import PRESETS, Preset
from vadclip.report import confusion
from vadclip.scorers import ModelScorer, Scorer, open_scorer
from vadrun.errors import UserError
from vadrun.sampling import Sampling
from vadrun.scoring import Scores

ANNOTATIONS = """\
Fire1  Arson  40  200  -1  -1
Fight2  Fighting  16  100  300  420
Normal3  Normal  -1  -1  -1  -1
Normal4  Normal  -1  -1  -1  -1
"""
SNIPPETS = {"Fire1": 37, "Fight2": 29, "Normal3": 300, "Normal4": 1}
LABELS = {"Fire1": "Arson", "Fight2": "Fighting", "Normal3": "Normal", "Normal4": "Normal"}


class Place:
    """A test list with its feature files and annotations."""

    def __init__(self, folder: Path, golden: Golden) -> None:
        self.folder = folder
        self.list = folder / "test.csv"
        self.annotations = folder / "annotations.txt"
        self.annotations.write_text(ANNOTATIONS, encoding="utf-8")
        source = golden["features_600"].numpy()
        (folder / "features").mkdir()
        for k, (name, n) in enumerate(SNIPPETS.items()):
            np.save(self.features(name), source[7 * k : 7 * k + n].astype(np.float16 if k else np.float32))
        rows = [f"/their/machine/features/{name}__5.npy,{label}" for name, label in LABELS.items()]
        self.list.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")

    def features(self, name: str) -> Path:
        return self.folder / "features" / f"{name}__5.npy"

    def read(self) -> FeatureList:
        return load_list(self.list, PRESETS["ucf"], self.folder)

    def arguments(self, model: Path, *more: str) -> list[str]:
        fixed = ["--list", str(self.list), "--root", str(self.folder), "--annotations", str(self.annotations)]
        return ["evaluate", str(model), *fixed, *more]


@pytest.fixture
def place(tmp_path: Path, ucf: Golden) -> Place:
    return Place(tmp_path, ucf)


def evaluate(
    scorer: Scorer,
    listed: FeatureList,
    preset: Preset,
    annotations: Annotations,
    events: Annotations | None = None,
    counts: dict[str, int] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    return evaluate_set(scorer, read_test_set(listed, preset, scorer.width, annotations, events, counts), progress)


class Oracle:
    """Scores that follow the truth of :data:`ANNOTATIONS`, by the number of snippets."""

    labels = PRESETS["ucf"].labels
    width = 64
    anomaly = "confidence"
    description = "an oracle"
    sha256 = None
    feature_settings = None
    mirrored = None

    def __init__(self) -> None:
        self.calls = 0

    def score(self, features: NDArray[np.float32]) -> Scores:
        self.calls += 1
        n = len(features)
        score = np.zeros(n, np.float32)
        alignment = np.full((n, 14), 0.02, np.float32)
        for start, end, category, count in ((2, 13, 3, 37), (1, 7, 7, 29), (18, 27, 7, 29)):
            if n == count:
                score[start:end] = 1.0
                alignment[start:end, category] = 0.7
        alignment[:, 0] = 1.0 - alignment[:, 1:].sum(axis=1)
        return Scores(score, alignment, score)


def test_a_model_that_is_right(place: Place) -> None:
    seen: list[tuple[int, int]] = []
    found = evaluate(
        Oracle(),
        place.read(),
        PRESETS["ucf"],
        read_annotations(place.annotations),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # Frames 32 to 40, 200 to 208, 96 to 100 and so on are of snippets that are anomalous in part.
    assert 0.98 < found.frames["confidence"].auc < 1.0
    assert found.frames["alignment"].auc == pytest.approx(found.frames["confidence"].auc)
    assert found.detection["abnormal-only"].map == (100.0,) * 5
    assert found.detection["paper"].map == (0.0,) * 5  # most classes never stand out
    assert found.detection["abnormal-only"].per_class["Abuse"] is None
    rows = {row.name: row for row in found.classes}
    assert list(rows) == list(PRESETS["ucf"].classes)
    assert (rows["Normal"].videos, rows["Normal"].events, rows["Normal"].auc) == (2, None, None)
    assert (rows["Fighting"].videos, rows["Fighting"].events) == (1, 2)
    assert (rows["Abuse"].videos, rows["Abuse"].events, rows["Abuse"].auc) == (0, 0, None)
    assert rows["Arson"].auc is not None and 0.98 < rows["Arson"].auc < 1.0

    text = found.table()
    assert "confidence (reported)" in text
    line = next(line for line in text.splitlines() if line.startswith("Fighting"))
    assert line.split() == ["Fighting", "1", "2", f"{100 * (rows['Fighting'].auc or 0):.2f}"] + ["100.00"] * 8
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (plain["videos"], plain["normal_videos"], plain["frames"]) == (4, 2, 16 * 367)
    assert plain["anomalous_frames"] == 160 + 84 + 120
    assert plain["detection_map"]["abnormal-only"]["avg"] == 100.0


def test_figures_are_of_the_models_own_scores(place: Place, ucf: Golden) -> None:
    model = ucf.load()
    found = evaluate(ModelScorer(model, "cpu"), place.read(), PRESETS["ucf"], read_annotations(place.annotations))
    text = model.encode_text(model.config.labels)
    confidence, classes, masks = [], [], []
    for name, n in SNIPPETS.items():
        logits, alignment = model.score(torch.from_numpy(np.load(place.features(name))).float(), text)
        confidence.append(torch.sigmoid(logits).numpy())
        classes.append(torch.softmax(alignment, dim=-1).detach().numpy())
        masks.append(np.zeros(16 * n, bool))
    masks[0][40:200] = masks[1][16:100] = masks[1][300:420] = True
    expected = frame_metrics(confidence, masks, [False, False, True, True])
    assert found.frames["confidence"].auc == pytest.approx(expected.auc, abs=1e-6)
    expected = frame_metrics([1 - one[:, 0].astype(float) for one in classes], masks, [False, False, True, True])
    assert found.frames["alignment"].ap == pytest.approx(expected.ap, abs=1e-5)
    segments = [[(40, 200)], [(16, 100), (300, 420)], [(0, 4800)], [(0, 16)]]
    labels = [["Arson"], ["Fighting", "Fighting"], ["A"], ["A"]]
    for mode, answer in found.detection.items():
        again = detection_map(classes, segments, labels, list(PRESETS["ucf"].classes), mode)
        assert answer.map == pytest.approx(again.map, abs=1e-4)


def test_a_bundle_gives_the_checkpoints_figures(
    place: Place, ucf: Golden, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = place.folder / "report"
    assert main(place.arguments(ucf.checkpoint, "--dataset", "ucf", "--device", "cpu", "--out", str(out))) == 0
    shown = capsys.readouterr().out
    assert shown.startswith((out / "evaluation.txt").read_text(encoding="utf-8"))
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.txt"]
    of_checkpoint = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert main(place.arguments(bundles["ucf"], "--backend", "onnxruntime:cpu", "--json")) == 0
    of_bundle = json.loads(capsys.readouterr().out)
    assert of_bundle["origin"]["runs_on"].startswith("onnxruntime:cpu")
    assert of_checkpoint["origin"]["runs_on"].startswith("PyTorch")
    for branch, figures in of_checkpoint["frame_metrics"].items():
        assert of_bundle["frame_metrics"][branch] == pytest.approx(figures, abs=1e-4), branch
    for mode, figures in of_checkpoint["detection_map"].items():
        assert of_bundle["detection_map"][mode]["map"] == pytest.approx(figures["map"], abs=1e-2)

    assert main(place.arguments(bundles["ucf"], "--out", str(out))) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(place.arguments(bundles["ucf"], "--out", str(out), "--force")) == 0


def test_force_never_takes_what_is_no_evaluation(
    place: Place, ucf: Golden, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vadclip.evaluate_command.open_scorer", lambda *_, **__: pytest.fail("too late"))
    precious, file = place.folder / "precious", place.folder / "file"
    precious.mkdir()
    (precious / "keep.txt").touch()
    file.write_text("mine")
    for out, part in ((precious, "is not an evaluation and not empty, so it is not replaced"), (file, "is a file")):
        assert main(place.arguments(ucf.checkpoint, "--out", str(out), "--force")) == 2
        assert part in capsys.readouterr().err
    assert (precious / "keep.txt").exists() and file.read_text() == "mine"


def test_two_annotation_files(place: Place) -> None:
    plain = place.folder / "plain.txt"
    plain.write_text("Fire1 40 200\nFight2 16 100 300 420\n", encoding="utf-8")
    frames = read_annotations(plain)
    found = evaluate(Oracle(), place.read(), PRESETS["ucf"], frames)
    assert found.detection == {} and "No detection mAP" in found.table()
    with_events = evaluate(Oracle(), place.read(), PRESETS["ucf"], frames, read_annotations(place.annotations))
    assert with_events.frames == found.frames
    assert with_events.detection["abnormal-only"].avg == 100.0


def test_pictures(
    place: Place,
    ucf: Golden,
    bundles: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vadclip.report._POINTS", 60)
    out = place.folder / "report"
    arguments = place.arguments(ucf.checkpoint, "--dataset", "ucf", "--pictures")
    assert main(arguments) == 2
    assert "no place for pictures: give a folder to --out" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out)]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]+)"', page)
    assert [name for name in shown if "/" not in name] == ["curves.png", "confusion.png", "features.png"]
    assert [name.split("-")[-1] for name in shown if "/" in name] == [f"{name}.png" for name in SNIPPETS]
    for name in shown:
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name
    assert "Frames, in percent" in page
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "confusion.png", "features.png"}

    # A bundle has no adapter of its own to look behind.
    assert main(place.arguments(bundles["ucf"], "--pictures", "--out", str(out), "--force")) == 0
    assert not (out / "features.png").exists() and (out / "curves.png").exists()


def test_confusion(place: Place) -> None:
    found = evaluate(Oracle(), place.read(), PRESETS["ucf"], read_annotations(place.annotations))
    counts = confusion(found)
    assert counts.sum() == 367
    # Snippets count by their middle frame: of 40 to 200, frame 40 and 184 are the first and the last one.
    assert (counts[3, 3], counts[3, 0], counts[0, 3]) == (10, 0, 1)
    assert counts[7, 7] == 5 + 7 and counts[0, 7] == 1 + 2
    assert counts[0, 0] == 367 - 10 - 1 - 12 - 3


def test_adapter_is_the_models(place: Place, ucf: Golden) -> None:
    model = ucf.load()
    scorer = ModelScorer(model, "cpu")
    for n in (37, 256, 300):
        features = ucf["features_600"][:n].numpy()
        after = torch.from_numpy(scorer.adapt(features))
        assert after.shape == (min(n, 256), 64)
        logits = model.classifier(after + model.mlp2(after)).squeeze(-1)
        expected = model.score(torch.from_numpy(features), torch.zeros(14, 64))[0][:256]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_own_classes(place: Place) -> None:
    path = place.folder / "classes.json"
    path.write_text(json.dumps({"classes": {"N": "normal", "F": "fire", "S": "street fight"}}), encoding="utf-8")
    own = load_classes(path)
    assert classes_of(("normal", "fire", "street fight"), own) is own
    assert tuple(classes_of(("normal", "fire")).classes) == ("normal", "fire")
    assert classes_of(PRESETS["xd"].labels) is PRESETS["xd"]
    with pytest.raises(UserError, match="have the labels normal, fire, street fight, but the model has normal, fire:"):
        classes_of(("normal", "fire"), own)


def change_list(place: Place, old: str, new: str) -> None:
    text = place.list.read_text(encoding="utf-8")
    assert old in text
    place.list.write_text(text.replace(old, new), encoding="utf-8")


def change_annotations(place: Place, old: str, new: str) -> None:
    text = place.annotations.read_text(encoding="utf-8")
    assert old in text
    place.annotations.write_text(text.replace(old, new), encoding="utf-8")


def refused(place: Place, counts: dict[str, int] | None = None) -> str:
    """The sentence, which must come before anything is scored."""
    oracle = Oracle()
    with pytest.raises(UserError) as error:
        evaluate(oracle, place.read(), PRESETS["ucf"], read_annotations(place.annotations), None, counts)
    assert oracle.calls == 0
    return str(error.value)


def test_refused_features(place: Place) -> None:
    file = place.features("Fight2")
    good = np.load(file)
    for value, expected in (
        (good[:, :60], "has features of shape [29, 60], but the model takes [n, 64]"),
        (good[:0], "holds no snippet"),
        (good[0], "has features of shape [64]"),
        (good.astype(np.int32), "the array is of type int32, not of floats"),
    ):
        np.save(file, value)
        assert expected in (said := refused(place)) and str(file) in said
    file.write_bytes(b"not an array")
    assert "the array is not in NumPy's format" in refused(place)
    whole = place.features("Fire1").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "and the file has" in refused(place)


def test_features_that_are_not_finite(place: Place) -> None:
    features = np.load(place.features("Fight2"))
    features[[3, 8], 5] = np.nan
    np.save(place.features("Fight2"), features)
    with pytest.raises(UserError, match=r"Fight2__5.npy has NaN or infinite numbers in 2 of 29 snippets"):
        evaluate(Oracle(), place.read(), PRESETS["ucf"], read_annotations(place.annotations))


def test_the_crop_is_the_one_that_the_model_runs_on(
    place: Place, ucf: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = ucf.load(), place.folder / "model.safetensors"
    model.mirrored = False
    save_checkpoint(model, path)
    assert main(place.arguments(path)) == 0
    assert "no crop 0 of 4 of 4 videos" in capsys.readouterr().err


def test_a_crop_is_there_or_said(place: Place, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(place.arguments(bundles["ucf"], "--crop", "7")) == 2
    assert "no crop 7 of 4 of 4 videos" in capsys.readouterr().err
    place.features("Fire1").rename(place.folder / "features" / "Fire1__0.npy")
    change_list(place, "Fire1__5", "Fire1__0")
    assert main(place.arguments(bundles["ucf"])) == 0
    assert "no crop 5 of 1 of 4 videos (in place of the first: Fire1__0.npy)" in capsys.readouterr().err


def test_refused_making(place: Place, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Features that were sampled otherwise than the bundle samples."""
    made = {"encoder": "e", "sampling": Sampling(pick="mean").to_manifest()}
    (place.folder / "features" / "features.json").write_text(json.dumps(made))
    assert main(place.arguments(bundles["ucf"])) == 2
    assert "made with sampling" in capsys.readouterr().err


def test_refused_truth(place: Place) -> None:
    np.save(place.features("Fight2"), np.load(place.features("Fight2"))[:18])
    assert "'Fight2' has 18 snippets, which are 288 frames, but an event" in refused(place)


def test_refused_counts(place: Place) -> None:
    said = refused(place, {**SNIPPETS, "Normal3": 280, "Normal4": 7})
    assert (
        "2 of 4 feature files do not have the length" in said and "'Normal3' with 300 snippets instead of 280" in said
    )
    evaluate(Oracle(), place.read(), PRESETS["ucf"], read_annotations(place.annotations), None, {"Fire1": 38})


@pytest.mark.parametrize(
    ("old", "new"), [("Fire1  Arson", "Fire01  Arson"), ("Normal3  Normal  -1  -1", "Normal3  Abuse  1  9")]
)
def test_refused_disagreement(place: Place, old: str, new: str) -> None:
    change_annotations(place, old, new)
    said = refused(place)
    assert "disagree on 1 of 4 videos" in said and new.split()[0].replace("01", "1") in said


def test_refused_class(place: Place) -> None:
    change_annotations(place, "Fire1  Arson", "Fire1  Wildfire")
    assert "the class 'Wildfire' in 'Fire1', which the model does not know" in refused(place)


def test_refused_list(place: Place, ucf: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = place.arguments(ucf.checkpoint, "--dataset", "ucf")
    good = place.list.read_text(encoding="utf-8")
    change_list(place, "Normal4__5", "Normal9__5")
    assert main(arguments) == 2
    assert "1 of 4 feature files are missing" in capsys.readouterr().err
    place.list.write_text(good + "copy/Fire1__5.npy,Arson\n", encoding="utf-8")
    assert "the video 'Fire1' twice" in refused(place)
    place.list.write_text("path,label\n", encoding="utf-8")
    assert main(arguments) == 2
    assert "lists no feature file" in capsys.readouterr().err
    normal = [line for line in good.splitlines() if "Arson" not in line and "Fighting" not in line]
    place.list.write_text("\n".join(normal), encoding="utf-8")
    assert "no anomalous frame" in refused(place)


def test_refused_settings(place: Place, ucf: Golden, bundles: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="is a bundle, which holds its window itself"):
        open_scorer(bundles["ucf"], window=8)
    with pytest.raises(UserError, match="only bundles run in the backend 'openvino'"):
        open_scorer(ucf.checkpoint, backend="openvino", dataset="ucf")
    with pytest.raises(UserError, match="the device 'warp' cannot be used"):
        open_scorer(ucf.checkpoint, device="warp", dataset="ucf")


def test_bundles_are_evaluated_without_torch() -> None:
    program = "import sys, vadclip.evaluate_command; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
