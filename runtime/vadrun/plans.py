"""TensorRT plans of a bundle: where they lie, what made them, and whether they fit this GPU.

``engines/<device>/build.json`` stands beside the plans of one GPU and one TensorRT. It is read before any plan is: a
plan that does not fit is refused by TensorRT with a line in its log only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vadrun.bundle import Bundle
from vadrun.cuda import Gpu
from vadrun.errors import UserError
from vadrun.files import sha256, write_json
from vadrun.schema import (
    SHA256,
    Anything,
    FileName,
    Flag,
    List,
    Maybe,
    Number,
    Record,
    Table,
    Text,
    Where,
    Whole,
    parse_json,
    read_file,
    validate,
)

SCHEMA = 1
ENGINES = "engines"
BUILD = "build.json"

_SHAPE = List(Whole(0, 65_536), 1, 8)
_PLAN = Record(
    {
        "file": FileName(),
        "sha256": SHA256,
        "onnx": FileName(),
        "onnx_sha256": SHA256,
        "precision": Text(among=("fp32", "fp16", "int8")),
        "typing": Text(),
        "profile": Table(List(_SHAPE, 3, 3)),
        "seconds": Number(0),
    },
    optional={"attention": Maybe(Whole()), "layers": Maybe(Whole()), "held": List(Text())},
)
_CHECK = Record(
    {"artifact": Text(), "passed": Flag(), "limits": Record({"cosine": Number(0)}, others=Anything())},
    others=Anything(),
)
_BUILD = Record(
    {
        "schema": Whole(1),
        "toolkit": Text(),
        "date": Text(),
        "library": Text(among=("tensorrt", "tensorrt_rtx")),
        "version": Text(1, 100),
        "gpu": Maybe(Text()),
        "targets": List(Text(pattern=r"\d{1,3}\.\d{1,3}", wanted="a compute capability such as 8.7")),
        "cuda": Maybe(Text()),
        "hardware_compatible": Flag(),
        "version_compatible": Flag(),
        "bundle": SHA256,
        "encoder": _PLAN,
        "head": _PLAN,
        "checks": List(_CHECK),
    },
    optional={"memory": Maybe(Whole()), "checked_on": List(Text())},
)


class PlanError(Exception):
    """Plans cannot be used here; the message is a clause that says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """One serialised engine.

    Attributes:
        file: its name beside build.json.
        sha256: of the file.
        onnx: the bundle's graph that it was built from.
        onnx_sha256: of that graph.
        precision: "fp16", "int8" or "fp32".
        typing: "strong" (precision by type) or "flag".
        profile: input -> smallest, best and largest shape.
        seconds: what the build took.
        attention: fused attention layers; None where that was not looked at.
        layers: of the engine; None where that was not looked at.
        held: parts of an fp16 encoder that this device has to compute in float32.
    """

    file: str
    sha256: str
    onnx: str
    onnx_sha256: str
    precision: str
    typing: str
    profile: Mapping[str, list[list[int]]]
    seconds: float
    attention: int | None = None
    layers: int | None = None
    held: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlanSet:
    """What build.json holds.

    Attributes:
        toolkit: version of vadclip-edge.
        date: ISO 8601.
        library: package that built: "tensorrt" or "tensorrt_rtx".
        version: of that package.
        gpu: name of the GPU it was built on; None where it was built for one that was not there.
        targets: compute capabilities, such as ["8.7"].
        cuda: the driver's; None as for ``gpu``.
        hardware_compatible: whether it runs on every GPU of its kind from Ampere on.
        version_compatible: whether it runs with later TensorRT of the same major version.
        bundle: sha256 of the bundle's manifest.
        encoder: plan of the encoder.
        head: plan of the head.
        checks: rows of the certificate on the GPU; empty where it could not be run.
        memory: the most that the building process had resident, MiB; None in files of earlier versions.
        checked_on: names of the GPUs on which plans of a GPU that was not there have passed since.
    """

    toolkit: str
    date: str
    library: str
    version: str
    gpu: str | None
    targets: list[str]
    cuda: str | None
    hardware_compatible: bool
    version_compatible: bool
    bundle: str
    encoder: Plan
    head: Plan
    checks: list[dict[str, Any]]
    memory: int | None = None
    checked_on: list[str] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, Plan]:
        """The plans by what they are of: "encoder" and "head"."""
        return {"encoder": self.encoder, "head": self.head}

    @property
    def passed(self) -> bool:
        """Whether the plans have been held against PyTorch's answers on a GPU, and were right."""
        return bool(self.checks) and all(check["passed"] for check in self.checks)

    @property
    def least_cosine(self) -> float | None:
        """The cosine of a feature that the checks allowed; None where there was no check."""
        allowed = [check["limits"]["cosine"] for check in self.checks if check["artifact"] == "encoder"]
        return min(allowed, default=None)

    def passed_on(self, gpu: Gpu) -> bool:
        """Whether that was on the GPU they were built on, or on one of this name."""
        return self.passed and (self.gpu is not None or gpu.name in self.checked_on)

    def write(self, folder: Path) -> None:
        """Write ``build.json``."""
        write_json(folder / BUILD, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> PlanSet:
        """Read ``build.json``.

        Raises:
            PlanError: it is not there or does not read.
        """
        where = Where(folder / BUILD, "run vadexport compile again")
        try:
            value = parse_json(read_file(folder / BUILD, where), where)
            if isinstance(value, dict) and value.get("schema") not in (None, SCHEMA):
                raise PlanError(f"finds {where.name} of another version of vadclip-edge")
            value = dict(validate(value, _BUILD, where))
        except UserError as error:
            raise PlanError(f"cannot read {error}") from error
        del value["schema"]
        return cls(**value | {part: Plan(**value[part]) for part in ("encoder", "head")})


def compile_advice(root: Path) -> str:
    """What to do where a bundle has no plan that can be used: the command."""
    return f"run vadexport compile {root} on this machine"


def device_name(gpu: Gpu | None, capability: tuple[int, int], library: str, version: str) -> str:
    """The folder of one device's plans: ``orin-sm87-tensorrt-10.3.0``."""
    name = "any" if gpu is None else gpu.name.lower().replace("nvidia", "")
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "gpu"
    return f"{slug}-sm{capability[0]}{capability[1]}-{library.replace('_', '-')}-{version}"


def plan_folders(bundle: Bundle) -> list[Path]:
    """Folders under ``engines/`` that hold a build.json, by name."""
    root = bundle.root / ENGINES
    if not root.is_dir():
        return []
    return sorted(f for f in root.iterdir() if not f.name.startswith(".") and os.path.lexists(f / BUILD))


def find_plans(bundle: Bundle, gpu: Gpu, library: str, version: str) -> tuple[Path, PlanSet]:
    """The folder whose plans fit and have passed their checks, and what it says.

    Args:
        bundle: an opened bundle.
        gpu: the one that shall run.
        library: "tensorrt", "tensorrt_lean" or "tensorrt_rtx".
        version: of that package.

    Raises:
        PlanError: none fits; why the nearest does not.
    """
    rebuild = compile_advice(bundle.root)
    reasons = []
    for folder, plans, reason in _considered(bundle, gpu, library, version):
        if plans is not None and reason is None and plans.passed_on(gpu):
            return folder, plans
        reasons.append(f"{folder.name} {reason or f'was not checked on {gpu.name}'}")
    if not reasons:
        raise PlanError(f"finds no engine in {bundle.root}: {rebuild}")
    raise PlanError(f"has no engine for this machine ({'; '.join(reasons)}): {rebuild}")


def fitting_plans(bundle: Bundle, gpu: Gpu, library: str, version: str) -> list[tuple[Path, PlanSet]]:
    """All plans that fit as :func:`find_plans` asks, whether they have passed their checks or not."""
    considered = _considered(bundle, gpu, library, version)
    return [(folder, plans) for folder, plans, reason in considered if plans is not None and reason is None]


def _considered(bundle: Bundle, gpu: Gpu, library: str, version: str) -> list[tuple[Path, PlanSet | None, str | None]]:
    """Every folder of plans, what it says, and why it does not fit; those that were built on a GPU come first."""
    found: list[tuple[Path, PlanSet | None, str | None]] = []
    for folder in plan_folders(bundle):
        try:
            plans = PlanSet.read(folder)
            found.append((folder, plans, _misfit(plans, bundle, gpu, library, version)))
        except PlanError as error:
            found.append((folder, None, str(error)))
    return sorted(found, key=lambda entry: entry[1] is not None and entry[1].gpu is None)


def read_plan(folder: Path, plan: Plan) -> bytes:
    """The plan's bytes; ``folder`` is one of a bundle's ``engines/``.

    Raises:
        PlanError: the file is missing or not the one that was built.
    """
    path, again = folder / plan.file, compile_advice(folder.parent.parent)
    if path.is_symlink() or not path.is_file():
        raise PlanError(f"misses {path}{' (it is a link)' if path.is_symlink() else ''}: {again}")
    if sha256(path) != plan.sha256:
        raise PlanError(f"finds that {path} is not the file that was built (its sha256 differs): {again}")
    return path.read_bytes()


def profile_of(folder: Path, plan: Plan, inputs: Iterable[str]) -> dict[str, tuple[list[int], list[int]]]:
    """Smallest and largest shape of each of these inputs of a plan in one of a bundle's ``engines/``.

    Raises:
        PlanError: build.json does not tell them.
    """
    found = {}
    for name in inputs:
        if name not in plan.profile:
            again = compile_advice(folder.parent.parent)
            raise PlanError(f"finds no profile of {name!r} for {plan.file} in {folder / BUILD}: {again}")
        least, _, most = plan.profile[name]
        found[name] = least, most
    return found


def _misfit(plans: PlanSet, bundle: Bundle, gpu: Gpu, library: str, version: str) -> str | None:
    graphs = {plan.onnx: plan.onnx_sha256 for plan in (plans.encoder, plans.head)}
    held = {entry.name: entry.sha256 for entry in bundle.files}
    if any(held.get(name) != digest for name, digest in graphs.items()):
        return "was built from other graphs than the bundle holds"
    if (library == "tensorrt_rtx") != (plans.library == "tensorrt_rtx"):
        return f"was built with {plans.library}, and {library} is installed"
    if library == "tensorrt_lean" and not plans.version_compatible:
        return "was built without --version-compatible, which tensorrt_lean needs"
    if not _version_fits(plans, version):
        return f"was built with TensorRT {plans.version}, and {version} is installed"
    capability = f"{gpu.capability[0]}.{gpu.capability[1]}"
    if plans.hardware_compatible:
        if gpu.capability < (8, 0):
            return f"is for compute capability 8.0 and later, and {gpu.name} has {capability}"
    elif capability not in plans.targets:
        return f"was built for compute capability {', '.join(plans.targets)}, and {gpu.name} has {capability}"
    elif plans.gpu not in (None, gpu.name):
        return f"was built on {plans.gpu}, and this is {gpu.name}"
    return None


def _version_fits(plans: PlanSet, version: str) -> bool:
    if plans.version == version:
        return True
    if not plans.version_compatible:
        return False
    built, here = _numbers(plans.version), _numbers(version)
    return built[:1] == here[:1] and built <= here


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
