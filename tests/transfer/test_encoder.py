"""TorchEncoder: a transformer whose features a network has learned."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping
from torch import nn

from sk_meta import RowNet, TaskNet, TorchEncoder
from sk_meta.transfer.encoder import CosineLayer

X, NUMBERS = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
Y = np.array(["setosa", "versicolor", "virginica"])[NUMBERS]
SMALL = RowNet(module__hidden=(8,), max_epochs=3, lr=1e-2)


def train_loss(encoder):
    return encoder.net_.history[-1, "train_loss"]


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_it_learns_to_tell_classes_apart(head):
    short, long = (
        TorchEncoder(clone(SMALL).set_params(max_epochs=n), head=head, random_state=0)
        for n in (1, 20)
    )
    assert train_loss(long.fit(X, Y)) < 0.5 * train_loss(short.fit(X, Y))
    assert list(long.classes_) == ["setosa", "versicolor", "virginica"]
    Z = long.transform(X)
    assert Z.dtype == np.float32 and Z.shape == (150, 8)
    assert LogisticRegression().fit(Z, Y).score(Z, Y) > 0.9


def test_it_learns_targets_in_any_units():
    y = X @ np.array([[1.0, 0], [0, 2], [1, 1], [0, 0]])
    found = TorchEncoder(SMALL, random_state=0).fit(X, y)
    scaled = TorchEncoder(SMALL, random_state=0).fit(X, 1000 * y + 50)
    np.testing.assert_allclose(found.transform(X), scaled.transform(X), atol=1e-3)
    np.testing.assert_allclose(scaled.target_scale_, 1000 * found.target_scale_)
    assert not hasattr(found, "classes_")


def test_one_random_state_one_result_and_no_global_generator():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (TorchEncoder(SMALL, random_state=seed) for seed in (0, 0, 1))
    found = [encoder.fit(X, Y).transform(X) for encoder in (one, same, other)]
    TorchEncoder(SMALL).fit(X, Y)
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_survives_pickle_clone_and_a_pipeline():
    pipe = make_pipeline(TorchEncoder(SMALL, random_state=0), LogisticRegression())
    pipe = clone(pipe).set_params(torchencoder__net__lr=5e-3).fit(X, Y)
    copy = pickle.loads(pickle.dumps(pipe))
    assert np.array_equal(copy.predict_proba(X), pipe.predict_proba(X))
    assert pipe[0].net_.lr == 5e-3 and SMALL.lr == 1e-2
    names = pipe[0].get_feature_names_out()
    assert list(names[:2]) == ["torchencoder0", "torchencoder1"] and len(names) == 8


@pytest.mark.parametrize(
    "module",
    [
        RowNet(module__hidden=(8,), module__normalization="batch", max_epochs=3),
        RowNet(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), max_epochs=3),
        RowNet(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)), max_epochs=3),
    ],
)
def test_features_of_a_row_do_not_depend_on_others(module):
    encoder = TorchEncoder(module, random_state=0).fit(X, Y)
    together = encoder.transform(X)
    alone = np.concatenate([encoder.transform(row[None]) for row in X[:5]])
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)
    Z = together - together.mean(axis=0)
    assert np.abs(Z).max() > 0.1  # running averages are those of the rows


def test_running_averages_are_learned():
    net = RowNet(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), max_epochs=30)
    encoder = TorchEncoder(net, random_state=0).fit(3 * X + 7, Y)
    layer = encoder.net_.module_.network[0]
    np.testing.assert_allclose(layer.running_mean, np.full(4, 7.0), atol=0.5)
    np.testing.assert_allclose(layer.running_var, np.full(4, 9.0), rtol=0.3)


def test_validation_rows_stop_training_and_the_best_is_kept():
    noise = np.random.default_rng(0).integers(0, 2, len(X))  # nothing to learn
    net = RowNet(module__hidden=(64,), max_epochs=60, lr=1e-2)
    encoder = TorchEncoder(net, validation_fraction=0.3, patience=4, random_state=0)
    history = encoder.fit(X, noise).net_.history
    losses = history[:, "valid_loss"]
    assert len(history) < 60 and len(losses) - np.argmin(losses) == 5
    stop = encoder.net_.callbacks[-1][1]
    assert isinstance(stop, EarlyStopping) and net.callbacks is None
    again = TorchEncoder(net, random_state=0).fit(X, noise)
    assert len(again.net_.history) == 60


def test_validation_rows_come_from_each_class():
    encoder = TorchEncoder(validation_fraction=0.2, patience=1)
    rng = np.random.default_rng(0)
    train, valid = encoder._split(NUMBERS, {"classes_": None}, rng)
    assert np.array_equal(np.bincount(NUMBERS[valid]), [10, 10, 10])
    assert np.array_equal(np.sort(np.concatenate([train, valid])), np.arange(150))


def test_weights_of_rows():
    counts = np.arange(150) % 3
    net = clone(SMALL).set_params(batch_size=500, optimizer=torch.optim.SGD)
    weighted = TorchEncoder(net, random_state=0).fit(X, Y, sample_weight=counts)
    rows = np.repeat(np.arange(150), counts)
    repeated = TorchEncoder(net, random_state=0).fit(X[rows], Y[rows])
    found, expected = weighted.transform(X), repeated.transform(X)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_images_go_through_convolutions_and_may_come_flat():
    rng = np.random.default_rng(0)
    images, y = rng.normal(size=(20, 1, 8, 8)), np.arange(20) % 2
    net = RowNet(module__n_filters=4, max_epochs=1)
    encoder = TorchEncoder(net, random_state=0).fit(images, y)
    assert encoder.n_features_in_ == 64
    flat = images.reshape(20, 64)
    assert np.array_equal(encoder.transform(images), encoder.transform(flat))
    with pytest.raises(ValueError, match=r"fitted on rows of shape \(1, 8, 8\)"):
        encoder.transform(flat[:, :10])


def test_cosines_have_no_lengths():
    layer, Z = CosineLayer(4, 3, scale=7.0), torch.randn(5, 4)
    scores = layer(Z)
    torch.testing.assert_close(layer(3 * Z), scores)
    layer.weight.data *= 2
    torch.testing.assert_close(layer(Z), scores)
    assert scores.abs().max() <= 7.0


@pytest.mark.parametrize(
    "params, kind, said",
    [
        ({"net": TaskNet()}, TypeError, "must be a RowNet or None, got TaskNet"),
        ({"head": "square"}, ValueError, "'head' parameter"),
        ({"scale": 0.0}, ValueError, "'scale' parameter"),
        ({"validation_fraction": 0.001}, ValueError, "leaves no row for validation"),
        ({"net": RowNet(batch_size=0)}, ValueError, "batch_size"),
        ({"net": RowNet(module__width=3)}, TypeError, "cannot be made with"),
        ({"net": RowNet(nn.Linear(9, 2))}, ValueError, "does not take rows of shape"),
    ],
)
def test_bad_parameters(params, kind, said):
    with pytest.raises(kind, match=said):
        TorchEncoder(**params).fit(X, Y)


def test_bad_rows():
    for bad, said in (
        ((X, None), "requires y to be passed"),
        ((X, np.zeros(150, int)), "one class"),
        ((np.full_like(X, np.nan), Y), "NaN"),
    ):
        with pytest.raises(ValueError, match=said):
            TorchEncoder(SMALL).fit(*bad)
    with pytest.raises(ValueError, match="net is None"):
        TorchEncoder().set_params(net__lr=1.0)
    with pytest.raises(TypeError, match="learns through a TorchEncoder"):
        RowNet().fit(X.astype(np.float32), NUMBERS)


def test_divergence_is_told():
    net = RowNet(module__hidden=(8,), max_epochs=3, lr=1e6, optimizer=torch.optim.SGD)
    with pytest.warns(ConvergenceWarning, match="Lower the net's lr"):
        TorchEncoder(net, random_state=0).fit(X, X[:, 0])
