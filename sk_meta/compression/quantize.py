"""QuantizedLearner: the network in few bits, and the file that runs so."""

from contextlib import ExitStack
from copy import copy
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_meta.compression.rounding import (
    Rounding,
    input_ranges,
    rounded_inputs,
    rounded_weights,
)
from sk_meta.learner import EmbeddingLearner
from sk_meta.predictions import TaskPrediction
from sk_meta.tasks.validation import check_tasks
from sk_meta.wrapped import (
    WrappedLearner,
    _classifies,
    check_learner,
    renew_optimizer,
    start_from,
)

# Of weights. Seven, kept in eight: processors without instructions for it add up two
# products of 8 bits in 16, which overflow, without a word.
_BITS = {"int8": 7, "int8_dynamic": 7, "fp16": 16, "int4": 4}


class QuantizedLearner(WrappedLearner):
    """A meta-learner whose network is kept in few bits, and computed so where it pays.

    `fit` writes the whole learner as an ONNX file, `onnx_model_`, with the weights of
    the network's linear and convolution layers in fewer bits; predictions are those
    of the file, in onnxruntime. Heads, losses, linear algebra and the inner loop stay
    in float, and so do layers that take rows of features, targets or metadata
    themselves, which come in any units; of these layers, weights alone are rounded.

    Methods that embed rows by a fixed network gain both size and, with "int8", time.
    Where an inner loop changes the network, its first weights are rounded, and made
    floats again before the loop: that saves size, not time.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
        What is quantised: a clone, fitted on the tasks, or a copy of the frozen one.
    how : {"int8", "int8_dynamic", "fp16", "int4"}, default="int8"
        "int8": weights, and what goes through the network, in 8 bits; products are
        those of integers. The ranges come from `n_calibration` tasks. "int8_dynamic":
        the same, with the ranges of the rows at hand: needs no tasks, but a prediction
        then depends a little on the other rows. "fp16": weights in half precision.
        "int4": weights in 4 bits. With the last two, computations are in float.
    n_calibration : int, default=100
        Tasks whose support and query sets show the ranges; for "int8".
    aware_epochs : int, default=0
        Passes over the tasks in which the meta-learner is trained on with rounded
        weights, and with "int8" also with rounded inputs of the layers of embedding
        networks.
    lr : float, default=None
        Outer-loop learning rate in these; None for that of the meta-learner.
    block_size : int, default=32
        With "int4", most weights of a neuron or channel that share a scale. Otherwise
        all share one.
    target_opset : int, default=None
        Version of the ONNX operators, 18 to 22, and from 21 for "int4"; None means 20,
        and 21 for "int4".
    random_state : int, RandomState instance or None, default=None
        Seed of the draws in further training, and of an unfitted meta-learner without
        a `random_state`. None goes on with the meta-learner's own draws.

    Attributes
    ----------
    onnx_model_ : bytes
        The file, as ``to_onnx(quantized, path)`` writes it.
    runtime_ : OnnxMetaLearner
        What runs it.
    meta_learner_ : meta-learner
        Fitted, and trained with rounded weights if asked for; in float.
    net_, learner_, history_, schema_, n_features_in_, classes_, feature_names_in_
        Those of `meta_learner_`.

    Raises
    ------
    ValueError
        If `target_opset` has no such numbers, before any training; if the network has
        a layer that cannot be exported.
    ImportError
        If a package that the export needs is not installed.
    TypeError
        If `meta_learner` is no meta-learner.

    Notes
    -----
    `sample_weight` of support sets is not in a file, and raises an error.

    References
    ----------
    Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko (2018), Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference:
    section 2 (ranges, biases), section 3 (rounding in training, folded normalisation).

    Courbariaux, Bengio, David (2015), BinaryConnect, algorithm 1: gradients at rounded
    weights change the exact ones.

    Krishnamoorthi (2018), Quantizing Deep Convolutional Networks for Efficient
    Inference, section 3.1: a scale for each channel.

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sk_meta import PrototypicalClassifier, QuantizedLearner, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> small = QuantizedLearner(FrozenEstimator(meta)).fit(old)
    >>> len(small.onnx_model_) < 20_000
    True
    >>> small.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "meta_learner": "no_validation",  # by check_learner
        "how": [StrOptions(set(_BITS))],
        "n_calibration": [Interval(Integral, 1, None, closed="left")],
        "aware_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither"), None],
        "block_size": [Interval(Integral, 2, None, closed="left")],
        "target_opset": [Interval(Integral, 18, 22, closed="both"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        meta_learner,
        how="int8",
        *,
        n_calibration=100,
        aware_epochs=0,
        lr=None,
        block_size=32,
        target_opset=None,
        random_state=None,
    ):
        self.meta_learner = meta_learner
        self.how = how
        self.n_calibration = n_calibration
        self.aware_epochs = aware_epochs
        self.lr = lr
        self.block_size = block_size
        self.target_opset = target_opset
        self.random_state = random_state

    def fit(self, tasks, y=None):
        """Meta-train where the meta-learner is not frozen, then quantise.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._validate_params()
        check_learner(self.meta_learner)
        self._opset()
        meta = start_from(self.meta_learner, tasks, self.random_state)
        tasks = check_tasks(tasks, meta.unlabeled)
        if self.aware_epochs:
            self._train_on(meta, tasks)
        self._write(meta, tasks)
        return self

    def partial_fit(self, tasks, y=None):
        """Meta-train on in float, over other tasks, and quantise again.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(tasks)
        self._validate_params()
        meta = copy(self.meta_learner_).partial_fit(tasks)
        self._write(meta, check_tasks(tasks, meta.unlabeled))
        return self

    def _opset(self):
        from sk_meta.onnx.quantization import opset_for

        return opset_for(self.how, self.target_opset)

    def _rounding(self):
        return Rounding(
            _BITS[self.how], self.block_size if self.how == "int4" else None
        )

    def _train_on(self, meta, tasks):
        """Train with rounded weights, and in int8 with rounded inputs of layers."""
        dataset = meta._later_dataset(tasks)
        dataset.check_draws()
        net, learner = meta.net_, meta.learner_
        before = net.lr, net.max_epochs
        net.lr = net.lr if self.lr is None else self.lr
        net.max_epochs = self.aware_epochs
        renew_optimizer(net)
        with ExitStack() as stack:
            if self.how == "int8" and isinstance(learner, EmbeddingLearner):
                rows = _rows(dataset, _spread(len(tasks), self.n_calibration))
                stack.enter_context(rounded_inputs(input_ranges(learner, rows)))
            stack.enter_context(rounded_weights(net, self._rounding()))
            net.meta_partial_fit(dataset)
        net.lr, net.max_epochs = before
        meta._take(net, meta.schema_)

    def _write(self, meta, tasks):
        """Become what the file of a meta-learner says."""
        from sk_meta.onnx.quantization import quantized_file
        from sk_meta.onnx.runtime import OnnxMetaLearner

        dataset = meta._later_dataset(tasks, scored=False)
        found = quantized_file(
            meta,
            self.how,
            self._rounding(),
            (
                _draw(dataset, tasks, index, meta.unlabeled)
                for index in _spread(len(tasks), self.n_calibration)
            ),
            self.target_opset,
        )
        self.runtime_ = OnnxMetaLearner(found)
        self.onnx_model_, self.meta_learner_ = found, meta

    def adapt(self, X, y, *, sample_weight=None, metadata=None):
        """Learn a new task from its support set, as the file does.

        Parameters
        ----------
        X : array of shape (n_support, ...) or DataFrame
        y : array of shape (n_support,) or (n_support, n_targets)
        sample_weight : None
            Not in a file.
        metadata : array or dict of numbers, default=None
            The task's own description, for methods that use it.

        Returns
        -------
        OnnxFewShotClassifier or OnnxFewShotRegressor
            Fitted; an ordinary sklearn estimator, which needs no torch.
        """
        check_is_fitted(self)
        if sample_weight is not None:
            raise ValueError("sample_weight is not in the file. Pass none.")
        return self.runtime_.adapt(X, y, metadata=metadata)

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """See `OnnxMetaLearner.adapt_state`."""
        check_is_fitted(self)
        return self.runtime_.adapt_state(X, y, sample_weight, metadata)

    def portable_state(self, state):
        """See `OnnxMetaLearner.portable_state`."""
        return state

    def apply_state(self, state, X, n_classes):
        """See `OnnxMetaLearner.apply_state`."""
        check_is_fitted(self)
        return self.runtime_.apply_state(state, X, n_classes)

    def predict_tasks(self, tasks):
        """Predictions for the query rows of tasks, by the file.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            Support sets are drawn as by the meta-learner in float.

        Returns
        -------
        list of TaskPrediction
        """
        check_is_fitted(self)
        meta = self.meta_learner_
        tasks = check_tasks(tasks, meta.unlabeled)
        dataset = meta._later_dataset(tasks, scored=False)
        return [self._predict_task(dataset, tasks, i) for i in range(len(tasks))]

    def _predict_task(self, dataset, tasks, index):
        task, encoded = tasks[index], dataset.encoded(index)
        support, query = dataset.evaluation_draw(index)
        X, y, metadata, X_query = _draw(
            dataset, tasks, index, self.meta_learner_.unlabeled
        )
        weight = None if task.sample_weight is None else task.sample_weight[support]
        state, known = self.adapt_state(X, y, weight, metadata)
        n_classes = 0 if known is None else len(known)
        values, std = self.apply_state(state, X_query, n_classes)
        if known is not None:
            # A class of the task may have no row in the support set.
            every = np.zeros((len(values), len(encoded.classes)))
            every[:, np.searchsorted(encoded.classes, known)] = values
            values = every
        return TaskPrediction(task, support, query, encoded.classes, values, std)

    def _speaker(self):
        """The meta-learner, which says what the file says."""
        check_is_fitted(self)
        meta = copy(self.meta_learner_)
        meta.predict_tasks = self.predict_tasks
        return meta

    def predict(self, tasks, **options):
        """Labels or targets of the query rows of each task; see the meta-learner."""
        return self._speaker().predict(tasks, **options)

    @available_if(_classifies)
    def predict_proba(self, tasks):
        """Class probabilities of the query rows of each task."""
        return self._speaker().predict_proba(tasks)

    def score(self, tasks, y=None):
        """Mean over tasks of accuracy or R^2; see the meta-learner."""
        return self._speaker().score(tasks)


def _spread(n_tasks, n):
    """At most n positions, evenly spread."""
    return np.unique(np.linspace(0, n_tasks - 1, n).astype(int))


def _draw(dataset, tasks, index, unlabeled):
    """Support set, metadata and query rows of a task, as it is evaluated."""
    task = tasks[index]
    support, query = dataset.evaluation_draw(index)
    y = task.y[support]
    if task.labeled is not None and not task.labeled[support].all():
        y = np.where(task.labeled[support], y, unlabeled)
    X = task.X.iloc if hasattr(task.X, "iloc") else task.X
    return X[support], y, task.metadata, X[query]


def _rows(dataset, indices):
    """Rows of some tasks."""
    for index in indices:
        for group in dataset.batch([index]):
            yield torch.cat([group.support.X[0], group.query.X[0]])
