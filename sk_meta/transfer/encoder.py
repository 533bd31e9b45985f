"""TorchEncoder: the features of a network that was trained on labelled rows."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)
from torch import nn

from sk_meta.row_training import RowNet
from sk_meta.tasks.validation import label_array


class CosineLayer(nn.Module):
    """Scaled cosines of the angles between features and a vector for each class.

    Parameters
    ----------
    n_features, n_outputs : int
    scale : float

    References
    ----------
    Chen et al. (2019), A Closer Look at Few-shot Classification, section 3.2.
    """

    def __init__(self, n_features, n_outputs, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_outputs, n_features))
        nn.init.normal_(self.weight)
        self.scale = scale

    def forward(self, Z):
        """(n, n_features) -> (n, n_outputs)."""
        return self.scale * F.linear(F.normalize(Z), F.normalize(self.weight))


def make_output(n_features, n_outputs, kind, scale):
    """The last layer of a network."""
    if kind == "cosine":
        return CosineLayer(n_features, n_outputs, scale)
    return nn.Linear(n_features, n_outputs)


class TorchEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features of a network that was trained to tell classes apart, or to predict.

    An ordinary supervised transformer of rows: `fit` trains a network with a last layer
    for the classes or targets, `transform` gives what comes before that layer.

    Parameters
    ----------
    net : RowNet, default=None
        Network and training, such as ``RowNet(module__hidden=(128, 64))``.
        None means ``RowNet()``: `MLP` for rows, `Conv4` for images.
    head : {"linear", "cosine"}, default="linear"
        The last layer: linear (Baseline), or scaled cosines between the features and a
        vector for each class (Baseline++), for classes alone.
    scale : float, default=10.0
        Of the cosines: 1 / temperature of the softmax.
    validation_fraction : float, default=None
        Share of the rows of each class (of all rows, for targets) that tells when to
        stop; the best network is kept. None trains for all `max_epochs` of the net.
    patience : int, default=5
        Epochs without a better loss on these rows before training stops.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights, of the order of rows and of their split. The
        global generators are left alone.

    Attributes
    ----------
    net_ : RowNet
        Trained.
    classes_ : array of shape (n_classes,)
        Where `y` holds classes.
    target_mean_, target_scale_ : arrays of shape (n_targets,)
        Where `y` holds targets, which are standardised in training.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Notes
    -----
    `y` of floats holds targets, of one or two dimensions; any other holds classes.
    Batch normalisation uses running averages after training, so that the features of a
    row do not depend on other rows.

    References
    ----------
    Chen, Liu, Kira, Wang, Huang (2019), A Closer Look at Few-shot Classification.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_meta import RowNet, TorchEncoder
    >>> X, y = load_iris(return_X_y=True)
    >>> net = RowNet(module__hidden=(16, 8), max_epochs=2)
    >>> TorchEncoder(net, random_state=0).fit_transform(X, y).shape
    (150, 8)
    """

    _parameter_constraints: ClassVar[dict] = {
        "net": "no_validation",  # by _make_net
        "head": [StrOptions({"linear", "cosine"})],
        "scale": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        net=None,
        *,
        head="linear",
        scale=10.0,
        validation_fraction=None,
        patience=5,
        random_state=None,
    ):
        self.net = net
        self.head = head
        self.scale = scale
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    def fit(self, X, y, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame
        y : array of shape (n_rows,) or (n_rows, n_targets)
            Classes, or floats as targets.
        sample_weight : array of shape (n_rows,), default=None

        Returns
        -------
        self
        """
        self._validate_params()
        net = self._make_net()
        X, y = self._check_fit_rows(X, y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float32)
        learned, encoded, n_outputs = self._encode(y)
        seed = self._seed()
        train, valid = self._split(encoded, learned, np.random.default_rng(seed))
        parts = [
            None
            if rows is None
            else tuple(
                part if part is None else part[rows]
                for part in (X, encoded, sample_weight)
            )
            for rows in (train, valid)
        ]
        output = partial(
            make_output, n_outputs=n_outputs, kind=self.head, scale=self.scale
        )
        net.row_fit(*parts, output, seed, self.patience)
        for name in ("classes_", "target_mean_", "target_scale_"):
            vars(self).pop(name, None)
        vars(self).update(learned)
        self.net_ = net
        return self

    def transform(self, X):
        """Features of rows.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame

        Returns
        -------
        array of shape (n_rows, n_features_out), float32
        """
        check_is_fitted(self)
        return self.net_.features(self.check_rows(X))

    def check_rows(self, X):
        """Rows as the network takes them: float32, of the shape of `fit`."""
        X = X if hasattr(X, "ndim") else np.asarray(X)
        if len(self._row_shape) == 1:
            return validate_data(self, X, reset=False, dtype=np.float32)
        X = check_array(X, dtype=np.float32, allow_nd=True)
        if np.prod(X.shape[1:]) != self.n_features_in_:
            raise ValueError(
                f"X has rows of shape {X.shape[1:]}; {type(self).__name__} was fitted "
                f"on rows of shape {self._row_shape}."
            )
        return X.reshape(len(X), *self._row_shape)

    def set_params(self, **params):
        """Set parameters, ``net__...`` included.

        Returns
        -------
        self
        """
        of_net = [name for name in params if name.startswith("net__")]
        if of_net and params.get("net", self.net) is None:
            raise ValueError(
                f"Cannot set {of_net[0]}: net is None. Pass net=RowNet() to the "
                f"{type(self).__name__} first."
            )
        return super().set_params(**params)

    @property
    def _n_features_out(self):
        output = self.net_.module_.output
        return output.weight.shape[1]

    def _make_net(self):
        if self.net is None:
            net = RowNet()
        elif isinstance(self.net, RowNet):
            net = clone(self.net)
        else:
            raise TypeError(
                f"net must be a RowNet or None, got {type(self.net).__name__}. Pass a "
                "network as net=RowNet(module=...)."
            )
        net.check_parameters()
        return net

    def _check_fit_rows(self, X, y):
        """Checked rows and y; nothing of an earlier fit is changed but the names."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is "
                "None: the network learns to predict it."
            )
        X = X if hasattr(X, "ndim") else np.asarray(X)
        if X.ndim <= 2:
            X, y = validate_data(
                self, X, y, dtype=np.float32, multi_output=True, ensure_min_samples=2
            )
        else:
            X = check_array(X, dtype=np.float32, allow_nd=True, ensure_min_samples=2)
            self.n_features_in_ = int(np.prod(X.shape[1:]))
        if len(y) != len(X):
            raise ValueError(f"X has {len(X)} rows, y has {len(y)}.")
        self._row_shape = X.shape[1:]
        return X, np.asarray(y)

    def _encode(self, y):
        """What is known of y, y as numbers, and the number of outputs."""
        if y.dtype.kind != "f":
            classes, codes = np.unique(label_array(y, "y"), return_inverse=True)
            if len(classes) < 2:
                raise ValueError(
                    f"y has one class ({classes[0]!r}); the network learns to tell "
                    "classes apart and needs at least two."
                )
            return {"classes_": classes}, codes, len(classes)
        if self.head == "cosine":
            raise ValueError(
                "head='cosine' is for classes, and y holds floats, which are targets. "
                "Use head='linear', or pass the classes as integers or strings."
            )
        y = y.reshape(len(y), -1).astype(np.float64)
        mean, scale = y.mean(axis=0), y.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        learned = {"target_mean_": mean, "target_scale_": scale}
        return learned, ((y - mean) / scale).astype(np.float32), y.shape[1]

    def _seed(self):
        if self.random_state is None:
            return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _split(self, y, learned, rng):
        """Rows to train on and rows for validation, or all rows and None."""
        if self.validation_fraction is None:
            return slice(None), None
        strata = y if "classes_" in learned else np.zeros(len(y), dtype=int)
        order = rng.permutation(len(y))
        order = order[strata[order].argsort(kind="stable")]
        counts = np.bincount(strata)
        rank = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
        n_valid = np.rint(self.validation_fraction * counts)
        held_out = rank < np.repeat(np.minimum(n_valid, counts - 1), counts)
        if not held_out.any():
            raise ValueError(
                f"validation_fraction={self.validation_fraction} leaves no row for "
                f"validation: the largest class has {counts.max()} rows. Raise it, or "
                "pass None."
            )
        return order[~held_out], order[held_out]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
