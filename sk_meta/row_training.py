"""RowNet: ordinary training over rows, as skorch users know it."""

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping
from skorch.dataset import Dataset
from torch import nn
from torch.utils.data import DataLoader

from sk_meta.learner import RowLoss, weighted_mean
from sk_meta.network_builder import NetworkBuilder
from sk_meta.networks import (
    batch_norms,
    call,
    channels_last,
    exact_normalization,
    pool_first,
)
from sk_meta.training import seeded

_CONSTRAINTS = {
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "max_epochs": [Interval(Integral, 0, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="left")],
}


class FeatureNetwork(nn.Module):
    """A network that gives features, and a last layer that is trained with it.

    Batch normalisation uses the batch in training, and running averages otherwise.

    Parameters
    ----------
    network : torch.nn.Module
        (n, ...) -> (n, n_features).
    output : torch.nn.Module
        (n, n_features) -> (n, n_outputs).
    """

    def __init__(self, network, output):
        super().__init__()
        self.network = network
        self.output = output
        for layer in batch_norms(network):
            layer.keep_running()

    def features(self, X):
        """(n, ...) -> (n, n_features)."""
        norms = batch_norms(self.network)
        source = "record" if self.training else "running"
        Z, seen = call(self.network, X, norms=norms, source=source, fused=True)
        for layer, uses in zip(norms, seen, strict=False):  # none seen in evaluation
            for mean, variance in uses:
                layer.update_running(mean[None], variance[None])
        return Z

    def forward(self, X):
        """(n, ...) -> (n, n_outputs)."""
        return self.output(self.features(X))


class RowNet(NetworkBuilder, NeuralNet):
    """A network, and how it is trained on rows: what a TorchEncoder is made of.

    Module, optimizer, criterion, callbacks and their parameters are those of skorch's
    NeuralNet, with other defaults.

    Parameters
    ----------
    module : class or instance of torch.nn.Module, default=None
        The network that gives the features, without a last layer; None means `MLP` for
        rows of features and `Conv4` for images. Of its parameters `n_features` and
        `input_shape`, those that it has and that are not set are inferred.
    criterion : class of torch.nn.Module, default=RowLoss
        Loss of rows; one of torch's losses is used without its reduction.
    optimizer : class of torch.optim.Optimizer, default=torch.optim.Adam
    lr : float, default=1e-3
        Learning rate: the first thing to tune.
    max_epochs : int, default=20
        Passes over the rows.
    batch_size : int, default=64
        Rows of a step.
    callbacks : list of skorch callbacks, default=None
    verbose : int, default=0
        1 prints a line per epoch.
    device : str, default="cpu"
        Where the network is trained and used, such as "cuda".
    compile, predict_nonlinearity, use_caching, torch_load_kwargs
        As in skorch.
    iterator_train, iterator_valid, dataset, train_split, warm_start
        Without effect: a TorchEncoder splits rows, and tensors are cut into batches.
    **kwargs
        Parameters of the parts:
        ``module__hidden=(40, 40)``, ``optimizer__weight_decay=1e-4``.

    Attributes
    ----------
    module_ : torch.nn.Module
        The network and its last layer.
    history_ : skorch.history.History

    Examples
    --------
    >>> from sk_meta import RowNet
    >>> RowNet(module__hidden=(40, 40), lr=1e-2).get_params()["lr"]
    0.01
    """

    def __init__(
        self,
        module=None,
        criterion=RowLoss,
        *,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        max_epochs=20,
        batch_size=64,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        dataset=Dataset,
        train_split=None,
        callbacks=None,
        predict_nonlinearity="auto",
        warm_start=False,
        verbose=0,
        device="cpu",
        compile=False,
        use_caching="auto",
        torch_load_kwargs=None,
        **kwargs,
    ):
        super().__init__(
            module,
            criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            dataset=dataset,
            train_split=train_split,
            callbacks=callbacks,
            predict_nonlinearity=predict_nonlinearity,
            warm_start=warm_start,
            verbose=verbose,
            device=device,
            compile=compile,
            use_caching=use_caching,
            torch_load_kwargs=torch_load_kwargs,
            **kwargs,
        )

    def fit(self, X, y=None, **fit_params):
        """Only through a TorchEncoder, which calls `row_fit`."""
        self.get_dataset(X)
        return super().fit(X, y, **fit_params)

    def row_fit(self, train, valid, make_output, seed, patience=None):
        """Initialize, and train on rows.

        Parameters
        ----------
        train : tuple of (X, y, weight)
            X float32 of shape (n, ...); y class codes of shape (n,), or float32
            targets (n, n_targets); weight float32 of shape (n,), or None.
        valid : tuple of the same, or None
            Rows that tell when to stop.
        make_output : callable
            Number of features -> the last layer.
        seed : int
        patience : int, default=None
            Epochs without a better loss on `valid` before training stops. The best
            network is kept.

        Returns
        -------
        self
        """
        self.input_shape_, self.n_outputs_ = train[0].shape[1:], None
        self.make_output_ = make_output
        self.rng_ = np.random.default_rng(seed)
        self.valid_ = None if valid is None else _Rows(*valid)
        if valid is not None:
            stop = EarlyStopping(patience=patience, load_best=True, sink=_silent)
            given = [] if self.callbacks in (None, "disable") else self.callbacks
            self.callbacks = [*given, ("stop", stop)]
        with seeded(seed, self.device):
            self.fit(_Rows(*train))
        self.module_.eval()
        loss = self.history[-1].get("train_loss", 0.0) if len(self.history) else 0.0
        if not np.isfinite(loss):
            warnings.warn(
                "Training of the encoder has diverged: the loss of the last epoch is "
                f"{loss}. Lower the net's lr.",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.valid_ = None  # rows are not part of what was learned
        return self

    def check_parameters(self):
        """Raise a ValueError for values that `fit` could do nothing with."""
        given = {name: getattr(self, name) for name in _CONSTRAINTS}
        validate_parameter_constraints(_CONSTRAINTS, given, type(self).__name__)
        cuda = torch.device(self.device).type == "cuda"
        if cuda and not torch.cuda.is_available():
            raise ValueError(
                f"device={self.device!r}, but torch finds no such device. Set "
                "device='cpu', or install a build of torch for your GPU."
            )

    def initialize_module(self):
        """Build the network for the rows, and put a last layer on it."""
        network = exact_normalization(self._build_network())
        if torch.device(self.device).type == "cpu":
            network = pool_first(network).to(memory_format=torch.channels_last)
        n_features = self._check_output(network)
        self.module_ = FeatureNetwork(network, self.make_output_(n_features))
        return self

    def get_split_datasets(self, X, y=None, **fit_params):
        """The rows to train on, and those of validation."""
        return X, self.valid_

    def get_dataset(self, X, y=None):
        """The rows themselves."""
        if not isinstance(X, _Rows):
            raise TypeError(
                "A RowNet learns through a TorchEncoder: pass it as `net`, as in "
                f"TorchEncoder(net=RowNet()); got {type(X).__name__}."
            )
        return X

    def get_iterator(self, dataset, training=False):
        """Batches of rows, shuffled in training."""
        rng = self.rng_ if training else None
        size = self.batch_size if training else max(self.batch_size, 256)
        return _Batches(dataset, size, self.device, rng)

    def train_step_single(self, batch, **fit_params):
        """Mean loss of a batch, and its gradient."""
        self._set_training(True)
        loss, scores = self._loss_of(batch)
        loss.backward()
        return {"loss": loss, "y_pred": scores}

    def validation_step(self, batch, **fit_params):
        """Mean loss of a batch of validation rows."""
        self._set_training(False)
        with torch.no_grad():
            loss, scores = self._loss_of(batch)
        return {"loss": loss, "y_pred": scores}

    def _loss_of(self, batch):
        X, y, weight = batch
        scores = self.module_(X)
        losses = self.criterion_(scores, y)
        losses = losses if losses.ndim == 1 else losses.flatten(1).mean(1)
        return weighted_mean(losses, weight), scores

    def features(self, X, batch_size=1024):
        """Features of rows, (n, ...) float32 -> (n, n_features) float32."""
        self.module_.eval()
        found = []
        with torch.no_grad():
            for X_batch, _, _ in _Batches(_Rows(X), batch_size, self.device):
                found.append(self.module_.features(X_batch).cpu().numpy())
        return np.concatenate(found)

    def _get_param_names(self):
        # skorch counts its own bookkeeping among the parameters: not in a repr.
        return [name for name in super()._get_param_names() if name[0] != "_"]


class _Rows:
    """Rows as tensors."""

    def __init__(self, X, y=None, weight=None):
        parts = (X, y, weight)
        self.parts = [p if p is None else torch.as_tensor(p.copy()) for p in parts]

    def __len__(self):
        return len(self.parts[0])


class _Batches:
    """Slices of rows on a device; in a new order at each pass where there is `rng`."""

    def __init__(self, rows, size, device, rng=None):
        self.rows, self.size, self.device, self.rng = rows, size, device, rng

    def __len__(self):
        return -(-len(self.rows) // self.size)

    def __iter__(self):
        n = len(self.rows)
        order = np.arange(n) if self.rng is None else self.rng.permutation(n)
        for start in range(0, n, self.size):
            at = torch.from_numpy(order[start : start + self.size])
            X, y, weight = (
                None if part is None else part[at].to(self.device)
                for part in self.rows.parts
            )
            yield channels_last(X), y, weight


def _silent(*args):
    """Where a callback would print."""
