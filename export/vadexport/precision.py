"""Which parts of an fp16 encoder a device has to compute in float32: the search, and the change to the network.

A part is a piece of the encoder graph under its own name: ``blocks.3/attn``, ``blocks.3/mlp``, ``ln_post``. The
network is changed after TensorRT has parsed it, so that neither onnx nor a second graph is needed on the box. Weights
stay those of the fp16 graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Layers that hold or describe values and compute none, by the names of trt.LayerType.
_PASSIVE = {"CONSTANT", "SHAPE"}
# The parser's own helpers, which no node of the graph is named after.
_HELPERS = ("ONNXTRT_", "(Unnamed")


def parts_of(trt: Any, network: Any) -> list[str]:
    """Parts of a parsed network that compute in float16, in the order of the graph."""
    layers, owners = _layers_with_owners(network)
    found = (owner for layer, owner in zip(layers, owners, strict=True) if _makes_half(trt, layer))
    return [owner for owner in dict.fromkeys(found) if owner is not None]


def hold_strongly(trt: Any, network: Any, parts: Iterable[str]) -> None:
    """Make ``parts`` of a strongly typed network float32: casts where float16 enters them and where it goes on."""
    single, half = trt.DataType.FLOAT, trt.DataType.HALF
    layers, owners = _layers_with_owners(network)
    wanted = set(parts)
    inside = [owner in wanted and not _is(layer, _PASSIVE) for layer, owner in zip(layers, owners, strict=True)]
    halves = {t.name for layer in layers for t in _outputs(layer) if t.dtype == half}
    made_inside = {t.name for layer, held in zip(layers, inside, strict=True) if held for t in _outputs(layer)}
    casts: dict[tuple[str, str], Any] = {}
    instead: dict[str, Any] = {}  # a cast to float16 within a part is passed by

    def cast(tensor: Any, to: Any, suffix: str) -> Any:
        key = (tensor.name, suffix)
        if key not in casts:
            layer = network.add_cast(tensor, to)
            layer.name = f"{tensor.name}/held_{suffix}"
            casts[key] = layer.get_output(0)
        return casts[key]

    for layer, held in zip(layers, inside, strict=True):
        if held and _is(layer, {"CAST"}) and layer.get_output(0).name in halves:
            source = layer.get_input(0)
            source = instead.get(source.name, source)
            entering = source.name in halves and source.name not in made_inside
            instead[layer.get_output(0).name] = cast(source, single, "float") if entering else source
            continue
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            if tensor is None or tensor.name not in halves:
                continue
            from_inside = tensor.name in made_inside
            source = instead.get(tensor.name, tensor)
            if held and not from_inside:
                layer.set_input(index, cast(tensor, single, "float"))
            elif not held and from_inside and not _is(layer, {"CAST"} | _PASSIVE):
                layer.set_input(index, cast(source, half, "half"))
            elif source is not tensor:
                layer.set_input(index, source)


def hold_by_flag(trt: Any, network: Any, parts: Iterable[str]) -> None:
    """The same for a network whose precision is the builder's choice; OBEY_PRECISION_CONSTRAINTS must be set too."""
    layers, owners = _layers_with_owners(network)
    wanted = set(parts)
    for layer, owner in zip(layers, owners, strict=True):
        if owner in wanted and _makes_half(trt, layer) and not _is(layer, {"CAST"}):
            layer.precision = trt.DataType.FLOAT
            for index in range(layer.num_outputs):
                layer.set_output_type(index, trt.DataType.FLOAT)


def search(parts: Sequence[str], right: Callable[[list[str]], bool]) -> list[str] | None:
    """A smallest set of parts that has to be float32: none of it can be left out. None where all of them do not help.

    Blocks first, then the parts of the blocks that are left, each by :func:`smallest`.

    Args:
        parts: all parts, in the order of the graph.
        right: builds with these in float32, and tells whether the result is near enough to PyTorch.
    """
    known: dict[frozenset[str], bool] = {}

    def asked(some: Sequence[str]) -> bool:
        key = frozenset(some)
        if key not in known:
            known[key] = right([part for part in parts if part in key])
        return known[key]

    def of_blocks(blocks: Sequence[str]) -> list[str]:
        return [part for part in parts if part.partition("/")[0] in blocks]

    if not asked(parts):
        return None
    blocks = smallest(
        list(dict.fromkeys(part.partition("/")[0] for part in parts)), lambda some: asked(of_blocks(some))
    )
    return smallest(of_blocks(blocks), asked)


def smallest(items: Sequence[str], right: Callable[[Sequence[str]], bool]) -> list[str]:
    """A subset that is right, of which no item can be left out; ``items`` is known to be right, no items to be wrong.

    Delta debugging (Zeller and Hildebrandt, 2002): halves, then what is left without each half, then quarters, ...
    """
    held, pieces = list(items), 2
    while len(held) > 1:
        size = -(-len(held) // pieces)
        chunks = [held[start : start + size] for start in range(0, len(held), size)]
        rests = [[item for item in held if item not in chunk] for chunk in chunks] if len(chunks) > 2 else []
        found = next((some for some in [*chunks, *rests] if right(some)), None)
        if found is not None:
            pieces = 2 if found in chunks else max(pieces - 1, 2)
            held = found
        elif size == 1:
            break
        else:
            pieces = min(2 * pieces, len(held))
    return held


def _layers_with_owners(network: Any) -> tuple[list[Any], list[str | None]]:
    """All layers, and the part that each belongs to; a helper belongs to the layer that it comes before."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    owners: list[str | None] = []
    following: str | None = None
    for layer in reversed(layers):
        if not layer.name.startswith(_HELPERS) and not _is(layer, _PASSIVE):
            following = "/".join(layer.name.split("/")[:2])
        owners.append(following)
    return layers, owners[::-1]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def _is(layer: Any, kinds: set[str]) -> bool:
    return str(layer.type).rsplit(".", 1)[-1] in kinds


def _makes_half(trt: Any, layer: Any) -> bool:
    return not _is(layer, _PASSIVE) and any(t.dtype == trt.DataType.HALF for t in _outputs(layer))
