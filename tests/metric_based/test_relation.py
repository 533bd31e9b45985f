"""What makes relation networks what they are."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_meta import RelationClassifier, TaskNet
from sk_meta.learner import Query, Support
from sk_meta.metric_based.relation import Relations
from sk_meta.tasks import make_blob_tasks


def make_task(n_features=3):
    X, y = torch.randn(9, n_features).double(), torch.arange(9) % 3
    query = Query(torch.randn(5, n_features).double(), torch.arange(5) % 3)
    return Support(X, y, None, 3), query


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_the_metric_is_learned(loss):
    tasks = make_blob_tasks(60, n_classes=3, labels="local", random_state=0)
    net = TaskNet(module__hidden=(16,), max_epochs=0, lr=0.01)
    meta = RelationClassifier(net, loss=loss, relation_hidden=(16,), random_state=0)
    start = {k: v.clone() for k, v in meta.fit(tasks[:40]).learner_.named_parameters()}
    meta.set_params(net__max_epochs=15).fit(tasks[:40])
    for name, parameter in meta.learner_.relation.named_parameters():
        # A softmax does not depend on what all scores have in common.
        if (loss, name) != ("cross_entropy", "2.bias"):
            moved = (parameter - start[f"relation.{name}"]).abs().max()
            assert moved > 1e-2, f"{name} stays where it was"
    losses = meta.history_[:, "train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert meta.score(tasks[40:]) > 0.6


def test_squared_error_is_that_of_the_paper():
    """Equation 2, averaged over rows: between sigmoids of scores and 0 or 1."""
    support, query = make_task()
    learner = Relations(nn.Identity(), 3, (4,), "squared_error").double()
    scores = learner.predict(learner.adapt(support), query.X)
    relation = 1 / (1 + np.exp(-scores.detach().numpy()))
    expected = ((relation - np.eye(3)[query.y]) ** 2).sum() / 5
    assert learner.loss(scores, query, support).item() == pytest.approx(expected)


def test_it_can_be_the_distance_to_prototypes():
    """One layer that sums the squared differences: a special case."""
    support, query = make_task()
    learner = Relations(nn.Identity(), 3, (), "cross_entropy").double()
    with torch.no_grad():
        learner.relation[0].weight.copy_(torch.tensor([[0.0] * 6 + [-1.0] * 3]))
        learner.relation[0].bias.zero_()
    scores = learner.predict(learner.adapt(support), query.X)
    means = torch.stack([support.X[support.y == k].mean(0) for k in range(3)])
    torch.testing.assert_close(scores, -(torch.cdist(query.X, means) ** 2))


def test_no_fixed_distance():
    """A row and its mirror image about a prototype may score differently."""
    support, query = make_task()
    learner = Relations(nn.Identity(), 3, (8,), "cross_entropy").double()
    state = learner.adapt(support)
    mirrored = 2 * state.means[0] - query.X
    scores = [learner.predict(state, X)[:, 0] for X in (query.X, mirrored)]
    assert not torch.allclose(*scores)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "hinge"}, "'loss' parameter"),
        ({"relation_hidden": 8}, "'relation_hidden' parameter"),
        ({"relation_hidden": (8, 0)}, r"relation_hidden must be widths.* \(8, 0\)"),
        ({"relation_hidden": (0.5,)}, "relation_hidden must be widths"),
    ],
)
def test_errors(changed, message):
    with pytest.raises(ValueError, match=message):
        RelationClassifier(**changed).fit(make_blob_tasks(4, random_state=0))
