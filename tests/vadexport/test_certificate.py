from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.vadrun.test_bundle import rehash
from vadexport import certificate
from vadrun import Bundle, UserError, backends


def spoil(root: Path, name: str, constant: str, factor: float) -> None:
    """Multiply one constant of a graph and make the manifest agree."""
    graph = onnx.load(root / name)
    for tensor in graph.graph.initializer:
        if tensor.name == constant:
            value = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(value, constant))
            break
    else:
        raise AssertionError(f"{name} has no constant {constant}")
    onnx.save(graph, root / name)
    rehash(root, name)


def test_every_backend_is_checked_and_passes(bundles: dict[str, Path]) -> None:
    verification = certificate.verify(bundles["xd"])
    assert verification.passed
    seen = {(check.artifact, check.backend) for check in verification.checks}
    for backend in ("onnxruntime:cpu", "openvino:cpu"):
        assert {(artifact, backend) for artifact in ("encoder", "head", "chain")} <= seen
    assert "fp32" in {check.precision for check in verification.checks if check.backend == "openvino:cpu"}
    for check in verification.checks:
        cosine, score = (0.998, 2e-2) if check.precision == "bf16" else (0.99999, 1e-4)
        assert check.cosine_min is None or check.cosine_min > cosine
        assert check.score_max is None or check.score_max < score
        assert check.events_gained in (None, 0) and check.events_lost in (None, 0)


def test_the_build_leaves_a_certificate_of_this_machine(bundles: dict[str, Path]) -> None:
    value = json.loads((bundles["ucf"] / "certificate.json").read_text())
    assert value["bundle"] == Bundle.open(bundles["ucf"]).sha256
    (run,) = value["runs"]
    assert run["passed"] is True
    assert run["machine"] == certificate.machine()


@pytest.mark.parametrize(
    ("name", "constant", "factor", "failing"),
    [
        ("encoder.fp32.onnx", "blocks.1/mlp/c_fc.weight", 1.05, {"encoder", "chain"}),
        ("head.onnx", "confidence/ffn/c_fc.weight", 1.5, {"head", "chain"}),
        ("head.onnx", "global/linear.weight", 1.5, {"head", "chain"}),
        ("encoder.fp32.onnx", "ln_post.weight", float("nan"), {"encoder", "chain"}),
        ("head.onnx", "position", float("nan"), {"head", "chain"}),
    ],
)
def test_a_wrong_graph_fails_where_it_is_wrong(
    bundle_copy: Path, name: str, constant: str, factor: float, failing: set[str]
) -> None:
    spoil(bundle_copy, name, constant, factor)
    verification = certificate.verify(bundle_copy)
    assert not verification.passed
    assert {check.artifact for check in verification.checks if not check.passed} == failing
    json.dumps(verification.to_json(), allow_nan=False)


def test_runs_are_added_and_the_latest_stay(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = Bundle.open(bundle_copy).sha256
    path = bundle_copy / "certificate.json"
    verification = certificate.verify(bundle_copy)
    dated = [replace(verification, date=f"2026-01-{day:02d}") for day in range(1, 6)]
    (built,) = (run["date"] for run in json.loads(path.read_text())["runs"])
    assert [certificate.write(bundle_copy, one, sha) for one in dated[:2]] == [2, 3]
    dates = [run["date"] for run in json.loads(path.read_text())["runs"]]
    assert dates == [built, "2026-01-01", "2026-01-02"]
    monkeypatch.setattr(certificate, "MOST_RUNS", 3)
    for one in dated[2:]:
        certificate.write(bundle_copy, one, sha)
    dates = [run["date"] for run in json.loads(path.read_text())["runs"]]
    assert dates == ["2026-01-03", "2026-01-04", "2026-01-05"]


def test_runs_at_once_do_not_cost_each_other_their_entries(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = Bundle.open(bundle_copy).sha256
    verification = certificate.verify(bundle_copy)
    read = certificate.read_certificate

    def slowly(root: Path) -> Any:
        found = read(root)
        time.sleep(0.05)  # what another adds now must not be lost
        return found

    monkeypatch.setattr(certificate, "read_certificate", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: certificate.write(bundle_copy, verification, sha), range(8)))
    assert len(json.loads((bundle_copy / "certificate.json").read_text())["runs"]) == 9


def test_a_bundle_that_was_changed_meanwhile_is_not_certified(bundle_copy: Path) -> None:
    verification = certificate.verify(bundle_copy)
    before = (bundle_copy / "certificate.json").read_bytes()
    with pytest.raises(UserError, match="was changed while it was being verified"):
        certificate.write(bundle_copy, verification, "0" * 64)
    assert (bundle_copy / "certificate.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_unreadable_certificate_is_replaced(bundle_copy: Path, content: str) -> None:
    (bundle_copy / "certificate.json").write_text(content)
    assert certificate.write(bundle_copy, certificate.verify(bundle_copy), Bundle.open(bundle_copy).sha256) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
def test_a_pipe_in_the_place_of_a_certificate_is_replaced(bundle_copy: Path) -> None:
    path = bundle_copy / "certificate.json"
    path.unlink()
    os.mkfifo(path)
    reading = os.open(path, os.O_RDWR)  # so that writing to it does not wait for ever
    try:
        assert certificate.write(bundle_copy, certificate.verify(bundle_copy), Bundle.open(bundle_copy).sha256) == 1
    finally:
        os.close(reading)
    assert path.is_file() and len(json.loads(path.read_text())["runs"]) == 1


def test_a_certificate_of_another_bundle_is_not_kept(bundle_copy: Path) -> None:
    path = bundle_copy / "certificate.json"
    value = json.loads(path.read_text())
    value["bundle"] = "0" * 64
    value["runs"][0]["machine"]["cpu"] = "another"
    path.write_text(json.dumps(value))
    certificate.write(bundle_copy, certificate.verify(bundle_copy), Bundle.open(bundle_copy).sha256)
    assert len(json.loads(path.read_text())["runs"]) == 1


def test_the_table_says_what_failed(bundle_copy: Path) -> None:
    spoil(bundle_copy, "head.onnx", "position", float("nan"))
    lines = certificate.verify(bundle_copy).table().splitlines()
    assert lines[0].split()[:3] == ["artifact", "backend", "precision"]
    assert {line.split()[0] for line in lines if line.endswith("FAIL")} == {"head", "chain"}
    assert {line.split()[0] for line in lines if line.endswith("pass")} == {"encoder"}


def test_without_a_backend_nothing_can_be_said(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda: [])
    with pytest.raises(UserError, match="no backend is installed"):
        certificate.verify(bundles["ucf"])
