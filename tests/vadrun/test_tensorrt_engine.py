"""The order of copies and executions, on streams that run as late and as mixed as their events allow."""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vadrun.backends.tensorrt_engine import LoadedEngine, Streams
from vadrun.errors import UserError

UP, RUN = 1, 2


class LateCuda:
    """Two streams whose work is done only when an event is waited for, in an order that chance chooses."""

    def __init__(self, seed: int = 0, captures: bool = True) -> None:
        self.kept: list[Any] = []
        self.queues: dict[int, deque[Any]] = {UP: deque(), RUN: deque()}
        self.recording: list[Callable[[], None]] | None = None
        self.captured_graphs = self.launched = self.executed = 0
        self._captures = captures
        self._random = random.Random(seed)

    def memory(self, size: int) -> int:
        return int(self.pinned(size).ctypes.data)

    def pinned(self, size: int) -> np.ndarray:
        self.kept.append(np.full(size, 255, np.uint8))
        return self.kept[-1]

    def event(self) -> Any:
        return SimpleNamespace(recorded=0, happened=0)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        self.queues[stream].append(lambda: ctypes.memmove(target, source, size))

    download = upload

    def record(self, event: Any, stream: int) -> None:
        event.recorded += 1
        number = event.recorded
        self.queues[stream].append(lambda: setattr(event, "happened", number))

    def wait_for(self, stream: int, event: Any) -> None:
        self.queues[stream].append((event, event.recorded))

    def synchronise(self, event: Any) -> None:
        while event.happened < event.recorded:
            ready = [queue for queue in self.queues.values() if queue and not self._blocked(queue[0])]
            assert ready, "the streams wait for each other"
            work = self._random.choice(ready).popleft()
            if callable(work):
                work()

    def captured(self, stream: int, work: Callable[[], bool]) -> Any:
        self.recording = []
        assert work()
        graph, self.recording = self.recording, None
        self.captured_graphs += 1
        return graph if self._captures else None

    def launch(self, graph: list[Callable[[], None]], stream: int) -> None:
        self.launched += 1
        self.queues[stream].extend(graph)

    @staticmethod
    def _blocked(work: Any) -> bool:
        return not callable(work) and work[0].happened < work[1]


class Doubling:
    """An engine with one input x float32 [B,3] whose output y [B] is twice the sum of a row."""

    device_memory_size_v2 = 16
    most_contexts = 100

    def __init__(self, cuda: LateCuda) -> None:
        self.cuda = cuda
        self.contexts: list[Context] = []

    def create_execution_context(self, strategy: object) -> Context | None:
        if len(self.contexts) >= self.most_contexts:
            return None
        self.contexts.append(Context(self.cuda))
        return self.contexts[-1]

    def get_tensor_dtype(self, name: str) -> type:
        return np.float32


class Context:
    """Keeps its state as TensorRT's does: a graph that was captured from it works on what it holds at the replay."""

    def __init__(self, cuda: LateCuda) -> None:
        self.cuda = cuda
        self.scratch = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.prepared: tuple[int, ...] = ()  # the shape that it last ran with

    def set_device_memory(self, address: int, size: int) -> None:
        assert address and size == 16
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:1]

    def execute_async_v3(self, stream: int) -> bool:
        def at(address: int, *sizes: int) -> np.ndarray:
            count = int(np.prod(sizes))
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(sizes)

        def work(shape: tuple[int, ...], x: int, y: int) -> None:
            at(y, shape[0])[:] = 2 * at(x, *shape).sum(axis=1)

        if self.cuda.recording is not None:
            assert self.prepared == self.shape, "captured before a run with this shape"
            self.cuda.recording.append(lambda: work(self.shape, self.addresses["x"], self.addresses["y"]))
        else:
            now = self.shape, self.addresses["x"], self.addresses["y"]
            self.cuda.executed += 1
            self.cuda.queues[stream].append(lambda: work(*now))
            self.prepared = self.shape
        return True


def doubling(
    cuda: LateCuda, least: int = 1, slots: int = 1, most: int = 4, engine: Doubling | None = None
) -> LoadedEngine:
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0), nptype=lambda kind: kind)
    runtime: Any = cuda
    streams = Streams(UP, RUN, runtime.memory(16))
    profile = {"x": ([least, 3], [most, 3])}
    return LoadedEngine(trt, engine or Doubling(cuda), runtime, streams, profile, ["y"], slots)


def batches(*counts: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((count, 3)).astype(np.float32) for count in counts]


def same(outputs: list[dict[str, Any]], inputs: list[np.ndarray]) -> None:
    assert len(outputs) == len(inputs)
    for found, x in zip(outputs, inputs, strict=True):
        np.testing.assert_allclose(found["y"], 2 * x.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("least", [1, 3])
def test_rows_go_through_whatever_their_number(least: int) -> None:
    engine = doubling(LateCuda(), least)
    inputs = batches(4, 1, 2, 3)  # a larger batch first: nothing of it may be left in the next
    same([engine.run({"x": x}) for x in inputs], inputs)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_overlapped_batches_come_out_right_and_in_order(seed: int, slots: int) -> None:
    engine = doubling(LateCuda(seed), slots=slots)
    inputs = batches(4, 4, 4, 4, 4, 2, 4, 3, 4, 4, 1)
    same(list(engine.run_each({"x": x} for x in inputs)), inputs)
    same([engine.run({"x": x}) for x in inputs[:3]], inputs[:3])


def test_the_next_batch_is_taken_while_the_last_one_runs() -> None:
    engine = doubling(LateCuda(), slots=2)
    taken: list[int] = []

    def inputs() -> Any:
        for number, x in enumerate(batches(4, 4, 4, 4)):
            taken.append(number)
            yield {"x": x}

    outputs = engine.run_each(inputs())
    next(outputs)
    assert taken == [0, 1]
    assert len(list(outputs)) == 3


@pytest.mark.parametrize("seed", range(10))
def test_batches_that_nobody_waited_for_do_no_harm(seed: int) -> None:
    engine = doubling(LateCuda(seed), slots=2)
    abandoned = engine.run_each({"x": x} for x in batches(4, 4, 4, 4))
    next(abandoned)
    inputs = batches(3, 4, 2)
    same([engine.run({"x": x}) for x in inputs], inputs)
    same(list(engine.run_each({"x": x} for x in inputs)), inputs)


def test_nothing_is_allocated_once_it_is_loaded() -> None:
    cuda = LateCuda()
    engine = doubling(cuda, slots=2)
    before = len(cuda.kept)
    list(engine.run_each({"x": x} for x in batches(4, 2, 4, 1)))
    assert len(cuda.kept) == before == 1 + 2 * 2 * 2  # scratch; x and y of two slots, on both sides


def test_steady_shapes_become_graphs() -> None:
    cuda = LateCuda()
    engine = doubling(cuda)
    inputs = batches(*[4] * 10, 3, 4, 4, 3, 3, 1)
    same([engine.run({"x": x}) for x in inputs], inputs)
    assert cuda.captured_graphs == 2
    # Two runs of [4,3], two of [3,3] and one of [1,3] are executed; the rest is replayed.
    assert (cuda.executed, cuda.launched) == (5, 11)


def test_each_slot_has_its_own_graph() -> None:
    cuda = LateCuda(seed=3)
    engine = doubling(cuda, slots=2)
    inputs = batches(*[4] * 12)
    same(list(engine.run_each({"x": x} for x in inputs)), inputs)
    assert (cuda.captured_graphs, cuda.executed, cuda.launched) == (2, 4, 8)


def test_what_cannot_be_captured_runs_as_before() -> None:
    cuda = LateCuda(captures=False)
    engine = doubling(cuda)
    inputs = batches(*[4] * 5, *[3] * 5)
    same([engine.run({"x": x}) for x in inputs], inputs)
    assert (cuda.captured_graphs, cuda.executed, cuda.launched) == (1, 10, 0)


@pytest.mark.parametrize("slots", [1, 2])
def test_graphs_stay_as_they_were_captured_whatever_runs_between_them(slots: int) -> None:
    cuda = LateCuda(seed=5)
    made = Doubling(cuda)
    engine = doubling(cuda, slots=slots, engine=made)
    inputs = batches(*[4] * 6, *[3] * 6, *[4, 3, 2, 1] * 6)
    same(list(engine.run_each({"x": x} for x in inputs)), inputs)
    assert cuda.launched > len(inputs) // 2
    # One for what is not captured, one for each graph; all on the same scratch memory.
    assert len(made.contexts) == 1 + cuda.captured_graphs
    assert len({context.scratch for context in made.contexts}) == 1


def test_graphs_and_their_contexts_are_few() -> None:
    cuda = LateCuda()
    made = Doubling(cuda)
    engine = doubling(cuda, most=20, engine=made)
    inputs = batches(*[count for count in range(1, 21) for _ in range(3)], *range(1, 21))
    same([engine.run({"x": x}) for x in inputs], inputs)
    assert (cuda.captured_graphs, len(made.contexts)) == (8, 9)


def test_without_memory_for_more_contexts_the_first_does_it_all() -> None:
    cuda = LateCuda()
    made = Doubling(cuda)
    made.most_contexts = 2
    engine = doubling(cuda, engine=made)
    inputs = batches(*[4] * 4, *[3] * 4, 4, 3)
    same([engine.run({"x": x}) for x in inputs], inputs)
    assert (cuda.captured_graphs, cuda.launched) == (1, 3)


def test_results_are_the_callers() -> None:
    engine = doubling(LateCuda())
    first = engine.run({"x": np.ones((2, 3), np.float32)})["y"]
    engine.run({"x": np.zeros((2, 3), np.float32)})
    assert first.tolist() == [6.0, 6.0]


def test_other_layouts_and_types_are_made_right() -> None:
    x = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(4, 3))
    assert doubling(LateCuda()).run({"x": x})["y"].tolist() == [6.0, 24.0, 42.0, 60.0]


def test_no_context_and_no_execution_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = doubling(LateCuda())
    monkeypatch.setattr(Context, "execute_async_v3", lambda *_: False)
    with pytest.raises(UserError, match="did not run the engine: run vadexport verify"):
        engine.run({"x": np.ones((2, 3), np.float32)})
    monkeypatch.setattr(Doubling, "create_execution_context", lambda *_: None)
    with pytest.raises(UserError, match="cannot make an execution context"):
        doubling(LateCuda())
