"""Pieces, compiled functions and other precisions change the cost, not the answer."""

import logging
import pickle
from copy import deepcopy

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sk_meta import MAMLRegressor, PrototypicalClassifier, TaskNet
from sk_meta.closed_form.alpaca import ALPaCA
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.memory import peak_bytes
from sk_meta.engine.meta_step import MetaStep, pieces
from sk_meta.gradient_based.maml import MAML
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks, make_sinusoids

LEARNERS = {
    "MAML": lambda: MAML(MLP(4, 3), 3, 0.2, 2, 2),
    "MAML, batch": lambda: MAML(MLP(4, 3, normalization="batch"), 3, 0.2, 2, 2),
    "Prototypes, batch": lambda: Prototypes(MLP(4, 3, normalization="batch")),
    "ALPaCA": lambda: ALPaCA(MLP(4, 3), 3, 4, 1),
}


def worst_first(losses):
    """A reduction that is not linear in the losses."""
    return torch.logsumexp(losses, 0)


def make_groups(make_group, name):
    n_classes = 0 if name == "ALPaCA" else 3
    return [
        make_group(5, n_features=4, n_classes=n_classes, weighted=True),
        make_group(2, 9, 5, n_features=4, n_classes=n_classes, seed=1),
    ]


def run(step, learner, groups, reduce=None):
    learner.zero_grad()
    loss, losses, seen = step(learner, groups, reduce)
    gradients = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    return loss, losses, seen, gradients


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("reduce", [None, worst_first])
@pytest.mark.parametrize("name", LEARNERS)
def test_pieces_add_up(name, reduce, way, make_group):
    learner = LEARNERS[name]().double().train()
    groups = make_groups(make_group, name)
    learner.way = "vmap"
    whole = run(MetaStep(), learner, groups, reduce)
    learner.way = way if learner.why_apart() is None or way != "layers" else "vmap"
    found = run(MetaStep(max_memory=1e-6), learner, groups, reduce)
    torch.testing.assert_close(found, whole)


def test_as_many_tasks_at_once_as_fit(make_group):
    group = make_group(40, n_features=4, n_classes=3)
    learner = MAML(MLP(4, 3).double(), 3, 0.2, 3, 3)
    whole = peak_bytes(MetaStep(), learner, [group])
    held = []
    for bound in (whole / 2, whole / 4, whole / 8):
        step = MetaStep(max_memory=bound / 2**20)
        step(learner, [group])  # measures
        held.append(peak_bytes(step, learner, [group]) / bound)
    assert all(0.4 < share < 1.1 for share in held), held


def test_pieces_cut_every_tensor(make_group):
    group = make_group(5, n_classes=3, weighted=True)
    found = list(pieces(group, 2))
    assert [len(piece.positions) for piece in found] == [2, 2, 1]
    for name in ("support", "query"):
        whole, parts = getattr(group, name), [getattr(p, name) for p in found]
        assert torch.equal(torch.cat([part.X for part in parts]), whole.X)
        assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)


@pytest.mark.parametrize("name", LEARNERS)
def test_compiled_gives_the_same(name, make_group, monkeypatch):
    """The traced function, without the half minute of the compiler."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    learner = LEARNERS[name]().double().train()
    groups = make_groups(make_group, name)
    for chosen in (groups, groups[:1]):
        plain = run(MetaStep(), learner, chosen)
        steps = CompiledSteps(patience=1)
        found = run(MetaStep(compiled=steps), learner, chosen)
        torch.testing.assert_close(found, plain)
        assert all(function is not None for function in steps.functions.values())
        run(MetaStep(compiled=steps), learner, chosen)
        assert len(steps.functions) == len(chosen)


def test_other_weights_and_data_go_through_what_was_compiled(make_group, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    learner = LEARNERS["MAML, batch"]().double().train()
    step = MetaStep(compiled=CompiledSteps(patience=1))
    run(step, learner, [make_group(3, n_features=4, n_classes=3)])
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    later = [make_group(3, n_features=4, n_classes=3, seed=1)]
    torch.testing.assert_close(
        run(step, learner, later), run(MetaStep(), learner, later)
    )


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, X):
        Z = self.linear(X)
        return Z.tanh() if Z.sum() > 0 else Z.sigmoid()


def test_a_branch_on_data_is_not_compiled(make_group, caplog):
    learner = MAML(Branching().double(), 3, 0.2, 1, 1)
    learner.way = "loop"
    group = make_group(3, n_features=4, n_classes=3)
    with caplog.at_level(logging.INFO, "sk_meta"):
        found = run(MetaStep(compiled=CompiledSteps(patience=1)), learner, [group])
    assert "Not compiled" in caplog.text and "TORCH_LOGS" not in caplog.text
    torch.testing.assert_close(found, run(MetaStep(), learner, [group]))


@pytest.mark.slow
@pytest.mark.parametrize("n_inner_steps", [1, 3])
def test_compile_true_trains_as_before(n_inner_steps, caplog):
    caplog.set_level(logging.INFO, "sk_meta")
    tasks = make_sinusoids(20, random_state=0)
    scores = []
    for compiled in (False, True):
        net = TaskNet(
            module__hidden=(10,), max_epochs=3, batch_size=8, compile=compiled
        )
        meta = MAMLRegressor(net, n_inner_steps=n_inner_steps, random_state=0)
        meta.fit(tasks)
        assert pickle.loads(pickle.dumps(meta)).score(tasks) == meta.score(tasks)
        scores.append([row["train_loss"] for row in meta.history_])
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    found = meta.net_.meta_step_.compiled.functions.values()
    assert len(found) == 2 and None not in found


@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_bfloat16_is_close_and_parameters_stay_as_they_are(way, make_group):
    group = make_group(4, n_features=4, n_classes=3)
    group = group._replace(
        support=group.support._replace(X=group.support.X.float()),
        query=group.query._replace(X=group.query.X.float()),
    )
    learner = MAML(
        exact_normalization(MLP(4, 3, normalization="batch")), 3, 0.1, 2, 2
    ).train()
    learner.way = way
    exact = run(MetaStep(), learner, [group])
    learner.precision = torch.bfloat16
    rough = run(MetaStep(), learner, [group])
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in learner.parameters())
    assert not torch.equal(exact[1], rough[1])
    torch.testing.assert_close(rough[1], exact[1], rtol=0.05, atol=0.05)
    learner.eval()
    few = learner.adapt(
        group.support._replace(X=group.support.X[0], y=group.support.y[0])
    )
    assert few.parameters["layers.0.weight"].dtype == torch.float32


def test_parameters_of_the_net_reach_the_learner():
    tasks = make_blob_tasks(8, n_classes=2, random_state=0)
    net = TaskNet(max_epochs=1, precision="bfloat16", way="vmap", max_memory=0.1)
    meta = PrototypicalClassifier(net, random_state=0).fit(tasks)
    assert (meta.learner_.way, meta.learner_.why) == ("vmap", "asked for")
    assert meta.learner_.precision == torch.bfloat16
    assert deepcopy(meta).score(tasks) == meta.score(tasks)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"way": "fast"}, "'way' parameter of TaskNet must be.*Got 'fast'"),
        ({"precision": "half"}, "'precision' parameter.*bfloat16.*Got 'half'"),
        ({"max_memory": 0}, "'max_memory' parameter.*Got 0"),
        ({"max_memory": "2GB"}, "'max_memory' parameter.*Got '2GB'"),
        ({"compile": "yes"}, "'compile' parameter.*Got 'yes'"),
        ({"batch_size": 0}, "'batch_size' parameter.*Got 0"),
        ({"batch_size": 2.5}, "'batch_size' parameter.*Got 2.5"),
        ({"max_epochs": -1}, "'max_epochs' parameter.*Got -1"),
        ({"lr": -1.0}, "'lr' parameter.*Got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    tasks = make_blob_tasks(8, n_classes=2, random_state=0)
    with pytest.raises(ValueError, match=message):
        PrototypicalClassifier(TaskNet(**{"max_epochs": 1, **options})).fit(tasks)


def test_divergence_is_told():
    tasks = make_sinusoids(8, random_state=0)
    net = TaskNet(max_epochs=3, optimizer=torch.optim.SGD, lr=1e20)
    with pytest.warns(ConvergenceWarning, match="diverged.*Lower the net's lr"):
        MAMLRegressor(net, random_state=0).fit(tasks)


def test_a_size_is_compiled_when_it_comes_again(make_group, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    learner = LEARNERS["MAML"]().double().train()
    steps = CompiledSteps(patience=2, verbose=1)
    step = MetaStep(compiled=steps)
    assert steps.how() == "to be compiled"
    for n_tasks, compiled in ((3, 0), (4, 0), (3, 1), (3, 1), (4, 2)):
        run(step, learner, [make_group(n_tasks, n_features=4, n_classes=3)])
        assert len(steps.functions) == compiled
    assert capsys.readouterr().out.count("Compiling for") == 2
    assert steps.how() == "2 sizes compiled"


def test_peak_of_memory_is_counted():
    def chain(n):
        X = torch.zeros(1000)
        for _ in range(n):
            X = X + 1

    assert peak_bytes(chain, 3) == peak_bytes(chain, 30) == 8000
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(5)]) == 20000
