"""Almost no inner loop: only the head adapts."""

import math
from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.heads import closed_outputs, prototype_head, shut_out, weight_of_known
from sk_meta.learner import EmbeddingLearner, weighted_mean
from sk_meta.updates import gradient_descent


class ANILState(NamedTuple):
    """The adapted head.

    Attributes
    ----------
    head : dict of tensors
        `weight` of shape (n_outputs, d) and `bias` (n_outputs,).
    closed : tuple
        Empty, or the mask (n_outputs,) of outputs that this task has no class for.
    """

    head: dict
    closed: tuple


class ANIL(EmbeddingLearner):
    """Gradient steps of a linear head on learned features.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the features.
    n_features : int
        Their number.
    n_outputs : int
        Classes or targets; 0 for a head that starts at the class prototypes.
    inner_lr : float
    learn_inner_lr : bool
    n_inner_steps : int
    n_adapt_steps : int
        The same, outside of training.
    first_order : bool

    References
    ----------
    Raghu, Raghu, Bengio, Vinyals (2020), Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML, section 4. The prototypes as a start:
    Triantafillou et al. (2020), Meta-Dataset, section 3.
    """

    uses_weight = True

    def __init__(
        self,
        module,
        n_features,
        n_outputs,
        inner_lr,
        learn_inner_lr,
        n_inner_steps,
        n_adapt_steps,
        first_order=False,
    ):
        super().__init__(module)
        self.n_outputs = n_outputs
        if n_outputs:
            self.head = nn.Linear(n_features, n_outputs)
        self.inner_lr = inner_lr
        if learn_inner_lr:
            self.log_inner_lr = nn.Parameter(torch.tensor(math.log(inner_lr)))
        self.learn_inner_lr = learn_inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        if self.n_outputs:
            head = {"weight": self.head.weight, "bias": self.head.bias}
            closed = closed_outputs(support, self.n_outputs)
        else:
            head, absent = prototype_head(Z, support)
            closed = (absent,)

        def loss(head):
            scores = self.apply_head(ANILState(head, closed), Z)
            return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

        head = gradient_descent(
            loss,
            head,
            self.log_inner_lr.exp() if self.learn_inner_lr else self.inner_lr,
            self.n_inner_steps if self.training else self.n_adapt_steps,
            self.first_order,
        )
        return ANILState(head, closed)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        scores = Z @ state.head["weight"].T + state.head["bias"]
        return shut_out(scores, state.closed)

    def loss(self, scores, query, support):
        """Mean over the query rows whose class the head can predict."""
        if self.n_outputs:
            return super().loss(scores, query, support)
        weight = weight_of_known(query, support)
        return weighted_mean(self.loss_of_rows(scores, query.y), weight)


class _ANILParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "inner_lr": [Interval(Real, 0, None, closed="neither")],
        "learn_inner_lr": ["boolean"],
        "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "n_adapt_steps": [Interval(Integral, 1, None, closed="left"), None],
        "first_order": ["boolean"],
    }

    def _learner_maker(self, schema):
        # The network's output is features: their number comes as `n_outputs`.
        return partial(
            _make_anil,
            n_head_outputs=self._n_head_outputs(schema),
            inner_lr=self.inner_lr,
            learn_inner_lr=self.learn_inner_lr,
            n_inner_steps=self.n_inner_steps,
            n_adapt_steps=self.n_adapt_steps or self.n_inner_steps,
            first_order=self.first_order,
        )

    def _n_head_outputs(self, schema):
        return schema.n_outputs


def _make_anil(module, n_outputs, n_head_outputs, **options):
    return ANIL(module, n_outputs, n_head_outputs, **options)


class ANILClassifier(_ANILParameters, MetaClassifier):
    """Almost no inner loop: MAML in which only the head adapts, for classification.

    Features that all tasks share, and a start of the linear head on them from which a
    few gradient steps on the support set lead to a good classifier. Nearly as good as
    MAML, which changes its features little, and several times as fast.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the features.
    head : {"learned", "prototypes"}, default="learned"
        Where the head starts: at meta-parameters; or at the prototypes of the support
        set (see `ProtoMAMLClassifier`), which takes any number of classes at adapt
        time.
    inner_lr : float, default=0.1
        Learning rate of the inner loop.
    learn_inner_lr : bool, default=False
        Whether `inner_lr` is a meta-parameter too, and learned from there.
    n_inner_steps : int, default=5
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants. Of little use here: steps of a head are
        cheap.
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
    Raghu, Raghu, Bengio, Vinyals (2020), Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML, section 4.

    Examples
    --------
    >>> from sk_meta import ANILClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = ANILClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        **_ANILParameters._parameter_constraints,
        "head": [StrOptions({"learned", "prototypes"})],
    }

    def __init__(
        self,
        net=None,
        *,
        head="learned",
        inner_lr=0.1,
        learn_inner_lr=False,
        n_inner_steps=5,
        n_adapt_steps=None,
        first_order=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.head = head
        self.inner_lr = inner_lr
        self.learn_inner_lr = learn_inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _n_head_outputs(self, schema):
        return 0 if self.head == "prototypes" else schema.n_outputs

    def _most_classes(self):
        return self.learner_.n_outputs or None


class ANILRegressor(_ANILParameters, MetaRegressor):
    """Almost no inner loop: MAML in which only the head adapts, for regression.

    Features that all tasks share, and a start of the linear head on them from which a
    few gradient steps on the support set lead to a good regressor.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the features.
    inner_lr : float, default=0.1
        Learning rate of the inner loop.
    learn_inner_lr : bool, default=False
        Whether `inner_lr` is a meta-parameter too, and learned from there.
    n_inner_steps : int, default=5
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants. Of little use here: steps of a head are
        cheap.
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
    Raghu, Raghu, Bengio, Vinyals (2020), Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML, section 4.

    Examples
    --------
    >>> from sk_meta import ANILRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = ANILRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """

    def __init__(
        self,
        net=None,
        *,
        inner_lr=0.1,
        learn_inner_lr=False,
        n_inner_steps=5,
        n_adapt_steps=None,
        first_order=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.inner_lr = inner_lr
        self.learn_inner_lr = learn_inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose
