"""From a bundle to TensorRT plans, on the box that runs them. Needs numpy and TensorRT; no PyTorch, no onnx.

Precision is by type: the fp16 encoder graph holds float16 tensors, and the network is strongly typed. Where a TensorRT
before 11 refuses that, the graph is built with its FP16 flag instead, and build.json says so. The head is float32.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vadexport.certificate import Changes, Check, check_engine
from vadexport.probe import Probe
from vadrun import trt as tensorrt
from vadrun.backends import BackendError, Options
from vadrun.backends.tensorrt import TensorrtBackend
from vadrun.bundle import Bundle, BundleFile
from vadrun.console import table, version
from vadrun.cuda import Gpu, NoCuda, gpus
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.files import sha256, whole_directory, write_text
from vadrun.plans import ENGINES, Plan, PlanSet, device_name
from vadrun.scoring import CHUNKS_PER_CALL

LOW_MEMORY_MIB = 256
_MOST_CLASSES = 64  # an engine takes new classes up to here without being built again
_MIB = 1 << 20

Say = Callable[[str], None]
Shapes = dict[str, list[list[int]]]


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
        batch: smallest, best and largest number of frames in one call.
        targets: compute capabilities of GPUs that are not here (TensorRT-RTX only); empty for the one that is.
        hardware_compatible: for every GPU from Ampere on.
        version_compatible: for later TensorRT of the same major version too.
        memory_mib: the most that the builder may take for scratch memory; None leaves it to TensorRT.
        low_memory: 256 MiB of scratch memory and the builder's quick search.
        keep_failed: keep an engine that is wrong, under another name.
        limits: of the check, where they are to differ from the certificate's.
    """

    bundle: Path
    batch: tuple[int, int, int] = (1, 8, 32)
    targets: tuple[tuple[int, int], ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    memory_mib: int | None = None
    low_memory: bool = False
    keep_failed: bool = False
    limits: Changes | None = None


@dataclass(frozen=True)
class Compiled:
    """The plans' folder, what stands in its build.json, and the checks; none where the GPU is not here."""

    folder: Path
    plans: PlanSet
    checks: list[Check]


def compile_bundle(options: CompileOptions, say: Say = lambda text: None) -> Compiled:
    """Build the plans of a bundle into ``engines/<device>/``, whole or not at all, and hold them against the probe.

    Raises:
        UserError: no TensorRT, no GPU, not a bundle, or TensorRT refuses the graph.
        CompileError: the engine runs, but is further from PyTorch than allowed.
    """
    smallest, best, largest = options.batch
    if not 1 <= smallest <= best <= largest:
        raise UserError(
            f"--batch {smallest},{best},{largest} is no range: give MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX"
        )
    bundle = Bundle.open(options.bundle)
    library, trt = _library(options.targets)
    gpu = None if options.targets else _gpu()
    capabilities = list(options.targets) or [gpu.capability for gpu in (gpu,) if gpu is not None]
    encoder = _encoder_file(bundle)
    folder = bundle.root / ENGINES / device_name(gpu, capabilities[0], library, trt.__version__)
    say(f"{library} {trt.__version__} for {gpu.name if gpu else ', '.join(_dotted(c) for c in capabilities)}")
    with whole_directory(folder, replace=True) as made:
        maker = PlanBuilder(trt, library, options, folder.parent, say)
        plans = [
            maker.build(bundle.root / entry.name, entry, made / f"{role}.plan", shapes)
            for role, entry, shapes in (
                ("encoder", encoder, encoder_shapes(bundle, options.batch)),
                ("head", bundle.file("head"), head_shapes(bundle)),
            )
        ]
        write_text(made / "build.log", "\n".join(maker.log) + "\n")
        found = PlanSet(
            toolkit=version(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            library=library,
            version=trt.__version__,
            gpu=gpu.name if gpu else None,
            targets=[_dotted(capability) for capability in capabilities],
            cuda=gpu.cuda if gpu else None,
            hardware_compatible=options.hardware_compatible,
            version_compatible=options.version_compatible,
            bundle=bundle.sha256,
            encoder=plans[0],
            head=plans[1],
            checks=[],
        )
        found.write(made)
        checks: list[Check] = []
        if gpu is not None:
            say("checking the engines against PyTorch's answers")
            found, checks = _checked(bundle, found, made, options, folder)
        maker.keep_timings()
    return Compiled(folder, found, checks)


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


class PlanBuilder:
    """TensorRT's builder with a log, progress and the timings of earlier builds."""

    def __init__(self, trt: Any, library: str, options: CompileOptions, folder: Path, say: Say) -> None:
        self.log: list[str] = []
        self._trt, self._options, self._say = trt, options, say
        self._errors: list[str] = []
        self._logger = tensorrt.make_logger(trt, self._write)
        self._builder = trt.Builder(self._logger)
        # TensorRT-RTX tunes on the device, when it loads a plan: it has no timings to keep.
        self._timings = None if library == "tensorrt_rtx" else folder / f"timings-{trt.__version__}.cache"
        self._cache: bytes | None = None

    def build(self, path: Path, entry: BundleFile, target: Path, shapes: Shapes) -> Plan:
        """Build one plan.

        Args:
            path: the graph.
            entry: what the bundle says of it.
            target: the plan's file.
            shapes: input -> smallest, best and largest shape.

        Raises:
            UserError: TensorRT does not parse or build it.
        """
        began = time.monotonic()
        precision = entry.precision or "fp32"
        plan = None
        for typing in self._routes(precision):
            self._say(f"building {target.stem} in {precision}" + (" with the FP16 flag" if typing == "flag" else ""))
            plan = self._serialised(path, shapes, typing)
            if plan is not None:
                break
        if plan is None:
            raise UserError(self._refusal(path))
        target.write_bytes(plan)
        return Plan(
            file=target.name,
            sha256=sha256(target),
            onnx=entry.name,
            onnx_sha256=entry.sha256,
            precision=precision,
            typing=typing,
            profile=shapes,
            seconds=round(time.monotonic() - began, 2),
        )

    def keep_timings(self) -> None:
        """Write the timing cache, which makes the next build on this device quick."""
        if self._timings is not None and self._cache:
            temporary = self._timings.with_name(f".{self._timings.name}.tmp-{os.getpid()}")
            temporary.write_bytes(self._cache)
            temporary.replace(self._timings)

    def _routes(self, precision: str) -> list[str]:
        # By what the library offers: TensorRT 11 has no flag any more, and is always strongly typed.
        can_flag = precision == "fp16" and hasattr(self._trt.BuilderFlag, "FP16")
        return ["strong", "flag"] if can_flag else ["strong"]

    def _serialised(self, path: Path, shapes: Shapes, typing: str) -> bytes | None:
        trt = self._trt
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typing == "strong" else 0
        network = self._builder.create_network(flags)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            self._errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
            return None
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        config.add_optimization_profile(profile)
        self._configure(config, typing)
        made = self._builder.build_serialized_network(network, config)
        if made is None:
            return None
        if self._timings is not None:
            self._cache = bytes(config.get_timing_cache().serialize())
        return bytes(made)

    def _configure(self, config: Any, typing: str) -> None:
        trt, options = self._trt, self._options
        if typing == "flag":
            config.set_flag(trt.BuilderFlag.FP16)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.targets:
            config.num_compute_capabilities = len(options.targets)
            for index, (major, minor) in enumerate(options.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
        memory = LOW_MEMORY_MIB if options.low_memory else options.memory_mib
        if memory is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, memory * _MIB)
        if options.low_memory:
            config.builder_optimization_level = 2
        # Layer names, so that the inspector can tell fused attention.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, self._say)
        if self._timings is not None:
            kept = self._cache or (self._timings.read_bytes() if self._timings.is_file() else b"")
            config.set_timing_cache(config.create_timing_cache(kept), False)

    def _write(self, severity: str, message: str) -> None:
        self.log.append(f"{severity}: {message}")
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(message)

    def _refusal(self, path: Path) -> str:
        why = " ".join(self._errors[-1].split()) if self._errors else "it does not say why"
        short = any("memory" in error.lower() for error in self._errors)
        advice = (
            "stop what else runs on the box and give --low-memory, or a smaller --batch"
            if short
            else "update TensorRT, or build the bundle with --precision fp32"
        )
        return f"TensorRT cannot build {path}: {why}; {advice}"


def _monitor(trt: Any, say: Say) -> Any:
    """Tells the outermost phases of a build, each with its number of steps."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                say(f"  {phase_name} ({num_steps} steps)")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


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
        return gpus()[0]
    except NoCuda as error:
        raise UserError(
            f"this machine {error}, and an engine is built on the GPU that runs it: compile on that box, or name its "
            "GPU with --for (TensorRT-RTX only)"
        ) from error


def _encoder_file(bundle: Bundle) -> BundleFile:
    held = bundle.encoder_precisions
    return bundle.file("encoder", "fp16" if "fp16" in held else held[0])


def _checked(
    bundle: Bundle, plans: PlanSet, made: Path, options: CompileOptions, folder: Path
) -> tuple[PlanSet, list[Check]]:
    """The certificate of plans that lie in ``made``, in build.json too."""
    try:
        backend = TensorrtBackend(bundle, "cuda", Options(), made)
    except BackendError as error:
        raise UserError(f"TensorRT built an engine that does not load: the backend {error}") from error
    with Engine(bundle, backend, "being checked", options.batch[1]) as engine:
        layers = backend.layers()
        checks = check_engine(engine, Probe.load(bundle.path("probe")), options.limits)
    fused = sum("mha" in line.lower() for line in layers)
    encoder = replace(plans.encoder, attention=fused, layers=len(layers))
    plans = replace(plans, encoder=encoder, checks=[asdict(check) for check in checks])
    plans.write(made)
    wrong = [check.artifact for check in checks if not check.passed]
    if wrong:
        kept = ""
        if options.keep_failed:
            failed = folder.with_name(f"{folder.name}-failed")
            with whole_directory(failed, replace=True) as copy:
                for path in made.iterdir():
                    (copy / path.name).write_bytes(path.read_bytes())
            kept = f" (kept in {failed})"
        raise CompileError(_advice(wrong, plans) + kept, checks)
    return plans, checks


def _advice(wrong: list[str], plans: PlanSet) -> str:
    if "head" in wrong:
        return (
            "the head is wrong in float32, so this TensorRT miscompiles it on this GPU: take another TensorRT release"
        )
    if plans.encoder.precision == "fp16":
        return "the encoder misses its limits in fp16: build the bundle with --precision fp32 and compile again"
    return "the encoder is wrong in float32, so this TensorRT miscompiles it on this GPU: take another TensorRT release"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def report(compiled: Compiled) -> str:
    """What was built, for people."""
    plans = compiled.plans
    rows = []
    parts: Mapping[str, Plan] = {"encoder": plans.encoder, "head": plans.head}
    for role, plan in parts.items():
        size = (compiled.folder / plan.file).stat().st_size / 1e6
        attention = "-" if plan.attention is None else str(plan.attention)
        rows.append([role, plan.precision, plan.typing, f"{size:.1f} MB", f"{plan.seconds:.1f} s", attention])
    return table(["engine", "precision", "typing", "size", "built in", "fused attention"], rows, right=(3, 4, 5))
