"""One TensorRT engine, ready to run: its buffers, and the order of copies and execution.

Inputs go up on one stream while the engine executes on another, so that with two slots the next inputs are on the GPU
when the last ones are done. Outputs are small, and come down behind the execution. Shapes that come again and again are
replayed as CUDA graphs, each with an execution context that nothing else uses: a graph refers to what its context
holds, and other shapes or addresses given to that context would change it. The contexts share their scratch memory.

All buffers are made at the beginning, for the largest shapes of the engine's profile. In the loop only results are new:
each is copied out of its slot into an array of the caller's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vadrun.backends.cuda_runtime import CudaRuntime

    Arrays = dict[str, NDArray[Any]]

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[list[int], list[int]]]

_STEADY = 2  # runs with one shape before it is captured
_MOST_GRAPHS = 8  # of an engine, each with a context; the last batch of a video may have any size


@dataclass(frozen=True)
class Streams:
    """What both engines of a bundle share.

    Attributes:
        up: for copies to the GPU.
        run: for execution, and for copies from the GPU. One engine executes after the other, so that scratch memory can
            be shared.
        scratch: address of scratch memory that is enough for each of them.
    """

    up: Any
    run: Any
    scratch: int


class _Slot:
    """Buffers for one set of inputs and its outputs, on the host and on the GPU."""

    def __init__(self, cuda: CudaRuntime, sizes: Mapping[str, int]) -> None:
        self.host = {name: cuda.pinned(size) for name, size in sizes.items()}
        self.device = {name: cuda.memory(size) for name, size in sizes.items()}
        self.up, self.done = cuda.event(), cuda.event()
        self.busy = False
        self.rows = 0
        self.outputs: dict[str, Shape] = {}


class LoadedEngine:
    """An engine with its execution contexts: one for shapes that come now and then, and one for each graph.

    Args:
        trt: the TensorRT module.
        engine: the deserialised engine; kept alive by the caller.
        cuda: where memory comes from.
        streams: shared with other engines.
        profile: smallest and largest shape of each input.
        outputs: names.
        slots: sets of inputs that may be under way at once.

    Raises:
        UserError: no memory for the context or the buffers.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        cuda: CudaRuntime,
        streams: Streams,
        profile: Profile,
        outputs: Sequence[str],
        slots: int = 1,
    ) -> None:
        self._trt, self._engine = trt, engine
        self._cuda, self._streams, self._outputs = cuda, streams, list(outputs)
        self._contexts: list[Any] = []  # none may go before what it put into the stream, or its graph
        self._context = self._new_context()
        if self._context is None:
            raise UserError("TensorRT cannot make an execution context: close what else uses the GPU")
        self._least = {name: least[0] for name, (least, _) in profile.items()}
        self.most = {name: most[0] for name, (_, most) in profile.items()}
        for name, (_, most) in profile.items():
            self._context.set_input_shape(name, tuple(most))
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in [*profile, *outputs]}
        largest = {name: tuple(most) for name, (_, most) in profile.items()} | self._output_shapes()
        sizes = {name: math.prod(shape) * self._types[name].itemsize for name, shape in largest.items()}
        self._slots = [_Slot(cuda, sizes) for _ in range(slots)]
        self._shapes: dict[tuple[Shape, ...], dict[str, Shape]] = {}
        self._seen: Counter[tuple[int, tuple[Shape, ...]]] = Counter()
        self._graphs: dict[tuple[int, tuple[Shape, ...]], Any] = {}
        self._capturing = True

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs of inputs whose first dimension may be anything up to the profile's largest."""
        self._start(0, inputs)
        return self._finished(0)

    def run_each(self, many: Iterable[Arrays]) -> Iterator[Arrays]:
        """The same for several in order; the next are copied while the last ones execute."""
        started = finished = 0
        for inputs in many:
            self._start(started % len(self._slots), inputs)
            started += 1
            if started - finished == len(self._slots):
                yield self._finished(finished % len(self._slots))
                finished += 1
        while finished < started:
            yield self._finished(finished % len(self._slots))
            finished += 1

    def _start(self, number: int, inputs: Arrays) -> None:
        slot, cuda, streams = self._slots[number], self._cuda, self._streams
        if slot.busy:  # whoever began with it has not waited for its end
            cuda.synchronise(slot.done)
        slot.busy = True
        slot.rows = len(next(iter(inputs.values())))
        shapes: list[Shape] = []
        for name, given in inputs.items():
            shape = (max(len(given), self._least[name]), *given.shape[1:])
            size = math.prod(shape) * self._types[name].itemsize
            host = slot.host[name][:size].view(self._types[name]).reshape(shape)
            host[: len(given)] = given
            host[len(given) :] = 0
            cuda.upload(slot.device[name], slot.host[name].ctypes.data, size, streams.up)
            shapes.append(shape)
        cuda.record(slot.up, streams.up)
        cuda.wait_for(streams.run, slot.up)
        slot.outputs = self._execute(number, tuple(shapes), list(inputs))
        for name, shape in slot.outputs.items():
            size = math.prod(shape) * self._types[name].itemsize
            cuda.download(slot.host[name].ctypes.data, slot.device[name], size, streams.run)
        cuda.record(slot.done, streams.run)

    def _finished(self, number: int) -> Arrays:
        slot = self._slots[number]
        self._cuda.synchronise(slot.done)
        slot.busy = False
        found = {}
        for name, shape in slot.outputs.items():
            size = math.prod(shape) * self._types[name].itemsize
            # A copy: the slot is written again.
            found[name] = slot.host[name][:size].view(self._types[name]).reshape(shape)[: slot.rows].astype(np.float32)
        return found

    def _execute(self, number: int, shapes: tuple[Shape, ...], names: list[str]) -> dict[str, Shape]:
        key = number, shapes
        graph = self._graphs.get(key)
        if graph is not None:
            self._cuda.launch(graph, self._streams.run)
            return self._shapes[shapes]
        self._seen[key] += 1
        own = None
        if self._capturing and self._seen[key] >= _STEADY and len(self._graphs) < _MOST_GRAPHS:
            own = self._new_context()
            self._capturing = own is not None  # without memory for another context all goes on with the first
        context = self._context if own is None else own
        for name, shape in zip(names, shapes, strict=True):
            context.set_input_shape(name, shape)
        for name, address in self._slots[number].device.items():
            context.set_tensor_address(name, address)
        if not self._enqueue(context):
            raise UserError("TensorRT did not run the engine: run vadexport verify on the bundle")
        if shapes not in self._shapes:
            self._shapes[shapes] = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        if own is not None:
            # Directly after a run of the same context: TensorRT prepares what a shape needs when it first runs it.
            graph = self._cuda.captured(self._streams.run, lambda: self._enqueue(own))
            if graph is None:
                self._capturing = False  # runs as before
            else:
                self._graphs[key] = graph
        return self._shapes[shapes]

    def _new_context(self) -> Any:
        """A context on the shared scratch memory; None where TensorRT cannot make one."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            return None
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._streams.scratch, scratch_bytes(self._engine))
        else:
            context.device_memory = self._streams.scratch
        self._contexts.append(context)
        return context

    def _enqueue(self, context: Any) -> bool:
        return bool(context.execute_async_v3(int(self._streams.run)))

    def _output_shapes(self) -> dict[str, Shape]:
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}


def scratch_bytes(engine: Any) -> int:
    """Scratch memory of an engine's context; the attribute's name depends on the release."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)
