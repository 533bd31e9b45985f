"""Conditional and attentive neural processes."""

import pytest
import torch

from sk_meta import AttentiveNeuralProcessRegressor, TaskNet
from sk_meta.learner import Support
from sk_meta.model_based.neural_process import (
    AttentiveNeuralProcess,
    ConditionalNeuralProcess,
)
from sk_meta.networks import MLP
from sk_meta.tasks import make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 16
METHODS = {
    "conditional": lambda net: ConditionalNeuralProcess(net, 4, 2, 8),
    "attentive": lambda net: AttentiveNeuralProcess(net, 4, 2, 8, 2, 1),
    "attentive, no self-attention": lambda net: AttentiveNeuralProcess(
        net, 4, 2, 8, 2, 0
    ),
}


def make_learner(method, normalization=None):
    """In float64, away from any special point such as blocks that start as 0."""
    net = MLP(N_FEATURES, 4, (6,), torch.nn.Tanh, normalization)
    learner = METHODS[method](net).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.eval()


def make_support(n=7, weighted=False, n_targets=2):
    X = torch.randn(n, N_FEATURES).double()
    weight = 0.5 + torch.rand(n).double() if weighted else None
    return Support(X, torch.randn(n, n_targets).double(), weight)


def scores(learner, support, X):
    with torch.no_grad():
        return torch.cat(learner.predict(learner.adapt(support), X), 1)


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradient_matches_finite_differences(
    method, way, normalization, make_group
):
    learner = make_learner(method, normalization).train()
    batch = [
        make_group(2, 6, 4, n_targets=2, seed=1),
        make_group(3, 9, 5, n_targets=2, weighted=True, seed=2),
    ]
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_0_changes_nothing(method):
    learner, support, X = make_learner(method), make_support(), torch.randn(4, 16)
    weight = torch.ones(7).double()
    weight[2] = 0
    kept = weight > 0
    without = Support(support.X[kept], support.y[kept])
    found = scores(learner, support._replace(weight=weight), X.double())
    torch.testing.assert_close(found, scores(learner, without, X.double()))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_2_is_the_row_twice(method):
    learner, support = make_learner(method), make_support()
    X = torch.randn(4, N_FEATURES).double()
    weight = torch.tensor([2.0, *[1.0] * 6]).double()
    twice = Support(*(torch.cat([part, part[:1]]) for part in support[:2]))
    found = scores(learner, support._replace(weight=weight), X)
    torch.testing.assert_close(found, scores(learner, twice, X))
    assert not torch.allclose(found, scores(learner, support, X))


@pytest.mark.parametrize("method", METHODS)
def test_rows_in_any_order_and_each_for_itself(method):
    learner, support = make_learner(method), make_support(weighted=True)
    X, order = torch.randn(5, N_FEATURES).double(), torch.randperm(7)
    shuffled = Support(*(part[order] for part in support[:3]))
    expected = scores(learner, support, X)
    torch.testing.assert_close(scores(learner, shuffled, X), expected)
    alone = torch.cat([scores(learner, support, row[None]) for row in X])
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_variance_is_positive_whatever_the_network_says(method):
    learner, support = make_learner(method), make_support()
    with torch.no_grad():
        learner.decoder.network.layers[-1].bias -= 1e4
    found = learner.predict(learner.adapt(support), support.X)
    assert (found.variance >= learner.decoder.least_std**2).all()


def test_a_conditional_process_sees_only_the_mean_of_the_encodings():
    learner, support = make_learner("conditional"), make_support(weighted=True)
    with torch.no_grad():
        Z = learner.module(support.X)
        encoded = learner.encoder(torch.cat([Z, support.y], 1))
        expected = (encoded * support.weight[:, None]).sum(0) / support.weight.sum()
        torch.testing.assert_close(learner.adapt(support), expected)
        state = learner.adapt(support)
        found = learner.predict(state, support.X)
        direct = learner.decoder(Z, state.expand(7, -1))
    torch.testing.assert_close(found.mean, direct.mean)


def test_attention_tells_support_rows_apart_where_the_mean_cannot():
    """The same targets on other rows: the answer of the attention depends on where."""
    learner, support = make_learner("attentive"), make_support()
    with torch.no_grad():
        known = learner.attention(learner.module(support.X), *learner.adapt(support))
    assert (known - known[0]).abs().max() > 1e-3


def test_heads_must_divide_the_width():
    meta = AttentiveNeuralProcessRegressor(TaskNet(), width=10, n_heads=4)
    with pytest.raises(ValueError, match="width must be a multiple of n_heads"):
        meta.fit(make_sinusoids(4, random_state=0))
