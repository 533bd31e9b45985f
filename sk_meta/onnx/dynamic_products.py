"""Products in 8-bit integers, whose ranges are those of each run."""

import numpy as np
from onnx import helper, numpy_helper

from sk_meta.compression.rounding import Rounding
from sk_meta.onnx.integer_products import replace_nodes, rounded_weight, values_of

_MIDDLE = 128


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
    replace_nodes(graph, nodes)


def _add_dynamic_weight(graph, product, rounding):
    """Integers, scale and bias of a product, of the shapes that they are used in."""
    node, name = product.node, product.weight
    numbers, scale = rounded_weight(graph, product, rounding)
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
        arrays["bias"] = values_of(graph, node.input[2]).reshape(shape)
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
