"""Meta-gradients of every method, in float64, against central finite differences."""

import pytest
import torch
from torch import nn

from sk_meta.closed_form.alpaca import ALPaCA, BayesianDiscriminant
from sk_meta.engine.each_task import preferred_way
from sk_meta.gradient_based.maml import MAML
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, Conv4, exact_normalization
from tests.meta_gradients import meta_gradient, slopes

N_FEATURES, N_OUTPUTS = 16, 3
TOLERANCE = 1e-6


class RowAttention(nn.Module):
    """Rows attend to one another: this module mixes rows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(N_FEATURES, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, N_OUTPUTS)

    def forward(self, X):
        H = self.first(X)[None]
        H = H + self.attention(H, H, H, need_weights=False)[0]
        return self.last(torch.tanh(H[0]))


class SequenceAttention(nn.Module):
    """Each row is a sequence of four tokens."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(N_FEATURES, N_OUTPUTS)

    def forward(self, X):
        H = X.view(-1, 4, 4)
        H = H + self.attention(H, H, H, need_weights=False)[0]
        return self.last(torch.tanh(H.flatten(1)))


class Recurrent(nn.Module):
    """Each row is a sequence of four steps."""

    def __init__(self, layer=nn.GRU):
        super().__init__()
        self.recurrent = layer(4, 5, batch_first=True)
        self.last = nn.Linear(5, N_OUTPUTS)

    def forward(self, X):
        return self.last(self.recurrent(X.view(-1, 4, 4))[0][:, -1])


def with_norm(norm):
    """A network with a normalisation of (n, channels)."""
    return nn.Sequential(
        nn.Linear(N_FEATURES, 6), norm, nn.Tanh(), nn.Linear(6, N_OUTPUTS)
    )


def convolutions(norm):
    """A network with a normalisation of (n, channels, height, width)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        norm,
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, N_OUTPUTS),
    )


def conv4(normalization):
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        Conv4((1, 4, 4), N_OUTPUTS, n_filters=3, normalization=normalization),
    )


NETWORKS = {
    "tanh": lambda: MLP(N_FEATURES, N_OUTPUTS, (6, 5), nn.Tanh),
    "relu": lambda: MLP(N_FEATURES, N_OUTPUTS, (6,)),
    "Conv4": lambda: conv4(None),
    "Conv4 batch": lambda: conv4("batch"),
    "BatchNorm1d": lambda: with_norm(nn.BatchNorm1d(6)),
    "BatchNorm2d": lambda: convolutions(nn.BatchNorm2d(4)),
    "LayerNorm": lambda: with_norm(nn.LayerNorm(6)),
    "LayerNorm of images": lambda: convolutions(nn.LayerNorm((4, 4, 4))),
    "GroupNorm": lambda: convolutions(nn.GroupNorm(2, 4)),
    "InstanceNorm2d": lambda: convolutions(nn.InstanceNorm2d(4, affine=True)),
    "RMSNorm": lambda: with_norm(nn.RMSNorm(6)),
    "attention over rows": RowAttention,
    "attention over tokens": SequenceAttention,
    "encoder layer": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 4)),
        nn.TransformerEncoderLayer(4, 2, 6, 0.0, nn.Softplus(), batch_first=True),
        nn.Flatten(),
        nn.Linear(N_FEATURES, N_OUTPUTS),
    ),
    "GRU": Recurrent,
}

METHODS = {
    "MAML 1 step": lambda net: MAML(net, N_OUTPUTS, 0.2, 1, 1),
    "MAML 3 steps": lambda net: MAML(net, N_OUTPUTS, 0.2, 3, 3),
    "MAML regression": lambda net: MAML(net, N_OUTPUTS, 0.1, 2, 2),
    "MAML transductive": lambda net: MAML(net, N_OUTPUTS, 0.2, 2, 2, False, True),
    "Prototypes": Prototypes,
    "ALPaCA": lambda net: ALPaCA(net, N_OUTPUTS, N_FEATURES, 2),
    "BayesianDiscriminant": lambda net: BayesianDiscriminant(
        net, N_OUTPUTS, N_FEATURES, 3
    ),
}


def make_learner(method, network):
    """In float64, away from any special point such as zero prior means."""
    learner = METHODS[method](exact_normalization(NETWORKS[network]())).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.train()


def make_batch(method, make_group):
    """Two sizes of task, one with weights."""
    targets = {"ALPaCA": {"n_targets": 2}, "MAML regression": {"n_targets": 3}}
    kind = targets.get(method, {"n_classes": 3})
    return [
        make_group(2, 6, 4, **kind, seed=1),
        make_group(3, 9, 5, **kind, weighted=True, seed=2),
    ]


ALL = ("MAML 1 step", "MAML 3 steps", "Prototypes", "ALPaCA", "BayesianDiscriminant")
CASES = [(method, network) for method in ALL for network in NETWORKS]
CASES += [("MAML regression", n) for n in ("tanh", "BatchNorm1d", "RMSNorm")]
CASES += [("MAML transductive", n) for n in ("BatchNorm1d", "BatchNorm2d")]


@pytest.mark.parametrize(("method", "network"), CASES)
def test_meta_gradient_matches_finite_differences(method, network, make_group):
    learner = make_learner(method, network)
    batch = make_batch(method, make_group)
    gradients = {"vmap": meta_gradient(learner, batch, "vmap")}
    assert learner.way == ("loop" if network == "GRU" else "vmap")
    gradients["loop"] = meta_gradient(learner, batch, "loop")
    size = gradients["loop"].norm()
    directions = torch.randn(2, len(gradients["loop"])).double()
    expected = slopes(learner, batch, directions)
    for way, gradient in gradients.items():
        error = (directions @ gradient - expected).abs().max() / size
        assert error <= TOLERANCE, way


@pytest.mark.parametrize("method", ALL)
def test_no_meta_parameter_is_left_out(method, make_group):
    learner = make_learner(method, "tanh")
    meta_gradient(learner, make_batch(method, make_group), "vmap")
    for name, parameter in learner.named_parameters():
        # Class scores of all rows move together with the last bias of an embedding.
        if (method, name) != ("Prototypes", "module.layers.4.bias"):
            assert parameter.grad.norm() > 1e-8, name


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_networks_are_looped_over(layer, make_group):
    learner = MAML(Recurrent(layer).double(), N_OUTPUTS, 0.2, 2, 2)
    assert preferred_way(learner, "cpu")[0] == "loop"
    batch = make_batch("MAML", make_group)
    forced = meta_gradient(learner, batch, "vmap")
    assert learner.way == "loop"
    assert torch.equal(forced, meta_gradient(learner, batch, "loop"))


def test_fused_normalization_is_wrong_under_vmap(make_group):
    """What `exact_normalization` is for; also shows that these tests can fail."""
    deviation = {}
    for norm in (nn.LayerNorm(6), nn.BatchNorm1d(6, track_running_stats=False)):
        learner = MAML(with_norm(norm), N_OUTPUTS, 0.2, 3, 3).double()
        batch = make_batch("MAML", make_group)
        looped = meta_gradient(learner, batch, "loop")
        batched = meta_gradient(learner, batch, "vmap")
        assert learner.way == "vmap"
        deviation[type(norm).__name__] = (batched - looped).norm() / looped.norm()
        direction = torch.randn(1, len(looped)).double()
        error = direction @ looped - slopes(learner, batch, direction)
        assert error.abs() <= TOLERANCE * looped.norm()
    if max(deviation.values()) < 1e-6:
        pytest.skip(f"torch {torch.__version__} differentiates fused layers right")
    assert max(deviation.values()) > 1e-4


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_first_order_is_the_gradient_at_the_adapted_parameters(
    n_steps, way, make_group
):
    network = exact_normalization(with_norm(nn.LayerNorm(6))).double()
    group = make_group(3, 6, 4, n_classes=3, weighted=True)
    first = MAML(network, N_OUTPUTS, 0.2, n_steps, n_steps, first_order=True)
    found = meta_gradient(first, [group], way)
    expected = 0
    for i in range(3):
        support = group.support._replace(
            X=group.support.X[i], y=group.support.y[i], weight=group.support.weight[i]
        )
        adapted = {
            name: value.detach().requires_grad_()
            for name, value in first.adapt(support).parameters.items()
        }
        scores = torch.func.functional_call(network, adapted, (group.query.X[i],))
        rows = nn.functional.cross_entropy(scores, group.query.y[i], reduction="none")
        weight = group.query.weight[i]
        loss = (rows * weight).sum() / weight.sum()
        gradient = torch.autograd.grad(loss, list(adapted.values()))
        expected = expected + torch.cat([g.flatten() for g in gradient]) / 3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    second = MAML(network, N_OUTPUTS, 0.2, n_steps, n_steps)
    assert (meta_gradient(second, [group], way) - found).norm() > 1e-3 * found.norm()


def graph_nodes(tensors):
    """Names of all nodes in the graph behind tensors."""
    todo, seen = [t.grad_fn for t in tensors if t.grad_fn is not None], {}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen[node] = type(node).__name__
            todo += [parent for parent, _ in node.next_functions if parent is not None]
    return list(seen.values())


def test_first_order_keeps_no_graph_of_the_inner_gradients(make_group):
    network = MLP(N_FEATURES, N_OUTPUTS, (6,), nn.Tanh).double()
    group = make_group(1, 6, 4, n_classes=3)
    support = group.support._replace(X=group.support.X[0], y=group.support.y[0])
    state = {
        first_order: MAML(network, N_OUTPUTS, 0.2, 3, 3, first_order).adapt(support)
        for first_order in (True, False)
    }
    nodes = graph_nodes(state[True].parameters.values())
    n_parameters = len(list(network.parameters()))
    assert sorted(set(nodes)) == ["AccumulateGrad", "SubBackward0"]
    assert len(nodes) == n_parameters * (1 + 3)
    assert len(graph_nodes(state[False].parameters.values())) > 5 * len(nodes)
