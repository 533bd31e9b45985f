"""Hypernetworks: one network writes the weights of another from the support set."""

from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.learner import EmbeddingLearner, Gaussian, weighted_mean
from sk_meta.networks import MLP
from sk_meta.tasks.metadata import check_metadata, describe
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.validation import call_task


class Reader(nn.Module):
    """A whole task as one vector: the mean of its encoded rows, and its metadata.

    Parameters
    ----------
    n_inputs : int
        Length of a row that is read.
    width : int
        Length of the vector, and of the hidden layers.
    metadata : Description, or None
        Mean and scale of the metadata of the training tasks.
    """

    def __init__(self, n_inputs, width, metadata=None):
        super().__init__()
        self.rows = MLP(n_inputs, width, (width,))
        n_metadata = 0
        if metadata is not None:
            mean, scale = (
                torch.as_tensor(part, dtype=torch.float32)
                for part in (metadata.mean, metadata.scale)
            )
            self.register_buffer("metadata_mean", mean)
            self.register_buffer("metadata_scale", scale)
            n_metadata = len(mean)
        self.n_metadata = n_metadata
        self.whole = MLP(width + n_metadata, width, (width,))

    def forward(self, rows, support):
        """(n, n_inputs) -> (width,); the order of the rows does not matter."""
        parts = [weighted_mean(self.rows(rows).mT, support.weight)]
        if self.n_metadata:
            parts.append((support.metadata - self.metadata_mean) / self.metadata_scale)
        return F.relu(self.whole(torch.cat(parts)[None]))[0]


class GeneratedHead(NamedTuple):
    """The weights of one task's network.

    Attributes
    ----------
    scale, shift : tensors of shape (d,)
        Of the embedding.
    weight : tensor of shape (n_classes, d)
    bias : tensor of shape (n_classes,)
    """

    scale: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor


class ClassHypernetwork(EmbeddingLearner):
    """Writes the weights of a class from its rows, and from what the task is like.

    What the task is like decides the scale and the shift of the embedding; after that,
    a class's mean and the task decide the weights of the class. All classes have the
    same generator, so that there may be any number of them. It is added to the linear
    head that is the nearest class mean, and starts at 0.

    Parameters
    ----------
    module : torch.nn.Module
        Network that embeds rows.
    n_features : int
        Length of the embedding.
    n_classes : int
        Shared classes, which have a prior mean each; 0 where labels are local.
    width : int
        Of the generator.
    metadata : Description, or None
        See `Reader`.

    References
    ----------
    Bertinetto et al. (2016), Learning Feed-forward One-shot Learners, section 2. Ha,
    Dai, Le (2017), HyperNetworks. Perez et al. (2018), FiLM, equation 2.
    """

    uses_weight = True

    def __init__(self, module, n_features, n_classes, width, metadata=None):
        super().__init__(module)
        self.n_classes = n_classes
        self.reader = Reader(n_features, width, metadata)
        self.modulation = nn.Linear(width, 2 * n_features)
        # No bias at the end: what all classes get alike changes no probability.
        self.generator = nn.Sequential(
            MLP(n_features + width, None, (width,), nn.GELU),
            nn.Linear(width, n_features + 1, bias=False),
        )
        for start in (*self.modulation.parameters(), self.generator[1].weight):
            nn.init.zeros_(start)
        self.log_sharpness = nn.Parameter(torch.tensor(0.0))
        if n_classes:
            self.prior_mean = nn.Parameter(torch.zeros(n_classes, n_features))
            self.prior_bias = nn.Parameter(torch.zeros(n_classes))
            self.log_count = nn.Parameter(torch.tensor(0.0))

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        outputs = torch.arange(support.n_classes, device=Z.device)
        member = (support.y[:, None] == outputs).to(Z.dtype)
        if support.weight is not None:
            member = member * support.weight[:, None]
        task = self.reader(Z, support)
        scale, shift = self.modulation(task).chunk(2)
        scale = scale + 1
        count = member.sum(0)[:, None]
        total = member.T @ (Z * scale + shift)
        if self.n_classes:
            prior = self.log_count.exp()
            means = (total + prior * self.prior_mean) / (count + prior)
        else:
            means = total / count.clamp_min(1e-12)
        known = torch.cat([means, task.expand(means.shape[0], -1)], 1)
        generated = self.generator(known)
        sharpness = self.log_sharpness.exp()
        weight = sharpness * (2 * means + generated[:, :-1])
        bias = sharpness * (generated[:, -1] - (means * means).sum(1))
        if self.n_classes:
            bias = bias + self.prior_bias
        else:
            bias = bias.masked_fill(count[:, 0] == 0, -1e9)
        return GeneratedHead(scale, shift, weight, bias)

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        return (Z * state.scale + state.shift) @ state.weight.T + state.bias


class TargetHypernetwork(EmbeddingLearner):
    """Writes all weights of a small network on the embedding, from the support set.

    Parameters
    ----------
    module : torch.nn.Module
        Network that embeds rows.
    n_features : int
        Length of the embedding.
    n_targets : int
    task_hidden : tuple of int
        Widths of the hidden layers of the network that is written.
    width : int
        Of the generator.
    metadata : Description, or None
        See `Reader`.

    References
    ----------
    Ha, Dai, Le (2017), HyperNetworks. Chang, Flokas, Lipson (2020), Principled Weight
    Initialization for Hypernetworks: why the generator's own weights start small.
    """

    uses_weight = True
    least_std = 0.01  # of targets scaled to 1

    def __init__(
        self, module, n_features, n_targets, task_hidden, width, metadata=None
    ):
        super().__init__(module)
        self.reader = Reader(n_features + n_targets, width, metadata)
        sizes = (n_features, *task_hidden, 2 * n_targets)
        self.generators = nn.ModuleList()
        for n_in, n_out in pairwise(sizes):
            generator = nn.Linear(width, (n_in + 1) * n_out)
            with torch.no_grad():
                # At first, nearly what torch would give a layer of this size.
                generator.weight.mul_(n_in**-0.5)
                generator.bias.uniform_(-(n_in**-0.5), n_in**-0.5)
            self.generators.append(generator)
        self.sizes = sizes

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`; a (n_out, n_in + 1) matrix for each layer.

        The last column is the bias.
        """
        task = self.reader(torch.cat([Z, support.y], 1), support)
        return tuple(
            generator(task).view(n_out, -1)
            for generator, n_out in zip(self.generators, self.sizes[1:], strict=True)
        )

    def apply_head(self, state, Z):
        """See `EmbeddingLearner.apply_head`."""
        *hidden, last = state
        for layer in hidden:
            Z = F.relu(Z @ layer[:, :-1].T + layer[:, -1])
        mean, spread = (Z @ last[:, :-1].T + last[:, -1]).chunk(2, 1)
        return Gaussian(mean, (self.least_std + F.softplus(spread)) ** 2)


class _HypernetworkParameters:
    """Metadata, and what the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "width": [Interval(Integral, 1, None, closed="left")],
        "use_metadata": ["boolean"],
    }

    def _make_schema(self, tasks):
        schema = super()._make_schema(tasks)
        if self.use_metadata:
            schema.metadata = describe(tasks)
        return schema

    def _later_dataset(self, tasks, scored=True):
        if self.schema_.metadata is not None:
            looked_at = tasks[:1] if isinstance(tasks, EpisodeSampler) else tasks
            for position, task in enumerate(looked_at):
                what = call_task(task, position)
                check_metadata(task.metadata, self.schema_.metadata, what)
        return super()._later_dataset(tasks, scored)

    def adapt_state(self, X, y, sample_weight=None, metadata=None):
        """See `MetaEstimator.adapt_state`."""
        if self.schema_.metadata is not None:
            check_metadata(metadata, self.schema_.metadata, "The support set")
        return super().adapt_state(X, y, sample_weight, metadata)


class HypernetworkClassifier(_HypernetworkParameters, MetaClassifier):
    """Hypernetwork: the support set is read, and the weights of a classifier written.

    The embedding network is common to all tasks; a generator writes how this task
    scales it, and the weights of each class from the class's rows and from all of them.
    Takes any number of classes at adapt time, also with local labels. With shared
    labels, a class without a support row is predicted from its prior.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row.
    width : int, default=64
        Of the network that reads the support set, and of the generator.
    use_metadata : bool, default=False
        Whether the weights depend on the tasks' `metadata` too: numbers that describe a
        task, as many in each. `adapt` then needs them as well.
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
    Ha, Dai, Le (2017), HyperNetworks. Bertinetto et al. (2016), Learning Feed-forward
    One-shot Learners. Munkhdalai, Yu (2017), Meta Networks.

    Examples
    --------
    >>> from sk_meta import HypernetworkClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = HypernetworkClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    def __init__(
        self,
        net=None,
        *,
        width=64,
        use_metadata=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.width = width
        self.use_metadata = use_metadata
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            ClassHypernetwork,
            n_classes=schema.n_outputs if schema.labels == "shared" else 0,
            width=self.width,
            metadata=schema.metadata,
        )


class HypernetworkRegressor(_HypernetworkParameters, MetaRegressor):
    """Hypernetwork: the support set is read, and the weights of a regressor written.

    The embedding network is common to all tasks; on it stands a small network whose
    weights, all of them, are written for each task. It gives mean and standard
    deviation.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding of a row.
    width : int, default=64
        Of the network that reads the support set, and of the generator.
    task_hidden : tuple of int, default=(16,)
        Widths of the hidden layers whose weights are written; () for a linear one.
    use_metadata : bool, default=False
        Whether the weights depend on the tasks' `metadata` too: numbers that describe a
        task, as many in each. `adapt` then needs them as well.
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
    Ha, Dai, Le (2017), HyperNetworks. Bertinetto et al. (2016), Learning Feed-forward
    One-shot Learners. Munkhdalai, Yu (2017), Meta Networks.

    Examples
    --------
    >>> from sk_meta import HypernetworkRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = HypernetworkRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **_HypernetworkParameters._parameter_constraints,
        "task_hidden": [tuple, list],
    }

    def __init__(
        self,
        net=None,
        *,
        width=64,
        task_hidden=(16,),
        use_metadata=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.width = width
        self.task_hidden = task_hidden
        self.use_metadata = use_metadata
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self):
        super()._check_parameters()
        whole = [isinstance(width, Integral) for width in self.task_hidden]
        if not all(whole) or min(self.task_hidden, default=1) < 1:
            raise ValueError(
                "task_hidden must hold widths, ints of at least 1; got "
                f"{self.task_hidden!r}."
            )

    def _learner_maker(self, schema):
        return partial(
            TargetHypernetwork,
            n_targets=schema.n_outputs,
            task_hidden=self.task_hidden,
            width=self.width,
            metadata=schema.metadata,
        )
