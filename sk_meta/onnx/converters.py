"""Converters for skl2onnx."""

import numpy as np
import onnx
from onnx import TensorProto
from sklearn.frozen import FrozenEstimator

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

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor

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
    inner = model.estimator
    given = (scope.options or {}).get(id(model))
    if given:
        scope.add_options(id(inner), given)
    return _parse_sklearn(scope, inner, inputs, custom_parsers=custom_parsers)


def _parse_regressor(scope, model, inputs, custom_parsers=None):
    outputs = _parse_sklearn_simple_model(scope, model, inputs, custom_parsers)
    if scope.get_options(model, {"return_std": False})["return_std"]:
        kind = guess_tensor_type(inputs[0].type)
        # The list is the operator's own.
        outputs.append(scope.declare_local_variable("std", kind))
    return outputs


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
    if classes.dtype.kind in "USO":
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
    probabilities = _Nodes(scope, container).rows_to(
        operator, operator.raw_operator, ["probabilities"], return_std=False
    )[0]
    nodes = _Nodes(scope, container)
    label, output = operator.outputs
    nodes.cast(probabilities, output)
    best = nodes.add("ArgMax", [probabilities], axis=1, keepdims=0)
    classes = get_label_classes(scope, operator.raw_operator)
    proto_type = guess_proto_type(label.type)
    if proto_type == TensorProto.STRING:
        values = [str(value).encode() for value in classes]
    else:
        values = [int(value) for value in classes]
    names = scope.get_unique_variable_name("classes")
    container.add_initializer(names, proto_type, [len(values)], values)
    nodes.add("Gather", [names, best], output=label.full_name, axis=0)


def _convert_regressor(scope, operator, container):
    return_std = len(operator.outputs) > 1
    raise NotImplementedError
