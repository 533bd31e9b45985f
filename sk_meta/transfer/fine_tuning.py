"""FineTuning: the whole network goes on learning, from the support set of one task."""

from copy import copy, deepcopy
from hashlib import blake2b
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from sk_meta.few_shot import probabilities
from sk_meta.learner import RowLoss, weighted_mean
from sk_meta.networks import channels_last
from sk_meta.transfer.encoder import make_output

_AT_ONCE = 1024  # rows


class FineTuning(BaseEstimator):
    """Train a copy of a TorchEncoder's whole network on a support set, as a head.

    The copy gets a new last layer, of the encoder's kind: its start are the class means
    of the features, which classify by the nearest one. For targets, the encoder's own
    last layer goes on. All weights are then trained by Adam on all support rows at
    once. Part of the support set tells after how many steps to stop (none is possible);
    then training starts again from the beginning, on all rows, for that many steps.

    Parameters
    ----------
    lr : float, default=1e-3
        Learning rate.
    max_steps : int, default=100
        Most steps.
    validation_fraction : float, default=0.25
        Share of the support rows (of each class) that tells when to stop; at least one
        of two. None trains for `max_steps`, without validation.
    patience : int, default=10
        Steps without a better loss on these rows before training stops.
    random_state : int or None, default=None
        Decides which rows these are, together with what is in the rows: neither their
        order nor the names of the classes matter. None leaves it to the meta-learner.

    Notes
    -----
    Where no class has two rows, nothing can be validated: the features stay as they
    are, and the last layer alone is trained for `max_steps`.

    Batch normalisation keeps the encoder's running averages, and dropout is off.

    References
    ----------
    Chen, Liu, Kira, Wang, Huang (2019), A Closer Look at Few-shot Classification.

    Examples
    --------
    >>> from sk_meta import FineTuning, RowNet, TorchEncoder, TransferClassifier
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> encoder = TorchEncoder(RowNet(module__hidden=(16,), max_epochs=2))
    >>> meta = TransferClassifier(encoder, FineTuning(max_steps=5), random_state=0)
    >>> few_shot = meta.fit(old).adapt(new.X_support, new.y_support)
    >>> few_shot.predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "lr": [Interval(Real, 0, None, closed="neither")],
        "max_steps": [Interval(Integral, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "random_state": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        lr=1e-3,
        *,
        max_steps=100,
        validation_fraction=0.25,
        patience=10,
        random_state=None,
    ):
        self.lr = lr
        self.max_steps = max_steps
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    def tune(self, encoder, X, support):
        """Train on a support set.

        Parameters
        ----------
        encoder : TorchEncoder
            Fitted; left as it is.
        X : array of shape (n, ...) or DataFrame
            The support rows, as the encoder takes them.
        support : SupportRows

        Returns
        -------
        TunedNetwork
        """
        rows = encoder.check_rows(X)
        problem = _Classes if support.classes is not None else _Targets
        problem = problem(encoder, rows, support)
        everything = np.arange(len(rows))
        held_out = self._validation_rows(rows, problem.strata)
        if held_out is None:
            network, n_steps = problem.start(everything), self.max_steps
            self._train(network, problem, everything, n_steps)
        elif not held_out.any():
            network, n_steps = problem.start(everything), self.max_steps
            self._train_last_layer(network, problem)
        else:
            n_steps = self._choose_steps(problem, held_out)
            network = problem.start(everything)
            self._train(network, problem, everything, n_steps)
        return TunedNetwork(network, problem.scaling, n_steps)

    def _validation_rows(self, X, strata):
        """Mask of the rows for validation; None where none are asked for."""
        if self.validation_fraction is None:
            return None
        salt = (self.random_state or 0).to_bytes(8, "little")
        keys = np.array([blake2b(row.tobytes(), key=salt).hexdigest() for row in X])
        held_out = np.zeros(len(X), dtype=bool)
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            if len(members) > 1:
                wanted = round(self.validation_fraction * len(members))
                n_valid = min(max(wanted, 1), len(members) - 1)
                held_out[members[keys[members].argsort()[:n_valid]]] = True
        return held_out

    def _choose_steps(self, problem, held_out):
        """Number of steps with the smallest loss on the rows held out."""
        train, valid = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        network = problem.start(train)
        best, best_steps = problem.loss(network, valid).item(), 0
        for n_steps in self._steps(network, problem, train, self.max_steps):
            with torch.no_grad():
                loss = problem.loss(network, valid).item()
            if loss < best:
                best, best_steps = loss, n_steps
            elif n_steps - best_steps >= self.patience:
                break
        return best_steps

    def _train(self, network, problem, rows, n_steps):
        for _ in self._steps(network, problem, rows, n_steps):
            pass

    def _train_last_layer(self, network, problem):
        with torch.no_grad():
            problem = problem.with_rows(network.features(problem.X))
        everything = np.arange(len(problem.X))
        self._train(network.output, problem, everything, self.max_steps)

    def _steps(self, network, problem, rows, n_steps):
        optimizer = torch.optim.Adam(network.parameters(), self.lr)
        for step in range(n_steps):
            optimizer.zero_grad()
            problem.loss(network, rows).backward()
            optimizer.step()
            yield step + 1


class TunedNetwork:
    """A network after fine-tuning.

    Parameters
    ----------
    network : torch.nn.Module
    scaling : tuple of (mean, scale) or None
        Of the targets; None for classes.
    n_steps : int
        Steps that it was trained for.
    """

    def __init__(self, network, scaling, n_steps):
        self.network, self.scaling, self.n_steps = network, scaling, n_steps

    def predict(self, X):
        """Probabilities, or means in the user's units, of rows as float32."""
        device = next(self.network.parameters()).device
        found = []
        with torch.no_grad():
            for start in range(0, len(X), _AT_ONCE):
                batch = _tensor(X[start : start + _AT_ONCE], device)
                found.append(self.network(batch).cpu().numpy().astype(np.float64))
        scores = np.concatenate(found)
        if self.scaling is None:
            return probabilities(scores)
        return scores * self.scaling[1] + self.scaling[0]

    def on_cpu(self):
        """The same, on the CPU."""
        return TunedNetwork(deepcopy(self.network).cpu(), self.scaling, self.n_steps)


class _Problem:
    """One support set, and what is learned from it."""

    def __init__(self, encoder, X, weight):
        self.encoder = encoder
        self.network = encoder.net_.module_
        self.device = next(self.network.parameters()).device
        self.X = _tensor(X, self.device)
        weight = np.ones(len(X)) if weight is None else weight
        self.weight = _tensor(np.asarray(weight, np.float32), self.device)
        self.row_loss = RowLoss()

    def with_rows(self, X):
        """The same problem for other features of the rows."""
        other = copy(self)
        other.X = X
        return other

    def loss(self, network, rows):
        """Mean loss of some rows."""
        losses = self.row_loss(network(self.X[rows]), self.y[rows])
        return weighted_mean(losses, self.weight[rows])


class _Classes(_Problem):
    scaling = None

    def __init__(self, encoder, X, support):
        super().__init__(encoder, X, support.weight)
        self.n_classes = len(support.classes)
        self.strata = np.searchsorted(support.classes, support.y)
        self.y = _tensor(self.strata, self.device)

    def start(self, rows):
        """The network, with a last layer made of the class means of some rows."""
        network = deepcopy(self.network).eval()
        with torch.no_grad():
            Z = network.features(self.X[rows])
            network.output = self._last_layer(Z, self.y[rows], self.weight[rows])
        return network

    def _last_layer(self, Z, y, weight):
        member = (
            y[:, None] == torch.arange(self.n_classes, device=self.device)
        ).float()
        member = member * weight[:, None]
        total = member.sum(0)
        means = member.T @ Z / total.clamp_min(1e-12)[:, None]
        kind, scale = self.encoder.head, self.encoder.scale
        with torch.random.fork_rng(devices=[]):  # its weights are drawn, for nothing
            layer = make_output(Z.shape[1], self.n_classes, kind, scale)
        layer = layer.to(self.device)
        absent = total == 0
        if kind == "cosine":
            layer.weight.copy_(torch.where(absent[:, None], -Z.mean(0), means))
            return layer
        # Squared distances, in units of what rows have from their mean.
        centre = Z.mean(0)
        spread = ((Z - centre) ** 2).sum(1).mean().clamp_min(1e-12)
        layer.weight.copy_(2 * (means - centre) / spread)
        bias = (centre**2).sum() - (means**2).sum(1)
        layer.bias.copy_(torch.where(absent, -10.0, bias / spread))
        return layer


class _Targets(_Problem):
    def __init__(self, encoder, X, support):
        if not hasattr(encoder, "target_mean_"):
            raise ValueError(
                "FineTuning of a TransferRegressor needs a TorchEncoder that was fitted"
                " on targets; this one was fitted on classes."
            )
        super().__init__(encoder, X, support.weight)
        self.scaling = encoder.target_mean_, encoder.target_scale_
        y = support.y.reshape(len(X), -1)
        y = ((y - self.scaling[0]) / self.scaling[1]).astype(np.float32)
        self.strata = np.zeros(len(X), dtype=int)
        self.y = _tensor(y, self.device)

    def start(self, rows):
        """The network with its own last layer."""
        return deepcopy(self.network).eval()


def _tensor(values, device):
    return channels_last(torch.from_numpy(np.require(values, None, "CW")).to(device))
