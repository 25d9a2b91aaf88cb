from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.vadrun.test_bundle import rehash
from vadexport import certificate
from vadexport.checks import LIMITS, Check, check_engine, limits_for
from vadexport.probe import Probe
from vadrun import Bundle, Engine, UserError, backends
from vadrun.console import version


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


def test_events_that_appear_or_vanish_are_counted(bundle_copy: Path) -> None:
    probe = Probe.load(bundle_copy / "probe.npz")
    raised = Probe(**(vars(probe) | {"track_logits": probe.track_logits * 0 - 9.0, "logits": probe.logits * 0 + 9.0}))
    with Engine.load(bundle_copy, "onnxruntime") as engine:
        truth = {check.artifact: check for check in check_engine(engine, probe)}
        wrong = {check.artifact: check for check in check_engine(engine, raised)}
    assert (truth["chain"].events_gained, truth["chain"].events_lost) == (0, 0)
    assert wrong["head"].events_lost == 0
    assert (wrong["chain"].events_gained, wrong["chain"].events_lost) in {(0, 0), (0, 1)}
    assert not wrong["chain"].passed and not wrong["head"].passed


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


class Opened:
    """A loaded engine, as far as a verification looks at it."""

    def __init__(self, label: str, precision: str) -> None:
        self.description = f"{label} in {precision}"
        self.backend = SimpleNamespace(precision=precision, library=label.split(":")[0] + " 1.0")
        self.closed = False

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def check(artifact: str = "head", passed: bool = True) -> Check:
    return Check(artifact, "b", "fp32", None, None, 0.0, 0.0, 0, 0, LIMITS["fp32"], passed)


class Machine:
    """Backends that are installed here: what each gives for "auto" and "fp32", or why it does not load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: dict[str, tuple[str, str]]) -> None:
        self.found, self.opened, self.said = found, list[Opened](), list[str]()
        self.calls: list[tuple[object, ...]] = []
        bundle = SimpleNamespace(path=lambda role: Path("b") / role, model="the model")
        monkeypatch.setattr(certificate, "Bundle", SimpleNamespace(open=lambda root: bundle))
        monkeypatch.setattr(certificate, "Probe", SimpleNamespace(load=lambda *given: given))
        monkeypatch.setattr(certificate, "Engine", SimpleNamespace(load=self.load))
        monkeypatch.setattr(certificate, "check_engine", self.check)
        monkeypatch.setattr(certificate, "arithmetic", lambda engine: (engine.backend.precision, "shown"))
        monkeypatch.setattr(certificate, "wanting_a_check", lambda given: None if given is bundle else 1 / 0)
        monkeypatch.setattr(backends, "available", lambda: [tuple(label.split(":")) for label in found])

    def load(self, root: Path, label: str, *, precision: str, refuse_wrong: bool) -> Opened:
        assert root == Path("b") and not refuse_wrong and all(engine.closed for engine in self.opened)
        found = self.found[label][("auto", "fp32").index(precision)]
        if " " in found:
            raise UserError(found)
        self.opened.append(Opened(label, found))
        return self.opened[-1]

    def check(self, engine: Opened, probe: object, changes: object) -> list[Check]:
        assert not engine.closed
        self.calls.append((engine.description, probe, changes))
        return [check("encoder"), check(engine.description)]

    def verify(self, **given: Any) -> certificate.Verification:
        return certificate.verify(Path("b"), self.said.append, **given)


def test_each_precision_of_each_backend_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "a:cpu": ("bf16", "fp32"),
        "b:npu": ("fp32", "fp32"),  # both ways end in the same arithmetic
        "c:cpu": ("no library", "still no library"),
        "a:gpu": ("fp16", "no such graph"),  # a bundle need not have every graph
        "d:cpu": ("no graph", "fp32"),
    }
    here, changes = Machine(monkeypatch, found), {"score": 0.5, "lost": 2.0}
    limits: list[tuple[str, object]] = []

    def further(engine: Any, allowed: object) -> object:
        assert not engine.closed
        limits.append((engine.description, allowed))
        return SimpleNamespace(passed=True)

    verification = here.verify(changes=changes, further=further)
    names = ["a:cpu in bf16", "a:cpu in fp32", "b:npu in fp32", "a:gpu in fp16", "d:cpu in fp32"]
    assert here.calls == [(name, (Path("b/probe"), "the model"), changes) for name in names]
    assert [one.artifact for one in verification.checks] == [a for name in names for a in ("encoder", name)]
    assert limits == [(name, limits_for(name[-4:], changes)) for name in names]
    assert here.said == [
        *("checking a:cpu in bf16", "checking a:cpu in fp32", "checking b:npu in fp32"),
        *("c:cpu: no library", "c:cpu: still no library", "checking a:gpu in fp16"),
        *("d:cpu: no graph", "checking d:cpu in fp32"),
    ]
    assert len(here.opened) == 6 and all(engine.closed for engine in here.opened)
    assert verification.libraries == ["a 1.0", "b 1.0", "d 1.0"] and verification.changes == changes
    assert len(verification.footage) == 5 and verification.passed
    assert (verification.machine, verification.toolkit) == (certificate.machine(), version())
    made = datetime.fromisoformat(verification.date)
    assert made.utcoffset() == timedelta(0) and made.microsecond == 0
    assert abs(datetime.now(timezone.utc) - made) < timedelta(hours=1)


def test_a_verification_passes_only_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    verification = Machine(monkeypatch, {"a:cpu": ("fp32", "fp32")}).verify()
    assert (verification.passed, verification.changes, verification.footage) == (True, {}, [])
    assert verification.to_json()["passed"] is True and verification.to_json()["checks"][0]["artifact"] == "encoder"
    for part, value in (("checks", [check(), check(passed=False)]), ("footage", [SimpleNamespace(passed=False)])):
        failed = replace(verification, **{part: value})
        assert not failed.passed
    assert replace(verification, checks=[check(passed=False)]).to_json()["passed"] is False


def test_backends_that_cannot_run_the_bundle_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine(monkeypatch, {"a:cpu": ("no graph", "no graph"), "b:npu": ("no device", "no device")})
    with pytest.raises(UserError, match=r"none of the backends here \(a, b\) can run b"):
        here.verify()
    assert here.said == ["a:cpu: no graph", "a:cpu: no graph", "b:npu: no device", "b:npu: no device"]


def test_engines_that_were_built_elsewhere_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here, changes = Machine(monkeypatch, {"a:cpu": ("fp32", "fp32")}), {"score": 0.5}
    plans = (SimpleNamespace(name="a GPU"), Path("b/engines"), "plans")
    checks = [check("encoder"), check("chain")]
    given: list[tuple[object, ...]] = []

    def carried(bundle: Any, *others: object) -> tuple[str, list[Check]]:
        given.append((bundle.model, *others))
        return "plans", checks

    monkeypatch.setattr(certificate, "wanting_a_check", lambda bundle: plans)
    monkeypatch.setattr(certificate, "check_carried", carried)
    said = "checking the engines in b/engines, which were built elsewhere, on a GPU"
    found = [one.artifact for one in here.verify(changes=changes).checks]
    assert found == ["encoder", "a:cpu in fp32"]  # what passed is marked, and checked where it is found then
    assert given == [("the model", *plans, changes)]
    assert here.said == [said, "checking a:cpu in fp32"]
    checks[1] = check("chain", passed=False)
    verification = here.verify()
    assert [one.artifact for one in verification.checks] == ["encoder", "chain", "encoder", "a:cpu in fp32"]
    assert not verification.passed

    def broken(*_: object) -> None:
        raise UserError("they do not load")

    monkeypatch.setattr(certificate, "check_carried", broken)
    here.said.clear()
    assert [one.artifact for one in here.verify().checks] == ["encoder", "a:cpu in fp32"]
    assert here.said == [said, "they do not load", "checking a:cpu in fp32"]


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("processor : 0\nmodel name\t: Some CPU: 3 GHz \nmodel name\t: Another\n", "Some CPU: 3 GHz"),
        ("Hardware : board\nModel : Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("processor : 0\n", "of the system"),
        (None, "of the system"),
    ],
)
def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch, text: str | None, cpu: str) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert (str(path), encoding) == ("/proc/cpuinfo", "utf-8")
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(certificate.Path, "read_text", read_text)
    for name, value in (("processor", "of the system"), ("system", "Linux"), ("machine", "riscv64")):
        monkeypatch.setattr(certificate.platform, name, lambda value=value: value)
    assert certificate.machine() == {"system": "Linux", "architecture": "riscv64", "cpu": cpu}


def test_a_stale_certificate_is_not_kept(bundle_copy: Path) -> None:
    path, sha = bundle_copy / "certificate.json", Bundle.open(bundle_copy).sha256
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"stale": "relabelled"}))
    verification = certificate.Verification("2026-01-01", "1", {}, [], [check()])
    assert certificate.write(bundle_copy, verification, sha) == 1
    found = json.loads(path.read_text())
    expected = json.loads(json.dumps(verification.to_json()))
    assert found == {"schema": 1, "bundle": sha, "runs": [expected]}


def test_fifty_runs_are_kept(bundle_copy: Path) -> None:
    sha = Bundle.open(bundle_copy).sha256
    (bundle_copy / "certificate.json").unlink()
    runs = [certificate.Verification(str(number), "1", {}, [], []) for number in range(51)]
    assert [certificate.write(bundle_copy, run, sha) for run in runs] == [*range(1, 51), 50]
    dates = [run["date"] for run in json.loads((bundle_copy / "certificate.json").read_text())["runs"]]
    assert dates == [str(number) for number in range(1, 51)]
