"""Meta-learning estimators for scikit-learn.

The public names load on first use, so that ``import sk_meta`` stays light.
"""

from importlib import import_module, metadata

_HOME = {
    "ALPaCAClassifier": "closed_form.alpaca",
    "ALPaCARegressor": "closed_form.alpaca",
    "ANILClassifier": "gradient_based.anil",
    "ANILRegressor": "gradient_based.anil",
    "AttentiveNeuralProcessRegressor": "model_based.neural_process",
    "BOILClassifier": "gradient_based.boil",
    "BOILRegressor": "gradient_based.boil",
    "CalibratedLearner": "calibration",
    "ConditionalNeuralProcessRegressor": "model_based.neural_process",
    "CosineClassifier": "transfer.cosine",
    "DKTClassifier": "closed_form.dkt",
    "DKTRegressor": "closed_form.dkt",
    "DistilledLearner": "compression.distill",
    "EpisodeSampler": "tasks.sampling",
    "FewShotClassifier": "few_shot",
    "FewShotRegressor": "few_shot",
    "FineTuning": "transfer.fine_tuning",
    "FusionClassifier": "ensemble.fusion",
    "FusionRegressor": "ensemble.fusion",
    "HypernetworkClassifier": "model_based.hypernetwork",
    "HypernetworkRegressor": "model_based.hypernetwork",
    "IMAMLClassifier": "gradient_based.imaml",
    "IMAMLRegressor": "gradient_based.imaml",
    "InContextClassifier": "model_based.in_context",
    "InContextRegressor": "model_based.in_context",
    "JointClassifier": "transfer.joint",
    "JointRegressor": "transfer.joint",
    "MAMLClassifier": "gradient_based.maml",
    "MAMLRegressor": "gradient_based.maml",
    "MatchingClassifier": "metric_based.matching",
    "MetaGridSearchCV": "search",
    "MetaSGDClassifier": "gradient_based.meta_sgd",
    "MetaSGDRegressor": "gradient_based.meta_sgd",
    "ProtoMAMLClassifier": "gradient_based.proto_maml",
    "PrototypicalClassifier": "metric_based.prototypes",
    "PrunedLearner": "compression.prune",
    "QuantizedLearner": "compression.quantize",
    "R2D2Classifier": "closed_form.r2d2",
    "R2D2Regressor": "closed_form.r2d2",
    "RelationClassifier": "metric_based.relation",
    "RepairedLearner": "ensemble.repair",
    "ReptileClassifier": "gradient_based.reptile",
    "ReptileRegressor": "gradient_based.reptile",
    "RowNet": "row_training",
    "SelectBest": "compression.select",
    "SemiSupervisedPrototypicalClassifier": "metric_based.semi_supervised",
    "Task": "tasks.task",
    "TaskFeatureSelector": "compression.features",
    "TaskNet": "training",
    "TaskTransformer": "pipeline",
    "TorchEncoder": "transfer.encoder",
    "TransferClassifier": "transfer.transfer",
    "TransferRegressor": "transfer.transfer",
    "adapt": "pipeline",
    "best_within": "compression.budget",
    "check_meta_estimator": "checks",
    "evaluate": "metrics",
    "load": "saving",
    "save": "saving",
    "size_report": "onnx.report",
    "size_scorer": "compression.budget",
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
