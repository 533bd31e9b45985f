"""What unlabelled support rows do, and what they must not do."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import kurtosis, skew
from sklearn.feature_selection import SelectKBest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_meta import (
    EpisodeSampler,
    MAMLClassifier,
    PrototypicalClassifier,
    SemiSupervisedPrototypicalClassifier,
    Task,
    TaskNet,
    TaskTransformer,
    adapt,
    evaluate,
)
from sk_meta.learner import Support
from sk_meta.metric_based.semi_supervised import SemiSupervisedPrototypes
from sk_meta.tasks import make_blob_tasks

REFINEMENTS = ("soft", "distractor", "masked")
NET = TaskNet(module__hidden=(8,), max_epochs=2)


def make_learner(refinement, n_refinements=1):
    """The row itself is the embedding; away from any special point."""
    learner = SemiSupervisedPrototypes(nn.Identity(), refinement, n_refinements)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.double().eval()


def make_support(n_free=7, weighted=True):
    """Three classes with two labelled rows each, then unlabelled ones."""
    X = torch.randn(6 + n_free, 3).double()
    y = torch.cat([torch.arange(6) % 3, torch.full((n_free,), -1)])
    weight = 0.5 + torch.rand(len(X)).double() if weighted else None
    return Support(X, y, weight, 3)


def make_table(n_classes=12, n_each=12, spread=0.35, seed=0):
    """Classes around random centres."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), n_each)
    centres = rng.normal(size=(n_classes, 4))
    return centres[y] + spread * rng.normal(size=(len(y), 4)), y


def make_tasks(n_tasks=8, support=True, seed=0):
    """Shared labels; 3 labelled support rows, 6 unlabelled, 6 query rows."""
    rng, tasks = np.random.default_rng(seed), []
    for i in range(n_tasks):
        y = np.arange(15) % 3
        X = rng.normal(size=(15, 4)) + 2 * y[:, None]
        labeled = (np.arange(15) < 3) | (np.arange(15) >= 9)
        mask = np.arange(15) < 9 if support else None
        tasks.append(Task(X, y, mask, labeled=labeled, name=f"task {i}"))
    return tasks


def mask_by_hand(learner, distances):
    """Equations 8 to 11 of the paper, for unweighted rows."""
    relative = distances / distances.mean(axis=0)
    statistics = [relative.min(0), relative.max(0), relative.var(0)]
    statistics += [skew(relative), kurtosis(relative)]
    with torch.no_grad():
        chosen = learner.threshold(torch.tensor(np.stack(statistics, axis=1))).numpy()
    return 1 / (1 + np.exp(chosen[:, 1] * (relative - chosen[:, 0])))


@pytest.mark.parametrize("n_refinements", [1, 3])
@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_refinement_is_that_of_the_paper(refinement, n_refinements):
    support = make_support(weighted=refinement != "masked")
    learner = make_learner(refinement, n_refinements)
    X, y = support.X.numpy(), support.y.numpy()
    weight = np.ones(len(X)) if support.weight is None else support.weight.numpy()
    member = weight[:6, None] * (y[:6, None] == np.arange(3))
    free, means = X[6:], (member.T @ X[:6]) / member.sum(axis=0)[:, None]
    for _ in range(n_refinements):
        distances = ((free[:, None] - means) ** 2).sum(axis=2)
        logits = -distances
        if refinement == "distractor":
            log_radius = learner.log_radius.item()
            squared = (free**2).sum(axis=1, keepdims=True)
            other = -squared / np.exp(log_radius) ** 2 - log_radius
            logits = np.hstack([logits, other])
        share = softmax(logits, axis=1)[:, :3] * weight[6:, None]
        if refinement == "masked":
            share = share * mask_by_hand(learner, distances)
        total = member.sum(axis=0) + share.sum(axis=0)
        means = (member.T @ X[:6] + share.T @ free) / total[:, None]
    found = learner.adapt(support).means.detach().numpy()
    # The variance is kept away from 0 where skewness and kurtosis divide by it.
    tolerance = 1e-4 if refinement == "masked" else 1e-10
    np.testing.assert_allclose(found, means, rtol=tolerance)


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_one_and_two_unlabelled_rows(refinement):
    """Statistics of distances without spread; at a prototype, without any distance."""
    learner = make_learner(refinement, 2)
    for n_free in (1, 2):
        support = make_support(n_free)
        X = support.X.clone()
        X[-1] = learner.adapt(support._replace(y=support.y.clamp_min(-1))).means[0]
        for rows in (support.X, X.detach()):
            learner.zero_grad()
            rows = rows.clone().requires_grad_()
            state = learner.adapt(support._replace(X=rows))
            state.means.sum().backward()
            assert state.means.isfinite().all() and rows.grad.isfinite().all()
            assert all(p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_without_unlabelled_rows_it_is_a_prototypical_classifier(refinement):
    """In training too, to the same bits."""
    tasks = make_blob_tasks(12, n_classes=3, random_state=0)
    plain = PrototypicalClassifier(NET, random_state=0).fit(tasks)
    meta = SemiSupervisedPrototypicalClassifier(
        NET, refinement=refinement, n_refinements=2, random_state=0
    )
    with pytest.warns(UserWarning, match=r"No task has an unlabelled .*n_unlabeled=5"):
        meta.fit(tasks)
    assert meta.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    found, expected = meta.predict_proba(tasks), plain.predict_proba(tasks)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_all_the_ways_to_say_unlabelled_agree(refinement):
    """A mask, a value, strings; tasks and adapt; weights, padding, pipelines."""
    tasks = make_tasks()
    value = [
        Task(t.X, np.where(t.labeled, t.y, -1), t.support, name=t.name) for t in tasks
    ]
    words = [
        Task(t.X, np.where(t.labeled, np.array(list("abc"))[t.y], "?"), t.support)
        for t in tasks
    ]
    meta = SemiSupervisedPrototypicalClassifier(
        NET, refinement=refinement, random_state=0
    ).fit(tasks)
    expected = meta.predict_proba(tasks)
    for given, unlabeled in ((value, -1), (words, "?")):
        other = SemiSupervisedPrototypicalClassifier(
            NET, refinement=refinement, unlabeled=unlabeled, random_state=0
        ).fit(given)
        assert unlabeled not in other.classes_
        for task, one, same in zip(
            given, other.predict_proba(given), expected, strict=True
        ):
            np.testing.assert_array_equal(one, same)
            few_shot = other.adapt(task.X_support, task.y_support)
            assert np.array_equal(few_shot.classes_, other.classes_)
            few_shot = pickle.loads(pickle.dumps(few_shot))
            proba = few_shot.predict_proba(task.X_query)
            np.testing.assert_allclose(proba, same, rtol=1e-4, atol=1e-6)
        assert given[0].labeled is None, "the task given is changed"
    ignoring = [Task(t.X[t.labeled], t.y[t.labeled], np.arange(3)) for t in tasks]
    assert not np.allclose(meta.predict_proba(ignoring)[0], expected[0])


def test_labels_local_to_the_task_leave_the_mark_alone(make_dataset):
    X, y = make_table()
    sampler = EpisodeSampler(X, y, 3, 2, 1, 50, n_unlabeled=2, n_distractors=1)
    meta = SemiSupervisedPrototypicalClassifier(NET, random_state=0).fit(sampler)
    dataset = meta._dataset(sampler, meta.schema_, "cpu")
    (group,) = dataset.batch(range(50), np.random.default_rng(0))
    labels = group.support.y.numpy()
    assert labels.shape == (50, 6 + 8)
    assert (labels[:, 6:] == -1).all() and labels[:, :6].min() == 0
    assert len({tuple(row) for row in labels[:, :6].tolist()}) > 3, "not at random"
    for row, query in zip(labels, group.query.y.tolist(), strict=True):
        assert sorted(query) == [0, 1, 2] == sorted(set(row[:6].tolist()))


def test_a_list_of_labels_and_a_number_becomes_strings():
    meta = SemiSupervisedPrototypicalClassifier(unlabeled=-1)
    with pytest.raises(ValueError, match="list of strings and numbers becomes"):
        meta.fit([Task(np.eye(4), ["a", -1, "b", "a"])])


def test_drawn_support_sets_take_all_unlabelled_rows():
    tasks = make_tasks(support=False)
    # With fewer unlabelled rows too, so that some are filled up.
    tasks += [
        Task(t.X[3 - i :], t.y[3 - i :], labeled=np.arange(12 + i) >= 3 + i)
        for i, t in enumerate(tasks[:4])
    ]
    net = TaskNet(module__hidden=(8,), max_epochs=2, batch_size=4)
    meta = SemiSupervisedPrototypicalClassifier(
        net, unlabeled=-1, support_size=1, random_state=0
    )
    for found in meta.fit(tasks).predict_tasks(tasks):
        labeled = found.task.labeled
        free = set(np.flatnonzero(~labeled).tolist())
        assert free == set(found.support[~labeled[found.support]].tolist())
        assert labeled[found.query].all()
        assert sorted(found.task.y[found.support[labeled[found.support]]]) == [0, 1, 2]
        rows = np.concatenate([found.support, found.query])
        assert sorted(rows.tolist()) == list(range(len(labeled)))
        y = np.where(labeled, found.task.y, -1)
        few_shot = meta.adapt(found.task.X[found.support], y[found.support])
        proba = few_shot.predict_proba(found.task.X[found.query])
        np.testing.assert_allclose(proba, found.values, rtol=1e-4, atol=1e-6)
    dataset = meta._dataset(tasks, meta.schema_, "cpu")
    groups = list(dataset.batch(range(12), np.random.default_rng(0), pad=100))
    weights = [group.support.weight for group in groups]
    assert any(w is not None and (w == 0).any() for w in weights), "none is filled up"
    for group, weight in zip(groups, weights, strict=True):
        y = group.support.y
        real = y < 5 if weight is None else weight > 0
        expected = [int((~tasks[i].labeled).sum()) for i in group.positions]
        assert ((y < 0) & real).sum(1).tolist() == expected
        assert (((y >= 0) & real).sum(1) == 3).all() and (group.query.y >= 0).all()


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("scope", ["pooled", "support"])
def test_transformers_come_first(refinement, scope):
    tasks = make_tasks()
    value = [Task(t.X, np.where(t.labeled, t.y, -1), t.support) for t in tasks]
    pipe = make_pipeline(
        TaskTransformer(StandardScaler(), scope=scope),
        SemiSupervisedPrototypicalClassifier(
            NET, refinement=refinement, unlabeled=-1, random_state=0
        ),
    ).fit(value)
    for task, expected in zip(value, pipe.predict_proba(value), strict=True):
        few_shot = adapt(pipe, task.X_support, task.y_support)
        found = few_shot.predict_proba(task.X_query)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    result = evaluate(pipe, value)
    assert result.baseline_scores.min() >= 0, "what has no prior ignores such rows"


def test_a_transformer_of_the_support_set_that_needs_labels_says_so():
    """It would take the unlabelled rows for a class."""
    tasks = make_tasks()
    meta = SemiSupervisedPrototypicalClassifier(NET, unlabeled=-1, random_state=0)
    step = TaskTransformer(SelectKBest(k=2), scope="support")
    with pytest.raises(ValueError, match="requires y"):
        make_pipeline(step, meta).fit(tasks)


def test_weights_of_unlabelled_rows():
    """0: as if it were not there; 2: as if it were there twice."""
    tasks = make_tasks()
    meta = SemiSupervisedPrototypicalClassifier(
        NET, refinement="masked", unlabeled=-1, random_state=0
    ).fit(tasks)
    task = tasks[0]
    X, y = task.X_support, np.where(task.labeled, task.y, -1)[:9]

    def proba(X, y, weight=None):
        return meta.adapt(X, y, sample_weight=weight).predict_proba(task.X_query)

    far = np.vstack([X, 100 * np.ones((1, 4))]), np.append(y, -1)
    without = proba(*far, np.append(np.ones(9), 0.0))
    np.testing.assert_allclose(without, proba(X, y), rtol=1e-4)
    assert not np.allclose(proba(*far, np.ones(10)), proba(X, y), rtol=1e-4)
    twice = proba(np.vstack([X, X[-1:]]), np.append(y, -1))
    weighted = proba(X, y, np.append(np.ones(8), 2.0))
    np.testing.assert_allclose(weighted, twice, rtol=1e-4)


def test_query_rows_are_no_unlabelled_rows():
    """The prediction for a row does not depend on those beside it."""
    tasks = make_tasks()
    meta = SemiSupervisedPrototypicalClassifier(NET, random_state=0).fit(tasks)
    moved = [
        Task(np.vstack([t.X[:10], 10 * t.X[10:]]), t.y, t.support, labeled=t.labeled)
        for t in tasks
    ]
    pairs = zip(meta.predict_proba(tasks), meta.predict_proba(moved), strict=True)
    for found, other in pairs:
        np.testing.assert_allclose(found[0], other[0], rtol=1e-5)
        assert not np.allclose(found[1:], other[1:])


def test_unlabelled_rows_help():
    """One labelled row a class, ten unlabelled ones: nearer to the class mean."""
    X, y = make_table(60, 20, spread=0.5)
    old, new = y < 40, y >= 40
    train = EpisodeSampler(X[old], y[old], 4, 1, 4, 100, n_unlabeled=10)
    net = TaskNet(module__hidden=(32,), max_epochs=5, lr=0.01)
    meta = SemiSupervisedPrototypicalClassifier(
        net, n_refinements=2, random_state=0
    ).fit(train)
    scores = [
        meta.score(EpisodeSampler(X[new], y[new], 4, 1, 4, 200, n_unlabeled=n))
        for n in (0, 10)
    ]
    assert scores[1] > scores[0] + 0.05


def test_masked_prototypes_learn_to_leave_distractors_alone():
    """Rows of other classes move them less than by plain soft k-means."""
    X, y = make_table(60, 20, spread=0.3)
    shift = {}
    for refinement in ("soft", "masked"):
        train = EpisodeSampler(
            X, y, 3, 1, 4, 400, n_unlabeled=5, n_distractors=3, random_state=1
        )
        net = TaskNet(module__hidden=(32,), max_epochs=5, lr=0.01)
        meta = SemiSupervisedPrototypicalClassifier(
            net, refinement=refinement, random_state=0
        ).fit(train)
        learner, distances = meta.learner_, []
        for task in train[:50]:
            own = task.labeled & task.support
            free = ~task.labeled
            truth = y[task.rows]
            far = np.flatnonzero(free)[~np.isin(truth[free], task.y[own])]
            near = np.setdiff1d(np.flatnonzero(task.support), far)
            labels = np.where(
                task.labeled, np.unique(task.y, return_inverse=True)[1], -1
            )
            means = []
            for rows in (near, np.concatenate([near, far])):
                support = Support(
                    torch.tensor(task.X[rows], dtype=torch.float32),
                    torch.tensor(labels[rows]),
                    None,
                    3,
                )
                with torch.no_grad():
                    means.append(learner.adapt(support).means)
            size = torch.cdist(means[0], means[0]).mean()
            distances.append(float((means[1] - means[0]).norm(dim=1).mean() / size))
        shift[refinement] = np.mean(distances)
    assert shift["masked"] < 0.5 * shift["soft"]


@pytest.mark.parametrize("labels", ["shared", "local"])
@pytest.mark.parametrize("meta", [PrototypicalClassifier(NET), MAMLClassifier(NET)])
def test_others_say_that_they_cannot_use_unlabelled_rows(meta, labels):
    tasks = make_tasks()
    for task in tasks:
        task.labels = labels
    with pytest.raises(ValueError, match=r"Task 0 \('task 0'\) .* semi-supervised"):
        meta.fit(tasks)
    sampler = EpisodeSampler(*make_table(), 3, 1, 2, 10, n_unlabeled=2)
    with pytest.raises(ValueError, match=r"6 unlabelled rows.* Pass n_unlabeled=0"):
        meta.fit(sampler)


def fitted(unlabeled=-1):
    return SemiSupervisedPrototypicalClassifier(
        NET, unlabeled=unlabeled, random_state=0
    ).fit(make_tasks())


def test_bad_support_sets():
    meta, X = fitted(), np.zeros((4, 4))
    with pytest.raises(ValueError, match="support set has no row with a known label"):
        meta.adapt(X, [-1, -1, -1, -1])
    with pytest.raises(ValueError, match=r"label .*7.*, which no training task had"):
        meta.adapt(X, [0, 1, 7, -1])
    with pytest.raises(ValueError, match=r"label .*-1.*, which no training task had"):
        fitted(unlabeled=None).adapt(X, [0, 1, 2, -1])


def test_bad_tasks():
    task = make_tasks()[0]
    hidden = Task(task.X, task.y, task.support, labeled=~task.support)
    with pytest.raises(ValueError, match="no labelled row in its support set"):
        fitted().fit([*make_tasks(), hidden])
    X, y = make_table()
    with pytest.raises(ValueError, match=r"class 3, the value of unlabelled rows"):
        fitted().set_params(unlabeled=3).fit(EpisodeSampler(X, y, 3, n_query=2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"refinement": "hard"}, "'refinement' parameter"),
        ({"n_refinements": 0}, "'n_refinements' parameter"),
        ({"unlabeled": 0.5}, "'unlabeled' parameter"),
    ],
)
def test_bad_parameters(changed, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedPrototypicalClassifier(**changed).fit(make_tasks())
