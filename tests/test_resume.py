"""A fit that was killed continues from its checkpoint to the same bits."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from sk_meta import MAMLClassifier, PrototypicalClassifier, Task, TaskNet
from sk_meta.checkpoint import ResumableCheckpoint
from sk_meta.tasks import make_blob_tasks

EPOCHS = 10


class Interrupt(Callback):
    """Does something in the middle of an epoch; nothing where `epoch_` is unset."""

    def on_batch_end(self, net, training=None, **kwargs):
        epoch, action = PLAN
        if training and epoch == len(net.history):
            action()


PLAN = (None, None)


class Killed(Exception):
    """As good as a kill: nothing after it runs."""


def killed():
    raise Killed


def interrupted():
    raise KeyboardInterrupt


@pytest.fixture
def plan(monkeypatch):
    """Sets in which epoch what happens; nothing from the end of the block on."""

    def set_plan(epoch=None, action=killed):
        monkeypatch.setattr(sys.modules[__name__], "PLAN", (epoch, action))

    return set_plan


class Walk(Callback):
    """Keeps state of its own in attributes, and lets it decide on training."""

    def on_train_begin(self, net, **kwargs):
        self.best_, self.seen_ = np.inf, []

    def on_epoch_end(self, net, **kwargs):
        self.best_ = np.minimum(self.best_, net.history[-1, "train_loss"])
        self.seen_.append({"best": self.best_, "weights": None})
        for group in net.optimizer_.param_groups:
            group["lr"] *= 1 + 0.1 * float(self.best_) / len(self.seen_)


class Noise(Callback):
    """Keeps a generator, and says itself how."""

    def on_train_begin(self, net, **kwargs):
        self.rng_ = np.random.default_rng(0)

    def on_epoch_end(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] *= self.rng_.uniform(0.9, 1.1)

    def state_dict(self):
        return self.rng_.bit_generator.state

    def load_state_dict(self, state):
        self.rng_.bit_generator.state = state


def make_tasks(seed=0):
    """Without support sets, so that they are drawn in training."""
    tasks = make_blob_tasks(
        15, n_classes=3, n_support=4, n_query=(3, 6), n_features=4, random_state=seed
    )
    return [Task(task.X, task.y, labels=task.labels) for task in tasks]


class Network(nn.Module):
    """Batch normalisation, and noise."""

    def __init__(self, n_features, n_outputs=6):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, 8),
            nn.BatchNorm1d(8),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(8, n_outputs),
        )

    def forward(self, X):
        return self.layers(X)


def annealed():
    return LRScheduler("CosineAnnealingLR", T_max=EPOCHS)


def one_cycle():
    return LRScheduler(OneCycleLR, step_every="batch", max_lr=0.02, total_steps=100)


CASES = {
    "prototypes": (
        PrototypicalClassifier,
        {},
        lambda: [("lr", annealed()), ("stop", EarlyStopping(load_best=True))],
    ),
    # The order of the callbacks is the other way round.
    "maml": (
        MAMLClassifier,
        {"n_inner_steps": 2},
        lambda: [("stop", EarlyStopping(load_best=True)), ("lr", annealed())],
    ),
    "plateau": (
        PrototypicalClassifier,
        {},
        lambda: [
            LRScheduler("ReduceLROnPlateau", patience=0),
            ("batches", one_cycle()),
        ],
    ),
    "own": (PrototypicalClassifier, {}, lambda: [Walk(), Noise()]),
}


def make_meta(path, case="prototypes", every=3, **options):
    """A meta-learner with all that a checkpoint must keep."""
    kind, params, callbacks = CASES[case]
    own = {"support_size": (1, 3), "random_state": 0, **params}
    own.update({k: options.pop(k) for k in [*options] if k in own or k == "inner_lr"})
    save = [] if path is None else [("save", ResumableCheckpoint(path, every))]
    net = {
        "module": Network,
        "max_epochs": EPOCHS,
        "batch_size": 4,
        "lr": 0.02,
        "train_split": ValidSplit(3),
        "callbacks": [*save, ("interrupt", Interrupt()), *callbacks()],
        **options,
    }
    return kind(TaskNet(**net), **own)


def everything(meta):
    """All that comes out of a fit, but for the time that epochs took."""
    tensors = [*meta.learner_.state_dict().values()]
    tensors += [
        value
        for state in meta.net_.optimizer_.state_dict()["state"].values()
        for value in state.values()
    ]
    rows = [
        {name: value for name, value in row.items() if name != "dur"}
        for row in meta.history_
    ]
    generator = meta.net_.rng_.bit_generator.state
    return [tensor.tolist() for tensor in tensors], rows, generator


def resumed(meta):
    return dict(meta.net_.callbacks_)["save"].n_resumed_


@pytest.mark.parametrize("case", ["prototypes", "maml"])
def test_a_killed_process(case, tmp_path):
    path = tmp_path / "run" / "meta.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(path), case],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )
    with process:
        assert process.stdout.readline() == "in epoch 8\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    meta = make_meta(path, case).fit(make_tasks())
    assert resumed(meta) == 6
    assert everything(meta) == everything(make_meta(None, case).fit(make_tasks()))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("every", "epoch", "n_resumed"), [(1, 2, 1), (4, 9, 8)])
def test_any_epoch(case, every, epoch, n_resumed, tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(epoch)
    with pytest.raises(Killed):
        make_meta(path, case, every).fit(tasks)
    plan()
    meta = make_meta(path, case, every).fit(tasks)
    assert resumed(meta) == n_resumed
    assert everything(meta) == everything(make_meta(None, case).fit(tasks))


def test_killed_twice(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    for epoch in (5, 8):
        plan(epoch)
        with pytest.raises(Killed):
            make_meta(path).fit(tasks)
    plan()
    meta = make_meta(path).fit(tasks)
    assert resumed(meta) == 6
    assert everything(meta) == everything(make_meta(None).fit(tasks))


def test_killed_before_the_first_save(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(2)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan()
    assert not path.exists()
    assert resumed(make_meta(path).fit(tasks)) == 0


@pytest.mark.parametrize("moment", ["torch.save", "os.replace"])
def test_killed_while_saving(moment, tmp_path, monkeypatch):
    """The file of the save before is whole."""
    path, tasks, real = tmp_path / "meta.ckpt", make_tasks(), torch.save

    def half(state, file):
        if state["n_epochs"] == 6:
            file.write(b"half")
            raise Killed
        real(state, file)

    def stopped(source, target, replace=os.replace):
        if path.exists():
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(moment, half if moment == "torch.save" else stopped)
        with pytest.raises(Killed):
            make_meta(path).fit(tasks)
    meta = make_meta(path).fit(tasks)
    assert resumed(meta) == 3
    assert everything(meta) == everything(make_meta(None).fit(tasks))


def test_partial_fit(tmp_path, plan):
    path, tasks, later = tmp_path / "meta.ckpt", make_tasks(), make_tasks(1)
    fitted = pickle.dumps(make_meta(path).fit(tasks))
    plan(EPOCHS + 5)
    with pytest.raises(Killed):
        pickle.loads(fitted).partial_fit(later)
    plan()
    with pytest.raises(ValueError, match="of another run: its tasks"):
        pickle.loads(fitted).partial_fit(tasks)
    with pytest.raises(ValueError, match="of another run: its weights before"):
        meta = pickle.loads(fitted)
        meta.learner_.module.layers[0].bias.data += 1
        meta.partial_fit(later)
    meta = pickle.loads(fitted).partial_fit(later)
    assert resumed(meta) == 3
    assert len(meta.history_) > EPOCHS + 3
    straight = make_meta(None).fit(tasks)
    before = everything(straight)[0]
    assert before != everything(straight.partial_fit(later))[0]
    assert everything(meta) == everything(straight)


def test_ctrl_c_leaves_the_file(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(8, interrupted)
    with pytest.warns(UserWarning, match="interrupted after 7 of 10 epochs"):
        make_meta(path).fit(tasks).predict(tasks)
    plan()
    meta = make_meta(path).fit(tasks)
    assert resumed(meta) == 6
    assert everything(meta) == everything(make_meta(None).fit(tasks))


def test_early_stopping_is_an_end(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()

    def make(path):
        stop = [("interrupt", Interrupt()), EarlyStopping("epoch", patience=6)]
        save = [] if path is None else [("save", ResumableCheckpoint(path, 2))]
        return make_meta(None, callbacks=[*save, *stop])

    plan(6)
    with pytest.raises(Killed):
        make(path).fit(tasks)
    plan()
    meta = make(path).fit(tasks)
    assert (resumed(meta), len(meta.history_), path.exists()) == (4, 7, False)
    assert everything(meta) == everything(make(None).fit(tasks))


def test_a_finished_fit_starts_anew(tmp_path):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    first = make_meta(path, every=1).fit(tasks)
    assert not path.exists()
    second = make_meta(path, every=1).fit(tasks)
    assert resumed(second) == 0
    assert everything(first) == everything(second)


def test_more_epochs_than_before(tmp_path, plan):
    """The number of epochs may change in between, but not below those done."""
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(8)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan()
    with pytest.raises(ValueError, match="it has 6 epochs, max_epochs=5"):
        make_meta(path, max_epochs=5).fit(tasks)
    meta = make_meta(path, max_epochs=15).fit(tasks)
    assert everything(meta) == everything(make_meta(None, max_epochs=15).fit(tasks))


def test_without_random_state(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    # Nothing that may stop some of the runs early.
    callbacks = [("save", ResumableCheckpoint(path, 3)), ("interrupt", Interrupt())]
    options = {"random_state": None, "callbacks": callbacks}
    plan(8)
    with pytest.raises(Killed):
        make_meta(path, **options).fit(tasks)
    plan()
    saved = torch.load(path, weights_only=True)["history"]
    meta = make_meta(path, **options).fit(tasks)
    assert meta.history_[:6] == saved


def test_the_global_generators_do_not_move(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(8)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan()
    before = torch.get_rng_state()
    make_meta(path).fit(tasks)
    assert torch.equal(before, torch.get_rng_state())


OTHERS = {
    "lr is 0.02 there and 0.03 here": {"lr": 0.03},
    "batch_size is 4 there and 5 here": {"batch_size": 5},
    "its tasks, or their support sets, are not those": {"support_size": 2},
    "module__n_outputs is unset there and 7 here": {"module__n_outputs": 7},
    "optimizer is Adam there and SGD here": {"optimizer": torch.optim.SGD},
    "callbacks__lr is LRScheduler(": {"callbacks": [("interrupt", Interrupt())]},
    "its seeds are not those": {"random_state": 1},
}


@pytest.mark.parametrize("message", OTHERS)
def test_another_runs_file(message, tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(4)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan()
    other = dict(OTHERS[message])
    if "callbacks" in other:
        other["callbacks"] = [*other["callbacks"], ("save", ResumableCheckpoint(path))]
    fitted = make_meta(None).fit(tasks)
    before = everything(fitted)[:2]
    fitted.set_params(net=make_meta(path, **other).net)
    fitted.set_params(**{k: v for k, v in other.items() if hasattr(fitted, k)})
    with pytest.raises(ValueError, match=f"of another run: .*{re.escape(message)}"):
        fitted.fit(tasks)
    assert everything(fitted)[:2] == before
    assert path.exists()


def test_other_tasks(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(4)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan()
    changed = [Task(tasks[0].X + 1e-3, tasks[0].y, labels=tasks[0].labels), *tasks[1:]]
    for others in (tasks[:-1], tasks[::-1], changed):
        with pytest.raises(ValueError, match="another run: its tasks"):
            make_meta(path).fit(others)


def test_a_learners_own_parameter(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(4)
    with pytest.raises(Killed):
        make_meta(path, "maml", inner_lr=0.1).fit(tasks)
    plan()
    with pytest.raises(ValueError, match="inner_lr is 0.1 there and 0.2 here"):
        make_meta(path, "maml", inner_lr=0.2).fit(tasks)


def test_validation_tasks_drawn_anew(tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(4)
    splits = [ValidSplit(0.3, random_state=seed) for seed in (0, 1)]
    with pytest.raises(Killed):
        make_meta(path, train_split=splits[0]).fit(tasks)
    plan()
    splits[1].random_state = 0  # says the same
    splits[1].cv = lambda y: [(np.arange(5, 15), np.arange(5))]
    with pytest.raises(ValueError, match="train_split"):
        make_meta(path, train_split=splits[1]).fit(tasks)


class Harmful:
    """Would run code where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(Path(PLAN[1]) / "harm"),))


@pytest.mark.parametrize(
    "content", ["half", "all but a byte", "empty", "text", "zip", "weights", "harm"]
)
def test_a_file_that_is_no_checkpoint(content, tmp_path, plan):
    path, tasks = tmp_path / "meta.ckpt", make_tasks()
    plan(4)
    with pytest.raises(Killed):
        make_meta(path).fit(tasks)
    plan(None, tmp_path)
    whole = path.read_bytes()
    if content == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")
    elif content == "weights":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif content == "harm":
        torch.save({"format": Harmful()}, path)
    else:
        cut = {"half": len(whole) // 2, "all but a byte": -1, "empty": 0}
        path.write_bytes(whole[: cut[content]] if content in cut else b"a text")
    with pytest.raises(ValueError, match="not a whole checkpoint.*Delete it"):
        make_meta(path).fit(tasks)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("every", [0, 1.5, "2"])
def test_every_is_a_number_of_epochs(every, tmp_path):
    with pytest.raises(ValueError, match="every must be an int of at least 1"):
        make_meta(tmp_path / "meta.ckpt", every=every).fit(make_tasks())


def test_nested_parameters(tmp_path):
    meta = make_meta(tmp_path / "a.ckpt").set_params(net__callbacks__save__every=1)
    assert meta.get_params()["net__callbacks__save"].every == 1


def wait():
    print(f"in epoch {PLAN[0]}", flush=True)
    time.sleep(600)


if __name__ == "__main__":  # the process that is killed
    torch.set_num_threads(1)
    PLAN = (8, wait)
    make_meta(*sys.argv[1:]).fit(make_tasks())
