"""What a student is compared with: teachers, and how far from them it is; and how."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from sk_meta import (
    ALPaCARegressor,
    JointClassifier,
    MAMLClassifier,
    MAMLRegressor,
    PrototypicalClassifier,
    Task,
    TaskNet,
)
from sk_meta.compression.teaching import Teacher, divergence, divergence_of_targets
from sk_meta.learner import Gaussian
from sk_meta.tasks import make_sinusoids
from tests.compression.test_distill import blobs, distilled, make_net, weights


def test_divergence_is_that_of_distributions():
    logits, other = torch.randn(2, 7, 4).double()
    for temperature in (1.0, 3.0):
        p, q = (
            torch.distributions.Categorical(logits=x / temperature)
            for x in (logits, other)
        )
        expected = temperature**2 * torch.distributions.kl_divergence(p, q)
        torch.testing.assert_close(divergence([logits], other, temperature), expected)
    equal = divergence([logits], logits + 5.0, 2.0)
    torch.testing.assert_close(equal, torch.zeros(7).double())


def test_gradient_of_divergence_keeps_its_size_at_high_temperatures():
    """It goes to that of the squared distance of centred logits, over the classes."""
    logits, other = torch.randn(2, 1, 4).double()
    other.requires_grad_()
    centred = (other - other.mean()) - (logits - logits.mean())
    (found,) = torch.autograd.grad(divergence([logits], other, 1e4).sum(), other)
    torch.testing.assert_close(found, centred.detach() / 4, rtol=1e-3, atol=1e-4)


def test_probabilities_of_teachers_are_averaged():
    first, second, other = torch.randn(3, 7, 4).double()
    mean = (first.softmax(1) + second.softmax(1)) / 2
    expected = divergence([mean.log()], other, 1.0)
    torch.testing.assert_close(divergence([first, second], other, 1.0), expected)


def test_classes_that_the_student_shuts_out_are_left_out():
    logits, other = torch.randn(2, 7, 4).double()
    other[:, 2] = -1e9
    kept = [0, 1, 3]
    expected = divergence([logits[:, kept]], other[:, kept], 2.0)
    torch.testing.assert_close(divergence([logits], other, 2.0), expected)


def test_divergence_of_normal_distributions():
    mean, other = torch.randn(2, 7, 2).double()
    v, w = torch.rand(2, 7, 2).double() + 0.1
    p, q = (
        torch.distributions.Normal(mean, v**0.5),
        torch.distributions.Normal(other, w**0.5),
    )
    expected = torch.distributions.kl_divergence(p, q).mean(1)
    found = divergence_of_targets([Gaussian(mean, v)], Gaussian(other, w))
    torch.testing.assert_close(found, expected)
    squared = ((mean - other) ** 2).mean(1)
    for taught, scores in (
        (mean, other),
        (Gaussian(mean, v), other),
        (mean, Gaussian(other, w)),
    ):
        torch.testing.assert_close(divergence_of_targets([taught], scores), squared)


def test_teachers_of_targets_are_a_mixture():
    """Mean and variance of what is drawn from either."""
    mean, v = torch.randn(2, 7, 2).double(), torch.rand(2, 7, 2).double() + 0.1
    mixed = Gaussian(mean.mean(0), v.mean(0) + mean.var(0, correction=0))
    other = Gaussian(torch.randn(7, 2).double(), v[0])
    taught = [Gaussian(*pair) for pair in zip(mean, v, strict=True)]
    torch.testing.assert_close(
        divergence_of_targets(taught, other), divergence_of_targets([mixed], other)
    )


def test_a_teacher_speaks_of_the_students_targets(make_dataset):
    """Which have another mean and scale."""
    meta = ALPaCARegressor(make_net(), random_state=0)
    meta.fit(make_sinusoids(9, random_state=0))
    tasks = [
        Task(task.X, 3 * task.y - 7, task.support)
        for task in make_sinusoids(3, random_state=1)
    ]
    data = make_dataset(tasks, classification=False)
    teacher = Teacher(deepcopy(meta), data.schema)
    for i, task in enumerate(tasks):
        (group,) = data.batch([i])
        support = group.support._replace(X=group.support.X[0], y=group.support.y[0])
        mean, variance = (part.numpy() for part in teacher(support, group.query.X[0]))
        (expected,), (std,) = meta.predict([task], return_std=True)
        scale, shift = data.schema.target_scale, data.schema.target_mean
        np.testing.assert_allclose(mean[:, 0] * scale + shift, expected, rtol=1e-3)
        np.testing.assert_allclose(np.sqrt(variance[:, 0]) * scale, std, rtol=1e-3)


def test_a_teacher_speaks_of_the_students_classes(make_dataset):
    """Which are some of its own: the others are left out."""
    tasks = blobs(9, 4, "shared")
    meta = MAMLClassifier(make_net(), random_state=0).fit(tasks)
    few = [
        Task(task.X[keep], task.y[keep], task.support[keep])
        for task in tasks
        for keep in [task.y != meta.classes_[1]]
    ]
    data = make_dataset(few)
    (group,) = data.batch([0])
    X, y = group.support.X[0], group.support.y[0]
    teacher = Teacher(deepcopy(meta), data.schema)
    found = teacher(group.support._replace(X=X, y=y), group.query.X[0]).softmax(1)
    (expected,) = meta.predict_proba(few[:1])
    expected = expected[:, [0, 2, 3]]
    expected = expected / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def make_teacher(kind, classification):
    if not classification:
        return ALPaCARegressor(make_net(8), random_state=0)
    if kind == "rows mixed":  # by batch statistics: filled-up tasks would go wrong
        net = make_net(8, module__normalization="batch")
        return MAMLClassifier(net, inner_lr=0.2, random_state=0)
    return PrototypicalClassifier(make_net(8), random_state=0)


@pytest.mark.parametrize("way", ["auto", "vmap"])
@pytest.mark.parametrize(
    "kind, student, match",
    [
        ("plain", None, "outputs"),
        ("plain", None, "features"),
        ("rows mixed", PrototypicalClassifier(), "outputs"),
        ("plain", MAMLClassifier(n_inner_steps=2, multi_step_epochs=2), "outputs"),
        ("plain", JointClassifier(), "outputs"),
        ("regression", None, "outputs"),
        ("regression", MAMLRegressor(), "outputs"),
    ],
)
def test_together_and_one_by_one_train_alike(
    kind, student, match, way, make_ragged_tasks
):
    classification = kind != "regression"
    tasks, found = make_ragged_tasks(classification), []
    teacher = make_teacher(kind, classification).fit(tasks)
    tasks = [
        Task(t.X, t.y, t.support, sample_weight=t.sample_weight, labeled=labeled)
        for i, t in enumerate(tasks)
        for labeled in [t.support | (np.arange(len(t)) % 3 > 0) if i % 2 else None]
    ]
    for each in (way, "loop"):
        net = make_net(way=each, optimizer=torch.optim.SGD, batch_size=5)
        small = distilled(teacher, net, student=student, match=match, mix=0.5)
        found.append(small.fit(tasks))
        assert (small.net_.module_.way == "loop") == (each == "loop")
    for name, value in weights(found[0]).items():
        torch.testing.assert_close(value, weights(found[1])[name], rtol=1e-3, atol=1e-4)


def test_images_in_lower_precision():
    rng = np.random.default_rng(0)
    tasks = [
        Task(rng.random((12, 1, 8, 8)), np.arange(12) % 2, np.arange(6), "local")
        for _ in range(3)
    ]
    big = PrototypicalClassifier(TaskNet(max_epochs=1), random_state=0).fit(tasks)
    net = TaskNet(module__n_filters=4, max_epochs=1, precision="bfloat16")
    small = distilled(big, net).fit(tasks)
    n_big, n_small = (
        sum(p.numel() for p in m.learner_.parameters()) for m in (big, small)
    )
    assert n_small < n_big / 100
    assert np.isfinite(small.history_[-1]["train_loss"])


def test_teachers_share_type_and_copies_with_the_learner():
    """But are no part of what is trained and saved."""
    big, seen = PrototypicalClassifier(make_net(32)).fit(blobs(8)), []

    class Net(TaskNet):
        def on_epoch_begin(self, net, **kwargs):
            super().on_epoch_begin(net, **kwargs)
            learner = net.module_
            teacher = learner.teachers[0].learner
            seen.append((len(learner.state_dict()), len(list(learner.parameters()))))
            twin = deepcopy(learner).double()
            inside = next(twin.teachers[0].learner.parameters())
            assert inside.dtype == torch.float64
            assert next(teacher.parameters()).dtype == torch.float32
            assert not teacher.training and learner.train().training
            assert not teacher.training

    net = Net(module__hidden=(6,), max_epochs=1)
    small = distilled(big, net).fit(blobs(8))
    assert seen == [(len(weights(small)), len(list(small.learner_.parameters())))]
