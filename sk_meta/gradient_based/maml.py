"""Model-agnostic meta-learning."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
from sklearn.utils._param_validation import Interval

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.engine.layers import StackedNetwork, why_opaque
from sk_meta.learner import Learner, weighted_mean
from sk_meta.updates import gradient_descent, trainable


class MAMLState(NamedTuple):
    """What adaptation leaves behind.

    Attributes
    ----------
    parameters : dict of tensors
        The adapted network's.
    statistics : tuple of (mean, variance)
        Of the support set, at each batch normalisation.
    closed : tuple
        Empty, or the mask (n_outputs,) of outputs that this task has no class for.
    """

    parameters: dict
    statistics: tuple
    closed: tuple


class MAML(Learner):
    """Gradient steps on the support set, from an initialisation learned for them.

    Parameters
    ----------
    module : torch.nn.Module
        Network with one output for each class or target.
    n_outputs : int
        Their number.
    inner_lr : float
    n_inner_steps : int
    n_adapt_steps : int
        The same, outside of training.
    first_order : bool
    transductive : bool
    gradient_checkpointing : bool

    References
    ----------
    Finn, Abbeel, Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of
    Deep Networks, algorithm 2.
    """

    uses_weight = True

    def __init__(
        self,
        module,
        n_outputs,
        inner_lr,
        n_inner_steps,
        n_adapt_steps,
        first_order=False,
        transductive=False,
        gradient_checkpointing=False,
    ):
        super().__init__(module)
        self.n_outputs = n_outputs
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.transductive = transductive
        self.gradient_checkpointing = gradient_checkpointing

    def adapt(self, support):
        """See `Learner.adapt`."""
        closed = self._closed(support)

        def loss(parameters):
            scores = _open(self.call(support.X, parameters)[0], closed)
            return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

        parameters = gradient_descent(
            loss,
            trainable(self.module),
            self.inner_lr,
            self.n_inner_steps if self.training else self.n_adapt_steps,
            self.first_order,
            self.gradient_checkpointing and self.training and self.way == "loop",
        )
        statistics = ()
        if self.norms and not self.transductive:
            _, statistics = self.call(support.X, parameters, source="trace")
        return MAMLState(parameters, statistics, closed)

    def predict(self, state, X):
        """See `Learner.predict`."""
        source = "batch" if self.transductive else "given"
        scores, _ = self.call(X, state.parameters, source, state.statistics)
        return _open(scores, state.closed)

    def why_apart(self):
        """See `Learner.why_apart`."""
        return why_opaque(self.module, adapted=True)

    def together(self, support, X):
        """See `Learner.together`."""
        n_support, n_query = support.X.shape[1], X.shape[1]
        n_steps = self.n_inner_steps if self.training else self.n_adapt_steps
        closed = self._closed(support)

        def loss(scores):
            losses = self.row_losses(_open(scores, closed), support.y)
            return weighted_mean(losses, support.weight).sum()

        network = StackedNetwork(
            self.module,
            len(X),
            self.inner_lr,
            n_steps,
            n_support,
            n_query,
            self.precision if self.training else None,
        )
        again = self.gradient_checkpointing and self.training
        step = network.step_again if again else network.step
        with network:
            for _ in range(n_steps):
                step(loss, support.X, self.first_order or not self.training)
            if self.norms and not self.transductive:
                # The query rows are normalised as the support set is.
                both = torch.cat([support.X, X], 1)
                scores = network(both, n_source=n_support)[:, n_support:]
            else:
                scores = network(X)
        return _open(scores, closed), ()

    def _closed(self, support):
        """Mask of the outputs that the task has no class for; empty if none."""
        if not 0 < support.n_classes < self.n_outputs:
            return ()
        outputs = torch.arange(self.n_outputs, device=support.y.device)
        return (outputs >= support.n_classes,)


def _open(scores, closed):
    """Logits with the outputs that have no class shut out."""
    return scores.masked_fill(closed[0], -1e9) if closed else scores


class _MAMLParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "inner_lr": [Interval(Real, 0, None, closed="neither")],
        "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "n_adapt_steps": [Interval(Integral, 1, None, closed="left"), None],
        "first_order": ["boolean"],
        "transductive": ["boolean"],
        "gradient_checkpointing": ["boolean"],
    }

    def __init__(
        self,
        net=None,
        *,
        inner_lr=0.01,
        n_inner_steps=1,
        n_adapt_steps=None,
        first_order=False,
        transductive=False,
        gradient_checkpointing=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.transductive = transductive
        self.gradient_checkpointing = gradient_checkpointing
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            MAML,
            inner_lr=self.inner_lr,
            n_inner_steps=self.n_inner_steps,
            n_adapt_steps=self.n_adapt_steps or self.n_inner_steps,
            first_order=self.first_order,
            transductive=self.transductive,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def _n_network_outputs(self, schema):
        return schema.n_outputs


class MAMLClassifier(_MAMLParameters, MetaClassifier):
    """Model-agnostic meta-learning, for classification.

    An initialisation of the network from which a few gradient steps on the support set
    lead to a good classifier.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each class.
    inner_lr : float, default=0.01
        Learning rate of the inner loop.
    n_inner_steps : int, default=1
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants: cheaper, nearly as good.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, as the paper
        does, so that a prediction depends on its neighbours; else the support set's.
    gradient_checkpointing : bool, default=False
        Compute inner steps anew in the backward pass instead of keeping what they
        leave, which takes longer. Saves memory where a step leaves more than the
        change of the parameters: convolutions, long support sets, many steps layer by
        layer. No effect under vmap.
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
    Finn, Abbeel, Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of
    Deep Networks, algorithm 2.

    Examples
    --------
    >>> from sk_meta import MAMLClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> tasks = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = MAMLClassifier(TaskNet(max_epochs=2), inner_lr=0.1, random_state=0)
    >>> few_shot = meta.fit(tasks[:-1]).adapt(tasks[-1].X_support, tasks[-1].y_support)
    >>> few_shot.predict(tasks[-1].X_query[:3]).shape
    (3,)
    """


class MAMLRegressor(_MAMLParameters, MetaRegressor):
    """Model-agnostic meta-learning, for regression.

    An initialisation of the network from which a few gradient steps on the support set
    lead to a good regressor.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each target.
    inner_lr : float, default=0.01
        Learning rate of the inner loop.
    n_inner_steps : int, default=1
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants: cheaper, nearly as good.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, as the paper
        does, so that a prediction depends on its neighbours; else the support set's.
    gradient_checkpointing : bool, default=False
        Compute inner steps anew in the backward pass instead of keeping what they
        leave, which takes longer. Saves memory where a step leaves more than the
        change of the parameters: convolutions, long support sets, many steps layer by
        layer. No effect under vmap.
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
    Finn, Abbeel, Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of
    Deep Networks, algorithm 2.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = MAMLRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """
