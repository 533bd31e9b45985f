"""MetaClassifier and MetaRegressor: the sklearn side. To them, a sample is a task."""

from copy import deepcopy
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from sk_meta.engine.each_task import can_pad, each_task
from sk_meta.few_shot import probabilities
from sk_meta.learner import EmbeddingLearner, Gaussian, Support
from sk_meta.over_tasks import ClassifiesTasks, RegressesTasks
from sk_meta.predictions import TaskPrediction
from sk_meta.tasks.metadata import numeric_metadata
from sk_meta.tasks.sampling import EpisodeSampler, tables_of
from sk_meta.tasks.stacking import TaskDataset
from sk_meta.tasks.support import check_support_size
from sk_meta.tasks.unlabeled import labeled_rows
from sk_meta.tasks.validation import (
    Schema,
    call_task,
    check_tasks,
    row_weights,
)
from sk_meta.training import Progress, TaskNet

_CHUNK = 32  # tasks that are adapted and predicted at once


def _has_features(self):
    return isinstance(self.learner_, EmbeddingLearner)


class MetaEstimator(BaseEstimator):
    """Meta-training, adaptation and prediction over lists of tasks.

    A method adds its parameters, and says how its Learner is made.
    """

    _uses_unlabeled: ClassVar[bool] = False  # in support sets
    _parameter_constraints: ClassVar[dict] = {
        "net": "no_validation",  # by _make_net and check_support_size
        "support_size": "no_validation",
        "evaluation_seed": [Interval(Integral, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _learner_maker(self, schema):
        """A picklable callable: (network, n_outputs) -> Learner."""
        raise NotImplementedError

    def _n_network_outputs(self, schema):
        """Length of the network's output; None leaves it to the network."""
        return None

    @property
    def learner_(self):
        """The trained Learner."""
        if "net_" not in vars(self):
            raise AttributeError(f"This {type(self).__name__} is not fitted yet.")
        return self.net_.module_

    def fit(self, tasks, y=None):
        """Meta-train.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the tasks are empty, disagree in their features or kinds of labels, or
            hold what a network cannot use; before any training.
        """
        self._check_parameters()
        net = self._make_net()
        tasks = check_tasks(tasks, self.unlabeled)
        schema = self._make_schema(tasks)
        dataset = self._dataset(tasks, schema, net.device)
        dataset.check_draws()
        seed = _seed(self.random_state)
        n_outputs = self._n_network_outputs(schema)
        net.meta_fit(dataset, self._learner_maker(schema), n_outputs, seed)
        self._take(net, schema)
        self._tables_of_fit = tables_of(tasks)
        return self

    def partial_fit(self, tasks, y=None):
        """Meta-train on, over other tasks with the same features and labels.

        The learner and its net go on as they are: parameters set since `fit` have no
        effect on them.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        if not hasattr(self, "net_"):
            return self.fit(tasks)
        self._check_parameters()
        dataset = self._later_dataset(check_tasks(tasks, self.unlabeled))
        dataset.check_draws()
        net = deepcopy(self.net_)
        net.meta_partial_fit(dataset)
        self._take(net, self.schema_)
        return self

    def set_params(self, **params):
        """Set parameters, ``net__...`` included.

        Returns
        -------
        self
        """
        of_net = [name for name in params if name.startswith("net__")]
        if of_net and params.get("net", self.net) is None:
            raise ValueError(
                f"Cannot set {of_net[0]}: net is None. Pass net=TaskNet() to the "
                f"{type(self).__name__} first."
            )
        return super().set_params(**params)

    def predict_tasks(self, tasks):
        """Predictions for the query rows of tasks, with the rows they are for.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            A task without a support set gets one by `support_size`, by a draw that
            depends on `evaluation_seed` and the task alone.

        Returns
        -------
        list of TaskPrediction
        """
        check_is_fitted(self)
        tasks = check_tasks(tasks, self.unlabeled)
        dataset = self._later_dataset(tasks, scored=False)
        found, pad = [None] * len(tasks), can_pad(self.learner_)
        for start in range(0, len(tasks), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(tasks)))
            for group in dataset.batch(indices, pad=pad):
                scores = self._group_scores(group)
                for row, position in enumerate(group.positions):
                    index = start + int(position)
                    item, support, query = group.draws[row]
                    values, std = self._to_values(
                        tuple(part[row, : len(query)] for part in scores),
                        item.n_classes,
                    )
                    found[index] = TaskPrediction(
                        tasks[index], support, query, item.classes, values, std
                    )
        return found

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """State of the learner for one support set, and the classes in it.

        What `FewShotClassifier` and `FewShotRegressor` are made from.

        Returns
        -------
        state : nested tensors
        classes : array or None
            What the columns of the scores stand for.
        """
        schema, device = self.schema_, self.net_.device
        if not len(X):
            raise ValueError("The support set is empty. Pass at least one row.")
        X = schema.check_features(X, "the support set")
        labeled = labeled_rows(y, self.unlabeled)
        encoded, classes = schema.encode(y, "the support set", labeled)
        if len(X) != len(encoded):
            raise ValueError(
                f"X of the support set has {len(X)} rows, y has {len(encoded)}."
            )
        n_classes = 0 if classes is None else len(classes)
        self._check_head(n_classes, "The support set")
        support = Support(
            _tensor(X, device),
            _tensor(encoded, device),
            _tensor(row_weights(sample_weight, len(X), "the support set"), device),
            n_classes,
            _tensor(numeric_metadata(metadata), device),
        )
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return self.learner_.adapt(support), classes

    @available_if(_has_features)
    def embed(self, X):
        """Features of rows: the output of the network, before the head.

        Only of methods that embed all rows by one network.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame

        Returns
        -------
        array of shape (n_rows, n_features)
        """
        X = _tensor(self.schema_.check_features(X, "X"), self.net_.device)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return self.learner_.call(X, source="running")[0].flatten(1).cpu().numpy()

    def portable_state(self, state):
        """A state as it is pickled: on the CPU, so that it loads anywhere."""
        return _moved(state, "cpu")

    def apply_state(self, state, X, n_classes):
        """Predictions from a state: (probabilities or means, std or None)."""
        X = self.schema_.check_features(X, "X")
        state = _moved(state, self.net_.device)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            scores = self.learner_.predict(state, _tensor(X, self.net_.device))
        return self._to_values(_as_arrays(scores), n_classes)

    def _most_classes(self):
        """Number of classes of the head, or None for any number."""
        return self._n_network_outputs(self.schema_)

    def _check_head(self, n_classes, what):
        limit = self._most_classes()
        if limit is not None and n_classes > limit:
            raise ValueError(
                f"{what} has {n_classes} classes, the head has {limit}. Meta-train on "
                "tasks with as many classes, or use a metric-based meta-learner, which "
                "takes any number."
            )

    def _group_scores(self, group):
        learner = self.learner_
        X, y, weight, n_classes, metadata = group.support

        def of_one(tensors):
            X, y, weight, metadata, X_query = tensors
            support = Support(X, y, weight, n_classes, metadata)
            return learner.predict(learner.adapt(support), X_query)

        with torch.no_grad():
            return _as_arrays(
                each_task(of_one, (X, y, weight, metadata, group.query.X), learner)
            )

    def _check_parameters(self):
        self._validate_params()
        check_support_size(self.support_size)

    def _make_net(self):
        if self.net is None:
            net = TaskNet()
        elif isinstance(self.net, TaskNet):
            net = clone(self.net)
        else:
            raise TypeError(
                f"net must be a TaskNet or None, got {type(self.net).__name__}. Pass a "
                "network as net=TaskNet(module=...)."
            )
        net.check_parameters()
        if self.verbose:
            given = [] if net.callbacks in (None, "disable") else net.callbacks
            net.callbacks = [*given, ("progress", Progress())]
        return net

    def _make_schema(self, tasks):
        return Schema.from_tasks(tasks, self._classification, self._uses_unlabeled)

    def _dataset(self, tasks, schema, device, scored=True):
        return TaskDataset(
            tasks, schema, self.support_size, self.evaluation_seed, device, scored
        )

    def _later_dataset(self, tasks, scored=True):
        """Tasks that come after `fit`: the head must have an output for each class."""
        dataset = self._dataset(tasks, self.schema_, self.net_.device, scored)
        # All episodes of a sampler have as many classes.
        n_tasks = 1 if isinstance(tasks, EpisodeSampler) else len(tasks)
        for index in range(n_tasks):
            what = call_task(tasks[index], index)
            self._check_head(dataset.encoded(index).n_classes, what)
        return dataset

    def _take(self, net, schema):
        """Become what was trained; nothing before this changes the estimator."""
        self.net_ = net
        net.module_.eval()
        self.history_ = net.history_
        self._take_schema(schema)


class MetaClassifier(ClassifiesTasks, MetaEstimator):
    """A meta-learner whose tasks are classification tasks."""

    def _to_values(self, scores, n_classes):
        return probabilities(scores[0][:, :n_classes]), None


class MetaRegressor(RegressesTasks, MetaEstimator):
    """A meta-learner whose tasks are regression tasks."""

    def _to_values(self, scores, n_classes):
        schema = self.schema_
        mean = scores[0] * schema.target_scale + schema.target_mean
        std = np.sqrt(scores[1]) * schema.target_scale if len(scores) > 1 else None
        if not schema.multi_output:
            mean, std = mean[:, 0], None if std is None else std[:, 0]
        return mean, std

    def _most_classes(self):
        return None


def _moved(state, device):
    """A learner's state on another device."""
    return tree_map(lambda x: x.to(device) if torch.is_tensor(x) else x, state)


def _seed(random_state):
    if random_state is None:  # the net draws one
        return None
    return int(check_random_state(random_state).randint(2**31 - 1))


def _tensor(values, device, dtype=None):
    if values is None:
        return None
    # torch warns of read-only arrays, such as joblib's memory maps.
    return torch.from_numpy(np.require(values, dtype, "CW")).to(device)


def _as_arrays(scores):
    parts = scores if isinstance(scores, Gaussian) else (scores,)
    return tuple(part.cpu().numpy().astype(np.float64) for part in parts)
