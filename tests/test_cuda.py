"""On a GPU: the same answers as on a CPU, within the precision of float32."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    TaskNet,
)
from sk_meta.engine.batching import task_losses
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, Conv4
from sk_meta.tasks import Task, make_blob_tasks, make_sinusoids
from tests.methods import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MAML_OPTIONS = {"inner_lr": 0.1, "n_inner_steps": 2}
MODELS = {
    "MAML": MAMLClassifier(**MAML_OPTIONS),
    "MAML, first order": MAMLClassifier(**MAML_OPTIONS, first_order=True),
    "MAML, checkpointing": MAMLClassifier(**MAML_OPTIONS, gradient_checkpointing=True),
    "MAML, targets": MAMLRegressor(inner_lr=0.01, n_inner_steps=2),
    "Prototypes": PrototypicalClassifier(),
    "ALPaCA": ALPaCARegressor(),
    "ALPaCA, classes": ALPaCAClassifier(),
}
EVERY = {method.__name__: method() for method in METHODS}
WAYS = ["layers", "vmap", "loop"]


def model_of(name):
    return MODELS[name] if name in MODELS else EVERY[name]


@pytest.fixture(autouse=True)
def full_float32():
    """Convolutions round to TF32 otherwise, which is not the CPU's float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def make_tasks(name):
    if model_of(name)._classification:
        return make_blob_tasks(12, n_classes=3, random_state=0)
    return make_sinusoids(12, random_state=0)


def make_image_tasks():
    rng = np.random.default_rng(0)
    y = np.arange(24) % 3
    return [
        Task(rng.normal(size=(24, 1, 16, 16)) + y[:, None, None, None], y, range(9))
        for _ in range(6)
    ]


def train(name, tasks, device, **options):
    fixed = {"max_epochs": 2, "batch_size": 4, "optimizer": torch.optim.SGD, "lr": 0.01}
    if "module" not in options:
        fixed |= {"module__hidden": (16, 16), "module__normalization": "batch"}
    net = TaskNet(**{**fixed, **options, "device": device})
    return clone(model_of(name)).set_params(net=net, random_state=0).fit(tasks)


def values_of(meta, tasks):
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    few = few_shot.predict_proba if meta._classification else few_shot.predict
    return {
        "losses": np.array([row["train_loss"] for row in meta.history_]),
        "tasks": np.concatenate([found.values for found in meta.predict_tasks(tasks)]),
        "few-shot": few(tasks[0].X_query),
    }


def assert_close(found, expected, rtol=2e-3):
    for what, values in expected.items():
        scale = np.abs(values).max()
        error = np.abs(found[what] - values).max() / scale
        assert error < rtol, f"{what}: {error:.1e}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_same_as_on_the_cpu(name, way):
    tasks = make_tasks(name)
    here, there = (train(name, tasks, device, way=way) for device in ("cpu", "cuda"))
    assert all(p.is_cuda for p in there.learner_.parameters())
    assert there.learner_.way == way
    assert_close(values_of(there, tasks), values_of(here, tasks))
    assert there.score(tasks) == pytest.approx(here.score(tasks), abs=0.02)


@pytest.mark.filterwarnings("ignore:No task has an unlabelled row")
@pytest.mark.parametrize("name", EVERY)
def test_every_method_as_on_the_cpu(name):
    tasks, options = make_tasks(name), {"module__normalization": None}
    here, there = (train(name, tasks, device, **options) for device in ("cpu", "cuda"))
    assert all(p.is_cuda for p in there.learner_.parameters())
    assert_close(values_of(there, tasks), values_of(here, tasks))


@pytest.mark.parametrize("name", MODELS)
def test_tasks_of_many_sizes(name, make_ragged_tasks):
    tasks = make_ragged_tasks(classification=MODELS[name]._classification)
    here, there = (train(name, tasks, device) for device in ("cpu", "cuda"))
    assert_close(values_of(there, tasks), values_of(here, tasks))


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["MAML", "Prototypes"])
def test_convolutions_as_on_the_cpu(name, way):
    tasks = make_image_tasks()
    options = {"module": Conv4, "module__n_filters": 8, "way": way}
    here, there = (train(name, tasks, device, **options) for device in ("cpu", "cuda"))
    assert_close(values_of(there, tasks), values_of(here, tasks), rtol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_run_twice(name):
    tasks = make_tasks(name)
    first, second = (train(name, tasks, "cuda") for _ in range(2))
    assert_close(values_of(first, tasks), values_of(second, tasks), rtol=1e-5)


def test_generators_are_left_alone():
    before = torch.cuda.get_rng_state()
    train("MAML", make_tasks("MAML"), "cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_default_optimizer_learns():
    tasks = make_tasks("MAML")
    options = {"optimizer": torch.optim.Adam, "lr": 1e-2, "max_epochs": 40}
    meta = train("MAML", tasks, "cuda", **options)
    losses = [row["train_loss"] for row in meta.history_]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert all(p.is_cuda for p in meta.partial_fit(tasks).learner_.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_trains(name, way):
    tasks = make_tasks(name)
    exact = train(name, tasks, "cuda", way=way)
    rough = train(name, tasks, "cuda", way=way, precision="bfloat16")
    exact, rough = (values_of(meta, tasks)["losses"] for meta in (exact, rough))
    assert not np.array_equal(exact, rough)
    assert np.isfinite(rough).all()
    if "ALPaCA" not in name:  # a likelihood, which the precision of features decides
        np.testing.assert_allclose(rough, exact, rtol=0.1, atol=0.1)


def make_learner(way, n_steps=5, **options):
    torch.manual_seed(0)
    learner = MAML(MLP(256, 5, (256, 256)), 5, 0.1, n_steps, n_steps, **options)
    learner.way, learner.checked = way, True
    return learner.cuda().train()


def make_large_group(make_group, n_tasks=64):
    group = make_group(n_tasks, 25, 75, n_features=256, n_classes=5)

    def moved(part):
        return part._replace(X=part.X.float().cuda(), y=part.y.cuda())

    return group._replace(support=moved(group.support), query=moved(group.query))


def held(step, learner, group):
    """What the allocator counts at most, besides what is there before."""
    step(learner, [group])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(learner, [group])
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("way", ["layers", "vmap"])
def test_max_memory_is_kept(way, make_group):
    """The allocator rounds up, so a little more than asked for may be held."""
    group = make_large_group(make_group)
    whole = held(MetaStep(), make_learner(way), group)
    for share in (2, 8):
        bound = whole / share
        step = MetaStep(max_memory=bound / 2**20)
        assert held(step, make_learner(way), group) < 1.25 * bound


def test_memory_is_flat_over_epochs_and_calls():
    tasks = make_tasks("MAML")
    meta = train("MAML", tasks, "cuda")
    found = []
    for n in (1, 10):
        for _ in range(n):
            meta.score(tasks)
            meta.adapt(tasks[0].X_support, tasks[0].y_support)
            meta.partial_fit(tasks)
        torch.cuda.synchronize()
        found.append(torch.cuda.memory_allocated())
    assert found[0] == found[1]


@pytest.mark.parametrize("first_order", [False, True])
def test_checkpointing_gives_the_same_gradients(first_order, make_group):
    group = make_large_group(make_group, 4)
    for way in ("layers", "loop"):
        gradients = []
        for again in (False, True):
            learner = make_learner(
                way, 3, first_order=first_order, gradient_checkpointing=again
            )
            MetaStep()(learner, [group])
            gradients.append([p.grad for p in learner.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_evaluation_keeps_no_graph(make_group):
    group = make_large_group(make_group, 4)
    learner = make_learner("layers").eval()
    with torch.no_grad():
        losses, _ = task_losses(learner, [group], training=False)
    assert losses.is_cuda and not losses.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MAML", "Prototypes", "ALPaCA"])
def test_compile_true_trains_as_before(name):
    tasks = make_tasks(name)
    plain = train(name, tasks, "cuda")
    fast = train(name, tasks, "cuda", compile=True)
    functions = fast.net_.meta_step_.compiled.functions.values()
    assert functions and None not in functions
    assert_close(values_of(fast, tasks), values_of(plain, tasks))


ELSEWHERE = """
import pickle, sys, warnings
import numpy as np, torch
assert not torch.cuda.is_available()
warnings.simplefilter("ignore")
with open(sys.argv[1], "rb") as file:
    meta, few_shot, tasks = pickle.load(file)
task = tasks[0]
again = meta.adapt(task.X_support, task.y_support)
few = "predict_proba" if meta._classification else "predict"
values = [getattr(each, few)(task.X_query) for each in (few_shot, again)]
np.savez(sys.argv[2], few_shot=values[0], again=values[1], score=meta.score(tasks))
"""


@pytest.mark.parametrize("name", MODELS)
def test_adapt_and_predict_work_without_the_gpu(name, tmp_path):
    tasks = make_tasks(name)
    meta = train(name, tasks, "cuda")
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps((meta, few_shot, tasks)))
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "meta.pkl", tmp_path / "out.npz"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    found = np.load(tmp_path / "out.npz")
    expected = values_of(meta, tasks)["few-shot"]
    for what in ("few_shot", "again"):
        np.testing.assert_allclose(found[what], expected, rtol=1e-3, atol=1e-4)
    assert found["score"] == pytest.approx(meta.score(tasks), abs=0.02)
