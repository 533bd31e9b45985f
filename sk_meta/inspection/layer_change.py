"""Which layers of a network change when it adapts."""

from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch

from sk_meta.inspection._shared import (
    BLUE,
    GRAY,
    as_names,
    as_numbers,
    axes_for,
    count,
    fitted_parts,
    learner_with_steps,
    settled,
)
from sk_meta.inspection.similarity import linear_cka
from sk_meta.learner import Gaussian
from sk_meta.pipeline import adapt_steps
from sk_meta.tasks.unlabeled import labeled_rows

_CLOSED = -1e8  # scores below are of classes that a task does not have


class LayerChangeDisplay:
    """How much the activations of each layer change by adaptation.

    The change of a layer is 1 minus the linear CKA of its activations on the query rows
    before and after, see :func:`linear_cka`: 0 is unchanged, up to a rotation and a
    scale; 1 has nothing in common. It is made by `from_estimator` or `from_values`.

    Parameters
    ----------
    layers : list of str
        From the input to the output.
    changes : array of shape (n_layers, n_tasks)
        NaN, where activations do not differ between rows, is left out.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    bars_ : matplotlib BarContainer
        Means over tasks.
    dots_ : list of matplotlib PathCollection
        The tasks, for each layer.

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton (2019), Similarity of Neural Network Representations
    Revisited, section 3. The question and its answer by CKA: Raghu, Raghu, Bengio,
    Vinyals (2020), Rapid Learning or Feature Reuse?, section 3.2.

    Examples
    --------
    >>> from sk_meta import ANILRegressor, TaskNet
    >>> from sk_meta.inspection import LayerChangeDisplay
    >>> from sk_meta.tasks import make_sinusoids
    >>> tasks = make_sinusoids(12, random_state=0)
    >>> net = TaskNet(module__hidden=(8,), max_epochs=1)
    >>> meta = ANILRegressor(net, random_state=0).fit(tasks[:8])
    >>> display = LayerChangeDisplay.from_estimator(meta, tasks[8:])
    >>> display.layers, float(display.changes[0].max())
    (['layers.0 (Linear)', 'head'], 0.0)
    """

    def __init__(self, layers, changes):
        self.layers = layers
        self.changes = changes

    @classmethod
    def from_estimator(cls, model, tasks, *, layers=None, ax=None):
        """Adapt to each task, compare activations before and after, and draw.

        Before is at 0 gradient steps. Activations are what a layer with parameters puts
        out; a head that is no part of the network, as ANIL's, comes last.

        Parameters
        ----------
        model : meta-learner, Pipeline ending in one, or search over these
            Fitted; it takes gradient steps. Left as it is.
        tasks : list of Task, list of (X, y), or EpisodeSampler
            With two query rows or more; with few of them CKA is near 1 by chance.
        layers : list of str, default=None
            Names of submodules of the network, as in its ``named_modules()``. None
            means all that hold parameters themselves.
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        LayerChangeDisplay

        Raises
        ------
        TypeError
            If the method takes no gradient steps, or runs from a file.
        ValueError
            If a layer is not in the network, or a task has one query row.
        """
        steps, meta = fitted_parts(model, cls)
        inner = learner_with_steps(meta)
        if inner is None:
            raise TypeError(
                f"{type(meta).__name__} has no network whose layers change within a "
                "Learner. Pass a gradient-based method, such as MAMLClassifier."
            )
        tasks, _ = settled(steps, meta, tasks)
        after = deepcopy(inner)
        modules = _modules(after.learner_.module, layers)
        changes = [_changes(after, steps, task, modules) for task in tasks]
        labels = [
            f"{name} ({type(modules[name]).__name__})" if name in modules else name
            for name in changes[0]
        ]
        table = np.array([list(of_task.values()) for of_task in changes]).T
        return cls.from_values(labels, table, ax=ax)

    @classmethod
    def from_values(cls, layers, changes, *, ax=None):
        """Draw changes that are known.

        Parameters
        ----------
        layers : list of str
        changes : array of shape (n_layers, n_tasks)
        ax : matplotlib Axes, default=None
            See `plot`.

        Returns
        -------
        LayerChangeDisplay
        """
        return cls(layers, changes).plot(ax)

    def plot(self, ax=None):
        """Draw, on new or given Axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        self
        """
        changes = as_numbers(self.changes, "changes", 2)
        layers = as_names(self.layers, len(changes), "layers")
        ax = axes_for(ax, (6.4, 1.6 + 0.55 * len(layers)))
        known = [row[np.isfinite(row)] for row in changes]
        means = [row.mean() if len(row) else np.nan for row in known]
        where = np.arange(len(layers))
        n_tasks = changes.shape[1]
        self.bars_ = ax.barh(
            where, means, height=0.6, color=BLUE, alpha=0.55, label="mean over tasks"
        )
        self.dots_ = []
        for y, row in zip(where, known, strict=True):
            spread = y + np.linspace(-0.22, 0.22, len(row)) if len(row) > 1 else [y]
            label = f"{count(n_tasks, 'task')}, a dot each" if y == 0 else None
            self.dots_.append(
                ax.scatter(
                    row, spread[: len(row)], s=9, color=GRAY, zorder=3, label=label
                )
            )
        ax.set_yticks(where, layers)
        ax.invert_yaxis()  # the input's side at the top
        ax.set_ylabel("Layer, from input to output")
        ax.set_xlabel(
            "1 − linear CKA of activations on query rows\n"
            "(0 = unchanged, 1 = nothing in common)"
        )
        most = max((row.max() for row in known if len(row)), default=0.0)
        ax.set_xlim(0, max(1.08 * most, 0.05))
        ax.grid(axis="x", alpha=0.25)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _modules(network, names):
    """Submodules by name: those asked for, or all that hold parameters themselves."""
    every = dict(network.named_modules())
    if names is None:
        return {
            name: module
            for name, module in every.items()
            if list(module.parameters(recurse=False))
        }
    missing = [name for name in names if name not in every]
    if missing:
        raise ValueError(
            f"The network has no layer {missing[0]!r}; it has "
            f"{[name for name in every if name]}."
        )
    return {name: every[name] for name in names}


def _changes(meta, steps, task, modules):
    """Change of each layer for one task, by name."""
    query = ~task.support
    if query.sum() < 2:
        raise ValueError(
            f"{task.label()} has {query.sum()} query rows; a comparison of "
            "activations needs two. Leave it out, or lower support_size."
        )
    y = task.y_support
    known = y if labeled_rows(y, meta.unlabeled).all() else None
    fitted, X = adapt_steps(steps, task.X_support, known)
    X_query = task.X_query
    for _, transformer in fitted:
        X_query = transformer.transform(X_query)
        X_query = X_query.toarray() if hasattr(X_query, "toarray") else X_query
    weight = None if task.sample_weight is None else task.sample_weight[task.support]
    learner, usual = meta.learner_, meta.learner_.n_adapt_steps
    seen = []
    for n_steps in (0, usual):
        learner.n_adapt_steps = n_steps
        state, _ = meta.adapt_state(X, y, weight, task.metadata)
        seen.append(_activations(meta, state, X_query, modules))
    before, after = seen
    return {name: 1 - linear_cka(before[name], after[name]) for name in before}


def _activations(meta, state, X, modules):
    """What layers put out for rows, by name; a head outside of the network last."""
    X = meta.schema_.check_features(X, "the query set")
    X = torch.from_numpy(np.require(X, requirements="CW")).to(meta.net_.device)
    with torch.no_grad(), _recording(modules) as seen:
        scores = meta.learner_.predict(state, X)
    found = {name: seen[name] for name in modules if name in seen}
    if _has_head(state):
        scores = scores.mean if isinstance(scores, Gaussian) else scores
        scores = scores[:, (scores > _CLOSED).all(dim=0)]
        found["head"] = scores.cpu().double().numpy()
    return found


def _has_head(state):
    """Whether a layer was adapted that is no part of the network."""
    parameters = getattr(state, "parameters", {})
    return hasattr(state, "head") or any(n.startswith("head.") for n in parameters)


@contextmanager
def _recording(modules):
    """Outputs of modules while something runs; the last call counts."""
    seen, hooks = {}, []

    def hook(name):
        def record(_, __, output):
            if torch.is_tensor(output):
                seen[name] = output.detach().cpu().double().numpy()

        return record

    try:
        for name, module in modules.items():
            hooks.append(module.register_forward_hook(hook(name)))
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
