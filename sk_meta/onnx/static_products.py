"""Products in 8-bit integers, whose ranges are known from tasks."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sk_meta.compression.rounding import Rounding
from sk_meta.onnx.checking import start
from sk_meta.onnx.folding import count_uses
from sk_meta.onnx.integer_products import replace_nodes, rounded_weight, values_of

_ROWS = ("X_support", "X_query")
# The largest of the rounded numbers goes through them as the largest number does.
_MONOTONE = ("Flatten", "Identity", "MaxPool", "Relu", "Reshape")
_LEVELS = 255
_CHANNELS = 4
_LARGEST_BIAS = 2.0**30


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
        self.channels = self._find_channels()
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
        replace_nodes(self.graph, [*self.first, *nodes])

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
        more = self.channels.get(takers[0].weight, 0)
        first, last = self._through_int8(name, f"{name}/rounded", which)
        self.first += [first, last]
        for product in takers:
            product.node.input[0] = last.output[0]
        if more:
            rank = len(values_of(self.graph, takers[0].weight).shape)
            ends = np.array([*[0] * (rank + 1), more, *[0] * (rank - 2)], np.int64)
            ends = self._constant(ends, f"channels/{rank}/{more}")
            padded = f"{name}/padded"
            pad = helper.make_node("Pad", [first.output[0], ends], [padded])
            last.input[0] = padded
            self.first.insert(-1, pad)

    def _find_channels(self):
        """Channels of zeros that convolutions of images are faster with: by weight."""
        takers = [p for p in self.found if p.node.input[0] in _ROWS]
        weights = {p.weight for p in takers}
        all_uses = [p for p in self.found if p.weight in weights]
        # onnxruntime has a faster way for multiples of 4.
        lengths = {values_of(self.graph, w).shape[1] % _CHANNELS for w in weights}
        if len(lengths) != 1 or not all(_convolves_rows(p.node) for p in all_uses):
            return {}
        return dict.fromkeys(weights, -lengths.pop() % _CHANNELS)

    def _round_weight(self, product, rounding, weights):
        node, name = product.node, product.weight
        source = product.node.input[0].removesuffix("/rounded")
        of_input = self.ranges[source].scale
        (bias,) = node.input[2:] or [None]
        if name not in weights:
            least, more = None, self.channels.get(name, 0)
            if bias is not None:
                bias = values_of(self.graph, bias)
                # What is added must be a multiple of the products' unit, in 32 bits.
                least = np.abs(bias) / (of_input * _LARGEST_BIAS)
                least = least.astype(np.float32)
            numbers, scale = rounded_weight(self.graph, product, rounding, least)
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
            numbers = np.round(values_of(self.graph, bias) / scale).astype(np.int32)
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
    return node.op_type == "Conv" and groups in ([], [1]) and node.input[0] in _ROWS


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
