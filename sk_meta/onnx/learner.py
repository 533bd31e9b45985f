"""A whole meta-learner as one ONNX graph: it adapts where onnxruntime runs."""

import json
from copy import deepcopy
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import compose, helper, numpy_helper
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sk_meta.compression.masking import unmask
from sk_meta.learner import EmbeddingLearner, Gaussian, Support
from sk_meta.onnx.blame import blamed_layer
from sk_meta.onnx.description import FORMAT
from sk_meta.onnx.graph import to_graph
from sk_meta.onnx.inspect_file import checksum_of
from sk_meta.onnx.linear_algebra import TRANSLATIONS
from sk_meta.onnx.tracing import LearnerGraph

_LABEL_KINDS = {"U": "str", "i": "int", "u": "int", "f": "float", "b": "bool"}


class Inputs(NamedTuple):
    """What the traced graph takes, in this order; None for what a learner lacks.

    Attributes
    ----------
    X_support : float32 tensor of shape (n_support, ...)
    y_support : int64 tensor (n_support,), or float64 tensor (n_support, n_targets)
    classes : int64 tensor of shape (n_classes,)
        0, 1, ...; only where labels are local: their number is not known before.
    metadata : float32 tensor of shape (m,)
    X_query : float32 tensor of shape (n_query, ...)
    """

    X_support: torch.Tensor
    y_support: torch.Tensor
    classes: torch.Tensor | None
    metadata: torch.Tensor | None
    X_query: torch.Tensor


class _Adapting:
    """From support set and query rows to what the file puts out."""

    def __init__(self, schema, names):
        self.schema, self.names = schema, names

    def __call__(self, learner, *values):
        """(learner, tensors called `names`) -> tuple of outputs."""
        given = dict.fromkeys(Inputs._fields) | dict(
            zip(self.names, values, strict=True)
        )
        inputs = Inputs(**given)
        if self.schema.classification:
            return (self._probabilities(learner, inputs),)
        return self._targets(learner, inputs)

    def _probabilities(self, learner, inputs):
        """As `FewShotClassifier.predict_proba`: of the classes in the support set."""
        y, schema = inputs.y_support, self.schema
        shared = inputs.classes is None
        classes = torch.arange(len(schema.classes)) if shared else inputs.classes
        support = Support(inputs.X_support, y, None, classes.shape[0], inputs.metadata)
        scores = learner.predict(learner.adapt(support), inputs.X_query)
        found = scores.index_select(1, classes).double().softmax(1)
        present = (y[:, None] == classes).any(0).double()
        found = found * present
        total = found.sum(1, keepdim=True)
        return torch.where(total > 0, found / total, present / present.sum()).float()

    def _targets(self, learner, inputs):
        """Means, and standard deviations if there are any, in the targets' units."""
        mean, scale = (
            torch.as_tensor(part, dtype=torch.float64)
            for part in (self.schema.target_mean, self.schema.target_scale)
        )
        y = ((inputs.y_support - mean) / scale).float()
        support = Support(inputs.X_support, y, None, 0, inputs.metadata)
        scores = learner.predict(learner.adapt(support), inputs.X_query)
        if not isinstance(scores, Gaussian):
            return (scores.double() * scale + mean,)
        std = scores.variance.double().sqrt() * scale
        return scores.mean.double() * scale + mean, std


def example_inputs(meta):
    """Rows of zeros and labels, of sizes that no other length equals by chance."""
    schema = meta.schema_
    local = schema.classification and schema.labels == "local"
    X = [torch.zeros(n, *schema.shape) for n in (31, 37)]
    n_classes = 2 if local else len(schema.classes) if schema.classification else 0
    y = (
        torch.arange(31) % n_classes
        if schema.classification
        else torch.zeros(31, schema.n_outputs, dtype=torch.float64)
    )
    metadata = None if schema.metadata is None else torch.zeros(len(schema.metadata[1]))
    return Inputs(X[0], y, torch.arange(n_classes) if local else None, metadata, X[1])


def learner_graph(meta, target_opset):
    """The learner of a fitted meta-learner as an ONNX model.

    Parameters
    ----------
    meta : fitted meta-learner
    target_opset : int

    Returns
    -------
    model : onnx.ModelProto
        Inputs and outputs as `to_onnx` says; no transformers and no description yet.
    n_steps : int or None
        Steps of the inner loop, if there is one.
    """
    learner = deepcopy(meta.learner_).cpu().eval()
    learner.way = "vmap"  # as there, no operations that a CPU alone has
    if type(learner).adapt is EmbeddingLearner.adapt:  # no step moves a weight
        unmask(learner)
    given = {k: v for k, v in example_inputs(meta)._asdict().items() if v is not None}
    adapting = _Adapting(meta.schema_, tuple(given))
    any_length = {0: torch.export.Dim.DYNAMIC}
    dynamic = [{} if name == "metadata" else any_length for name in given]
    values = tuple(given.values())
    try:
        graph = LearnerGraph(learner, adapting, values).eval()
        if graph.n_steps is not None:
            given["n_steps"] = torch.tensor(graph.n_steps)
            dynamic.append({})
        # Its `forward` takes (*inputs): one argument, a tuple.
        dynamic = (tuple(dynamic),)
        model = to_graph(graph, given, dynamic, target_opset, TRANSLATIONS)
    except Exception as error:
        layer = blamed_layer(learner, adapting, values, error)
        raise ValueError(
            f"{type(meta).__name__} cannot be written as one ONNX graph: "
            f"{f'the layer {layer}' if layer else 'its network'} has no translation, "
            "or its gradient has none. Use other layers, or adapt first and export "
            "the adapted model, which needs no gradient."
        ) from error
    gaussian = len(model.graph.output) > 1
    classification = meta.schema_.classification
    outputs = ["probabilities"] if classification else ["mean", "std"][: 1 + gaussian]
    _name_outputs(model, outputs)
    if "classes" in given:
        _count_classes(model)
    if graph.n_steps is not None:
        default = np.array(graph.n_steps, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(default, "n_steps"))
    _name_lengths(model)
    return model, graph.n_steps


def _name_outputs(model, names):
    """Call the outputs so, and nothing inside."""
    for value, name in zip(model.graph.output, names, strict=True):
        _rename(model.graph, name, f"{name}/inside")
        model.graph.node.append(helper.make_node("Identity", [value.name], [name]))
        value.name = name


def _rename(graph, old, new):
    """Call a value otherwise, also where subgraphs use it."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)


def _count_classes(model):
    """Compute the input `classes` from the class numbers of the support set."""
    graph = model.graph
    zero, one = (
        numpy_helper.from_array(np.array(value), name)
        for value, name in ((0, "class_zero"), (1, "class_one"))
    )
    counting = [
        helper.make_node("ReduceMax", ["y_support"], ["last_class"], keepdims=0),
        helper.make_node("Add", ["last_class", "class_one"], ["n_classes"]),
        helper.make_node(
            "Range", ["class_zero", "n_classes", "class_one"], ["classes"]
        ),
    ]
    nodes = [*counting, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([zero, one])
    _keep(graph.input, [v for v in graph.input if v.name != "classes"])


def _keep(field, values):
    """Leave these in a repeated field."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def _name_lengths(model):
    """Give the lengths that may change names, and forget those inside."""
    graph = model.graph
    lengths = {"X_support": "n_support", "y_support": "n_support", "X_query": "n_query"}
    for value in (*graph.input, *graph.output):
        name, _, _ = value.name.partition("/")
        shape = value.type.tensor_type.shape.dim
        if name in ("probabilities", "mean", "std", *lengths):
            shape[0].dim_param = lengths.get(name, "n_query")
        if name == "probabilities" and not shape[1].dim_value:
            shape[1].dim_param = "n_classes"
    graph.ClearField("value_info")


def with_transformers(model, transformers, X, target_opset):
    """Put fitted transformers before `X_support` and `X_query`.

    Parameters
    ----------
    model : onnx.ModelProto
    transformers : list of (name, fitted sklearn transformer)
    X : array or DataFrame
        Example rows, for the types of the inputs.
    target_opset : int

    Returns
    -------
    onnx.ModelProto
        Its inputs take rows as the first transformer does: one float32 input, or one
        for each column of a DataFrame.
    """
    import skl2onnx

    frozen = [(name, FrozenEstimator(step)) for name, step in transformers]
    before = skl2onnx.to_onnx(Pipeline(frozen), X[:1], target_opset=target_opset)
    # The newer of two versions of the format is understood by whoever has both.
    before.ir_version = model.ir_version = max(before.ir_version, model.ir_version)
    order = [value.name for value in model.graph.input]
    for rows in ("X_support", "X_query"):
        _rename(model.graph, rows, f"{rows}/transformed")
        part = compose.add_prefix(before, f"{rows}/")
        if not hasattr(X, "columns"):
            _rename(part.graph, part.graph.input[0].name, rows)
        (output,) = part.graph.output
        joined = [(_as_float32(part.graph, output), f"{rows}/transformed")]
        model = compose.merge_models(part, model, io_map=joined)
    inputs = sorted(
        model.graph.input, key=lambda value: order.index(value.name.partition("/")[0])
    )
    _keep(model.graph.input, inputs)
    _name_lengths(model)
    return model


def _as_float32(graph, output):
    """Cast an output, which a transformer may give in another type."""
    name = f"{output.name}/float32"
    to = onnx.TensorProto.FLOAT
    graph.node.append(helper.make_node("Cast", [output.name], [name], to=to))
    output.name = name
    output.type.tensor_type.elem_type = to
    return name


def description(meta, n_steps, first=None, columns=None):
    """What a runtime must know of a learner besides its graph, for JSON.

    Parameters
    ----------
    meta : fitted meta-learner
    n_steps : int or None
        Of its inner loop.
    first : fitted transformer, default=None
        The first before it: the rows of the file are those that it takes.
    columns : dict, default=None
        Kinds of the columns, where each is an input.
    """
    schema = meta.schema_
    local = schema.classification and schema.labels == "local"
    classes = None if local or not schema.classification else schema.classes.tolist()
    names, shape = schema.names, schema.shape
    if first is not None:
        names = getattr(first, "feature_names_in_", None)
        shape = (first.n_features_in_,)
    metadata = schema.metadata
    return {
        "format": FORMAT,
        "method": type(meta).__name__,
        "kind": "classifier" if schema.classification else "regressor",
        "labels": schema.labels if schema.classification else None,
        "classes": classes,
        "label_kind": None if classes is None else _label_kind(schema.classes),
        "most_classes": meta._most_classes() if schema.classification else None,
        "unlabeled": getattr(meta, "unlabeled", None),
        "n_targets": 0 if schema.classification else schema.n_outputs,
        "multi_output": schema.multi_output,
        "row_shape": [int(length) for length in shape],
        "feature_names": None if names is None else [str(name) for name in names],
        "columns": columns,
        "n_metadata": 0 if metadata is None else len(metadata.mean),
        "metadata_names": None
        if metadata is None or metadata.names is None
        else [str(name) for name in metadata.names],
        "n_steps": n_steps,
        "sk_meta": version("sk_meta"),
    }


def _label_kind(classes):
    return _LABEL_KINDS.get(classes.dtype.kind, "str")


def finished(model, described) -> onnx.ModelProto:
    """Put the description and, last, the checksum of all before it into a model."""
    _keep(
        model.metadata_props,
        [p for p in model.metadata_props if not p.key.startswith("sk_meta")],
    )
    model.producer_name = "sk_meta"
    text = json.dumps(described, allow_nan=False)
    model.metadata_props.add(key="sk_meta", value=text)
    data = model.SerializeToString(deterministic=True)
    return onnx.ModelProto.FromString(data + checksum_of(data))
