"""Backends: what runs a bundle's graphs. Nothing outside this folder knows which ones exist.

A backend is a module with one class that has the members of :class:`Backend` and a classmethod
``unavailable(device) -> str | None`` (why it cannot work here, without loading anything large) and
``about() -> dict[str, str]`` (what it finds on this machine, for a person to read).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vadrun.errors import UserError, lacks_memory, no_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from vadrun.bundle import Bundle

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


class Missing(str):
    """A reason why a backend cannot work here that goes away when its package is installed."""


class BackendError(Exception):
    """A backend cannot run this bundle here; the message is a clause that says why."""


@dataclass(frozen=True)
class Options:
    """What the user may ask of a backend."""

    precision: str = "auto"  # arithmetic of the encoder; "auto" is what is fastest here
    threads: int | None = None  # inference threads; None leaves it to the library
    plain: bool = False  # compiled anew, in the way in which the least can go wrong


class Backend(Protocol):
    """What the engine needs of a backend; backends are its subclasses."""

    name: str  # as the user names it: "onnxruntime", "openvino"
    device: str  # "cpu", "cuda"
    precision: str  # arithmetic of the encoder: "fp32", "fp16", "bf16", "int8" (the head is always fp32)
    library: str  # name and version of the library
    encoder_file: str  # which graph of the bundle it took
    batch_limit: int | None = None  # frames that one call of the encoder takes at most; None: any number
    least_cosine: float | None = None  # of its features on the probe, where the user has allowed less than the default

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 [n,d] of uint8 RGB frames [n,S,S,3], n from 1 to ``batch_limit``."""

    def encode_each(self, parts: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """The same for several in order. A part may be taken before the last one's features are given."""
        for part in parts:
            yield self.encode(part)

    def head(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64], text: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``logits`` [B,T] and ``alignment`` [B,T,m] of features [B,T,d], lengths [B], text [m,d]."""

    def close(self) -> None:
        """Free what the backend holds."""


# In the order in which "auto" tries them: name, device, module, class, what brings it.
_CANDIDATES = (
    ("tensorrt", "cuda", "vadrun.backends.tensorrt", "TensorrtBackend", "pip install 'vadclip-edge[tensorrt]'"),
    (
        "onnxruntime",
        "cuda",
        "vadrun.backends.onnxruntime",
        "OnnxruntimeBackend",
        "pip install 'vadclip-edge[gpu]'",
    ),
    ("openvino", "cpu", "vadrun.backends.openvino", "OpenvinoBackend", "pip install 'vadclip-edge[cpu]'"),
    (
        "onnxruntime",
        "cpu",
        "vadrun.backends.onnxruntime",
        "OnnxruntimeBackend",
        "pip install 'vadclip-edge[cpu]'",
    ),
)

NAMES = tuple(dict.fromkeys(name for name, *_ in _CANDIDATES))


def available() -> list[tuple[str, str]]:
    """The (name, device) pairs that can be tried on this machine, in the order of preference."""
    found = []
    for name, device, module, class_name, _ in _CANDIDATES:
        kind: Any = getattr(import_module(module), class_name)
        if kind.unavailable(device) is None:
            found.append((name, device))
    return found


def reasons() -> list[tuple[str, str | None]]:
    """Each backend in the order in which "auto" tries them, and why it cannot be tried here (None: it can)."""
    found = []
    for name, device, module, class_name, _ in _CANDIDATES:
        kind: Any = getattr(import_module(module), class_name)
        found.append((f"{name}:{device}", kind.unavailable(device)))
    return found


def about() -> dict[str, dict[str, str]]:
    """What each backend's library finds on this machine."""
    classes = dict.fromkeys((name, module, class_name) for name, _, module, class_name, _ in _CANDIDATES)
    return {name: getattr(import_module(module), class_name).about() for name, module, class_name in classes}


def load(bundle: Bundle, name: str, options: Options, *, refuse_wrong: bool = True) -> tuple[Backend, str]:
    """The backend for ``name`` ("auto", "onnxruntime", "onnxruntime:cpu", ...) and why it was taken.

    One that does not reproduce the bundle's probe (see :mod:`vadrun.selftest`) is loaded once more, plainly, and then
    passed over, or, without ``refuse_wrong``, taken as it is.

    Raises:
        UserError: an unknown name, or none of what was asked for works here.
    """
    wanted, _, device = name.partition(":")
    chosen = [entry for entry in _CANDIDATES if wanted in ("auto", entry[0]) and (not device or device == entry[1])]
    if not chosen or (wanted == "auto" and device):
        known = ", ".join(dict.fromkeys(["auto", *NAMES, *(f"{e[0]}:{e[1]}" for e in _CANDIDATES)]))
        raise UserError(f"there is no backend {name!r}: take one of {known}")
    if options.precision not in PRECISIONS:
        raise UserError(f"there is no precision {options.precision!r}: take one of {', '.join(PRECISIONS)}")
    held = bundle.encoder_precisions
    if options.precision == "int8" and "int8" not in held:
        raise UserError(
            f"{bundle.root} has no int8 encoder, only {' and '.join(sorted(held))}: leave out --precision, or make one"
            " with vadexport build --precision int8"
        )
    passed_over: list[str] = []
    slow_int8 = options.precision in ("auto", "int8") and "int8" in bundle.encoder_precisions and not multiplies_int8()
    if wanted == "auto" and slow_int8:
        # Without the instructions onnxruntime's INT8 is faster than float32, OpenVINO's is not.
        chosen.sort(key=lambda entry: entry[0] == "openvino")
        passed_over.append("openvino:cpu comes last, for its INT8 gains nothing on a processor without VNNI")
    remedies: list[str] = []
    short = False
    for known_name, known_device, module, class_name, install in chosen:
        label = f"{known_name}:{known_device}"
        kind: Any = getattr(import_module(module), class_name)
        reason = kind.unavailable(known_device)
        if reason is not None:
            passed_over.append(f"{label} {reason}")
            remedies += [install] if isinstance(reason, Missing) else []
            continue
        try:
            backend, remark = _tested(kind, bundle, known_device, options, refuse_wrong)
        except BackendError as error:
            short = short or lacks_memory(error)
            passed_over.append(f"{label} {error}")
            continue
        why = "named by the user" if name == label else "the first that works here"
        if remark:
            passed_over.append(f"{label} {remark}")
        if passed_over:
            why += f" ({'; '.join(passed_over)})"
        return backend, why
    if short:
        raise no_memory(f"load {bundle.root}")
    advice = f"; to install: {' or '.join(dict.fromkeys(remedies))}" if remedies else ""
    raise UserError(f"no backend can run {bundle.root} here: {'; '.join(passed_over)}{advice}")


def _tested(kind: Any, bundle: Bundle, device: str, options: Options, refuse_wrong: bool) -> tuple[Backend, str | None]:
    """A backend that knows the probe, and a remark if it took a second attempt."""
    from vadrun.selftest import least_cosine, measure  # numpy is not needed to list backends

    backend: Backend = kind(bundle, device, options)
    first = measure(bundle, backend).fault(least_cosine(bundle, backend))
    if first is None:
        return backend, None
    backend.close()
    backend = kind(bundle, device, replace(options, plain=True))
    second = measure(bundle, backend).fault(least_cosine(bundle, backend))
    if second is None:
        return backend, f"gave {first} and was compiled anew"
    if refuse_wrong:
        backend.close()
        raise BackendError(f"gives {second}: vadexport verify says more")
    return backend, None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; empty where there are none."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()


def multiplies_int8() -> bool:
    """Whether the processor has instructions for sums of INT8 products; true of all that is not x86, or not known."""
    flags = processor_flags()
    return "sse2" not in flags or not flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def check_shapes(bundle: Bundle, shapes: dict[str, list[Any]]) -> None:
    """Hold the graphs' inputs against the manifest; dynamic dimensions are anything but an int.

    Raises:
        UserError: a graph has other sizes than the manifest says.
    """
    model = bundle.model
    size = model.image_size
    expected: dict[str, list[int | None]] = {
        "frames": [None, size, size, 3],
        "features": [None, model.positions, model.features],
        "lengths": [None],
        "text": [None, model.features],
    }
    for name, shape in expected.items():
        role = "encoder" if name == "frames" else "head"
        if name not in shapes:
            raise UserError(f"the {role} graph in {bundle.root} has no input {name!r}: build the bundle again")
        found = [dimension if isinstance(dimension, int) else None for dimension in shapes[name]]
        if found != shape:
            raise UserError(
                f"the {role} graph in {bundle.root} takes {name} of {_shape(found)}, but the manifest says "
                f"{_shape(shape)}: build the bundle again"
            )


def _shape(shape: list[int | None]) -> str:
    return "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"
