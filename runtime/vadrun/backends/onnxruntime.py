"""onnxruntime: its CUDA provider or the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.backends import Backend, BackendError, Missing, Options, check_shapes, cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vadrun.bundle import Bundle

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_SIDE_BY_SIDE = 8  # runs of the encoder; a batch has seldom more frames
_PART = 2  # frames in one of them: what is computed of more does not stay in a core's cache


class OnnxruntimeBackend(Backend):
    """Two sessions, one for the encoder and one for the head."""

    name = "onnxruntime"

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why this backend cannot work here, or None."""
        if find_spec("onnxruntime") is None:
            return Missing("is not installed")
        import onnxruntime

        if _PROVIDERS[device] not in onnxruntime.get_available_providers():
            return Missing(f"has no {_PROVIDERS[device]} in this onnxruntime")
        return None

    @classmethod
    def about(cls) -> dict[str, str]:
        """Version and execution providers."""
        if find_spec("onnxruntime") is None:
            return {}
        import onnxruntime

        return {"version": onnxruntime.__version__, "providers": ", ".join(onnxruntime.get_available_providers())}

    def __init__(self, bundle: Bundle, device: str, options: Options) -> None:
        import onnxruntime

        self.device = device
        self.library = f"onnxruntime {onnxruntime.__version__}"
        # The CPU provider computes a float16 graph in float32 between casts; a GPU computes it as it is.
        held = bundle.encoder_precisions
        wanted: tuple[str, ...] = ("fp16", "fp32") if device == "cuda" else ("fp32", "fp16")
        if options.precision == "bf16" or (options.precision == "fp16" and device == "cpu"):
            raise BackendError(f"does not compute in {options.precision} on {device}")
        if options.precision == "auto":  # on a CPU the fastest; the CUDA provider has no int8 products
            wanted = ("int8", *wanted) if device == "cpu" else (*wanted, "int8")
        if options.precision == "int8":
            wanted = ("int8",)
        if options.precision == "fp32" and "fp32" not in held and device == "cuda":
            raise BackendError("finds no fp32 encoder in the bundle")
        if options.precision != "auto" and device == "cuda":
            wanted = (options.precision,)
        graph_precision = next((p for p in wanted if p in held), None)
        if graph_precision is None:
            raise BackendError(f"finds no {' or '.join(wanted)} encoder in the bundle")
        self.precision = graph_precision if device == "cuda" or graph_precision == "int8" else "fp32"
        own = self.name if device == "cpu" else None  # the CUDA provider has none of the operators in a form of its own
        self.encoder_file = bundle.file("encoder", graph_precision, own).name

        # On a CPU parts of a batch run side by side, each on a thread of its own, and wait for each other only at the
        # end; threads within a run would wait at every node. Cores beyond that help all of them.
        threads = options.threads or cores()
        self._runs = min(threads, _SIDE_BY_SIDE) if device == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._runs, "encoder") if self._runs > 1 else None

        def session(name: str, threads: int | None) -> Any:
            path = bundle.root / name
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 3  # errors only; what matters is raised
            if threads is not None:
                settings.intra_op_num_threads = threads
            try:
                made = onnxruntime.InferenceSession(str(path), settings, providers=[_PROVIDERS[device]])
            except Exception as error:  # onnxruntime's own exceptions share no base class
                raise BackendError(f"cannot load {path}: {_first_line(error)}") from error
            # A provider that cannot start is replaced by the CPU without an exception.
            if _PROVIDERS[device] not in made.get_providers():
                raise BackendError(f"did not start its {_PROVIDERS[device]}")
            return made

        self._encoder = session(self.encoder_file, threads - self._runs + 1 if device == "cpu" else options.threads)
        self._head = session(bundle.file("head").name, options.threads)
        inputs = [*self._encoder.get_inputs(), *self._head.get_inputs()]
        check_shapes(bundle, {value.name: list(value.shape) for value in inputs})

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._pool is None or len(frames) == 1:
            return self._part(frames)
        size = min(max(len(frames) // self._runs, 1), _PART)
        parts = [frames[start : start + size] for start in range(0, len(frames), size)]
        return np.concatenate(list(self._pool.map(self._part, parts)))

    def _part(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._encoder.run(None, {"frames": frames})[0], dtype=np.float32)

    def head(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64], text: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        inputs = {"features": features, "lengths": lengths, "text": text}
        logits, alignment = self._head.run(["logits", "alignment"], inputs)
        return logits, alignment

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._encoder = self._head = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
