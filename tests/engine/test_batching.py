"""Tasks computed at once give what a plain loop over them gives."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from sk_meta.closed_form.alpaca import ALPaCA, BayesianDiscriminant
from sk_meta.engine.batching import task_losses
from sk_meta.engine.each_task import each_task, preferred_way
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import Learner
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, Conv4, exact_normalization


class Centering(nn.Module):
    """A user's module that mixes rows: it looks at each row beside the mean row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, X):
        spread = (X - X.mean(0)) / (1 + X.std(0, correction=0))
        return self.linear(torch.cat([torch.tanh(X), spread], dim=1))


class RowAttention(nn.Module):
    """A user's module that mixes rows: each attends to all others."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.linear = nn.Linear(4, 3)

    def forward(self, X):
        attended = self.attention(X[None], X[None], X[None], need_weights=False)[0]
        return self.linear(torch.tanh(X + attended[0]))


class Branching(nn.Module):
    """A user's module that vmap cannot take: a branch on data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, X):
        Z = self.linear(X)
        return Z.tanh() if Z.sum() > 0 else Z.sigmoid()


NETWORKS = {
    "MLP": lambda: MLP(4, 3, (6,)),
    "BatchNorm": lambda: MLP(4, 3, (6,), normalization="batch"),
    "LayerNorm": lambda: MLP(4, 3, (6,), normalization="layer"),
    "means": Centering,
    "attention": RowAttention,
    "branch": Branching,
}
CLASSIFIERS = {
    "MAML": lambda net: MAML(net, 3, 0.1, 2, 2),
    "first-order MAML": lambda net: MAML(net, 3, 0.1, 2, 2, True),
    "transductive MAML": lambda net: MAML(net, 3, 0.1, 2, 2, False, True),
    "Prototypes": Prototypes,
    "BayesianDiscriminant": lambda net: BayesianDiscriminant(net, 3, 4, 3),
}
REGRESSORS = {
    "MAML regression": lambda net: MAML(
        nn.Sequential(net, nn.Linear(3, 1)), 1, 0.1, 2, 2
    ),
    "ALPaCA": lambda net: ALPaCA(net, 3, 4, 1),
}
METHODS = {**CLASSIFIERS, **REGRESSORS}


def as_double(batch):
    """The groups of a meta-batch in float64."""

    def double(tensor):
        floating = torch.is_tensor(tensor) and tensor.is_floating_point()
        return tensor.double() if floating else tensor

    return [
        group._replace(
            support=type(group.support)(*map(double, group.support)),
            query=type(group.query)(*map(double, group.query)),
        )
        for group in batch
    ]


def losses_and_gradient(learner, batch, way):
    learner.way = way
    learner.zero_grad()
    losses, seen = task_losses(learner, batch)
    losses.sum().backward()
    return losses.detach(), [p.grad for p in learner.parameters()], seen


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_ragged_tasks_at_once_and_one_by_one(
    method, network, make_ragged_tasks, make_dataset
):
    classification = method in CLASSIFIERS
    dataset = make_dataset(make_ragged_tasks(classification), classification)
    batch = as_double(dataset.batch(range(10)))
    assert len(batch) > 3
    learner = METHODS[method](NETWORKS[network]()).double()
    together = losses_and_gradient(learner, batch, "vmap")
    assert learner.way == ("loop" if network == "branch" else "vmap")
    torch.testing.assert_close(losses_and_gradient(learner, batch, "loop"), together)
    alone = [as_double(dataset.batch([index])) for index in range(10)]
    positions = [i for group in dataset.batch(range(10)) for i in group.positions]
    by_one = torch.cat([task_losses(learner, alone[i])[0] for i in positions])
    torch.testing.assert_close(by_one.detach(), together[0])
    with torch.no_grad():
        learner.eval()
        evaluated = [
            task_losses(learner, batch, training=False)[0]
            for learner.way in ("vmap", "loop")
        ]
    torch.testing.assert_close(*evaluated)


def test_maml_is_a_plain_loop_written_out(make_ragged_tasks, make_dataset):
    """Against an implementation without torch.func's transforms."""
    dataset = make_dataset(make_ragged_tasks())
    batch = as_double(dataset.batch(range(10)))
    network = exact_normalization(
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    ).double()
    learner = MAML(network, 3, 0.1, 2, 2)
    found, gradients, _ = losses_and_gradient(learner, batch, "vmap")

    def loss(parameters, X, y, weight):
        rows = F.cross_entropy(
            functional_call(network, parameters, (X,)), y, reduction="none"
        )
        return rows.mean() if weight is None else (rows @ weight) / weight.sum()

    losses = []
    for group in batch:
        for i in range(len(group.positions)):
            (X, y, weight), query = (
                [None if part is None else part[i] for part in parts[:3]]
                for parts in (group.support, group.query)
            )
            parameters = dict(network.named_parameters())
            for _ in range(2):
                inner = torch.autograd.grad(
                    loss(parameters, X, y, weight),
                    parameters.values(),
                    create_graph=True,
                )
                parameters = {
                    name: value - 0.1 * gradient
                    for (name, value), gradient in zip(
                        parameters.items(), inner, strict=True
                    )
                }
            losses.append(loss(parameters, *query))
    losses = torch.stack(losses)
    torch.testing.assert_close(found, losses.detach())
    expected = torch.autograd.grad(losses.sum(), list(network.parameters()))
    torch.testing.assert_close(gradients, list(expected))


def test_the_way_follows_from_layers_and_device():
    def way(network, device="cpu"):
        return preferred_way(Learner(network), device)[0]

    assert way(MLP(4, 3)) == "vmap"  # a bare Learner knows no other
    assert way(Conv4((1, 8, 8))) == "loop"
    assert way(Conv4((1, 8, 8)), "cuda") == "vmap"
    assert way(nn.Sequential(nn.GRU(3, 4))) == way(nn.LSTM(3, 4), "cuda") == "loop"


def test_nested_and_absent_tensors_go_through():
    learner = Learner(nn.Identity())
    tensors = {"a": torch.arange(6.0).view(3, 2), "b": (None, torch.ones(3))}

    def function(tensors):
        assert tensors["b"][0] is None
        return {"sum": tensors["a"].sum() + tensors["b"][1], "parts": (tensors["a"],)}

    for learner.way in ("vmap", "loop"):
        found = each_task(function, tensors, learner)
        assert torch.equal(found["sum"], torch.tensor([2.0, 6.0, 10.0]))
        assert torch.equal(found["parts"][0], tensors["a"])


def test_an_error_of_the_function_itself_comes_through():
    def function(tensor):
        raise RuntimeError("shapes do not fit")

    learner = Learner(nn.Identity())
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        each_task(function, torch.zeros(3, 2), learner)
    assert learner.way == "vmap"


def test_operations_without_a_batching_rule_are_silent(make_group):
    """Attention in evaluation: torch would warn of a slow fallback."""
    learner = Prototypes(RowAttention().double()).eval()
    group = make_group(3, n_features=4, n_classes=3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        task_losses(learner, [group], training=False)
    assert learner.way == "vmap"


def test_dropout_differs_between_tasks(make_group):
    group = make_group(2, n_features=4, n_classes=3)
    same = [t[:1].repeat(2, *[1] * (t.ndim - 1)) for t in (*group.support[:2],)]
    twice = group._replace(
        support=group.support._replace(X=same[0], y=same[1]),
        query=group.query._replace(X=same[0], y=same[1]),
    )
    learner = MAML(nn.Sequential(nn.Dropout(), MLP(4, 3)).double(), 3, 0.1, 1, 1)
    for learner.way in ("vmap", "loop"):
        losses, _ = task_losses(learner.train(), [twice])
        assert losses[0] != losses[1]
        losses, _ = task_losses(learner.eval(), [twice], training=False)
        torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_no_graph_is_kept_in_evaluation(method, way, make_group):
    kind = {"n_classes": 3} if method in CLASSIFIERS else {}
    group = make_group(3, n_features=4, **kind)
    learner = METHODS[method](MLP(4, 3, (6,), normalization="batch")).double().eval()
    learner.way = way
    with torch.no_grad():
        losses, _ = task_losses(learner, [group], training=False)
        one = [None if t is None else t[0] for t in group.support[:3]]
        state = learner.adapt(type(group.support)(*one, group.support.n_classes))
        scores = learner.predict(state, group.query.X[0])
    leaves = torch.utils._pytree.tree_leaves((state, scores, losses))
    assert leaves and not any(leaf.requires_grad for leaf in leaves)
