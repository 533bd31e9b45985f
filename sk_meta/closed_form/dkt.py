"""Gaussian processes on learned features: deep kernels, learned over tasks."""

import math
from functools import partial
from numbers import Integral
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sk_meta.base import MetaClassifier, MetaEstimator, MetaRegressor
from sk_meta.heads import shut_out, weight_of_known
from sk_meta.learner import EmbeddingLearner, Gaussian, weighted_mean
from sk_meta.updates import all_rows


def _squared_distances(A, B):
    product = A @ B.mT
    squared = (A**2).sum(-1)[..., :, None] + (B**2).sum(-1)[..., None, :]
    return (squared - 2 * product).clamp_min(0.0)


def _rbf(A, B):
    return (-0.5 * _squared_distances(A, B)).exp()


def _matern(A, B):
    # A little more than the distance: a root has no slope at 0.
    r = (5 * _squared_distances(A, B) + 1e-12).sqrt()
    return (1 + r + r**2 / 3) * (-r).exp()


def _linear(A, B):
    return A @ B.mT


def _cosine(A, B):
    return F.normalize(A, dim=-1) @ F.normalize(B, dim=-1).mT


KERNELS = {"cosine": _cosine, "linear": _linear, "matern": _matern, "rbf": _rbf}


class DKTPosterior(NamedTuple):
    """Posterior of the process of one task, in float64, under each of the kernels.

    Attributes
    ----------
    rows : tensor of shape (n, p)
        Features of the support rows.
    coefficients : tensor of shape (n_kernels, n, n_targets)
        The mean is a sum of kernels on the rows with these factors.
    whitening : tensor of shape (n_kernels, n, n)
        Takes covariances with the rows to ones with independent unit normals.
    share : tensor of shape (n_kernels,)
        Posterior probability of each kernel.
    closed : tuple
        Empty, or the mask (n_classes,) of classes without a support row.
    """

    rows: Tensor
    coefficients: Tensor
    whitening: Tensor
    share: Tensor
    closed: tuple = ()


class Rows(NamedTuple):
    """Features of a task's support and query rows, for the marginal likelihood."""

    support: Tensor
    query: Tensor


class DKT(EmbeddingLearner):
    """Gaussian process regression with a kernel on learned features.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is features.
    n_features : int
        Their number.
    n_inputs : int
        Number of the row's own values on which the process has a linear part; 0 for
        none.
    n_targets : int
        Each has a process of its own, with one kernel.
    kernel : {"rbf", "matern", "linear", "cosine"}
    n_kernels : int
        Kernels with scales and noise of their own, of which a task has one.
    marginal : bool
        Whether training maximises the marginal likelihood of all rows of a task.

    References
    ----------
    Patacchiola et al. (2020), Bayesian Meta-Learning for the Few-Shot Setting via Deep
    Kernels, equation 5 and algorithm 1, with one kernel.
    """

    uses_weight = True
    least_noise = 1e-4  # variance, of targets scaled to 1

    def __init__(
        self, module, n_features, n_inputs, n_targets, kernel, n_kernels, marginal
    ):
        super().__init__(module)
        self.n_inputs = n_inputs
        self.kernel = kernel
        self.marginal = marginal
        self.mean = nn.Parameter(torch.zeros(n_targets))
        self.log_output_scale = nn.Parameter(torch.zeros(n_kernels))
        self.log_noise_std = nn.Parameter(torch.full((n_kernels,), math.log(0.1)))
        # Several kernels start apart, by up to a factor e from their middle.
        apart = torch.linspace(-1, 1, n_kernels) if n_kernels > 1 else torch.zeros(1)
        if kernel in ("rbf", "matern"):
            self.log_length_scale = nn.Parameter(apart)
        else:
            self.log_output_scale.data += apart
        if n_kernels > 1:
            self.log_share = nn.Parameter(torch.zeros(n_kernels))
        if n_inputs:
            self.log_slope_std = nn.Parameter(torch.zeros(n_inputs))

    def noise(self):
        """Variance of the noise under each kernel, (n_kernels, 1, 1)."""
        return ((2 * self.log_noise_std).exp() + self.least_noise)[:, None, None]

    def features(self, X, Z):
        """Row and network output, side by side: (n, p)."""
        return torch.cat([X.flatten(1), Z], dim=1) if self.n_inputs else Z

    def covariance(self, A, B):
        """Kernels (n_kernels, n, m) of features (..., n, p) and (..., m, p)."""
        inner = [part[..., self.n_inputs :] for part in (A, B)]
        if self.kernel in ("rbf", "matern"):
            scale = self.log_length_scale.exp()[:, None, None]
            inner = [part / scale for part in inner]
        scale = (2 * self.log_output_scale).exp()[:, None, None]
        K = scale * KERNELS[self.kernel](*inner)
        if not self.n_inputs:
            return K
        slopes = self.log_slope_std.exp()
        return K + _linear(*(part[..., : self.n_inputs] * slopes for part in (A, B)))

    def variance(self, A):
        """Prior variance (n_kernels, n, 1) at rows with features (n, p)."""
        inner = A[:, self.n_inputs :]
        K = torch.ones_like(A[:, 0])
        if self.kernel == "linear":
            K = (inner**2).sum(1)
        K = (2 * self.log_output_scale).exp()[:, None] * K
        if self.n_inputs:
            slopes = self.log_slope_std.exp()
            K = K + ((A[:, : self.n_inputs] * slopes) ** 2).sum(1)
        return K[:, :, None]

    def whiten(self, A, Y, weight):
        """Cholesky factor of the covariance of observations, and what it says.

        A row of weight w has 1 / w of the noise. Rows and columns are multiplied by
        the root of w: the noise is then the same in all, and w may be 0.

        Returns
        -------
        factor : tensor of shape (n_kernels, n, n)
        root : tensor of shape (n,)
            Of the weights.
        white : tensor of shape (n_kernels, n, n_targets)
            Targets less the mean, made independent with variance 1.
        log_likelihood : tensor of shape (n_kernels,)
            Of all targets, and of the kernel; as if a row of weight w were w rows.
        """
        root = torch.ones_like(A[:, 0]) if weight is None else weight.double().sqrt()
        noise, n = self.noise().double(), A.shape[0]
        observed = root[:, None] * self.covariance(A, A) * root
        observed = observed + noise * torch.eye(n, dtype=A.dtype, device=A.device)
        factor = torch.linalg.cholesky_ex(observed)[0]
        residual = root[:, None] * (Y.double() - self.mean)
        residual = residual.expand(len(factor), *residual.shape)
        white = torch.linalg.solve_triangular(factor, residual, upper=False)
        noise = noise[:, 0, 0].log()
        volume = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1) - n * noise
        volume = volume + (root**2).sum() * (noise + math.log(2 * math.pi))
        found = -0.5 * ((white**2).sum((1, 2)) + Y.shape[1] * volume)
        if len(noise) > 1:
            found = found + self.log_share.log_softmax(0)
        return factor, root, white, found

    def targets(self, support):
        """What the process is fit to (n, n_targets), weights, and closed outputs."""
        return support.y, support.weight, ()

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        A = Z.double()
        if self.marginal and self.training:
            return A
        Y, weight, closed = self.targets(support)
        factor, root, white, found = self.whiten(A, Y, weight)
        roots = root.diag().expand(factor.shape)
        whitening = torch.linalg.solve_triangular(factor, roots, upper=False)
        return DKTPosterior(
            A, whitening.mT @ white, whitening, found.softmax(0), closed
        )

    def apply_head(self, state, Z):
        """Predictive mean and variance, noise included; in training, maybe `Rows`."""
        A = Z.double()
        if self.marginal and self.training:
            return Rows(state, A)
        K = self.covariance(A, state.rows)
        explained = ((K @ state.whitening.mT) ** 2).sum(2, keepdim=True)
        variance = (self.variance(A) - explained).clamp_min(0.0) + self.noise()
        means = K @ state.coefficients
        share = state.share[:, None, None]
        mean = (share * means).sum(0)
        # Of the mixture: within the kernels, and between them.
        variance = (share * (variance + (means - mean) ** 2)).sum(0)
        return Gaussian((self.mean + mean).to(Z.dtype), variance.to(Z.dtype))

    def loss(self, scores, query, support):
        """Minus the log density of the query rows, or of all, per row and target."""
        if not isinstance(scores, Rows):
            return super().loss(scores, query, support)
        X, y, weight = all_rows(support, query)
        Y, weight, _ = self.targets(support._replace(X=X, y=y, weight=weight))
        n_rows = len(y) if weight is None else weight.sum().clamp_min(1e-12)
        *_, found = self.whiten(torch.cat(scores), Y, weight)
        return -found.logsumexp(0) / (n_rows * Y.shape[1])


class DKTOfClasses(DKT):
    """One such process for each class, fit to +1 for its rows and -1 for the others.

    With mean m and variance v of an observation, the log odds of +1 against -1 are
    2 m / v: these are the logits. Their scale is that of the kernel and the noise.
    """

    def targets(self, support):
        """See `DKT.targets`."""
        classes = torch.arange(support.n_classes, device=support.y.device)
        member = (support.y[:, None] == classes).to(self.mean.dtype)
        weight = member.sum(1)  # a row of no class says nothing
        if support.weight is not None:
            weight = weight * support.weight
        return 2 * member - 1, weight, ((member * weight[:, None]).sum(0) == 0,)

    def apply_head(self, state, Z):
        """Logits; those of a class without rows are far below the others."""
        found = super().apply_head(state, Z)
        if isinstance(found, Rows):
            return found
        return shut_out(2 * found.mean / found.variance, state.closed)

    def loss(self, scores, query, support):
        """Cross-entropy of query rows whose class has a support row, or as in `DKT`."""
        if isinstance(scores, Rows):
            return super().loss(scores, query, support)
        losses = self.loss_of_rows(scores, query.y)
        return weighted_mean(losses, weight_of_known(query, support))


class _DKTParameters:
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "kernel": [StrOptions(set(KERNELS))],
        "linear_features": ["boolean"],
        "n_kernels": [Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"predictive", "marginal"})],
    }

    def __init__(
        self,
        net=None,
        *,
        kernel="rbf",
        linear_features=False,
        n_kernels=1,
        objective="predictive",
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.kernel = kernel
        self.linear_features = linear_features
        self.n_kernels = n_kernels
        self.objective = objective
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        classifies = schema.classification
        return partial(
            DKTOfClasses if classifies else DKT,
            n_inputs=int(np.prod(schema.shape)) if self.linear_features else 0,
            n_targets=1 if classifies else schema.n_outputs,
            kernel=self.kernel,
            n_kernels=self.n_kernels,
            marginal=self.objective == "marginal",
        )


class DKTClassifier(_DKTParameters, MetaClassifier):
    """Deep kernel transfer, for classification: Gaussian processes on learned features.

    Each class has a Gaussian process, with a kernel common to all, that is fit to +1
    for the class's rows and -1 for the others; its log odds are the logits. Takes any
    number of classes at adapt time, also with local labels. A class without a support
    row has probability 0.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is features.
    kernel : {"rbf", "matern", "linear", "cosine"}, default="rbf"
        Base kernel, on the network's outputs; "matern" is Matern 5/2.
    linear_features : bool, default=False
        Whether the process has a linear part in the row itself, beside the kernel, so
        that it can follow a trend beyond the support set.
    n_kernels : int, default=1
        Several kernels differ in scales and noise; each task weighs them by the
        marginal likelihood of its support set. For tasks that are not alike in
        smoothness or noise. Goes beyond the paper, which has one.
    objective : {"predictive", "marginal"}, default="predictive"
        What training maximises: the likelihood of the query rows' classes, given the
        support set; or the marginal likelihood of all rows of a task as targets of the
        processes, as in the paper.
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
    Patacchiola, Turner, Crowley, O'Boyle, Storkey (2020), Bayesian Meta-Learning for
    the Few-Shot Setting via Deep Kernels.

    Examples
    --------
    >>> from sk_meta import DKTClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = DKTClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """


class DKTRegressor(_DKTParameters, MetaRegressor):
    """Deep kernel transfer, for regression: a Gaussian process on learned features.

    The features, the scales of the kernel, the noise and the mean are learned over
    tasks; the support set makes the exact posterior. Gives a predictive standard
    deviation. Several targets are independent processes with one kernel.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is features.
    kernel : {"rbf", "matern", "linear", "cosine"}, default="rbf"
        Base kernel, on the network's outputs; "matern" is Matern 5/2.
    linear_features : bool, default=False
        Whether the process has a linear part in the row itself, beside the kernel, so
        that it can follow a trend beyond the support set.
    n_kernels : int, default=1
        Several kernels differ in scales and noise; each task weighs them by the
        marginal likelihood of its support set. For tasks that are not alike in
        smoothness or noise. Goes beyond the paper, which has one.
    objective : {"predictive", "marginal"}, default="predictive"
        What training maximises: the density of each query row given the support set;
        or the marginal likelihood of all rows of a task, as in the paper.
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
    Patacchiola, Turner, Crowley, O'Boyle, Storkey (2020), Bayesian Meta-Learning for
    the Few-Shot Setting via Deep Kernels.

    Examples
    --------
    >>> from sk_meta import DKTRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = DKTRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape == std.shape == new.y_query.shape
    True
    """
