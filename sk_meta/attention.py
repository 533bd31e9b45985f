"""Attention over the support set, made of plain operations.

By products and a softmax, so that it runs under vmap, in float64, in an export, and has
a second derivative everywhere.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sk_meta.networks import MLP, LayerNorm

__all__ = ["Attention", "AttentionBlock", "Memory", "log_weight"]


class Memory(NamedTuple):
    """What is attended to.

    Attributes
    ----------
    keys, values : tensors of shape (n_heads, n, width / n_heads)
    """

    keys: Tensor
    values: Tensor


def log_weight(weight: Tensor | None) -> Tensor | float:
    """What is added to the scores of weighted rows (n,): a row of weight 0 is unseen.

    A row of weight 2 counts as the row twice.
    """
    if weight is None:
        return 0.0
    return weight.clamp_min(1e-30).log().masked_fill(weight == 0, -1e9)


class Attention(nn.Module):
    """Multi-head attention by distance, whose memory is made once and read many times.

    A key counts the more the closer it is, as in a Gaussian kernel; each head learns
    its sharpness. Where queries and keys are of one kind their maps start equal: at
    first a row attends to rows like it. With scalar products this has to be learned,
    which takes several times as many tasks.

    Parameters
    ----------
    n_query, n_key, n_value : int
        Lengths of what asks, of what is compared with it, and of what is read.
    width : int
        Length of the answer.
    n_heads : int
        Heads that the width is split between.

    References
    ----------
    Vaswani et al. (2017), Attention Is All You Need, section 3.2.2 (heads). Kim et al.
    (2019), Attentive Neural Processes, section 3 (attention by distance; theirs is
    Laplace's).
    """

    def __init__(self, n_query, n_key, n_value, width, n_heads):
        super().__init__()
        if width % n_heads:
            raise ValueError(
                f"width must be a multiple of n_heads, got width={width} and "
                f"n_heads={n_heads}. Change one of them."
            )
        self.n_heads = n_heads
        self.query = nn.Linear(n_query, width)
        self.key = nn.Linear(n_key, width)
        self.value = nn.Linear(n_value, width)
        self.join = nn.Linear(width, width)
        self.log_sharpness = nn.Parameter(torch.linspace(0.0, math.log(8), n_heads))
        if n_query == n_key:
            self.query.load_state_dict(self.key.state_dict())

    def remember(self, keys, values) -> Memory:
        """(n, n_key) and (n, n_value) -> what is attended to."""
        return Memory(self._split(self.key(keys)), self._split(self.value(values)))

    def forward(self, queries, memory: Memory, bias=0.0):
        """(m, n_query) -> (m, width).

        `bias` is added to the scores (n_heads, m, n): see `log_weight`.
        """
        Q, K = self._split(self.query(queries)), memory.keys
        # Half the squared distance, less what a query has in common with all keys.
        closeness = Q @ K.mT - (K * K).sum(-1)[..., None, :] / 2
        sharpness = self.log_sharpness.exp()[:, None, None] / math.sqrt(K.shape[-1])
        shares = (sharpness * closeness + bias).softmax(-1)
        return self.join((shares @ memory.values).mT.flatten(0, 1).mT)

    def _split(self, H):
        """(n, width) -> (n_heads, n, width / n_heads)."""
        return H.mT.unflatten(0, (self.n_heads, -1)).mT


class AttentionBlock(nn.Module):
    """A layer of a transformer: attend, then two linear layers; both are added.

    Normalises before rather than after, and changes nothing at first: the output of
    both parts is initialised as 0.

    Parameters
    ----------
    width : int
    n_heads : int

    References
    ----------
    Xiong et al. (2020), On Layer Normalization in the Transformer Architecture.
    """

    def __init__(self, width, n_heads):
        super().__init__()
        self.before = LayerNorm(width)
        self.attention = Attention(width, width, width, width, n_heads)
        self.between = LayerNorm(width)
        self.layers = MLP(width, width, (2 * width,), nn.GELU)
        for last in (self.attention.join, self.layers.layers[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def remember(self, H) -> Memory:
        """(n, width) -> what is attended to."""
        H = self.before(H)
        return self.attention.remember(H, H)

    def forward(self, H, memory: Memory, bias=0.0):
        """(m, width) -> (m, width)."""
        H = H + self.attention(self.before(H), memory, bias)
        return H + self.layers(self.between(H))
