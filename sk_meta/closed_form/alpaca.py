"""Closed-form Bayesian adaptation of a last layer whose prior is learned."""

import math
from functools import partial
from numbers import Real
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.learner import EmbeddingLearner, Gaussian
from sk_meta.updates import trainable


class LinearPosterior(NamedTuple):
    """Posterior of the last layer of one task.

    Attributes
    ----------
    mean : tensor of shape (p, n_targets)
    covariance : tensor of shape (n_targets, p, p)
    """

    mean: Tensor
    covariance: Tensor


class ALPaCA(EmbeddingLearner):
    """Bayesian linear regression on learned features, with a learned prior.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is features.
    n_features : int
        Their number.
    n_inputs : int
        Number of the row's own values that are features too; 0 for none.
    n_targets : int
    regularization : float, default=0.0
        Factor of `penalty` in the loss of a task in training.

    References
    ----------
    Harrison, Sharma, Pavone (2018), Meta-Learning Priors for Efficient Online Bayesian
    Regression, equations 5 to 8; here in the dual form, which inverts no covariance,
    and with a prior whose scale does not depend on the noise.
    """

    uses_weight = True
    least_noise = 1e-4  # variance, of targets scaled to 1

    def __init__(self, module, n_features, n_inputs, n_targets, regularization=0.0):
        super().__init__(module)
        self.n_inputs = n_inputs
        self.regularization = regularization
        size = n_inputs + n_features + 1
        scale = torch.zeros(size)
        scale[n_inputs : n_inputs + n_features] = -0.5 * math.log(n_features)
        self.prior_mean = nn.Parameter(torch.zeros(size, n_targets))
        self.register_buffer("first_log_scale", scale)
        self.prior_log_scale = nn.Parameter(scale.clone())
        self.prior_correlation = nn.Parameter(torch.zeros(size, size))
        self.log_noise_std = nn.Parameter(torch.full((n_targets,), math.log(0.1)))

    def noise(self):
        """Variance of the noise of each target."""
        return (2 * self.log_noise_std).exp() + self.least_noise

    def factor(self):
        """Lower triangular factor of the prior covariance, (p, p)."""
        return torch.diag(self.prior_log_scale.exp()) + self.prior_correlation.tril(-1)

    def divergence(self):
        """Kullback-Leibler divergence of the prior from the one before training.

        That one has mean 0 and independent weights. Mean over targets.
        """
        scale = self.first_log_scale.exp()[:, None]
        squared = ((self.factor() / scale) ** 2).sum()
        squared = squared + ((self.prior_mean / scale) ** 2).sum(0).mean()
        grown = (self.prior_log_scale - self.first_log_scale).sum()
        return 0.5 * (squared - len(scale)) - grown

    def penalty(self):
        """The same, and half the squared weights of the network, biases left out."""
        weights = [w for w in trainable(self.module).values() if w.ndim > 1]
        return self.divergence() + 0.5 * sum((w**2).sum() for w in weights)

    def loss(self, scores, query, support):
        """Minus the log density of the query rows; in training, with the penalty."""
        found = super().loss(scores, query, support)
        if not self.training:
            return found
        return found + self.regularization * self.penalty()

    def features(self, X, Z):
        """Row, network output and 1, side by side: (n, p)."""
        parts = [X.flatten(1)] if self.n_inputs else []
        return torch.cat([*parts, Z, torch.ones_like(Z[:, :1])], dim=1)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`.

        In float64: the smaller the noise, the worse the condition of the matrix.
        """
        residual = support.y - Z @ self.prior_mean
        if support.weight is not None:
            root = support.weight.sqrt()[:, None]
            Z, residual = Z * root, residual * root
        factor = self.factor().double()
        A = Z.double() @ factor
        noise = self.noise().double()[:, None, None]
        gram = A @ A.T + noise * torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        root = torch.linalg.cholesky_ex(gram)[0]
        B = torch.linalg.solve_triangular(
            root, A.expand(len(root), *A.shape), upper=False
        )
        r = torch.linalg.solve_triangular(
            root, residual.double().T[:, :, None], upper=False
        )
        mean = self.prior_mean + (factor @ (B.mT @ r))[:, :, 0].T.to(Z.dtype)
        rest = torch.eye(factor.shape[0], dtype=A.dtype, device=A.device) - B.mT @ B
        return LinearPosterior(mean, (factor @ rest @ factor.T).to(Z.dtype))

    def apply_head(self, state, Z):
        """Predictive mean and variance, noise included."""
        spread = ((Z @ state.covariance) * Z).sum(-1).T.clamp_min(0.0)
        return Gaussian(Z @ state.mean, spread + self.noise())


class ClassPosterior(NamedTuple):
    """Posterior of the class means of one task.

    Attributes
    ----------
    mean : tensor of shape (n_classes, d)
    variance : tensor of shape (n_classes, d)
        Of a new row: noise, and what is not known of the mean.
    log_share : tensor of shape (n_classes,)
        Of the classes, up to a constant.
    """

    mean: Tensor
    variance: Tensor
    log_share: Tensor


class BayesianDiscriminant(EmbeddingLearner):
    """Gaussian classes in a learned embedding, with a learned prior on their means.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.
    n_features : int
        Its length.
    n_inputs : int
        Number of the row's own values that are part of it too; 0 for none.
    n_classes : int
        Classes with a prior of their own; 1 where labels are local.

    References
    ----------
    Harrison, Sharma, Finn, Pavone (2020), Continuous Meta-Learning without Tasks,
    section 4.2 (the classification counterpart of ALPaCA).
    """

    uses_weight = True

    def __init__(self, module, n_features, n_inputs, n_classes):
        super().__init__(module)
        self.n_inputs = n_inputs
        size = n_features + n_inputs
        self.prior_mean = nn.Parameter(torch.zeros(n_classes, size))
        self.log_prior_variance = nn.Parameter(torch.zeros(size))
        self.log_noise = nn.Parameter(torch.zeros(size))
        self.log_count = nn.Parameter(torch.zeros(n_classes))

    def features(self, X, Z):
        """Row and network output, side by side: (n, d)."""
        return torch.cat([X.flatten(1), Z], dim=1) if self.n_inputs else Z

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        outputs = torch.arange(support.n_classes, device=Z.device)
        member = (support.y[:, None] == outputs).to(Z.dtype)
        if support.weight is not None:
            member = member * support.weight[:, None]
        count = member.sum(0)
        noise, prior = self.log_noise.exp(), self.log_prior_variance.exp()
        precision = 1 / prior + count[:, None] / noise
        mean = (self.prior_mean / prior + member.T @ Z / noise) / precision
        share = (self.log_count.exp() + count).log()
        return ClassPosterior(mean, noise + 1 / precision, share)

    def apply_head(self, state, Z):
        """Log density of each row in each class, plus the log share of the class."""
        squared = (Z[:, None, :] - state.mean) ** 2 / state.variance
        density = -0.5 * (squared + state.variance.log()).sum(-1)
        return density + state.log_share


class _ALPaCAParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "linear_features": ["boolean"],
    }

    def __init__(
        self,
        net=None,
        *,
        linear_features=True,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.linear_features = linear_features
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _n_inputs(self, schema):
        return int(np.prod(schema.shape)) if self.linear_features else 0


class ALPaCAClassifier(_ALPaCAParameters, MetaClassifier):
    """Closed-form Bayesian classification on learned features, with a learned prior.

    Each class is a Gaussian in a learned embedding. The prior of its mean, the noise
    and the share of the class are learned over tasks; the support set updates them in
    closed form. With shared labels every class has a prior of its own, so that a class
    without a support row is predicted too.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
    linear_features : bool, default=True
        Whether the row itself is part of the embedding, beside the network's output.
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
    Harrison, Sharma, Pavone (2018), Meta-Learning Priors for Efficient Online Bayesian
    Regression. Harrison, Sharma, Finn, Pavone (2020), Continuous Meta-Learning without
    Tasks, section 4.2.

    Examples
    --------
    >>> from sk_meta import ALPaCAClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = ALPaCAClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    2
    """

    def _learner_maker(self, schema):
        return partial(
            BayesianDiscriminant,
            n_inputs=self._n_inputs(schema),
            n_classes=schema.n_outputs if schema.labels == "shared" else 1,
        )


class ALPaCARegressor(_ALPaCAParameters, MetaRegressor):
    """Closed-form Bayesian regression on learned features, with a learned prior.

    The features, the prior mean and covariance of the last layer and the noise are
    learned over tasks by the predictive likelihood of the query rows; the support set
    updates the last layer in closed form. Gives a predictive standard deviation.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is features.
    linear_features : bool, default=True
        Whether the row itself is a feature too, beside the network's output.
    regularization : float, default=1.0
        Strength of a pull of the prior towards its start, mean 0 and independent
        weights, and of the network's weights towards 0. This, over the number of tasks,
        times the Kullback-Leibler divergence of the prior and half the squared weights
        is added to the training loss of a task; 0 for none.
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
    Harrison, Sharma, Pavone (2018), Meta-Learning Priors for Efficient Online Bayesian
    Regression.

    Examples
    --------
    >>> from sk_meta import ALPaCARegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = ALPaCARegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **_ALPaCAParameters._parameter_constraints,
        "regularization": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        linear_features=True,
        regularization=1.0,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            net,
            linear_features=linear_features,
            support_size=support_size,
            evaluation_seed=evaluation_seed,
            random_state=random_state,
            verbose=verbose,
        )
        self.regularization = regularization

    def _learner_maker(self, schema):
        return partial(
            ALPaCA,
            n_inputs=self._n_inputs(schema),
            n_targets=schema.n_outputs,
            regularization=self.regularization / schema.n_tasks,
        )
