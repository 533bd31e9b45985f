"""Tasks computed layer by layer give what a plain loop gives, or are left to vmap."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from sk_meta.closed_form.alpaca import ALPaCA, BayesianDiscriminant
from sk_meta.engine.batching import disagreement, settle, task_losses
from sk_meta.engine.each_task import can_pad, preferred_way
from sk_meta.engine.layers import StackedNetwork, why_opaque
from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, exact_normalization
from sk_meta.updates import gradient_descent


class Residual(nn.Module):
    """A Linear used twice, a sum around it, activations in place."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, X):
        Z = F.relu_(self.first(X))
        Z = Z + self.again(Z).tanh_()
        Z = Z + self.norm(self.again(Z))
        return self.last(Z)


class Sequence(nn.Module):
    """Linear layers on an axis of length two inside of each row."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(2, 5), nn.BatchNorm1d(2)
        self.last = nn.Linear(10, 3)

    def forward(self, X):
        Z = torch.tanh(self.norm(self.inner(X.view(-1, 2, 2))))
        return self.last(Z.flatten(1))


class Functional(nn.Module):
    """Uses a layer's weight where no layer sees it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, X):
        return self.last(torch.tanh(F.linear(X, self.first.weight)))


class Decay(Functional):
    """Looks at all of its parameters."""

    def forward(self, X):
        size = sum((p**2).sum() for p in self.parameters())
        return self.last(torch.tanh(self.first(X))) / (1 + size)


class Centered(Functional):
    """Mixes rows."""

    def forward(self, X):
        return self.last(torch.tanh(self.first(X - X.mean(0))))


class Transposed(Functional):
    """Rows are not the first axis inside."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, X):
        Z = self.mix(X.view(-1, 2, 2).transpose(0, 1).reshape(2, -1, 2).repeat(1, 1, 2))
        return self.last(torch.tanh(self.first(Z.mean(0))))


class Typed(Functional):
    """Asks a parameter for its type, as many modules do."""

    def forward(self, X):
        X = X.to(self.first.weight.dtype)
        return self.last(torch.tanh(self.first(X)))


class Branching(Functional):
    """Looks at the data, and does the same for all that the check sees."""

    def forward(self, X):
        Z = torch.tanh(self.first(X))
        return self.last(Z) if X.abs().max() < 100 else self.last(Z - Z.mean(0))


def tied():
    first = nn.Linear(4, 4)
    last = nn.Linear(4, 4)
    last.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), last, nn.Linear(4, 3))


def half_frozen():
    network = MLP(4, 3, (6,))
    network.layers[0].weight.requires_grad_(False)
    return network


def frozen():
    network = MLP(4, 3, (6,))
    network.layers[0].requires_grad_(False)
    return network


def hooked():
    network = MLP(4, 3, (6, 5))
    network.layers[2].register_forward_hook(lambda layer, given, Z: Z * 2)
    return network


FOLLOWED = {
    "residual": Residual,
    "sequence": Sequence,
    "typed": Typed,
    "hook": hooked,
    "frozen layer": frozen,
    "dropout": lambda: nn.Sequential(nn.Dropout(0.0), MLP(4, 3)),
    "batch": lambda: MLP(4, 3, (6,), normalization="batch"),
    "layer": lambda: MLP(4, 3, (6,), normalization="layer"),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, affine=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
}
LEFT = {
    "weight past its layer": Functional,
    "all parameters": Decay,
    "rows": Centered,
    "transposed": Transposed,
    "branch": Branching,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "tied": tied,
    "half frozen": half_frozen,
    "unknown layer": lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()),
}


def losses_and_gradient(learner, group, way):
    learner.way, learner.checked = way, True
    learner.zero_grad()
    losses, seen = task_losses(learner, [group])
    losses.sum().backward()
    assert learner.way == way, learner.why
    return losses.detach(), [p.grad for p in learner.parameters()], seen


def make_learner(network, **options):
    options = {"n_inner_steps": 3, "n_adapt_steps": 3, **options}
    return MAML(exact_normalization(network).double(), 3, 0.2, **options)


@pytest.mark.parametrize("factors", [None, True, False])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", FOLLOWED)
def test_layer_by_layer_equals_a_loop(
    name, first_order, factors, make_group, monkeypatch
):
    if factors is not None:
        monkeypatch.setattr(StackedNetwork, "keeps_factors", lambda *_: factors)
    group = make_group(4, n_features=4, n_classes=3, weighted=True)
    learner = make_learner(FOLLOWED[name](), first_order=first_order)
    assert preferred_way(learner, "cpu")[0] == "layers"
    assert disagreement(learner, group) is None
    together = losses_and_gradient(learner, group, "layers")
    alone = losses_and_gradient(learner, group, "loop")
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["residual", "typed", "hook", "layer"])
def test_rows_filled_up_change_nothing(name, make_ragged_tasks, make_dataset):
    """Tasks of several sizes in one call, in modules that are on no list."""
    dataset = make_dataset(make_ragged_tasks())
    learner = make_learner(FOLLOWED[name]()).float()
    learner.way = "layers"
    settle(learner, next(iter(dataset.batch(range(2)))))
    assert learner.way == "layers" and can_pad(learner)
    found = []
    for pad in (0, can_pad(learner)):
        learner.zero_grad()
        batch = dataset.batch(range(10), pad=pad)
        order = np.concatenate([group.positions for group in batch])
        losses, _ = task_losses(learner, batch)
        losses.sum().backward()
        gradients = [p.grad.clone() for p in learner.parameters()]
        found.append((losses.detach()[np.argsort(order)], gradients, len(batch.groups)))
    assert found[1][2] < found[0][2]
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("way", ["layers", "loop"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_gradient_checkpointing_changes_the_memory_alone(
    name, way, first_order, make_group
):
    group = make_group(3, n_features=4, n_classes=3, weighted=True)
    learner = make_learner(FOLLOWED[name](), first_order=first_order)
    known = losses_and_gradient(learner, group, way)
    learner.gradient_checkpointing = True
    found = losses_and_gradient(learner, group, way)
    torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-11)
    assert not any("forward" in vars(layer) for layer in learner.modules())


@pytest.mark.parametrize("way", ["layers", "loop"])
def test_checkpointed_memory_hardly_grows_with_the_steps(way, make_group):
    group = make_group(3, n_support=60, n_features=4, n_classes=3)
    growth = []
    for checkpointing in (False, True):
        peaks = []
        for n_steps in (2, 20):
            learner = make_learner(MLP(4, 3, (8, 8)), n_inner_steps=n_steps)
            learner.gradient_checkpointing = checkpointing
            learner.way, learner.checked = way, True
            peaks.append(peak_bytes(MetaStep(), learner, [group]))
        growth.append(peaks[1] - peaks[0])
    assert growth[1] < growth[0] / 2, growth


EMBEDDING = {
    "Prototypes": Prototypes,
    "BayesianDiscriminant": lambda net: BayesianDiscriminant(net, 3, 4, 3),
    "ALPaCA": lambda net: ALPaCA(net, 3, 4, 1),
}


@pytest.mark.parametrize("name", [*FOLLOWED, "all parameters", "tied", "unknown layer"])
@pytest.mark.parametrize("method", EMBEDDING)
def test_rows_of_all_tasks_are_embedded_in_one_call(method, name, make_group):
    n_classes = 0 if method == "ALPaCA" else 3
    group = make_group(4, n_features=4, n_classes=n_classes, weighted=True)
    network = exact_normalization({**FOLLOWED, **LEFT}[name]())
    learner = EMBEDDING[method](network).double()
    assert preferred_way(learner, "cpu")[0] == "layers"
    assert disagreement(learner, group) is None
    together = losses_and_gradient(learner, group, "layers")
    alone = losses_and_gradient(learner, group, "loop")
    torch.testing.assert_close(together, alone)
    learner.update_running(together[2])
    learner.eval()
    with torch.no_grad():
        found = [
            task_losses(learner, [group], training=False)[0]
            for learner.way in ("layers", "loop")
        ]
    torch.testing.assert_close(*found)


def test_an_embedding_that_mixes_rows_is_left_to_vmap(make_group):
    group = make_group(3, n_features=4, n_classes=3)
    learner = Prototypes(Centered().double())
    learner.way = "layers"
    task_losses(learner, [group])
    assert learner.way == "vmap"


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("name", ["batch", "sequence", "residual"])
def test_evaluation_equals_adapting_and_predicting(name, transductive, make_group):
    group = make_group(3, n_features=4, n_classes=2, weighted=True)
    learner = make_learner(FOLLOWED[name](), transductive=transductive).eval()
    with torch.no_grad():
        found = []
        for learner.way in ("layers", "loop"):
            found.append(task_losses(learner, [group], training=False)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_followed_is_left_to_vmap(name, make_group):
    group = make_group(3, n_features=4, n_classes=3)
    learner = make_learner(LEFT[name]())
    learner.way, learner.why = preferred_way(learner, "cpu")
    together = task_losses(learner, [group])[0]
    assert learner.way == ("loop" if name == "branch" else "vmap") and learner.why
    alone = losses_and_gradient(learner, group, "loop")[0]
    torch.testing.assert_close(together.detach(), alone)


def test_asking_for_a_way_that_does_not_work_is_an_error(make_group):
    learner = make_learner(Functional())
    learner.way, learner.forced = "layers", True
    with pytest.raises(ValueError, match=r"way='layers' does not work.*way='auto'"):
        task_losses(learner, [make_group(3, n_features=4, n_classes=3)])


def test_tasks_with_the_same_inputs_do_not_hide_that_rows_mix(make_group):
    group = make_group(3, n_features=4, n_classes=3)
    same = group.support.X[:1].expand(3, -1, -1)
    group = group._replace(support=group.support._replace(X=same))
    assert disagreement(make_learner(Centered()), group) is not None


def test_a_network_is_as_it_was_afterwards(make_group):
    group = make_group(3, n_features=4, n_classes=3)
    learner = make_learner(Residual())
    before = {name: id(p) for name, p in learner.named_parameters()}
    losses_and_gradient(learner, group, "layers")
    assert {name: id(p) for name, p in learner.named_parameters()} == before
    assert not any("forward" in vars(layer) for layer in learner.modules())
    bad = make_learner(Functional())
    bad.way, bad.checked = "layers", True
    task_losses(bad, [group])
    assert bad.way == "vmap"
    assert not any("forward" in vars(layer) for layer in bad.modules())


def test_the_network_runs_once_for_all_tasks(make_group):
    calls = []
    network = MLP(4, 3)
    network.register_forward_pre_hook(lambda module, given: calls.append(given[0]))
    learner = make_learner(network, n_inner_steps=2)
    group = make_group(5, n_support=6, n_query=4, n_features=4, n_classes=3)
    losses_and_gradient(learner, group, "layers")
    assert [len(X) for X in calls] == [30, 30, 20]


@given(
    n_tasks=st.integers(1, 4),
    n_support=st.integers(1, 5),
    n_query=st.integers(1, 5),
    n_steps=st.integers(1, 4),
    n_targets=st.integers(1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_regression_of_any_shape(
    make_group, n_tasks, n_support, n_query, n_steps, n_targets
):
    group = make_group(n_tasks, n_support, n_query, 3, 0, n_targets)
    network = MLP(3, n_targets, (4,)).double()
    learner = MAML(network, n_targets, 0.1, n_steps, n_steps)
    together = losses_and_gradient(learner, group, "layers")
    alone = losses_and_gradient(learner, group, "loop")
    torch.testing.assert_close(together, alone)


def test_the_rate_may_be_a_tensor(make_group):
    group = make_group(3, n_features=4, n_classes=3)
    learner = make_learner(Residual())
    known = losses_and_gradient(learner, group, "layers")
    learner.inner_lr = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(losses_and_gradient(learner, group, "layers"), known)
    found = learner.inner_lr.grad
    learner.inner_lr.grad = None
    losses_and_gradient(learner, group, "loop")
    torch.testing.assert_close(found, learner.inner_lr.grad)


@pytest.mark.parametrize(
    "adapted", [("again.weight", "again.bias", "norm.weight"), None]
)
@pytest.mark.parametrize("first_order", [False, True])
def test_each_tensor_may_have_a_rate_of_its_own(adapted, first_order, make_group):
    """Scalars or of the parameter's shape; parameters without one stay shared."""
    group = make_group(3, n_features=4, n_classes=3)
    module = exact_normalization(Residual()).double()
    module.norm.bias = None
    named = dict(module.named_parameters())
    chosen = {name: named[name] for name in adapted or named}
    rates = {name: torch.rand(()).double() for name in chosen}
    rates["norm.weight"] = torch.rand(6).double()
    if "first.weight" in rates:
        rates["first.weight"] = torch.randn(6, 4).double()
    for rate in rates.values():
        rate.requires_grad_()

    def loss(scores, y):
        return F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="sum")

    network = StackedNetwork(module, 3, n_steps=2, adapted=adapted)
    with network:
        for _ in range(2):
            network.step(
                lambda scores: loss(scores, group.support.y),
                group.support.X,
                first_order,
                rates,
            )
        together = network(group.query.X)
    alone = []
    for X, y, X_query in zip(*group.support[:2], group.query.X, strict=True):
        parameters = gradient_descent(
            lambda p, X=X, y=y: loss(functional_call(module, p, (X,)), y),
            chosen,
            rates,
            2,
            first_order,
        )
        alone.append(functional_call(module, parameters, (X_query,)))
    alone = torch.stack(alone)
    torch.testing.assert_close(together, alone)
    leaves = [*named.values(), *rates.values()]
    gradients = [
        torch.autograd.grad(scores.square().sum(), leaves)
        for scores in (together, alone)
    ]
    torch.testing.assert_close(*gradients)


def test_a_tied_layer_is_found_whatever_its_name():
    network = tied()
    network[0].bias = network[2].bias = None
    names = {name for name, _ in network.named_parameters()}
    assert "shares a parameter" in why_opaque(network, names)
    assert why_opaque(network, {"3.weight", "3.bias"}) is None
    assert "frozen in part" in why_opaque(network, {"3.weight"})


def test_reasons_name_the_layer():
    assert why_opaque(MLP(4, 3), adapted=True) is None
    reason = why_opaque(nn.Sequential(nn.Linear(4, 3), nn.PReLU()), adapted=True)
    assert reason == "1 (PReLU) has parameters"
    assert why_opaque(nn.Sequential(nn.PReLU()), adapted=False) is None
    assert "recurrent" in why_opaque(nn.Sequential(nn.GRU(3, 4)), adapted=False)
