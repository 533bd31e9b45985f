"""What makes matching networks what they are."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from sk_meta import MatchingClassifier, TaskNet
from sk_meta.learner import Support
from sk_meta.metric_based.matching import Matching
from sk_meta.tasks import make_blob_tasks

WIDTH = 4


def make_learner(full_context=False, temperature=0.1):
    """The row itself is the embedding."""
    return Matching(nn.Identity(), WIDTH, temperature, full_context, 3).double().eval()


def make_support(n=12, n_classes=3):
    X = torch.randn(n, WIDTH).double()
    return Support(X, torch.arange(n) % n_classes, None, n_classes)


@torch.no_grad()
def scores(learner, support, X):
    return learner.predict(learner.adapt(support), X)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_scores_are_the_logs_of_attention(temperature):
    """Equations 1 and 2 of the paper, in numpy."""
    support, X = make_support(), torch.randn(5, WIDTH).double()
    weight = 0.5 + torch.rand(12).double()
    learner = make_learner(temperature=temperature)
    found = scores(learner, support._replace(weight=weight), X).numpy()

    def unit(rows):
        return rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)

    attention = weight.numpy() * np.exp(unit(X) @ unit(support.X).T / temperature)
    attention /= attention.sum(axis=1, keepdims=True)
    for k in range(3):
        mass = attention[:, support.y.numpy() == k].sum(axis=1)
        # The temperature was rounded to float32.
        np.testing.assert_allclose(np.exp(found[:, k]), mass, rtol=1e-5)


def test_at_a_low_temperature_the_nearest_row_decides():
    support, X = make_support(30), torch.randn(40, WIDTH).double()
    nearest = KNeighborsClassifier(1, metric="cosine").fit(support.X, support.y)
    found = scores(make_learner(temperature=1e-4), support, X).argmax(1)
    np.testing.assert_array_equal(found, nearest.predict(X))
    blurred = scores(make_learner(temperature=10.0), support, X).argmax(1)
    assert (blurred != found).any()


def test_full_context_embeddings_depend_on_the_support_set():
    support, X = make_support(), torch.randn(5, WIDTH).double()
    changed = support.X.clone()
    changed[-1] += 1.0
    other = support._replace(X=changed)
    for full_context in (False, True):
        learner = make_learner(full_context)
        states = learner.adapt(support), learner.adapt(other)
        kept = torch.equal(states[0].rows[:-1], states[1].rows[:-1])
        assert kept != full_context, "support rows"
    queries = [learner._of_query(X, state) for state in states]
    assert (queries[0] - queries[1]).norm(dim=1).min() > 1e-4
    assert not torch.allclose(queries[0], X)
    # Order apart: the same set gives the same embedding.
    order = torch.randperm(12)
    shuffled = support._replace(X=support.X[order], y=support.y[order])
    again = learner._of_query(X, learner.adapt(shuffled))
    torch.testing.assert_close(again, queries[0])


def test_each_read_of_the_support_set_counts():
    support, X = make_support(), torch.randn(5, WIDTH).double()
    learner, found = make_learner(True), []
    for learner.n_reads in (2, 3, 4):
        found.append(scores(learner, support, X))
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("full_context", [False, True])
def test_it_learns(full_context):
    tasks = make_blob_tasks(60, n_classes=3, labels="local", random_state=0)
    meta = MatchingClassifier(
        TaskNet(module__hidden=(16,), max_epochs=15, lr=0.01),
        full_context=full_context,
        random_state=0,
    ).fit(tasks[:40])
    losses = meta.history_[:, "train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert meta.learner_.log_temperature.item() != pytest.approx(np.log(0.1))
    assert meta.score(tasks[40:]) > 0.6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0}, "'temperature' parameter"),
        ({"n_reads": 1}, "'n_reads' parameter"),
        ({"full_context": "yes"}, "'full_context' parameter"),
    ],
)
def test_errors(changed, message):
    with pytest.raises(ValueError, match=message):
        MatchingClassifier(**changed).fit(make_blob_tasks(4, random_state=0))
