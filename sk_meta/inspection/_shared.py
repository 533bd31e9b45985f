"""What the displays share: Axes, fitted models, and tasks cut by rows."""

from importlib.util import find_spec

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from sk_meta.metrics import score_prediction, scorer_of
from sk_meta.pipeline import SupportScaledTask, parts_of, transform_tasks
from sk_meta.tasks.stacking import needs_fit
from sk_meta.tasks.task import Task, take_rows
from sk_meta.tasks.validation import check_tasks
from sk_meta.wrapped import file_within, unwrapped

# Okabe and Ito (2008): told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK, YELLOW)
GRAY = "0.45"
_NAMES = {"r2": "R²", "roc_auc": "ROC AUC"}


def check_matplotlib():
    """Raise, with the command that installs it, where matplotlib is missing."""
    if not find_spec("matplotlib"):
        raise ImportError('Drawing needs matplotlib. Run pip install "sk_meta[plot]".')


def axes_for(ax, size=(6.4, 4.4)):
    """The Axes given, or those of a new figure of that size in inches."""
    check_matplotlib()
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def fitted_parts(model, display):
    """Transformers and meta-learner of a model that must be fitted.

    Parameters
    ----------
    model : meta-learner, Pipeline ending in one, or search over these
    display : type
        For the message.
    """
    if hasattr(model, "fit"):
        try:
            check_is_fitted(model)
        except NotFittedError as error:
            raise NotFittedError(
                f"This {type(model).__name__} is not fitted. {display.__name__} shows "
                "a fitted one: call fit(tasks) first."
            ) from error
    steps, meta = parts_of(model)
    return steps, meta.estimator if isinstance(meta, FrozenEstimator) else meta


def score_tasks(steps, meta, tasks, scoring):
    """Score of each task, and what the metric is called."""
    scorer, metric = scorer_of(scoring, meta)
    found = meta.predict_tasks(transform_tasks(steps, tasks))
    return np.array([score_prediction(one, scorer, metric) for one in found]), metric


def score_label(metric):
    """A metric's name as it stands on an axis."""
    spoken = metric.replace("neg_", "negative ").replace("_", " ")
    return _NAMES.get(metric, spoken[:1].upper() + spoken[1:])


def in_a_sentence(name):
    """A score's name where it does not come first."""
    return name if name[:2].isupper() or name == "R²" else name[:1].lower() + name[1:]


def count(n, noun):
    """A number and its noun: "1 task", "2 tasks"."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def part_of(task, support, query):
    """A task of the support rows given, then the query rows given, by position."""
    rows = np.concatenate([support, query]).astype(int)

    def of(values):
        return None if values is None else values[rows]

    part = Task(
        take_rows(task.X, rows),
        task.y[rows],
        support=np.arange(len(rows)) < len(support),
        labels=task.labels,
        metadata=task.metadata,
        sample_weight=of(task.sample_weight),
        labeled=of(task.labeled),
        name=task.name,
    )
    return SupportScaledTask(part, task.transformers) if needs_fit(task) else part


def settled(steps, meta, tasks):
    """Tasks as given, with the support sets that the meta-learner would draw.

    Returns
    -------
    tasks : list of Task
        Support rows first. Their rows are as they come to the first transformer.
    found : list of TaskPrediction
    """
    tasks = check_tasks(tasks, meta.unlabeled)
    found = meta.predict_tasks(transform_tasks(steps, tasks))
    settled = [part_of(tasks[i], one.support, one.query) for i, one in enumerate(found)]
    return settled, found


def learner_with_steps(meta):
    """The meta-learner whose Learner takes gradient steps, wrappings off; or None.

    A quantised learner is a file, whose steps are fixed.
    """
    if file_within(meta) is not None:
        return None
    inner = unwrapped(meta)
    has_steps = hasattr(getattr(inner, "learner_", None), "n_adapt_steps")
    return inner if has_steps else None


def as_numbers(values, name, ndim):
    """Values as an array of floats of so many dimensions; not empty."""
    values = np.asarray(values, dtype=float)
    if values.ndim != ndim or not values.size:
        raise ValueError(
            f"{name} must be an array of {ndim} dimension(s) that is not empty, got "
            f"shape {values.shape}."
        )
    return values


def as_names(names, n, what):
    """So many names, as strings."""
    names = [str(name) for name in names]
    if len(names) != n:
        raise ValueError(f"There are {len(names)} names for {n} {what}. Pass {n}.")
    return names
