"""A meta-learner out of its ONNX file: it adapts without torch.

Imports numpy, onnxruntime and scikit-learn, nothing else.
"""

from numbers import Integral
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.utils._param_validation import Interval

from sk_meta.few_shot import FewShotClassifier, FewShotRegressor
from sk_meta.onnx.description import MOST_STEPS, read_description
from sk_meta.onnx.inspect_file import check_checksum, inspect_file
from sk_meta.onnx.rows import INPUT_TYPES, inputs_by_column, one_input
from sk_meta.onnx.session import Session, check_options, content_of
from sk_meta.tasks.metadata import Description, check_metadata, numeric_metadata
from sk_meta.tasks.unlabeled import labeled_rows
from sk_meta.tasks.validation import Schema, labels_in, target_array

_STEPS = [Interval(Integral, 0, MOST_STEPS, closed="both"), None]


class _State(NamedTuple):
    """A support set: the graph adapts to it anew in each prediction."""

    feed: dict
    n_steps: int | None


class OnnxMetaLearner:
    """A meta-learner from a file that `to_onnx` wrote, without torch.

    Parameters
    ----------
    file : str, path-like, bytes or binary file object
        The file, its content, or an open file.
    n_threads : int, default=1
        Threads of onnxruntime.
    time_limit : float, default=60
        Seconds after which an inner loop in the file is stopped, with a TimeoutError.
        None sets no limit.

    Attributes
    ----------
    method : str
        Class of the meta-learner, such as "MAMLClassifier".
    n_steps : int or None
        Steps of the inner loop unless `adapt` is told another number; None for methods
        without an inner loop.
    n_features_in_ : int
        Numbers in a row.
    feature_names_in_ : array of str
        Only if it was meta-trained on DataFrames.
    classes_ : array
        All labels, only where they are shared between tasks.

    Raises
    ------
    ValueError
        If `to_onnx` did not write the file, if it was changed since, or if it holds
        what `to_onnx` never writes, such as references to other files. Nothing in the
        file is evaluated or imported.

    Notes
    -----
    Cloning gives the same object: it holds nothing that `fit` changes. A pickle
    contains the file.

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, TaskNet
    >>> from sk_meta.onnx import OnnxMetaLearner, to_onnx
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(9, n_classes=2, random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0).fit(old)
    >>> learner = OnnxMetaLearner(to_onnx(meta).SerializeToString())
    >>> few_shot = learner.adapt(new.X_support, new.y_support)
    >>> few_shot.predict(new.X_query).shape == new.y_query.shape
    True
    """

    def __init__(self, file, *, n_threads=1, time_limit=60):
        check_options(n_threads, time_limit)
        self.n_threads, self.time_limit = n_threads, time_limit
        self._data = content_of(file)
        try:
            check_checksum(self._data)
            contents = inspect_file(self._data)
            found = read_description(contents.metadata.get("sk_meta"))
            # Only an Imputer knows what to do with a missing value.
            self._takes_missing = "Imputer" in contents.operators
            self._take(found)
            limit = time_limit if contents.loops else None
            self._session = Session(self._data, n_threads, limit)
            self._check_graph()
        except ValueError as error:
            what = file if isinstance(file, str | Path) else "the given bytes"
            raise ValueError(f"Cannot read a learner from {what}: {error}.") from error

    def _take(self, found):
        """Attributes by what the file says of the learner."""
        self.method, self.n_steps = found["method"], found["n_steps"]
        self.unlabeled = found["unlabeled"]
        self._columns = found["columns"]
        self._classification = found["kind"] == "classifier"
        self._most_classes = found["most_classes"]
        names, metadata = found["feature_names"], None
        if found["n_metadata"]:
            keys = found["metadata_names"]
            keys = None if keys is None else tuple(keys)
            metadata = Description(keys, np.zeros(found["n_metadata"]), None)
        self._schema = Schema(
            self._classification,
            tuple(found["row_shape"]),
            None if names is None else np.asarray(names, dtype=object),
            labels=found["labels"] or "shared",
            classes=found["classes"],
            n_outputs=found["n_targets"],
            multi_output=found["multi_output"],
            target_mean=np.zeros(found["n_targets"]),
            target_scale=np.ones(found["n_targets"]),
            metadata=metadata,
        )
        self.n_features_in_ = int(np.prod(self._schema.shape))
        if names is not None:
            self.feature_names_in_ = self._schema.names
        if found["classes"] is not None:
            self.classes_ = found["classes"]

    def _check_graph(self):
        """Raise unless inputs and outputs of the graph are those of this learner."""
        schema, columns = self._schema, self._columns
        expected = {"y_support": "tensor(int64)"}
        if not self._classification:
            expected = {"y_support": "tensor(double)"}
        for part in ("X_support", "X_query"):
            if columns is None:
                expected[part] = "tensor(float)"
            for name, kind in (columns or {}).items():
                expected[f"{part}/{name}"] = INPUT_TYPES[kind]
        if schema.metadata is not None:
            expected["metadata"] = "tensor(float)"
        if self.n_steps is not None:
            expected["n_steps"] = "tensor(int64)"
        found = self._session.inputs()
        if {name: given.type for name, given in found.items()} != expected:
            raise ValueError("the inputs of its graph are not those that it describes")
        if columns is None and found["X_support"].shape[1:] != [*schema.shape]:
            raise ValueError(
                f"it describes rows of shape {schema.shape}, its graph takes rows of "
                f"shape {tuple(found['X_support'].shape[1:])}"
            )
        known = [["mean"], ["mean", "std"]]
        if self._session.outputs not in (
            [["probabilities"]] if self._classification else known
        ):
            raise ValueError("the outputs of its graph are not those of a learner")

    def adapt(self, X, y, *, sample_weight=None, metadata=None, n_steps=None):
        """Learn a new task from its support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        sample_weight : None
            Not in the file.
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.
        n_steps : int, default=None
            Steps of the inner loop, 0 to 10,000; None means as many as in
            meta-training's `adapt`.

        Returns
        -------
        OnnxFewShotClassifier or OnnxFewShotRegressor
            Fitted; an ordinary sklearn estimator.
        """
        if sample_weight is not None:
            raise ValueError("sample_weight is not in the file. Pass none.")
        if self._classification:
            labels = labels_in(y, self.unlabeled)
            few_shot = OnnxFewShotClassifier(
                self, n_steps=n_steps, encoded_labels=labels
            )
        else:
            few_shot = OnnxFewShotRegressor(self, n_steps=n_steps)
        return few_shot.fit(X, y, metadata=metadata)

    def _with_steps(self, n_steps):
        """The same learner with another number of steps; None changes nothing."""
        if n_steps is None:
            return self
        if self.n_steps is None:
            raise ValueError(
                f"{self.method} has no inner loop, so it takes no n_steps; got "
                f"{n_steps!r}. Leave it out."
            )
        other = object.__new__(type(self))
        vars(other).update(vars(self), n_steps=int(n_steps))
        return other

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """What `FewShotClassifier` and `FewShotRegressor` are made from.

        Returns
        -------
        state : tuple
        classes : array or None
            What the columns of the scores stand for.
        """
        schema, what = self._schema, "the support set"
        if sample_weight is not None:
            raise ValueError("sample_weight is not in the file. Pass none.")
        if not len(X):
            raise ValueError("The support set is empty. Pass at least one row.")
        feed = self._inputs("X_support", X, what)
        labeled = labeled_rows(y, self.unlabeled)
        encoded, classes = schema.encode(y, what, labeled)
        if not self._classification:
            encoded = target_array(y, f"y of {what}").reshape(len(encoded), -1)
        if len(X) != len(encoded):
            raise ValueError(
                f"X of the support set has {len(X)} rows, y has {len(encoded)}."
            )
        limit, n_classes = self._most_classes, 0 if classes is None else len(classes)
        if limit is not None and n_classes > limit:
            raise ValueError(
                f"The support set has {n_classes} classes, the head has {limit}. "
                "Meta-train on tasks with as many classes, or use a metric-based "
                "meta-learner, which takes any number."
            )
        feed["y_support"] = encoded
        if schema.metadata is not None:
            check_metadata(metadata, schema.metadata, "The support set")
            feed["metadata"] = numeric_metadata(metadata)
        feed = {name: np.array(value) for name, value in feed.items()}  # not X itself
        return _State(feed, self.n_steps), classes

    def portable_state(self, state):
        """A state as it is pickled: as it is."""
        return state

    def apply_state(self, state, X, n_classes):
        """Predictions from a state: (probabilities or means, std or None)."""
        feed = self._inputs("X_query", X, "X") | state.feed
        if state.n_steps is not None:
            feed["n_steps"] = np.array(state.n_steps, dtype=np.int64)
        width = n_classes if self._classification else self._schema.n_outputs
        found = [part.astype(np.float64) for part in self._session.run(feed)]
        if any(part.shape != (len(X), width) for part in found):
            raise ValueError(
                f"The file gave an output of shape {found[0].shape} where "
                f"{(len(X), width)} was expected: it is damaged. Export it again."
            )
        if not (self._classification or self._schema.multi_output):
            found = [part[:, 0] for part in found]
        return found[0], found[1] if len(found) > 1 else None

    def _inputs(self, part, X, what):
        if self._columns is None:
            rows = one_input(X, self._schema, what, self._takes_missing)
            return {part: rows}
        columns = inputs_by_column(
            X, self._schema, what, self._columns, self._takes_missing
        )
        return {f"{part}/{name}": column for name, column in columns.items()}

    def __sklearn_clone__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _rebuilt, (self._data, self.n_threads, self.time_limit)

    def __repr__(self):
        return f"<OnnxMetaLearner: {self.method}>"


class _Adapted:
    """The way from an adapted estimator to its learner."""

    def _meta(self):
        learner = self.learner
        if not isinstance(learner, OnnxMetaLearner):
            raise TypeError(
                f"learner must be an OnnxMetaLearner, got {type(learner).__name__}. "
                "A file is read by OnnxMetaLearner(path)."
            )
        if learner._classification != isinstance(self, FewShotClassifier):
            raise TypeError(
                f"{type(self).__name__} cannot adapt a {learner.method}: one is for "
                "classes, the other for targets. The learner's own adapt(X, y) returns "
                "the right kind."
            )
        return learner._with_steps(self.n_steps)


class OnnxFewShotClassifier(_Adapted, FewShotClassifier):
    """A classifier that a learner from a file adapts to a few rows.

    Usually made by the learner's `adapt`; on its own, `fit` adapts, so that the learner
    takes part in Pipelines, cross-validation and ensembles over rows. It keeps the
    support set: the file adapts to it anew in each prediction.

    Parameters
    ----------
    learner : OnnxMetaLearner
    n_steps : int, default=None
        Steps of the inner loop, 0 to 10,000; None means what the file says.
    classes : {"support", "meta"}, default="support"
        Whether `classes_` are the labels of the support set, or all labels that the
        meta-learner shares between tasks.
    encoded_labels : array of shape (n_classes,), default=None
        See :class:`sk_meta.FewShotClassifier`.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Examples
    --------
    See :class:`OnnxMetaLearner`.
    """

    _parameter_constraints: ClassVar[dict] = {
        **FewShotClassifier._parameter_constraints,
        "n_steps": _STEPS,
    }

    def __init__(
        self, learner, *, n_steps=None, classes="support", encoded_labels=None
    ):
        self.learner = learner
        self.n_steps = n_steps
        self.classes = classes
        self.encoded_labels = encoded_labels

    def fit(self, X, y, metadata=None):
        """Adapt to a support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,)
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        self
        """
        return super().fit(X, y, metadata=metadata)


class OnnxFewShotRegressor(_Adapted, FewShotRegressor):
    """A regressor that a learner from a file adapts to a few rows.

    Usually made by the learner's `adapt`; on its own, `fit` adapts, so that the learner
    takes part in Pipelines, cross-validation and ensembles over rows. It keeps the
    support set: the file adapts to it anew in each prediction.

    Parameters
    ----------
    learner : OnnxMetaLearner
    n_steps : int, default=None
        Steps of the inner loop, 0 to 10,000; None means what the file says.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Examples
    --------
    See :class:`OnnxMetaLearner`.
    """

    _parameter_constraints: ClassVar[dict] = {"n_steps": _STEPS}

    def __init__(self, learner, *, n_steps=None):
        self.learner = learner
        self.n_steps = n_steps

    def fit(self, X, y, metadata=None):
        """Adapt to a support set.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        self
        """
        return super().fit(X, y, metadata=metadata)


def _rebuilt(data, n_threads, time_limit):
    """A learner out of its pickle."""
    return OnnxMetaLearner(data, n_threads=n_threads, time_limit=time_limit)
