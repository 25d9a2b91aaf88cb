"""Streams, events, graphs and memory of one GPU, through cuda-bindings; everything that was taken is freed together."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def has_cuda_bindings() -> bool:
    """Whether the package is there, without importing it."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # no package cuda at all
        return False


class CudaRuntime:
    """CUDA's runtime on one GPU.

    Args:
        device: the GPU's number.

    Raises:
        UserError: CUDA does not start. So does every method, where CUDA reports an error.
    """

    def __init__(self, device: int) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._free: list[tuple[Callable[..., Any], Any]] = []  # in the order in which it was taken
        self._call(runtime.cudaSetDevice(device))

    def stream(self) -> Any:
        """A stream that waits for no other."""
        made = self._call(self._runtime.cudaStreamCreateWithFlags(self._runtime.cudaStreamNonBlocking))
        self._free.append((self._runtime.cudaStreamDestroy, made))
        return made

    def event(self) -> Any:
        """An event, for :meth:`record`, :meth:`wait_for` and :meth:`synchronise`."""
        made = self._call(self._runtime.cudaEventCreateWithFlags(self._runtime.cudaEventDisableTiming))
        self._free.append((self._runtime.cudaEventDestroy, made))
        return made

    def memory(self, size: int) -> int:
        """Address of ``size`` bytes on the GPU."""
        address = int(self._call(self._runtime.cudaMalloc(max(size, 1))))
        self._free.append((self._runtime.cudaFree, address))
        return address

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of the host that the GPU copies without a detour."""
        address = int(self._call(self._runtime.cudaHostAlloc(max(size, 1), 0)))
        self._free.append((self._runtime.cudaFreeHost, address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))

    def upload(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copy ``size`` bytes to the GPU when the stream gets there."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._runtime.cudaMemcpyAsync(target, source, size, kind, stream))

    def download(self, target: int, source: int, size: int, stream: Any) -> None:
        """Copy ``size`` bytes from the GPU when the stream gets there."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._runtime.cudaMemcpyAsync(target, source, size, kind, stream))

    def record(self, event: Any, stream: Any) -> None:
        """The event happens when the stream gets there."""
        self._call(self._runtime.cudaEventRecord(event, stream))

    def wait_for(self, stream: Any, event: Any) -> None:
        """The stream goes on when the event has happened."""
        self._call(self._runtime.cudaStreamWaitEvent(stream, event, 0))

    def synchronise(self, event: Any) -> None:
        """Wait here until the event has happened."""
        self._call(self._runtime.cudaEventSynchronize(event))

    def captured(self, stream: Any, work: Callable[[], bool]) -> Any:
        """What ``work`` puts into the stream as a graph, without running it; None where that cannot be captured."""
        cuda = self._runtime
        self._call(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        done = work()
        error, graph = cuda.cudaStreamEndCapture(stream)  # ends it in any case
        if not done or int(error):
            cuda.cudaGetLastError()  # the failure is no error of the next call
            return None
        error, ready = cuda.cudaGraphInstantiate(graph, 0)
        cuda.cudaGraphDestroy(graph)
        if int(error):
            cuda.cudaGetLastError()
            return None
        self._free.append((cuda.cudaGraphExecDestroy, ready))
        return ready

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a captured graph."""
        self._call(self._runtime.cudaGraphLaunch(graph, stream))

    def close(self) -> None:
        """Free all that was taken, the last first; may be called again."""
        while self._free:
            free, what = self._free.pop()
            free(what)

    def _call(self, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if int(error):
            name = self._runtime.cudaGetErrorName(error)[1]
            text = name.decode() if isinstance(name, bytes) else str(error)
            advice = ""
            if int(error) == _OUT_OF_MEMORY:
                advice = "; close what else uses the GPU, or compile again with a smaller --batch"
            raise UserError(f"CUDA failed with {text}{advice}")
        return values[0] if values else None
