"""Memory stays flat over epochs and calls; where nobody differentiates, no graph is."""

import gc
from functools import partial

import pytest
import torch
from skorch.callbacks import Callback

from sk_meta import (
    ALPaCAClassifier,
    ALPaCARegressor,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    TaskNet,
)
from sk_meta.engine.batching import task_losses
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, Conv4
from sk_meta.tasks import make_blob_tasks, make_sinusoids

WAYS = ["layers", "vmap", "loop"]
MAML_OPTIONS = {"inner_lr": 0.1, "n_inner_steps": 2}

# Estimator, its own parameters, the net's.
FITS = {
    **{f"MAML, {way}": (MAMLClassifier, MAML_OPTIONS, {"way": way}) for way in WAYS},
    **{
        f"MAML again, {way}": (
            MAMLClassifier,
            {**MAML_OPTIONS, "gradient_checkpointing": True},
            {"way": way},
        )
        for way in ("layers", "loop")
    },
    "MAML, first order": (MAMLClassifier, {**MAML_OPTIONS, "first_order": True}, {}),
    "MAML, in pieces": (MAMLClassifier, MAML_OPTIONS, {"max_memory": 0.05}),
    "MAML, bfloat16": (MAMLClassifier, MAML_OPTIONS, {"precision": "bfloat16"}),
    "MAML, compiled": (MAMLClassifier, MAML_OPTIONS, {"compile": True}),
    "MAML, regression": (MAMLRegressor, MAML_OPTIONS, {}),
    "Prototypes": (PrototypicalClassifier, {}, {}),
    "Prototypes, vmap": (PrototypicalClassifier, {}, {"way": "vmap"}),
    "ALPaCA, classes": (ALPaCAClassifier, {}, {}),
    "ALPaCA": (ALPaCARegressor, {}, {}),
}

QUICK = {"MAML, layers", "MAML, vmap", "Prototypes", "ALPaCA"}
every_fit = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in FITS
    ],
)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """The traced function, without the half minute of the compiler."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    at_once = partial(CompiledSteps, patience=1)
    monkeypatch.setattr("sk_meta.training.CompiledSteps", at_once)


def live():
    """Tensors that Python can reach, and the bytes they hold."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    storages = {}
    for tensor in tensors:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # a tensor without one, such as a traced one
            continue
        if isinstance(storage.nbytes(), int):  # or it has no real size
            storages[storage._cdata] = storage.nbytes()
    return len(tensors), sum(storages.values())


class Live(Callback):
    """Notes what is alive at the end of some epochs."""

    def on_train_begin(self, net, **kwargs):
        self.found_ = []

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) in (2, 3, 12, 22):
            self.found_.append(live())


def make_meta(name, max_epochs, callbacks=None):
    estimator, options, of_net = FITS[name]
    net = TaskNet(
        module__hidden=(16, 16),
        module__normalization="batch",
        max_epochs=max_epochs,
        batch_size=4,
        callbacks=callbacks,
        **of_net,
    )
    return estimator(net, random_state=0, **options)


def make_tasks(name):
    """Nine tasks of one size: the last meta-batch is a small one."""
    if FITS[name][0] in (MAMLRegressor, ALPaCARegressor):
        return make_sinusoids(9, random_state=0)
    return make_blob_tasks(9, n_classes=3, random_state=0)


@every_fit
def test_flat_over_epochs(name):
    counter = Live()
    meta = make_meta(name, 22, [("live", counter)]).fit(make_tasks(name))
    found = dict(meta.net_.callbacks_)["live"].found_
    assert len(found) == 4 and len(set(found)) == 1, found


@every_fit
def test_later_epochs_hold_no_more_than_the_first(name):
    """Counted where tensors are made, so that those of a graph count too."""
    tasks = make_tasks(name)
    few, many = (peak_bytes(make_meta(name, n).fit, tasks) for n in (3, 13))
    assert few == many


@every_fit
def test_flat_over_calls(name):
    tasks = make_tasks(name)
    meta = make_meta(name, 1).fit(tasks)
    new = tasks[0]

    def call():
        meta.score(tasks)
        meta.predict_tasks(tasks)
        meta.predict(tasks)
        few_shot = meta.adapt(new.X_support, new.y_support)
        few_shot.predict(new.X_query)

    def calls(n):
        for _ in range(n):
            call()

    calls(3)
    before, n_objects = live(), len(gc.get_objects())
    calls(20)
    assert live() == before
    # An object kept from each call would be 20; caches may breathe.
    assert len(gc.get_objects()) < n_objects + 20
    assert peak_bytes(calls, 3) == peak_bytes(calls, 20)


def test_a_leak_would_be_found():
    kept = []

    def calls(n):
        for _ in range(n):
            kept.append(torch.zeros(100))

    calls(3)
    before = live()
    calls(20)
    assert live() == (before[0] + 20, before[1] + 8000)
    assert peak_bytes(calls, 20) > peak_bytes(calls, 3)


@every_fit
def test_evaluation_builds_no_graph(name):
    """Neither what is adapted nor the loss of validation asks for a gradient."""
    tasks = make_tasks(name)
    meta = make_meta(name, 1).fit(tasks)
    few_shot = meta.adapt(tasks[0].X_support, tasks[0].y_support)
    state = torch.utils._pytree.tree_leaves(few_shot.state_)
    assert state and not any(torch.is_tensor(x) and x.requires_grad for x in state)
    for batch in meta.net_.get_iterator(meta._dataset(tasks, meta.schema_, "cpu")):
        found = meta.net_.validation_step(batch)
        assert not found["loss"].requires_grad and not found["y_pred"].requires_grad


NETWORKS = {
    "MLP": lambda: MLP(16, 3, hidden=(32, 32)),
    "MLP, batch": lambda: MLP(16, 3, hidden=(32, 32), normalization="batch"),
    "Conv4": lambda: Conv4((1, 4, 4), 3, n_filters=8),
}


def make_learner(network, way, n_steps, **options):
    torch.manual_seed(0)
    learner = MAML(NETWORKS[network](), 3, 0.1, n_steps, n_steps, **options).double()
    learner.way, learner.checked = way, True
    return learner.train()


def held(learner, group, training=True):
    """Peak bytes of a meta-step, or of an evaluation."""
    if training:
        step = MetaStep()
        step(learner, [group])  # the gradients of the parameters stay
        return peak_bytes(step, learner, [group])
    learner.eval()
    with torch.no_grad():
        return peak_bytes(task_losses, learner, [group], False)


def make_images(make_group, network, **sizes):
    group = make_group(n_classes=3, **sizes)
    if network != "Conv4":
        return group
    support, query = (
        part._replace(X=part.X.unflatten(2, (1, 4, 4)))
        for part in (group.support, group.query)
    )
    return group._replace(support=support, query=query)


@pytest.mark.parametrize("training", [True, False], ids=["first order", "evaluation"])
@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("network", NETWORKS)
def test_without_second_order_steps_cost_no_memory(network, way, training, make_group):
    group = make_images(make_group, network, n_tasks=4)
    few, many = (
        held(make_learner(network, way, n, first_order=training), group, training)
        for n in (2, 20)
    )
    assert few == many
    if training:
        second = [held(make_learner(network, way, n), group) for n in (2, 20)]
        assert second[1] > 3 * second[0]


@pytest.mark.parametrize("training", [True, False], ids=["first order", "evaluation"])
@pytest.mark.parametrize("network", ["MLP", "MLP, batch"])
def test_without_second_order_layers_keep_their_state_alone(
    network, training, make_group
):
    """Two factors for each step, of which a new and an old copy are alive at once."""
    group = make_group(4, n_support=3, n_classes=3)
    found = {
        n: held(
            make_learner(network, "layers", n, first_order=training), group, training
        )
        for n in (2, 3, 4, 60, 120)
    }
    numbers = (
        4
        * 3
        * sum(
            sum(layer.weight.shape)
            for layer in make_learner(network, "loop", 1).modules()
            if isinstance(layer, torch.nn.Linear)
        )
    )
    assert found[3] - found[2] <= 2 * 8 * numbers
    assert found[4] - found[3] <= 2 * 8 * numbers
    assert found[60] == found[120]  # a matrix for each task is the smaller state


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("network", NETWORKS)
def test_adapt_needs_no_more_memory_for_more_steps(network, way, make_group):
    group = make_images(make_group, network)
    X, y = group.support[:2]
    support = group.support._replace(X=X[0], y=y[0])
    found = []
    for n_steps in (2, 20):
        learner = make_learner(network, way, n_steps).eval()
        with torch.no_grad():
            found.append(peak_bytes(learner.adapt, support))
    assert found[0] == found[1]


def test_checkpointing_of_convolutions_hardly_grows_with_steps(make_group):
    """What a step leaves is larger than the parameters, so that it pays."""
    group = make_images(make_group, "Conv4", n_support=60, n_query=60)

    def growth(again):
        few, many = (
            held(make_learner("Conv4", "loop", n, gradient_checkpointing=again), group)
            for n in (2, 12)
        )
        return many - few

    assert growth(True) < 0.1 * growth(False)
