"""Attention, against what it is by definition."""

import pytest
import torch
from torch.func import grad, vmap

from sk_meta.attention import Attention, AttentionBlock, log_weight


def test_a_weighted_mean_of_values_computed_by_hand():
    attention = Attention(3, 4, 5, 6, 2).double()
    Q, K, V = (torch.randn(n, d).double() for n, d in ((2, 3), (7, 4), (7, 5)))
    weight = torch.rand(7).double()
    with torch.no_grad():
        found = attention(Q, attention.remember(K, V), log_weight(weight))
        q, k, v = attention.query(Q), attention.key(K), attention.value(V)
        heads = []
        for part, sharpness in ((slice(0, 3), 1.0), (slice(3, 6), 8.0)):
            squared = torch.cdist(q[:, part], k[:, part]) ** 2
            share = weight * (-sharpness / 2 * squared / 3**0.5).exp()
            heads.append(share @ v[:, part] / share.sum(1, keepdim=True))
        expected = attention.join(torch.cat(heads, 1))
    torch.testing.assert_close(found, expected)


def test_a_row_attends_to_rows_like_it_from_the_start():
    attention = Attention(4, 4, 4, 8, 2)
    X = 10 * torch.randn(6, 4)
    memory = attention.remember(X, X)
    values = attention.join(attention.value(X))
    torch.testing.assert_close(attention(X, memory), values, rtol=1e-2, atol=1e-2)


def test_a_block_changes_nothing_at_first():
    block, X = AttentionBlock(8, 2), torch.randn(6, 8)
    assert torch.equal(block(X, block.remember(X)), X)


def test_weights():
    """None is 1 everywhere; 0 shuts out, also beside very distant rows."""
    assert log_weight(None) == 0.0
    assert torch.equal(log_weight(torch.ones(3)), torch.zeros(3))
    attention = Attention(2, 2, 2, 4, 1)
    X, far = torch.randn(3, 2), torch.full((1, 2), 100.0)
    with_far = attention.remember(torch.cat([X, far]), torch.cat([X, far]))
    weight = log_weight(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    found = attention(far, with_far, weight)
    torch.testing.assert_close(found, attention(far, attention.remember(X, X)))


def test_second_derivatives_are_the_same_under_vmap():
    block = AttentionBlock(4, 2).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    X = torch.randn(3, 5, 4).double()

    def value(X):
        return (block(X, block.remember(X)) ** 2).sum()

    def twice(X):
        return grad(lambda X: (grad(value)(X) ** 2).sum())(X)

    looped = torch.stack([twice(rows) for rows in X])
    torch.testing.assert_close(vmap(twice)(X), looped)
    assert torch.autograd.gradgradcheck(value, X[0].requires_grad_())


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of n_heads, got width=6 and n_h"):
        Attention(3, 3, 3, 6, 4)
