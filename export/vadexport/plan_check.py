"""Plans against the probe on the GPU that is here: those that were just built, and those that were built elsewhere.

``vadexport compile --for`` builds plans for GPUs that are not there. They are run by nobody until ``vadexport compile``
or ``verify`` has checked them on such a GPU, which is then named in their build.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vadexport.checks import Changes, Check, check_engine
from vadexport.probe import Probe
from vadrun import trt as tensorrt
from vadrun.backends import BackendError, Options
from vadrun.backends.tensorrt import TensorrtBackend
from vadrun.bundle import Bundle
from vadrun.cuda import Gpu, gpus
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.plans import PlanError, PlanSet, find_plans, fitting_plans

_ROUNDS = 2  # before the check, so that it meets the graphs of steady shapes too


def check_plans(
    bundle: Bundle, folder: Path, plans: PlanSet, changes: Changes | None = None
) -> tuple[PlanSet, list[Check]]:
    """Run plans on the probe: what they are then, with the layers and checks filled in, and the checks.

    Raises:
        UserError: they do not load.
    """
    try:
        backend = TensorrtBackend(bundle, "cuda", Options(), folder)
    except BackendError as error:
        raise UserError(f"TensorRT built an engine that does not load: the backend {error}") from error
    batch = plans.encoder.profile["frames"][1][0]
    with Engine(bundle, backend, "being checked", batch, refuse_wrong=False) as engine:
        layers = backend.layers()
        probe = Probe.load(bundle.path("probe"), bundle.model)
        for _ in range(_ROUNDS):
            engine.encode(probe.frames)
            engine.logits(probe.track, probe.text)
        checks = check_engine(engine, probe, changes)
    fused = sum("mha" in line.lower() for line in layers)
    encoder = replace(plans.encoder, attention=fused, layers=len(layers))
    return replace(plans, encoder=encoder, checks=[asdict(check) for check in checks]), checks


def carried_plans(bundle: Bundle, gpu: Gpu, libraries: Sequence[str]) -> tuple[Path, PlanSet] | None:
    """Plans of ``--for`` that fit this GPU and one of these TensorRT packages, checked here or not; None if none do."""
    for library in libraries:
        try:
            version = tensorrt.import_tensorrt(library).__version__
        except tensorrt.NoTensorrt:
            continue
        for folder, plans in fitting_plans(bundle, gpu, library, version):
            if plans.gpu is None:
                return folder, plans
    return None


def check_carried(
    bundle: Bundle, gpu: Gpu, folder: Path, plans: PlanSet, changes: Changes | None = None
) -> tuple[PlanSet, list[Check]]:
    """Check plans that were built elsewhere on this GPU; what passes is marked in build.json, and runs from then on.

    Raises:
        UserError: they do not load here.
    """
    found, checks = check_plans(bundle, folder, plans, changes)
    if all(check.passed for check in checks):
        found = replace(found, checked_on=sorted({*plans.checked_on, gpu.name}))
        found.write(folder)
    return found, checks


def wanting_a_check(bundle: Bundle) -> tuple[Gpu, Path, PlanSet] | None:
    """Plans of ``--for`` where this GPU has no others that it could run; None where nothing is to be done."""
    if TensorrtBackend.unavailable("cuda") is not None:
        return None
    gpu, libraries = gpus()[0], tensorrt.installed()
    for library in libraries:
        try:
            find_plans(bundle, gpu, library, tensorrt.import_tensorrt(library).__version__)
        except (tensorrt.NoTensorrt, PlanError):
            continue
        return None
    carried = carried_plans(bundle, gpu, libraries)
    return None if carried is None else (gpu, *carried)
