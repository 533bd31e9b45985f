"""A learner's graph with its network in few bits; all else stays in float."""

import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from sk_meta.compression.rounding import Rounding, linear_layers, stored
from sk_meta.onnx.dynamic_products import dynamic_products
from sk_meta.onnx.folding import (
    fold_normalization,
    forget_unused,
    share_constants,
    weights_of,
)
from sk_meta.onnx.graph import quiet
from sk_meta.onnx.integer_products import products
from sk_meta.onnx.learner import finished
from sk_meta.onnx.learner_export import export_learner
from sk_meta.onnx.runtime import OnnxMetaLearner
from sk_meta.onnx.static_products import static_products

_DEFAULT_OPSET = 20
_INT4_OPSET, _INT4_FORMAT = 21, 10


def opset_for(how, target_opset) -> int:
    """Version of the operators that a file is written with.

    Raises
    ------
    ValueError
        If that version has none of the numbers asked for.
    """
    first = _INT4_OPSET if how == "int4" else _DEFAULT_OPSET
    if target_opset is None:
        return first
    if how == "int4" and target_opset < first:
        raise ValueError(
            f"target_opset={target_opset} has no 4-bit integers; they exist since "
            f"opset {first}. Set target_opset={first}, or how='int8'."
        )
    return target_opset


def quantized_file(meta, how, rounding: Rounding, draws, target_opset) -> bytes:
    """The file of a fitted meta-learner, its network in few bits.

    Parameters
    ----------
    meta : fitted meta-learner
    how : {"int8", "int8_dynamic", "fp16", "int4"}
    rounding : Rounding
        Of the weights.
    draws : iterable of (X_support, y_support, metadata, X_query)
        Tasks that show the ranges of what goes through the network; for "int8".
    target_opset : int or None

    Returns
    -------
    bytes
        As `to_onnx` writes: for `OnnxMetaLearner`.
    """
    model = export_learner(meta, None, None, opset_for(how, target_opset), None)
    feeds = _feeds(meta, model, draws) if how == "int8" else []
    (text,) = [p.value for p in model.metadata_props if p.key == "sk_meta"]
    with quiet():
        graph = model.graph
        share_constants(graph)
        weights = weights_of(linear_layers(meta.learner_), graph)
        fold_normalization(graph, weights)
        if how == "int8":
            found = products(graph, weights, meta.schema_.shape)
            static_products(model, found, rounding, feeds)
        elif how == "int8_dynamic":
            found = products(graph, weights, meta.schema_.shape)
            dynamic_products(graph, found, rounding)
        forget_unused(graph)
        left = {constant.name for constant in graph.initializer} & set(weights)
        nodes = [
            node
            for name in sorted(left)
            for node in _store(graph, name, weights[name], rounding)
        ]
        _put_first(graph, nodes)
        if how == "int4":
            model.ir_version = max(model.ir_version, _INT4_FORMAT)
        model = finished(model, json.loads(text))
        onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _feeds(meta, model, draws):
    """Inputs of the graph, for each task."""
    learner = OnnxMetaLearner(model.SerializeToString())
    feeds = []
    for X_support, y, metadata, X_query in draws:
        state, _ = learner.adapt_state(X_support, y, metadata=metadata)
        X_query = np.asarray(meta.schema_.check_features(X_query, "X"), np.float32)
        feeds.append({**state.feed, "X_query": X_query})
    return feeds


def _put_first(graph, nodes):
    nodes = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _store(graph, name, axis, rounding):
    """Keep a weight in few bits; nodes that make it what it was, once a file is loaded.

    A constant that is made from constants costs nothing later. An integer that
    `DequantizeLinear` makes a number would be computed in each run.
    """
    (constant,) = [c for c in graph.initializer if c.name == name]
    graph.initializer.remove(constant)
    weight = numpy_helper.to_array(constant)
    to_float = {"to": TensorProto.FLOAT}
    if rounding.bits == 16:
        half = numpy_helper.from_array(weight.astype(np.float16), f"{name}/half")
        graph.initializer.append(half)
        return [helper.make_node("Cast", [half.name], [name], **to_float)]
    weight = np.ascontiguousarray(np.moveaxis(weight, axis, 0))
    numbers, scale = stored(torch.from_numpy(weight), rounding)
    kind = TensorProto.INT4 if rounding.bits == 4 else TensorProto.INT8
    numbers = _integers(f"{name}/numbers", kind, numbers)
    scale = numpy_helper.from_array(scale.numpy(), f"{name}/scale")
    graph.initializer.extend([numbers, scale])
    steps = [
        helper.make_node("Cast", [numbers.name], [f"{name}/cast"], **to_float),
        helper.make_node("Mul", [f"{name}/cast", scale.name], [f"{name}/scaled"]),
    ]

    def then(kind, constants=(), **attributes):
        names = []
        for values in constants:
            names.append(f"{name}/constant_{len(steps)}_{len(names)}")
            array = np.array(values, dtype=np.int64)
            graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        last = [steps[-1].output[0], *names]
        made = [f"{name}/step_{len(steps)}"]
        steps.append(helper.make_node(kind, last, made, **attributes))

    n = weight[0].size
    if numbers.dims[1] * numbers.dims[2] > n:  # zeros that fill the last block
        then("Flatten", axis=1)
        then("Slice", ([0], [n], [1]))
    then("Reshape", (weight.shape,))
    if axis == 1:
        then("Transpose", perm=[1, 0])
    steps[-1].output[0] = name
    return steps


def _integers(name, kind, values):
    """A constant of 8-bit or 4-bit integers."""
    values = values.numpy().astype(np.int8)
    if kind == TensorProto.INT8:
        return numpy_helper.from_array(values, name)
    flat = values.ravel()
    flat = np.pad(flat, (0, len(flat) % 2)).view(np.uint8) & 15
    packed = flat[::2] | flat[1::2] << 4
    return helper.make_tensor(name, kind, values.shape, packed.tobytes(), raw=True)
