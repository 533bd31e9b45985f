"""What the compiler is given instead of torch's operations is the same."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sk_meta import MAMLClassifier, PrototypicalClassifier, TaskNet
from sk_meta.batch_norm import Normalize, for_compiler
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.fused import FUSED, ReLULast
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import Query, Support
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import Conv4, channels_last, exact_normalization
from sk_meta.tasks import Task
from sk_meta.tasks.stacking import TaskGroup

POOL = torch.ops.aten.max_pool2d_with_indices.default
POOL_BACKWARD = torch.ops.aten.max_pool2d_with_indices_backward.default


class Blocks(nn.Module):
    """Convolutions as users write them: ReLU and pooling are no layers."""

    def __init__(self, n_outputs=3, inplace=False):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, 4, 3, padding=1) for channels in (1, 4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.head = nn.Linear(16, n_outputs)
        self.inplace = inplace

    def forward(self, X):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            X = F.relu(norm(convolution(X)), inplace=self.inplace)
            X = F.max_pool2d(X, 2)
        return self.head(X.flatten(1))


def make_group(dtype, n_tasks=2):
    """Tasks of images with an edge that no window takes in, and many equal numbers."""
    generator = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=generator, dtype=dtype)
    y = torch.arange(3)
    support, query = rand(n_tasks, 3, 1, 9, 10), rand(n_tasks, 6, 1, 9, 10)
    return TaskGroup(
        np.arange(n_tasks),
        Support((support * 4).round(), y.repeat(n_tasks, 1), None, 3),
        Query((query * 4).round(), y.repeat(2).repeat(n_tasks, 1)),
    )


def make_learner(method, dtype):
    torch.manual_seed(0)
    if method == "prototypes":
        learner = Prototypes(exact_normalization(Blocks()))
    else:
        network = Blocks(inplace=True) if method == "in place" else Blocks()
        if method == "Conv4":
            network = Conv4((1, 9, 10), 3, n_filters=4)
        network = exact_normalization(network)
        first_order = method == "first order"
        learner = MAML(network, 3, 0.2, 1, 1, first_order, transductive=True)
    learner.module.to(memory_format=torch.channels_last)
    learner.way = "layers" if method == "prototypes" else "loop"
    return learner.to(dtype).train()


def run(step, learner, group):
    learner.zero_grad()
    loss, losses, seen = step(learner, [group])
    gradients = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    return loss, losses, seen, gradients


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*(st.integers(1, 9) for _ in range(4))),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_pooling_by_comparison_is_torchs(shape, kernel, seed, has_nan):
    if shape[2] < kernel[0] or shape[3] < kernel[1]:
        return
    generator = torch.Generator().manual_seed(seed)
    X = torch.randint(-2, 3, shape, generator=generator).double()
    if has_nan:
        X[torch.rand(shape, generator=generator) < 0.1] = float("nan")
    X = channels_last(X)
    largest, indices = POOL(X, kernel, kernel)
    found, places = FUSED[POOL](X, kernel, kernel)
    torch.testing.assert_close(found, largest, equal_nan=True, rtol=0, atol=0)
    if not has_nan:
        assert torch.equal(places, indices)
        change = torch.randn(largest.shape, generator=generator).double()
        options = kernel, kernel, (0, 0), (1, 1), False
        torch.testing.assert_close(
            FUSED[POOL_BACKWARD](change, X, *options, places),
            POOL_BACKWARD(change, X, *options, indices),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (1, 1)},
        {"stride": (2, 2), "padding": (1, 1)},
        {"dilation": (2, 2)},
        {"ceil_mode": True},
    ],
)
def test_other_pooling_is_left_to_torch(options):
    assert FUSED[POOL](torch.zeros(1, 1, 6, 6), (2, 2), **options) is NotImplemented


def pooled(X, inplace=False):
    X = X.clone().requires_grad_()
    Z = F.max_pool2d(F.relu(X * 1, inplace=inplace), 2)
    return Z, torch.autograd.grad((Z**2).sum(), X)[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_after_pooling_is_relu_before(inplace):
    X = torch.randint(-2, 3, (3, 2, 5, 6)).double()
    expected = pooled(X, inplace=inplace)
    with ReLULast():
        found = pooled(X, inplace=inplace)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    last = [Z.grad_fn.name() == "ReluBackward0" for Z, _ in (found, expected)]
    assert last == [not inplace, False]


@pytest.mark.parametrize("changed", [0, 1])
def test_a_change_between_relu_and_pooling_counts(changed):
    X = torch.randn(2, 2, 4, 4)
    with ReLULast():
        Z = F.relu(X)
        (X, Z)[changed].sub_(0.5)
        found = F.max_pool2d(Z, 2)
    torch.testing.assert_close(found, F.max_pool2d(Z, 2), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 5, 7)])
def test_normalisation_is_the_same_when_compiled(shape):
    X, weight, bias = torch.randn(shape), torch.rand(3), torch.randn(3)
    X, weight, bias = (v.double().requires_grad_() for v in (X, weight, bias))

    def values():
        Z, mean, rstd = Normalize.apply(X, weight, bias, 1e-5, True)
        loss = (Z**3).sum() + (mean * rstd).sum()
        first = torch.autograd.grad(loss, (X, weight, bias), create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), (X, weight))
        return Z, first, second

    expected = values()
    with for_compiler():
        found = values()
    torch.testing.assert_close(found, expected)


METHODS = ["second order", "first order", "in place", "Conv4", "prototypes"]


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_compiled_give_the_same(method, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    learner, group = make_learner(method, torch.float64), make_group(torch.float64)
    steps = CompiledSteps(patience=1)
    found = run(MetaStep(compiled=steps), learner, group)
    assert None not in steps.functions.values()
    torch.testing.assert_close(found, run(MetaStep(), learner, group))


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16_they_are_close(method, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    learner, group = make_learner(method, torch.float32), make_group(torch.float32)
    exact = run(MetaStep(), learner, group)
    learner.precision = torch.bfloat16
    steps = CompiledSteps(patience=1)
    found = run(MetaStep(compiled=steps), learner, group)
    assert None not in steps.functions.values()
    torch.testing.assert_close(found[0], exact[0], rtol=0.1, atol=0.02)
    flat, expected = (torch.cat([g.flatten() for g in r[3]]) for r in (found, exact))
    assert torch.cosine_similarity(flat, expected, dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [MAMLClassifier, PrototypicalClassifier])
def test_compile_true_trains_convolutions_as_before(kind, precision):
    group = make_group(torch.float32, n_tasks=12)
    rows = zip(group.support.X, group.query.X, strict=True)
    y = [0, 1, 2] * 3
    tasks = [Task(torch.cat(each).numpy(), y, np.arange(9) < 3) for each in rows]
    losses = []
    for compiled in (False, True):
        options = {"compile": compiled, "precision": precision, "batch_size": 4}
        torch.manual_seed(0)
        meta = kind(TaskNet(Blocks(), max_epochs=3, **options), random_state=0)
        losses.append([row["train_loss"] for row in meta.fit(tasks).history_])
    close = 1e-4 if precision == "float32" else 0.05
    assert losses[1] == pytest.approx(losses[0], rel=close)
    functions = meta.net_.meta_step_.compiled.functions.values()
    assert functions and None not in functions
