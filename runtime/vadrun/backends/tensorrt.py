"""TensorRT: plans that vadexport compile made for this GPU. Buffers and streams are cuda-bindings'.

The encoder has two sets of buffers, the head one; they execute one after the other and share their scratch memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.backends import Backend, BackendError, Missing, Options, check_shapes
from vadrun.backends.cuda_runtime import CudaRuntime, has_cuda_bindings
from vadrun.backends.tensorrt_engine import LoadedEngine, Streams, scratch_bytes
from vadrun.console import version
from vadrun.cuda import Gpu, NoCuda, gpus
from vadrun.errors import UserError
from vadrun.plans import PlanError, PlanSet, compile_advice, find_plans, profile_of, read_plan
from vadrun.trt import NoTensorrt, import_tensorrt, installed, make_logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vadrun.bundle import Bundle

INPUTS = {"encoder": ("frames",), "head": ("features", "lengths", "text")}
OUTPUTS = {"encoder": ("features",), "head": ("logits", "alignment")}


class TensorrtBackend(Backend):
    """Two engines, one for the encoder and one for the head."""

    name = "tensorrt"
    device = "cuda"

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why this backend cannot work here, or None."""
        if not installed():
            return Missing("is not installed")
        try:
            gpus()
        except NoCuda as error:
            return str(error)
        if not has_cuda_bindings():
            return Missing("needs cuda-bindings, which is not installed")
        return None

    @classmethod
    def about(cls) -> dict[str, str]:
        """Version of each TensorRT package, and whether the buffers' library is there."""
        found = {}
        for name in installed():
            try:
                found[name] = str(import_tensorrt(name).__version__)
            except NoTensorrt as error:
                found[name] = str(error)
        if found:
            found["cuda-bindings"] = version("cuda-bindings") if has_cuda_bindings() else "not installed"
        return found

    def __init__(self, bundle: Bundle, device: str, options: Options, folder: Path | None = None) -> None:
        """Load the plans that fit this GPU, or those in ``folder`` while they are being checked."""
        gpu = gpus()[0]
        try:
            library, folder, plans = _found(bundle, gpu) if folder is None else _named(folder)
            trt = import_tensorrt(library)
            self.precision = plans.encoder.precision
            if options.precision not in ("auto", self.precision):
                raise BackendError(f"has an engine in {self.precision}, not {options.precision}")
            serialised = {role: read_plan(folder, plan) for role, plan in plans.parts.items()}
            profiles = {role: profile_of(folder, plan, INPUTS[role]) for role, plan in plans.parts.items()}
        except (NoTensorrt, PlanError) as error:
            raise BackendError(str(error)) from error
        self.library = f"{library} {trt.__version__}"
        self.encoder_file = plans.encoder.onnx
        self.least_cosine = plans.least_cosine
        self._again = compile_advice(bundle.root)
        self._messages: list[str] = []
        try:
            self._cuda = CudaRuntime(gpu.index)
        except UserError as error:
            raise BackendError(f"does not start: {error}") from error
        try:
            logger = make_logger(trt, self._log)
            runtime = trt.Runtime(logger)
            if plans.version_compatible:
                runtime.engine_host_code_allowed = True  # such a plan brings the code of the TensorRT that built it
            engines = {role: self._deserialised(runtime, plan, folder) for role, plan in serialised.items()}
            check_shapes(bundle, _input_shapes(engines))
            scratch = self._cuda.memory(max(scratch_bytes(engine) for engine in engines.values()))
            streams = Streams(self._cuda.stream(), self._cuda.stream(), scratch)
            self._encoder, self._head = (
                LoadedEngine(trt, engines[role], self._cuda, streams, profiles[role], OUTPUTS[role], slots)
                for role, slots in (("encoder", 2), ("head", 1))
            )
        except UserError as error:
            self._cuda.close()
            raise BackendError(f"does not start: {error}") from error
        except BaseException:
            self._cuda.close()
            raise
        self.batch_limit = self._encoder.most["frames"]
        self._kept = (logger, runtime, engines)  # TensorRT's objects must outlive what they made

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._encoder.run({"frames": frames})["features"]

    def encode_each(self, parts: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        for outputs in self._encoder.run_each({"frames": part} for part in parts):
            yield outputs["features"]

    def head(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64], text: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if len(text) > self._head.most["text"]:
            raise UserError(
                f"the bundle has {len(text)} classes, but its engine takes {self._head.most['text']}: {self._again}"
            )
        most = self._head.most["features"]
        logits, alignment = [], []
        for start in range(0, len(features), most):
            part = slice(start, start + most)
            out = self._head.run({"features": features[part], "lengths": lengths[part], "text": text})
            logits.append(out["logits"])
            alignment.append(out["alignment"])
        return np.concatenate(logits), np.concatenate(alignment)

    def layers(self) -> list[str]:
        """One line to each layer of the encoder's engine, as TensorRT's inspector gives it."""
        trt = import_tensorrt(self.library.split()[0])
        inspector = self._kept[2]["encoder"].create_engine_inspector()
        text: str = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
        return text.splitlines()

    def close(self) -> None:
        self._encoder = self._head = None  # type: ignore[assignment]
        self._kept = None  # type: ignore[assignment]
        self._cuda.close()

    def _deserialised(self, runtime: Any, plan: bytes, folder: Path) -> Any:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = self._messages[-1] if self._messages else "it does not say why"
            raise BackendError(f"refuses the engine in {folder} ({said}): {compile_advice(folder.parent.parent)}")
        return engine

    def _log(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._messages.append(message)


def _found(bundle: Bundle, gpu: Gpu) -> tuple[str, Path, PlanSet]:
    """The first TensorRT here for which the bundle has plans, and these.

    Raises:
        PlanError, NoTensorrt: there is none; why none of them will do.
    """
    reasons = []
    for library in installed():
        try:
            return library, *find_plans(bundle, gpu, library, import_tensorrt(library).__version__)
        except (NoTensorrt, PlanError) as error:
            reasons.append(str(error))
    raise PlanError("; ".join(dict.fromkeys(reasons)))


def _named(folder: Path) -> tuple[str, Path, PlanSet]:
    plans = PlanSet.read(folder)
    return plans.library, folder, plans


def _input_shapes(engines: dict[str, Any]) -> dict[str, list[Any]]:
    """Shapes of all inputs as the engines have them; None for a dynamic size."""
    return {
        name: [size if size >= 0 else None for size in engines[role].get_tensor_shape(name)]
        for role, names in INPUTS.items()
        for name in names
    }
