"""Proto-MAML: gradient steps that start at prototypical networks."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sk_meta import EpisodeSampler, ProtoMAMLClassifier, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.memory import peak_bytes
from sk_meta.gradient_based.proto_maml import ProtoMAML
from sk_meta.learner import Query, Support
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, Conv4
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 16
BATCH_NORM = TaskNet(
    module__hidden=(8,), module__normalization="batch", max_epochs=2, way="vmap"
)
ESTIMATORS = [
    ProtoMAMLClassifier(inner_lr=0.05, n_inner_steps=2, n_adapt_steps=3),
    ProtoMAMLClassifier(first_order=True, n_adapt_steps=0),
    ProtoMAMLClassifier(BATCH_NORM),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    normalised = check.args[0].net.get_params().get("module__normalization")
    if normalised and check.func.__name__ == "check_support":
        pytest.skip("a row of weight 0 counts in the statistics of the support set")
    check()


def make_learner(normalization=None, n_steps=2, inner_lr=0.05, **options):
    network = MLP(N_FEATURES, None, (6, 5), nn.Tanh, normalization)
    learner = ProtoMAML(network, inner_lr, n_steps, n_steps, **options).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.train()


def one_task(make_group, **kind):
    group = make_group(1, 9, 6, n_classes=3, **kind)
    X, y, weight = (None if p is None else p[0] for p in group.support[:3])
    query = Query(*(None if p is None else p[0] for p in group.query))
    return Support(X, y, weight, 3), query


def scores_of(learner, support, X):
    with torch.no_grad():
        return learner.predict(learner.adapt(support), X)


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_meta_gradient_matches_finite_differences(
    n_steps, normalization, way, make_group
):
    learner = make_learner(normalization, n_steps)
    batch = [
        make_group(2, 6, 4, n_classes=3, seed=1),
        make_group(3, 9, 5, n_classes=3, weighted=True, seed=2),
    ]
    assert deviation(learner, batch, way) <= TOLERANCE
    meta_gradient(learner, batch, way)
    assert learner.way == way


def test_checkpointing_changes_no_gradient(make_group):
    batch = [make_group(2, 6, 4, n_classes=3)]
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        learner = make_learner("batch", 3, gradient_checkpointing=again)
        found.append(meta_gradient(learner, batch, "loop"))
    torch.testing.assert_close(*found)


def test_without_steps_scores_are_those_of_prototypes(make_group):
    """Up to what is common to all classes: the squared length of the row."""
    learner = make_learner(n_steps=0).eval()
    support, query = one_task(make_group, weighted=True)
    expected = scores_of(Prototypes(learner.module), support, query.X)
    found = scores_of(learner, support, query.X)
    difference = found - expected
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 3))
    torch.testing.assert_close(found.softmax(1), expected.softmax(1))


def test_without_steps_the_meta_gradient_is_that_of_prototypes(make_group):
    """So the gradient goes through the prototypes."""
    learner = make_learner(n_steps=0)
    batch = [make_group(3, 6, 4, n_classes=3)]
    torch.testing.assert_close(
        meta_gradient(learner, batch, "loop"),
        meta_gradient(Prototypes(learner.module), batch, "loop"),
    )


def test_steps_are_those_of_sgd_on_all_parameters(make_group):
    learner = make_learner(n_steps=3).eval()
    support, query = one_task(make_group, weighted=True)
    Z = learner.module(support.X).detach()
    head = nn.Linear(5, 3).double()
    with torch.no_grad():
        for k in range(3):
            rows, weight = Z[support.y == k], support.weight[support.y == k]
            mean = weight @ rows / weight.sum()
            head.weight[k], head.bias[k] = 2 * mean, -(mean @ mean)
    network = nn.Sequential(learner.module, head)
    before = {k: v.clone() for k, v in learner.module.state_dict().items()}
    found = scores_of(learner, support, query.X)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(
            network(support.X), support.y, reduction="none"
        )
        ((losses * support.weight).sum() / support.weight.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(found, network(query.X).detach())
    learner.module.load_state_dict(before)


@pytest.mark.parametrize("first_order", [False, True])
def test_more_steps_lower_the_support_loss(first_order, make_group):
    support, _ = one_task(make_group)
    losses = []
    for n_steps in (0, 1, 2, 4, 8, 16):
        torch.manual_seed(0)
        learner = make_learner(None, n_steps, 0.04, first_order=first_order)
        scores = scores_of(learner, support, support.X)
        losses.append(nn.functional.cross_entropy(scores, support.y))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_first_order_takes_inner_gradients_for_constants(make_group):
    """The gradient still goes through the prototypes: compared with autograd."""
    learner = make_learner(n_steps=1, first_order=True)
    support, query = one_task(make_group)
    learner.loss(learner(support, query.X)[0], query, support).backward()
    found = [p.grad.clone() for p in learner.module.parameters()]
    learner.zero_grad()
    parameters = dict(learner.module.named_parameters())
    Z = learner.module(support.X)
    means = torch.stack([Z[support.y == k].mean(0) for k in range(3)])
    head = [2 * means, -(means**2).sum(1)]

    def loss(parameters, head, part):
        Z = functional_call(learner.module, parameters, (part.X,))
        return nn.functional.cross_entropy(Z @ head[0].T + head[1], part.y)

    values = [*parameters.values(), *head]
    leaves = [value.detach().requires_grad_() for value in values]
    gradients = torch.autograd.grad(
        loss(dict(zip(parameters, leaves[:-2], strict=True)), leaves[-2:], support),
        leaves,
    )
    stepped = [v - 0.05 * g for v, g in zip(values, gradients, strict=True)]
    adapted = dict(zip(parameters, stepped[:-2], strict=True))
    loss(adapted, stepped[-2:], query).backward()
    expected = [p.grad for p in learner.module.parameters()]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalization", [None, "batch"])
def test_permuting_classes_permutes_the_answer(normalization, make_group):
    learner = make_learner(normalization).eval()
    support, query = one_task(make_group)
    expected = scores_of(learner, support, query.X)
    order = torch.tensor([2, 0, 1])
    relabelled = support._replace(y=order[support.y])
    found = scores_of(learner, relabelled, query.X)
    torch.testing.assert_close(found[:, order], expected)
    assert not torch.allclose(found, expected)


def test_a_class_without_rows_is_shut_out_and_does_not_count(make_group):
    learner = make_learner()
    support, query = one_task(make_group)
    kept = support.y != 2
    lacking = support._replace(X=support.X[kept], y=support.y[kept])
    weightless = support._replace(weight=kept.double())
    scores = scores_of(learner, lacking, query.X)
    assert (scores.softmax(1)[:, 2] == 0).all()
    torch.testing.assert_close(scores_of(learner, weightless, query.X), scores)
    rest = query.y != 2
    for given in (lacking, weightless):
        torch.testing.assert_close(
            learner.loss(scores, query, given),
            nn.functional.cross_entropy(scores[rest], query.y[rest]),
        )
    learner.loss(learner(lacking, query.X)[0], query, lacking).backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters())


def test_batch_normalisation_uses_the_support_set_alone(make_group):
    support, query = one_task(make_group)
    learner = make_learner("batch").eval()
    together = scores_of(learner, support, query.X)
    alone = [scores_of(learner, support, row) for row in query.X[:, None]]
    torch.testing.assert_close(torch.cat(alone), together)
    torch.manual_seed(0)
    transductive = make_learner("batch", transductive=True).eval()
    first = scores_of(transductive, support, query.X[:3])
    assert not torch.allclose(first, scores_of(transductive, support, query.X)[:3])


def test_evaluation_of_convolutions_keeps_no_graph(make_group):
    support, _ = one_task(make_group)
    support = support._replace(X=support.X.unflatten(1, (1, 4, 4)))
    found = []
    for n_steps in (2, 10):
        learner = ProtoMAML(Conv4((1, 4, 4), None, 8), 0.01, 1, n_steps).double()
        learner.way = "loop"
        learner.eval()
        with torch.no_grad():
            found.append(peak_bytes(learner.adapt, support))
            state = learner.adapt(support)
        assert not any(p.requires_grad for p in state.parameters.values())
    assert found[0] == found[1]


def test_more_classes_than_in_training(rng):
    X, y = rng.normal(size=(120, 4)), rng.integers(12, size=120)
    few = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=2, n_episodes=8)
    net = TaskNet(max_epochs=1, module__hidden=(8,))
    meta = ProtoMAMLClassifier(net, random_state=0).fit(few)
    assert meta.adapt(X, y).predict_proba(X).shape == (120, 12)


@pytest.mark.parametrize("bad", [{"inner_lr": -1.0}, {"n_adapt_steps": -1}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter of"):
        ProtoMAMLClassifier(**bad).fit([])
