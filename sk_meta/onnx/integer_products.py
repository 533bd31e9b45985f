"""Products of a network computed in 8-bit integers."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sk_meta.compression.rounding import Rounding, stored
from sk_meta.onnx.checking import start
from sk_meta.onnx.folding import count_uses, is_plain, subgraphs

_KINDS = ("Conv", "Gemm", "MatMul")
# The largest of the rounded numbers goes through them as the largest number does.
_MONOTONE = ("Flatten", "Identity", "MaxPool", "Relu", "Reshape")
_LEVELS, _MIDDLE = 255, 128
_CHANNELS = 4
_LARGEST_BIAS = 2.0**30


class Product(NamedTuple):
    """A node that multiplies by a constant weight of the network.

    Attributes
    ----------
    node : onnx.NodeProto
    weight : str
    axis : int
        Of the outputs.
    """

    node: NodeProto
    weight: str
    axis: int


def products(graph, weights, row_shape):
    """Products whose input may be rounded.

    Features come in units of their own, which one range cannot cover: a layer that
    takes rows of them, targets or metadata themselves is none of these. Images are
    of one unit.

    Parameters
    ----------
    graph : onnx.GraphProto
    weights : dict of str to int
        From `weights_of`.
    row_shape : tuple of int

    Returns
    -------
    list of Product
    """
    constants = {constant.name for constant in graph.initializer}
    found = [
        Product(node, node.input[1], weights[node.input[1]])
        for node in graph.node
        if node.op_type in _KINDS
        and node.input[1] in weights
        and is_plain(node)
        and set(node.input[2:]) <= constants
        and node.input[0] not in constants
    ]
    makers = {name: node for node in graph.node for name in node.output}
    ends = {product.node.output[0] for product in found}
    own_units = {"y_support", "metadata", "X_support", "X_query"}
    if len(row_shape) > 1:
        own_units -= {"X_support", "X_query"}
    return [
        product
        for product in found
        if not own_units & _sources(product.node.input[0], makers, ends)
    ]


def _sources(name, makers, ends):
    """Values without a maker that a value is computed from; not beyond `ends`."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        node = makers.get(name)
        if name not in ends and node is not None and node.op_type != "Shape":
            waiting += _taken(node)
    return found


def _taken(node):
    inner = [name for g in subgraphs(node) for n in g.node for name in _taken(n)]
    return [*node.input, *inner]


def dynamic_products(graph, found, rounding: Rounding):
    """Round the inputs of products by the range that they have in a run, in place.

    Parameters
    ----------
    graph : onnx.GraphProto
    found : list of Product
    rounding : Rounding
        Of weights.
    """
    by_output = {product.node.output[0]: product for product in found}
    made, nodes = set(), []
    for node in graph.node:
        product = by_output.get(node.output[0])
        if product is None:
            nodes.append(node)
            continue
        source = node.input[0]
        rounded = [f"{source}/{part}" for part in ("uint8", "scale", "zero")]
        if source not in made:
            made.add(source)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], rounded))
        if product.weight not in made:
            made.add(product.weight)
            _add_dynamic_weight(graph, product, rounding)
        nodes += _dynamic_nodes(product, rounded)
    _replace(graph, nodes)


def _add_dynamic_weight(graph, product, rounding):
    """Integers, scale and bias of a product, of the shapes that they are used in."""
    node, name = product.node, product.weight
    numbers, scale = _rounded_weight(graph, product, rounding)
    shape = (-1,)
    if node.op_type == "Conv":
        shape = (1, -1, *[1] * (numbers.ndim - 2))
        # onnxruntime takes four times as long for signed ones here.
        numbers = (numbers.astype(np.int16) + _MIDDLE).astype(np.uint8)
    elif product.axis == 0:
        numbers = np.ascontiguousarray(numbers.T)
    arrays = {"numbers": numbers, "scale": scale.reshape(shape)}
    if node.op_type == "Conv":
        arrays["middle"] = np.array(_MIDDLE, np.uint8)
    if len(node.input) > 2:
        arrays["bias"] = _values(graph, node.input[2]).reshape(shape)
    graph.initializer.extend(
        numpy_helper.from_array(array, f"{name}/{part}")
        for part, array in arrays.items()
    )


def _dynamic_nodes(product, rounded):
    """What does a product in integers, from its rounded input."""
    node, name, (numbers, scale, zero) = product.node, product.weight, rounded
    out = node.output[0]
    last = f"{out}/product" if len(node.input) > 2 else out
    convolves = node.op_type == "Conv"
    kind = "ConvInteger" if convolves else "MatMulInteger"
    given = [numbers, f"{name}/numbers", zero]
    multiply = helper.make_node(kind, given, [f"{out}/int32"])
    if convolves:
        multiply.input.append(f"{name}/middle")
        multiply.attribute.extend(node.attribute)
    nodes = [
        multiply,
        helper.make_node("Cast", [f"{out}/int32"], [f"{out}/cast"], to=1),
        helper.make_node("Mul", [scale, f"{name}/scale"], [f"{out}/scale"]),
        helper.make_node("Mul", [f"{out}/cast", f"{out}/scale"], [last]),
    ]
    if last != out:
        nodes.append(helper.make_node("Add", [last, f"{name}/bias"], [out]))
    return nodes


def _values(graph, name):
    (found,) = [c for c in graph.initializer if c.name == name]
    return numpy_helper.to_array(found)


def _replace(graph, nodes):
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _rounded_weight(graph, product, rounding, least=None):
    """int8 weight of the same shape, and the scale of each output."""
    weight = np.moveaxis(_values(graph, product.weight), product.axis, 0)
    least = None if least is None else torch.from_numpy(least).view(-1, 1, 1)
    rows = torch.from_numpy(np.ascontiguousarray(weight))
    numbers, scale = stored(rows, rounding, least)
    numbers = numbers.numpy().astype(np.int8).reshape(weight.shape)
    numbers = np.ascontiguousarray(np.moveaxis(numbers, 0, product.axis))
    return numbers, scale.numpy().ravel()


class Range(NamedTuple):
    """What an 8-bit number stands for: ``scale * (number - zero)``."""

    scale: float
    zero: int


def static_products(model, found, rounding: Rounding, feeds):
    """Round inputs and outputs of products by ranges known from tasks, in place.

    Between two layers there are integers only: what a convolution puts out is rounded
    at once, by the range that it has behind ReLU and pooling, which rounding does not
    change the order of.

    Parameters
    ----------
    model : onnx.ModelProto
    found : list of Product
    rounding : Rounding
        Of weights.
    feeds : list of dict
        Inputs of the graph for some tasks.
    """
    if found:
        _Static(model, found, feeds).rewrite(rounding)


class _Static:
    def __init__(self, model, found, feeds):
        self.graph, self.found = model.graph, found
        self.makers = {name: n for n in self.graph.node for name in n.output}
        self.uses = count_uses(self.graph)
        self.ends = {product.node.output[0]: product for product in found}
        self.position = {n.output[0]: i for i, n in enumerate(self.graph.node)}
        inputs = {product.node.input[0] for product in found}
        behind = {
            self._behind(product.node.output[0])
            for product in found
            if product.node.op_type == "Conv"
        }
        self.ranges = self._find_ranges(model, sorted(inputs | behind), feeds)

    def _behind(self, name):
        """Where the last of the nodes that keep order puts out what was `name`."""
        while self.uses[name] == 1:
            (node,) = [n for n in self.graph.node if name in n.input] or [None]
            if not _keeps_order(node) or node.input[0] != name:
                break
            name = node.output[0]
        return name

    def _way(self, name):
        """The nodes from a product to a value, or None if others are between."""
        way = []
        while name not in self.ends:
            node = self.makers.get(name)
            if not _keeps_order(node) or (way and self.uses[name] != 1):
                return None
            way.append(node)
            name = node.input[0]
        if way and self.uses[name] != 1:
            return None
        return [self.ends[name].node, *reversed(way)]

    def _find_ranges(self, model, names, feeds):
        """The range of each value; the same one where a weight is used twice."""
        root = {name: name for name in names}

        def top(name):
            return name if root[name] == name else top(root[name])

        twins = defaultdict(list)
        for product in self.found:
            out = self._behind(product.node.output[0])
            twins[product.weight, "in"].append(product.node.input[0])
            twins[product.weight, "out"].extend([out] if out in root else [])
        for same in twins.values():
            for other in same[1:]:
                root[top(other)] = top(same[0])
        ends = _observed_ends(model, names, feeds)
        groups = defaultdict(list)
        for name in names:
            groups[top(name)].append(ends[name])
        ranges = {key: _range_of(np.concatenate(e)) for key, e in groups.items()}
        return {name: ranges[top(name)] for name in names}

    def rewrite(self, rounding):
        """See `static_products`."""
        self.nodes = [[node] for node in self.graph.node]
        self.first, self.made = [], set()
        for name in self.ranges:
            self._round(name)
        weights = {}
        for product in self.found:
            self._round_weight(product, rounding, weights)
        nodes = [node for nodes in self.nodes for node in nodes]
        _replace(self.graph, [*self.first, *nodes])

    def _constant(self, array, name):
        if name not in self.made:
            self.made.add(name)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _through_int8(self, source, target, which):
        """Nodes that round a value."""
        scale, zero = which
        # One pair of constants for all values of a range.
        names = [
            self._constant(np.array(scale, np.float32), f"scale/{scale!r}"),
            self._constant(np.array(zero, np.uint8), f"zero/{zero}"),
        ]
        numbers = f"{target}/uint8"
        return [
            helper.make_node("QuantizeLinear", [source, *names], [numbers]),
            helper.make_node("DequantizeLinear", [numbers, *names], [target]),
        ]

    def _round(self, name):
        """Round a value where the last product before it puts it out."""
        which, way = self.ranges[name], self._way(name)
        if way is None and name not in self.makers:
            self._round_given(name, which)
            return
        way = [self.makers[name]] if way is None else way
        steps = [way[0]]
        for node in way[1:]:
            # Rounding does what ReLU does, if the smallest number stands for 0.
            if node.op_type == "Relu" and which.zero == 0:
                self.nodes[self.position[node.output[0]]] = []
            else:
                steps.append(node)
        last = None
        for number, node in enumerate(steps, 1):
            out = node.output[0]
            if last is not None:
                node.input[0] = last
            last = name if number == len(steps) else f"{out}/rounded"
            node.output[0] = f"{out}/exact"
            place = self.nodes[self.position[out]]
            place += self._through_int8(node.output[0], last, which)

    def _round_given(self, name, which):
        """Round an input of the graph, where products take it."""
        takers = [p for p in self.found if p.node.input[0] == name]
        more = max(self._missing_channels(product) for product in takers)
        first, last = self._through_int8(name, f"{name}/rounded", which)
        self.first += [first, last]
        for product in takers:
            product.node.input[0] = last.output[0]
        if more:
            rank = len(_values(self.graph, takers[0].weight).shape)
            ends = np.array([*[0] * (rank + 1), more, *[0] * (rank - 2)], np.int64)
            ends = self._constant(ends, f"channels/{rank}/{more}")
            padded = f"{name}/padded"
            pad = helper.make_node("Pad", [first.output[0], ends], [padded])
            last.input[0] = padded
            self.first.insert(-1, pad)

    def _missing_channels(self, product):
        """Channels of zeros that a convolution of images is faster with, in int8."""
        same = [p for p in self.found if p.weight == product.weight]
        # onnxruntime has a faster way for multiples of 4.
        if all(_convolves_rows(p.node) for p in same):
            return -_values(self.graph, product.weight).shape[1] % _CHANNELS
        return 0

    def _round_weight(self, product, rounding, weights):
        node, name = product.node, product.weight
        source = product.node.input[0].removesuffix("/rounded")
        of_input = self.ranges[source].scale
        (bias,) = node.input[2:] or [None]
        if name not in weights:
            least, more = None, self._missing_channels(product)
            if bias is not None:
                bias = _values(self.graph, bias)
                # What is added must be a multiple of the products' unit, in 32 bits.
                least = np.abs(bias) / (of_input * _LARGEST_BIAS)
                least = least.astype(np.float32)
            numbers, scale = _rounded_weight(self.graph, product, rounding, least)
            weights[name] = scale
            if more:
                numbers = np.pad(
                    numbers, [(0, more * (i == 1)) for i in range(numbers.ndim)]
                )
            self.first.append(self._dequantized(numbers, scale, name, product.axis))
        node.input[1] = f"{name}/float"
        if len(node.input) > 2:
            self._round_bias(product, weights[name] * np.float32(of_input))

    def _round_bias(self, product, scale):
        bias, name = product.node.input[2], f"{product.weight}/bias"
        if f"{name}/int32" not in self.made:
            numbers = np.round(_values(self.graph, bias) / scale).astype(np.int32)
            self.first.append(self._dequantized(numbers, scale, name, 0))
        product.node.input[2] = f"{name}/float"

    def _dequantized(self, numbers, scale, name, axis):
        target, kind = f"{name}/float", str(numbers.dtype)
        names = [
            self._constant(numbers, f"{name}/{kind}"),
            self._constant(scale.astype(np.float32), f"{name}/scale"),
            self._constant(np.zeros(len(scale), numbers.dtype), f"{name}/zero"),
        ]
        return helper.make_node("DequantizeLinear", names, [target], axis=axis)


def _convolves_rows(node):
    """Whether it is a convolution, in one group, of rows themselves."""
    groups = [a.i for a in node.attribute if a.name == "group"]
    of_rows = node.input[0].removesuffix("/rounded") in ("X_support", "X_query")
    return node.op_type == "Conv" and groups in ([], [1]) and of_rows


def _keeps_order(node):
    return (
        node is not None and node.op_type in _MONOTONE and len(list(node.output)) == 1
    )


def _observed_ends(model, names, feeds):
    """Lowest and highest number of values in each task: name -> (n_tasks, 2)."""
    looking = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = [name for name in names if name not in _made(looking.graph)]
    inside = [name for name in names if name not in inputs]
    del looking.graph.output[:]
    looking.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside
    )
    session, ends = start(looking), defaultdict(list)
    for feed in feeds:
        values = (
            dict(zip(inside, session.run(inside, feed), strict=True)) if inside else {}
        )
        for name in names:
            X = values[name] if name in values else feed[name]
            ends[name].append((X.min(), X.max()))
    return {name: np.array(found) for name, found in ends.items()}


def _made(graph):
    return {name for node in graph.node for name in node.output}


def _range_of(ends):
    """The scale and the number for 0 that serve most tasks."""
    low, high = min(0.0, ends[:, 0].min()), max(0.0, ends[:, 1].max())
    scale = float(np.float32((high - low) / _LEVELS)) or 1.0
    return Range(scale, round(-low / scale))
