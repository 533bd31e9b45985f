"""ANIL: the network stays, the head takes gradient steps."""

import pytest
import torch
from torch import nn

from sk_meta import ANILClassifier, ANILRegressor, EpisodeSampler, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.batching import task_losses
from sk_meta.gradient_based.anil import ANIL
from sk_meta.gradient_based.maml import MAML
from sk_meta.heads import prototype_head
from sk_meta.learner import Query, Support
from sk_meta.networks import MLP
from sk_meta.tasks import make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES, WIDTH = 16, 5
BATCH_NORM = TaskNet(
    module__hidden=(8,), module__normalization="batch", max_epochs=2, way="vmap"
)
ESTIMATORS = [
    ANILClassifier(),
    ANILClassifier(head="prototypes", n_inner_steps=2),
    ANILClassifier(BATCH_NORM, learn_inner_lr=True),
    ANILRegressor(first_order=True, n_adapt_steps=8),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_learner(n_outputs, normalization=None, n_steps=3, **options):
    network = MLP(N_FEATURES, None, (6, WIDTH), nn.Tanh, normalization)
    options = {"learn_inner_lr": False, **options}
    learner = ANIL(
        network,
        WIDTH,
        n_outputs,
        inner_lr=0.3,
        n_inner_steps=n_steps,
        n_adapt_steps=n_steps,
        **options,
    ).double()
    with torch.no_grad():
        for parameter in learner.module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.train()


def one_task(make_group, **kind):
    group = make_group(1, 9, 6, **kind)
    X, y, weight = (None if p is None else p[0] for p in group.support[:3])
    support = Support(X, y, weight, group.support.n_classes)
    return support, Query(*(None if p is None else p[0] for p in group.query))


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("head", ["learned", "prototypes", "learned rate", "targets"])
def test_meta_gradient_matches_finite_differences(head, normalization, way, make_group):
    n_outputs = {"prototypes": 0, "targets": 2}.get(head, 3)
    kind = {"n_targets": 2} if head == "targets" else {"n_classes": 3}
    learner = make_learner(
        n_outputs, normalization, learn_inner_lr=head == "learned rate"
    )
    batch = [
        make_group(2, 6, 4, **kind, seed=1),
        make_group(3, 9, 5, **kind, weighted=True, seed=2),
    ]
    assert deviation(learner, batch, way) <= TOLERANCE
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert all(p.grad.norm() > 0 for p in learner.parameters())


@pytest.mark.parametrize("kind", [{"n_classes": 3}, {"n_targets": 3}])
def test_equals_maml_with_a_frozen_body(kind, make_group):
    """In predictions, and in the meta-gradient at the head."""
    learner = make_learner(3)
    batch = [make_group(2, 6, 4, weighted=True, **kind)]
    found = meta_gradient(learner, batch, "loop")
    network = nn.Sequential(learner.module, nn.Linear(WIDTH, 3)).double()
    network[1].load_state_dict(learner.head.state_dict())
    network[0].requires_grad_(False)
    maml = MAML(network, 3, 0.3, 3, 3)
    maml.way = "loop"
    support, query = one_task(make_group, weighted=True, **kind)
    torch.testing.assert_close(
        learner.predict(learner.adapt(support), query.X),
        maml.predict(maml.adapt(support), query.X),
    )
    task_losses(maml, batch)[0].mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network[1].parameters()])
    torch.testing.assert_close(found[-len(expected) :], expected)


def test_features_do_not_depend_on_the_support_set(make_group):
    """Only the head is in the state."""
    learner = make_learner(3).eval()
    support, query = one_task(make_group, n_classes=3)
    state = learner.adapt(support)
    Z = learner.module(query.X)
    assert set(state.head) == {"weight", "bias"}
    torch.testing.assert_close(
        learner.predict(state, query.X),
        nn.functional.linear(Z, state.head["weight"], state.head["bias"]),
    )


@pytest.mark.parametrize("n_outputs", [3, 0], ids=["learned", "prototypes"])
def test_steps_are_those_of_sgd(n_outputs, make_group):
    learner = make_learner(n_outputs, n_steps=4).eval()
    support, _ = one_task(make_group, n_classes=3, weighted=True)
    Z = learner.module(support.X).detach()
    head = nn.Linear(WIDTH, 3).double()
    start = learner.head.state_dict() if n_outputs else prototype_head(Z, support)[0]
    head.load_state_dict({name: value.detach() for name, value in start.items()})
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3)
    for _ in range(4):
        optimizer.zero_grad()
        rows = nn.functional.cross_entropy(head(Z), support.y, reduction="none")
        ((rows * support.weight).sum() / support.weight.sum()).backward()
        optimizer.step()
    found = learner.adapt(support).head
    torch.testing.assert_close(found, dict(head.named_parameters()))


def test_prototypes_permute_with_the_classes(make_group):
    learner = make_learner(0).eval()
    support, query = one_task(make_group, n_classes=3)
    expected = learner.predict(learner.adapt(support), query.X)
    order = torch.tensor([2, 0, 1])
    relabelled = support._replace(y=order[support.y])
    found = learner.predict(learner.adapt(relabelled), query.X)
    torch.testing.assert_close(found[:, order], expected)
    assert not torch.allclose(found, expected)


@pytest.mark.parametrize("n_outputs", [3, 0], ids=["learned", "prototypes"])
def test_a_row_of_weight_zero_changes_nothing(n_outputs, make_group):
    learner = make_learner(n_outputs).eval()
    support, query = one_task(make_group, n_classes=3, weighted=True)
    more = support._replace(
        X=torch.cat([support.X, 100 + support.X[:1]]),
        y=torch.cat([support.y, support.y[:1]]),
        weight=torch.cat([support.weight, torch.zeros(1).double()]),
    )
    torch.testing.assert_close(
        learner.predict(learner.adapt(more), query.X),
        learner.predict(learner.adapt(support), query.X),
    )


@pytest.mark.parametrize("n_outputs", [4, 0], ids=["learned", "prototypes"])
def test_outputs_without_a_class_are_shut_out(n_outputs, make_group):
    learner = make_learner(n_outputs).eval()
    support, query = one_task(make_group, n_classes=3)
    if n_outputs:  # a task of three classes for a head of four
        share = learner.predict(learner.adapt(support), query.X).softmax(1)
        assert (share[:, 3] == 0).all() and (share[:, :3] > 0).all()
        return
    lacking = support._replace(X=support.X[support.y != 2], y=support.y[support.y != 2])
    scores = learner.predict(learner.adapt(lacking), query.X)
    assert (scores.softmax(1)[:, 2] == 0).all()
    # Query rows of that class do not count.
    rest = Query(query.X[query.y != 2], query.y[query.y != 2])
    torch.testing.assert_close(
        learner.loss(scores, query, lacking),
        learner.loss(scores[query.y != 2], rest, lacking),
    )


def test_inner_lr_is_learned():
    net = TaskNet(max_epochs=2, module__hidden=(8,))
    rates = []
    for learned in (True, False):
        meta = ANILRegressor(net, learn_inner_lr=learned, random_state=0)
        meta.fit(make_sinusoids(8, random_state=0))
        names = dict(meta.learner_.named_parameters())
        rates.append(names.get("log_inner_lr"))
    assert rates[1] is None
    assert 0 < rates[0].exp() < 1 and abs(rates[0].exp() - 0.1) > 1e-4


def test_more_classes_than_in_training(rng):
    X, y = rng.normal(size=(120, 4)), rng.integers(12, size=120)
    few = EpisodeSampler(X, y, n_way=3, n_shot=2, n_query=2, n_episodes=8)
    net = TaskNet(max_epochs=1, module__hidden=(8,))
    prototypes = ANILClassifier(net, head="prototypes", random_state=0).fit(few)
    many = prototypes.adapt(X, y)
    assert many.predict_proba(X).shape == (120, 12)
    learned = ANILClassifier(net, random_state=0).fit(few)
    with pytest.raises(ValueError, match="12 classes, the head has 3"):
        learned.adapt(X, y)


@pytest.mark.parametrize(
    "bad", [{"head": "zero"}, {"inner_lr": 0.0}, {"n_inner_steps": 0}]
)
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter of"):
        ANILClassifier(**bad).fit([])
