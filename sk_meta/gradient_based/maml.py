"""Model-agnostic meta-learning, with the parts of MAML++, Meta-SGD and BOIL."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
from sklearn.utils._param_validation import Interval, StrOptions

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.engine.layers import StackedNetwork, why_opaque
from sk_meta.gradient_based.inner_rates import (
    KINDS,
    PARTS,
    InnerRates,
    adapted_parameters,
)
from sk_meta.heads import closed_outputs, shut_out
from sk_meta.learner import Learner, weighted_mean
from sk_meta.updates import gradient_step, repeat


class MAMLState(NamedTuple):
    """What adaptation leaves behind.

    Attributes
    ----------
    parameters : dict of tensors
        Those of the network that were adapted.
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
    adapts : {"all", "body", "head"}
    inner_rates : {"fixed", "layer", "layer_and_step", "parameter"}
    multi_step_epochs : int
    first_order_epochs : int

    References
    ----------
    Finn, Abbeel, Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of
    Deep Networks, algorithm 2. Antoniou, Edwards, Storkey (2019), How to train your
    MAML, section 4. Li, Zhou, Chen, Li (2017), Meta-SGD, algorithms 1 and 2. Oh, Yoo,
    Kim, Yun (2021), BOIL.
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
        adapts="all",
        inner_rates="fixed",
        multi_step_epochs=0,
        first_order_epochs=0,
    ):
        super().__init__(module)
        self.n_outputs = n_outputs
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.transductive = transductive
        self.gradient_checkpointing = gradient_checkpointing
        self.adapts = adapts
        self.inner_rates = inner_rates
        self.multi_step_epochs = multi_step_epochs if n_inner_steps > 1 else 0
        self.first_order_epochs = first_order_epochs
        self.adapted = adapted_parameters(module, adapts)
        self.rates = None
        if inner_rates != "fixed":
            given = module, self.adapted, inner_rates, inner_lr, n_inner_steps
            self.rates = InnerRates(*given)
        weights = torch.zeros(n_inner_steps) if self.multi_step_epochs else None
        self.register_buffer("step_weights", weights, persistent=False)
        self.begin_epoch(0)

    def begin_epoch(self, epoch):
        """See `Learner.begin_epoch`."""
        if not (self.multi_step_epochs or self.first_order_epochs):
            return
        every_step = epoch < self.multi_step_epochs
        self.phase = epoch < self.first_order_epochs, every_step
        if every_step:
            # From equal weights, in a straight line, to the last step alone.
            share = (1 - epoch / self.multi_step_epochs) / self.n_inner_steps
            self.step_weights.fill_(share)
            self.step_weights[-1] += 1 - self.n_inner_steps * share

    def adapt(self, support):
        """See `Learner.adapt`."""
        step, start = self._descent(support)
        n_steps = self.n_inner_steps if self.training else self.n_adapt_steps
        return self._state(support, repeat(step, start, n_steps))

    def predict(self, state, X):
        """See `Learner.predict`."""
        source = "batch" if self.transductive else "given"
        scores, _ = self.call(X, state.parameters, source, state.statistics)
        return self.calibrated(shut_out(scores, state.closed))

    def forward(self, support, X):
        """See `Learner.forward`; the scores may be a list, those after each step."""
        if not self._uses_every_step():
            return super().forward(support, X)
        step, parameters = self._descent(support)
        found = []
        for number in range(self.n_inner_steps):
            parameters = step(number, parameters)
            found.append(self.predict(self._state(support, parameters), X))
        return found, ()

    def loss_of_rows(self, scores, y):
        """See `Learner.loss_of_rows`; steps count by their weights."""
        of_step = super().loss_of_rows
        if not isinstance(scores, list):
            return of_step(scores, y)
        losses = torch.stack([of_step(each, y) for each in scores], -1)
        return (losses * self.step_weights).sum(-1)

    def why_apart(self):
        """See `Learner.why_apart`."""
        return why_opaque(self.module, self.adapted)

    def together(self, support, X):
        """See `Learner.together`."""
        n_support, n_query = support.X.shape[1], X.shape[1]
        n_steps = self.n_inner_steps if self.training else self.n_adapt_steps
        closed = closed_outputs(support, self.n_outputs)
        first_order = self._is_first_order() or not self.training
        every_step = self._uses_every_step()
        both = self.norms and not self.transductive

        def loss(scores):
            losses = self.row_losses(shut_out(scores, closed), support.y)
            return weighted_mean(losses, support.weight).sum()

        def scores():
            if not both:
                return shut_out(network(X), closed)
            # The query rows are normalised as the support set is.
            rows = torch.cat([support.X, X], 1)
            return shut_out(network(rows, n_source=n_support)[:, n_support:], closed)

        network = StackedNetwork(
            self.module,
            len(X),
            self.inner_lr,
            n_steps,
            n_support,
            n_query,
            self.precision if self.training else None,
            self.adapted,
        )
        again = self.gradient_checkpointing and self.training
        take_step = network.step_again if again else network.step
        found = []
        with network:
            for step in range(n_steps):
                rates = None if self.rates is None else self.rates(step)
                take_step(loss, support.X, first_order, rates)
                if every_step:
                    found.append(scores())
            return (found if every_step else scores()), ()

    def _is_first_order(self):
        """Whether gradients are constants, in this epoch."""
        return self.first_order or (self.phase is not None and self.phase[0])

    def _uses_every_step(self):
        """Whether the loss is of the scores after every step, in this epoch."""
        return self.training and self.phase is not None and self.phase[1]

    def _descent(self, support):
        """A step of the inner loop, and the parameters that it starts from."""
        closed = closed_outputs(support, self.n_outputs)

        def loss(parameters):
            scores = shut_out(self.call(support.X, parameters)[0], closed)
            return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

        first_order = self._is_first_order()
        again = self.gradient_checkpointing and self.training and self.way == "loop"

        def step(number, parameters):
            rates = self.inner_lr if self.rates is None else self.rates(number)
            return gradient_step(loss, parameters, rates, first_order, again)

        named = dict(self.module.named_parameters())
        return step, {name: named[name] for name in self.adapted}

    def _state(self, support, parameters):
        """The state that parameters make."""
        statistics = ()
        if self.norms and not self.transductive:
            _, statistics = self.call(support.X, parameters, source="trace")
        closed = closed_outputs(support, self.n_outputs)
        return MAMLState(parameters, statistics, closed)


_INNER_LOOP = {
    "inner_lr": [Interval(Real, 0, None, closed="neither")],
    "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
    "n_adapt_steps": [Interval(Integral, 1, None, closed="left"), None],
    "first_order": ["boolean"],
    "transductive": ["boolean"],
    "gradient_checkpointing": ["boolean"],
}
_OPTIONS = {
    "adapts": [StrOptions(PARTS)],
    "inner_rates": [StrOptions({"fixed", *KINDS})],
    "multi_step_epochs": [Interval(Integral, 0, None, closed="left")],
    "first_order_epochs": [Interval(Integral, 0, None, closed="left")],
}


class UsesMAML:
    """What estimators share whose Learner is MAML with some of its options."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        **_INNER_LOOP,
    }
    _settled: ClassVar[dict] = {}  # options that are no parameters of the estimator

    def _learner_maker(self, schema):
        options = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name in _INNER_LOOP or name in _OPTIONS
        }
        if options["n_adapt_steps"] is None:
            options["n_adapt_steps"] = options["n_inner_steps"]
        return partial(MAML, **options, **self._settled)

    def _n_network_outputs(self, schema):
        return schema.n_outputs


class _MAMLParameters(UsesMAML):
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **UsesMAML._parameter_constraints,
        **_OPTIONS,
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
        adapts="all",
        inner_rates="fixed",
        multi_step_epochs=0,
        first_order_epochs=0,
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
        self.adapts = adapts
        self.inner_rates = inner_rates
        self.multi_step_epochs = multi_step_epochs
        self.first_order_epochs = first_order_epochs
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose


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
    adapts : {"all", "body", "head"}, default="all"
        Which parameters the inner loop changes: all, those of the last layer that has
        any ("head"), or those of the other layers ("body", as in BOIL). All of them
        are meta-trained.
    inner_rates : {"fixed", "layer", "layer_and_step", "parameter"}, default="fixed"
        Learning rates of the inner loop: `inner_lr` as it is, or learned ones that
        start there: one for each layer, one for each layer and step (steps beyond
        `n_inner_steps` take those of the last), or one for every number in the network,
        as in Meta-SGD. Learned rates may become negative.
    multi_step_epochs : int, default=0
        During so many first epochs, the query loss is a weighted mean of those after
        each inner step. The weights are equal at first and move to the last step.
    first_order_epochs : int, default=0
        So many first epochs use `first_order=True`.
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

    Antoniou, Edwards, Storkey (2019), How to train your MAML, section 4: learned rates,
    multi-step loss, derivative-order annealing.

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
    adapts : {"all", "body", "head"}, default="all"
        Which parameters the inner loop changes: all, those of the last layer that has
        any ("head"), or those of the other layers ("body", as in BOIL). All of them
        are meta-trained.
    inner_rates : {"fixed", "layer", "layer_and_step", "parameter"}, default="fixed"
        Learning rates of the inner loop: `inner_lr` as it is, or learned ones that
        start there: one for each layer, one for each layer and step (steps beyond
        `n_inner_steps` take those of the last), or one for every number in the network,
        as in Meta-SGD. Learned rates may become negative.
    multi_step_epochs : int, default=0
        During so many first epochs, the query loss is a weighted mean of those after
        each inner step. The weights are equal at first and move to the last step.
    first_order_epochs : int, default=0
        So many first epochs use `first_order=True`.
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

    Antoniou, Edwards, Storkey (2019), How to train your MAML, section 4: learned rates,
    multi-step loss, derivative-order annealing.

    Examples
    --------
    >>> from sk_meta import MAMLRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = MAMLRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """
