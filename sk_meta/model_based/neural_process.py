"""Conditional and attentive neural processes."""

from functools import partial
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_meta.attention import Attention, AttentionBlock, Memory, log_weight
from sk_meta.base import MetaEstimator, MetaRegressor
from sk_meta.learner import EmbeddingLearner, Gaussian, weighted_mean
from sk_meta.networks import MLP


class Decoder(nn.Module):
    """From an embedded row, and what is known of the task there, to a Gaussian.

    Parameters
    ----------
    n_features : int
        Length of the embedding.
    width : int
        Length of what is known, and of the hidden layers.
    n_targets : int
    """

    least_std = 0.01  # of targets scaled to 1

    def __init__(self, n_features, width, n_targets):
        super().__init__()
        self.network = MLP(n_features + width, 2 * n_targets, (width, width))

    def forward(self, Z, known):
        """(n, n_features), (n, width) -> Gaussian."""
        mean, spread = self.network(torch.cat([Z, known], -1)).chunk(2, -1)
        return Gaussian(mean, (self.least_std + F.softplus(spread)) ** 2)


class ConditionalNeuralProcess(EmbeddingLearner):
    """The support set as one vector, the mean of its encoded rows.

    Parameters
    ----------
    module : torch.nn.Module
        Network that embeds rows.
    n_features : int
        Length of the embedding.
    n_targets : int
    width : int
        Length of that vector, and of the hidden layers.

    References
    ----------
    Garnelo et al. (2018), Conditional Neural Processes, equations 1 to 3.
    """

    uses_weight = True

    def __init__(self, module, n_features, n_targets, width):
        super().__init__(module)
        self.encoder = MLP(n_features + n_targets, width, (width, width))
        self.decoder = Decoder(n_features, width, n_targets)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        H = self.encoder(torch.cat([Z, support.y], -1))
        return weighted_mean(H.mT, support.weight)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        return self.decoder(Z, state.expand(Z.shape[0], -1))


class Representations(NamedTuple):
    """The support rows, to be attended to.

    Attributes
    ----------
    memory : Memory
        Keys from embedded rows, values from encoded ones.
    log_weight : tensor of shape (n,) or float
    """

    memory: Memory
    log_weight: Tensor | float


class AttentiveNeuralProcess(EmbeddingLearner):
    """Each query row attends to the encoded support rows.

    Parameters
    ----------
    module : torch.nn.Module
        Network that embeds rows.
    n_features : int
        Length of the embedding.
    n_targets : int
    width : int
        Length of an encoded row, and of the hidden layers.
    n_heads : int
        Heads of the attention.
    n_layers : int
        Layers of attention of the support rows to one another.

    References
    ----------
    Kim et al. (2019), Attentive Neural Processes, section 3: the deterministic path.
    """

    uses_weight = True

    def __init__(self, module, n_features, n_targets, width, n_heads, n_layers):
        super().__init__(module)
        self.encoder = MLP(n_features + n_targets, width, (width, width))
        self.blocks = nn.ModuleList(
            AttentionBlock(width, n_heads) for _ in range(n_layers)
        )
        self.attention = Attention(n_features, n_features, width, width, n_heads)
        self.decoder = Decoder(n_features, width, n_targets)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        weight = log_weight(support.weight)
        H = self.encoder(torch.cat([Z, support.y], -1))
        for block in self.blocks:
            H = block(H, block.remember(H), weight)
        return Representations(self.attention.remember(Z, H), weight)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        return self.decoder(Z, self.attention(Z, state.memory, state.log_weight))


class ConditionalNeuralProcessRegressor(MetaRegressor):
    """Conditional neural process: the support set as one learned vector.

    Rows with their targets are encoded and averaged; a decoder turns the average and a
    new row into mean and standard deviation. Adapting and predicting are one pass
    through a network. The vector is deterministic: there is no latent variable.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row, so
        that rows may be of any shape.
    width : int, default=128
        Length of the vector, and of the hidden layers of encoder and decoder.
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
    Garnelo et al. (2018), Conditional Neural Processes.

    Examples
    --------
    >>> from sk_meta import ConditionalNeuralProcessRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> net = TaskNet(max_epochs=2)
    >>> meta = ConditionalNeuralProcessRegressor(net, random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "width": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        width=128,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.width = width
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            ConditionalNeuralProcess, n_targets=schema.n_outputs, width=self.width
        )


class AttentiveNeuralProcessRegressor(MetaRegressor):
    """Attentive neural process: query rows attend to the encoded support rows.

    Unlike a conditional neural process it can go through the support rows, however many
    there are. Its path is deterministic: there is no latent variable.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row, so
        that rows may be of any shape. Embedded rows are what attention compares.
    width : int, default=64
        Length of an encoded row, and of the hidden layers of encoder and decoder.
    n_heads : int, default=4
        Heads of the attention; `width` is a multiple of it.
    n_layers : int, default=1
        Layers of attention of the support rows to one another; 0 for none.
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
    Kim et al. (2019), Attentive Neural Processes.

    Examples
    --------
    >>> from sk_meta import AttentiveNeuralProcessRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> net = TaskNet(max_epochs=2)
    >>> meta = AttentiveNeuralProcessRegressor(net, random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "width": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        width=64,
        n_heads=4,
        n_layers=1,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.width = width
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            AttentiveNeuralProcess,
            n_targets=schema.n_outputs,
            width=self.width,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
        )
