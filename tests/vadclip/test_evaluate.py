import csv
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
from vadclip.evaluate import Progress, classes_of, evaluate_predictions
from vadclip.evaluate import evaluate as evaluate_set
from vadclip.evaluation import Evaluation
from vadclip.groundtruth import Annotations, Event, ground_truth, read_annotations
from vadclip.lists import FeatureList, load_classes, load_list
from vadclip.metrics import detection_map, frame_metrics
from vadclip.predictions import Prediction
from vadclip.presets import PRESETS, Preset
from vadclip.report import confusion
from vadclip.scorers import ModelScorer, Scorer, open_scorer
from vadclip.testset import checked, read_test_set
from vadrun.errors import UserError
from vadrun.sampling import Sampling
from vadrun.scoring import Scores

GT = Path(__file__).parents[1] / "data" / "gt"
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
    assert "test.csv has no abnormal video: the labels of all 2 are normal" in refused(place)


def test_refused_settings(place: Place, ucf: Golden, bundles: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="is a bundle, which holds its window itself"):
        open_scorer(bundles["ucf"], window=8)
    with pytest.raises(UserError, match="only bundles run in the backend 'openvino'"):
        open_scorer(ucf.checkpoint, backend="openvino", dataset="ucf")
    with pytest.raises(UserError, match="the device 'warp' cannot be used"):
        open_scorer(ucf.checkpoint, device="warp", dataset="ucf")


def test_the_file_with_classes_is_named_where_it_is_missing(
    place: Place, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place.annotations.write_text("Fire1 40 200\nFight2 16 100 300 420\n", encoding="utf-8")
    assert main(place.arguments(bundles["ucf"], "--backend", "onnxruntime:cpu")) == 0
    shown = capsys.readouterr().out
    assert "No detection mAP: the annotations do not tell the class of each event; name a file" in shown
    assert "(XD-Violence: annotations_multiclasses.txt)." in shown


def many(count: int) -> tuple[FeatureList, Annotations]:
    """A list of ``count`` abnormal and as many normal videos of 20 snippets."""
    labels = ["Arson", "Normal"] * count
    paths = tuple(Path(f"/f/{label}{i}__5.npy") for i, label in enumerate(labels))
    targets = np.array([[label == name for name in PRESETS["ucf"].classes] for label in labels], np.float32)
    truth = {f"Arson{2 * i}": (Event(64, 128, "Arson"),) for i in range(count)}
    return FeatureList("made", paths, tuple(labels), targets), truth


def scored(count: int, annotations: Annotations | None = None, scale: float = 0.3) -> Evaluation:
    """An evaluation of noisy scores; equal arguments, equal figures."""
    listed, truth = many(count)
    names = [path.stem.removesuffix("__5") for path in listed.paths]
    test = checked(listed, PRESETS["ucf"], dict.fromkeys(names, 20), annotations or truth)
    random = np.random.default_rng(count)
    predictions = []
    for video in test.truths:
        anomaly = np.clip(video.mask.reshape(20, 16).mean(axis=1) * 0.4 + scale * random.random(20), 0, 1)
        classes = np.zeros((20, 14), np.float32)
        classes[:, 3], classes[:, 0] = anomaly, 1 - anomaly
        predictions.append(Prediction(Path("x.npy"), anomaly, classes))
    return evaluate_predictions(predictions, test)


def test_few_videos_are_said_to_be_few_before_any_figure() -> None:
    few, more, enough = scored(4), scored(12, scale=1.0), scored(30, scale=1.0)
    text = few.table()
    assert text.startswith("4 abnormal and 4 normal videos are few: below 10 videos not even an interval")
    assert few.intervals == {"auc": None, "ap": None, "ano_auc": None} and "95% intervals" not in text
    text = more.table()
    auc = more.intervals["auc"]
    assert auc is not None and auc[0] < more.frames["scores"].auc < auc[1]
    shown = f"{100 * auc[0]:.1f} to {100 * auc[1]:.1f}"
    assert text.startswith(f"12 abnormal and 12 normal videos are few: the 95% interval of the AUC is {shown}.")
    assert text.index("are few") < text.index("Frames, in percent, with 95% intervals") < text.index(f"({shown})", 200)
    assert "few" not in enough.table() and enough.intervals["auc"] is not None
    for name in ("ap", "ano_auc"):
        interval = enough.intervals[name]
        assert interval is not None and interval[0] < getattr(enough.frames["scores"], name) < interval[1]
    plain = json.loads(json.dumps(more.to_json(), allow_nan=False))
    assert plain["intervals"]["auc"] == pytest.approx(auc) and plain["remarks"] == more.remarks


def test_more_videos_make_narrower_intervals() -> None:
    widths = []
    for count in (12, 100):
        low, high = scored(count, scale=1.0).intervals["auc"] or (0, 0)
        widths.append(high - low)
    assert 0 < widths[1] < 0.6 * widths[0]


def test_one_class_and_whole_clips_are_said_to_mean_little() -> None:
    assert "All events are of one class (Arson)" in scored(30).table()
    _, truth = many(30)
    whole = {name: (Event(0, 320, "Fighting" if name < "Arson3" else "Arson"),) for name in truth}
    text = scored(30, whole).table()
    assert "one class" not in text
    assert "The events of 30 of 30 abnormal videos last as long as the video: mAP and AnoAUC say little" in text
    half = {name: whole[name] if i % 2 else truth[name] for i, name in enumerate(truth)}
    assert "The events of 15 of 30" in scored(30, half).table()
    less = {name: whole[name] if i % 3 == 0 else truth[name] for i, name in enumerate(truth)}
    assert "as long as the video" not in scored(30, less).table()


def write_scores(place: Place, folder: Path, kind: str) -> None:
    """What the oracle says, as somebody else would write it."""
    labels = PRESETS["ucf"].labels
    for name, n in SNIPPETS.items():
        scores = Oracle().score(np.zeros((n, 64), np.float32))
        if kind == "vadrun":
            (folder / name).mkdir(parents=True)
            rows = [
                f"{i},{i},{i + 1},{a:.6f},{','.join(f'{p:.6f}' for p in c)}"
                for i, (a, c) in enumerate(zip(scores.confidence, scores.alignment, strict=True))
            ]
            text = "\n".join([f"snippet,start,end,anomaly,{','.join(labels)}", *rows]) + "\n"
            (folder / name / "scores.csv").write_text(text, encoding="utf-8")
        else:
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{name}.npy", scores.confidence if kind == "anomaly" else scores.alignment)


def score_arguments(place: Place, folder: Path, *more: str) -> list[str]:
    return [word for word in place.arguments(Path("-"), "--scores", str(folder), *more) if word != "-"]


@pytest.mark.parametrize("kind", ["anomaly", "classes", "vadrun"])
def test_scores_of_anybody(place: Place, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = place.folder / "scores", place.folder / "report"
    write_scores(place, folder, kind)
    expected = evaluate(Oracle(), place.read(), PRESETS["ucf"], read_annotations(place.annotations))
    arguments = score_arguments(place, folder, "--dataset", "ucf", "--out", str(out))
    assert main([*arguments, "--json", "--pictures"]) == 0
    found = json.loads(capsys.readouterr().out)
    branch = "alignment" if kind == "classes" else "confidence"
    assert found["frame_metrics"]["scores"] == pytest.approx(expected.to_json()["frame_metrics"][branch])
    assert found["origin"]["model"] is None and found["origin"]["scores"] == str(folder)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "curves.png" in page and ("confusion.png" in page) == (kind != "anomaly")
    if kind == "anomaly":
        assert found["detection_map"] == {}
        assert "No detection mAP: the scores have no probability for each class; give [n,m]" in page
    else:
        for mode, figures in expected.detection.items():
            assert found["detection_map"][mode]["map"] == pytest.approx(figures.map)


def test_scores_may_be_of_listed_videos(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody reads the files of the list, so it may name videos, or files that are not there."""
    write_scores(place, place.folder / "scores", "classes")
    rows = [f"v/{name}.mp4,{label}" for name, label in LABELS.items()]
    place.list.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert main([*score_arguments(place, place.folder / "scores", "--dataset", "ucf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 4


def test_scores_that_do_not_fit(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.folder / "scores"
    write_scores(place, folder, "classes")
    file = folder / "Normal3.npy"
    good = np.load(file)

    def says(*more: str) -> str:
        assert main(score_arguments(place, folder, "--dataset", "ucf", *more)) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        return shown.err

    for value, part in (
        (
            good[:100],
            "1 of 4 score files do not have the length of their video, the first is 'Normal3' with 100",
        ),
        (np.repeat(good, 16, axis=0), "one number for each frame, so keep every 16th"),
        (good[:, :7], "is [300, 7]: give the anomaly scores of the snippets, [n], or probabilities [n, 14] of normal,"),
        (np.log(good + 1e-6), "holds no probabilities, the sum over the classes is"),
        (good * np.nan, "values that are not finite"),
        (good[:0], "is [0, 14]"),
        (np.zeros((300, 14), int), "not of floats"),
    ):
        np.save(file, value)
        assert part in says()
    file.write_bytes(b"")
    assert "Normal3.npy" in says()
    file.unlink()
    assert "has no scores of 1 of 4 videos, the first is 'Normal3': write Normal3.npy" in says()
    np.save(file, good)
    np.save(folder / "Normal3__0.npy", good)
    assert "has scores of 'Normal3' twice" in says()
    (folder / "Normal3__0.npy").unlink()
    assert "--scores are of no model, and --window is for one" in says("--window", "8")
    (place.folder / "counts.csv").write_text("video,n\nFire1,30\n", encoding="utf-8")
    counted = says("--counts", str(place.folder / "counts.csv"), "--counts-column", "n")
    assert "'Fire1' with 37 snippets instead of 30" in counted
    folder = place.folder / "nothing"
    assert "is no folder of scores" in says()
    assert main(place.arguments(Path("m"), "--scores", "s")) == 2
    assert "name either a model or --scores DIR" in capsys.readouterr().err
    assert main(score_arguments(place, folder)) == 2
    assert "give either --dataset (ucf or xd) or --classes FILE" in capsys.readouterr().err


def test_tables_of_vadrun_that_do_not_fit(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.folder / "scores"
    write_scores(place, folder, "vadrun")
    table = folder / "Fire1" / "scores.csv"
    good = table.read_text(encoding="utf-8")
    lines = good.splitlines()
    for text, part in (
        (good.replace("arson", "fire"), "has no column 'arson'"),
        ("\n".join([lines[0], *lines[2:]]), "does not have a line for each snippet in order"),
        (good.replace("0.020000", "x", 1), "has a cell that is no number"),
        (good.replace("0.020000", "nan", 1), "values that are not finite"),
        (lines[0] + "\n", "holds no snippet"),
    ):
        table.write_text(text, encoding="utf-8")
        assert main(score_arguments(place, folder, "--dataset", "ucf")) == 2
        assert part in capsys.readouterr().err
    table.write_text(good, encoding="utf-8")
    sampling = Sampling(by="time", seconds=0.5).to_manifest()
    table.with_name("result.json").write_text(json.dumps({"sampling": sampling}))
    assert main(score_arguments(place, folder, "--dataset", "ucf")) == 2
    assert "has snippets that are not of 16 frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "annotations", "events", "counted"),
    [
        ("ucf", "Temporal_Anomaly_Annotation.txt", None, (290, 1_109_680, 84_128)),
        ("xd", "annotations.txt", "annotations_multiclasses.txt", (800, 2_330_384, 537_805)),
    ],
)
def test_the_papers_tables(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    annotations: str,
    events: str | None,
    counted: tuple[int, int, int],
) -> None:
    """The official lists and annotations, by the commands of docs/evaluation.md; the scores are the truth."""
    monkeypatch.setattr("vadclip.intervals._WORK", 0)
    monkeypatch.setattr("vadclip.intervals._LEAST_RESAMPLES", 3)
    monkeypatch.setattr(Evaluation, "_auc", lambda self, videos: None)  # of each class, which takes time
    with (GT / f"{dataset}_test_snippets.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    preset = PRESETS[dataset]
    lines = [f"/home/them/{row['video']}__{preset.centre_crop}.npy,{row['label']}" for row in rows]
    (tmp_path / "test.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    counts = {row["video"]: int(row["n_snippets_PEL4VAD_floor"]) for row in rows}
    truths = ground_truth(read_annotations(GT / (events or annotations)), counts)
    known = list(preset.classes)
    (tmp_path / "scores").mkdir()
    for truth in truths:
        classes = np.full((counts[truth.name], len(known)), 1e-3, np.float32)
        for event in truth.events:
            classes[event.start // 16 : -(-event.end // 16), known.index(str(event.label))] = 1.0
        classes[:, 0] = np.maximum(1 - classes[:, 1:].max(axis=1), 1e-3)
        np.save(tmp_path / "scores" / f"{truth.name}.npy", classes / classes.sum(axis=1, keepdims=True))
    arguments = ["--dataset", dataset, "--list", str(tmp_path / "test.csv"), "--annotations", str(GT / annotations)]
    arguments += [] if events is None else ["--events", str(GT / events)]
    arguments += ["--counts", str(GT / f"{dataset}_test_snippets.csv"), "--json"]
    assert main(["evaluate", "--scores", str(tmp_path / "scores"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["videos"], found["frames"], found["anomalous_frames"]) == counted
    assert found["frame_metrics"]["scores"]["auc"] > 0.98 and found["frame_metrics"]["scores"]["ap"] > 0.9
    assert found["detection_map"]["abnormal-only"]["avg"] > 60 and found["remarks"] == []


@pytest.mark.parametrize("first", [False, True])
def test_ten_crops_in_one_file(place: Place, bundles: dict[str, Path], first: bool) -> None:
    """The model's own crop is taken from it: here the mirrored centre, 5."""
    expected = evaluate(open_scorer(bundles["ucf"]), place.read(), PRESETS["ucf"], read_annotations(place.annotations))
    for name, n in SNIPPETS.items():
        values = np.load(place.features(name))
        crops = np.zeros((n, 10, values.shape[1]), values.dtype)
        crops[:, 5] = values
        place.features(name).unlink()
        np.save(place.folder / "features" / f"{name}.npy", crops.swapaxes(0, 1) if first else crops)
    change_list(place, "__5.npy", ".npy")
    out = place.folder / "out"
    assert main(place.arguments(bundles["ucf"], "--out", str(out))) == (2 if first else 0)
    if not first:
        found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        assert found["frame_metrics"] == {k: pytest.approx(v.to_json()) for k, v in expected.frames.items()}


def test_bundles_are_evaluated_without_torch() -> None:
    program = "import sys, vadclip.evaluate_command; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
