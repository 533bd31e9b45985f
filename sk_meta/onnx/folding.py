"""Which constants of a graph are a network's weights, and fewer of them."""

from collections import Counter

import numpy as np
from onnx import numpy_helper

_NEUTRAL = {"alpha": 1.0, "beta": 1.0, "transA": 0}
_NORMALIZED = ("Conv", "Gemm")


def subgraphs(node):
    """Graphs inside a node, such as the body of a loop."""
    return [a.g for a in node.attribute if a.HasField("g")]


def count_uses(graph) -> Counter:
    """How often each value is used, in subgraphs too."""
    found = Counter(value.name for value in graph.output)
    for node in graph.node:
        found.update(node.input)
        for inner in subgraphs(node):
            found.update(count_uses(inner))
    return found


def rename_uses(graph, names: dict):
    """Let the nodes of a graph take other values, in subgraphs too."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            rename_uses(inner, names)


def share_constants(graph):
    """Keep equal constants once."""
    first, names = {}, {}
    kept = {value.name for value in (*graph.input, *graph.output)} | {"n_steps"}
    for constant in graph.initializer:
        if constant.name not in kept:
            array = numpy_helper.to_array(constant)
            key = constant.data_type, array.shape, array.tobytes()
            names[constant.name] = first.setdefault(key, constant.name)
    rename_uses(graph, names)
    forget_unused(graph)


def forget_unused(graph):
    """Drop constants that no node takes."""
    uses = count_uses(graph)
    for constant in list(graph.initializer):
        if not uses[constant.name]:
            graph.initializer.remove(constant)


def is_plain(node) -> bool:
    """Whether a product is one without factors and transposed inputs."""
    given = {a.name: a.f if a.HasField("f") else a.i for a in node.attribute}
    return all(given.get(name, value) == value for name, value in _NEUTRAL.items())


def weights_of(layers, graph) -> dict:
    """The weights of layers among a graph's constants, recognised by their numbers.

    Parameters
    ----------
    layers : list of torch.nn.Module
    graph : onnx.GraphProto

    Returns
    -------
    dict of str to int
        Of each name the axis of outputs: 0, or 1 where the weight is transposed.
    """
    known = {}
    for layer in layers:
        weight = layer.weight.detach().cpu().numpy()
        known[weight.shape, weight.tobytes()] = 0
        if weight.ndim == 2:
            known.setdefault((weight.T.shape, weight.T.tobytes()), 1)
    arrays = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    found = {name: (a.shape, a.tobytes()) for name, a in arrays.items()}
    return {name: known[key] for name, key in found.items() if key in known}


def fold_normalization(graph, weights: dict):
    """Let layers do what batch normalisation behind them does, where it is constant.

    Parameters
    ----------
    graph : onnx.GraphProto
        Changed in place.
    weights : dict of str to int
        From `weights_of`; the new weights are added.
    """
    values = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    uses, made = count_uses(graph), {}
    for norm in list(graph.node):
        layer = makers.get(norm.input[0]) if len(norm.input) == 5 else None
        if (
            norm.op_type != "BatchNormalization"
            or layer is None
            or layer.op_type not in _NORMALIZED
            or layer.input[1] not in weights
            or not {*layer.input[2:], *norm.input[1:]} <= set(values)
            or uses[norm.input[0]] > 1
            or not is_plain(layer)
        ):
            continue
        key = *layer.input[1:], *norm.input[1:]
        if key not in made:
            weight, bias = _folded(layer, norm, values, weights[layer.input[1]])
            names = f"{norm.output[0]}/weight", f"{norm.output[0]}/bias"
            for name, array in zip(names, (weight, bias), strict=True):
                graph.initializer.append(numpy_helper.from_array(array, name))
            weights[names[0]] = weights[layer.input[1]]
            made[key] = names
        layer.input[1:] = made[key]
        layer.output[0] = norm.output[0]
        graph.node.remove(norm)
    forget_unused(graph)


def _folded(layer, norm, values, axis):
    """Weight and bias of a layer and the batch normalisation behind it."""
    scale, shift, mean, variance = (
        values[name].astype(np.float64) for name in norm.input[1:]
    )
    (eps,) = [a.f for a in norm.attribute if a.name == "epsilon"] or [1e-5]
    factor = scale / np.sqrt(variance + eps)
    weight = values[layer.input[1]]
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    bias = values[layer.input[2]] if len(layer.input) > 2 else 0.0
    return (
        np.ascontiguousarray(weight * factor.reshape(shape), dtype=np.float32),
        (shift + (bias - mean) * factor).astype(np.float32),
    )
