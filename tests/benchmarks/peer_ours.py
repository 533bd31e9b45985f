"""Our side of the timed comparisons: whole fits, as a user writes them."""

import inspect
from functools import cached_property

import numpy as np
import torch
from peer_networks import SineNet, make_network
from peer_worker import Contender, Stopwatch, marked, peak_bytes
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback

from sk_meta import (
    EpisodeSampler,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
    evaluate,
)
from sk_meta.datasets import load_omniglot
from sk_meta.tasks import make_sinusoids

# A power of two: the gradient is read off one step of this length without rounding.
LONG_STEP = 1024.0


class Ours(Contender):
    """Meta-learners on lists of tasks."""

    def setup(self, workload, path, threads, device):
        """See `Contender.setup`."""
        super().setup(workload, path, threads, device)
        self.net = {"device": device, **workload["net"]}
        self.tasks = [task for batch in self.batches for task in as_tasks(batch)]
        self.batch_size = len(self.batches[0][0])
        self._fit(self.tasks[: self.batch_size], max_epochs=1)  # warm

    def check(self, save):
        """Loss of the first meta-batch; its gradient goes to the file `save`.

        Both are read off an ordinary `fit` of one long step.
        """
        meta = self._fit(
            self.tasks[: self.batch_size],
            max_epochs=1,
            optimizer=torch.optim.SGD,
            lr=LONG_STEP,
        )
        before = dict(make_network(self.workload["network"]).named_parameters())
        after = dict(meta.learner_.module.cpu().named_parameters())
        np.savez(
            save,
            **{
                name: ((value - after[name]) / LONG_STEP).detach().numpy()
                for name, value in before.items()
            },
        )
        return {"loss": meta.history_[-1]["train_loss"]}

    def time(self, iterations):
        """Seconds for a whole fit; with `compile`, without its first epoch."""
        n_batches = len(self.batches)
        epochs = max(1, round(iterations / n_batches))
        warm_up = self.net.get("compile", False)
        laps = [("first", FirstEpoch(self.device))]
        with Stopwatch(self.device) as watch:
            meta = self._fit(self.tasks, max_epochs=epochs + warm_up, callbacks=laps)
        took = watch.seconds
        if warm_up:
            first = dict(meta.net_.callbacks_)["first"].seconds_
            took = {clock: took[clock] - first[clock] for clock in took}
        return {**took, "iterations": epochs * n_batches}

    def memory(self):
        """Bytes of a meta-step, at its peak and above the data."""
        tasks = self.tasks[: self.batch_size]
        return peak_bytes(
            lambda: self._fit(tasks, net_class=Marked, max_epochs=2), self.device
        )

    def ragged(self, sizes, epochs):
        """Seconds for a whole fit on sinusoids of these numbers of rows."""
        tasks = []
        for task, n_rows in zip(
            make_sinusoids(len(sizes), n_query=max(sizes), random_state=0),
            sizes,
            strict=True,
        ):
            support = np.arange(n_rows) < max(1, n_rows // 3)
            tasks.append(Task(task.X[:n_rows], task.y[:n_rows], support=support))
        with Stopwatch(self.device) as watch:
            self._fit(tasks, max_epochs=epochs)
        return watch.seconds

    def search(self, kind, n_tasks, epochs):
        """Wall time of a grid search, and the mean score of each candidate."""
        options = {"n_jobs": 2}
        search_class = GridSearchCV
        if kind == "meta":
            from sk_meta.search import MetaGridSearchCV

            search_class = MetaGridSearchCV
        net = TaskNet(SineNet, max_epochs=epochs, batch_size=25, device=self.device)
        grid = {
            "inner_lr": [0.003, 0.01, 0.03, 0.1],
            "net__lr": [3e-4, 1e-3, 3e-3],
        }
        search = search_class(
            MAMLRegressor(net, random_state=0),
            grid,
            cv=KFold(3, shuffle=True, random_state=0),
            refit=False,
            **options,
        )
        tasks = make_sinusoids(n_tasks, random_state=0)
        with Stopwatch(self.device) as watch:
            search.fit(tasks)
        results = search.cv_results_
        scores = [results[f"split{fold}_test_score"].tolist() for fold in range(3)]
        return {**watch.seconds, "scores": scores}

    def accuracy(self, iterations, n_episodes):
        """Accuracy of new episodes after a short meta-training, in percent."""
        few = {"n_way": 5, "n_shot": 1, "n_query": 15}
        old, new = self._omniglot
        train = EpisodeSampler(
            old.data, old.target, n_episodes=iterations * self.batch_size, **few
        )
        test = EpisodeSampler(
            new.data, new.target, n_episodes=n_episodes, random_state=1, **few
        )
        meta = self._fit(train, max_epochs=1)
        return {"scores": (100 * np.asarray(evaluate(meta, test).scores)).tolist()}

    @cached_property
    def _omniglot(self):
        return [load_omniglot(split=split) for split in ("background", "evaluation")]

    def _fit(self, tasks, net_class=TaskNet, **options):
        refused = sorted(set(self.net) - set(inspect.signature(TaskNet).parameters))
        if refused:
            raise TypeError(f"TaskNet has no parameter {', '.join(refused)}")
        options = {"lr": 1e-3, "batch_size": self.batch_size, **self.net, **options}
        net = net_class(make_network(self.workload["network"]), **options)
        return self._meta(net).fit(tasks)

    def _meta(self, net):
        workload = self.workload
        if workload["network"].startswith("proto"):
            return PrototypicalClassifier(net, random_state=0)
        options = {k: workload[k] for k in ("inner_lr", "n_inner_steps", "first_order")}
        if workload["network"] == "sine":
            return MAMLRegressor(net, **options, random_state=0)
        return MAMLClassifier(net, **options, transductive=True, random_state=0)


class Marked(TaskNet):
    """Marks its meta-steps in a profile."""

    def train_step_single(self, batch, **fit_params):
        """See `TaskNet.train_step_single`."""
        return marked(super().train_step_single, batch, **fit_params)


class FirstEpoch(Callback):
    """How long the first epoch took."""

    def __init__(self, device):
        self.device = device

    def on_train_begin(self, net, **kwargs):
        """Start."""
        self.seconds_ = None
        self.watch_ = Stopwatch(self.device).start()

    def on_epoch_end(self, net, **kwargs):
        """Stop, once."""
        if self.seconds_ is None:
            self.seconds_ = self.watch_.since_start()


def as_tasks(batch):
    """A meta-batch as a list of tasks."""
    tasks = []
    for X_support, y_support, X_query, y_query in zip(*batch, strict=True):
        y = np.concatenate([y_support, y_query])
        support = np.arange(len(y)) < len(y_support)
        tasks.append(Task(np.concatenate([X_support, X_query]), y, support))
    return tasks
