"""Towards the weights that each task adapts to."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.gradient_based.maml import MAML
from sk_meta.heads import closed_outputs, shut_out
from sk_meta.learner import weighted_mean
from sk_meta.updates import all_rows, gradient_step, trainable, with_gradient


class Reptile(MAML):
    """Moves the initialisation towards what gradient steps on each task make of it.

    Adapts and predicts as MAML does. In training the loss of a task is that of all its
    rows after the inner steps; its gradient is the way back from the adapted to the
    initial parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Network with one output for each class or target.
    n_outputs : int
        Their number.
    inner_lr : float
    n_inner_steps : int
        On the rows of a task, support and query.
    n_adapt_steps : int
        On the support set, outside of training.
    inner_batch_size : int or None
        Rows of an inner step in training; None for all.
    transductive : bool

    References
    ----------
    Nichol, Achiam, Schulman (2018), On First-Order Meta-Learning Algorithms,
    algorithm 2.
    """

    def __init__(
        self,
        module,
        n_outputs,
        inner_lr,
        n_inner_steps,
        n_adapt_steps,
        inner_batch_size=None,
        transductive=False,
    ):
        super().__init__(
            module,
            n_outputs,
            inner_lr,
            n_inner_steps,
            n_adapt_steps,
            first_order=True,
            transductive=transductive,
        )
        self.inner_batch_size = inner_batch_size
        # Rows that fill up a task would take the place of others in the batches.
        self.uses_weight = inner_batch_size is None

    def why_apart(self):
        """See `Learner.why_apart`."""
        return "its meta-gradient is a difference of parameters"

    def forward(self, support, X):
        """Nothing yet: the inner steps need the targets of the query rows too."""
        return (), ()

    def loss(self, scores, query, support):
        """See `Learner.loss`; in training, with the gradient of Reptile."""
        if not self.training:
            return super().loss(scores, query, support)
        X, y, weight = all_rows(support, query)
        closed = closed_outputs(support, self.n_outputs)

        def loss(parameters, rows=slice(None)):
            scores = shut_out(self.call(X[rows], parameters)[0], closed)
            losses = self.loss_of_rows(scores, y[rows])
            return weighted_mean(losses, None if weight is None else weight[rows])

        start = trainable(self.module)
        adapted = {name: value.detach() for name, value in start.items()}
        for rows in self._batches(X):
            adapted = gradient_step(
                partial(loss, rows=rows), adapted, self.inner_lr, first_order=True
            )
        with torch.no_grad():
            value = loss(adapted)
            back = {name: start[name] - adapted[name] for name in start}
        return with_gradient(value, start, back)

    def _batches(self, X):
        """Rows of each inner step: all, or the next in a random order."""
        n_rows, size = len(X), self.inner_batch_size
        if size is None or size >= n_rows:
            return [slice(None)] * self.n_inner_steps
        order = torch.rand(n_rows, device=X.device).argsort()
        steps = torch.arange(self.n_inner_steps * size, device=X.device)
        return order[steps % n_rows].view(self.n_inner_steps, size).unbind()


class _ReptileParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "inner_lr": [Interval(Real, 0, None, closed="neither")],
        "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "n_adapt_steps": [Interval(Integral, 1, None, closed="left"), None],
        "inner_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "transductive": ["boolean"],
    }

    def __init__(
        self,
        net=None,
        *,
        inner_lr=0.02,
        n_inner_steps=5,
        n_adapt_steps=None,
        inner_batch_size=None,
        transductive=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.inner_batch_size = inner_batch_size
        self.transductive = transductive
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            Reptile,
            inner_lr=self.inner_lr,
            n_inner_steps=self.n_inner_steps,
            n_adapt_steps=self.n_adapt_steps or self.n_inner_steps,
            inner_batch_size=self.inner_batch_size,
            transductive=self.transductive,
        )

    def _n_network_outputs(self, schema):
        return schema.n_outputs


class ReptileClassifier(_ReptileParameters, MetaClassifier):
    """Reptile: towards the weights that each task adapts to, for classification.

    In meta-training each task takes gradient steps on all its rows, and the
    initialisation moves towards where they end: no gradient goes through the steps. The
    way back is handed to the net's optimizer as a gradient. The paper's outer loop,
    which goes a part of the way to the mean over tasks, is
    ``TaskNet(optimizer=torch.optim.SGD, lr=1.0)`` with an lr that falls to 0 (see the
    user guide); TaskNet's own Adam does not mind how long the way is.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each class.
    inner_lr : float, default=0.02
        Learning rate of the inner loop.
    n_inner_steps : int, default=5
        Gradient steps on a task in meta-training. With a single one Reptile is joint
        training.
    n_adapt_steps : int, default=None
        Gradient steps on all rows of the support set in `adapt`, `predict` and
        validation; None means `n_inner_steps`. More than in meta-training may help.
    inner_batch_size : int, default=None
        Rows of an inner step in meta-training, taken in turn in a random order; None
        for all.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, so that a
        prediction depends on its neighbours; else the support set's.
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
    Nichol, Achiam, Schulman (2018), On First-Order Meta-Learning Algorithms,
    algorithm 2.

    Examples
    --------
    >>> from sk_meta import ReptileClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = ReptileClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """


class ReptileRegressor(_ReptileParameters, MetaRegressor):
    """Reptile: towards the weights that each task adapts to, for regression.

    In meta-training each task takes gradient steps on all its rows, and the
    initialisation moves towards where they end: no gradient goes through the steps. The
    way back is handed to the net's optimizer as a gradient. The paper's outer loop,
    which goes a part of the way to the mean over tasks, is
    ``TaskNet(optimizer=torch.optim.SGD, lr=1.0)`` with an lr that falls to 0 (see the
    user guide); TaskNet's own Adam does not mind how long the way is.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each target.
    inner_lr : float, default=0.02
        Learning rate of the inner loop.
    n_inner_steps : int, default=5
        Gradient steps on a task in meta-training. With a single one Reptile is joint
        training.
    n_adapt_steps : int, default=None
        Gradient steps on all rows of the support set in `adapt`, `predict` and
        validation; None means `n_inner_steps`. More than in meta-training may help.
    inner_batch_size : int, default=None
        Rows of an inner step in meta-training, taken in turn in a random order; None
        for all.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, so that a
        prediction depends on its neighbours; else the support set's.
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
    Nichol, Achiam, Schulman (2018), On First-Order Meta-Learning Algorithms,
    algorithm 2.

    Examples
    --------
    >>> from sk_meta import ReptileRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = ReptileRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """
