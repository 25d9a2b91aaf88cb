"""The weights in a TorchScript archive, such as OpenAI's own ``ViT-B-16.pt``, read without running it.

Such an archive is a zip file of a program (``code/``), its constants and a pickle of its modules (``data.pkl``), whose
tensors lie in members of their own (``data/0``, ...). ``torch.jit.load`` would run what the program says. Here the
pickle's instructions are followed on plain data instead: no class is looked up, nothing is called, and ``code/`` is
text to be searched. An object becomes the dictionary of its attributes, and of all functions that a pickle may name
only those that put a tensor together mean anything.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_MOST_PICKLE = 32 << 20  # bytes; that of OpenAI's ViT-L/14 has 0.4 MB
_MOST_ENTRIES = 100_000  # modules and values; modules that hold each other could otherwise be walked for ever
_MOST_CODE = 32 << 20  # bytes, decompressed
_DERIVED = "attn_mask"  # the causal mask: a constant that no state dict holds
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ArchiveError(Exception):
    """The archive does not hold what it should; the message says what."""


def state_dict(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of the archive's modules under the names that ``torch.jit.load(...).state_dict()`` gives them.

    Raises:
        ArchiveError: it holds no modules, or something else than an archive of this kind does.
        Exception: a damaged archive can fail anywhere in the readers of zip files and pickles.
    """
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    storages: dict[str, Tensor] = {}

    def storage(identity: object) -> Tensor:
        """The flat tensor of a storage: ``("storage", type, key, device, count)``."""
        if not isinstance(identity, tuple) or len(identity) != 5:
            raise ArchiveError("it refers to something that is no tensor")
        _, kind, key, _, _ = identity
        dtype = _DTYPES.get(kind.name) if isinstance(kind, _Name) and kind.module == "torch" else None
        if dtype is None or not isinstance(key, str):
            raise ArchiveError("it has tensors of an unknown type")
        if key not in storages:
            raw = bytearray(_member(archive, members[f"data/{key}"]))
            storages[key] = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return storages[key].view(dtype)

    pickle = members["data.pkl"]
    if pickle.file_size > _MOST_PICKLE:
        raise ArchiveError(f"its data.pkl has {pickle.file_size} bytes")
    root = _evaluate(_member(archive, pickle), storage)
    if not isinstance(root, _Object):
        raise ArchiveError("it holds no module")
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, _Object]] = [("", root)]
    entries = 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            entries += 1
            if entries > _MOST_ENTRIES:
                raise ArchiveError("its modules hold each other")
            if isinstance(value, _Object):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name != _DERIVED:
                found[f"{prefix}{name}"] = value
    return found


def calls(archive: zipfile.ZipFile, function: str) -> bool:
    """Whether the archive's program calls a function, such as ``torch.gelu``.

    Raises:
        ArchiveError: the program is too long to be one.
        Exception: as of :func:`state_dict`.
    """
    left = _MOST_CODE
    for info in archive.infolist():
        if info.filename.partition("/")[2].startswith("code/") and info.filename.endswith(".py"):
            with archive.open(info) as member:
                code = member.read(left + 1)
            left -= len(code)
            if left < 0:
                raise ArchiveError(f"its program has more than {_MOST_CODE} bytes")
            if f"{function}(".encode() in code:
                return True
    return False


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, checked against its CRC; stored, so that they are no more than the file has."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ArchiveError(f"its {info.filename.rpartition('/')[2]} is compressed")
    return archive.read(info)


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle names; never looked up."""

    module: str
    name: str


@dataclass(eq=False)
class _Object:
    """An instance of a class that nobody looked up."""

    attributes: dict[str, Any] = field(default_factory=dict)


class _Mark:
    """Where the items of a tuple or dictionary begin on the stack."""


def _evaluate(data: bytes, storage: Callable[[object], Tensor]) -> object:
    """What a pickle of protocol 2 describes, with instances as :class:`_Object` and calls of nothing."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        items = []
        while not isinstance(top := stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_Name(*argument.split(" ", 1)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                items = marked()
                stack[-1].extend(items)
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                _put(stack[-1], key, value)
            case "SETITEMS":
                items = marked()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _put(stack[-1], key, value)
            case "NEWOBJ":
                stack[-2:] = [_Object()]
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object) and isinstance(state, dict):
                    stack[-1].attributes.update(state)
            case "BINPERSID":
                stack.append(_Storage(storage(stack.pop())))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case name:
                raise ArchiveError(f"its data.pkl has the instruction {name}")
    raise ArchiveError("its data.pkl has no end")


@dataclass(frozen=True, eq=False)
class _Storage:
    """A flat tensor that others are views of."""

    flat: Tensor


def _put(target: Any, key: object, value: Any) -> None:
    # Other keys than text (a tuple of tuples of ...) could take for ever to hash, and none names a tensor.
    if isinstance(target, dict) and isinstance(key, str):
        target[key] = value


def _call(function: object, arguments: Any) -> Any:
    """The result of those calls that make tensors; of any other, an empty object."""
    if function == _Name("torch._utils", "_rebuild_tensor_v2"):
        source, offset, size, stride = arguments[:4]
        if not isinstance(source, _Storage):
            raise ArchiveError("it has a tensor without a storage")
        flat = source.flat
        tensor = torch.as_strided(flat, size, stride, offset)
        if tensor.numel() > flat.numel():
            raise ArchiveError("it has a tensor that is larger than its storage")
        return tensor
    if function == _Name("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    return _Object()
