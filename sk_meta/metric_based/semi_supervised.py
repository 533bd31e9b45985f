"""Prototypes that unlabelled rows of the support set refine."""

import warnings
from functools import partial
from numbers import Integral
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sk_meta.base import MetaClassifier, MetaEstimator
from sk_meta.heads import squared_distances
from sk_meta.metric_based.prototypes import Prototypes, PrototypeState
from sk_meta.tasks.sampling import EpisodeSampler
from sk_meta.tasks.validation import check_tasks

_WIDTH = 20  # of the hidden layer that chooses thresholds, as in the paper


class SemiSupervisedPrototypes(Prototypes):
    """Class means, refined by steps of soft k-means on rows with a y of -1.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.
    refinement : {"soft", "distractor", "masked"}
    n_refinements : int

    References
    ----------
    Ren et al. (2018), Meta-Learning for Semi-Supervised Few-Shot Classification,
    sections 3.1.1 (soft), 3.1.2 (distractor) and 3.1.3 (masked).
    """

    def __init__(self, module, refinement, n_refinements):
        super().__init__(module)
        self.refinement = refinement
        self.n_refinements = n_refinements
        if refinement == "distractor":
            self.log_radius = nn.Parameter(torch.zeros(()))
        if refinement == "masked":
            self.threshold = nn.Sequential(
                nn.Linear(5, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 2)
            )
            # At first, rows nearer than the mean distance count more than others.
            nn.init.ones_(self.threshold[-1].bias)

    def fit_head(self, Z, support):
        """Class means of the labelled rows, and what the others add (equation 5)."""
        start = super().fit_head(Z, support)
        weight = (support.y < 0).to(Z.dtype)
        if support.weight is not None:
            weight = weight * support.weight
        means = start.means
        for _ in range(self.n_refinements):
            squared = squared_distances(Z, means)
            share = self._shares(Z, squared, start.mass == 0) * weight[:, None]
            if self.refinement == "masked":
                share = share * self._mask(squared, weight)
            added = share.sum(0)
            # Exactly the class means where nothing is added.
            change = share.T @ Z - added[:, None] * start.means
            means = (
                start.means + change / (start.mass + added).clamp_min(1e-12)[:, None]
            )
        return PrototypeState(means, start.mass)

    def _shares(self, Z, squared, closed):
        """How much each row belongs to each class, (n, n_classes).

        With "distractor", one more cluster around the origin takes its share; it has a
        learned radius (equations 6 and 7).
        """
        logits = (-squared).masked_fill(closed, -1e9)
        if self.refinement != "distractor":
            return logits.softmax(1)
        other = -(Z**2).sum(1, keepdim=True) * (-2 * self.log_radius).exp()
        logits = torch.cat([logits, other - self.log_radius], 1)
        return logits.softmax(1)[:, :-1]

    def _mask(self, squared, weight):
        """Soft thresholds on relative distances, (n, n_classes), equations 8 to 11."""
        n = weight.sum().clamp_min(1e-12)
        mean = (weight @ squared / n).clamp_min(1e-12)
        # Rows that do not count stand at the mean: that changes none of the statistics.
        relative = torch.where(weight[:, None] > 0, squared / mean, 1.0)
        centred = relative - 1
        second, third, fourth = (weight @ centred**k / n for k in (2, 3, 4))
        scale = (second + 1e-6).sqrt()
        statistics = [
            relative.amin(0),
            relative.amax(0),
            second,
            third / scale**3,
            fourth / scale**4 - 3,
        ]
        threshold, slope = self.threshold(torch.stack(statistics, 1)).unbind(1)
        return torch.sigmoid(-slope * (relative - threshold))


class SemiSupervisedPrototypicalClassifier(MetaClassifier):
    """Prototypical networks whose prototypes are refined by unlabelled support rows.

    Unlabelled rows are those that `Task.labeled` marks as such, that hold the value
    `unlabeled`, or that an EpisodeSampler hides (its `n_unlabeled`). Those of a support
    set are used; where the support set is drawn, all unlabelled rows of the task join
    it. Query rows never are: predictions do not depend on one another. Without
    unlabelled rows it is a PrototypicalClassifier.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
    refinement : {"soft", "distractor", "masked"}, default="soft"
        "soft": every unlabelled row counts for the classes that it is near to.
        "distractor": some may be of no class; a cluster around the origin, of learned
        radius, takes them in. "masked": some may be of several other classes; each
        class leaves out rows further away than a learned soft threshold.
    n_refinements : int, default=1
        Steps of soft k-means.
    unlabeled : int or str, default=None
        The y of unlabelled rows in tasks and in `adapt`, such as -1. None: no value
        stands for it, and `adapt` takes all rows as labelled.
    support_size : int, float or tuple, default=5
        Labelled rows per class of the support set of a task that has none: a number, a
        fraction, or a range (low, high) drawn anew at each visit.
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
    Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel (2018),
    Meta-Learning for Semi-Supervised Few-Shot Classification, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_meta import SemiSupervisedPrototypicalClassifier, TaskNet
    >>> from sk_meta.tasks import Task, make_blob_tasks
    >>> rng = np.random.default_rng(0)
    >>> tasks = [
    ...     Task(task.X, np.where(rng.random(len(task)) < 0.5, task.y, -1))
    ...     for task in make_blob_tasks(20, n_classes=2, n_query=20, random_state=0)
    ... ]
    >>> meta = SemiSupervisedPrototypicalClassifier(
    ...     TaskNet(max_epochs=2), unlabeled=-1, support_size=1, random_state=0
    ... ).fit(tasks)
    >>> few_shot = meta.adapt(tasks[0].X, tasks[0].y)
    >>> few_shot.classes_
    array([0, 1])
    """

    _uses_unlabeled = True
    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "refinement": [StrOptions({"soft", "distractor", "masked"})],
        "n_refinements": [Interval(Integral, 1, None, closed="left")],
        "unlabeled": [Integral, str, None],
    }

    def __init__(
        self,
        net=None,
        *,
        refinement="soft",
        n_refinements=1,
        unlabeled=None,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.refinement = refinement
        self.n_refinements = n_refinements
        self.unlabeled = unlabeled
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, tasks, y=None):
        """Meta-train.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self

        Warns
        -----
        UserWarning
            If no support set can have an unlabelled row.
        """
        self._validate_params()
        if not _have_unlabeled(check_tasks(tasks, self.unlabeled)):
            warnings.warn(
                "No task has an unlabelled row for its support set, so this trains a "
                "PrototypicalClassifier. Mark such rows with Task(labeled=mask), by a "
                "value of y with unlabeled=-1, or hide labels with "
                "EpisodeSampler(n_unlabeled=5).",
                stacklevel=2,
            )
        return super().fit(tasks)

    def _learner_maker(self, schema):
        return partial(
            _make_learner,
            refinement=self.refinement,
            n_refinements=self.n_refinements,
        )


def _make_learner(module, n_outputs, **options):
    return SemiSupervisedPrototypes(module, **options)


def _have_unlabeled(tasks):
    """Whether any task has an unlabelled row that may be in its support set."""
    if isinstance(tasks, EpisodeSampler):
        return tasks.n_hidden > 0
    return any(
        task.labeled is not None
        and not task.labeled[
            slice(None) if task.support is None else task.support
        ].all()
        for task in tasks
    )
