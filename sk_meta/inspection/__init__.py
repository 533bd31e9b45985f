"""Pictures of what adaptation does, and of what learners cost and are worth.

They follow scikit-learn's Display convention: `from_estimator` or `from_...` computes
and draws, `plot` draws again, on Axes of your own if you like. The names load on first
use; matplotlib loads when something is drawn.
"""

from importlib import import_module

_HOME = {
    "AdaptationDisplay": "adaptation",
    "BeforeAfterDisplay": "before_after",
    "CompressionDisplay": "compression",
    "FeatureImportanceDisplay": "feature_importance",
    "GainDisplay": "gain",
    "LayerChangeDisplay": "layer_change",
    "TaskLearningCurveDisplay": "learning_curve",
    "TaskMapDisplay": "task_map",
    "TrainingHistoryDisplay": "training_history",
    "linear_cka": "similarity",
    "pareto": "compression",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"sk_meta.inspection.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sk_meta.inspection' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
