"""TensorRT under whichever name it is installed: tensorrt, tensorrt_lean or tensorrt_rtx. Their API is the same.

Finding one imports nothing. No Runtime may be made before :func:`vadrun.cuda.gpus` has answered: without a driver it
crashes the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

RUN_WITH = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")
BUILD_WITH = ("tensorrt", "tensorrt_rtx")  # the lean runtime builds nothing


class NoTensorrt(Exception):
    """TensorRT cannot be used; the message is a clause that says why."""


def installed(names: Sequence[str] = RUN_WITH) -> list[str]:
    """Those of the packages that are there."""
    return [name for name in names if find_spec(name) is not None]


def import_tensorrt(name: str) -> Any:
    """The module.

    Raises:
        NoTensorrt: it does not load; the bindings are often there without their libraries.
    """
    try:
        module = import_module(name)
    except Exception as error:  # its own loader raises more kinds than ImportError
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoTensorrt(f"cannot import {name} ({first})") from error
    if not hasattr(module, "Logger"):
        raise NoTensorrt(f"finds a {name} without its bindings")
    return module


def make_logger(module: Any, write: Callable[[str, str], None]) -> Any:
    """A TensorRT logger that calls ``write(severity, message)``; severity such as "WARNING"."""
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            write(str(severity).rsplit(".", 1)[-1], message)

    return Logger()
