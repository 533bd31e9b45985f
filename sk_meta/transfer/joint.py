"""One network for all tasks: the baseline of every meta-learner."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
from sklearn.utils._param_validation import Interval

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.heads import closed_outputs, shut_out
from sk_meta.learner import EmbeddingLearner, weighted_mean
from sk_meta.updates import all_rows, gradient_descent, trainable


class JointState(NamedTuple):
    """The fine-tuned network.

    Attributes
    ----------
    parameters : dict of tensors
    closed : tuple
        Empty, or the mask (n_outputs,) of outputs that this task has no class for.
    """

    parameters: dict
    closed: tuple


class Joint(EmbeddingLearner):
    """One network trained on the rows of all tasks, and fine-tuned to a new one.

    Batch normalisation is that of `EmbeddingLearner`: the statistics of a task's rows
    in training, running averages afterwards.

    Parameters
    ----------
    module : torch.nn.Module
        Network with one output for each class or target.
    n_outputs : int
        Their number.
    adapt_lr : float
    n_adapt_steps : int
        Gradient steps on the support set; 0 for no fine-tuning.

    References
    ----------
    Caruana (1997), Multitask Learning; the "pretrained" baseline of Finn, Abbeel,
    Levine (2017), section 5.1.
    """

    uses_weight = True

    def __init__(self, module, n_outputs, adapt_lr, n_adapt_steps):
        super().__init__(module)
        self.n_outputs = n_outputs
        self.adapt_lr = adapt_lr
        self.n_adapt_steps = n_adapt_steps

    def adapt(self, support):
        """See `Learner.adapt`."""
        closed = closed_outputs(support, self.n_outputs)

        def loss(parameters):
            scores = self._scores(JointState(parameters, closed), support.X)
            return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

        parameters = gradient_descent(
            loss,
            trainable(self.module),
            self.adapt_lr,
            self.n_adapt_steps,
            first_order=True,
        )
        return JointState(parameters, closed)

    def _scores(self, state, X):
        scores, _ = self.call(X, state.parameters, source="running")
        return shut_out(scores, state.closed)

    def predict(self, state, X):
        """See `Learner.predict`."""
        return self.calibrated(self._scores(state, X))

    def why_apart(self):
        """See `Learner.why_apart`."""
        return "each task fine-tunes the network"

    def forward(self, support, X):
        """Scores of the rows of a task, support and query, without adapting."""
        scores, seen = self.call(torch.cat([support.X, X]), source="record")
        return shut_out(scores, closed_outputs(support, self.n_outputs)), seen

    def loss(self, scores, query, support):
        """Mean over the query rows; in training, over all rows of the task."""
        if not self.training:
            return super().loss(scores, query, support)
        _, y, weight = all_rows(support, query)
        return weighted_mean(self.loss_of_rows(scores, y), weight)


class _JointParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "adapt_lr": [Interval(Real, 0, None, closed="neither")],
        "n_adapt_steps": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        adapt_lr=0.01,
        n_adapt_steps=10,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.adapt_lr = adapt_lr
        self.n_adapt_steps = n_adapt_steps
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(Joint, adapt_lr=self.adapt_lr, n_adapt_steps=self.n_adapt_steps)

    def _n_network_outputs(self, schema):
        return schema.n_outputs


class JointClassifier(_JointParameters, MetaClassifier):
    """One network trained on all tasks, for classification.

    The baseline that a meta-learner has to beat: in training no task is adapted to, and
    a new one is fine-tuned to its support set, or not at all.
    With local labels a class of one task has nothing to do with those of another: in
    training they come on random outputs, and without fine-tuning the answer is a guess.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each class.
    adapt_lr : float, default=0.01
        Learning rate of fine-tuning.
    n_adapt_steps : int, default=10
        Gradient steps on the support set in `adapt`, `predict` and validation; 0 leaves
        the network as it is, and ignores the support set.
    support_size : int, float or tuple, default=5
        Rows per class of the support set of a task that has none: a number, a fraction,
        or a range (low, high) drawn anew at each visit.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation and of the draws in meta-training.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    net_ : TaskNet
        Trained.
    learner_ : Learner
    history_ : skorch.history.History
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    Caruana (1997), Multitask Learning.

    Examples
    --------
    >>> from sk_meta import JointClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = JointClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """


class JointRegressor(_JointParameters, MetaRegressor):
    """One network trained on all tasks, for regression.

    The baseline that a meta-learner has to beat: in training no task is adapted to, and
    a new one is fine-tuned to its support set, or not at all.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each target.
    adapt_lr : float, default=0.01
        Learning rate of fine-tuning.
    n_adapt_steps : int, default=10
        Gradient steps on the support set in `adapt`, `predict` and validation; 0 leaves
        the network as it is, and ignores the support set.
    support_size : int, float or tuple, default=5
        Rows of the support set of a task that has none: a number, a fraction,
        or a range (low, high) drawn anew at each visit.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation and of the draws in meta-training.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    net_ : TaskNet
        Trained.
    learner_ : Learner
    history_ : skorch.history.History
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    Caruana (1997), Multitask Learning.

    Examples
    --------
    >>> from sk_meta import JointRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = JointRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """
