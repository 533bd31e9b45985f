"""A traced function gives the same bits, with fewer operations."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from sk_meta.engine.tracing import operations

X = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))


def names(traced):
    return [
        str(node.target) for node in traced.graph.nodes if node.op == "call_function"
    ]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.zeros_like(x),
        lambda x: torch.zeros_like(x) + x,
        lambda x: x.view(4, 6, 3).expand(4, 6, 3) * 1.5,
        lambda x: x.view(24, 3).expand(2, 24, 3),
        lambda x: x[0] + torch.zeros_like(x),
        lambda x: x.long() + torch.zeros_like(x),
        lambda x: torch.zeros_like(x) + 1,
        lambda x: torch.zeros_like(x) + torch.zeros_like(x),
        lambda x: torch.add(torch.zeros_like(x), x, alpha=2),
        lambda x: x + x,
        lambda x: x + 1,
        lambda x: (x + torch.zeros_like(x)).relu_() + x,
        lambda x: x.clone().view(4, 6, 3).add_(1) + x,
    ],
)
def test_what_changes_nothing_goes_and_all_else_stays(function):
    traced = operations(function, (X,))
    for given in (X, 2 - X):
        found, expected = traced(given), function(given)
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_idle_operations_go():
    def function(x):
        return (x.view(x.shape) + torch.zeros_like(x)).expand(x.shape) * 2

    assert names(operations(function, (X,))) == ["aten.mul.Tensor"]


def test_second_order_through_transforms():
    """A gradient step inside of a gradient, for several networks side by side."""
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    own = {
        name: torch.stack([value.detach() * factor for factor in (1.0, 0.5, -1.0)])
        for name, value in network.named_parameters()
    }

    def loss(values, X):
        return functional_call(network, values, X).square().mean()

    def after(values, X):
        changes = grad(loss)(values, X[:3])
        return loss({k: v - 0.1 * changes[k] for k, v in values.items()}, X[3:])

    function = vmap(grad(after), in_dims=(0, None))
    traced = operations(function, (own, X[0]))
    assert not any("zeros_like" in name for name in names(traced))
    for x in X:
        found, expected = traced(own, x), function(own, x)
        assert all(torch.equal(found[name], expected[name]) for name in own)


def test_branches_on_data_are_refused():
    with pytest.raises(RuntimeError):
        operations(lambda x: x if x.sum() > 0 else -x, (X,))
