"""RepairedLearner: mends a learner that fails on some tasks, if that is for good."""

import math
import warnings
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import asdict
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval

from sk_meta.base import MetaEstimator
from sk_meta.compression.quantize import QuantizedLearner
from sk_meta.engine.batching import task_losses
from sk_meta.engine.each_task import can_pad
from sk_meta.ensemble.starting import check_start, network_of, started
from sk_meta.ensemble.tail import (
    HUGE,
    RepairReport,
    TailStep,
    compare,
    query_losses,
    relative_changes,
    tail_mean,
    usual_end,
    worse_than_no_prior,
)
from sk_meta.metrics import task_scorer
from sk_meta.tasks.sampling import tables_of
from sk_meta.tasks.stacking import MetaBatches
from sk_meta.tasks.validation import check_tasks
from sk_meta.training import seeded
from sk_meta.wrapped import (
    WrappedLearner,
    check_learner,
    fitted_learner,
    renew_optimizer,
    unwrapped,
)

_LEAST = 10  # held-out tasks, for a verdict, and tasks to train on
_KEPT_CALLBACKS = {"epoch_timer", "train_loss", "valid_loss"}


class RepairedLearner(WrappedLearner):
    """A meta-learner that is trained on for the tasks on which it falls short.

    1. Some tasks are held out. Among the others those are found on which the learner
       falls short. If there is none, the learner is left as it is.
    2. It is meta-trained on with weight on the worst tasks: on a mix of the mean loss
       and of the mean of the worst share `alpha`, the conditional value at risk.
    3. What was found is kept only if the held-out tasks agree: the loss of the worst
       share `alpha` of them falls, by more than chance, and the mean does not rise.
       Else the learner stays as it was, bit for bit.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
        What is repaired: a copy of the frozen one, or a clone, fitted on the tasks that
        are not held out.
    start : torch.nn.Module or fitted skorch net, default=None
        A trained network, from whose weights the `meta_learner`, which is not fitted
        then, starts without meta-training. Its outputs are what the method needs: for
        MAML one for each target, in units of y, or a logit for each class, in the order
        of the sorted labels. It is left as it is. A search would clone a skorch net,
        which unfits it: pass its `module_`.
    alpha : float, default=0.1
        Share of the tasks that are the worst ones, above 0, up to 1.
    tail : float, default=0.25
        Weight of the worst tasks in training, from 0 to 1; the mean has the rest. With
        ``tail=0`` training goes on as before, and the same tasks decide: what to
        compare with.
    max_loss : float, default=None
        A learner falls short on a task if its loss is higher, in units of its training
        loss: cross-entropy, squared error of targets scaled over all tasks, minus log
        density. None: if it is worse there than without a learned prior, by more than
        chance, or far above what is usual over the tasks (see Notes).
    validation : float, default=0.25
        Share of the tasks that are held out; they decide, once, and do nothing else.
    max_epochs : int, default=50
        Passes over the other tasks.
    lr : float, default=None
        Outer-loop learning rate, which falls to 0 along a cosine; None for that of the
        meta-learner's net.
    scoring : str or callable, default=None
        A metric of sklearn, such as "accuracy", or a scorer, whose mean over the
        held-out tasks must not fall either. With None losses decide alone; a score may
        part from them, as R^2 does, which divides by the variance of each task.
    random_state : int, RandomState instance or None, default=None
        Seed of what is held out, of the draws in training, and of an unfitted
        meta-learner without a `random_state`.

    Attributes
    ----------
    meta_learner_ : meta-learner
        Fitted; repaired, or as it was.
    repaired_ : bool
        Whether it was changed.
    repair_report_ : RepairReport
        Tasks found, what changed, by how much, and why it was kept or not; print it.
    net_ : TaskNet
    learner_ : Learner
    history_ : skorch.history.History
        Of all its training; losses are means over tasks.
    schema_ : Schema
        What the tasks have in common.
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Raises
    ------
    ValueError
        By `fit`, before any training: if there are too few tasks to hold out ten and
        keep ten, if the learner is a file, such as a quantised one, or if `start` does
        not suit the method and the tasks.
    TypeError
        If `meta_learner` is no meta-learner, or `start` holds no network.

    Notes
    -----
    Tasks: pass some that the learner has not seen, from all of the space that it is to
    serve. Held-out tasks that it was trained on speak for leaving it as it is. Episodes
    of one sampler share their classes with those held out: evaluate on other classes.

    Falling short: a task's query loss (log loss, squared error) is compared, row by
    row, with that of a FewShotClassifier or FewShotRegressor that knows nothing but the
    support set; it is worse if the mean difference exceeds 1.645 standard errors. What
    is usual ends at Tukey's upper fence, the third quartile plus 1.5 interquartile
    ranges, of the log losses (of the losses where some are negative).

    Training: which epoch is tried is decided by the training objective over the
    training tasks, each with its support set of `evaluation_seed`. So the held-out
    tasks have chosen nothing before they decide. They do so by a paired bootstrap over
    tasks: the upper end of the one-sided 95 % interval of the change of the worst share
    must be below 0, and the change of the mean at most 0. The net's callbacks,
    `train_split` and `compile` have no effect in this training.

    Reptile, which follows no gradient of its loss, weighs each task's way likewise.

    References
    ----------
    Rockafellar, Uryasev (2000), Optimization of Conditional Value-at-Risk, equation 4.
    Collins, Mokhtari, Shakkottai (2020), Task-Robust Model-Agnostic Meta-Learning: the
    worst task instead of the mean. Tukey (1977), Exploratory Data Analysis (the fence).

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sk_meta import PrototypicalClassifier, RepairedLearner, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *tasks, new = make_blob_tasks(41, n_classes=3, labels="local", random_state=0)
    >>> net = TaskNet(module__hidden=(16,), max_epochs=0)
    >>> untrained = PrototypicalClassifier(net, random_state=0).fit(tasks)
    >>> repaired = RepairedLearner(
    ...     FrozenEstimator(untrained), max_epochs=5, random_state=0
    ... ).fit(tasks)
    >>> repaired.repaired_, repaired.repair_report_.n_tasks
    (True, 30)
    >>> repaired.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "meta_learner": "no_validation",  # by check_learner
        "start": "no_validation",  # by _network_of
        "alpha": [Interval(Real, 0, 1, closed="right")],
        "tail": [Interval(Real, 0, 1, closed="both")],
        "max_loss": [Real, None],
        "validation": [Interval(Real, 0, 1, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither"), None],
        "scoring": "no_validation",  # by task_scorer
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        meta_learner,
        *,
        start=None,
        alpha=0.1,
        tail=0.25,
        max_loss=None,
        validation=0.25,
        max_epochs=50,
        lr=None,
        scoring=None,
        random_state=None,
    ):
        self.meta_learner = meta_learner
        self.start = start
        self.alpha = alpha
        self.tail = tail
        self.max_loss = max_loss
        self.validation = validation
        self.max_epochs = max_epochs
        self.lr = lr
        self.scoring = scoring
        self.random_state = random_state

    @property
    def repair_report_(self):
        """What was found, tried and kept."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet.")
        return RepairReport(**self._findings)

    def fit(self, tasks, y=None):
        """Find the tasks on which the learner falls short, and repair it if that helps.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
            Of the whole space that the learner is to serve.
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self
        """
        self._validate_params()
        tasks, seed = self._check(tasks)
        rng = np.random.default_rng(seed)
        rest, held_out = self._split(len(tasks), rng)
        seen, unseen = _safe_indexing(tasks, rest), _safe_indexing(tasks, held_out)
        meta = self._start(seen, seed)
        datasets = [meta._later_dataset(part) for part in (seen, unseen)]
        for dataset in datasets:
            dataset.check_draws()
        losses = query_losses(meta.learner_, datasets[0])
        why = self._falls_short(meta, seen, losses)
        found = [int(i) for i in np.argsort(-losses, kind="stable") if why[i]]
        report = RepairReport(
            n_tasks=len(seen),
            positions=[int(rest[i]) for i in found],
            names=[seen[i].name for i in found],
            why=[why[i] for i in found],
            before=losses[found].tolist(),
            held_out=held_out.tolist(),
            alpha=self.alpha,
        )
        if found:
            trial = self._train(meta, datasets[0], losses, found, report, rng)
            self._judge(meta, trial, datasets[1], report, rng)
            if report.repaired and self.scoring is not None:
                self._check_score(meta, trial, unseen, report)
        if report.repaired:
            trial._tables_of_fit = tables_of(tasks) | meta._tables_of_fit
            meta = trial
        self.meta_learner_, self.repaired_ = meta, report.repaired
        self._findings = asdict(report)
        return self

    def _check(self, tasks):
        """Tasks, and a seed or None; what is wrong shows before any training."""
        frozen = check_learner(self.meta_learner)
        if self.scoring is not None:
            task_scorer(self.scoring)
        inner = self.meta_learner.estimator if frozen else self.meta_learner
        _check_no_file(inner)
        if self.start is not None:
            check_start(self.start, inner, frozen)
        seed = None
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        tasks = check_tasks(tasks, inner.unlabeled)
        if isinstance(inner, MetaEstimator) and not frozen:
            inner._make_schema(tasks)  # those held out, too
        return tasks, seed

    def _split(self, n_tasks, rng):
        """Positions of the tasks to learn from, and of those held out."""
        n_held_out = round(self.validation * n_tasks)
        if min(n_held_out, n_tasks - n_held_out) < _LEAST:
            raise ValueError(
                f"validation={self.validation} of {n_tasks} tasks holds out "
                f"{n_held_out} and leaves {n_tasks - n_held_out}; a repair needs at "
                f"least {_LEAST} of each. Pass more tasks, or another share."
            )
        order = rng.permutation(n_tasks)
        return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])

    def _start(self, tasks, seed):
        """The learner to repair, fitted; the user's own is left alone."""
        if self.start is not None:
            return started(self.meta_learner, network_of(self.start), tasks, seed)
        meta = fitted_learner(self.meta_learner, tasks, seed)
        _check_no_file(meta)
        return unwrapped(meta)

    def _falls_short(self, meta, tasks, losses):
        """Why the learner falls short on each task; None where it does not."""
        if self.max_loss is not None:
            why = f"above max_loss={self.max_loss:g}"
            return [why if loss > self.max_loss else None for loss in losses]
        far = losses > usual_end(losses)
        worse = map(worse_than_no_prior, meta.predict_tasks(tasks))
        return [
            "; ".join(
                reason
                for reason, applies in (
                    ("worse than without a learned prior", worse),
                    ("far above the others", far),
                )
                if applies
            )
            or None
            for worse, far in zip(worse, far, strict=True)
        ]

    def _objective(self, losses):
        worst = tail_mean(losses, self.alpha)
        return (1 - self.tail) * losses.mean() + self.tail * worst

    def _train(self, meta, dataset, losses, found, report, rng):
        """A copy of the learner, trained on up to the best epoch."""
        trial, net = copy(meta), deepcopy(meta.net_)
        if self.random_state is not None:
            net.rng_ = np.random.default_rng(rng.integers(2**31))
        best, kept = self._objective(losses), tensors_of(net.module_)
        report.epoch, report.after = 0, report.before
        with _prepared(net, self.lr):
            first = _training_losses(net, dataset)
            net.meta_step_ = TailStep(self.alpha, self.tail, first, net.max_memory)
            for done in range(self.max_epochs):
                for group in net.optimizer_.param_groups:
                    along = math.pi * done / self.max_epochs
                    group["lr"] = group["initial_lr"] * (1 + math.cos(along)) / 2
                net.meta_partial_fit(dataset)
                losses = query_losses(net.module_, dataset)
                if losses.min() >= HUGE:
                    break  # it has diverged
                if self._objective(losses) < best:
                    best, kept = self._objective(losses), tensors_of(net.module_)
                    report.epoch, report.after = done + 1, losses[found].tolist()
        with torch.no_grad():
            for tensor, value in zip(_tensors(net.module_), kept, strict=True):
                tensor.copy_(value)
        renew_optimizer(net)
        trial._take(net, meta.schema_)
        return trial

    def _judge(self, meta, trial, dataset, report, rng):
        """Let the held-out tasks decide."""
        if not report.epoch:
            report.reason = (
                "Training on did not lower the loss of the tasks that it was trained "
                "on; a lower lr may."
            )
            return
        before = query_losses(meta.learner_, dataset)
        after = query_losses(trial.learner_, dataset)
        report.comparison = found = compare(before, after, self.alpha, rng)
        report.n_better = int((after < before).sum())
        report.layers = relative_changes(meta.learner_, trial.learner_)
        fallen = found["worst"]["change"][2] < 0
        risen = found["mean"]["change"][0] > 0
        report.repaired = bool(fallen and not risen)
        worst, mean = (
            "from {:.4g} to {:.4g}".format(found[k]["before"][0], found[k]["after"][0])
            for k in ("worst", "mean")
        )
        of_worst = f"the mean loss of the worst {100 * self.alpha:.3g} %"
        if report.repaired:
            report.reason = (
                f"On held-out tasks {of_worst} fell {worst}, and that of all {mean}."
            )
        elif not fallen:
            report.reason = (
                f"On held-out tasks {of_worst} did not fall by more than chance "
                f"({worst})."
            )
        else:
            report.reason = f"On held-out tasks the mean loss rose {mean}."

    def _check_score(self, meta, trial, tasks, report):
        """Take the repair back if the score of held-out tasks falls."""
        scorer = task_scorer(self.scoring)
        report.scores = before, after = scorer(meta, tasks), scorer(trial, tasks)
        if after < before:
            report.repaired = False
            report.reason = (
                f"On held-out tasks the mean score fell from {before:.4g} to "
                f"{after:.4g}, though the losses agreed."
            )


@contextmanager
def _prepared(net, lr):
    """A TaskNet that is trained epoch by epoch, with nothing of the user's beside."""
    names = ("lr", "max_epochs", "train_split", "meta_step_", "callbacks_")
    before = {name: getattr(net, name) for name in names}
    net.lr = net.lr if lr is None else lr
    net.max_epochs, net.train_split = 1, None
    net.callbacks_ = [cb for cb in net.callbacks_ if cb[0] in _KEPT_CALLBACKS]
    renew_optimizer(net)
    for group in net.optimizer_.param_groups:
        group.setdefault("initial_lr", group["lr"])
    try:
        with warnings.catch_warnings():
            # The report says that it has diverged.
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield
    finally:
        for name, value in before.items():
            setattr(net, name, value)


def _check_no_file(meta):
    """Raise for a learner that is a file, or is to become one."""
    while isinstance(meta, WrappedLearner | FrozenEstimator):
        if isinstance(meta, QuantizedLearner):
            raise ValueError(
                "A QuantizedLearner is a file, which cannot be trained on. Repair the "
                "learner first, then quantise it: "
                "QuantizedLearner(RepairedLearner(...))."
            )
        inner = getattr(meta, "estimator", None)
        if inner is None:
            inner = vars(meta).get("meta_learner_", meta.meta_learner)
        meta = inner


def _training_losses(net, dataset):
    """Losses of the training tasks as training sees them, before it goes on."""
    learner = net.module_.train()
    batches = MetaBatches(dataset, net.batch_size, net.rng_, can_pad(learner))
    seed = int(net.rng_.integers(2**31))
    with seeded(seed, net.device), torch.no_grad():
        found = [task_losses(learner, list(batch))[0].cpu() for batch in batches]
    return torch.cat(found).numpy()


def _tensors(learner):
    return [*learner.parameters(), *learner.buffers()]


def tensors_of(learner):
    """Copies of its parameters and buffers, in order."""
    return [tensor.detach().clone() for tensor in _tensors(learner)]
