"""to_onnx: an adapted estimator, or a whole meta-learner, as an ONNX file."""

from importlib.util import find_spec

import numpy as np
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor

_NEEDED = ("onnx", "onnxruntime", "onnxscript", "skl2onnx")
_OPSETS = (15, 22)


def to_onnx(
    model,
    path=None,
    *,
    X=None,
    target_opset=None,
    zipmap=False,
    return_std=False,
    tolerance=None,
):
    """Write an adapted model, or a whole meta-learner, as ONNX; checked in onnxruntime.

    An adapted model becomes a graph from rows to predictions. A meta-learner becomes
    one that adapts: from support set and query rows to predictions, its inner loop an
    ONNX Loop; `OnnxMetaLearner` runs it without torch.

    Parameters
    ----------
    model : FewShotClassifier, FewShotRegressor, meta-learner, or Pipeline ending in one
        Fitted. Transformers before an adapted model are converted by skl2onnx, those
        before a meta-learner too: they must be of scope "pooled". Of a search, the
        best estimator is written.
    path : str or path-like, default=None
        Where to write; None writes nothing.
    X : array of shape (n_rows, ...) or DataFrame, default=None
        Rows as the model takes them: they set the types of the inputs, and serve for
        the check. A DataFrame gives one input per column, of a meta-learner only where
        transformers stand before it. None means one float32 input, and random rows for
        the check.
    target_opset : int, default=None
        Version of the ONNX operators: 15 to 22 for an adapted model, None meaning the
        latest; 18 to 22 for a meta-learner, None meaning 20.
    zipmap : bool or "columns", default=False
        Probabilities of an adapted classifier as one tensor (n_rows, n_classes), as a
        list of dictionaries by label (True), or as one output per class ("columns").
    return_std : bool, default=False
        Whether an adapted regressor puts out standard deviations too. A meta-learner
        does, if its method has them.
    tolerance : float, default=None
        Largest difference between file and model that is accepted: of a probability,
        or of a target relative to the range of its predictions (of a meta-learner: to
        the targets' standard deviation). None means 1e-5, and 1e-3 where the network
        has convolutions, whose sums torch and onnxruntime add up in another order; of a
        meta-learner ten times that. Ten times what a change of the last bit of X does
        to the model is accepted as well. Labels must be the same, unless the two
        largest probabilities differ by less than twice this.

    Returns
    -------
    onnx.ModelProto
        Of an adapted model: with the inputs "X", or one per column; any number of rows.
        Outputs of a classifier: label and probabilities, in the order of `classes_`.
        Outputs of a regressor: mean ("variable") and, with `return_std`, standard
        deviation ("std"), each of shape (n_rows, n_targets). Labels are the original
        strings, integers or booleans.

        Of a meta-learner: with the inputs "X_support", "y_support" (class numbers 0, 1,
        ..., or targets (n_support, n_targets) in float64), "X_query", and where the
        method has them "metadata" and "n_steps", the latter with a default. Outputs:
        "probabilities", or "mean" and "std". All lengths may change, the number of
        classes too where the method takes any. What the numbers stand for is in the
        file's metadata.

    Raises
    ------
    ValueError
        If the file says something else than the model, if an operator does not exist
        in `target_opset`, or if a layer of a meta-learner's network has no translation.
    ImportError
        If a package that the export needs is not installed.

    Examples
    --------
    >>> from sk_meta import FewShotClassifier
    >>> from sk_meta.onnx import to_onnx
    >>> model = FewShotClassifier().fit([[0.0], [1.0]], ["low", "high"])
    >>> [output.name for output in to_onnx(model).graph.output]
    ['label', 'probabilities']
    """
    _require()
    import onnx
    import skl2onnx

    from sk_meta.onnx.checking import check_onnx, default_tolerance
    from sk_meta.onnx.graph import quiet
    from sk_meta.onnx.learner_export import export_learner, require_network

    model = getattr(model, "best_estimator_", model)
    if _is_meta_learner(model):
        if zipmap or return_std:
            raise ValueError(
                "zipmap and return_std are for adapted models. The file of a "
                "meta-learner puts out the standard deviations that there are."
            )
        return export_learner(model, path, X, target_opset, tolerance)
    few_shot = _few_shot_of(model)
    require_network(few_shot._meta())
    _check_options(few_shot, target_opset, zipmap, return_std)
    X = example_rows(model, few_shot) if X is None else _as_rows(X)
    if tolerance is None:
        tolerance = default_tolerance(few_shot._meta())
    given = {"zipmap": zipmap}
    if not is_classifier(few_shot):
        given = {"return_std": return_std}
    with quiet():
        onnx_model = skl2onnx.to_onnx(
            model, X, target_opset=target_opset, options={id(few_shot): given}
        )
        check_onnx(
            onnx_model,
            model,
            X,
            return_std=return_std,
            zipmap=zipmap,
            tolerance=tolerance,
        )
    if path is not None:
        onnx.save(onnx_model, path)
    return onnx_model


def _require():
    missing = [name for name in _NEEDED if not find_spec(name)]
    if missing:
        raise ImportError(
            f"Exporting to ONNX needs {', '.join(missing)}, not installed here. Run "
            'pip install "sk_meta[onnx]".'
        )


def _is_meta_learner(model):
    """Whether it is a meta-learner, or a Pipeline that ends in one."""
    while isinstance(model, Pipeline | FrozenEstimator):
        model = model.steps[-1][1] if isinstance(model, Pipeline) else model.estimator
    return hasattr(model, "adapt_state")


def _few_shot_of(model):
    """The adapted estimator at the end of a model."""
    last = model
    while isinstance(last, Pipeline | FrozenEstimator):
        last = last.steps[-1][1] if isinstance(last, Pipeline) else last.estimator
    if hasattr(last, "learner") and not hasattr(last, "meta_learner"):
        raise TypeError(
            f"{type(last).__name__} is adapted from a file, which adapts wherever it "
            "goes. To write an adapted model, adapt with torch."
        )
    if not isinstance(last, FewShotClassifier | FewShotRegressor):
        raise TypeError(
            "Expected a FewShotClassifier, a FewShotRegressor or a Pipeline that ends "
            f"in one; got {type(last).__name__}. skl2onnx.to_onnx may convert it."
        )
    check_is_fitted(last)
    return last


def _check_options(few_shot, target_opset, zipmap, return_std):
    if zipmap not in (True, False, "columns"):
        raise ValueError(f"zipmap must be True, False or 'columns', got {zipmap!r}.")
    if is_classifier(few_shot) and return_std:
        raise ValueError("return_std=True is for regressors; this is a classifier.")
    if zipmap and not is_classifier(few_shot):
        raise ValueError(f"zipmap={zipmap!r} is for classifiers; this is a regressor.")
    low, high = _OPSETS
    if target_opset is not None and not low <= target_opset <= high:
        raise ValueError(
            f"target_opset must be from {low} to {high}, got {target_opset}."
        )


def _as_rows(X):
    X = X if hasattr(X, "columns") else np.asarray(X)
    if not len(X):
        raise ValueError("X has no rows. Pass at least one.")
    return X


def example_rows(model, few_shot):
    """Random rows of the right shape."""
    if model is not few_shot and hasattr(model, "feature_names_in_"):
        raise ValueError(
            "The model was fitted on a DataFrame, whose columns are inputs of the file."
            " Pass some rows, X=X_support, to tell their types."
        )
    shape = (model.n_features_in_,)
    if model is few_shot and few_shot._meta() is not None:
        shape = few_shot._row_shape  # of images too, unless they came flattened
    rng = np.random.default_rng(0)
    return rng.standard_normal((64, *shape)).astype(np.float32)
