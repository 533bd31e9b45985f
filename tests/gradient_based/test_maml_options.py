"""What MAML adapts, learned rates, multi-step loss and annealing of the order."""

import pickle
from copy import deepcopy

import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.func import functional_call

from sk_meta import MAMLClassifier, MAMLRegressor, MetaGridSearchCV, Task, TaskNet
from sk_meta.checkpoint import ResumableCheckpoint
from sk_meta.checks import meta_estimator_checks
from sk_meta.engine.batching import disagreement, task_losses
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.each_task import preferred_way
from sk_meta.engine.layers import StackedNetwork
from sk_meta.engine.meta_step import MetaStep
from sk_meta.gradient_based.inner_rates import adapted_parameters
from sk_meta.gradient_based.maml import MAML
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks, make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation

N_STEPS = 3
OPTIONS = {
    "body": {"adapts": "body"},
    "head": {"adapts": "head"},
    "layer": {"inner_rates": "layer"},
    "layer and step": {"inner_rates": "layer_and_step"},
    "parameter": {"inner_rates": "parameter"},
    "every step": {"multi_step_epochs": 4},
    "MAML++": {"inner_rates": "layer_and_step", "multi_step_epochs": 4},
    "body by parameter": {"adapts": "body", "inner_rates": "parameter"},
    "head, every step": {"adapts": "head", "multi_step_epochs": 4},
}
NETWORKS = {
    "MLP": lambda: MLP(4, 3, (6, 5), nn.Tanh),
    "BatchNorm": lambda: MLP(4, 3, (6,), nn.Tanh, normalization="batch"),
    "LayerNorm": lambda: MLP(4, 3, (6,), nn.Tanh, normalization="layer"),
}


def make_learner(network="MLP", n_steps=N_STEPS, seed=0, **options):
    """In float64, with rates that differ, in the second epoch of four."""
    torch.manual_seed(seed)
    network = exact_normalization(NETWORKS[network]())
    learner = MAML(network, 3, 0.2, n_steps, n_steps, **options).double()
    if learner.rates is not None:
        with torch.no_grad():
            for rates in learner.rates.parameters():
                rates *= 1 + torch.randn_like(rates) / 2
    learner.begin_epoch(1)
    return learner.train()


def make_batch(make_group):
    return [
        make_group(2, 6, 4, 4, 3, seed=1),
        make_group(3, 9, 5, 4, 3, weighted=True, seed=2),
    ]


def losses_and_gradients(learner, batch, way):
    learner.way, learner.checked = way, True
    learner.zero_grad()
    losses, _ = task_losses(learner, batch)
    losses.sum().backward()
    assert learner.way == way, learner.why
    return losses.detach(), [p.grad for p in learner.parameters()]


@pytest.mark.parametrize(
    ("network", "factors"),
    [("MLP", True), ("MLP", False), ("BatchNorm", None), ("LayerNorm", None)],
)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_all_ways_give_the_same(
    options, network, first_order, factors, make_group, monkeypatch
):
    if factors is not None:
        monkeypatch.setattr(StackedNetwork, "keeps_factors", lambda *_: factors)
    batch = make_batch(make_group)
    learner = make_learner(network, first_order=first_order, **OPTIONS[options])
    assert preferred_way(learner, "cpu")[0] == "layers"
    assert disagreement(learner, batch[0]) is None
    loop = losses_and_gradients(learner, batch, "loop")
    close = {"rtol": 1e-8, "atol": 1e-10}
    for way in ("layers", "vmap"):
        torch.testing.assert_close(
            losses_and_gradients(learner, batch, way), loop, **close
        )
    learner.gradient_checkpointing = True
    for way in ("layers", "loop"):
        torch.testing.assert_close(
            losses_and_gradients(learner, batch, way), loop, **close
        )
    learner.eval()
    with torch.no_grad():
        found = [
            task_losses(learner, batch, training=False)[0]
            for learner.way in ("layers", "vmap", "loop")
        ]
    torch.testing.assert_close(found[0], found[2], **close)
    torch.testing.assert_close(found[1], found[2], **close)


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("network", ["MLP", "BatchNorm"])
@pytest.mark.parametrize("options", OPTIONS)
def test_meta_gradients_match_finite_differences(options, network, way, make_group):
    learner = make_learner(network, **OPTIONS[options])
    learner.checked = learner.forced = True  # no other way than this one
    assert deviation(learner, make_batch(make_group), way) <= TOLERANCE


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("kind", ["layer", "layer_and_step", "parameter"])
def test_equal_rates_are_the_fixed_rate(kind, way, make_group):
    batch = make_batch(make_group)
    found, gradients = [], []
    for inner_rates in ("fixed", kind):
        torch.manual_seed(0)
        options = {"inner_rates": inner_rates}
        learner = MAML(NETWORKS["LayerNorm"](), 3, 0.25, 3, 3, **options).double()
        losses, gradient = losses_and_gradients(learner, batch, way)
        found.append(losses)
        gradients.append(gradient[: len(list(learner.module.parameters()))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)
    if way == "loop":  # the same operations
        assert torch.equal(found[0], found[1])


def by_hand(learner, support, rates):
    """Adapted parameters by torch.autograd, a list of rates {name: rate} for steps."""
    parameters = dict(learner.module.named_parameters())
    for of_step in rates:
        scores = functional_call(learner.module, parameters, (support.X,))
        loss = nn.functional.cross_entropy(scores, support.y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        parameters = {
            name: value - of_step[name] * gradient
            for (name, value), gradient in zip(
                parameters.items(), gradients, strict=True
            )
        }
    return parameters


def one_task(group):
    return group.support._replace(X=group.support.X[0], y=group.support.y[0])


@pytest.mark.parametrize("n_adapt_steps", [2, 3, 5])
@pytest.mark.parametrize("kind", ["layer", "layer_and_step", "parameter"])
def test_rates_by_hand(kind, n_adapt_steps, make_group):
    support = one_task(make_group(1, 6, 4, 4, 3))
    learner = make_learner(inner_rates=kind).eval()
    learner.n_adapt_steps = n_adapt_steps
    names = [name for name, _ in learner.module.named_parameters()]
    if kind == "parameter":
        rates = [dict(zip(names, learner.rates.values, strict=True))] * n_adapt_steps
    else:
        (table,) = learner.rates.values
        assert table.shape == (N_STEPS if kind == "layer_and_step" else 1, 3)
        # weight and bias of a layer share a rate; steps beyond have the last one's
        rows = [table[min(i, len(table) - 1)] for i in range(n_adapt_steps)]
        rates = [{name: row[i // 2] for i, name in enumerate(names)} for row in rows]
    expected = by_hand(learner, support, rates)
    torch.testing.assert_close(learner.adapt(support).parameters, expected)


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("part", ["body", "head"])
def test_the_other_part_is_shared_and_meta_trained(part, way, make_group):
    learner = make_learner(adapts=part)
    names = [name for name, _ in learner.module.named_parameters()]
    of_part = names[:-2] if part == "body" else names[-2:]
    support = one_task(make_group(1, 6, 4, 4, 3))
    found = learner.adapt(support).parameters
    assert [*found] == of_part
    rates = {name: 0.2 * (name in of_part) for name in names}
    expected = by_hand(learner, support, [rates] * N_STEPS)
    for name in names:
        value = found.get(name, learner.module.get_parameter(name))
        torch.testing.assert_close(value, expected[name])
    losses_and_gradients(learner, make_batch(make_group), way)
    assert all(p.grad.norm() > 1e-8 for p in learner.parameters())


def test_the_head_is_the_last_layer_with_parameters():
    network = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False), nn.Softplus()
    )
    assert adapted_parameters(network, "head") == ("2.weight",)
    assert adapted_parameters(network, "body") == (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    )
    network[0].requires_grad_(False)
    assert adapted_parameters(network, "body") == ("1.weight", "1.bias")
    assert adapted_parameters(nn.Linear(2, 3), "head") == ("weight", "bias")


def test_layers_that_no_task_changes_may_be_of_any_kind(make_group):
    network = nn.Sequential(
        nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.PReLU(), nn.Linear(6, 3)
    ).double()
    batch = make_batch(make_group)
    ways = {}
    for part in ("head", "body"):
        learner = MAML(network, 3, 0.2, 2, 2, adapts=part)
        ways[part] = preferred_way(learner, "cpu")[0]
    assert ways == {"head": "layers", "body": "vmap"}
    learner = MAML(network, 3, 0.2, 2, 2, adapts="head")
    assert disagreement(learner, batch[0]) is None
    torch.testing.assert_close(
        losses_and_gradients(learner, batch, "layers"),
        losses_and_gradients(learner, batch, "loop"),
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_convolutions(options, make_group):
    network = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    batch = [make_group(2, 6, 4, 16, 3)]
    network = exact_normalization(network).double()
    learner = MAML(network, 3, 0.2, 2, 2, **OPTIONS[options])
    assert preferred_way(learner, "cpu")[0] == "loop"
    assert deviation(learner, batch, "loop") <= TOLERANCE
    torch.testing.assert_close(
        losses_and_gradients(learner, batch, "vmap"),
        losses_and_gradients(learner, batch, "loop"),
    )


def test_weights_of_the_steps_move_to_the_last():
    learner = MAML(MLP(4, 3), 3, 0.1, 4, 4, multi_step_epochs=5)
    found = []
    for epoch in range(5):
        learner.begin_epoch(epoch)
        assert learner.phase == (False, True)
        found.append(learner.step_weights.clone())
    found = torch.stack(found)
    torch.testing.assert_close(found[0], torch.full((4,), 0.25))
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    assert (found.diff(dim=0)[:, :-1] < 0).all() and (found >= 0).all()
    assert (found[:, :-1] == found[:, :1]).all()
    learner.begin_epoch(5)
    assert learner.phase == (False, False)


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_the_loss_is_the_weighted_mean_of_those_after_each_step(way, make_group):
    batch = make_batch(make_group)
    learner = make_learner("BatchNorm", multi_step_epochs=4)
    expected = 0
    for n_steps, weight in enumerate(learner.step_weights, 1):
        alone = make_learner("BatchNorm", n_steps)
        expected += weight * losses_and_gradients(alone, batch, way)[0]
    torch.testing.assert_close(losses_and_gradients(learner, batch, way)[0], expected)
    learner.step_weights[:] = torch.tensor([0.0, 0.0, 1.0])
    plain = make_learner("BatchNorm")
    torch.testing.assert_close(
        losses_and_gradients(learner, batch, way),
        losses_and_gradients(plain, batch, way),
    )
    learner.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(
            task_losses(learner, batch, False)[0], task_losses(plain, batch, False)[0]
        )


def test_every_step_of_one_step_is_that_step(make_group):
    learner = make_learner(n_steps=1, multi_step_epochs=4)
    assert learner.phase is None
    plain = make_learner(n_steps=1)
    batch = make_batch(make_group)
    assert torch.equal(task_losses(learner, batch)[0], task_losses(plain, batch)[0])


def make_tasks(n_tasks=12):
    return make_blob_tasks(n_tasks, n_classes=3, n_features=4, random_state=0)


def fit(tasks, n_epochs=4, n_inner_steps=2, net=None, **options):
    net = {
        "module__hidden": (6,),
        "max_epochs": n_epochs,
        "batch_size": 4,
        **(net or {}),
    }
    return MAMLClassifier(
        TaskNet(**net),
        inner_lr=0.1,
        n_inner_steps=n_inner_steps,
        random_state=0,
        **options,
    ).fit(tasks)


def bits(meta):
    losses = [row["train_loss"] for row in meta.history_]
    return losses, [v.tolist() for v in meta.learner_.state_dict().values()]


@pytest.mark.parametrize("way", ["auto", "vmap", "loop"])
def test_first_order_in_all_epochs_is_first_order(way):
    tasks, net = make_tasks(), {"way": way}
    early, first, second, half = (
        bits(fit(tasks, net=net, **options))
        for options in (
            {"first_order_epochs": 4},
            {"first_order": True},
            {},
            {"first_order_epochs": 2},
        )
    )
    assert early == first
    assert half[0][:2] == first[0][:2]
    assert half[1] != first[1] and half[1] != second[1]


def test_epochs_are_counted_over_fit_and_partial_fit():
    tasks = make_tasks()
    options = {"multi_step_epochs": 3, "first_order_epochs": 2}
    meta = fit(tasks, n_epochs=2, **options)
    assert meta.learner_.phase == (True, True)
    meta = pickle.loads(pickle.dumps(meta)).partial_fit(tasks)
    assert meta.learner_.phase == (False, False)
    assert [row["epoch"] for row in meta.history_] == [1, 2, 3, 4]


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends training in the middle of an epoch, as a kill would."""

    epoch = None

    def on_batch_end(self, net, training=None, **kwargs):
        if training and len(net.history) == Kill.epoch:
            raise Killed


@pytest.mark.parametrize("epoch", [2, 3, 4, 6])
def test_resumed_in_the_middle_of_annealing(epoch, tmp_path, monkeypatch):
    tasks = [Task(task.X, task.y) for task in make_tasks()]
    options = {
        "inner_rates": "layer_and_step",
        "multi_step_epochs": 4,
        "first_order_epochs": 3,
        "support_size": 2,
    }

    def run(*callbacks, **net):
        net = {"callbacks": [("kill", Kill()), *callbacks], "max_memory": 0.05, **net}
        return fit(tasks, n_epochs=7, net=net, **options)

    straight = run()
    assert len(straight.net_.meta_step_.bytes) == 3
    save = ("save", ResumableCheckpoint(tmp_path / "maml.ckpt", every=1))
    monkeypatch.setattr(Kill, "epoch", epoch)
    with pytest.raises(Killed):
        run(save)
    monkeypatch.setattr(Kill, "epoch", None)
    options["adapts"] = "head"
    with pytest.raises(ValueError, match="adapts is all there and head here"):
        run(save)
    del options["adapts"]
    resumed = run(save)
    assert dict(resumed.net_.callbacks_)["save"].n_resumed_ == epoch - 1
    assert bits(resumed) == bits(straight)
    assert resumed.net_.meta_step_.bytes == straight.net_.meta_step_.bytes


def test_each_phase_is_compiled_for_itself(make_group, monkeypatch):
    """The traced function, without the half minute of the compiler."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    group = make_group(3, 6, 4, 4, 3)
    options = {"multi_step_epochs": 4, "first_order_epochs": 2}
    learner = make_learner(inner_rates="layer_and_step", **options)
    learner.way, learner.checked = "layers", True
    steps = CompiledSteps(patience=1)
    found = []
    for epoch in range(6):
        learner.begin_epoch(epoch)
        for compiled in (None, steps):
            learner.zero_grad()
            loss, *_ = MetaStep(compiled=compiled)(learner, [group])
            found.append((loss, [p.grad.clone() for p in learner.parameters()]))
        torch.testing.assert_close(found[-1], found[-2])
    assert len(steps.functions) == 3 and None not in steps.functions.values()


@pytest.mark.parametrize("kind", ["layer", "layer_and_step", "parameter"])
@pytest.mark.parametrize("first_order", [False, True])
def test_rates_move_and_travel(kind, first_order):
    tasks = make_tasks()
    meta = fit(tasks, inner_rates=kind, first_order=first_order)
    rates = [p.detach().clone() for p in meta.learner_.rates.parameters()]
    assert all((each != torch.tensor(0.1)).all() for each in rates)
    copied = pickle.loads(pickle.dumps(meta))
    for one, other in zip(rates, copied.learner_.rates.parameters(), strict=True):
        assert torch.equal(one, other)
    on = deepcopy(copied).partial_fit(tasks)
    moved = zip(rates, on.learner_.rates.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in moved)
    assert any(name.startswith("rates.") for name in meta.learner_.state_dict())


def test_learned_rates_train_in_lockstep_and_annealing_alone(capsys):
    tasks = make_sinusoids(12, random_state=0)
    net = TaskNet(module__hidden=(6,), max_epochs=3)
    grid = {
        "inner_lr": [0.01, 0.1],
        "multi_step_epochs": [0, 2],
        "inner_rates": ["parameter"],
    }
    meta = MAMLRegressor(net, n_inner_steps=2, random_state=0)
    search = MetaGridSearchCV(meta, grid, cv=2, verbose=1, refit=False).fit(tasks)
    said = capsys.readouterr().out
    assert "2 candidates train together" in said
    assert "2 alone: other things are computed from some epoch on" in said
    alone = search.cv_results_
    for i, params in enumerate(alone["params"]):
        plain = MAMLRegressor(net, n_inner_steps=2, random_state=0, **params)
        score = plain.fit(tasks[6:]).score(tasks[:6])
        assert score == pytest.approx(alone["split0_test_score"][i], rel=1e-3)


def test_nothing_left_to_adapt():
    for part, frozen in (("body", False), ("head", True)):
        network = nn.Linear(4, 3) if part == "body" else nn.Sequential(MLP(4, 3))
        for parameter in [*network.parameters()][-2:]:
            parameter.requires_grad_(not frozen)
        with pytest.raises(ValueError, match=f"adapts='{part}' leaves.*nothing"):
            MAMLClassifier(TaskNet(network), adapts=part).fit(make_tasks())


@pytest.mark.parametrize(
    "options",
    [
        {"adapts": "tail"},
        {"inner_rates": "tensor"},
        {"multi_step_epochs": -1},
        {"first_order_epochs": 0.5},
    ],
)
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"'{name}' parameter of MAMLClassifier must"):
        MAMLClassifier(**options).fit(make_tasks())


SUITES = [
    MAMLClassifier(
        inner_lr=0.1,
        n_inner_steps=2,
        inner_rates="layer_and_step",
        multi_step_epochs=2,
        first_order_epochs=1,
    ),
    MAMLClassifier(adapts="head", inner_lr=0.1, inner_rates="layer"),
    MAMLRegressor(adapts="body", inner_rates="parameter", n_inner_steps=2),
]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{i}-{check.func.__name__}")
        for i, estimator in enumerate(SUITES)
        for check in meta_estimator_checks(estimator)
    ],
)
def test_meta_estimator(check):
    check()
