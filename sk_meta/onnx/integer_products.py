"""The products of a network that can be computed in 8-bit integers."""

from typing import NamedTuple

import numpy as np
import torch
from onnx import NodeProto, numpy_helper

from sk_meta.compression.rounding import Rounding, stored
from sk_meta.onnx.folding import is_plain, subgraphs

_KINDS = ("Conv", "Gemm", "MatMul")


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


def values_of(graph, name):
    """A constant of a graph, as an array."""
    (found,) = [c for c in graph.initializer if c.name == name]
    return numpy_helper.to_array(found)


def replace_nodes(graph, nodes):
    """Let these be the nodes of a graph."""
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def rounded_weight(graph, product, rounding: Rounding, least=None):
    """int8 weight of the same shape, and the scale of each output."""
    weight = np.moveaxis(values_of(graph, product.weight), product.axis, 0)
    least = None if least is None else torch.from_numpy(least).view(-1, 1, 1)
    rows = torch.from_numpy(np.ascontiguousarray(weight))
    numbers, scale = stored(rows, rounding, least)
    numbers = numbers.numpy().astype(np.int8).reshape(weight.shape)
    numbers = np.ascontiguousarray(np.moveaxis(numbers, 0, product.axis))
    return numbers, scale.numpy().ravel()
