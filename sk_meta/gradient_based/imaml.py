"""MAML by implicit differentiation of a regularised inner problem."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch.func import grad, grad_and_value, vjp
from torch.utils._pytree import tree_map

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.gradient_based.maml import MAML
from sk_meta.heads import closed_outputs, shut_out
from sk_meta.learner import weighted_mean
from sk_meta.updates import (
    conjugate_gradients,
    repeat,
    trainable,
    with_gradient,
)


class IMAML(MAML):
    """Solves a regularised problem on the support set; learns where it is anchored.

    The meta-gradient follows from the solution alone, whatever way led to it, so that
    memory does not grow with the number of inner steps.

    Parameters
    ----------
    module : torch.nn.Module
        Network with one output for each class or target.
    n_outputs : int
        Their number.
    regularization : float
        Half of it times the squared distance to the meta-parameters is added to the
        inner loss.
    inner_lr : float
    n_inner_steps : int
    n_adapt_steps : int
        The same, outside of training.
    n_cg_steps : int
        Of conjugate gradients, which take one product with the Hessian each.
    transductive : bool

    References
    ----------
    Rajeswaran, Finn, Kakade, Levine (2019), Meta-Learning with Implicit Gradients,
    equations 3 and 6, algorithm 2.
    """

    # Of the inner problem, relative to the regularisation: where it is less, the
    # solution is hardly one, and its derivative would be of any size.
    least_curvature = 0.1

    def __init__(
        self,
        module,
        n_outputs,
        regularization,
        inner_lr,
        n_inner_steps,
        n_adapt_steps,
        n_cg_steps,
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
        self.regularization = regularization
        self.n_cg_steps = n_cg_steps

    def why_apart(self):
        """See `Learner.why_apart`."""
        return "its meta-gradient takes products with the Hessian of each task"

    def support_loss(self, parameters, support):
        """Loss of the support set, without the regularisation."""
        closed = closed_outputs(support, self.n_outputs)
        scores = shut_out(self.call(support.X, parameters)[0], closed)
        return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

    def solve(self, support):
        """Adapted parameters; no gradient goes through them."""
        start = {name: p.detach() for name, p in trainable(self.module).items()}

        def loss(parameters):
            squared = sum(((parameters[n] - p) ** 2).sum() for n, p in start.items())
            penalty = self.regularization / 2 * squared
            return self.support_loss(parameters, support) + penalty

        n_steps = self.n_inner_steps if self.training else self.n_adapt_steps
        point, slope = start, grad_and_value(loss)
        gradient, value = slope(point)
        rate = torch.full_like(value, self.inner_lr)
        rounding = 8 * torch.finfo(value.dtype).eps

        def step(_, carry):
            rate, *best = carry
            point, gradient, value = best
            moved = {n: p - rate * gradient[n] for n, p in point.items()}
            found = slope(moved)
            # Nothing in the meta-gradient keeps the inner loop stable: a step that
            # raises the loss is taken back, and the next ones are half as long.
            better = found[1] <= value + rounding * value.abs()
            rate = torch.where(better, rate, rate / 2)
            choose = partial(torch.where, better)
            return rate, *tree_map(choose, (moved, *found), tuple(best))

        _, point, *_ = repeat(step, (rate, point, gradient, value), n_steps)
        return {name: p.detach() for name, p in point.items()}

    def adapt(self, support):
        """See `Learner.adapt`."""
        return self._state(support, self.solve(support))

    def forward(self, support, X):
        """The adapted parameters: the loss needs them to find its gradient."""
        return self.solve(support), ()

    def loss(self, scores, query, support):
        """See `Learner.loss`; in training, with the implicit gradient."""
        if not self.training:
            return super().loss(scores, query, support)

        def outer(parameters):
            scores = self.predict(self._state(support, parameters), query.X)
            return super(IMAML, self).loss(scores, query, support)

        solution = scores
        if not torch.is_grad_enabled():
            return outer(solution)
        gradient, value = grad_and_value(outer)(solution)
        _, times_hessian = vjp(
            grad(partial(self.support_loss, support=support)), solution
        )

        def product(direction):
            (image,) = times_hessian(direction)
            return {
                name: value + image[name] / self.regularization
                for name, value in direction.items()
            }

        implicit = conjugate_gradients(
            product, gradient, self.n_cg_steps, self.least_curvature
        )
        return with_gradient(value, trainable(self.module), implicit)


class _IMAMLParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "regularization": [Interval(Real, 0, None, closed="neither")],
        "inner_lr": [Interval(Real, 0, None, closed="neither")],
        "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "n_adapt_steps": [Interval(Integral, 1, None, closed="left"), None],
        "n_cg_steps": [Interval(Integral, 1, None, closed="left")],
        "transductive": ["boolean"],
    }

    def __init__(
        self,
        net=None,
        *,
        regularization=1.0,
        inner_lr=0.1,
        n_inner_steps=10,
        n_adapt_steps=None,
        n_cg_steps=5,
        transductive=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.regularization = regularization
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.n_cg_steps = n_cg_steps
        self.transductive = transductive
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            IMAML,
            regularization=self.regularization,
            inner_lr=self.inner_lr,
            n_inner_steps=self.n_inner_steps,
            n_adapt_steps=self.n_adapt_steps or self.n_inner_steps,
            n_cg_steps=self.n_cg_steps,
            transductive=self.transductive,
        )

    def _n_network_outputs(self, schema):
        return schema.n_outputs


class IMAMLClassifier(_IMAMLParameters, MetaClassifier):
    """Implicit MAML, for classification.

    Adapting minimises the loss on the support set plus a penalty on the distance to the
    meta-parameters. How its solution moves with them is found by implicit
    differentiation, so that many inner steps cost no memory, and the way they are taken
    does not matter.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each class.
    regularization : float, default=1.0
        Half of it times the squared distance to the meta-parameters is added to the
        inner loss: the smaller, the further a task may go, and the more steps it takes.
    inner_lr : float, default=0.1
        Learning rate of the inner loop; below 2 / `regularization`.
    n_inner_steps : int, default=10
        Gradient steps in meta-training; enough to come near the solution.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    n_cg_steps : int, default=5
        Steps of conjugate gradients for the meta-gradient.
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
    Rajeswaran, Finn, Kakade, Levine (2019), Meta-Learning with Implicit Gradients,
    equations 3 and 6, algorithm 2.

    Examples
    --------
    >>> from sk_meta import IMAMLClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = IMAMLClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """


class IMAMLRegressor(_IMAMLParameters, MetaRegressor):
    """Implicit MAML, for regression.

    Adapting minimises the loss on the support set plus a penalty on the distance to the
    meta-parameters. How its solution moves with them is found by implicit
    differentiation, so that many inner steps cost no memory, and the way they are taken
    does not matter.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each target.
    regularization : float, default=1.0
        Half of it times the squared distance to the meta-parameters is added to the
        inner loss: the smaller, the further a task may go, and the more steps it takes.
    inner_lr : float, default=0.1
        Learning rate of the inner loop; below 2 / `regularization`.
    n_inner_steps : int, default=10
        Gradient steps in meta-training; enough to come near the solution.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    n_cg_steps : int, default=5
        Steps of conjugate gradients for the meta-gradient.
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
    Rajeswaran, Finn, Kakade, Levine (2019), Meta-Learning with Implicit Gradients,
    equations 3 and 6, algorithm 2.

    Examples
    --------
    >>> from sk_meta import IMAMLRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = IMAMLRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """
