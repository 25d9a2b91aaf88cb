"""From a bundle to TensorRT engines, on the box that runs them. Needs numpy and TensorRT; no PyTorch, no onnx.

The engines are held against the probe before they take their place. An fp16 encoder that misses its limits is built
again with the fewest parts in float32 that bring it within them (see :mod:`vadexport.precision`).
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vadexport.checks import Changes, Check
from vadexport.plan_builder import (
    BuilderOptions,
    PlanBuilder,
    Say,
    Shapes,
    available_memory,
    memory_advice,
    memory_need,
)
from vadexport.plan_check import carried_plans, check_carried, check_plans
from vadexport.precision import search
from vadrun import trt as tensorrt
from vadrun.backends.tensorrt import TensorrtBackend
from vadrun.bundle import Bundle, BundleFile
from vadrun.console import table, version
from vadrun.cuda import Gpu, NoCuda, gpus
from vadrun.errors import UserError
from vadrun.files import whole_directory, write_text
from vadrun.plans import ENGINES, Plan, PlanError, PlanSet, device_name
from vadrun.scoring import CHUNKS_PER_CALL

_MOST_CLASSES = 64  # an engine takes new classes up to here without being built again
_ENCODERS = ("fp16", "int8", "fp32")  # which of a bundle's encoder graphs is compiled: the first that is there
BATCH = (1, 8, 32)
LOW_MEMORY_BATCH = (1, 4, 8)


class CompileError(Exception):
    """An engine is further from PyTorch than allowed; the message is what to do, ``checks`` the rows."""

    def __init__(self, message: str, checks: list[Check]) -> None:
        super().__init__(message)
        self.checks = checks


@dataclass(frozen=True)
class CompileOptions:
    """What ``vadexport compile`` is told.

    Attributes:
        bundle: the bundle's folder.
        batch: smallest, best and largest number of frames in one call; None for :data:`BATCH`, or
            :data:`LOW_MEMORY_BATCH` with little memory.
        builder: what TensorRT's builder is told.
        keep_failed: keep an engine that is wrong, under another name.
        limits: of the check, where they are to differ from the certificate's.
    """

    bundle: Path
    batch: tuple[int, int, int] | None = None
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    keep_failed: bool = False
    limits: Changes | None = None

    @property
    def frames(self) -> tuple[int, int, int]:
        """The batch, whoever chose it."""
        return self.batch or (LOW_MEMORY_BATCH if self.builder.low_memory else BATCH)

    @property
    def takes_what_is_there(self) -> bool:
        """Whether plans that were built elsewhere will do: nothing was said of how they should be built."""
        return self.batch is None and self.builder == BuilderOptions()


@dataclass(frozen=True)
class Compiled:
    """The plans' folder, what stands in its build.json, and the checks; none where the GPU is not here."""

    folder: Path
    plans: PlanSet
    checks: list[Check]


def compile_bundle(options: CompileOptions, say: Say = lambda text: None) -> Compiled:
    """Build the plans of a bundle into ``engines/<device>/``, whole or not at all, and hold them against the probe.

    Plans that were built for such a GPU elsewhere (``--for``) are checked instead, and built anew only if they fail.

    Raises:
        UserError: no TensorRT, no GPU, not a bundle, another compile is at work, or TensorRT refuses the graph.
        CompileError: the engine runs, but is further from PyTorch than allowed.
    """
    smallest, best, largest = options.frames
    if not 1 <= smallest <= best <= largest:
        raise UserError(
            f"--batch {smallest},{best},{largest} is no range: give MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX"
        )
    bundle = Bundle.open(options.bundle)
    targets = options.builder.targets
    library, trt = _library(targets)
    if library == "tensorrt_rtx" and (options.builder.hardware_compatible or options.builder.version_compatible):
        raise UserError(
            "TensorRT-RTX's engines fit only the release that built them: leave --hardware-compatible and "
            "--version-compatible out, and name GPUs with --for"
        )
    gpu = None if targets else _gpu()
    capabilities = list(targets) or [gpu.capability for gpu in (gpu,) if gpu is not None]
    folder = bundle.root / ENGINES / device_name(gpu, capabilities[0], library, trt.__version__)
    if gpu is not None and not folder.exists() and options.takes_what_is_there:
        carried = _carried(bundle, gpu, library, options, say)
        if carried is not None:
            return carried
    say(f"{library} {trt.__version__} for {gpu.name if gpu else ', '.join(_dotted(c) for c in capabilities)}")
    with _alone(bundle.root), whole_directory(folder, replace=True) as made:
        # TensorRT-RTX tunes on the device, when it loads a plan: it has no timings to keep.
        timings = None if library == "tensorrt_rtx" else folder.with_name(f"{folder.name}.timings")
        work = _Work(bundle, options, made, PlanBuilder(trt, options.builder, timings, say), say)
        if gpu is not None and gpu.integrated:
            say(memory_advice(memory_need(work.entry.bytes, options.builder), available_memory(), options.builder))
        found = PlanSet(
            toolkit=version(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            library=library,
            version=trt.__version__,
            gpu=gpu.name if gpu else None,
            targets=[_dotted(capability) for capability in capabilities],
            cuda=gpu.cuda if gpu else None,
            hardware_compatible=options.builder.hardware_compatible,
            version_compatible=options.builder.version_compatible,
            bundle=bundle.sha256,
            encoder=work.encoder(_held_before(folder, work.entry)),
            head=work.head(),
            checks=[],
        )
        checks: list[Check] = []
        if gpu is not None:
            found, checks = work.checked(found)
            if work.can_search and _is_precision(checks):
                found, checks = work.searched(found, checks)
        found = replace(found, memory=_peak())
        found.write(made)
        write_text(made / "build.log", "\n".join(work.builder.log) + "\n")
        work.builder.keep_timings()
        if not all(check.passed for check in checks):
            kept = f" (kept in {_keep(made, folder)})" if options.keep_failed else ""
            raise CompileError(_advice(checks, found) + kept, checks)
    return Compiled(folder, found, checks)


class _Work:
    """One compilation: builds plans of a bundle into a folder, and runs them on the probe."""

    def __init__(self, bundle: Bundle, options: CompileOptions, folder: Path, builder: PlanBuilder, say: Say) -> None:
        self.builder = builder
        self.entry = _encoder_file(bundle)
        self._bundle, self._options, self._folder, self._say = bundle, options, folder, say
        self._parts: list[str] = []

    def encoder(self, held: Sequence[str]) -> Plan:
        """The encoder's plan, with these parts in float32."""
        shapes = encoder_shapes(self._bundle, self._options.frames)
        path, target = self._bundle.root / self.entry.name, self._folder / "encoder.plan"
        plan = self.builder.build(path, self.entry, target, shapes, held)
        self._parts = self.builder.parts
        return plan

    def head(self) -> Plan:
        """The head's plan, always in float32."""
        entry = self._bundle.file("head")
        path, target = self._bundle.root / entry.name, self._folder / "head.plan"
        return self.builder.build(path, entry, target, head_shapes(self._bundle))

    def checked(self, plans: PlanSet) -> tuple[PlanSet, list[Check]]:
        """What the plans say of the probe, in build.json too.

        Raises:
            UserError: they do not load.
        """
        plans.write(self._folder)
        self._say("checking the engines against PyTorch's answers")
        plans, checks = check_plans(self._bundle, self._folder, plans, self._options.limits)
        plans.write(self._folder)
        return plans, checks

    @property
    def can_search(self) -> bool:
        """Whether the encoder has parts that float32 could mend."""
        return bool(self._parts)

    def searched(self, plans: PlanSet, checks: list[Check]) -> tuple[PlanSet, list[Check]]:
        """The same with the fewest parts of the encoder in float32; as it was where that does not help."""
        parts = self._parts
        self._say(
            f"fp16 misses its limits: looking for what of the {len(parts)} parts needs float32, one build each try"
        )
        last: list[Any] = []  # the parts, plans and checks of the engine that lies in the folder

        def tried(held: list[str]) -> tuple[PlanSet, list[Check]]:
            last.clear()
            last.extend((held, *self.checked(replace(plans, encoder=self.encoder(held)))))
            return last[1], last[2]

        def right(held: list[str]) -> bool:
            try:
                _, found = tried(held)
            except UserError as error:
                self._say(f"  {error}")
                return False
            worst = max(check.score_max or 0.0 for check in found)
            self._say(f"  {len(held)} of {len(parts)} parts in float32: scores within {worst:.1e}")
            return _is_right(found)

        held = search(parts, right)
        if held is None:
            return tried([])  # the fp16 engine that the message is about
        self._say(f"in float32: {', '.join(held)}")
        return (last[1], last[2]) if last and last[0] == held else tried(held)


def _carried(bundle: Bundle, gpu: Gpu, library: str, options: CompileOptions, say: Say) -> Compiled | None:
    """Plans that were built elsewhere and are right here; None where there are none."""
    with _alone(bundle.root):
        found = carried_plans(bundle, gpu, [library])
        if found is None:
            return None
        folder, plans = found
        say(f"checking the engines in {folder}, which were built elsewhere, on {gpu.name}")
        try:
            plans, checks = check_carried(bundle, gpu, folder, plans, options.limits)
        except UserError as error:
            say(f"building anew: {error}")
            return None
    if not all(check.passed for check in checks):
        say("building anew: they are further from PyTorch than allowed here")
        return None
    return Compiled(folder, plans, checks)


def can_compile() -> bool:
    """Whether this machine has a GPU and a TensorRT that builds."""
    try:
        return bool(tensorrt.installed(tensorrt.BUILD_WITH) and gpus())
    except NoCuda:
        return False


def encoder_shapes(bundle: Bundle, batch: tuple[int, int, int]) -> Shapes:
    """Profile of the encoder: frames uint8 [B,S,S,3]."""
    size = bundle.model.image_size
    return {"frames": [[count, size, size, 3] for count in batch]}


def head_shapes(bundle: Bundle) -> Shapes:
    """Profile of the head: one video's chunks, and as many classes as may be added later."""
    model = bundle.model
    classes, most = len(model.labels), max(_MOST_CLASSES, len(model.labels))
    chunks = (1, 1, CHUNKS_PER_CALL)
    return {
        "features": [[count, model.positions, model.features] for count in chunks],
        "lengths": [[count] for count in chunks],
        "text": [[count, model.features] for count in (2, classes, most)],
    }


def _library(targets: tuple[tuple[int, int], ...]) -> tuple[str, Any]:
    names = tensorrt.installed(("tensorrt_rtx",) if targets else tensorrt.BUILD_WITH)
    if not names:
        if targets:
            raise UserError("--for needs tensorrt-rtx, which is not installed: pip install 'vadclip-edge[rtx]'")
        raise UserError(
            "compiling needs TensorRT, which is not installed: pip install 'vadclip-edge[tensorrt]', or on a Jetson "
            "apt install python3-libnvinfer and a virtual environment with --system-site-packages"
        )
    try:
        trt = tensorrt.import_tensorrt(names[0])
    except tensorrt.NoTensorrt as error:
        raise UserError(f"this machine {error}: install TensorRT with its libraries") from error
    known = {name for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")}
    for major, minor in targets:
        if f"SM{major}{minor}" not in known:
            have = ", ".join(sorted(f"{name[2:-1]}.{name[-1]}" for name in known))
            raise UserError(f"{names[0]} builds for no GPU of compute capability {major}.{minor}: take one of {have}")
    return names[0], trt


def _gpu() -> Gpu:
    try:
        found = gpus()[0]
    except NoCuda as error:
        raise UserError(
            f"this machine {error}, and an engine is built on the GPU that runs it: compile on that box, or name its "
            "GPU with --for (TensorRT-RTX only)"
        ) from error
    # An engine is run as soon as it is built; what that takes must not be missed only then.
    reason = TensorrtBackend.unavailable("cuda")
    if reason is not None:
        raise UserError(
            f"the tensorrt backend {reason}, and every engine is checked with it: pip install cuda-bindings"
        )
    return found


def _encoder_file(bundle: Bundle) -> BundleFile:
    held = bundle.encoder_precisions
    return bundle.file("encoder", next((precision for precision in _ENCODERS if precision in held), held[0]))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps two processes from compiling the same bundle at once: they would take each other's memory and place.

    Raises:
        UserError: another one is at it.
    """
    place = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
        except BlockingIOError as error:
            raise UserError(f"{root} is being compiled by another process: wait until it is done") from error
        yield
    finally:
        os.close(place)


def _held_before(folder: Path, entry: BundleFile) -> list[str]:
    """What the last compilation for this device found that it needs in float32, if it was of the same graph."""
    try:
        plan = PlanSet.read(folder).encoder
    except PlanError:
        return []
    return plan.held if plan.onnx_sha256 == entry.sha256 else []


def _is_precision(checks: list[Check]) -> bool:
    """Whether only the encoder is wrong."""
    wrong = {check.artifact for check in checks if not check.passed}
    return bool(wrong) and "head" not in wrong


def _is_right(checks: list[Check]) -> bool:
    return all(check.passed and not check.events_gained and not check.events_lost for check in checks)


def _keep(made: Path, folder: Path) -> Path:
    failed = folder.with_name(f"{folder.name}-failed")
    with whole_directory(failed, replace=True) as copy:
        for path in made.iterdir():
            shutil.copyfile(path, copy / path.name)
    return failed


def _advice(checks: list[Check], plans: PlanSet) -> str:
    if any(check.artifact == "head" and not check.passed for check in checks):
        return (
            "the head is wrong in float32, so this TensorRT miscompiles it on this GPU: take another TensorRT release"
        )
    if plans.encoder.precision == "fp32":
        return "the encoder is wrong in float32: this TensorRT miscompiles it on this GPU, so take another release"
    if plans.encoder.precision == "int8":
        return "the encoder misses its limits in int8: build the bundle with --precision fp16 and compile again"
    return (
        f"the encoder misses its limits in {plans.encoder.precision}, and float32 in all of its parts does not mend "
        "that: build the bundle with --precision fp32 and compile again"
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def report(compiled: Compiled) -> str:
    """What was built, for people."""
    plans = compiled.plans
    rows = []
    for role, plan in (("encoder", plans.encoder), ("head", plans.head)):
        size = (compiled.folder / plan.file).stat().st_size / 1e6
        attention = "-" if plan.attention is None else str(plan.attention)
        rows.append([role, plan.precision, plan.typing, f"{size:.1f} MB", f"{plan.seconds:.1f} s", attention])
    text = table(["engine", "precision", "typing", "size", "built in", "fused attention"], rows, right=(3, 4, 5))
    if plans.encoder.held:
        text += f"\nin float32, because fp16 missed its limits here: {', '.join(plans.encoder.held)}"
    return f"{text}\nthe build took up to {plans.memory} MiB of memory"
