"""Files of learners that fit on a page: class means, and the mean of the targets."""

import json

import numpy as np
import onnx
import pandas as pd
from onnx import parser

from sk_meta.onnx.inspect_file import checksum_of

LABELS = np.array(["ill", "well", "who knows"])


def rows(n=12, seed=0):
    """X of four features, and y as numbers of three classes that X depends on."""
    y = np.arange(n) % 3
    X = np.random.default_rng(seed).normal(size=(n, 4)) + y[:, None]
    return X, y


def frame(X):
    return pd.DataFrame(X, columns=["age", "weight", "pulse", "noise"])


CLASS_MEANS = """
<ir_version: 9, opset_import: ["" : 18]>
learner (float[n_support, 4] X_support, int64[n_support] y_support,
         float[n_query, 4] X_query) => (float[n_query, n_classes] probabilities)
{
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    axis_1 = Constant<value_ints = [1]>()
    axis_2 = Constant<value_ints = [2]>()
    last = ReduceMax<keepdims = 0>(y_support)
    n_classes = Add(last, one)
    classes = Range(zero, n_classes, one)
    column = Unsqueeze(y_support, axis_1)
    same = Equal(column, classes)
    member = Cast<to = 1>(same)
    turned = Transpose<perm = [1, 0]>(member)
    total = MatMul(turned, X_support)
    count = ReduceSum(turned, axis_1)
    means = Div(total, count)
    apart = Unsqueeze(X_query, axis_1)
    difference = Sub(apart, means)
    square = Mul(difference, difference)
    distance = ReduceSum<keepdims = 0>(square, axis_2)
    logits = Neg(distance)
    probabilities = Softmax<axis = 1>(logits)
}
"""
TARGET_MEANS = """
<ir_version: 9, opset_import: ["" : 18]>
learner (float[n_support, 4] X_support, double[n_support, n_targets] y_support,
         float[n_query, 4] X_query) => (double[n_query, n_targets] mean)
{
    axis_0 = Constant<value_ints = [0]>()
    axis_1 = Constant<value_ints = [1]>()
    middle = ReduceMean(y_support, axis_0)
    nothing = ReduceSum(X_query, axis_1)
    none = Sub(nothing, nothing)
    zeros = Cast<to = 11>(none)
    mean = Add(middle, zeros)
}
"""
# With a task's description, which moves all logits of the first class.
DESCRIBED = CLASS_MEANS.replace(
    "float[n_query, 4] X_query", "float[n_query, 4] X_query, float[2] metadata"
).replace(
    "logits = Neg(distance)",
    """summed = ReduceSum<keepdims = 0>(metadata)
    first = Equal(classes, zero)
    marked = Cast<to = 1>(first)
    moved = Mul(marked, summed)
    logits = Sub(moved, distance)""",
)
# What steps do to a number that stays 0, as long as a condition holds.
LOOP = """
    begin = Constant<value_float = 0.0>()
    true = Constant<value_int = 1>()
    go = Cast<to = 9>(true)
    number = Loop({limit}, go, begin)
        <body = step (int64 i, bool condition, float x) => (bool again, float y)
            {{ y = Add(x, x) again = Identity(condition) }}>
    logits = Add(logits_before, number)
"""


def with_loop(limit="n_steps"):
    """CLASS_MEANS with a loop of as many steps; "" for one without an end."""
    query = "float[n_query, 4] X_query"
    text = CLASS_MEANS.replace(query, f"{query}, int64 n_steps")
    text = text.replace("logits = Neg", "logits_before = Neg")
    return text.replace(
        "    probabilities", LOOP.format(limit=limit) + "    probabilities"
    )


def by_column(columns):
    """CLASS_MEANS with an input for each of four columns that are no strings."""
    types = {"float": "float", "int": "int64", "bool": "bool"}
    text, before = CLASS_MEANS, ""
    for part, length in (("X_support", "n_support"), ("X_query", "n_query")):
        inputs = [
            f"{types[kind]}[{length}, 1] {part}__{name}"
            for name, kind in columns.items()
        ]
        text = text.replace(f"float[{length}, 4] {part}", ", ".join(inputs))
        casts = [f"{part}_{name}" for name in columns]
        for name, cast in zip(columns, casts, strict=True):
            before += f"    {cast} = Cast<to = 1>({part}__{name})\n"
        before += f"    {part} = Concat<axis = 1>({', '.join(casts)})\n"
    model = parser.parse_model(text.replace("{\n", "{\n" + before, 1))
    for value in model.graph.input:
        value.name = value.name.replace("__", "/")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", "/") for name in node.input]
    return model


def with_imputer(value):
    """CLASS_MEANS where NaN in rows counts as a value."""
    model = parser.parse_model(CLASS_MEANS)
    for node in model.graph.node:
        node.input[:] = [f"{n}_full" if n[:2] == "X_" else n for n in node.input]
    for part in ("X_support", "X_query"):
        imputer = onnx.helper.make_node(
            "Imputer",
            [part],
            [f"{part}_full"],
            domain="ai.onnx.ml",
            imputed_value_floats=[value],
            replaced_value_float=float("nan"),
        )
        model.graph.node.insert(0, imputer)
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    return model


DESCRIPTION = {
    "format": 1,
    "method": "ToyClassifier",
    "kind": "classifier",
    "labels": "local",
    "classes": None,
    "label_kind": None,
    "most_classes": None,
    "unlabeled": None,
    "n_targets": 0,
    "multi_output": False,
    "row_shape": [4],
    "feature_names": None,
    "columns": None,
    "n_metadata": 0,
    "metadata_names": None,
    "n_steps": None,
    "sk_meta": "0.1.0",
}
SHARED = {"labels": "shared", "classes": LABELS.tolist(), "label_kind": "str"}
REGRESSOR = {"kind": "regressor", "labels": None, "n_targets": 1}


def toy(graph=CLASS_MEANS, **changes) -> bytes:
    """A file with a description and a checksum, as `to_onnx` writes it."""
    model = parser.parse_model(graph) if isinstance(graph, str) else graph
    return sealed(model, json.dumps(DESCRIPTION | changes))


def sealed(model, text) -> bytes:
    """A model's bytes with a text that describes it and a checksum."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    copy.metadata_props.add(key="sk_meta", value=text)
    data = copy.SerializeToString()
    return data + checksum_of(data)
