"""Wide linears of the encoder in parts whose weights stay in a core's cache, for processors with matrix units (AMX).

AMX multiplies faster than weights come from outside of a core's second-level cache, and OpenVINO's kernels read all
weights again for every few rows. So the feed-forward network, ``c_proj(gelu(c_fc(x)))``, is computed as a sum over
parts of its hidden units, each with a slice of both weights, and Q, K and V are linears of their own. The sum is the
same; only where it is rounded changes. Graphs of other shapes are left as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Bytes of one part's weights. Processors with AMX have 2 MiB for each core, and activations need room, too: ViT-B/16's
# feed-forward network is fastest in four parts of 1.1 MiB in bfloat16.
MOST_BYTES = 5 << 18

_WIDTH = 64  # hidden units; a part holds a multiple of them, as kernels like it

# What may lie between two linears: a value of a hidden unit there depends on that unit alone.
_BY_UNIT = ("Add", "Subtract", "Multiply", "Divide", "Sigmoid", "Erf", "Convert", "FakeQuantize")


def in_parts(model: Any, weight_bytes: int) -> int:
    """Rewrite a model, ``openvino.Model``, in place; returns how many linears were taken apart.

    Args:
        model: the encoder as it was read.
        weight_bytes: of one weight when it is multiplied.
    """
    taken = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Add" and _source(node, 0).get_type_name() == "MatMul" and not _is_result(node):
            taken += _feed_forward(node, weight_bytes) or _attention(node, weight_bytes)
    return taken


def _feed_forward(out: Any, weight_bytes: int) -> int:
    """Take ``out``, the bias behind a second linear, and the linear that feeds it apart: 2, or 0 if it is none."""
    from openvino import opset13 as op

    second = _source(out, 0)
    first = _linear_behind(second)
    if first is None:
        return 0
    width, units = _weights(first) or (0, 0)
    sizes = [size for size in range(units - units % _WIDTH, 0, -_WIDTH) if units % size == 0]
    size = next((size for size in sizes if width * size * weight_bytes <= MOST_BYTES), units)
    if size == units:
        return 0
    total = None
    for start in range(0, units, size):
        part = slice(start, start + size)
        hidden = _values(second.input_value(0), units, part, {})
        product = op.matmul(hidden, _sliced(second.input_value(1), 0, units, part), False, False)
        total = op.add(product, out.input_value(1) if total is None else total)
    _replace(out, total)
    return 2


def _attention(out: Any, weight_bytes: int) -> int:
    """Take ``out``, the bias behind a linear that makes Q, K and V at once, apart: 1, or 0 if it is none."""
    from openvino import opset13 as op

    linear = _source(out, 0)
    split = _only_user(out, "Reshape")
    turned = None if split is None else _only_user(split, "Transpose")
    weights = _weights(linear)
    if split is None or turned is None or weights is None or weights[0] * weights[1] * weight_bytes <= MOST_BYTES:
        return 0
    # [B,tokens,n,heads,size] to [n,B,heads,tokens,size], of which each is picked; only B may be any number.
    _, *shape = [d.get_length() if d.is_static else 0 for d in split.get_output_partial_shape(0)]
    picks = [target.get_node() for target in turned.output(0).get_target_inputs()]
    if (
        len(shape) != 4
        or len(linear.input_value(0).get_partial_shape()) != 3
        or int(np.prod(shape[1:])) != weights[1]
        or _constant(turned.input_value(1)) != [2, 0, 3, 1, 4]
        or not all(pick.get_type_name() == "Gather" and _constant(pick.input_value(2)) == 0 for pick in picks)
        or not all(_constant(pick.input_value(1)) in range(shape[1]) for pick in picks)
    ):
        return 0
    tokens, _, heads, size = shape
    for pick in picks:
        start = _constant(pick.input_value(1)) * heads * size
        part = slice(start, start + heads * size)
        product = op.matmul(linear.input_value(0), _sliced(linear.input_value(1), 1, weights[1], part), False, False)
        value = op.add(product, _sliced(out.input_value(1), 1, weights[1], part))
        value = op.reshape(value, np.array([0, tokens, heads, size], np.int64), True)
        _replace(pick, op.transpose(value, np.array([0, 2, 1, 3], np.int64)))
    return 1


def _linear_behind(second: Any) -> Any | None:
    """The one linear on whose hidden units, each by itself, the input of this one depends."""
    found: dict[str, Any] = {}
    waiting = [second.input_value(0)]
    while waiting:
        node = waiting.pop().get_node()
        kind = node.get_type_name()
        if kind == "MatMul":
            found[node.get_name()] = node
        elif kind in _BY_UNIT:
            waiting.extend(node.input_values())
        elif kind != "Constant":
            return None
    shapes = [_weights(node) for node in (*found.values(), second)]
    if len(shapes) != 2 or shapes[0] is None or shapes[1] is None or shapes[0][1] != shapes[1][0]:
        return None
    return next(iter(found.values()))


def _values(value: Any, units: int, part: slice, done: dict[str, Any]) -> Any:
    """``value`` for a part of the hidden units; ``done`` are those of before, for x of x * sigmoid(x) is used twice."""
    from openvino import opset13 as op

    node = value.get_node()
    kind, name = node.get_type_name(), node.get_name()
    if name in done:
        return done[name]
    if kind == "MatMul":
        made = op.matmul(node.input_value(0), _sliced(node.input_value(1), 1, units, part), False, False)
    elif kind == "Constant":
        made = _sliced(value, 1, units, part)
    else:
        made = _again(node, [_values(source, units, part, done) for source in node.input_values()])
    done[name] = made
    return made


def _sliced(value: Any, axis: int, full: int, part: slice) -> Any:
    """A constant expression of [K,N], or one of [N] or [] that goes with it, with a part of an axis of this length."""
    from openvino import opset13 as op

    node, shape = value.get_node(), list(value.get_shape())
    at = axis - (2 - len(shape))
    if at < 0 or shape[at] != full:
        return value
    kind = node.get_type_name()
    if kind == "Constant":
        return op.constant(np.ascontiguousarray(node.get_data()[(slice(None),) * at + (part,)]))
    if kind == "Reshape":  # from [N] to [1,N]
        row = np.array([1, part.stop - part.start], np.int64)
        return op.reshape(_sliced(node.input_value(0), axis, full, part), row, False)
    return _again(node, [_sliced(source, axis, full, part) for source in node.input_values()])


def _again(node: Any, inputs: list[Any]) -> Any:
    """The same operation on other inputs."""
    from openvino import opset13 as op

    kind = node.get_type_name()
    if kind == "Convert":
        return op.convert(inputs[0], node.get_output_element_type(0).to_string())
    if kind == "FakeQuantize":
        return op.fake_quantize(*inputs, levels=node.get_attributes()["levels"])
    makers = {"Add": op.add, "Subtract": op.subtract, "Multiply": op.multiply, "Divide": op.divide}
    return (makers | {"Sigmoid": op.sigmoid, "Erf": op.erf})[kind](*inputs)


def _weights(linear: Any) -> list[int] | None:
    """[K,N] of a linear ``x @ W``; None where W is no constant expression that can be sliced."""
    value, attributes = linear.input_value(1), linear.get_attributes()
    if attributes["transpose_a"] or attributes["transpose_b"] or not _is_constant(value):
        return None
    return list(value.get_shape()) if len(value.get_shape()) == 2 else None


def _is_constant(value: Any) -> bool:
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return True
    if kind == "Reshape":
        shapes = value.get_partial_shape(), node.input_value(0).get_partial_shape()
        if not all(shape.is_static for shape in shapes) or len(shapes[1]) != 1 or list(value.get_shape())[:-1] != [1]:
            return False
    return kind in (*_BY_UNIT, "Reshape") and all(_is_constant(source) for source in node.input_values())


def _constant(value: Any) -> Any:
    node = value.get_node()
    return node.get_data().tolist() if node.get_type_name() == "Constant" else None


def _source(node: Any, index: int) -> Any:
    return node.input_value(index).get_node()


def _is_result(node: Any) -> bool:
    return any(target.get_node().get_type_name() == "Result" for target in node.output(0).get_target_inputs())


def _only_user(node: Any, kind: str) -> Any | None:
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None


def _replace(old: Any, new: Any) -> None:
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))
