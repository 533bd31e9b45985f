from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sk_meta.batch_norm import Normalize
from sk_meta.networks import (
    MLP,
    BatchNorm,
    Conv4,
    batch_norms,
    call,
    exact_normalization,
    pool_first,
)

NORMS = {
    "BatchNorm1d": (nn.BatchNorm1d(4), (7, 4)),
    "BatchNorm1d of sequences": (nn.BatchNorm1d(4), (7, 4, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(4), (7, 4, 5, 3)),
    "BatchNorm3d": (nn.BatchNorm3d(4), (7, 4, 2, 3, 2)),
    "BatchNorm without affine": (nn.BatchNorm1d(4, affine=False), (7, 4)),
    "BatchNorm without running": (nn.BatchNorm1d(4, track_running_stats=False), (7, 4)),
    "LayerNorm": (nn.LayerNorm(4), (7, 4)),
    "LayerNorm of two axes": (nn.LayerNorm((5, 4)), (7, 5, 4)),
    "LayerNorm without bias": (nn.LayerNorm(4, bias=False), (7, 4)),
    "LayerNorm without affine": (nn.LayerNorm(4, elementwise_affine=False), (7, 4)),
    "InstanceNorm1d": (nn.InstanceNorm1d(4, affine=True), (7, 4, 5)),
    "InstanceNorm2d": (nn.InstanceNorm2d(4), (7, 4, 5, 3)),
}


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 6)])
def test_mlp_shapes(normalization, hidden):
    X = torch.randn(7, 2, 3)  # rows of any shape are flattened
    assert MLP(6, 4, hidden, normalization=normalization)(X).shape == (7, 4)
    n_last = (6, *hidden)[-1]
    assert MLP(6, None, hidden, normalization=normalization)(X).shape == (7, n_last)


@pytest.mark.parametrize("side", [1, 3, 8, 16, 28])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_conv4_takes_images_of_any_size(side, normalization):
    network = Conv4((2, side, side), 5, n_filters=3, normalization=normalization)
    assert network(torch.randn(4, 2, side, side)).shape == (4, 5)
    assert Conv4((1, side, side), n_filters=3)(torch.randn(4, 1, side, side)).ndim == 2


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"normalization must be .* got 'group'"):
        MLP(3, normalization="group")
    with pytest.raises(ValueError, match=r"normalization must be .* got 'layer'"):
        Conv4((1, 8, 8), normalization="layer")
    with pytest.raises(ValueError, match=r"Conv4 needs images.*\(12,\)"):
        Conv4((12,))


@pytest.mark.parametrize("name", NORMS)
def test_exact_normalization_computes_the_same(name):
    layer, shape = NORMS[name]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    network = nn.Sequential(nn.Identity(), layer)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    exact = exact_normalization(network)
    assert type(network[1]) is type(layer)
    assert type(exact[1]) is not type(layer)
    assert exact.state_dict().keys() == before.keys()
    X = torch.randn(shape) * 3 + 1
    torch.testing.assert_close(exact(X), network.train()(X), rtol=1e-4, atol=1e-5)
    for key, value in exact.state_dict().items():
        assert torch.equal(value, before[key]), f"forward has changed {key}"


def test_exact_normalization_reaches_nested_layers():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    names = [type(m).__module__ for m in exact_normalization(layer).modules()]
    assert names.count("sk_meta.networks") == 2


@pytest.mark.parametrize("source", ["trace", "record"])
def test_recorded_statistics_are_those_of_the_batch(source):
    layer, X = BatchNorm(3).double(), torch.randn(8, 3, 5).double()
    _, [[(mean, variance)]] = call(layer, X, norms=(layer,), source=source)
    torch.testing.assert_close(mean, X.mean((0, 2)))
    torch.testing.assert_close(variance, X.var((0, 2), correction=0))


def test_given_statistics_make_rows_independent():
    layer = BatchNorm(3)
    X = torch.randn(8, 3)
    statistics = (((torch.randn(3), torch.rand(3) + 0.5),),)

    def given(rows):
        return call(layer, rows, norms=(layer,), source="given", statistics=statistics)

    whole = given(X)[0]
    torch.testing.assert_close(torch.cat([given(row)[0] for row in X[:, None]]), whole)
    expected = (X - statistics[0][0][0]) / (statistics[0][0][1] + layer.eps).sqrt()
    torch.testing.assert_close(whole, expected)


def test_the_statistics_that_a_task_used_are_those_it_gives():
    """Normalising by a batch, and by what it recorded, agree."""
    network = MLP(3, 2, (5, 4), normalization="batch").double()
    norms, X = batch_norms(network), torch.randn(8, 3).double()
    own, statistics = call(network, X, norms=norms, source="trace")
    again, _ = call(network, X, norms=norms, source="given", statistics=statistics)
    torch.testing.assert_close(again, own)
    plain, nothing = call(network, X, norms=norms)
    torch.testing.assert_close(plain, own)
    assert nothing == ()


def test_a_call_leaves_no_trace_in_the_layers():
    layer = BatchNorm(3)
    call(layer, torch.randn(8, 3), norms=(layer,), source="record")
    with pytest.raises(ValueError, match="stopped"):
        call(
            nn.Sequential(layer, Failing()),
            torch.randn(8, 3),
            norms=(layer,),
            source="record",
        )
    assert (layer.source, layer.given, layer.seen) == ("batch", (), ())
    assert layer.num_batches_tracked == 0


class Failing(nn.Module):
    def forward(self, X):
        raise ValueError("stopped")


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_running_statistics_pool_tasks(momentum):
    """Within and between tasks: what the rows of all tasks together have."""
    layer = BatchNorm(3, momentum=momentum).double()
    tasks = torch.randn(4, 10, 3).double() + 5 * torch.randn(4, 1, 3).double()
    layer.update_running(tasks.mean(1), tasks.var(1, correction=0))
    rows, rate = tasks.flatten(0, 1), 1.0 if momentum is None else momentum
    torch.testing.assert_close(layer.running_mean, rate * rows.mean(0))
    expected = (1 - rate) + rate * rows.var(0, correction=0)
    torch.testing.assert_close(layer.running_var, expected)
    assert layer.num_batches_tracked == 1


def test_without_momentum_running_statistics_are_plain_averages():
    layer = BatchNorm(1, momentum=None).double()
    means = torch.tensor([1.0, 5.0, 9.0]).double()
    for mean in means:
        layer.update_running(mean.view(1, 1), torch.ones(1, 1).double())
    torch.testing.assert_close(layer.running_mean, means.mean().view(1))


def test_a_single_row_is_normalised_to_zero():
    layer = BatchNorm(3)
    for source in ("batch", "trace", "record"):
        output, _ = call(layer, torch.randn(1, 3), norms=(layer,), source=source)
        assert torch.equal(output, torch.zeros(1, 3))


@pytest.mark.parametrize("hooked", [False, True])
def test_pooling_before_relu_changes_nothing(hooked):
    network = Conv4((1, 28, 28), 3)
    if hooked:
        network.layers[2].register_forward_hook(lambda layer, given, Z: Z + 1)
    changed = pool_first(deepcopy(network))
    order = [type(layer).__name__ for layer in changed.layers[2:4]]
    assert order == (["ReLU", "MaxPool2d"] if hooked else ["MaxPool2d", "ReLU"])
    assert list(changed.state_dict()) == list(network.state_dict())
    X = torch.randn(6, 1, 28, 28)
    found = []
    for each in (network, changed):
        Z = each(X)
        (Z**2).sum().backward()
        found.append((Z, [parameter.grad for parameter in each.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_sums_of_batch_normalisation_are_exact_to_rounding():
    """In the layout where torch's own lose three digits."""
    layer = BatchNorm(4)
    X = (torch.randn(60, 4, 28, 28) + 1).contiguous(memory_format=torch.channels_last)
    exact = deepcopy(layer).double()
    change = torch.randn_like(X)
    found = []
    for each, like in ((layer, X), (exact, X.double())):
        like = like.requires_grad_()
        (out, _) = call(each, like, norms=(each,), fused=True)
        (out * change).sum().backward()
        found.append((out.double(), like.grad.double(), each.weight.grad.double()))
    for ours, true in zip(*found, strict=True):
        assert (ours - true).norm() <= 2e-6 * true.norm()


def test_normalisation_at_once_has_right_derivatives():
    for shape in ((5, 3), (9, 3, 2)):
        X = torch.randn(shape).double().requires_grad_()
        weight, bias = (torch.randn(3).double().requires_grad_() for _ in range(2))

        def normalize(*given):
            return Normalize.apply(*given, 1e-5, True)

        given = X, weight, bias
        known = F.batch_norm(X, None, None, weight, bias, True, 0.0, 1e-5)
        torch.testing.assert_close(normalize(*given)[0], known)
        assert torch.autograd.gradcheck(normalize, given)
        assert torch.autograd.gradgradcheck(normalize, given)
