"""Pruned learners: zeros that stay, neurons that leave, and nothing else changes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    ANILClassifier,
    FewShotClassifier,
    IMAMLRegressor,
    MAMLClassifier,
    MAMLRegressor,
    MetaSGDClassifier,
    PrototypicalClassifier,
    PrunedLearner,
    ReptileClassifier,
    TaskNet,
    TaskTransformer,
    adapt,
    task_scorer,
)
from sk_meta.compression.masking import mask_smallest, maskable, sparse_size
from sk_meta.compression.slimming import hidden_layers, slim
from sk_meta.engine.batching import task_losses
from sk_meta.engine.each_task import preferred_way
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, Conv4, exact_normalization
from sk_meta.onnx import to_onnx
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation

*TASKS, NEW = make_blob_tasks(
    13, n_classes=2, n_features=3, labels="shared", random_state=0
)
ROWS = NEW.X_support, NEW.y_support


def make_net(**options):
    return TaskNet(**{"module__hidden": (8, 6), "max_epochs": 1, **options})


@pytest.fixture(scope="module")
def maml():
    return MAMLClassifier(
        make_net(max_epochs=2), inner_lr=0.5, n_inner_steps=2, random_state=0
    ).fit(TASKS)


@pytest.fixture(scope="module")
def embedding():
    return PrototypicalClassifier(make_net(), random_state=0).fit(TASKS)


def prune(meta, amount=0.5, **options):
    options = {"max_epochs": 1, "n_rounds": 2, "random_state": 0, **options}
    return PrunedLearner(FrozenEstimator(meta), amount, **options)


def outputs(meta):
    return meta.adapt(*ROWS).predict_proba(NEW.X_query)


def weights(network):
    return torch.cat([layer.weight.detach().flatten() for layer in maskable(network)])


def pruned_names(network):
    return {
        f"{name}.weight": layer.mask
        for name, layer in network.named_modules()
        if hasattr(layer, "mask")
    }


def make_learner(normalization=None, **options):
    network = exact_normalization(MLP(4, 2, (5, 4), nn.Tanh, normalization)).double()
    return MAML(network, 2, 0.3, 2, 2, **options).double().train()


def make_images(n_tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], 4)
    means = rng.normal(size=(2, 1, 16, 16))
    draws = [means[y] + rng.normal(size=(8, 1, 16, 16)) for _ in range(n_tasks)]
    return [(X.astype(np.float32), y) for X in draws]


# Weights that become 0.


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_the_share_asked_is_zero(maml, amount):
    pruned = prune(maml, amount).fit(TASKS)
    values = weights(pruned.learner_.module)
    n_zero = round(amount * len(values))
    assert int((values == 0).sum()) == n_zero
    n = sum(p.numel() for p in maml.learner_.module.parameters())
    assert pruned.kept_ == pytest.approx(1 - n_zero / n)


def test_the_smallest_of_all_layers_go(maml):
    pruned = prune(maml, 0.4, max_epochs=0, n_rounds=1).fit(TASKS)
    before, after = weights(maml.learner_.module), weights(pruned.learner_.module)
    gone = after == 0
    assert before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(before[~gone], after[~gone])


def test_what_is_pruned_stays_pruned():
    network = MLP(4, 2, (9, 9))
    mask_smallest(network, 0.3)
    first = weights(network) == 0
    with torch.no_grad():
        for layer in maskable(network):  # others are smaller than these now
            layer.weight.add_(torch.where(layer.weight == 0, 1.0, 0.0))
    mask_smallest(network, 0.6)
    second = weights(network) == 0
    assert second[first].all() and second.sum() == round(0.6 * len(second))


@pytest.mark.parametrize(
    "meta",
    [
        MAMLClassifier(make_net(), inner_lr=0.5, n_inner_steps=3),
        MAMLClassifier(make_net(module__normalization="batch"), inner_lr=0.5),
        MetaSGDClassifier(make_net(way="loop"), inner_lr=0.5),
        ReptileClassifier(make_net(optimizer=torch.optim.SGD, optimizer__momentum=0.9)),
    ],
    ids=lambda meta: type(meta).__name__,
)
def test_pruned_weights_are_zero_after_adapt(meta):
    pruned = PrunedLearner(meta, 0.5, max_epochs=2, random_state=0).fit(TASKS)
    pruned.partial_fit(TASKS)
    masks = pruned_names(pruned.learner_.module)
    state, _ = pruned.adapt_state(*ROWS)
    start = dict(pruned.learner_.module.named_parameters())
    for name, mask in masks.items():
        assert (start[name][~mask] == 0).all()
        assert (state.parameters[name][~mask] == 0).all()
    moved = [(state.parameters[n] - start[n])[m].abs().max() for n, m in masks.items()]
    assert min(moved) > 0


def test_conjugate_gradients_leave_zeros_alone():
    *old, new = make_sinusoids(9, random_state=0)
    meta = IMAMLRegressor(make_net(), inner_lr=0.1, n_inner_steps=3)
    pruned = PrunedLearner(meta, 0.7, max_epochs=1, random_state=0).fit(old)
    state, _ = pruned.adapt_state(new.X_support, new.y_support)
    for name, mask in pruned_names(pruned.learner_.module).items():
        assert (state.parameters[name][~mask] == 0).all()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
def test_ways_agree_on_masked_weights(normalization, first_order, make_group):
    learner = make_learner(normalization, first_order=first_order)
    mask_smallest(learner.module, 0.5)
    group, found = make_group(3, 6, 4, 4, 0, 2, weighted=True), []
    for way in ("vmap", "loop"):
        learner.way, learner.forced = way, True
        learner.zero_grad()
        losses, _ = task_losses(learner, [group])
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad for p in learner.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_meta_gradients_of_masked_weights(way, make_group):
    learner = make_learner("batch")
    mask_smallest(learner.module, 0.5)
    learner.checked = learner.forced = True
    batch = [make_group(3, 6, 4, 4, 0, 2), make_group(2, 5, 3, 4, 0, 2)]
    assert deviation(learner, batch, way) <= TOLERANCE


def test_masked_weights_are_not_stepped_layer_by_layer(maml, embedding):
    learner = make_learner()
    assert preferred_way(learner, "cpu")[0] == "layers"
    mask_smallest(learner.module, 0.5)
    assert preferred_way(learner, "cpu")[0] == "vmap"
    assert prune(maml).fit(TASKS).learner_.way == "vmap"
    # Where tasks share the network nothing steps it.
    assert prune(embedding).fit(TASKS).learner_.way == "layers"
    forced = MAMLClassifier(make_net(way="layers", max_epochs=0), random_state=0)
    with pytest.raises(ValueError, match="way='layers' does not work.*LinearMasked"):
        prune(forced.fit(TASKS)).fit(TASKS)


def test_convolutions_are_masked():
    tasks = make_images()
    meta = MAMLClassifier(TaskNet(Conv4, module__n_filters=4, max_epochs=0), inner_lr=1)
    pruned = PrunedLearner(meta, 0.6, max_epochs=1, n_rounds=1, random_state=0)
    pruned.fit(tasks)
    masks = pruned_names(pruned.learner_.module)
    assert sum("Conv2d" in str(m) for m in pruned.learner_.module.modules()) >= 4
    state, _ = pruned.adapt_state(*tasks[0])
    zeros = [(state.parameters[n][~m] == 0).all() for n, m in masks.items()]
    assert len(zeros) >= 4 and all(zeros)


def test_sparse_files_are_smaller(maml):
    sizes = [
        sparse_size(prune(maml, amount, max_epochs=0).fit(TASKS).learner_)
        for amount in (0, 0.5, 0.95)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


# Neurons and channels that leave.


@pytest.mark.parametrize(
    "network, amount, widths",
    [
        (MLP(3, 2, (8, 6)), 0.5, [4, 3]),
        (MLP(3, 2, (8, 6), normalization="layer"), 0.25, [6, 4]),
        (MLP(3, 2, (2, 40), normalization="batch"), 0.9, [1, 4]),
        (MLP(3, None, (8, 6)), 0.5, [4]),
        (nn.Sequential(nn.Flatten(), MLP(3, 4, (4,)), nn.Tanh()), 0.5, [2]),
    ],
)
def test_widths_asked(network, amount, widths):
    meta = PrototypicalClassifier(TaskNet(network, max_epochs=1), random_state=0)
    pruned = PrunedLearner(meta, amount, how="slim", max_epochs=1).fit(TASKS)
    module = pruned.learner_.module
    assert type(module) is type(network)
    assert [hidden.width for hidden in hidden_layers(module)] == widths
    n_outputs = network(torch.zeros(2, 3)).shape[1]
    assert module(torch.zeros(2, 3)).shape == (2, n_outputs)
    assert {*module.parameters()} <= {
        parameter
        for group in pruned.net_.optimizer_.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.8])
def test_channels_asked(amount):
    tasks = make_images()
    meta = PrototypicalClassifier(
        TaskNet(Conv4, module__n_filters=10, max_epochs=0), random_state=0
    )
    pruned = PrunedLearner(meta, amount, how="slim", max_epochs=1, n_rounds=2)
    layers = pruned.fit(tasks).learner_.module.layers
    kept = 10 - round(amount * 10)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [kept, kept, kept, 10]
    assert [c.in_channels for c in convolutions] == [1, kept, kept, kept]
    assert [n.num_features for n in pruned.learner_.norms] == [kept, kept, kept, 10]
    assert pruned.adapt(*tasks[0]).predict(tasks[0][0]).shape == (8,)


def kill(network, share):
    """Let some neurons of each hidden layer say nothing, and nothing listen to them."""
    for hidden in hidden_layers(network):
        n_dead = round(share * hidden.width)
        dead = torch.randperm(hidden.width)[:n_dead]
        with torch.no_grad():
            hidden.layer.weight[dead] = 0
            hidden.layer.bias[dead] = 0
            for _, norm in hidden.norms:
                norm.weight[dead] = 0
                norm.bias[dead] = 0
            consumer = hidden.consumer[1].weight
            each = consumer.shape[1] // hidden.width
            consumer[:, (dead[:, None] * each + torch.arange(each)).flatten()] = 0


@pytest.mark.parametrize(
    "meta",
    [
        MAMLClassifier(make_net(), inner_lr=0.5, n_inner_steps=3),
        MAMLClassifier(make_net(module__normalization="batch"), inner_lr=0.5),
        MetaSGDClassifier(make_net(module__normalization="batch"), n_inner_steps=2),
        MAMLClassifier(make_net(), inner_rates="layer_and_step", adapts="body"),
        ANILClassifier(make_net()),
        PrototypicalClassifier(make_net(module__normalization="batch")),
    ],
    ids=lambda meta: type(meta).__name__,
)
def test_dead_neurons_are_not_missed(meta):
    meta = clone(meta).set_params(random_state=0).fit(TASKS)
    kill(meta.learner_.module, 0.5)
    with torch.no_grad():
        for name, rates in meta.learner_.named_parameters():
            if name.startswith("rates."):
                rates.mul_(1 + torch.rand_like(rates))
    slimmed = prune(meta, 0.5, how="slim", max_epochs=0).fit(TASKS)
    assert slimmed.kept_ < 0.8
    np.testing.assert_allclose(outputs(slimmed), outputs(meta), atol=1e-5)
    np.testing.assert_allclose(slimmed.score(TASKS), meta.score(TASKS), atol=1e-5)


@pytest.mark.parametrize("method", [MAMLClassifier, PrototypicalClassifier])
def test_dead_channels_are_not_missed(method):
    tasks = make_images()
    net = TaskNet(Conv4, module__n_filters=4, max_epochs=1)
    meta = method(net, random_state=0).fit(tasks)
    kill(meta.learner_.module, 0.5)
    slimmed = prune(meta, 0.5, how="slim", max_epochs=0).fit(tasks)
    X, y = tasks[0]
    found = [each.adapt(X, y).predict_proba(X) for each in (slimmed, meta)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_flattened_channels_leave_as_a_whole():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)
    )
    learner = MAML(network, 3, 0.1, 1, 1)
    kill(network, 0.5)
    X = torch.randn(2, 1, 16, 16)
    before = network(X)
    slim(learner, {"0": 2})
    assert network[3].in_features == 2 * 14 * 14 == network[3].weight.shape[1]
    torch.testing.assert_close(network(X), before)


@pytest.mark.parametrize("inner_rates", ["fixed", "parameter"])
@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
def test_ways_agree_on_slim_networks(normalization, inner_rates, make_group):
    learner = make_learner(normalization, inner_rates=inner_rates)
    slim(learner, {hidden.name: 3 for hidden in hidden_layers(learner.module)})
    learner.checked = learner.forced = True
    group, found = make_group(3, 6, 4, 4, 0, 2), []
    for way in ("layers", "vmap", "loop"):
        learner.way = way
        learner.zero_grad()
        losses, _ = task_losses(learner, [group])
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad for p in learner.parameters())])
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, another, rtol=1e-9, atol=1e-11)


def test_frozen_layers_stay_frozen():
    learner = make_learner()
    first = learner.module.layers[0]
    first.weight.requires_grad_(False)
    slim(learner, {"layers.0": 2, "layers.2": 2})
    assert not first.weight.requires_grad and first.bias.requires_grad


class Twice(nn.Sequential):
    """Not the plain chain that its layers look like."""

    def forward(self, X):
        return super().forward(super().forward(X) + X)


SHARED = nn.Linear(3, 3)
REFUSED = {
    "the network .Twice.": Twice(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)),
    "layer '1' .GroupNorm.": nn.Sequential(
        nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)
    ),
    "layer '2' .Linear.: it is used twice": nn.Sequential(SHARED, nn.ReLU(), SHARED),
    "layer '1' .PReLU.": nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)),
    "no hidden layer": nn.Sequential(nn.Linear(3, 2)),
    "layer '1.0' .Softmax.": nn.Sequential(
        nn.Linear(3, 4), nn.Sequential(nn.Softmax(-1)), nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_networks_that_cannot_be_slimmed(message):
    class Untrainable(torch.optim.Adam):
        def step(self, closure=None):
            raise AssertionError("trained before it was checked")

    net = TaskNet(REFUSED[message], optimizer=Untrainable, max_epochs=1)
    pruned = PrunedLearner(PrototypicalClassifier(net), how="slim")
    with pytest.raises(ValueError, match=message):
        pruned.fit(TASKS)
    assert not hasattr(pruned, "meta_learner_")


@pytest.mark.parametrize(
    "network, shape, message",
    [
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(6, 4), nn.Conv2d(4, 2, 1)),
            (2, 1, 8, 8),
            "'1' .Linear.: it works on another axis",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)),
            (2, 2, 3),
            "'2' .Linear.: it takes 8 numbers of a row, the layer before it puts out 4",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 2, 1)),
            (2, 2, 8, 8),
            "'0' .Conv2d.: it has groups",
        ),
    ],
)
def test_axes_that_are_not_channels(network, shape, message):
    network(torch.zeros(shape))  # it works
    with pytest.raises(ValueError, match=message):
        hidden_layers(network)


# Whatever is pruned.

HOWS = ["magnitude", "slim"]


@pytest.mark.parametrize("how", HOWS)
def test_nothing_to_do_changes_nothing(maml, embedding, how):
    for meta in (maml, embedding):
        same = prune(meta, 0, how=how, max_epochs=0).fit(TASKS)
        np.testing.assert_array_equal(outputs(same), outputs(meta))
        assert same.kept_ == 1


@pytest.mark.parametrize("how", HOWS)
def test_the_dense_model_gets_the_same_training(maml, how):
    dense, pruned = (prune(maml, a, how=how).fit(TASKS) for a in (0, 0.5))
    assert len(dense.history_) == len(pruned.history_) == 2 + 2 * 1
    assert dense.kept_ == 1 > pruned.kept_
    assert not np.array_equal(outputs(dense), outputs(maml))
    assert dense.net_.rng_.integers(2**31) == pruned.net_.rng_.integers(2**31)


@pytest.mark.parametrize("how", HOWS)
def test_what_is_given_is_left_alone(maml, how):
    tasks = copy.deepcopy(TASKS)
    before = {k: v.clone() for k, v in maml.learner_.state_dict().items()}
    n_epochs, generator = len(maml.history_), copy.deepcopy(maml.net_.rng_)
    probabilities = outputs(maml)
    prune(maml, how=how, lr=0.1).fit(tasks)
    for name, value in maml.learner_.state_dict().items():
        assert torch.equal(value, before[name])
    assert len(maml.history_) == n_epochs and maml.net_.max_epochs == 2
    assert maml.net_.lr != 0.1
    assert maml.net_.rng_.integers(2**31) == generator.integers(2**31)
    np.testing.assert_array_equal(outputs(maml), probabilities)
    for task, given in zip(tasks, TASKS, strict=True):
        np.testing.assert_array_equal(task.X, given.X)


@pytest.mark.parametrize("how", HOWS)
def test_random_state(how):
    meta = MAMLClassifier(make_net(), random_state=None)
    a, b, c = (
        outputs(
            PrunedLearner(meta, how=how, max_epochs=1, random_state=seed).fit(TASKS)
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("how", HOWS)
def test_training_goes_on_after_pruning(embedding, how):
    pruned = prune(embedding, how=how).fit(TASKS)
    module, n_epochs = pruned.learner_.module, len(pruned.history_)
    shapes = [parameter.shape for parameter in module.parameters()]
    zeros = weights(module) == 0
    pruned.partial_fit(TASKS)
    after = pruned.learner_.module
    assert [parameter.shape for parameter in after.parameters()] == shapes
    assert torch.equal(weights(after) == 0, zeros)
    assert not torch.equal(weights(after), weights(module))
    assert len(pruned.history_) == n_epochs + 1


@pytest.mark.parametrize("how", HOWS)
def test_it_is_a_meta_learner(maml, how):
    pruned = prune(maml, how=how).fit(TASKS)
    assert pruned.classes_.tolist() == maml.classes_.tolist()
    assert pruned.n_features_in_ == 3 and pruned.learner_ is pruned.net_.module_
    again = pickle.loads(pickle.dumps(pruned))
    np.testing.assert_array_equal(outputs(again), outputs(pruned))
    few_shot = FewShotClassifier(FrozenEstimator(pruned)).fit(*ROWS)
    np.testing.assert_array_equal(few_shot.predict_proba(NEW.X_query), outputs(pruned))
    found = pruned.predict_proba(TASKS)
    assert len(found) == len(TASKS) and 0 <= pruned.score(TASKS) <= 1
    pruned_again = prune(pruned, how="magnitude", max_epochs=0).fit(TASKS)
    assert type(pruned_again.meta_learner_) is MAMLClassifier


@pytest.mark.parametrize("how", HOWS)
def test_files(maml, how):
    few_shot = prune(maml, how=how, max_epochs=0).fit(TASKS).adapt(*ROWS)
    file = to_onnx(few_shot)  # compares it with the model
    lengths = {n for array in file.graph.initializer for n in array.dims}
    assert (8 in lengths) == (how == "magnitude")  # of the hidden layer; 4 are left


def test_regression():
    *old, new = make_sinusoids(9, random_state=0)
    meta = MAMLRegressor(make_net(), inner_lr=0.05)
    pruned = PrunedLearner(meta, how="slim", max_epochs=1, random_state=0).fit(old)
    assert pruned.adapt(new.X_support, new.y_support).predict(new.X_query).ndim == 1
    assert not hasattr(pruned, "predict_proba") and not hasattr(pruned, "classes_")


def test_amount_is_a_hyperparameter():
    pruned = PrunedLearner(PrototypicalClassifier(make_net(), random_state=0))
    pruned.set_params(max_epochs=0, n_rounds=1, meta_learner__support_size=2)
    pipe = Pipeline([("scale", TaskTransformer(StandardScaler())), ("pruned", pruned)])
    grid = {"pruned__amount": [0.0, 0.9], "pruned__how": HOWS}
    search = GridSearchCV(
        pipe, grid, cv=2, scoring=task_scorer("balanced_accuracy"), error_score="raise"
    )
    search.fit(TASKS)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert adapt(search, *ROWS).predict(NEW.X_query).shape == NEW.y_query.shape


def test_parameters():
    meta = MAMLClassifier(make_net())
    pruned = PrunedLearner(meta, 0.3, how="slim", lr=0.1)
    assert pruned.get_params(deep=False)["meta_learner"] is meta
    copied = clone(pruned.set_params(meta_learner__inner_lr=0.7))
    assert repr(copied) == repr(pruned) and copied.meta_learner.inner_lr == 0.7
    frozen = prune(meta)
    assert clone(frozen).meta_learner.estimator is meta


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"amount": 1.0}, ValueError, "'amount'"),
        ({"amount": -0.1}, ValueError, "'amount'"),
        ({"how": "random"}, ValueError, "'how'"),
        ({"n_rounds": 0}, ValueError, "'n_rounds'"),
        ({"max_epochs": -1}, ValueError, "'max_epochs'"),
        ({"lr": 0.0}, ValueError, "'lr'"),
        ({"meta_learner": Ridge()}, TypeError, "got Ridge"),
        (
            {"meta_learner": FrozenEstimator(MAMLClassifier())},
            NotFittedError,
            "not fitted",
        ),
        (
            {"meta_learner": Pipeline([("maml", MAMLClassifier())])},
            TypeError,
            "In a Pipeline, wrap its last step",
        ),
        (
            {"meta_learner": PrototypicalClassifier(TaskNet(nn.LayerNorm(3)))},
            ValueError,
            "LayerNorm has no linear or convolution layer",
        ),
    ],
)
def test_bad_parameters_leave_it_as_it_was(embedding, options, error, message):
    pruned = prune(embedding, max_epochs=0).fit(TASKS)
    before = outputs(pruned)
    with pytest.raises(error, match=message):
        pruned.set_params(**options).fit(TASKS)
    np.testing.assert_array_equal(outputs(pruned), before)


def test_bad_tasks(embedding):
    with pytest.raises(ValueError, match="4 features"):
        prune(embedding).fit([(np.zeros((4, 4)), [0, 1, 0, 1])])
    with pytest.raises(ValueError, match="no tasks"):
        PrunedLearner(MAMLClassifier()).fit([])
    with pytest.raises(NotFittedError):
        prune(embedding).adapt(*ROWS)
