"""Losses of meta-training."""

import numpy as np

from sk_meta.inspection._shared import (
    BLUE,
    ORANGE,
    RED,
    as_numbers,
    axes_for,
    fitted_parts,
)

_FAR = 20.0  # largest over smallest loss from which the axis is logarithmic


class TrainingHistoryDisplay:
    """Loss of training and validation tasks against epochs of meta-training.

    It is made by `from_estimator` or `from_history`. The axis of the loss is
    logarithmic where losses are positive and the largest is far above the smallest.

    Parameters
    ----------
    epochs : array of shape (n_epochs,)
    train_loss : array of shape (n_epochs,)
        Query loss of the training tasks.
    valid_loss : array of shape (n_epochs,), default=None
        Of the validation tasks, where there are any.

    Attributes
    ----------
    best_epoch_ : int or None
        That of the lowest validation loss; None without validation tasks.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        Training, then validation.
    best_ : matplotlib Line2D or None
        The mark of the best epoch.

    Examples
    --------
    >>> from sk_meta.inspection import TrainingHistoryDisplay
    >>> rows = [
    ...     {"epoch": 1, "train_loss": 2.0, "valid_loss": 2.2},
    ...     {"epoch": 2, "train_loss": 1.0, "valid_loss": 1.5},
    ... ]
    >>> TrainingHistoryDisplay.from_history(rows).best_epoch_
    2
    """

    def __init__(self, epochs, train_loss, valid_loss=None):
        self.epochs = epochs
        self.train_loss = train_loss
        self.valid_loss = valid_loss

    @classmethod
    def from_estimator(cls, model, *, ax=None, smoothing=0.0):
        """Draw the losses of a fitted meta-learner.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted. Of a transfer learner, the training of its TorchEncoder is shown.
            For validation losses, fit it with ``TaskNet(train_split=...)``.
        ax, smoothing
            See `plot`.

        Returns
        -------
        TrainingHistoryDisplay
        """
        _, meta = fitted_parts(model, cls)
        history = getattr(meta, "history_", None)
        if history is None and hasattr(meta, "encoder_"):
            history = _history_of_encoder(meta.encoder_)
        if history is None:
            raise TypeError(
                f"{type(meta).__name__} keeps no history of its training: it was not "
                "trained by epochs. Pass a meta-learner that has a TaskNet."
            )
        return cls.from_history(history, ax=ax, smoothing=smoothing)

    @classmethod
    def from_history(cls, history, *, ax=None, smoothing=0.0):
        """Draw a history that was kept.

        Parameters
        ----------
        history : skorch History or list of dict
            For each epoch `train_loss`, and maybe `epoch` and `valid_loss`.
        ax, smoothing
            See `plot`.

        Returns
        -------
        TrainingHistoryDisplay

        Raises
        ------
        ValueError
            If there is no epoch, or one without a `train_loss`.
        """
        rows = list(history)
        if not rows or not all("train_loss" in row for row in rows):
            raise ValueError(
                f"The history has {len(rows)} epochs, of which "
                f"{sum('train_loss' in row for row in rows)} have a train_loss. Train "
                "for an epoch at least."
            )
        valid = None
        if any("valid_loss" in row for row in rows):
            valid = [row.get("valid_loss", np.nan) for row in rows]
        epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
        display = cls(epochs, [row["train_loss"] for row in rows], valid)
        return display.plot(ax, smoothing=smoothing)

    def plot(self, ax=None, *, smoothing=0.0):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        smoothing : float, default=0.0
            In [0, 1): weight of the past in a running mean; the losses themselves then
            stay in the background. The best epoch is that of the losses themselves.

        Returns
        -------
        self
        """
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing!r}.")
        epochs, curves = self._curves()
        ax = axes_for(ax)
        self.lines_ = []
        for (label, loss), color in zip(curves.items(), (BLUE, ORANGE), strict=False):
            if smoothing:
                ax.plot(epochs, loss, color=color, alpha=0.25)
                loss, label = _running_mean(loss, smoothing), f"{label}, smoothed"
            marker = "o" if len(epochs) == 1 else None
            self.lines_ += ax.plot(
                epochs, loss, color=color, label=label, marker=marker
            )
        self._mark_best(ax, epochs, curves)
        every = np.concatenate([loss[np.isfinite(loss)] for loss in curves.values()])
        if every.size and every.min() > 0 and every.max() > _FAR * every.min():
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="Epoch of meta-training", ylabel="Query loss, mean over tasks")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _curves(self):
        epochs = as_numbers(self.epochs, "epochs", 1)
        curves = {"Training tasks": as_numbers(self.train_loss, "train_loss", 1)}
        if self.valid_loss is not None:
            curves["Validation tasks"] = as_numbers(self.valid_loss, "valid_loss", 1)
        for label, loss in curves.items():
            if len(loss) != len(epochs):
                raise ValueError(
                    f"{label} have {len(loss)} losses for {len(epochs)} epochs."
                )
        return epochs, curves

    def _mark_best(self, ax, epochs, curves):
        self.best_epoch_ = self.best_ = None
        loss = curves.get("Validation tasks")
        if loss is None or not np.isfinite(loss).any():
            return
        best = int(np.nanargmin(loss))
        self.best_epoch_ = int(epochs[best])
        ax.axvline(epochs[best], color=RED, lw=1, ls=":")
        (self.best_,) = ax.plot(
            epochs[best],
            loss[best],
            "o",
            color=RED,
            label=f"Best on validation tasks: epoch {self.best_epoch_}",
        )


def _running_mean(values, past):
    """Exponentially weighted, without the pull of the start towards 0."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            total, weight = past * total + value, past * weight + 1
        found.append(total / weight if weight else np.nan)
    return np.array(found)


def _history_of_encoder(encoder):
    """Of a TorchEncoder, maybe frozen or at the end of a Pipeline; else None."""
    while hasattr(encoder, "estimator") or hasattr(encoder, "steps"):
        steps = getattr(encoder, "steps", None)
        encoder = steps[-1][1] if steps else encoder.estimator
    return getattr(getattr(encoder, "net_", None), "history", None)
