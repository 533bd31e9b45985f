"""Ridge and logistic regression on learned features, differentiated through."""

from functools import partial
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.heads import logistic_newton, ridge, shut_out, weight_of_known
from sk_meta.learner import EmbeddingLearner, weighted_mean


class R2D2State(NamedTuple):
    """The head of one task.

    Attributes
    ----------
    weights : tensor of shape (n_features + 1, n_outputs)
        The last row is the intercept.
    closed : tuple
        Empty, or the mask (n_outputs,) of classes without a support row.
    """

    weights: Tensor
    closed: tuple = ()


class R2D2(EmbeddingLearner):
    """Ridge regression on learned features; its penalty is learned.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is features.

    References
    ----------
    Bertinetto, Henriques, Torr, Vedaldi (2019), Meta-learning with Differentiable
    Closed-form Solvers, equations 3 to 6.
    """

    uses_weight = True
    least_penalty = 1e-6

    def __init__(self, module):
        super().__init__(module)
        self.log_penalty = nn.Parameter(torch.zeros(()))

    def penalty(self):
        """Of the squared norm of the weights: positive."""
        return self.log_penalty.exp() + self.least_penalty

    def features(self, X, Z):
        """Network output and 1, side by side: the intercept is a weight as any."""
        return torch.cat([Z, torch.ones_like(Z[:, :1])], dim=1)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        return R2D2State(self.solve(Z, support.y, support.weight))

    def solve(self, Z, Y, weight):
        """Weights of the head (p, n_outputs) for targets Y (n, n_outputs)."""
        return ridge(Z, Y, self.penalty(), weight)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        return Z @ state.weights


class R2D2OfClasses(R2D2):
    """The same for one-hot labels, whose scores a learned scale turns into logits.

    The bias that the paper adds to the scores is common to all classes, so that the
    softmax has no use for it; there is none here.
    """

    first_scale = 10.0  # scores lie between 0 and 1

    def __init__(self, module):
        super().__init__(module)
        self.log_scale = nn.Parameter(torch.tensor(self.first_scale).log())

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        classes = torch.arange(support.n_classes, device=Z.device)
        member = (support.y[:, None] == classes).to(Z.dtype)
        weight = member.sum(1)  # a row of no class says nothing
        if support.weight is not None:
            weight = weight * support.weight
        closed = (member * weight[:, None]).sum(0) == 0
        return R2D2State(self.solve(Z, member, weight), (closed,))

    def apply_head(self, state, Z):
        """Logits; those of a class without rows are far below the others."""
        return shut_out(self.log_scale.exp() * (Z @ state.weights), state.closed)

    def loss(self, scores, query, support):
        """Mean over the query rows whose class has a support row."""
        losses = self.loss_of_rows(scores, query.y)
        return weighted_mean(losses, weight_of_known(query, support))


class LRD2(R2D2OfClasses):
    """Logistic regression by Newton's method: each class against the rest.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is features.
    n_newton_steps : int

    References
    ----------
    Bertinetto et al. (2019), section 3.3; for two classes there.
    """

    first_scale = 1.0  # scores are log odds

    def __init__(self, module, n_newton_steps):
        super().__init__(module)
        self.n_newton_steps = n_newton_steps

    def solve(self, Z, Y, weight):
        """See `R2D2.solve`."""
        return logistic_newton(Z, Y, self.penalty(), weight, self.n_newton_steps)


class R2D2Classifier(MetaClassifier):
    """Closed-form ridge or logistic regression on learned features.

    The network is trained so that a linear classifier, fit to the support set alone,
    does well on the query set. Takes any number of classes at adapt time, also with
    local labels. A class without a support row has probability 0.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is features.
    head : {"ridge", "logistic"}, default="ridge"
        "ridge" is least squares on one-hot labels, solved exactly, with a learned scale
        that turns its scores into logits (R2-D2). "logistic" is logistic regression of
        each class against the rest, by Newton's method (LR-D2).
    n_newton_steps : int, default=5
        Newton steps of the logistic head.
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
    Bertinetto, Henriques, Torr, Vedaldi (2019), Meta-learning with Differentiable
    Closed-form Solvers.

    Examples
    --------
    >>> from sk_meta import R2D2Classifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = R2D2Classifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "head": [StrOptions({"ridge", "logistic"})],
        "n_newton_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        head="ridge",
        n_newton_steps=5,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.head = head
        self.n_newton_steps = n_newton_steps
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        n_steps = self.n_newton_steps if self.head == "logistic" else None
        return partial(_make_classifier, n_newton_steps=n_steps)


class R2D2Regressor(MetaRegressor):
    """Closed-form ridge regression on learned features.

    The network and the ridge penalty are trained so that ridge regression, fit to the
    support set alone, does well on the query set. It gives no standard deviation.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is features.
    support_size : int, float or tuple, default=5
        Rows of the support set of a task that has none: a number, a fraction, or a
        range (low, high) drawn anew at each visit.
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
    Bertinetto, Henriques, Torr, Vedaldi (2019), Meta-learning with Differentiable
    Closed-form Solvers.

    Examples
    --------
    >>> from sk_meta import R2D2Regressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = R2D2Regressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """

    def __init__(
        self,
        net=None,
        *,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return _make_regressor


def _make_classifier(module, n_outputs, n_newton_steps):
    if n_newton_steps is None:
        return R2D2OfClasses(module)
    return LRD2(module, n_newton_steps)


def _make_regressor(module, n_outputs):
    return R2D2(module)
