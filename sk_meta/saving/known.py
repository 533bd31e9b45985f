"""Classes that a file may name. Nothing else in a file turns into code."""

from functools import cache
from importlib import import_module

from sklearn.base import BaseEstimator
from sklearn.model_selection._search import BaseSearchCV
from torch import nn, optim
from torch.nn.modules.loss import _Loss

from sk_meta.base import MetaEstimator
from sk_meta.compression import masking
from sk_meta.learner import RowLoss
from sk_meta.networks import MLP, Conv4
from sk_meta.tasks.metadata import Description

# Their fitted state is numbers and arrays, which numpy alone works on.
_SKLEARN = {
    "compose": ["ColumnTransformer"],
    "decomposition": ["PCA", "TruncatedSVD"],
    "feature_selection": ["SelectKBest", "SelectPercentile", "VarianceThreshold"],
    "frozen": ["FrozenEstimator"],
    "impute": ["MissingIndicator", "SimpleImputer"],
    "linear_model": ["Ridge"],
    "pipeline": ["FeatureUnion", "Pipeline"],
    "preprocessing": [
        *("Binarizer", "FunctionTransformer", "MaxAbsScaler", "MinMaxScaler"),
        *("Normalizer", "OneHotEncoder", "OrdinalEncoder", "PowerTransformer"),
        *("QuantileTransformer", "RobustScaler", "StandardScaler"),
    ],
}
_SCORES = ["chi2", "f_classif", "f_regression"]
_SCORES += ["mutual_info_classif", "mutual_info_regression"]

# Parameters that are never written: a cache of pickles, and processes to start.
NEVER = {"memory", "n_jobs"}

TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
TYPES += ["uint64", "float16", "float32", "float64", "object"]


def _subclasses(namespace, base):
    """Public classes of a module of torch, by their names."""
    return {
        f"{namespace.__name__}.{name}": value
        for name, value in vars(namespace).items()
        if isinstance(value, type) and issubclass(value, base) and name[0] != "_"
    }


@cache
def classes_for(parameter):
    """Classes and functions that a parameter may have as its value, by their names.

    Parameters
    ----------
    parameter : str
        Of a TaskNet or of a transformer.
    """
    part = parameter.partition("__")[0]
    if part == "module":
        ours = {f"sk_meta.networks.{kind.__name__}": kind for kind in (MLP, Conv4)}
        return ours | _subclasses(nn, nn.Module)
    if parameter == "criterion":
        return {"sk_meta.learner.RowLoss": RowLoss} | _subclasses(nn, _Loss)
    if parameter == "optimizer":
        return _subclasses(optim, optim.Optimizer)
    if parameter == "score_func":
        home = import_module("sklearn.feature_selection")
        return {f"{home.__name__}.{name}": getattr(home, name) for name in _SCORES}
    return {}


@cache
def estimators():
    """Estimators that a file may hold, by their names."""
    root = import_module("sk_meta")
    found = {}
    for name in root.__all__:
        kind = getattr(root, name)
        if isinstance(kind, type) and issubclass(kind, BaseEstimator):
            if not issubclass(kind, BaseSearchCV):
                found[f"sk_meta.{name}"] = kind
    for home, names in _SKLEARN.items():
        module = import_module(f"sklearn.{home}")
        found |= {f"sklearn.{home}.{name}": getattr(module, name) for name in names}
    return found


@cache
def named_tuples():
    """States of learners, and what is in them, by their names."""
    homes = {
        kind.__module__
        for kind in estimators().values()
        if issubclass(kind, MetaEstimator)
    }
    found = {"Description": Description}
    for home in homes:
        for value in vars(import_module(home)).values():
            if is_named_tuple(value) and value.__module__.startswith("sk_meta."):
                found[value.__name__] = value
    return found


def is_named_tuple(kind):
    """Whether something is a class of named tuples."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_make")


# What compression turns layers into.
LAYERS = {
    name: kind
    for name, kind in vars(masking).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
}


def name_of(kind, known):
    """How a file calls a class: its own name alone, if it is the user's."""
    for name, value in known.items():
        if value is kind:
            return name
    return getattr(kind, "__name__", None)


def find(name, known, own):
    """The class of a name, among known ones and the user's own.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if not isinstance(name, str):
        raise ValueError(f"The name of a class is {name!r:.60}.")
    if name in known:
        return known[name]
    if name in own:
        return own[name]
    if "." in name or not name.isidentifier():
        raise ValueError(f"The file names {name!r:.60}, which may not stand there.")
    raise ValueError(
        f"The file needs the class {name!r:.60}, which is not among those that load "
        f"knows. If you trust it, pass it: load(path, modules=[{name:.60}])."
    )
