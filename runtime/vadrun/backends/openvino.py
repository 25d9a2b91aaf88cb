"""OpenVINO on the CPU: bfloat16 where the processor computes in it, float32 elsewhere."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.backends import Backend, BackendError, Missing, Options, check_shapes, cores, processor_flags
from vadrun.backends.openvino_parts import MOST_BYTES, in_parts
from vadrun.cache import KeptFolder, forget_models, model_cache, prune, seal, sound
from vadrun.console import version
from vadrun.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vadrun.bundle import Bundle


_KEPT = 2  # encoders of other settings or versions: a full-size one takes 345 MB


class OpenvinoBackend(Backend):
    """Two compiled models, one for the encoder and one for the head."""

    name = "openvino"
    device = "cpu"

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why this backend cannot work here, or None."""
        return Missing("is not installed") if find_spec("openvino") is None else None

    @classmethod
    def about(cls) -> dict[str, str]:
        """Version, and what the CPU computes in."""
        if find_spec("openvino") is None:
            return {}
        openvino = import_openvino()
        core = openvino.Core()
        found = {"version": openvino.__version__.split("-")[0]}
        for device in core.available_devices:
            name = core.get_property(device, "FULL_DEVICE_NAME")
            found[device] = f"{name} ({', '.join(core.get_property(device, 'OPTIMIZATION_CAPABILITIES'))})"
        return found

    def __init__(self, bundle: Bundle, device: str, options: Options) -> None:
        openvino = import_openvino()
        self.library = f"openvino {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        # Lower precision is a stated choice: asked for, or taken by "auto" where the processor has it, and
        # said in the result. The certificate holds what it changes (limits of its own).
        if options.precision == "fp16" or (options.precision == "bf16" and not capable):
            raise BackendError(f"does not compute in {options.precision} on this CPU")
        if options.plain:
            forget_models(bundle.sha256)  # they may be what was wrong
        kept = None if options.plain else model_cache(bundle.sha256)
        held = bundle.encoder_precisions
        graph: str | None = next((p for p in ("fp32", "fp16") if p in held), None)
        if "int8" in held and options.precision in ("auto", "int8"):
            graph = "int8"
        if graph is None or (options.precision == "int8" and graph != "int8"):
            raise BackendError(f"finds no encoder for {options.precision} in the bundle")
        rest = "bf16" if capable and options.precision != "fp32" else "fp32"
        self.precision = "int8" if graph == "int8" else rest
        self.encoder_file = bundle.file("encoder", graph).name

        # Halves of a batch side by side, on half of the cores each, wait for each other less than all cores within one;
        # and threads that are pinned to a core wait for the decoder there while another core is free.
        self._streams = 2 if (options.threads or cores()) > 1 and not options.plain else 1

        # Matrix units are faster than weights come, unless those come in parts.
        units, weight_bytes = ("amx_int8", 1) if graph == "int8" else ("amx_bf16", 2)
        apart = rest == "bf16" and not options.plain and units in processor_flags()

        def compiled(name: str, precision: str, streams: int, *, apart: bool = False) -> Any:
            path = bundle.root / name
            settings: dict[str, Any] = {
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,
            }
            if options.threads is not None:
                settings["INFERENCE_NUM_THREADS"] = options.threads
            # The library's own key leaves out the precision: a model for one would be read for the other.
            folder = None if kept is None else kept / precision
            try:
                if apart:
                    return _in_parts(core, path, settings, weight_bytes, folder)
                if folder is None:
                    return core.compile_model(str(path), "CPU", settings)
                # A folder for each model and setting, so that a start checks what it reads and nothing else.
                own = folder / f"{path.stem}-{_key(core, path, settings)}"
                with KeptFolder(own):
                    compiled = core.compile_model(str(path), "CPU", settings | {"CACHE_DIR": str(own)})
                with suppress(OSError):
                    own.touch()  # used now
                prune(folder, f"{path.stem}-????????????????", _KEPT)
                return compiled
            except RuntimeError as error:
                raise BackendError(f"cannot load {path}: {str(error).strip().splitlines()[-1]}") from error

        encoder = compiled(self.encoder_file, rest, self._streams, apart=apart)
        # The head stays in float32: the threshold in H_sim turns rounding into jumps.
        head = compiled(bundle.file("head").name, "fp32", 1)
        inputs = [*encoder.inputs, *head.inputs]
        shapes: dict[str, list[Any]] = {}
        for value in inputs:
            dimensions = value.get_partial_shape()
            shapes[value.get_any_name()] = [d.get_length() if d.is_static else None for d in dimensions]
        check_shapes(bundle, shapes)
        self._encoders = [encoder.create_infer_request() for _ in range(self._streams)]
        self._head = head.create_infer_request()

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        # share_inputs spares a copy; the request's own output buffer is overwritten by the next call.
        parts = [part for part in np.array_split(frames, self._streams) if len(part)]
        requests = self._encoders[: len(parts)]
        for request, part in zip(requests, parts, strict=True):
            request.start_async({"frames": part}, share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([np.asarray(request.results["features"], np.float32) for request in requests])

    def head(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64], text: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        result = self._head.infer({"features": features, "lengths": lengths, "text": text}, share_inputs=True)
        return np.array(result["logits"]), np.array(result["alignment"])

    def close(self) -> None:
        self._encoders, self._head = [], None


def _in_parts(core: Any, path: Path, settings: dict[str, Any], weight_bytes: int, folder: Path | None) -> Any:
    """The encoder with its wide linears in parts, compiled, or as it was kept in ``folder`` when it last was.

    The library's own cache has to read and hash a model that was rewritten, each time.
    """
    openvino = import_openvino()
    kept: Path | None = None
    if folder is not None and hasattr(openvino, "tensor_from_file"):  # 2025.4
        kept = folder / f"{path.stem}-{_key(core, path, settings, weight_bytes, MOST_BYTES)}.blob"
        if sound(kept):
            with suppress(Exception):  # what is raised where the library does not take it depends on why
                return core.import_model(openvino.tensor_from_file(kept), "CPU", settings)
    own = None if folder is None or kept is not None else folder / f"{path.stem}-parts"
    if own is not None:
        settings = {**settings, "CACHE_DIR": str(own)}
    model = core.read_model(str(path))
    in_parts(model, weight_bytes)
    with nullcontext() if own is None else KeptFolder(own):
        compiled = core.compile_model(model, "CPU", settings)
    if kept is not None:
        with suppress(Exception):  # no space, or no memory: the next start takes as long as this one
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, compiled.export_model().getbuffer())
            seal(kept)
            prune(kept.parent, f"{path.stem}-*.blob", _KEPT)
    return compiled


def _key(core: Any, path: Path, settings: dict[str, Any], *more: int) -> str:
    """What a compiled model depends on, beside the bundle: 16 hexadecimal digits."""
    made_for = [import_openvino().__version__, core.get_property("CPU", "FULL_DEVICE_NAME"), sorted(settings.items())]
    made_by = [version(), path.name, *more]
    return hashlib.sha256(json.dumps([*made_by, *made_for]).encode()).hexdigest()[:16]


def import_openvino() -> Any:
    """OpenVINO without its telemetry: importing it would report to its makers, and a camera box calls nobody."""
    reporter = "openvino_telemetry"
    if reporter in sys.modules or "openvino" in sys.modules:
        return import_module("openvino")  # whoever imported it first has decided
    sys.modules[reporter] = None  # type: ignore[assignment]  # OpenVINO then takes its own silent stand-in
    try:
        return import_module("openvino")
    finally:
        del sys.modules[reporter]
