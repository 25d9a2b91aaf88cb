from __future__ import annotations

import errno

import av
import numpy as np
import pytest

from vadrun import errors
from vadrun.errors import NoMemory, UserError, lacks_memory, of_the_machine


def raised_from(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("something else") from cause
    except ValueError as found:
        return found


LACKS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("[CPU] Convolution node with name 'patches' can't alloc"),
    RuntimeError("[ONNXRuntimeError] : 1 : FAIL : std::bad_alloc"),
    ImportError("libx.so: failed to map segment from shared object"),
    av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
    NoMemory("x"),
]


@pytest.mark.parametrize("error", LACKS, ids=[type(error).__name__ + str(n) for n, error in enumerate(LACKS)])
def test_a_lack_of_memory_is_known(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_has_room", lambda: False)
    assert lacks_memory(error)
    assert lacks_memory(raised_from(error))
    with pytest.raises(NoMemory, match="there is not enough memory to decode video"):
        of_the_machine(error)


def test_a_file_that_asks_for_too_much_is_no_lack_of_memory() -> None:
    of_the_machine(av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"))


def test_numpys_own() -> None:
    with pytest.raises(MemoryError) as error:
        np.empty(1 << 62, np.uint8)
    assert lacks_memory(error.value)


@pytest.mark.parametrize(
    "error", [UserError("out of memory is what x says"), ValueError("x"), OSError(28, "full"), None]
)
def test_other_errors_are_others(error: Exception | None) -> None:
    assert not lacks_memory(error)
    if error is not None:
        of_the_machine(error)


def test_a_decoder_without_threads_is_no_damage() -> None:
    with pytest.raises(NoMemory):
        of_the_machine(av.error.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))


def test_a_loop_of_causes_ends() -> None:
    one, other = ValueError("x"), ValueError("y")
    one.__cause__, other.__cause__ = other, one
    assert not lacks_memory(one)
