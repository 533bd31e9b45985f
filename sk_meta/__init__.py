"""Meta-learning estimators for scikit-learn.

The public names load on first use, so that ``import sk_meta`` stays light.
"""

from importlib import import_module, metadata

_HOME = {
    "ALPaCAClassifier": "closed_form.alpaca",
    "ALPaCARegressor": "closed_form.alpaca",
    "EpisodeSampler": "tasks.sampling",
    "FewShotClassifier": "few_shot",
    "FewShotRegressor": "few_shot",
    "MAMLClassifier": "gradient_based.maml",
    "MAMLRegressor": "gradient_based.maml",
    "MetaGridSearchCV": "search",
    "PrototypicalClassifier": "metric_based.prototypes",
    "Task": "tasks.task",
    "TaskNet": "training",
    "TaskTransformer": "pipeline",
    "adapt": "pipeline",
    "check_meta_estimator": "checks",
    "evaluate": "metrics",
    "split_classes": "tasks.sampling",
    "task_scorer": "metrics",
    "tasks_from_groups": "tasks.grouping",
}

__all__ = sorted(_HOME)
try:
    __version__ = metadata.version("sk_meta")
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"sk_meta.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sk_meta' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
