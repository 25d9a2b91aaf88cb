"""TensorRT: plans that vadexport compile made for this GPU. Buffers and the stream are cuda-bindings'.

Both graphs run on one stream, one after the other, and share their scratch memory. Nothing is allocated once loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.backends import BackendError, Missing, Options, check_shapes
from vadrun.console import version
from vadrun.cuda import NoCuda, gpus
from vadrun.errors import UserError
from vadrun.plans import PlanError, PlanSet, find_plans, largest, read_plan
from vadrun.trt import NoTensorrt, import_tensorrt, installed, make_logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vadrun.bundle import Bundle

    Arrays = dict[str, NDArray[Any]]

INPUTS: dict[str, dict[str, Any]] = {
    "encoder": {"frames": np.uint8},
    "head": {"features": np.float32, "lengths": np.int64, "text": np.float32},
}
OUTPUTS = {"encoder": ("features",), "head": ("logits", "alignment")}


class TensorrtBackend:
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
        if not _has_cuda_bindings():
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
            found["cuda-bindings"] = version("cuda-bindings") if _has_cuda_bindings() else "not installed"
        return found

    def __init__(self, bundle: Bundle, device: str, options: Options, folder: Path | None = None) -> None:
        """Load the plans that fit this GPU, or those in ``folder`` while they are being checked."""
        gpu = gpus()[0]
        library = installed()[0]
        try:
            trt = import_tensorrt(library)
            if folder is None:
                folder, plans = find_plans(bundle, gpu, library, trt.__version__)
                if not plans.passed:
                    raise PlanError(
                        f"finds that {folder} was not checked on a GPU: run vadexport compile {bundle.root}"
                    )
            else:
                plans = PlanSet.read(folder)
            precision = plans.encoder.precision
            if options.precision not in ("auto", precision):
                raise BackendError(f"has an engine in {precision}, not {options.precision}")
            serialised = [read_plan(folder, plans.encoder), read_plan(folder, plans.head)]
        except (NoTensorrt, PlanError) as error:
            raise BackendError(str(error)) from error
        self.precision = precision
        self.library = f"{library} {trt.__version__}"
        self.encoder_file = plans.encoder.onnx
        self._messages: list[str] = []
        self._cuda = _Cuda()
        try:
            self._cuda.start(gpu.index)
            logger = make_logger(trt, self._log)
            runtime = trt.Runtime(logger)
            engines = [self._deserialised(runtime, plan, folder) for plan in serialised]
            scratch = self._cuda.memory(max(scratch_bytes(engine) for engine in engines))
            self._encoder, self._head = (
                LoadedEngine(trt, engine, self._cuda, scratch, list(OUTPUTS[role]), profile_of(role, plans))
                for role, engine in zip(INPUTS, engines, strict=True)
            )
            shapes = {}
            for role, engine in zip(INPUTS, engines, strict=True):
                for name in INPUTS[role]:
                    shapes[name] = [size if size >= 0 else None for size in engine.get_tensor_shape(name)]
            check_shapes(bundle, shapes)
        except UserError as error:
            self._cuda.close()
            raise BackendError(f"does not start: {error}") from error
        except BaseException:
            self._cuda.close()
            raise
        self._kept = (logger, runtime, engines)  # TensorRT's objects must outlive what they made

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        most = self._encoder.most["frames"][0]
        parts = [self._encoder.run({"frames": part})["features"] for part in _parts(frames, most)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def head(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64], text: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if len(text) > self._head.most["text"][0]:
            raise UserError(
                f"the bundle has {len(text)} classes, but its engine takes {self._head.most['text'][0]}: compile again"
            )
        most = self._head.most["features"][0]
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
        inspector = self._kept[2][0].create_engine_inspector()
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
            raise BackendError(f"refuses the engine in {folder} ({said}): run vadexport compile again on this machine")
        return engine

    def _log(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._messages.append(message)


class _Cuda:
    """One stream, and all memory that was taken, of cuda-bindings' runtime."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.runtime = runtime
        self.stream: Any = None
        self._device: list[int] = []
        self._pinned: list[int] = []

    def start(self, device: int) -> None:
        self.call(self.runtime.cudaSetDevice(device))
        self.stream = self.call(self.runtime.cudaStreamCreateWithFlags(self.runtime.cudaStreamNonBlocking))

    def call(self, result: tuple[Any, ...]) -> Any:
        """The value of a call of cuda-bindings.

        Raises:
            UserError: CUDA reports an error.
        """
        error, *values = result
        if int(error):
            name = self.runtime.cudaGetErrorName(error)[1]
            text = name.decode() if isinstance(name, bytes) else str(error)
            advice = "; close what else uses the GPU, or take a smaller --batch" if int(error) == 2 else ""
            raise UserError(f"CUDA failed with {text}{advice}")
        return values[0] if values else None

    def memory(self, size: int) -> int:
        """Address of ``size`` bytes on the GPU."""
        address = int(self.call(self.runtime.cudaMalloc(max(size, 1))))
        self._device.append(address)
        return address

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of the host that the GPU copies without a detour."""
        address = int(self.call(self.runtime.cudaHostAlloc(max(size, 1), 0)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))

    def upload(self, target: int, source: int, size: int) -> None:
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(self.runtime.cudaMemcpyAsync(target, source, size, kind, self.stream))

    def download(self, target: int, source: int, size: int) -> None:
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self.runtime.cudaMemcpyAsync(target, source, size, kind, self.stream))

    def wait(self) -> None:
        self.call(self.runtime.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        for address in self._device:
            self.runtime.cudaFree(address)
        for address in self._pinned:
            self.runtime.cudaFreeHost(address)
        if self.stream is not None:
            self.runtime.cudaStreamDestroy(self.stream)
        self._device, self._pinned, self.stream = [], [], None


class LoadedEngine:
    """One engine with its context, and buffers for the largest shapes of its profile."""

    def __init__(
        self,
        trt: Any,
        engine: Any,
        cuda: _Cuda,
        scratch: int,
        outputs: list[str],
        profile: Mapping[str, tuple[list[int], list[int]]],
    ) -> None:
        self._cuda = cuda
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise UserError("TensorRT cannot make an execution context: close what else uses the GPU")
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(scratch, scratch_bytes(engine))
        else:
            self._context.device_memory = scratch
        self.least = {name: least for name, (least, _) in profile.items()}
        self.most = {name: most for name, (_, most) in profile.items()}
        self._host: dict[str, NDArray[np.uint8]] = {}
        self._device: dict[str, int] = {}
        for name, shape in self.most.items():
            self._context.set_input_shape(name, tuple(shape))
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in [*self.most, *outputs]}
        self._outputs = outputs
        for name, dtype in self._types.items():
            shape = self.most.get(name) or list(self._context.get_tensor_shape(name))
            size = int(np.prod(shape)) * dtype.itemsize
            self._host[name] = cuda.pinned(size)
            self._device[name] = cuda.memory(size)
            self._context.set_tensor_address(name, self._device[name])

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs of inputs whose first dimension may be anything up to the profile's largest."""
        batch = len(next(iter(inputs.values())))
        for name, given in inputs.items():
            value = padded(np.ascontiguousarray(given, self._types[name]), self.least[name][0])
            host = self._host[name]
            host[: value.nbytes] = value.reshape(-1).view(np.uint8)
            self._cuda.upload(self._device[name], host.ctypes.data, value.nbytes)
            self._context.set_input_shape(name, value.shape)
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise UserError("TensorRT did not run the engine: run vadexport verify on the bundle")
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * self._types[name].itemsize
            self._cuda.download(self._host[name].ctypes.data, self._device[name], size)
        self._cuda.wait()
        found = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * self._types[name].itemsize
            found[name] = self._host[name][:size].view(self._types[name]).reshape(shape)[:batch].astype(np.float32)
        return found


def scratch_bytes(engine: Any) -> int:
    """Scratch memory of an engine's context; the attribute's name depends on the release."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def profile_of(role: str, plans: PlanSet) -> dict[str, tuple[list[int], list[int]]]:
    """Smallest and largest shape of each input of "encoder" or "head"."""
    plan = plans.encoder if role == "encoder" else plans.head
    return {name: ([int(size) for size in plan.profile[name][0]], largest(plan, name)) for name in INPUTS[role]}


def padded(value: NDArray[Any], least: int) -> NDArray[Any]:
    """``value`` with zeros behind it, where it has fewer rows than ``least``."""
    if len(value) >= least:
        return value
    return np.concatenate([value, np.zeros((least - len(value), *value.shape[1:]), value.dtype)])


def _parts(frames: NDArray[np.uint8], most: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, max(len(frames), 1), most):
        yield frames[start : start + most]


def _has_cuda_bindings() -> bool:
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # no package cuda at all
        return False
