"""Several processes: the result of one. Started by torchrun, it is the worker too."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from sk_meta import (
    ALPaCARegressor,
    MAMLClassifier,
    PrototypicalClassifier,
    Task,
    TaskNet,
)
from sk_meta.checkpoint import ResumableCheckpoint
from sk_meta.distributed import AcceleratedTaskNet, share
from sk_meta.tasks import make_linear_tasks

accelerate = pytest.importorskip("accelerate")

N_PROCESSES = 2


class Worst:
    """Tasks count by their loss, which no average over processes gives."""

    def reduce_losses(self, losses):
        return losses.logsumexp(0)


class WorstNet(Worst, TaskNet):
    pass


class AcceleratedWorstNet(Worst, AcceleratedTaskNet):
    pass


class Network(nn.Module):
    """Batch normalisation, and a layer that is never used."""

    def __init__(self, n_features, n_outputs=6, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            # Adam blows up the rounding in biases that change nothing.
            nn.Linear(n_features, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(8, n_outputs, bias=False),
        )
        self.unused = nn.Linear(2, 2)

    def forward(self, X):
        return self.layers(X)


class Interrupt(Callback):
    """Raises in epoch 3, if told to."""

    def on_batch_end(self, net, **kwargs):
        if INTERRUPT and len(net.history) == 3:
            raise FloatingPointError


INTERRUPT = False


def ragged_tasks(labels="shared", fixed=True, n_tasks=13):
    """Of 5 to 14 rows, some of them weighted."""
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(n_tasks):
        n = (5, 9, 9, 14)[i % 4]
        X, y = rng.normal(size=(n, 4)), np.arange(n) % 3
        weight = rng.uniform(0.5, 2.0, n) if i % 4 == 1 else None
        support = np.arange(n) < 4 if fixed else None
        tasks.append(Task(X, y, support=support, labels=labels, sample_weight=weight))
    return tasks


def maml(net):
    """Five tasks on two processes, with second-order gradients."""
    net = net[0](module__hidden=(8,), max_epochs=3, batch_size=5, lr=0.01)
    return MAMLClassifier(net, random_state=0), ragged_tasks()


def drawn(net):
    """Support sets and local labels are drawn; statistics, schedule, validation."""
    callbacks = [
        LRScheduler("CosineAnnealingLR", T_max=6),
        EarlyStopping(patience=2, load_best=True),
        GradientNormClipping(0.1),
    ]
    split = ValidSplit(4)
    net = net[0](Network, max_epochs=6, batch_size=5, lr=0.05, train_split=split,
                 callbacks=callbacks)  # fmt: skip
    tasks = ragged_tasks("local", fixed=False)
    return PrototypicalClassifier(net, support_size=(1, 3), random_state=0), tasks


def lonely(net):
    """The last meta-batch has one task, so one process has none."""
    options = {"optimizer": torch.optim.AdamW, "optimizer__weight_decay": 0.1}
    net = net[0](Network, max_epochs=3, batch_size=3, lr=0.01, **options)
    tasks = ragged_tasks(n_tasks=7)
    return PrototypicalClassifier(net, random_state=0), tasks


def worst(net):
    """The loss of a meta-batch need not be a mean."""
    options = {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}
    net = net[1](module__hidden=(8,), max_epochs=3, batch_size=4, lr=0.01, **options)
    tasks = make_linear_tasks(10, n_features=4, n_query=(4, 9), random_state=0)
    return ALPaCARegressor(net, random_state=0), tasks


SCENARIOS = [maml, drawn, lonely, worst]
PLAIN = (TaskNet, WorstNet)


def results(meta):
    rows = [
        {name: value for name, value in row.items() if name not in ("dur", "batches")}
        for row in meta.history_
    ]
    return {
        "weights": meta.learner_.state_dict(),
        "history": rows,
        "losses": meta.history_[:, "batches", :, "train_loss"],
    }


def work(folder):
    """What each of the processes does."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == N_PROCESSES
    rank, found = accelerator.process_index, {}

    def given(*args, kind=AcceleratedTaskNet, **options):
        return kind(*args, accelerator=accelerator, **options)

    def worst_given(*args, **options):
        return given(*args, kind=AcceleratedWorstNet, **options)

    for scenario in SCENARIOS:
        meta, tasks = scenario((given, worst_given))
        found[scenario.__name__] = results(meta.fit(tasks))
        restored = pickle.loads(pickle.dumps(meta))
        pairs = zip(restored.predict(tasks), meta.predict(tasks), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)
        if scenario is maml:
            found["partial_fit"] = results(restored.partial_fit(tasks[:6]))
            assert results(meta)["history"] == found["maml"]["history"]
            assert len(restored.history_) == 6

    # Without an accelerator or a seed of the user's.
    meta, tasks = drawn((AcceleratedTaskNet,))
    found["unseeded"] = results(meta.set_params(random_state=None).fit(tasks))

    # A module that each process has drawn for itself.
    torch.manual_seed(rank)
    net = given(Network(4), max_epochs=2)
    meta = PrototypicalClassifier(net, random_state=0)
    found["instance"] = results(meta.fit(ragged_tasks()))
    with pytest.raises(ValueError, match="2 different lists of tasks"):
        meta.fit(ragged_tasks()[rank:])

    found["saved"], found["straight"] = resume(folder, rank)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))


def resume(folder, rank):
    """Dropout, which differs between the processes; interrupted, and not."""
    global INTERRUPT
    path, tasks = Path(folder) / "run.ckpt", ragged_tasks()

    def make(*callbacks):
        net = AcceleratedTaskNet(
            Network, module__dropout=0.5, max_epochs=5, batch_size=3,
            callbacks=[("interrupt", Interrupt()), *callbacks],
        )  # fmt: skip
        return PrototypicalClassifier(net, random_state=0)

    save = [("save", ResumableCheckpoint(path, 1))]
    INTERRUPT = True
    try:
        make(*save).fit(tasks)
        raise AssertionError("was not interrupted")
    except FloatingPointError:
        INTERRUPT = False
    assert path.exists()
    meta = make(*save).fit(tasks)
    assert dict(meta.net_.callbacks_)["save"].n_resumed_ == 2
    assert not path.exists()
    return results(meta), results(make().fit(tasks))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of both processes, each a dict by scenario."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={N_PROCESSES}", __file__, str(folder)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [folder / f"{rank}.pickle" for rank in range(N_PROCESSES)]
    return [pickle.loads(file.read_bytes()) for file in files]


def assert_close(one, other, atol):
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=0, atol=atol)
    assert len(one["history"]) == len(other["history"])
    for row, second in zip(one["history"], other["history"], strict=True):
        assert row == pytest.approx(second, abs=atol)
    flat = [[loss for losses in each["losses"] for loss in losses]
            for each in (one, other)]  # fmt: skip
    np.testing.assert_allclose(*flat, rtol=0, atol=atol)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_give_what_one_gives(scenario, found):
    meta, tasks = scenario(PLAIN)
    assert_close(found[0][scenario.__name__], results(meta.fit(tasks)), 1e-6)


def test_partial_fit(found):
    meta, tasks = maml(PLAIN)
    meta.fit(tasks)
    before = results(meta)["weights"].values()
    after = results(meta.partial_fit(tasks[:6]))["weights"].values()
    assert not all(map(torch.equal, before, after))
    assert_close(found[0]["partial_fit"], results(meta), 1e-6)


@pytest.mark.parametrize(
    "name",
    [*(s.__name__ for s in SCENARIOS), "partial_fit", "unseeded", "instance", "saved"],
)
def test_the_processes_agree_to_the_bit(name, found):
    assert_close(found[0][name], found[1][name], 0)


def test_resumed_with_noise_to_the_same_bits(found):
    assert_close(found[0]["saved"], found[0]["straight"], 0)


def test_one_process_gives_the_same_bits():
    for scenario in SCENARIOS:
        meta, tasks = scenario(PLAIN)
        other, _ = scenario((AcceleratedTaskNet, AcceleratedWorstNet))
        assert_close(results(meta.fit(tasks)), results(other.fit(tasks)), 0)


def test_an_accelerator_is_shared_by_clones_and_left_out_of_pickles():
    accelerator = accelerate.Accelerator(cpu=True)
    net = AcceleratedTaskNet(accelerator=accelerator, module__hidden=(8,))
    meta, tasks = maml(PLAIN)
    meta.set_params(net=net)
    assert clone(meta).net.accelerator is accelerator
    assert clone(meta).get_params()["net__module__hidden"] == (8,)
    meta.set_params(net__max_epochs=1).fit(tasks)
    assert pickle.loads(pickle.dumps(meta)).net.accelerator is None
    search = GridSearchCV(meta, {"net__lr": [0.01, 0.1]}, cv=2)
    assert 0 <= search.fit(tasks).best_score_ <= 1


def test_gradient_accumulation_is_refused():
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    meta, tasks = maml(PLAIN)
    meta.set_params(net=AcceleratedTaskNet(accelerator=accelerator))
    with pytest.raises(ValueError, match="steps=2, which are not supported"):
        meta.fit(tasks)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_shares_make_up_the_meta_batch(n_processes, make_dataset):
    batch = make_dataset(ragged_tasks()).batch(range(13))
    order = [position for group in batch for position in group.positions]
    sizes = []
    for rank in range(n_processes):
        part = share(batch, rank, n_processes)
        taken = [position for group in part for position in group.positions]
        assert taken == order[rank::n_processes]
        sizes.append(len(part))
        for group in part:
            assert len(group.support.X) == len(group.query.y) == len(group.positions)
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_tasks(make_dataset):
    """A process without a task gets one to compute along, which counts for nothing."""
    batch = make_dataset(ragged_tasks()).batch([0, 1])
    assert [len(share(batch, rank, 4)) for rank in range(4)] == [1] * 4


@pytest.mark.slow  # workers take ten seconds to start
def test_dask_gives_the_scores_of_one_process():
    import joblib

    dask = pytest.importorskip("dask.distributed")
    meta, tasks = maml(PLAIN)
    grid = {"inner_lr": [0.01, 0.1], "net__lr": [1e-3, 1e-2]}
    alone = GridSearchCV(meta, grid, cv=2, n_jobs=1).fit(tasks)
    with (
        dask.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        dask.Client(cluster) as client,
    ):
        assert len(set(client.run(os.getpid).values()) - {os.getpid()}) == 2
        with joblib.parallel_config(backend="dask"):
            search = GridSearchCV(meta, grid, cv=2).fit(tasks)
        assert client.run(lambda: "sk_meta" in sys.modules)
    for fold in range(2):
        name = f"split{fold}_test_score"
        assert np.array_equal(search.cv_results_[name], alone.cv_results_[name])
    assert search.best_params_ == alone.best_params_
    pairs = zip(search.predict(tasks), alone.predict(tasks), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


if __name__ == "__main__":
    work(sys.argv[1])
