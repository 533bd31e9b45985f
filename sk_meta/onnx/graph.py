"""What an adapted estimator computes, as an ONNX graph made by torch."""

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy

import onnx
import onnxscript.optimizer
import torch
from onnx.inliner import inline_local_functions, inline_selected_functions
from onnx.version_converter import convert_version
from sklearn.base import is_classifier
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from sk_meta.learner import Gaussian
from sk_meta.onnx.folding import share_constants

_OLDEST_OF_TORCH = 18


class _Adapted(nn.Module):
    """A learner's scores for the rows of one task, its state held as buffers."""

    def __init__(self, few_shot):
        super().__init__()
        meta = few_shot._meta()
        self.row_shape = meta.schema_.shape
        self.learner = deepcopy(meta.learner_).cpu().eval()
        leaves, self.structure = tree_flatten(few_shot.state_)
        self.leaves = dict(enumerate(leaves))
        for position, leaf in enumerate(leaves):
            if torch.is_tensor(leaf):
                self.register_buffer(f"state_{position}", leaf.detach().cpu().clone())

    def scores(self, X):
        """(n, ...) -> what `Learner.predict` returns."""
        leaves = [getattr(self, f"state_{i}", leaf) for i, leaf in self.leaves.items()]
        return self.learner.predict(tree_unflatten(leaves, self.structure), X)


class _AdaptedClassifier(_Adapted):
    """Probabilities, as in `FewShotClassifier.predict_proba`, there in float64 too."""

    def __init__(self, few_shot):
        super().__init__(few_shot)
        self.n_known = few_shot._n_known
        self.register_buffer("columns", torch.as_tensor(few_shot._columns))

    def forward(self, X):
        """(n, ...) -> (n, n_classes)."""
        shared = self.scores(X)[:, : self.n_known].double().softmax(1)
        chosen = shared.index_select(1, self.columns)
        total = chosen.sum(1, keepdim=True)
        return torch.where(total > 0, chosen / total, 1 / chosen.shape[1])


class _AdaptedRegressor(_Adapted):
    """Means and, where asked for, standard deviations, in the targets' own units."""

    def __init__(self, few_shot, return_std):
        super().__init__(few_shot)
        schema = few_shot._meta().schema_
        self.return_std = return_std
        self.register_buffer("offset", torch.as_tensor(schema.target_mean))
        self.register_buffer("scale", torch.as_tensor(schema.target_scale))

    def forward(self, X):
        """(n, ...) -> (n, n_targets), or two of these."""
        scores = self.scores(X)
        mean = scores.mean if isinstance(scores, Gaussian) else scores
        mean = mean.double() * self.scale + self.offset
        if not self.return_std:
            return mean
        return mean, scores.variance.double().sqrt() * self.scale


def as_module(few_shot, return_std=False):
    """What an estimator adapted by a meta-learner computes, as a module.

    Returns
    -------
    torch.nn.Module
        Takes float32 rows of shape (n, *row_shape).
    """
    if is_classifier(few_shot):
        return _AdaptedClassifier(few_shot)
    return _AdaptedRegressor(few_shot, return_std)


def torch_graph(module, opset: int):
    """Export a module from `as_module`.

    Parameters
    ----------
    module : torch.nn.Module
    opset : int
        Version of the operators.

    Returns
    -------
    onnx.ModelProto
        One input, any number of rows; as many outputs as the module has.
    """
    # An odd number of rows, so that no length in the network equals it by chance.
    example = {"X": torch.zeros(7, *module.row_shape)}
    return to_graph(module, example, ({0: torch.export.Dim.DYNAMIC},), opset)


def to_graph(module, inputs, dynamic, opset: int, translations=None):
    """Export any module.

    Parameters
    ----------
    module : torch.nn.Module
    inputs : dict of tensors
        Examples, by the names that the graph's inputs shall have.
    dynamic : tuple
        Of each argument of `forward`, the axes whose length may change.
    opset : int
    translations : dict, default=None
        Operators of torch to onnxscript functions, for those that have no translation.

    Returns
    -------
    onnx.ModelProto
        Without local functions.
    """
    with quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            opset_version=max(opset, _OLDEST_OF_TORCH),
            custom_translation_table=translations,
            verbose=False,
        )
        model = _to_opset(inline_local_functions(program.model_proto), opset)
        _forget(model.graph)
        share_constants(model.graph)
        del model.metadata_props[:]
        return model


def _forget(graph):
    """Leave out what the exporter says of each node, most of a small file."""
    del graph.value_info[:]
    for node in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget(attribute.g)


def _to_opset(model, opset):
    made_for = next(
        o.version for o in model.opset_import if o.domain in ("", "ai.onnx")
    )
    if made_for == opset:
        return model
    # What the version converter stumbles over: operators that did not exist yet, and
    # an attribute of later reductions, even where it says what is the default.
    unknown = [kind for kind in _kinds(model) if not _exists(kind[1], opset)]
    if unknown:
        model = inline_selected_functions(model, unknown, inline_schema_functions=True)
        model = onnxscript.optimizer.optimize(model)
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name != "noop_with_empty_axes" or a.i]
        del node.attribute[:]
        node.attribute.extend(kept)
    try:
        model = convert_version(model, opset)
        onnx.checker.check_model(model)
    except Exception as error:
        raise ValueError(
            f"The network cannot be written with the operators of opset {opset}: "
            f"{error} Use target_opset={_OLDEST_OF_TORCH} or above."
        ) from error
    return model


def _kinds(model):
    return sorted({(node.domain, node.op_type) for node in model.graph.node})


def _exists(op_type, opset):
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


@contextmanager
def quiet():
    """No prints, warnings or log lines of the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
