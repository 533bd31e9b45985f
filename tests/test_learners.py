"""What must hold for the learners, whatever they have learned."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from torch import nn

from sk_meta import ALPaCARegressor, MAMLClassifier, PrototypicalClassifier, TaskNet
from sk_meta.closed_form.alpaca import ALPaCA, BayesianDiscriminant
from sk_meta.engine.batching import task_losses
from sk_meta.gradient_based.maml import MAML
from sk_meta.learner import Gaussian, Query, RowLoss, Support, weighted_mean
from sk_meta.metric_based.prototypes import Prototypes
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks, make_linear_tasks

N_FEATURES = 4
CLASSIFIERS = {
    "MAML": lambda net: MAML(net, 3, 0.1, 3, 3),
    "first-order MAML": lambda net: MAML(net, 3, 0.1, 3, 3, True),
    "Prototypes": Prototypes,
    "shared BayesianDiscriminant": lambda net: BayesianDiscriminant(net, 3, 4, 3),
    "local BayesianDiscriminant": lambda net: BayesianDiscriminant(net, 3, 0, 1),
}
REGRESSORS = {
    "MAML regression": lambda net: MAML(net, 3, 0.1, 3, 3),
    "ALPaCA": lambda net: ALPaCA(net, 3, 4, 3),
    "ALPaCA without linear features": lambda net: ALPaCA(net, 3, 0, 3),
}
METHODS = {**CLASSIFIERS, **REGRESSORS}


def make_learner(method, normalization=None):
    learner = METHODS[method](MLP(N_FEATURES, 3, (6,), normalization=normalization))
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return learner.double().eval()


@pytest.fixture
def one_task(make_group):
    """(method) -> (Support, Query) of one weighted task."""

    def make(method):
        kind = {"n_classes": 3} if method in CLASSIFIERS else {"n_targets": 3}
        group = make_group(1, 9, 6, N_FEATURES, weighted=True, **kind)
        X, y, weight = (part[0] for part in group.support[:3])
        support = Support(X, y, weight, group.support.n_classes)
        return support, Query(*(part[0] for part in group.query))

    return make


def predict(learner, support, X):
    """Scores of rows, as one tensor."""
    with torch.no_grad():
        scores = learner.predict(learner.adapt(support), X)
    return torch.cat(scores, dim=1) if isinstance(scores, Gaussian) else scores


def take(support, rows):
    X, y, weight = (part[rows] for part in support[:3])
    return support._replace(X=X, y=y, weight=weight)


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_support_rows_does_not_matter(method, normalization, one_task):
    learner, (support, query) = make_learner(method, normalization), one_task(method)
    expected = predict(learner, support, query.X)
    shuffled = take(support, torch.randperm(9))
    torch.testing.assert_close(predict(learner, shuffled, query.X), expected)


@pytest.mark.parametrize("method", ["Prototypes", "local BayesianDiscriminant"])
def test_permuting_classes_permutes_the_answer(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    expected = predict(learner, support, query.X)
    order = torch.tensor([2, 0, 1])
    relabelled = support._replace(y=order[support.y])
    found = predict(learner, relabelled, query.X)[:, order]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, found[:, order])


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("method", METHODS)
def test_permuting_tasks_permutes_their_losses(method, way, make_group):
    kind = {"n_classes": 3} if method in CLASSIFIERS else {"n_targets": 3}
    group = make_group(4, 6, 5, N_FEATURES, weighted=True, **kind)
    learner = make_learner(method, "batch").train()
    learner.way = way
    losses, _ = task_losses(learner, [group])
    order = torch.tensor([2, 0, 3, 1])
    X, y, weight = (part[order] for part in group.support[:3])
    permuted = group._replace(
        support=group.support._replace(X=X, y=y, weight=weight),
        query=Query(*(part[order] for part in group.query)),
    )
    torch.testing.assert_close(task_losses(learner, [permuted])[0], losses[order])
    assert losses.unique().numel() == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_zero_changes_nothing(method, one_task):
    learner, (support, query) = make_learner(method), one_task(method)
    more = support._replace(
        X=torch.cat([support.X, 100 * torch.ones(1, N_FEATURES).double()]),
        y=torch.cat([support.y, support.y[:1]]),
        weight=torch.cat([support.weight, torch.zeros(1).double()]),
    )
    expected = predict(learner, support, query.X)
    torch.testing.assert_close(predict(learner, more, query.X), expected)
    scores = learner.predict(learner.adapt(support), query.X)
    weight = query.weight * (torch.arange(6) > 0)
    rest = Query(*(part[1:] for part in query))
    torch.testing.assert_close(
        learner.loss(scores, query._replace(weight=weight), support),
        learner.loss(rows_of(scores, slice(1, None)), rest, support),
    )


def rows_of(scores, rows):
    """Rows of scores of any type."""
    if isinstance(scores, Gaussian):
        return Gaussian(scores.mean[rows], scores.variance[rows])
    return scores[rows]


@pytest.mark.parametrize("method", METHODS)
def test_weights_act_like_repeated_rows(method, one_task):
    """A row of weight 2 is two rows; a network without batch statistics."""
    learner, (support, query) = make_learner(method), one_task(method)
    twice = support._replace(weight=1.0 + (torch.arange(9) < 4).double())
    repeated = take(support, torch.tensor([0, 1, 2, 3, *range(9)]))
    repeated = repeated._replace(weight=None)
    torch.testing.assert_close(
        predict(learner, twice, query.X), predict(learner, repeated, query.X)
    )
    unweighted = support._replace(weight=None)
    equal = support._replace(weight=torch.ones(9).double())
    torch.testing.assert_close(
        predict(learner, equal, query.X), predict(learner, unweighted, query.X)
    )
    assert not torch.allclose(
        predict(learner, equal, query.X), predict(learner, twice, query.X)
    )


def test_a_class_whose_rows_weigh_nothing_counts_as_absent(one_task):
    """In the loss of prototypes, as if its rows were not there."""
    learner, (support, query) = make_learner("Prototypes"), one_task("Prototypes")
    without = support._replace(weight=support.weight * (support.y != 2))
    rest = take(support, support.y != 2)
    losses = [
        learner.loss(learner.predict(learner.adapt(given), query.X), query, given)
        for given in (without, rest)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("method", ["MAML", "MAML regression"])
def test_more_inner_steps_lower_the_support_loss(method, first_order, one_task):
    support, _ = one_task(method)
    network = MLP(N_FEATURES, 3, (6,), nn.Tanh).double()
    losses = []
    for n_steps in (1, 2, 4, 8, 16):
        learner = MAML(network, 3, 0.05, 1, n_steps, first_order).eval()
        scores = learner.predict(learner.adapt(support), support.X)
        losses.append(weighted_mean(RowLoss()(scores, support.y), support.weight))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_training_and_evaluation_take_their_own_number_of_steps(one_task):
    support, query = one_task("MAML")
    network = MLP(N_FEATURES, 3, (6,)).double()
    both = MAML(network, 3, 0.1, 2, 5)
    for training, n_steps in ((True, 2), (False, 5)):
        expected = predict(MAML(network, 3, 0.1, n_steps, n_steps), support, query.X)
        torch.testing.assert_close(
            predict(both.train(training), support, query.X), expected
        )


@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_does_not_depend_on_other_query_rows(
    method, normalization, one_task
):
    learner, (support, query) = make_learner(method, normalization), one_task(method)
    together = predict(learner, support, query.X)
    alone = [predict(learner, support, row) for row in query.X[:, None]]
    torch.testing.assert_close(torch.cat(alone), together)


def test_transductive_maml_looks_at_other_query_rows(one_task):
    support, query = one_task("MAML")
    network = MLP(N_FEATURES, 3, (6,), normalization="batch").double()
    learner = MAML(network, 3, 0.1, 1, 1, transductive=True)
    together = predict(learner, support, query.X)
    assert not torch.allclose(predict(learner, support, query.X[:3]), together[:3])
    inductive = predict(MAML(network, 3, 0.1, 1, 1), support, query.X)
    assert not torch.allclose(inductive, together)


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_scores_of_absent_classes(method, one_task):
    """A class without support rows: shut out, or left to its prior."""
    learner, (support, query) = make_learner(method), one_task(method)
    scores = predict(learner, take(support, support.y != 2), query.X)
    share = scores.softmax(1)[:, 2]
    assert scores.isfinite().all()
    if method == "Prototypes":
        assert (share == 0).all()
    else:
        assert (share > 0).all()


def test_maml_shuts_out_outputs_beyond_the_classes_of_a_task(one_task):
    learner, (support, query) = make_learner("MAML"), one_task("MAML")
    two = take(support, support.y != 2)._replace(n_classes=2)
    assert (predict(learner, two, query.X).softmax(1)[:, 2] == 0).all()


def prior_of(learner):
    """Mean (p, n_targets) and covariance (p, p) of the weights."""
    factor = learner.prior_log_scale.exp().diag() + learner.prior_correlation.tril(-1)
    covariance = (factor @ factor.T).detach().numpy()
    return learner.prior_mean.detach().numpy(), covariance


def set_prior(learner, mean, covariance):
    factor = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        learner.prior_mean.copy_(mean)
        learner.prior_log_scale.copy_(factor.diag().log())
        learner.prior_correlation.copy_(factor)


@pytest.mark.parametrize("n_rows", [1, 4, 9])
def test_alpaca_is_bayesian_linear_regression(n_rows, one_task):
    learner, (support, query) = make_learner("ALPaCA"), one_task("ALPaCA")
    support = take(support, slice(n_rows))
    with torch.no_grad():
        state = learner.adapt(support)
        mean, variance = learner.predict(state, query.X)
        Z, Z_query = (learner.embed(X).numpy() for X in (support.X, query.X))
        noise = learner.noise().numpy()
    prior_mean, prior = prior_of(learner)
    y, weight = support.y.numpy(), support.weight.numpy()
    for j in range(3):
        covariance = np.linalg.inv(
            np.linalg.inv(prior) + Z.T @ (weight[:, None] * Z) / noise[j]
        )
        weighted = np.linalg.solve(prior, prior_mean[:, j])
        expected = covariance @ (weighted + Z.T @ (weight * y[:, j]) / noise[j])
        spread = np.einsum("ni,ij,nj->n", Z_query, covariance, Z_query)
        for found, right in (
            (state.covariance[j], covariance),
            (state.mean[:, j], expected),
            (mean[:, j], Z_query @ expected),
            (variance[:, j], spread + noise[j]),
        ):
            np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-9)


class Nothing(nn.Module):
    """A network that says nothing: only linear features are left."""

    def forward(self, X):
        return X[:, :1] * 0


def test_alpaca_with_linear_features_is_a_gaussian_process(rng):
    """With the dot-product kernel of its prior."""
    scale, intercept, noise = 0.7, 1.3, 0.2
    learner = ALPaCA(Nothing(), 1, 2, 1).double().eval()
    variances = scale * torch.tensor([1.0, 1.0, 1.0, intercept**2])
    set_prior(learner, torch.zeros(4, 1), variances.diag())
    with torch.no_grad():
        learner.log_noise_std.fill_(0.5 * np.log(noise - learner.least_noise))
    X, y, X_query = rng.normal(size=(8, 2)), rng.normal(size=8), rng.normal(size=(5, 2))
    kernel = ConstantKernel(scale, "fixed") * DotProduct(intercept, "fixed")
    process = GaussianProcessRegressor(kernel, alpha=noise).fit(X, y)
    mean, std = process.predict(X_query, return_std=True)
    support = Support(torch.from_numpy(X), torch.from_numpy(y)[:, None])
    with torch.no_grad():
        found = learner.predict(learner.adapt(support), torch.from_numpy(X_query))
    np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance[:, 0], std**2 + noise, rtol=1e-5)


def test_updating_at_once_and_row_by_row_agree(one_task):
    """The posterior of some rows is the prior of the rest."""
    support, _ = one_task("ALPaCA")
    support = support._replace(y=support.y[:, :1])
    learner = ALPaCA(MLP(N_FEATURES, 3, (6,)), 3, N_FEATURES, 1).double()
    with torch.no_grad():
        expected = learner.adapt(support)
        first = learner.adapt(take(support, slice(5)))
        set_prior(learner, first.mean, first.covariance[0])
        found = learner.adapt(take(support, slice(5, 9)))
    torch.testing.assert_close(found, expected)


def test_discriminant_is_the_conjugate_update_of_each_class(one_task):
    method = "local BayesianDiscriminant"
    learner, (support, query) = make_learner(method), one_task(method)
    scores = predict(learner, support, query.X).softmax(1).numpy()
    with torch.no_grad():
        Z, Z_query = learner.embed(support.X).numpy(), learner.embed(query.X).numpy()
    prior_mean, prior, noise, count = (
        parameter.detach().numpy()
        for parameter in (
            learner.prior_mean,
            learner.log_prior_variance.exp(),
            learner.log_noise.exp(),
            learner.log_count.exp(),
        )
    )
    y, weight = support.y.numpy(), support.weight.numpy()
    expected = np.empty_like(scores)
    for k in range(3):
        w = weight[y == k]
        variance = 1 / (1 / prior + w.sum() / noise)
        mean = variance * (prior_mean[0] / prior + w @ Z[y == k] / noise)
        total = noise + variance
        density = np.exp(-((Z_query - mean) ** 2) / (2 * total)) / np.sqrt(total)
        expected[:, k] = density.prod(axis=1) * (count[0] + w.sum())
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-8)


def test_variance_grows_away_from_the_support_and_shrinks_with_rows(one_task):
    learner, (support, _) = make_learner("ALPaCA"), one_task("ALPaCA")
    centre = support.X.mean(0)
    line = centre + torch.tensor([[0.0], [5.0], [50.0]]) * torch.ones(N_FEATURES)
    with torch.no_grad():
        along = learner.predict(learner.adapt(support), line).variance[:, 0]
        by_rows = torch.stack(
            [
                learner.predict(learner.adapt(take(support, slice(n))), line).variance
                for n in range(1, 10)
            ]
        )
    assert (along.diff() > 0).all()
    assert (by_rows.diff(dim=0) <= 1e-12).all()
    assert (by_rows[-1] < by_rows[0]).all()
    assert (by_rows >= learner.noise()).all()


def test_trained_alpaca_approaches_the_best_predictor():
    """Bayesian regression with the true prior, which no learner can beat."""
    prior = {"n_features": 3, "mean": (1.0, -1.0, 0.5), "covariance": 0.3, "noise": 0.5}
    tasks = make_linear_tasks(500, n_support=4, random_state=0, **prior)
    new = make_linear_tasks(300, n_support=4, random_state=1, **prior)
    net = TaskNet(MLP, module__hidden=(4,), lr=0.03, max_epochs=25, batch_size=32)
    meta = ALPaCARegressor(net, random_state=0).fit(tasks)
    errors = {"best": [], "learned": [], "untrained": []}
    mean, covariance = np.array(prior["mean"]), 0.3 * np.eye(3)
    untrained = ALPaCARegressor(net.set_params(lr=0.0), random_state=0).fit(tasks[:8])
    guesses = {"learned": meta.predict(new), "untrained": untrained.predict(new)}
    for i, task in enumerate(new):
        gram = task.X_support @ covariance @ task.X_support.T + 0.25 * np.eye(4)
        residual = task.y_support - task.X_support @ mean
        weights = mean + covariance @ task.X_support.T @ np.linalg.solve(gram, residual)
        guess = {"best": task.X_query @ weights}
        guess |= {name: found[i] for name, found in guesses.items()}
        for name, y in guess.items():
            errors[name].append(np.mean((y - task.y_query) ** 2))
    best, learned, untrained = (np.mean(errors[name]) for name in errors)
    assert best < learned < 1.06 * best
    assert untrained > 1.2 * best


@pytest.mark.parametrize(
    ("scores", "y"),
    [
        (torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])),
        (torch.randn(5, 2), torch.randn(5, 2)),
        (Gaussian(torch.randn(5, 2), torch.rand(5, 2) + 0.1), torch.randn(5, 2)),
    ],
)
def test_row_loss(scores, y):
    found = RowLoss()(scores, y)
    if isinstance(scores, Gaussian):
        normal = torch.distributions.Normal(scores.mean, scores.variance.sqrt())
        expected = -normal.log_prob(y).mean(1)
    elif y.is_floating_point():
        expected = ((scores - y) ** 2).mean(1)
    else:
        expected = -scores.log_softmax(1)[torch.arange(5), y]
    torch.testing.assert_close(found, expected)


def test_weighted_mean():
    values, weight = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 2.0])
    assert weighted_mean(values, None) == 3.0
    assert weighted_mean(values, weight) == 3.75
    assert weighted_mean(values, 0 * weight) == 0.0


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_running_statistics_move_in_training_alone(way, make_group):
    learner = make_learner("Prototypes", "batch").train()
    learner.way = way
    (norm,) = learner.norms
    norm.momentum = 1.0
    group = make_group(4, 6, 5, N_FEATURES, n_classes=3)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    _, seen = task_losses(learner, [group])
    with torch.no_grad():
        task_losses(learner.eval(), [group], training=False)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    learner.update_running(seen)
    rows = torch.cat([group.support.X, group.query.X], dim=1).flatten(0, 1)
    Z = learner.module.layers[0](rows).detach()
    torch.testing.assert_close(norm.running_mean, Z.mean(0))
    torch.testing.assert_close(norm.running_var, Z.var(0, correction=0))


@pytest.mark.parametrize("Meta", [PrototypicalClassifier, MAMLClassifier])
def test_fitted_statistics_stay_as_they_are(Meta):
    tasks = make_blob_tasks(6, n_classes=3, n_support=2, n_query=4, random_state=0)
    net = TaskNet(MLP, module__normalization="batch", max_epochs=2)
    meta = Meta(net, random_state=0).fit(tasks)
    before = {k: v.clone() for k, v in meta.learner_.state_dict().items()}
    meta.score(tasks)
    meta.adapt(tasks[0].X_support, tasks[0].y_support).predict(tasks[0].X_query)
    moved = [k for k, v in meta.learner_.state_dict().items() if not v.equal(before[k])]
    assert moved == []
    running = before["module.layers.1.running_mean"]
    assert running.any() == (Meta is PrototypicalClassifier)


class TwiceNormalised(nn.Module):
    """One batch normalisation, used at two places."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.first = nn.Linear(n_features, n_features)
        self.norm = nn.BatchNorm1d(n_features)
        self.last = nn.Linear(n_features, n_outputs)

    def forward(self, X):
        return self.last(torch.tanh(self.norm(self.first(self.norm(X)))))


def test_a_layer_used_twice_keeps_the_statistics_of_each_use():
    module = exact_normalization(TwiceNormalised(3, 2))
    learner = MAML(module, 2, 0.1, 1, 1).eval()
    X, y = torch.randn(8, 3), torch.arange(8) % 2
    state = learner.adapt(Support(X, y, n_classes=2))
    expected, _ = learner.call(X, state.parameters, "batch")
    torch.testing.assert_close(learner.predict(state, X), expected)


def test_frozen_parameters_are_not_adapted():
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    learner = MAML(module, 2, 0.1, 1, 1).eval()
    state = learner.adapt(Support(torch.randn(4, 3), torch.arange(4) % 2, n_classes=2))
    assert list(state.parameters) == ["bias"]


def test_embedding_keeps_running_statistics_of_any_batch_norm():
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)
    )
    learner = Prototypes(exact_normalization(module)).eval()
    X = torch.randn(6, 3)
    torch.testing.assert_close(learner.embed(X)[:1], learner.embed(X[:1]))
