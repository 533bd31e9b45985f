"""Meta-gradients of every method, in float64, against central finite differences."""

import pytest
import torch
from torch import nn

from sk_meta.batching import preferred_way
from sk_meta.closed_form.alpaca import ALPaCA, BayesianDiscriminant
from sk_meta.gradient_based.maml import MAML
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, Conv4, exact_normalization
from sk_meta.training import task_losses

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
    "MLP layer": lambda: MLP(N_FEATURES, N_OUTPUTS, (6,), nn.Tanh, "layer"),
    "MLP batch": lambda: MLP(N_FEATURES, N_OUTPUTS, (6,), nn.Tanh, "batch"),
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
            parameter += 0.1 * torch.randn_like(parameter)
    return learner.train()


def mean_loss(learner, batch):
    return task_losses(learner, batch)[0].mean()


def meta_gradient(learner, batch, way):
    """The gradient by all meta-parameters, in one vector."""
    learner.way = way
    learner.zero_grad()
    mean_loss(learner, batch).backward()
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def slopes(learner, batch, directions, step=1e-6):
    """Directional derivatives by central differences, task after task."""
    learner.way = "loop"
    start = nn.utils.parameters_to_vector(learner.parameters()).detach()

    def at(vector):
        nn.utils.vector_to_parameters(vector, learner.parameters())
        with torch.no_grad():
            return mean_loss(learner, batch)

    found = [(at(start + step * d) - at(start - step * d)) / (2 * step) for d in directions]
    at(start)
    return torch.stack(found)


def make_batch(method, make_group):
    """Two sizes of task, one with weights."""
    kind = {"n_targets": 2} if method == "ALPaCA" else {"n_classes": 3}
    return [
        make_group(2, 6, 4, **kind, seed=1),
        make_group(3, 9, 5, **kind, weighted=True, seed=2),
    ]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradient_matches_finite_differences(method, network, make_group):
    learner = make_learner(method, network)
    batch = make_batch(method, make_group)
    gradients = {way: meta_gradient(learner, batch, way) for way in ("vmap", "loop")}
    size = gradients["loop"].norm()
    directions = torch.randn(3, len(gradients["loop"])).double()
    expected = slopes(learner, batch, directions)
    for way, gradient in gradients.items():
        error = (directions @ gradient - expected).abs().max() / size
        print("ERR", method, network, way, float(error), float(size))
        assert error <= TOLERANCE, way
