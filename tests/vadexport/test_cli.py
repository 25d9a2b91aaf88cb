from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.golden import Golden
from tests.vadexport.test_certificate import spoil
from vadexport.cli import main
from vadrun import Bundle


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must refuse; its one sentence."""
    assert main([str(argument) for argument in arguments]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("vadexport: ")
    assert "Traceback" not in sentence
    return sentence


def test_build_inspect_verify(ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert main(["build", "--checkpoint", str(ucf.checkpoint), "--dataset", "ucf", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"bundle in {out}" in printed.out
    assert "writing head.onnx" in printed.err  # progress

    assert main(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    for part in ("encoder.fp32.onnx", "roadAccidents", "66 nodes", "certificate: passed", "mirror True"):
        assert part in text
    assert main(["inspect", str(out), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["sha256"] == Bundle.open(out).sha256
    assert description["manifest"]["model"]["window"] == 8

    assert main(["verify", str(out)]) == 0
    assert "chain" in capsys.readouterr().out
    assert main(["verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_verify_fails_with_one_and_says_where(bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(bundle_copy, "head.onnx", "global/linear.weight", 1.5)
    assert main(["verify", str(bundle_copy)]) == 1
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "a check failed on this machine" in printed.err
    assert json.loads((bundle_copy / "certificate.json").read_text())["runs"][-1]["passed"] is False


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


def test_checkpoints_that_cannot_be_used(
    ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "bundle"

    def refuse(path: Path, *more: str) -> str:
        return fails(capsys, "build", "--checkpoint", path, "--dataset", "ucf", "--out", out, *more)

    assert "nothing.pth" in refuse(tmp_path / "nothing.pth")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    assert "text.pth" in refuse(text)
    other = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(3)}, other)
    assert "VadCLIP" in refuse(other)
    evil = tmp_path / "evil.pth"
    torch.save({"a": Malice()}, evil)
    assert "refused" in refuse(evil)
    evil.write_bytes(pickle.dumps(Malice()))
    refuse(evil)
    assert not (tmp_path / "ran").exists()
    labels = tmp_path / "labels.txt"
    labels.write_text("normal\nnormal\n")
    assert "repeats" in refuse(ucf.checkpoint, "--labels", str(labels))
    assert not out.exists()


def test_places_that_cannot_be_used(ucf: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    build = ["build", "--checkpoint", ucf.checkpoint, "--dataset", "ucf", "--out"]
    assert "cannot write to" in fails(capsys, *build, tmp_path / "file" / "b")
    assert "is not a bundle and not empty, so it is not replaced" in fails(capsys, *build, tmp_path)
    assert "is not a bundle" in fails(capsys, "inspect", tmp_path)
    assert "does not exist" in fails(capsys, "verify", tmp_path / "nowhere")


def test_wrong_usage_is_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["build"], ["bake"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_inspect_and_verify_need_no_torch(bundles: dict[str, Path]) -> None:
    """On a device: everything but building works where torch, onnx and safetensors cannot be imported."""
    code = f"""
import sys
for name in ("torch", "onnx", "open_clip", "safetensors", "torchvision"):
    sys.modules[name] = None
from vadexport.cli import main
assert main(["inspect", {str(bundles["ucf"])!r}]) == 0
from vadexport.certificate import verify
from pathlib import Path
assert verify(Path({str(bundles["ucf"])!r})).passed
assert main(["build", "--checkpoint", "x.pth", "--out", "y"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'vadclip-edge[export]'" in done.stderr


def test_terminating_a_build_leaves_nothing(ucf: Golden, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vadexport.cli", "build", "--dataset", "ucf"]
    command += ["--checkpoint", str(ucf.checkpoint), "--out", str(tmp_path / "bundle")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "probe frames" in line:
                process.terminate()
                break
        process.stderr.read()
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []
