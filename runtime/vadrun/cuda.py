"""NVIDIA GPUs, asked of the driver itself: safe where there is none, and without any package.

TensorRT's own objects crash the process where no driver is, so this is asked before one is made.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18  # CUdevice_attribute


class NoCuda(Exception):
    """CUDA cannot be used; the message is a clause that says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: its number in this process.
        name: as the driver calls it.
        capability: compute capability, such as (8, 7).
        memory: bytes in all (a Jetson's are the whole machine's).
        cuda: the newest CUDA version that the driver serves, such as "13.0".
        integrated: it has no memory of its own, as on a Jetson.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory: int
    cuda: str
    integrated: bool = False


@cache
def gpus() -> tuple[Gpu, ...]:
    """All GPUs that this process may use, at least one.

    Raises:
        NoCuda: no driver, or none that works, or no GPU.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoCuda("finds no NVIDIA driver") from error
    _check(driver.cuInit(0), "does not start")
    number = ctypes.c_int()
    _check(driver.cuDriverGetVersion(ctypes.byref(number)), "does not tell its version")
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    _check(driver.cuDeviceGetCount(ctypes.byref(number)), "does not count its GPUs")
    if number.value == 0:
        raise NoCuda("finds no GPU")
    return tuple(_gpu(driver, index, cuda) for index in range(number.value))


def _gpu(driver: ctypes.CDLL, index: int, cuda: str) -> Gpu:
    device, value = ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(128)
    what = f"does not describe GPU {index}"
    _check(driver.cuDeviceGet(ctypes.byref(device), index), what)
    _check(driver.cuDeviceGetName(name, len(name), device), what)
    _check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device), what)
    attributes = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED):
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), what)
        attributes.append(value.value)
    major, minor, integrated = attributes
    text = name.value.decode(errors="replace")
    return Gpu(index, text, (major, minor), memory.value, cuda, bool(integrated))


def _check(error: int, what: str) -> None:
    if error:
        raise NoCuda(f"has an NVIDIA driver that {what} (CUDA error {error})")
