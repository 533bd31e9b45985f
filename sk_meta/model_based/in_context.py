"""In-context learners: a transformer that reads the support set as its memory."""

from functools import partial
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_meta.attention import AttentionBlock, Memory, log_weight
from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.learner import EmbeddingLearner, Gaussian
from sk_meta.networks import LayerNorm


class Context(NamedTuple):
    """What the support set has become, layer by layer.

    Attributes
    ----------
    memories : tuple of Memory
        Keys and values of each layer, which grow with the support set.
    rows : tensor of shape (n, width)
        Support rows after the last layer.
    log_weight : tensor of shape (n,) or float
    log_member : tensor of shape (n_classes, n), or float in regression
        0 for the rows of a class, and far below for the others.
    """

    memories: tuple[Memory, ...]
    rows: Tensor
    log_weight: Tensor | float
    log_member: Tensor | float


class InContext(EmbeddingLearner):
    """A transformer over embedded rows; what classifier and regressor share.

    Support rows attend to one another; query rows to the support rows alone, so that
    they do not depend on each other. Nothing tells where a row stands: their order does
    not matter.

    Parameters
    ----------
    module : torch.nn.Module
        Network that embeds rows.
    n_features : int
        Length of the embedding.
    n_layers, n_heads, width : int
        Of the transformer.

    References
    ----------
    Müller et al. (2022), Transformers Can Do Bayesian Inference, section 3 (the mask).
    """

    uses_weight = True

    def __init__(self, module, n_features, n_layers, n_heads, width):
        super().__init__(module)
        self.enter = nn.Linear(n_features, width)
        nn.init.orthogonal_(self.enter.weight)
        self.unknown = nn.Parameter(torch.zeros(width))  # in the place of a label
        self.blocks = nn.ModuleList(
            AttentionBlock(width, n_heads) for _ in range(n_layers)
        )
        self.leave = LayerNorm(width)

    def read(self, H, biases):
        """Support rows (n, width), through all layers: what is left in each.

        `biases` are added to the attention's scores, layer by layer.
        """
        memories = []
        for block, bias in zip(self.blocks, biases, strict=True):
            memories.append(block.remember(H))
            H = block(H, memories[-1], bias)
        return tuple(memories), self.leave(H)

    def ask(self, state, Z):
        """Embedded query rows (m, n_features), through all layers: (m, width)."""
        H = self.enter(Z) + self.unknown
        for block, memory in zip(self.blocks, state.memories, strict=True):
            H = block(H, memory, state.log_weight)
        return self.leave(H)


class InContextClassification(InContext):
    """Class scores from how close a row is to the support rows, after the last layer.

    Rows of one class attend to one another by a learned preference; the score of a
    class is the log of the attention that its rows get in the end. Both treat classes
    alike, however many there are. Where labels are shared, labels are embedded too, and
    every class has scores of its own beside the attention.

    Parameters
    ----------
    module, n_features, n_layers, n_heads, width
        See `InContext`.
    n_classes : int
        Shared classes; 0 where labels are local.

    References
    ----------
    Vinyals et al. (2016), Matching Networks for One Shot Learning, equation 1.
    Mishra et al. (2018), A Simple Neural Attentive Meta-Learner.
    """

    def __init__(self, module, n_features, n_layers, n_heads, width, n_classes):
        super().__init__(module, n_features, n_layers, n_heads, width)
        self.n_classes = n_classes
        # Some heads read the own class from the start, others all rows alike.
        preference = torch.linspace(0.0, 4.0, n_heads).repeat(n_layers, 1)
        self.preference = nn.Parameter(preference)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        for layer in (self.query, self.key):
            nn.init.eye_(layer.weight)
        self.log_sharpness = nn.Parameter(torch.tensor(0.0))
        if n_classes:
            self.label = nn.Linear(n_classes, width, bias=False)
            self.head = nn.Linear(width, n_classes)
            self.log_nowhere = nn.Parameter(torch.full((n_classes,), -4.0))

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        outputs = torch.arange(support.n_classes, device=Z.device)
        member = (support.y == outputs[:, None]).to(Z.dtype)
        H = self.enter(Z)
        if self.n_classes:
            H = H + self.label(member.T)
        weight = log_weight(support.weight)
        same = member.T @ member
        biases = weight + self.preference[..., None, None] * same
        memories, H = self.read(H, biases)
        log_member = torch.zeros_like(member).masked_fill(member == 0, -1e9)
        return Context(memories, self.key(H), weight, log_member)

    def apply_head(self, state, Z):
        """Log of the attention to each class, and what is known beside it."""
        H = self.ask(state, Z)
        Q, K = self.query(H), state.rows
        squared = (Q * Q).sum(1, keepdim=True) - 2 * Q @ K.T + (K * K).sum(1)
        sharpness = self.log_sharpness.exp() / Q.shape[1] ** 0.5
        closeness = state.log_weight - sharpness * squared
        scores = (closeness[:, None] + state.log_member).logsumexp(-1)
        if self.n_classes:
            scores = torch.logaddexp(scores, self.log_nowhere) + self.head(H)
        return scores


class InContextRegression(InContext):
    """Mean and variance from a query row after the last layer.

    Parameters
    ----------
    module, n_features, n_layers, n_heads, width
        See `InContext`.
    n_targets : int

    References
    ----------
    Müller et al. (2022), Transformers Can Do Bayesian Inference, with a Gaussian head.
    """

    least_std = 0.01  # of targets scaled to 1

    def __init__(self, module, n_features, n_layers, n_heads, width, n_targets):
        super().__init__(module, n_features, n_layers, n_heads, width)
        self.label = nn.Linear(n_targets, width)
        self.head = nn.Linear(width, 2 * n_targets)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        weight = log_weight(support.weight)
        H = self.enter(Z) + self.label(support.y)
        memories, H = self.read(H, [weight] * len(self.blocks))
        return Context(memories, H, weight, 0.0)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        mean, spread = self.head(self.ask(state, Z)).chunk(2, -1)
        return Gaussian(mean, (self.least_std + F.softplus(spread)) ** 2)


class _InContextParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        n_layers=2,
        n_heads=4,
        width=64,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.width = width
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _transformer(self):
        names = ("n_layers", "n_heads", "width")
        return {name: getattr(self, name) for name in names}


class InContextClassifier(_InContextParameters, MetaClassifier):
    """A transformer that reads the support set as its memory, and classifies by it.

    Adapting stores keys and values of the support rows, layer by layer, which query
    rows attend to; no parameter changes. Classes are scored by the attention that
    their rows get, so that local labels may have any number of classes. With shared
    labels every class has scores of its own too, and one without a support row is
    predicted as well.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row.
    n_layers : int, default=2
        Layers of the transformer.
    n_heads : int, default=4
        Heads of the attention; `width` is a multiple of it.
    width : int, default=64
        Length of a row in the transformer.
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
    Santoro et al. (2016), Meta-Learning with Memory-Augmented Neural Networks. Mishra
    et al. (2018), A Simple Neural Attentive Meta-Learner. Müller et al. (2022),
    Transformers Can Do Bayesian Inference.

    Examples
    --------
    >>> from sk_meta import InContextClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = InContextClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    def _learner_maker(self, schema):
        n_classes = schema.n_outputs if schema.labels == "shared" else 0
        return partial(
            InContextClassification, n_classes=n_classes, **self._transformer()
        )


class InContextRegressor(_InContextParameters, MetaRegressor):
    """A transformer that reads the support set as its memory; mean and std.

    Adapting stores keys and values of the support rows, layer by layer, which query
    rows attend to; no parameter changes. Trained on tasks that are drawn from a prior,
    its predictions approach the posterior predictive distribution under that prior.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row.
    n_layers : int, default=2
        Layers of the transformer.
    n_heads : int, default=4
        Heads of the attention; `width` is a multiple of it.
    width : int, default=64
        Length of a row in the transformer.
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
    Müller et al. (2022), Transformers Can Do Bayesian Inference. Kirsch et al. (2022),
    General-Purpose In-Context Learning by Meta-Learning Transformers.

    Examples
    --------
    >>> from sk_meta import InContextRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = InContextRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """

    def _learner_maker(self, schema):
        return partial(
            InContextRegression, n_targets=schema.n_outputs, **self._transformer()
        )
