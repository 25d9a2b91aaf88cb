"""Files of weights as plain tensors: what ``torch.save`` and ``torch.jit.save`` write, and ``.safetensors``.

A file may come from anywhere. Nothing in it is ever executed; what it says of its sizes is checked before anything is
allocated for it; and whatever is wrong with it is said in one sentence. Weights are mapped from the file, not copied,
wherever it allows that.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vadclip.torchscript import ArchiveError, calls, state_dict
from vadrun.errors import UserError
from vadrun.files import sha256, whole_file

# Parts of names that come from what a model was wrapped in: torch.nn.DataParallel and DistributedDataParallel,
# torch.compile, FSDP, activation checkpointing. No weight's own name has one.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Numbers that OpenAI's archives, and only those, hold beside the weights.
_OPENAI_ONLY = {"input_resolution", "context_length", "vocab_size"}
_MOST_HEADER = 16 << 20  # bytes of a .safetensors file's header; that of a VadCLIP has 60 kB
_SHOWN = 60  # characters of a name in a sentence


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        path: the file.
        weights: floating-point tensors on the CPU, by the model's own names.
        metadata: texts that a ``.safetensors`` file tells beside them.
        openai: whether it is one of OpenAI's archives of a CLIP, or has what only those have.
    """

    path: Path
    weights: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    openai: bool = False


def read_weights(path: Path) -> WeightsFile:
    """Read a file by its first bytes rather than its name.

    It may be a state dict, bare or under ``model_state_dict`` or ``state_dict``; names lose what wrappers such as
    ``torch.compile`` put into them.

    Raises:
        UserError: there is no such file, it is damaged, it would run code, or it holds something else.
    """
    check_file(path)
    metadata: Mapping[str, str] = {}
    openai = False
    with _reading(path):
        with path.open("rb") as stream:
            start = stream.read(9)
        size = path.stat().st_size
        header = int.from_bytes(start[:8], "little")
        # First, because the length that a .safetensors file begins with may look like one of the other two.
        if start[8:] == b"{" and header < size:
            if header > _MOST_HEADER:
                raise UserError(f"{path} is damaged or no checkpoint (a header of {header} bytes): get it again")
            loaded, metadata = _read_safetensors(path)
        elif start[:2] == b"PK":
            loaded, openai = _read_archive(path, size)
        elif start[:1] == b"\x80":  # what pickles begin with: torch.save before 1.6, or pickle.dump
            loaded = _unpickle(path, mmap=False)
        else:
            raise UserError(f"{path} is not a checkpoint: name a .pth file of torch.save or a .safetensors file")
        weights, copied = _plain(path, loaded, size)
    return WeightsFile(path, weights, metadata, openai or copied)


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``.safetensors``, whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    try:
        with whole_file(path) as temporary:
            mode = temporary.stat().st_mode
            save_file(weights, temporary, metadata=metadata)
            temporary.chmod(mode)  # safetensors leaves 0600, which other users could not read
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}): name a file in a writable folder") from error


def checkpoint_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a checkpoint file's bytes.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    check_file(path)
    return sha256(path)


def check_file(path: Path) -> None:
    """Refuse what is no regular file that can be read.

    Raises:
        UserError: it is none.
    """
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist: name a checkpoint file")
        if not path.is_file():
            raise UserError(f"{path} is not a file: name a checkpoint file")
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a readable file") from error


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        UserError: names the first such weight.
    """
    for key, value in weights.items():
        # NaN and inf come through to the extremes; isfinite of every weight would take memory for each.
        if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
            raise UserError(f"{path} has NaN or infinite weights in {shown(key)}: use an earlier checkpoint")


def check_shapes(path: Path, weights: Mapping[str, Tensor], model: nn.Module, what: str) -> None:
    """Refuse weights that are not all of a model's, and nothing else.

    Args:
        path: where they come from.
        weights: by name.
        model: on any device, "meta" too.
        what: it is, for the sentence: "VadCLIP checkpoint".

    Raises:
        UserError: names what is missing, unknown, or of another size.
    """
    expected = model.state_dict()
    if missing := [key for key in expected if key not in weights]:
        raise UserError(f"{path} is not a whole {what}: it has no {some(missing)}")
    if unknown := [key for key in weights if key not in expected]:
        raise UserError(f"{path} is not a {what}: it also has {some(unknown)}")
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise UserError(
                f"{path} has sizes that do not fit each other: {key!r} is {list(weights[key].shape)},"
                f" but the other weights call for {list(value.shape)}"
            )


def some(keys: Iterable[str]) -> str:
    """The first three keys and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown(key) for key in keys[:3]) + more


def shown(key: object) -> str:
    """A key for a sentence: quoted, on one line, and not too long."""
    text = repr(key) if isinstance(key, str | int | float) else type(key).__name__
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one sentence whatever goes wrong in a reader: a damaged file can fail anywhere in it."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} does not fit into this machine's memory: free some, or use another machine") from error
    except ArchiveError as error:
        raise UserError(f"{path} is no archive of weights ({error}): get it again") from error
    except zipfile.BadZipFile as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or incomplete ({why}): get it again") from error
    except SafetensorError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or no .safetensors file ({why}): get it again") from error
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): get it again") from error


def _read_safetensors(path: Path) -> tuple[object, Mapping[str, str]]:
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata() or {}
        return {key: stream.get_tensor(key) for key in stream.keys()}, metadata  # noqa: SIM118 (it is no mapping)


def _read_archive(path: Path, size: int) -> tuple[object, bool]:
    """What a zip file of ``torch.save`` or ``torch.jit.save`` holds, and whether it is a program as OpenAI's are."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        members = {info.filename.rpartition("/")[2] for info in infos}
        if "data.pkl" not in members:
            raise UserError(f"{path} is a zip archive without weights: name a file of torch.save")
        stored = [info for info in infos if info.compress_type == zipfile.ZIP_STORED]
        if sum(info.file_size for info in stored) > size:
            raise UserError(f"{path} is damaged (its members are larger than the file): get it again")
        if "constants.pkl" in members:
            # OpenAI's multiply with a sigmoid (QuickGELU); a program of another CLIP calls this.
            return state_dict(archive), not calls(archive, "torch.gelu")
        for info in stored:
            # torch.load does not look at checksums, and a damaged weight is as good a number as any other.
            if info.CRC:  # 0: torch was told to write none
                with archive.open(info) as member:
                    while member.read(1 << 20):
                        pass
    return _unpickle(path, mmap=True), False


def _unpickle(path: Path, mmap: bool) -> object:
    try:
        with _plain_numbers():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {found[1][:_SHOWN]}" if found else "it was not written by torch.save"
        raise UserError(
            f"{path} is a pickle that may run code ({what}) and was refused unread: save its state dict alone"
        ) from error


def _plain_numbers() -> AbstractContextManager[object]:
    """Let NumPy numbers through: the authors' training checkpoints hold their best score as one."""
    # The (object, name) pairs below came to torch with this function, in 2.6.
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    return torch.serialization.safe_globals(
        [
            (scalar, "numpy.core.multiarray.scalar"),  # written under NumPy 1
            (scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
        ]
    )


def _plain(path: Path, loaded: object, size: int) -> tuple[dict[str, Tensor], bool]:
    """The floating-point state dict in what a file holds, without wrappings, and whether OpenAI's numbers are in it."""
    for wrapping in ("model_state_dict", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapping), Mapping):
            loaded = loaded[wrapping]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{path} holds no state dict ({type(loaded).__name__}): name a VadCLIP checkpoint")
    weights: dict[str, Tensor] = {}
    openai, total = False, 0
    for written, value in loaded.items():
        key = _unwrapped(written) if isinstance(written, str) else None
        if key in _OPENAI_ONLY:
            openai = True
            continue
        if key is None or not isinstance(value, Tensor) or not value.is_floating_point():
            raise UserError(f"{path} is not a VadCLIP checkpoint: its entry {shown(written)} is no weight")
        if key in weights:
            raise UserError(f"{path} has {shown(key)} twice, once as {shown(written)}: save one state dict alone")
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"{path} has {shown(key)} without plain numbers: save its state dict in float32")
        # One number may stand for any count of weights (a stride of 0), and would then be written out.
        total += value.numel() * value.element_size()
        if total > 2 * size:
            raise UserError(f"{path} is damaged (its weights are larger than the file): get it again")
        weights[key] = value
    return weights, openai


def _unwrapped(key: str) -> str:
    """A weight's own name, without what wrappers of models put before it or into it, however often."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
