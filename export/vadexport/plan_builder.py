"""TensorRT's builder: one graph of a bundle in, one plan out. Needs TensorRT; no PyTorch, no onnx, no GPU of its own.

Precision is by type: the fp16 encoder graph holds float16 tensors, and the network is strongly typed. Where a TensorRT
before 11 refuses that, the graph is built with its FP16 flag instead, and the plan says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadexport.precision import hold_by_flag, hold_strongly, parts_of
from vadrun import trt as tensorrt
from vadrun.bundle import BundleFile
from vadrun.errors import UserError
from vadrun.files import sha256, write_bytes
from vadrun.plans import Plan

LOW_MEMORY_MIB = 256
_USUAL_SCRATCH_MIB = 1024  # what TensorRT is taken to use where nobody limits it
_MIB = 1 << 20
# The flags with which a TensorRT before 11 may choose a precision itself, where it does not take it from the types.
_FLAGS = {"fp16": ("FP16",)}

Say = Callable[[str], None]
Shapes = dict[str, list[list[int]]]


@dataclass(frozen=True)
class BuilderOptions:
    """What the builder is told.

    Attributes:
        targets: compute capabilities of GPUs that are not here (TensorRT-RTX only); empty for the one that is.
        hardware_compatible: for every GPU from Ampere on.
        version_compatible: for later TensorRT of the same major version too.
        memory_mib: the most that the builder may take for scratch memory; None leaves it to TensorRT.
        low_memory: 256 MiB of scratch memory and the builder's quick search.
    """

    targets: tuple[tuple[int, int], ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    memory_mib: int | None = None
    low_memory: bool = False

    @property
    def scratch_mib(self) -> int | None:
        """The limit on scratch memory, MiB; None where there is none."""
        return self.memory_mib or (LOW_MEMORY_MIB if self.low_memory else None)


class PlanBuilder:
    """Builds plans; keeps a log and the timings of earlier builds.

    Args:
        trt: the module.
        options: for all plans.
        timings: file of the timing cache, which makes the next build on this device quick; None for none.
        say: told at the beginning of each step.
    """

    def __init__(self, trt: Any, options: BuilderOptions, timings: Path | None, say: Say) -> None:
        self.log: list[str] = []
        self.parts: list[str] = []  # what of the last graph computes in float16
        self._trt, self._options, self._say = trt, options, say
        self._errors: list[str] = []
        self._logger = tensorrt.make_logger(trt, self._write)
        self._builder = trt.Builder(self._logger)
        self._timings = timings
        self._cache = timings.read_bytes() if timings is not None and timings.is_file() else b""

    def build(self, path: Path, entry: BundleFile, target: Path, shapes: Shapes, held: Sequence[str] = ()) -> Plan:
        """Build one plan.

        Args:
            path: the graph.
            entry: what the bundle says of it.
            target: the plan's file.
            shapes: input -> smallest, best and largest shape.
            held: parts of the graph to compute in float32; see :mod:`vadexport.precision`.

        Raises:
            UserError: TensorRT does not parse or build it.
        """
        began = time.monotonic()
        precision = entry.precision or "fp32"
        self._errors.clear()
        for typing in self._routes(precision):
            self._say(f"building {target.stem} in {precision}{_but(held)}{' with flags' if typing == 'flag' else ''}")
            # TensorRT's own buffer goes into the file: a copy of it would cost a small box its size again.
            made = self._serialised(path, shapes, typing, precision, held)
            if made is not None:
                write_bytes(target, memoryview(made))
                break
        else:
            raise UserError(self._refusal(path))
        return Plan(
            file=target.name,
            sha256=sha256(target),
            onnx=entry.name,
            onnx_sha256=entry.sha256,
            precision=precision,
            typing=typing,
            profile=shapes,
            seconds=round(time.monotonic() - began, 2),
            held=list(held),
        )

    def keep_timings(self) -> None:
        """Write the timing cache."""
        if self._timings is not None and self._cache:
            write_bytes(self._timings, self._cache)

    def _routes(self, precision: str) -> list[str]:
        # By what the library offers: TensorRT 11 has no flags any more, and is always strongly typed.
        flags = _FLAGS.get(precision, ())
        can_flag = flags and all(hasattr(self._trt.BuilderFlag, flag) for flag in flags)
        return ["strong", "flag"] if can_flag else ["strong"]

    def _serialised(self, path: Path, shapes: Shapes, typing: str, precision: str, held: Sequence[str]) -> Any:
        trt = self._trt
        # By bit: the enumeration's own value differs between TensorRT 10 and 11.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typing == "strong" else 0
        network = self._builder.create_network(flags)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            self._errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
            return None
        self.parts = parts_of(trt, network)
        if held:
            (hold_strongly if typing == "strong" else hold_by_flag)(trt, network, held)
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        config.add_optimization_profile(profile)
        if typing == "flag":
            for flag in _FLAGS[precision]:
                config.set_flag(getattr(trt.BuilderFlag, flag))
            if held:
                config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        self._configure(config)
        made = self._builder.build_serialized_network(network, config)
        if made is not None and self._timings is not None:
            cache = config.get_timing_cache()
            self._cache = bytes(cache.serialize()) if cache is not None else self._cache
        return made

    def _configure(self, config: Any) -> None:
        trt, options = self._trt, self._options
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.targets:
            config.num_compute_capabilities = len(options.targets)
            for index, (major, minor) in enumerate(options.targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
        if options.scratch_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.scratch_mib * _MIB)
        if options.low_memory:
            # Tactics that need more than this are not tried; streams beside the main one want buffers of their own.
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, 2 * LOW_MEMORY_MIB * _MIB)
            config.builder_optimization_level = 2
            config.max_aux_streams = 0
        # Layer names, so that the inspector can tell fused attention.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, self._say)
        if self._timings is not None:
            cache = config.create_timing_cache(self._cache)
            # Timings of another GPU or a damaged file are refused: begin anew.
            if cache is None or not config.set_timing_cache(cache, False):
                config.set_timing_cache(config.create_timing_cache(b""), False)

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


def memory_need(graph: int, options: BuilderOptions) -> int:
    """MiB of memory that building an encoder takes, about; ``graph`` is the size of its file in bytes.

    TensorRT-RTX's builder has about three times the graph and 330 MiB resident (docs/jetson.md). The rest is a guess:
    half a gigabyte for CUDA, and scratch memory in which TensorRT tries its tactics.
    """
    scratch = options.scratch_mib or _USUAL_SCRATCH_MIB
    return 830 + 3 * graph // _MIB + scratch


def available_memory() -> int | None:
    """MiB that programs may still take, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def memory_advice(need: int, available: int | None, options: BuilderOptions) -> str:
    """What a build needs and what there is, in a sentence."""
    if available is None:
        return f"the build needs about {need} MiB of memory"
    text = f"the build needs about {need} MiB of memory, and {available} MiB are free"
    if available >= need:
        return text
    if options.low_memory:
        return f"{text}: stop what else runs (a desktop takes a gigabyte), or add swap"
    return f"{text}: give --low-memory, and stop what else runs"


def _but(held: Sequence[str]) -> str:
    if not held:
        return ""
    return f" but for {len(held)} part{'s' if len(held) > 1 else ''} in float32"


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
