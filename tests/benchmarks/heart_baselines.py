"""Heart disease, three hospitals to the fourth: the protocol and the usual choices.

Three hospitals are the source. The fourth gives `N_SUPPORT` labelled rows, drawn
with its own class balance (the support set); all its other rows are the query set.
This is repeated for every hospital and `N_DRAWS` draws. Scores are the balanced
accuracy of the predicted labels and the area under the ROC curve.

The usual choices are pooled logistic regression, pooled gradient boosting (both may
add the support rows, with a weight), and logistic regression on the support rows
alone. Their settings are chosen by leaving one *source* hospital out: the held-out
one gives support and query rows in the same way. The fourth hospital never takes
part in a choice; `choose` and `validation_episodes` serve any other method too.

A hospital is anything with `.X` (rows, 13 columns in the UCI order; NaN = missing)
and `.y` (0 = healthy, above 0 = diseased).

References
----------
Janosi, A., Steinbrunn, W., Pfisterer, M. and Detrano, R. (1988). Heart disease.
UCI Machine Learning Repository. https://doi.org/10.24432/C52P4X
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import ParameterGrid, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

N_SUPPORT = 20
N_DRAWS = 20
N_VALIDATION_DRAWS = 10
PRESSURE, CHOLESTEROL = 3, 4
CATEGORICAL = [2, 6, 10, 12]  # chest pain, resting ECG, slope, thal
LEVELS = [[1, 2, 3, 4], [0, 1, 2], [1, 2, 3], [3, 6, 7]]
NUMERIC = [0, 1, 3, 4, 5, 7, 8, 9, 11]

Rows = tuple[np.ndarray, np.ndarray]
Fit = Callable[..., ClassifierMixin]
Grid = dict[str, list[Any]]


class Episode(NamedTuple):
    """Source hospitals, and the support and query rows of the one left out."""

    sources: list[Rows]
    support: Rows
    query: Rows


def rows(hospital: Any) -> Rows:
    """Return X as float64 of shape (n, 13) and y as 0 / 1 of shape (n,)."""
    return np.asarray(hospital.X, dtype=float), (np.asarray(hospital.y) > 0).astype(int)


def zero_is_missing(X: np.ndarray) -> np.ndarray:
    """Return a copy of X where a blood pressure or cholesterol of 0 is NaN."""
    X = np.array(X, dtype=float)
    measured = X[:, [PRESSURE, CHOLESTEROL]]
    X[:, [PRESSURE, CHOLESTEROL]] = np.where(measured == 0, np.nan, measured)
    return X


class KeepMeasured(TransformerMixin, BaseEstimator):
    """Drop columns that hardly any row of `fit` has: their scale would be a guess."""

    def __init__(self, least_share=0.1):
        self.least_share = least_share

    def fit(self, X, y=None):
        """Find the columns."""
        self.kept_ = np.isfinite(X).mean(axis=0) >= self.least_share
        return self

    def transform(self, X):
        """Keep them."""
        return X[:, self.kept_]


def preprocessing(add_indicator: bool = False) -> Pipeline:
    """Return the steps that impute, encode and scale.

    Numbers get their median, categories a column each (a missing one: all zero).
    `add_indicator` adds a 0 / 1 column for each number that was missing: which
    hospital a row is from shows in it, so whether it helps is left to validation.
    """
    impute = SimpleImputer(
        strategy="median", add_indicator=add_indicator, keep_empty_features=True
    )
    numbers = make_pipeline(KeepMeasured(), impute, StandardScaler())
    encode = OneHotEncoder(categories=LEVELS, handle_unknown="ignore")
    columns = [("numbers", numbers, NUMERIC), ("categories", encode, CATEGORICAL)]
    transform = ColumnTransformer(columns, sparse_threshold=0)
    return make_pipeline(FunctionTransformer(zero_is_missing), transform)


def pooled_logistic(
    episode: Episode, support_weight: float, add_indicator: bool, **settings: Any
) -> ClassifierMixin:
    """Fit logistic regression to the source rows and, weighted, the support rows."""
    model = LogisticRegression(max_iter=2000, **settings)
    X, y, weight = pool(episode, support_weight)
    pipeline = make_pipeline(preprocessing(add_indicator), model)
    return pipeline.fit(X, y, logisticregression__sample_weight=weight)


def pooled_boosting(
    episode: Episode, support_weight: float, **settings: Any
) -> ClassifierMixin:
    """Fit gradient boosting, which takes missing values as they are, likewise."""
    model = HistGradientBoostingClassifier(learning_rate=0.05, **settings)
    X, y, weight = pool(episode, support_weight)
    pipeline = make_pipeline(FunctionTransformer(zero_is_missing), model)
    return pipeline.fit(X, y, histgradientboostingclassifier__sample_weight=weight)


def support_logistic(episode: Episode, **settings: Any) -> ClassifierMixin:
    """Fit logistic regression to the support rows alone."""
    model = LogisticRegression(max_iter=2000, **settings)
    return make_pipeline(preprocessing(), model).fit(*episode.support)


def pool(episode: Episode, support_weight: float) -> tuple[np.ndarray, ...]:
    """Stack the source rows and, when their weight is not 0, the support rows."""
    parts = [*episode.sources, *([episode.support] if support_weight else [])]
    weight = np.ones(sum(len(y) for _, y in parts))
    if support_weight:
        weight[-len(episode.support[1]) :] = support_weight
    X, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return X, y, weight


POOLED: Grid = {"class_weight": [None, "balanced"], "support_weight": [0, 1, 5]}
LOGISTIC = POOLED | {"C": [0.003, 0.01, 0.03, 0.1, 1.0], "add_indicator": [False, True]}
BOOSTING = POOLED | {"max_leaf_nodes": [3, 8], "max_iter": [50, 150]}
SUPPORT: Grid = {
    "C": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0],
    "class_weight": [None, "balanced"],
}
BASELINES: dict[str, tuple[Fit, Grid]] = {
    "pooled logistic regression": (pooled_logistic, LOGISTIC),
    "pooled gradient boosting": (pooled_boosting, BOOSTING),
    "logistic regression on the support rows": (support_logistic, SUPPORT),
}


def episodes(
    hospitals: Sequence[Any], target: int, n_draws: int = N_DRAWS, seed: int = 0
) -> Iterator[Episode]:
    """Yield the draws of one target hospital; the other hospitals are the source."""
    X, y = rows(hospitals[target])
    sources = [rows(h) for i, h in enumerate(hospitals) if i != target]
    for draw in range(n_draws):
        state = 1000 * seed + draw
        support, query = train_test_split(
            np.arange(len(y)), train_size=N_SUPPORT, stratify=y, random_state=state
        )
        yield Episode(sources, (X[support], y[support]), (X[query], y[query]))


def validation_episodes(
    hospitals: Sequence[Any], target: int, n_draws: int = N_VALIDATION_DRAWS
) -> list[Episode]:
    """Return episodes that leave out each source hospital; `target` is not in any."""
    source = [h for i, h in enumerate(hospitals) if i != target]
    return [e for i in range(len(source)) for e in episodes(source, i, n_draws, seed=1)]


def score(model: ClassifierMixin, query: Rows) -> tuple[float, float]:
    """Return balanced accuracy and area under the ROC curve on the query rows."""
    X, y = query
    auc = roc_auc_score(y, model.predict_proba(X)[:, 1])
    return balanced_accuracy_score(y, model.predict(X)), auc


def choose(fit: Fit, grid: Grid, validation: list[Episode]) -> dict[str, Any]:
    """Return the settings whose two scores, averaged over `validation`, are best."""

    def mean_score(settings: dict[str, Any]) -> float:
        return np.mean([score(fit(e, **settings), e.query) for e in validation])

    return max(ParameterGrid(grid), key=mean_score)


def baseline_scores(hospitals: Sequence[Any], target: int) -> dict[str, np.ndarray]:
    """Return, for each baseline, the scores of each draw, shape (n_draws, 2)."""
    validation = validation_episodes(hospitals, target)
    result = {}
    for name, (fit, grid) in BASELINES.items():
        best = choose(fit, grid, validation)
        draws = episodes(hospitals, target)
        result[name] = np.array([score(fit(e, **best), e.query) for e in draws])
    return result


def paired_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return mean and half-width of the 95 % interval of ours - theirs.

    Both have shape (n_hospitals, n_draws) and hold scores of the same draws. The four
    hospitals are fixed: the interval is for the draw of the support rows.
    """
    gain = np.asarray(ours) - np.asarray(theirs)
    n_hospitals, n_draws = gain.shape
    error = np.sqrt((gain.var(axis=1, ddof=1) / n_draws).sum()) / n_hospitals
    width = student.ppf(0.975, n_hospitals * (n_draws - 1))
    return gain.mean(), width * error
