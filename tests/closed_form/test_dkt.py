"""Deep kernels: sklearn's Gaussian process on the embedded rows, learned over tasks."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern
from torch import nn

from sk_meta import DKTClassifier, DKTRegressor, TaskNet
from sk_meta.checks import meta_estimator_checks
from sk_meta.closed_form.dkt import DKT, KERNELS, DKTOfClasses
from sk_meta.engine.batching import disagreement, task_losses
from sk_meta.learner import Gaussian, Query, RowLoss, Support, weighted_mean
from sk_meta.networks import MLP, exact_normalization
from sk_meta.tasks import make_blob_tasks, make_gaussian_process_tasks, make_sinusoids
from tests.meta_gradients import TOLERANCE, deviation, meta_gradient

N_FEATURES, WIDTH = 4, 3
OF_KERNELS = ("log_output_scale", "log_length_scale", "log_noise_std")
ESTIMATORS = [
    DKTRegressor(),
    DKTRegressor(kernel="linear", linear_features=True, objective="marginal"),
    DKTRegressor(kernel="matern", n_kernels=2),
    DKTClassifier(),
    DKTClassifier(kernel="cosine", n_kernels=2, objective="marginal"),
]
CHECKS = [
    pytest.param(check, id=f"{type(estimator).__name__}{i}-{check.func.__name__}")
    for i, estimator in enumerate(ESTIMATORS)
    for check in meta_estimator_checks(estimator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_meta_estimator(check):
    check()


def make_learner(
    kernel="rbf",
    classes=False,
    n_targets=2,
    n_inputs=0,
    n_kernels=1,
    marginal=False,
    normalization=None,
):
    """In float64, away from any special point such as a mean of zero."""
    network = MLP(N_FEATURES, WIDTH, (5,), nn.Tanh, normalization=normalization)
    kind, n_targets = (DKTOfClasses, 1) if classes else (DKT, n_targets)
    network = exact_normalization(network)
    learner = kind(network, WIDTH, n_inputs, n_targets, kernel, n_kernels, marginal)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        learner.log_noise_std += 2.5  # else one of several kernels has all the share
    return learner.double()


@pytest.fixture
def one_task(make_group):
    """(classes) -> (Support, Query) of one weighted task."""

    def make(classes=False, n_support=9):
        kind = {"n_classes": 3} if classes else {"n_targets": 2}
        group = make_group(1, n_support, 6, N_FEATURES, weighted=True, **kind)
        X, y, weight, *_ = group.support
        support = Support(X[0], y[0], weight[0], group.support.n_classes)
        return support, Query(*(part[0] for part in group.query))

    return make


def take(support, rows):
    X, y, weight = (part[rows] for part in support[:3])
    return support._replace(X=X, y=y, weight=weight)


def predict(learner, support, X):
    with torch.no_grad():
        return learner.eval().predict(learner.adapt(support), X)


def numbers(learner):
    """Of a learner with one kernel: scales and noise."""
    names = ("log_output_scale", "log_length_scale")
    found = {n: getattr(learner, n).exp().item() for n in names if hasattr(learner, n)}
    return (*found.values(), learner.noise().item())


def process_of(learner):
    """The same process in sklearn, on embedded rows; its noise beside it."""
    scale, *length, noise = numbers(learner)
    kinds = {
        "rbf": lambda: RBF(*length, "fixed"),
        "matern": lambda: Matern(*length, "fixed", nu=2.5),
        "linear": lambda: DotProduct(0.0, "fixed"),
        "cosine": lambda: DotProduct(0.0, "fixed"),
    }
    kernel = ConstantKernel(scale**2, "fixed") * kinds[learner.kernel]()
    return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None), noise


def embedded(learner, *given):
    with torch.no_grad():
        Z = [learner.embed(X).numpy() for X in given]
    if learner.kernel == "cosine":
        Z = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in Z]
    return Z


@pytest.mark.parametrize("n_rows", [1, 9])
@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_is_that_of_sklearn(kernel, n_rows, one_task):
    learner, (support, query) = make_learner(kernel), one_task()
    support = take(support, slice(n_rows))._replace(weight=None)
    found = predict(learner, support, query.X)
    process, noise = process_of(learner)
    Z, Z_query = embedded(learner, support.X, query.X)
    offset = learner.mean.detach().numpy()
    process.fit(Z, support.y.numpy() - offset)
    mean, std = process.predict(Z_query, return_std=True)
    np.testing.assert_allclose(found.mean, mean + offset, rtol=1e-6)
    np.testing.assert_allclose(found.variance, std**2 + noise, rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_marginal_loss_is_the_marginal_likelihood_of_sklearn(kernel, one_task):
    learner, (support, query) = make_learner(kernel, marginal=True), one_task()
    support, query = support._replace(weight=None), query._replace(weight=None)
    scores, _ = learner.train()(support, query.X)
    found = learner.loss(scores, query, support).item()
    process, _ = process_of(learner)
    (Z,) = embedded(learner.eval(), torch.cat([support.X, query.X]))
    y = torch.cat([support.y, query.y]).numpy() - learner.mean.detach().numpy()
    expected = sum(
        process.fit(Z, y[:, j]).log_marginal_likelihood_value_ for j in range(2)
    )
    np.testing.assert_allclose(found, -expected / y.size, rtol=1e-8)


def test_linear_features_add_a_linear_kernel_on_the_row(one_task):
    learner, (support, query) = make_learner(n_inputs=N_FEATURES), one_task()
    support = support._replace(weight=None)
    scale, length, noise = numbers(learner)
    slopes = learner.log_slope_std.exp().detach().numpy()
    X, X_query = support.X.numpy(), query.X.numpy()
    Z, Z_query = (Z[:, N_FEATURES:] for Z in embedded(learner, support.X, query.X))

    def kernel(A, B, X, Y):
        return scale**2 * RBF(length)(A, B) + (X * slopes) @ (Y * slopes).T

    K = kernel(Z, Z, X, X) + noise * np.eye(9)
    cross = kernel(Z_query, Z, X_query, X)
    offset = learner.mean.detach().numpy()
    mean = offset + cross @ np.linalg.solve(K, support.y.numpy() - offset)
    spread = kernel(Z_query, Z_query, X_query, X_query)
    spread = np.diag(spread - cross @ np.linalg.solve(K, cross.T))
    found = predict(learner, support, query.X)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found.variance[:, 0], spread + noise, rtol=1e-8)


def with_one_kernel(learner, k):
    """The same learner with its k-th kernel alone."""
    one = make_learner(learner.kernel)
    one.load_state_dict(
        {
            name: value[k : k + 1] if name in OF_KERNELS else value
            for name, value in learner.state_dict().items()
            if name != "log_share"
        }
    )
    return one


def test_several_kernels_are_weighed_by_their_evidence(one_task):
    """Bayesian model averaging of processes, each with one kernel."""
    learner, (support, query) = make_learner(n_kernels=3), one_task()
    support = support._replace(weight=None)
    log_share = learner.log_share.log_softmax(0).detach().numpy()
    means, variances, evidence = [], [], []
    for k in range(3):
        one = with_one_kernel(learner, k)
        found = predict(one, support, query.X)
        means.append(found.mean.numpy())
        variances.append(found.variance.numpy())
        process, _ = process_of(one)
        (Z,) = embedded(one, support.X)
        y = support.y.numpy() - one.mean.detach().numpy()
        evidence.append(
            log_share[k]
            + sum(
                process.fit(Z, y[:, j]).log_marginal_likelihood_value_ for j in range(2)
            )
        )
    share = np.exp(evidence - np.max(evidence))
    share = (share / share.sum())[:, None, None]
    means, variances = np.array(means), np.array(variances)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    found = predict(learner, support, query.X)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-7)
    assert share.max() < 0.999


OPTIONS = {
    "rbf": {},
    "rbf marginal": {"marginal": True},
    "linear with inputs": {"kernel": "linear", "n_inputs": N_FEATURES},
    "cosine": {"kernel": "cosine"},
    "matern, three": {"kernel": "matern", "n_kernels": 3},
    "rbf, three, marginal": {"n_kernels": 3, "marginal": True, "n_inputs": N_FEATURES},
    "classes": {"classes": True},
    "classes marginal": {"classes": True, "marginal": True},
    "classes cosine, two": {"classes": True, "kernel": "cosine", "n_kernels": 2},
}


@pytest.mark.parametrize("way", ["vmap", "loop", "layers"])
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("options", OPTIONS)
def test_meta_gradient(options, normalization, way, make_group):
    options = OPTIONS[options]
    kind = {"n_classes": 3} if options.get("classes") else {"n_targets": 2}
    batch = [
        make_group(2, 4, 3, N_FEATURES, **kind),
        make_group(2, 7, 5, N_FEATURES, weighted=True, **kind, seed=1),
    ]
    learner = make_learner(**options, normalization=normalization).train()
    meta_gradient(learner, batch, way)
    assert learner.way == way
    assert deviation(learner, batch, way) <= TOLERANCE
    assert disagreement(learner, batch[1]) is None


@pytest.mark.parametrize("options", OPTIONS)
def test_no_meta_parameter_is_left_out(options, make_group):
    kind = {"n_classes": 3} if OPTIONS[options].get("classes") else {"n_targets": 2}
    learner = make_learner(**OPTIONS[options]).train()
    meta_gradient(learner, [make_group(2, 6, 5, N_FEATURES, **kind)], "vmap")
    idle = set()
    if learner.kernel in ("rbf", "matern"):
        idle.add("module.layers.2.bias")  # a shift leaves distances as they are
    if options == "classes":
        idle.add("mean")  # common to all classes; the evidence has no part in it
    for name, parameter in learner.named_parameters():
        assert (parameter.grad.norm() > 1e-9) == (name not in idle), name


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_of_weight_zero_changes_nothing(options, one_task):
    options = OPTIONS[options]
    learner = make_learner(**options)
    support, query = one_task(options.get("classes", False))
    more = support._replace(
        X=torch.cat([support.X, 9 * torch.ones(1, N_FEATURES).double()]),
        y=torch.cat([support.y, support.y[:1]]),
        weight=torch.cat([support.weight, torch.zeros(1).double()]),
    )
    expected = predict(learner, support, query.X)
    torch.testing.assert_close(predict(learner, more, query.X), expected)
    losses = [
        learner.train().loss(learner(given, query.X)[0], query, given)
        for given in (support, more)
    ]
    torch.testing.assert_close(*losses)
    if options.get("classes"):
        y = more.y.clone()
        y[-1] = -1
        unknown = more._replace(y=y, weight=more.weight + (y < 0))
        torch.testing.assert_close(predict(learner, unknown, query.X), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_act_like_repeated_rows_in_any_order(options, one_task):
    """In the posterior, and in the marginal likelihood."""
    options = OPTIONS[options]
    learner = make_learner(**options)
    support, query = one_task(options.get("classes", False))
    query = query._replace(weight=None)
    twice = support._replace(weight=1.0 + (torch.arange(9) < 4).double())
    rows = torch.tensor([0, 1, 2, 3, *range(9)])[torch.randperm(13)]
    repeated = take(support, rows)._replace(weight=None)
    expected = predict(learner, twice, query.X)
    torch.testing.assert_close(predict(learner, repeated, query.X), expected)
    losses = [
        learner.train().loss(learner(given, query.X)[0], query, given)
        for given in (twice, repeated, support)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_support_rows_never_raise_the_variance(kernel, one_task):
    learner, (support, query) = make_learner(kernel), one_task()
    by_rows = torch.stack(
        [predict(learner, take(support, slice(n)), query.X)[1] for n in range(1, 10)]
    )
    assert (by_rows.diff(dim=0) <= 1e-12).all()
    assert (by_rows[-1] < by_rows[0]).all()
    assert (by_rows >= learner.noise().item()).all()


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_row_many_times_with_the_least_noise(kernel, marginal, one_task):
    """A kernel matrix of rank one, in float32."""
    learner, (support, query) = make_learner(kernel, marginal=marginal), one_task()
    learner = learner.float().train()
    with torch.no_grad():
        learner.log_noise_std.fill_(-30.0)
    support = Support(
        *(part.float() for part in take(support, torch.zeros(40, dtype=int))[:3])
    )
    query = Query(*(part.float() for part in query))
    scores, _ = learner(support, query.X)
    learner.loss(scores, query, support).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad.isfinite().all(), name
    found = predict(learner, support, torch.cat([support.X[:1], query.X]))
    assert found.mean.isfinite().all() and found.variance.isfinite().all()
    weight = support.weight[:, None]
    expected = (support.y * weight).sum(0) / weight.sum()
    torch.testing.assert_close(found.mean[0], expected, rtol=0.02, atol=0.02)


def test_logits_are_log_odds_of_label_regression(one_task):
    """Of +1 against -1 for an observation of each class's process."""
    learner, (support, query) = make_learner(classes=True), one_task(True)
    scores = predict(learner, support, query.X)
    one = make_learner(n_targets=1)
    one.load_state_dict(learner.state_dict())
    for k in range(3):
        sign = 2.0 * (support.y == k).double()[:, None] - 1
        found = predict(one, support._replace(y=sign, n_classes=0), query.X)
        normal = torch.distributions.Normal(found.mean, found.variance.sqrt())
        label = torch.ones(())
        expected = normal.log_prob(label) - normal.log_prob(-label)
        torch.testing.assert_close(scores[:, k], expected[:, 0])


def test_permuting_classes_permutes_the_answer(one_task):
    learner, (support, query) = make_learner(classes=True), one_task(True)
    order = torch.tensor([2, 0, 1])
    found = predict(learner, support._replace(y=order[support.y]), query.X)[:, order]
    torch.testing.assert_close(found, predict(learner, support, query.X))
    assert not torch.allclose(found, found[:, order])


def test_a_class_without_rows_is_shut_out_and_not_scored(one_task):
    learner, (support, query) = make_learner(classes=True), one_task(True)
    lacking = take(support, support.y != 2)
    scores = predict(learner, lacking, query.X)
    assert (scores.softmax(1)[:, 2] == 0).all()
    kept = (query.y != 2).double()
    rows = RowLoss()(scores[:, :2], query.y.clamp_max(1))
    torch.testing.assert_close(
        learner.loss(scores, query, lacking),
        weighted_mean(rows, kept * query.weight),
    )


def test_the_marginal_loss_of_classes_is_the_likelihood_of_their_signs(one_task):
    learner = make_learner(classes=True, marginal=True)
    support, query = one_task(True)
    support, query = support._replace(weight=None), query._replace(weight=None)
    found = learner.train().loss(learner(support, query.X)[0], query, support)
    learner.eval()
    (Z,) = embedded(learner, torch.cat([support.X, query.X]))
    y = torch.cat([support.y, query.y]).numpy()
    process, noise = process_of(learner)
    K = process.kernel(Z) + noise * np.eye(len(Z))
    mean = np.full(len(Z), learner.mean.item())
    total = sum(
        multivariate_normal.logpdf(np.where(y == k, 1, -1), mean, K) for k in range(3)
    )
    np.testing.assert_allclose(found.item(), -total / (3 * len(y)), rtol=1e-8)


@pytest.mark.parametrize("objective", ["predictive", "marginal"])
def test_it_finds_the_process_that_the_tasks_were_drawn_from(objective):
    """With the row as its own features: scales and noise."""
    tasks = make_gaussian_process_tasks(
        120, length_scale=0.5, noise=0.3, n_support=10, random_state=0
    )
    net = TaskNet(nn.Identity(), lr=0.06, max_epochs=5)
    meta = DKTRegressor(net, objective=objective, random_state=0).fit(tasks)
    scale = meta.schema_.target_scale[0]
    learner = meta.learner_
    assert learner.log_length_scale.exp().item() == pytest.approx(0.5, rel=0.15)
    assert learner.noise().sqrt().item() * scale == pytest.approx(0.3, rel=0.15)


def test_validation_is_by_query_rows_in_both_objectives(make_group):
    """Losses of validation tasks can be compared between objectives."""
    group = make_group(2, 6, 4, N_FEATURES, n_targets=2, weighted=True)
    found = []
    for marginal in (False, True):
        torch.manual_seed(0)
        learner = make_learner(marginal=marginal).eval()
        for way in ("vmap", "layers"):
            learner.way = way
            found.append(task_losses(learner, [group], training=False)[0])
    for losses in found[1:]:
        torch.testing.assert_close(losses, found[0])


def test_ragged_tasks_are_filled_up_and_lose_nothing(make_ragged_tasks):
    """Together as one by one."""
    tasks = make_ragged_tasks(classification=False)
    net = TaskNet(MLP, module__hidden=(6,), max_epochs=1)
    meta = DKTRegressor(net, random_state=0).fit(tasks)
    found = meta.predict(tasks, return_std=True)
    for i, task in enumerate(tasks):
        for together, alone in zip(
            found, meta.predict([task], return_std=True), strict=True
        ):
            np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_scores_are_a_gaussian_in_the_precision_of_the_network(one_task):
    learner, (support, query) = make_learner(n_kernels=2).float(), one_task()
    support = Support(*(part.float() for part in support[:3]))
    found = predict(learner, support, query.X.float())
    assert isinstance(found, Gaussian)
    assert found.mean.dtype == found.variance.dtype == torch.float32
    assert found.mean.shape == found.variance.shape == query.y.shape


@pytest.mark.parametrize("Meta", [DKTClassifier, DKTRegressor])
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"kernel": "rbff"}, "kernel.*'matern'.*Got 'rbff'"),
        ({"kernel": None}, "kernel"),
        ({"objective": "map"}, "objective.*'marginal'.*Got 'map'"),
        ({"n_kernels": 0}, "n_kernels.*Got 0"),
        ({"linear_features": 2}, "linear_features"),
    ],
)
def test_bad_parameters(Meta, parameters, said):
    make = make_blob_tasks if Meta is DKTClassifier else make_sinusoids
    with pytest.raises(ValueError, match=said):
        Meta(**parameters).fit(make(3, random_state=0))
