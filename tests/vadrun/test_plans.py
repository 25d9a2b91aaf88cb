from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vadrun.test_bundle import rehash
from vadrun import Bundle
from vadrun.cuda import Gpu
from vadrun.files import sha256
from vadrun.plans import ENGINES, Plan, PlanError, PlanSet, device_name, find_plans, profile_of, read_plan

ORIN = Gpu(0, "Orin", (8, 7), 8 << 30, "12.6")
CHECK = {"artifact": "encoder", "passed": True, "limits": {"cosine": 0.999}}
RTX = Gpu(0, "NVIDIA RTX A2000", (8, 6), 6 << 30, "13.0")


def plan_set(bundle: Bundle, folder: Path, **changes: object) -> PlanSet:
    """Plans whose engines are a few bytes, beside a build.json that fits ``ORIN`` and TensorRT 10.3.0."""
    folder.mkdir(parents=True)
    plans = []
    for role in ("encoder", "head"):
        (folder / f"{role}.plan").write_bytes(role.encode())
        entry = bundle.file(role)
        digest = sha256(folder / f"{role}.plan")
        profile = {"frames": [[n, 64, 64, 3] for n in (1, 8, 32)]}
        if role == "head":
            profile = {"features": [[n, 256, 128] for n in (1, 1, 8)], "lengths": [[1], [1], [8]]}
            profile["text"] = [[n, 128] for n in (2, 14, 64)]
        plans.append(Plan(f"{role}.plan", digest, entry.name, entry.sha256, "fp32", "strong", profile, 1.0))
    made = PlanSet(
        toolkit="0.1.0",
        date="2026-01-01T00:00:00+00:00",
        library="tensorrt",
        version="10.3.0",
        gpu="Orin",
        targets=["8.7"],
        cuda="12.6",
        hardware_compatible=False,
        version_compatible=False,
        bundle=bundle.sha256,
        encoder=plans[0],
        head=plans[1],
        checks=[CHECK],
    )
    made = replace(made, **changes)  # type: ignore[arg-type]
    made.write(folder)
    return made


def test_plans_of_this_gpu_are_found(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    folder = bundle_copy / ENGINES / device_name(ORIN, ORIN.capability, "tensorrt", "10.3.0")
    made = plan_set(bundle, folder)
    assert folder.name == "orin-sm87-tensorrt-10.3.0"
    assert find_plans(Bundle.open(bundle_copy), ORIN, "tensorrt", "10.3.0") == (folder, made)
    assert made.passed
    assert read_plan(folder, made.head) == b"head"
    assert profile_of(folder, made.encoder, ["frames"]) == {"frames": ([1, 64, 64, 3], [32, 64, 64, 3])}
    with pytest.raises(
        PlanError, match=rf"no profile of 'mask' for head\.plan in .*: run vadexport compile {bundle_copy} on this"
    ):
        profile_of(folder, made.head, ["mask"])


def test_the_lean_runtime_takes_compatible_plans_only(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "a")
    with pytest.raises(PlanError, match="built without --version-compatible, which tensorrt_lean needs"):
        find_plans(bundle, ORIN, "tensorrt_lean", "10.3.0")
    plan_set(bundle, bundle_copy / ENGINES / "b", version_compatible=True)
    assert find_plans(bundle, ORIN, "tensorrt_lean", "10.3.0")[0].name == "b"


def test_checked_plans_are_found_behind_unchecked_ones(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "any", checks=[])
    plan_set(bundle, bundle_copy / ENGINES / "orin")
    assert find_plans(bundle, ORIN, "tensorrt", "10.3.0")[0].name == "orin"


def test_plans_from_elsewhere_run_on_the_gpus_that_they_were_checked_on(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "any", gpu=None, targets=["8.6", "8.7"], checked_on=["Orin"])
    assert find_plans(bundle, ORIN, "tensorrt", "10.3.0")[0].name == "any"
    with pytest.raises(PlanError, match="any was not checked on NVIDIA RTX A2000"):
        find_plans(bundle, RTX, "tensorrt", "10.3.0")
    plan_set(bundle, bundle_copy / ENGINES / "orin")  # built here: better than what was only checked here
    assert find_plans(bundle, ORIN, "tensorrt", "10.3.0")[0].name == "orin"


def test_other_classes_leave_plans_as_they_are(bundle_copy: Path) -> None:
    made = plan_set(Bundle.open(bundle_copy), bundle_copy / ENGINES / "orin")
    text = np.load(bundle_copy / "text.npy")
    np.save(bundle_copy / "text.npy", text * 2)
    rehash(bundle_copy, "text.npy")
    bundle = Bundle.open(bundle_copy)
    assert bundle.sha256 != made.bundle
    assert find_plans(bundle, ORIN, "tensorrt", "10.3.0")[1] == made


@pytest.mark.parametrize(
    ("gpu", "library", "version", "said"),
    [
        (RTX, "tensorrt", "10.3.0", "built for compute capability 8.7, and NVIDIA RTX A2000 has 8.6"),
        (replace(ORIN, name="Thor"), "tensorrt", "10.3.0", "built on Orin, and this is Thor"),
        (ORIN, "tensorrt", "10.16.2", "built with TensorRT 10.3.0, and 10.16.2 is installed"),
        (ORIN, "tensorrt_rtx", "10.3.0", "built with tensorrt, and tensorrt_rtx is installed"),
    ],
)
def test_plans_of_another_machine_are_refused(
    bundle_copy: Path, gpu: Gpu, library: str, version: str, said: str
) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "there")
    with pytest.raises(PlanError, match=said) as error:
        find_plans(bundle, gpu, library, version)
    assert f"run vadexport compile {bundle_copy}" in str(error.value)


def test_compatible_plans_go_further(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "wide", hardware_compatible=True, version_compatible=True)
    assert find_plans(bundle, RTX, "tensorrt", "10.16.2")
    for gpu, version in ((RTX, "10.2.0"), (RTX, "11.0.0"), (replace(RTX, capability=(7, 5)), "10.3.0")):
        with pytest.raises(PlanError):
            find_plans(bundle, gpu, "tensorrt", version)


def test_the_fitting_folder_is_taken_among_others(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    plan_set(bundle, bundle_copy / ENGINES / "a", targets=["8.6"])
    plan_set(bundle, bundle_copy / ENGINES / "b")
    (bundle_copy / ENGINES / "c").mkdir()
    (bundle_copy / ENGINES / "c" / "build.json").write_text("{}")
    assert find_plans(bundle, ORIN, "tensorrt", "10.3.0")[0].name == "b"


def test_plans_of_other_graphs_are_refused(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    folder = bundle_copy / ENGINES / "there"
    made = plan_set(bundle, folder)
    replace(made, head=replace(made.head, onnx_sha256="0" * 64)).write(folder)
    with pytest.raises(PlanError, match="other graphs than the bundle holds"):
        find_plans(bundle, ORIN, "tensorrt", "10.3.0")


def test_nothing_compiled_yet(bundles: dict[str, Path]) -> None:
    with pytest.raises(PlanError, match=r"finds no engine in .*: run vadexport compile"):
        find_plans(Bundle.open(bundles["ucf"]), ORIN, "tensorrt", "10.3.0")


def test_a_cut_plan_is_refused(bundle_copy: Path) -> None:
    folder = bundle_copy / ENGINES / "there"
    made = plan_set(Bundle.open(bundle_copy), folder)
    (folder / "encoder.plan").write_bytes(b"enc")
    with pytest.raises(
        PlanError, match=f"not the file that was built .*: run vadexport compile {bundle_copy} on this machine"
    ):
        read_plan(folder, made.encoder)
    (folder / "encoder.plan").unlink()
    with pytest.raises(PlanError, match=f"misses .*: run vadexport compile {bundle_copy} on this machine"):
        read_plan(folder, made.encoder)
    (folder / "encoder.plan").symlink_to(bundle_copy / "head.onnx")
    with pytest.raises(PlanError, match=r"misses .* \(it is a link\)"):
        read_plan(folder, made.encoder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "encoder": 3, "head": {}}'])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "build.json").write_text(text)
    with pytest.raises(PlanError):
        PlanSet.read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": None},
        {"targets": [8.7]},
        {"checks": [1]},
        {"checks": None},
        {"version": 10},
        {"hardware_compatible": "yes"},
        {"memory": "much"},
        {"head": {"file": "head.plan"}},
        {"head": {"profile": [[1]]}},
        {"head": {"profile": {"text": [[1], [2]]}}},
        {"head": {"profile": {"text": [[1], [2], [10**300]]}}},
        {"head": {"seconds": 10**390}},
        {"encoder": {"file": "../head.onnx"}},
        {"encoder": {"sha256": "0"}},
        {"checks": [{"artifact": "encoder", "passed": 1, "limits": {"cosine": 1}}]},
        {"checks": [CHECK | {"limits": None}]},
        {"gpu": "a\nb"},
        {"encoder": {"held": "all"}},
        {"encoder": {"file": None}},
        {"colour": "red"},
    ],
)
def test_values_of_another_kind_in_the_sidecar_are_a_reason(bundle_copy: Path, changes: dict[str, Any]) -> None:
    bundle = Bundle.open(bundle_copy)
    sidecar = bundle_copy / ENGINES / "there" / "build.json"
    plan_set(bundle, sidecar.parent)
    value = json.loads(sidecar.read_text())
    for name, change in changes.items():
        whole = name not in ("head", "encoder") or change == {"file": "head.plan"}
        value[name] = change if whole else value[name] | change
    sidecar.write_text(json.dumps(value))
    with pytest.raises(PlanError, match=r"there cannot read .*build\.json"):
        find_plans(bundle, ORIN, "tensorrt", "10.3.0")


def test_unchecked_or_wrong_plans_have_not_passed(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    assert not plan_set(bundle, bundle_copy / "a", checks=[]).passed
    assert not plan_set(bundle, bundle_copy / "b", checks=[CHECK, CHECK | {"passed": False}]).passed


def test_what_the_checks_allowed_is_known(bundle_copy: Path) -> None:
    made = plan_set(Bundle.open(bundle_copy), bundle_copy / "a")
    assert made.least_cosine == 0.999
    assert replace(made, checks=[]).least_cosine is None
    head = CHECK | {"artifact": "head", "limits": {"cosine": 0.5}}
    assert replace(made, checks=[head, CHECK | {"limits": {"cosine": 0.98}}]).least_cosine == 0.98


def test_a_fifo_in_place_of_the_sidecar_is_not_waited_for(bundle_copy: Path) -> None:
    (bundle_copy / ENGINES / "there").mkdir(parents=True)
    os.mkfifo(bundle_copy / ENGINES / "there" / "build.json")
    with pytest.raises(PlanError, match=r"build\.json: it is not a regular file"):
        find_plans(Bundle.open(bundle_copy), ORIN, "tensorrt", "10.3.0")
