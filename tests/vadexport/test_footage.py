"""``vadexport verify --videos`` and limits of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from tests.golden import Golden
from tests.vadexport.test_certificate import spoil
from tests.vadexport.test_cli import fails
from vadexport.build import BuildOptions, ParityError, build
from vadexport.checks import LIMITS, limits_for, parse_limits
from vadexport.cli import main
from vadexport.footage import FootageCertificate, open_reference
from vadrun import Bundle, Engine, UserError

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        draw = lambda n, w, h, k=number: clips.numbered(n + 500 * k, w, h)  # noqa: E731
        clips.write_clip(folder / f"v{number}.mp4", 16 * 7, draw=draw)
    (folder / "events.csv").write_text("video,label,start,end\nv1,fighting,16,70\n")
    return folder


def test_footage_against_the_bundles_own_float32(bundle_copy: Path, videos: Path, capsys: Printed) -> None:
    assert main(["verify", str(bundle_copy), "--videos", str(videos), "--annotations", str(videos / "events.csv")]) == 0
    said = capsys.readouterr().out
    assert (
        "3 videos" in said and "against float32 graph" in said and "AUC" in said and "allowed in fp32: cosine" in said
    )
    run = json.loads((bundle_copy / "certificate.json").read_text())["runs"][-1]
    by = {(check["backend"], check["precision"]): check for check in run["footage"]}
    exact = by["onnxruntime:cpu", "fp32"]
    assert exact["cosine_min"] == pytest.approx(1.0) and exact["score_max"] < 1e-6
    assert exact["auc"]["difference"] == 0.0 and exact["auc"]["low"] is None  # of three videos
    assert "have intervals from 10 videos on" in said
    assert exact["events"]["lost"] == exact["events"]["gained"] == 0
    assert exact["videos"] == 3 and exact["hours"] == pytest.approx(3 * 7 * 0.64 / 3600)
    assert {check["backend"] for check in run["footage"]} == {"onnxruntime:cpu", "openvino:cpu"}


def test_footage_against_pytorch(bundles: dict[str, Path], xd: Golden, videos: Path, capsys: Printed) -> None:
    bundle = bundles["xd"]
    assert (
        main(["verify", str(bundle), "--videos", str(videos / "v0.mp4"), "--checkpoint", str(xd.checkpoint), "--json"])
        == 0
    )
    checks = json.loads(capsys.readouterr().out)["footage"]
    assert all(check["passed"] and check["reference"].startswith("PyTorch") for check in checks)
    full = next(check for check in checks if check["precision"] == "fp32")
    assert 0 < full["score_max"] < 1e-4 and full["auc"] is None


def test_what_is_wrong_shows_in_footage(
    bundle_copy: Path, bundles: dict[str, Path], videos: Path, capsys: Printed
) -> None:
    spoil(bundle_copy, "encoder.fp32.onnx", "blocks.1/mlp/c_fc.weight", 1.3)
    assert main(["verify", str(bundle_copy), "--videos", str(videos), "--reference", str(bundles["ucf"])]) == 1
    table = capsys.readouterr().out.split("3 videos")[1]
    rows = {line.split()[1]: line for line in table.splitlines() if line.startswith(("onnxruntime", "openvino"))}
    assert rows["fp32"].endswith("FAIL")
    loose = "cosine=0,score=1,lost=99"
    arguments = ["verify", str(bundle_copy), "--videos", str(videos), "--reference", str(bundles["ucf"])]
    assert main([*arguments, "--limits", loose]) == 0


def test_a_graph_that_gives_nan_fails(
    bundle_copy: Path, bundles: dict[str, Path], videos: Path, capsys: Printed
) -> None:
    spoil(bundle_copy, "encoder.fp32.onnx", "ln_post.weight", float("nan"))
    arguments = ["verify", str(bundle_copy), "--videos", str(videos), "--reference", str(bundles["ucf"])]
    assert main(arguments) == 1
    run = json.loads((bundle_copy / "certificate.json").read_text())["runs"][-1]
    assert not any(check["passed"] for check in run["footage"])


def test_a_build_over_the_users_limits_fails(ucf: Golden, tmp_path: Path) -> None:
    options = BuildOptions(
        ucf.checkpoint, tmp_path / "b", dataset="ucf", precision="fp16", limits=parse_limits("cosine=0.999999999")
    )
    with pytest.raises(ParityError, match=r"cosine >= 1.*FAIL"):
        build(options)
    assert not (tmp_path / "b").exists()


def test_limits() -> None:
    assert parse_limits("") == {}
    changed = limits_for("fp16", parse_limits("score=0.1, auc=0.3,lost=2"))
    assert (changed.cosine, changed.score, changed.auc, changed.lost) == (LIMITS["fp16"].cosine, 0.1, 0.3, 2)
    assert str(changed) == "cosine >= 0.999, score <= 0.1, lost <= 2, AUC loss <= 0.3"
    for text in ("cosin=1", "cosine", "cosine=x", "score=-1", "score=nan", "lost=inf", "cosine=1e999"):
        with pytest.raises(UserError, match="give NAME=NUMBER"):
            parse_limits(text)
    assert parse_limits("cosine=1,score=2") == {"cosine": 1, "score": 2}
    with pytest.raises(UserError, match=r"has 'cosine=1\.01', but no cosine is above 1: give a number from 0 to 1"):
        parse_limits("cosine=1.01")


def test_the_head_is_held_to_tighter_limits_and_never_to_looser_ones(bundle_copy: Path, capsys: Printed) -> None:
    assert main(["verify", str(bundle_copy), "--limits", "score=1e-12"]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("head")]
    assert rows and all(row.endswith("FAIL") and "score <= 1e-12" in row for row in rows)
    spoil(bundle_copy, "head.onnx", "confidence/ffn/c_fc.weight", 1.5)
    assert main(["verify", str(bundle_copy), "--limits", "score=1,lost=99,cosine=0"]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert rows and all(row.startswith("head") and "score <= 0.0001" in row for row in rows)


def test_inspect_says_within_which_limits_of_ones_own(bundle_copy: Path, capsys: Printed) -> None:
    assert main(["verify", str(bundle_copy), "--limits", "cosine=0,score=1"]) == 0
    main(["inspect", str(bundle_copy)])
    assert "certificate: passed within --limits cosine=0, score=1 " in capsys.readouterr().out
    assert main(["verify", str(bundle_copy)]) == 0
    main(["inspect", str(bundle_copy)])
    before, last = capsys.readouterr().out.splitlines()[-2:]
    assert "--limits cosine=0" in before and "--limits" not in last  # runs are added


def test_a_limit_that_nothing_would_be_held_to_is_refused(
    bundle_copy: Path, ucf: Golden, tmp_path: Path, capsys: Printed
) -> None:
    own = ("--limits", "auc=0.3")
    for command in (
        ("verify", bundle_copy),
        ("compile", bundle_copy),
        ("build", "--checkpoint", ucf.checkpoint, "--out", tmp_path / "b"),
    ):
        assert "takes labelled footage" in fails(capsys, *command, *own)


def test_bad_input(
    bundle_copy: Path, bundles: dict[str, Path], ucf: Golden, xd: Golden, videos: Path, tmp_path: Path, capsys: Printed
) -> None:
    half = tmp_path / "half"
    build(BuildOptions(ucf.checkpoint, half, dataset="ucf", precision="fp16"))
    (tmp_path / "others.csv").write_text("video,label,start,end\nnone,fighting,0,9\n")
    named = ("--videos", videos)
    for arguments, said in (
        ((bundle_copy, "--annotations", videos / "events.csv"), "give --videos too"),
        ((bundle_copy, "--videos", tmp_path / "none"), "does not exist"),
        ((bundle_copy, *named, "--annotations", tmp_path / "others.csv"), "has no event in any of the videos"),
        ((bundle_copy, *named, "--reference", bundles["xd"]), "is of another checkpoint"),
        ((bundle_copy, *named, "--checkpoint", xd.checkpoint), "is not the checkpoint"),
        ((half, *named), "holds no float32 encoder to compare with"),
        ((bundle_copy, "--limits", "speed=1"), "--limits has 'speed=1'"),
    ):
        assert said in fails(capsys, "verify", *arguments), arguments


def test_normal_stretches_are_no_anomalies(bundle_copy: Path, videos: Path, tmp_path: Path) -> None:
    """By the bundle's annotation name or its label; a class that the bundle lacks is an anomaly all the same."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["model"]["annotation_names"][0] = "Quiet"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "e.csv").write_text("video,label,start,end\nv1,quiet,0,16\nv1,normal,16,32\nv1,flood,32,48\n")
    bundle = Bundle.open(bundle_copy)
    reference = open_reference(bundle, None, None)
    footage = FootageCertificate(bundle, [videos / "v1.mp4"], reference, tmp_path / "e.csv")
    (answers,) = footage._answers
    assert answers.anomalous.tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_a_pause_is_no_footage(bundles: dict[str, Path], tmp_path: Path) -> None:
    times = [index / 25 for index in range(100)] + [2400 + index / 25 for index in range(100)]
    path = clips.write_clip(tmp_path / "clip.mp4", 200, times=times, options={"g": "20"})
    (tmp_path / "e.csv").write_text("video,label,start,end\nclip,abuse,96,132\n")
    bundle = Bundle.open(bundles["ucf"])
    footage = FootageCertificate(bundle, [path], open_reference(bundle, None, None), tmp_path / "e.csv")
    # Annotations count frames: the pause has none, and of the first piece frames 96 to 99 are in no snippet.
    assert footage._answers[0].anomalous.tolist() == [0.0] * 6 + [1.0, 1.0] + [0.0] * 4
    with Engine.load(bundles["ucf"], "onnxruntime:cpu") as engine:
        found = footage(engine, LIMITS["fp32"])
    assert found.passed and found.hours == pytest.approx(12 * 0.64 / 3600, abs=1e-5)


def test_shares_of_frames() -> None:
    from vadclip.groundtruth import Event
    from vadexport.footage import _anomalous

    covered = np.array([(0, 16), (16, 16), (32, 16), (48, 16)])
    np.testing.assert_allclose(_anomalous(covered, [Event(8, 36, None)]), [0.5, 1.0, 0.25, 0.0])
