"""Converters for skl2onnx."""

import numpy as np
import onnx
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx._parse import (
    _parse_sklearn,
    _parse_sklearn_simple_model,
    sklearn_parsers_map,
    update_registered_parser,
)
from skl2onnx.common.data_types import (
    BooleanTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
    guess_proto_type,
    guess_tensor_type,
)
from skl2onnx.common.utils_classifier import get_label_classes
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor
from sk_meta.onnx.splice import splice

_CLASSIFIER_OPTIONS = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
}


def register():
    """Make skl2onnx know the estimators that `adapt` returns."""
    update_registered_converter(
        FewShotClassifier,
        "SkMetaFewShotClassifier",
        _classifier_shapes,
        _convert_classifier,
        options=_CLASSIFIER_OPTIONS,
    )
    update_registered_converter(
        FewShotRegressor,
        "SkMetaFewShotRegressor",
        _regressor_shapes,
        _convert_regressor,
        parser=_parse_regressor,
        options={"return_std": [False, True]},
    )
    if FrozenEstimator not in sklearn_parsers_map:
        update_registered_parser(FrozenEstimator, _parse_frozen)


def _parse_frozen(scope, model, inputs, custom_parsers=None):
    """A frozen estimator is what it holds."""
    inner, options = model.estimator, scope.options or {}
    if id(model) in options and id(inner) not in options:
        scope.add_options(id(inner), options[id(model)])
    return _parse_sklearn(scope, inner, inputs, custom_parsers=custom_parsers)


def _parse_regressor(scope, model, inputs, custom_parsers=None):
    outputs = _parse_sklearn_simple_model(scope, model, inputs, custom_parsers)
    if scope.get_options(model, {"return_std": False})["return_std"]:
        if not _gives_std(model):
            raise ValueError(
                "This regressor gives no standard deviation. Adapt a method that does, "
                "such as ALPaCARegressor, or leave out return_std=True."
            )
        kind = guess_tensor_type(inputs[0].type)
        # The list is the operator's own.
        outputs.append(scope.declare_local_variable("std", kind))
    return outputs


def _gives_std(few_shot):
    meta = few_shot._meta()
    if meta is None:
        return False
    row = np.zeros((1, *meta.schema_.shape), dtype=np.float32)
    return meta.apply_state(few_shot.state_, row, 0)[1] is not None


def _classifier_shapes(operator):
    few_shot, scope = operator.raw_operator, operator.scope_inst
    n_rows = operator.inputs[0].get_first_dimension()
    classes = get_label_classes(scope, few_shot)
    zipmap = scope.get_options(few_shot, {"zipmap": True})["zipmap"]
    kind = _label_kind(classes, bool(zipmap))
    operator.outputs[0].set_type(kind([n_rows]))
    shape = [n_rows, len(classes)]
    if zipmap is True:  # the ZipMap operator takes float32 only
        operator.outputs[1].set_type(FloatTensorType(shape))
    else:
        operator.outputs[1].type.shape = shape


def _label_kind(classes, zipmap):
    if isinstance(classes[0], str):
        return StringTensorType
    if classes.dtype.kind == "b" and not zipmap:  # skl2onnx's zipmap makes them int64
        return BooleanTensorType
    return Int64TensorType


def _regressor_shapes(operator):
    n_rows = operator.inputs[0].get_first_dimension()
    few_shot = operator.raw_operator
    meta = few_shot._meta()
    n_targets = (
        np.atleast_2d(few_shot.state_.coef_).shape[0]
        if meta is None
        else meta.schema_.n_outputs
    )
    for output in operator.outputs:
        output.type.shape = [n_rows, n_targets]


def _convert_classifier(scope, operator, container):
    few_shot = operator.raw_operator
    (found,) = _outputs_of(scope, operator, container, return_std=False)
    label, probabilities = operator.outputs
    _cast(scope, container, found, probabilities)
    best = _add(scope, container, "ArgMax", [found], axis=1, keepdims=0)
    classes = get_label_classes(scope, few_shot)
    element = guess_proto_type(label.type)
    if element == TensorProto.STRING:
        values = [str(value).encode() for value in classes]
    else:
        values = [int(value) for value in classes]
    names = scope.get_unique_variable_name("classes")
    container.add_initializer(names, element, [len(values)], values)
    _add(scope, container, "Gather", [names, best], output=label.full_name, axis=0)


def _convert_regressor(scope, operator, container):
    return_std = len(operator.outputs) > 1
    found = _outputs_of(scope, operator, container, return_std)
    for name, output in zip(found, operator.outputs, strict=True):
        _cast(scope, container, name, output)


def _outputs_of(scope, operator, container, return_std):
    """Put what the estimator computes into the container; names of its outputs."""
    few_shot = operator.raw_operator
    if few_shot._meta() is None:
        rows = _rows(scope, operator, container, TensorProto.DOUBLE)
        if is_classifier(few_shot):
            return [_class_means(scope, container, few_shot, rows)]
        ridge = few_shot.state_
        weights, bias = np.atleast_2d(ridge.coef_).T, np.atleast_1d(ridge.intercept_)
        return [_affine(scope, container, rows, weights, bias)]
    from sk_meta.onnx.graph import as_module, torch_graph

    module = as_module(few_shot, return_std)
    rows = _rows(scope, operator, container, TensorProto.FLOAT, module.row_shape)
    return splice(
        scope, container, torch_graph(module, container.target_opset_onnx), [rows]
    )


def _class_means(scope, container, few_shot, rows):
    """Probabilities without a learned prior: softmax of minus squared distances.

    What is common to all classes is left out, which leaves an affine map.
    """
    means, variance = few_shot.state_
    centre = means.mean(axis=0)
    means = means - centre
    rows = _add(scope, container, "Sub", [rows, _constant(scope, container, centre)])
    weights, bias = means.T / variance, -(means**2).sum(axis=1) / (2 * variance)
    logits = _affine(scope, container, rows, weights, bias)
    return _add(scope, container, "Softmax", [logits], axis=1)


def _affine(scope, container, rows, weights, bias):
    product = _add(
        scope, container, "MatMul", [rows, _constant(scope, container, weights)]
    )
    return _add(scope, container, "Add", [product, _constant(scope, container, bias)])


def _rows(scope, operator, container, element, shape=()):
    """The operator's inputs as one tensor of a type, with rows of a shape."""
    parts = [variable.full_name for variable in operator.inputs]
    for position, variable in enumerate(operator.inputs):
        if guess_proto_type(variable.type) != element:
            name = parts[position]
            parts[position] = _add(scope, container, "Cast", [name], to=element)
    rows = parts[0]
    if len(parts) > 1:  # one input per column
        rows = _add(scope, container, "Concat", parts, axis=1)
    if len(shape) < 2 or len(operator.inputs[0].type.shape) == 1 + len(shape):
        return rows
    shape = _constant(scope, container, np.array([-1, *shape]))
    return _add(scope, container, "Reshape", [rows, shape])


def _constant(scope, container, values):
    name = scope.get_unique_variable_name("constant")
    container.initializers.append(onnx.numpy_helper.from_array(values, name))
    return name


def _add(scope, container, op_type, inputs, output=None, **attributes):
    output = output or scope.get_unique_variable_name(op_type.lower())
    name = scope.get_unique_operator_name(op_type)
    container.add_node(op_type, inputs, [output], name=name, **attributes)
    return output


def _cast(scope, container, name, variable):
    """Give a variable the value of a tensor, in the variable's type."""
    to = guess_proto_type(variable.type)
    _add(scope, container, "Cast", [name], output=variable.full_name, to=to)
