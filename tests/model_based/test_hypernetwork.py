"""Hypernetworks."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from sk_meta import (
    EpisodeSampler,
    HypernetworkClassifier,
    HypernetworkRegressor,
    MetaGridSearchCV,
    Task,
    TaskNet,
)
from sk_meta.learner import Support
from sk_meta.model_based.hypernetwork import ClassHypernetwork, TargetHypernetwork
from sk_meta.networks import MLP
from sk_meta.tasks import make_blob_tasks
from sk_meta.tasks.metadata import Description
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES = 16
METADATA = Description(None, np.array([1.0, 2.0]), np.array([0.5, 3.0]))
METHODS = {
    "local": lambda net: ClassHypernetwork(net, 4, 0, 8),
    "shared": lambda net: ClassHypernetwork(net, 4, 3, 8),
    "local, metadata": lambda net: ClassHypernetwork(net, 4, 0, 8, METADATA),
    "regression": lambda net: TargetHypernetwork(net, 4, 2, (5,), 8),
    "linear regression": lambda net: TargetHypernetwork(net, 4, 2, (), 8),
    "regression, metadata": lambda net: TargetHypernetwork(
        net, 4, 2, (5,), 8, METADATA
    ),
}


def make_learner(method, normalization=None):
    """In float64, away from any special point such as generators that start as 0."""
    net = MLP(N_FEATURES, 4, (6,), torch.nn.Tanh, normalization)
    learner = METHODS[method](net).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.eval()


def make_support(method, n=7, weighted=False):
    X = torch.randn(n, N_FEATURES).double()
    weight = 0.5 + torch.rand(n).double() if weighted else None
    metadata = torch.randn(2).double() if "metadata" in method else None
    if "regression" in method:
        return Support(X, torch.randn(n, 2).double(), weight, 0, metadata)
    return Support(X, torch.arange(n) % 3, weight, 3, metadata)


def take(support, rows):
    parts = (None if part is None else part[rows] for part in support[:3])
    return support._replace(**dict(zip(("X", "y", "weight"), parts, strict=True)))


def scores(learner, support, X):
    with torch.no_grad():
        found = learner.predict(learner.adapt(support), X)
    return torch.cat(found, 1) if len(found) == 2 else found


def make_batch(method, make_group):
    """Two sizes of task, one with weights; metadata where the method reads them."""
    kind = {"n_targets": 2} if "regression" in method else {"n_classes": 3}
    batch = [
        make_group(2, 6, 4, **kind, seed=1),
        make_group(3, 9, 5, **kind, weighted=True, seed=2),
    ]
    if "metadata" not in method:
        return batch
    return [
        group._replace(
            support=group.support._replace(
                metadata=torch.randn(len(group.positions), 2).double()
            )
        )
        for group in batch
    ]


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradient_matches_finite_differences(
    method, way, normalization, make_group
):
    learner = make_learner(method, normalization).train()
    batch = make_batch(method, make_group)
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_reaches_every_parameter(method, make_group):
    learner = make_learner(method).train()
    meta_gradient(learner, make_batch(method, make_group), "vmap")
    for name, parameter in learner.named_parameters():
        assert parameter.grad.norm() > 1e-8, name


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_rows(method):
    """Weight 0 is no row, weight 2 the row twice."""
    learner, support = make_learner(method), make_support(method)
    X, weight = torch.randn(4, N_FEATURES).double(), torch.ones(7).double()
    weight[2], weight[0] = 0, 2
    found = scores(learner, support._replace(weight=weight), X)
    repeated = take(support, torch.tensor([0, 0, 1, 3, 4, 5, 6]))
    torch.testing.assert_close(found, scores(learner, repeated, X))
    assert not torch.allclose(found, scores(learner, support, X))


@pytest.mark.parametrize("method", METHODS)
def test_rows_in_any_order_and_each_for_itself(method):
    learner, support = make_learner(method), make_support(method, weighted=True)
    X = torch.randn(5, N_FEATURES).double()
    expected = scores(learner, support, X)
    shuffled = take(support, torch.randperm(7))
    torch.testing.assert_close(scores(learner, shuffled, X), expected)
    alone = torch.cat([scores(learner, support, row[None]) for row in X])
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("method", METHODS)
def test_another_support_set_writes_other_weights(method):
    learner = make_learner(method)
    one, other = make_support(method), make_support(method)
    other = other._replace(metadata=one.metadata)
    for a, b in zip(learner.adapt(one), learner.adapt(other), strict=True):
        assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("method", ["local, metadata", "regression, metadata"])
def test_metadata_alone_write_other_weights(method):
    learner, support = make_learner(method), make_support(method)
    other = support._replace(metadata=support.metadata + 1)
    for a, b in zip(learner.adapt(support), learner.adapt(other), strict=True):
        assert (a - b).abs().max() > 1e-6


def test_permuting_local_classes_permutes_the_answer():
    learner, support = make_learner("local"), make_support("local")
    X, output = torch.randn(5, N_FEATURES).double(), torch.tensor([2, 0, 1])
    expected = scores(learner, support, X)
    found = scores(learner, support._replace(y=output[support.y]), X)
    torch.testing.assert_close(found[:, output], expected)


def test_an_absent_class_is_shut_out_where_local_and_has_a_prior_where_shared():
    X = torch.randn(5, N_FEATURES).double()
    for method, shut in (("local", True), ("shared", False)):
        support = make_support(method)
        present = take(support, support.y != 1)
        found = scores(make_learner(method), present, X).softmax(1)[:, 1]
        assert bool((found < 1e-12).all()) == shut


def test_the_classifier_starts_as_the_nearest_class_mean():
    learner = METHODS["local"](MLP(N_FEATURES, 4, (6,))).double().eval()
    support, X = make_support("local"), torch.randn(5, N_FEATURES).double()
    with torch.no_grad():
        Z = learner.module(support.X)
        means = torch.stack([Z[support.y == c].mean(0) for c in range(3)])
        expected = (-(torch.cdist(learner.module(X), means) ** 2)).softmax(1)
    torch.testing.assert_close(scores(learner, support, X).softmax(1), expected)


def test_the_network_that_is_written_is_an_ordinary_one():
    """The state, put into torch's layers, predicts the same."""
    learner, support = make_learner("regression"), make_support("regression")
    layers = []
    with torch.no_grad():
        for matrix in learner.adapt(support):
            layer = torch.nn.Linear(matrix.shape[1] - 1, matrix.shape[0]).double()
            layer.weight.copy_(matrix[:, :-1])
            layer.bias.copy_(matrix[:, -1])
            layers += [layer, torch.nn.ReLU()]
        expected = torch.nn.Sequential(*layers[:-1])(learner.module(support.X))
    found = scores(learner, support, support.X)
    torch.testing.assert_close(found[:, :2], expected[:, :2])


@pytest.fixture
def described():
    """Tasks whose slope cannot be seen in X and y of one row, but in the metadata."""
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(64):
        slope = rng.normal()
        X = rng.normal(size=(12, 1))
        metadata = {"slope": 1000 * slope, "constant": 7.0}
        tasks.append(Task(X, slope * X[:, 0], support=[0], metadata=metadata))
    return tasks


def make_meta(kind=HypernetworkRegressor, max_epochs=1, **options):
    net = TaskNet(module__hidden=(16,), max_epochs=max_epochs)
    return kind(net, width=16, random_state=0, **options)


def test_metadata_help_where_they_say_more_than_the_rows(described):
    blind = make_meta(max_epochs=60).fit(described[:48])
    meta = make_meta(max_epochs=60, use_metadata=True).fit(described[:48])
    assert meta.score(described[48:]) > 0.6 > blind.score(described[48:])
    new = described[50]
    few_shot = meta.adapt(new.X_support, new.y_support, metadata=new.metadata)
    np.testing.assert_allclose(
        few_shot.predict(new.X_query), meta.predict([new])[0], rtol=1e-4, atol=1e-5
    )
    other = meta.adapt(
        new.X_support, new.y_support, metadata={"constant": 7.0, "slope": -2000.0}
    )
    assert not np.allclose(few_shot.predict(new.X_query), other.predict(new.X_query))


BAD = {
    "none": (None, "has no numeric metadata, .* found none. Pass"),
    "words": (["north"], "has no numeric metadata, .* found"),
    "another length": ({"slope": 1.0}, "has metadata named slope; tasks of .*"),
    "other names": ({"slope": 1, "size": 2}, "has metadata named size, slope; .*"),
    "no names": ([1.0, 2.0], "has metadata without names; .* constant, slope"),
    "not finite": ({"slope": 1.0, "constant": np.nan}, "has metadata with NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata(case, described):
    metadata, message = BAD[case]
    meta = make_meta(use_metadata=True).fit(described)
    odd = described[3]
    odd = Task(odd.X, odd.y, support=[0], metadata=metadata, name="odd")
    found = meta.predict(described)
    for call in (meta.fit, meta.partial_fit, meta.predict):
        with pytest.raises(ValueError, match=rf"Task 2 \('odd'\) {message}"):
            call([*described[:2], odd])
    with pytest.raises(ValueError, match=f"The support set {message}"):
        meta.adapt(odd.X_support, odd.y_support, metadata=metadata)
    for one, other in zip(found, meta.predict(described), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_order_of_named_metadata_does_not_matter(described):
    meta, new = make_meta(use_metadata=True).fit(described), described[0]
    found = [
        meta.adapt(new.X_support, new.y_support, metadata=dict(pairs))
        for pairs in (new.metadata.items(), reversed(new.metadata.items()))
    ]
    found = [few_shot.predict(new.X_query) for few_shot in found]
    np.testing.assert_array_equal(*found)


def test_the_odd_one_is_named_also_where_it_comes_first(described):
    odd = Task(described[0].X, described[0].y, support=[0], metadata=[1.0], name="odd")
    with pytest.raises(ValueError, match=r"Task 0 \('odd'\) has metadata without"):
        make_meta(use_metadata=True).fit([odd, *described[1:]])


def test_metadata_in_a_search_of_candidates_that_train_together(described):
    grid = {"net__lr": [1e-3, 1e-2, 1e-2]}
    meta = make_meta(max_epochs=20, use_metadata=True)
    scores = [
        search(meta, grid, cv=2).fit(described).cv_results_["mean_test_score"]
        for search in (MetaGridSearchCV, GridSearchCV)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_metadata_are_ignored_unless_asked_for(described):
    """Also where they differ in length, or are words."""
    mixed = [
        Task(t.X, t.y, support=[0], metadata=m)
        for t, m in zip(described[:3], (None, [1.0], "north"), strict=True)
    ]
    bare = [Task(t.X, t.y, support=[0]) for t in described[:3]]
    meta = make_meta().fit(bare)
    for one, other in zip(meta.predict(mixed), meta.predict(bare), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_episodes_have_no_metadata(rng):
    sampler = EpisodeSampler(
        rng.normal(size=(40, 3)), np.repeat(range(8), 5), 3, 1, 2, n_episodes=4
    )
    with pytest.raises(ValueError, match="no numeric metadata"):
        make_meta(HypernetworkClassifier, use_metadata=True).fit(sampler)


def test_more_classes_than_in_training():
    meta = make_meta(HypernetworkClassifier)
    meta.fit(make_blob_tasks(6, n_classes=3, random_state=0))
    new = make_blob_tasks(1, n_classes=6, random_state=1)[0]
    few_shot = meta.adapt(new.X_support, new.y_support)
    assert few_shot.predict_proba(new.X_query).shape[1] == 6


@pytest.mark.parametrize("widths", [(0,), (2.5,), ("8",)])
def test_bad_widths_of_the_network_that_is_written(widths, described):
    with pytest.raises(ValueError, match="task_hidden must hold widths"):
        make_meta(task_hidden=widths).fit(described)
