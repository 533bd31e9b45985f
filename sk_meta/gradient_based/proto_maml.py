"""MAML whose output layer starts at the class prototypes."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

from sklearn.utils._param_validation import Interval
from torch import Tensor

from sk_meta.base import MetaClassifier, MetaEstimator
from sk_meta.heads import prototype_head, shut_out, weight_of_known
from sk_meta.learner import Learner, weighted_mean
from sk_meta.updates import gradient_descent, trainable


class ProtoMAMLState(NamedTuple):
    """What adaptation leaves behind.

    Attributes
    ----------
    parameters : dict of tensors
        The adapted network's, ``net.<name>``, and the output layer's: ``head.weight``
        of shape (n_classes, d) and ``head.bias`` (n_classes,).
    statistics : tuple of (mean, variance)
        Of the support set, at each batch normalisation.
    absent : tensor of shape (n_classes,)
        Classes without a support row.
    """

    parameters: dict
    statistics: tuple
    absent: Tensor


class ProtoMAML(Learner):
    """Gradient steps of an embedding and an output layer made of prototypes.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.
    inner_lr : float
    n_inner_steps : int
    n_adapt_steps : int
        The same, outside of training.
    first_order : bool
    transductive : bool
    gradient_checkpointing : bool

    References
    ----------
    Triantafillou et al. (2020), Meta-Dataset: A Dataset of Datasets for Learning to
    Learn from Few Examples, section 3, "Proto-MAML".
    """

    uses_weight = True

    def __init__(
        self,
        module,
        inner_lr,
        n_inner_steps,
        n_adapt_steps,
        first_order=False,
        transductive=False,
        gradient_checkpointing=False,
    ):
        super().__init__(module)
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.transductive = transductive
        self.gradient_checkpointing = gradient_checkpointing

    def embed(self, X, parameters, source="batch", statistics=()):
        """Embedding of rows and statistics seen, see `Learner.call`."""
        own = {
            name.removeprefix("net."): value
            for name, value in parameters.items()
            if name.startswith("net.")
        }
        return self.call(X, own, source, statistics)

    def scores(self, Z, parameters, absent):
        """Logits of embedded rows (n, d)."""
        scores = Z @ parameters["head.weight"].T + parameters["head.bias"]
        return shut_out(scores, (absent,))

    def adapt(self, support):
        """See `Learner.adapt`."""
        net = {f"net.{name}": value for name, value in trainable(self.module).items()}
        # The meta-gradient also goes through the prototypes, into the embedding.
        head, absent = prototype_head(self.embed(support.X, net)[0], support)
        start = {f"head.{name}": value for name, value in head.items()}
        # Views: the gradient of a step, by these, does not.
        start.update((name, value.view_as(value)) for name, value in net.items())

        def loss(parameters):
            Z, _ = self.embed(support.X, parameters)
            scores = self.scores(Z, parameters, absent)
            return weighted_mean(self.loss_of_rows(scores, support.y), support.weight)

        parameters = gradient_descent(
            loss,
            start,
            self.inner_lr,
            self.n_inner_steps if self.training else self.n_adapt_steps,
            self.first_order,
            self.gradient_checkpointing and self.training and self.way == "loop",
        )
        statistics = ()
        if self.norms and not self.transductive:
            _, statistics = self.embed(support.X, parameters, "trace")
        return ProtoMAMLState(parameters, statistics, absent)

    def predict(self, state, X):
        """See `Learner.predict`."""
        source = "batch" if self.transductive else "given"
        Z, _ = self.embed(X, state.parameters, source, state.statistics)
        return self.calibrated(self.scores(Z, state.parameters, state.absent))

    def loss(self, scores, query, support):
        """Mean over the query rows whose class has a support row."""
        weight = weight_of_known(query, support)
        return weighted_mean(self.loss_of_rows(scores, query.y), weight)


class ProtoMAMLClassifier(MetaClassifier):
    """Proto-MAML: gradient steps that start at prototypical networks.

    The output layer is made of the prototypes of the support set, then the whole
    network takes gradient steps on it. Takes any number of classes at adapt time, also
    with local labels.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
    inner_lr : float, default=0.01
        Learning rate of the inner loop. Scores are squared distances, so the steps of a
        long embedding are large: rather smaller than for MAML.
    n_inner_steps : int, default=1
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`;
        0 leaves the prototypes as they are.
    first_order : bool, default=False
        Treat the inner gradients as constants: cheaper, nearly as good. The gradient
        still goes through the prototypes.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, so that a
        prediction depends on its neighbours; else the support set's.
    gradient_checkpointing : bool, default=False
        Compute inner steps anew in the backward pass instead of keeping what they
        leave, which takes longer and saves memory. No effect under vmap.
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
    Triantafillou et al. (2020), Meta-Dataset: A Dataset of Datasets for Learning to
    Learn from Few Examples, section 3, "Proto-MAML".

    Examples
    --------
    >>> from sk_meta import ProtoMAMLClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = ProtoMAMLClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "inner_lr": [Interval(Real, 0, None, closed="neither")],
        "n_inner_steps": [Interval(Integral, 1, None, closed="left")],
        "n_adapt_steps": [Interval(Integral, 0, None, closed="left"), None],
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
        n_adapt_steps = self.n_adapt_steps
        if n_adapt_steps is None:
            n_adapt_steps = self.n_inner_steps
        return partial(
            _make_proto_maml,
            inner_lr=self.inner_lr,
            n_inner_steps=self.n_inner_steps,
            n_adapt_steps=n_adapt_steps,
            first_order=self.first_order,
            transductive=self.transductive,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def _make_proto_maml(module, n_outputs, **options):
    return ProtoMAML(module, **options)
