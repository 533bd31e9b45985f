"""Features from the source tasks, and any sklearn estimator on top of them."""

from typing import ClassVar

import numpy as np
from sklearn.base import is_classifier, is_regressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from sk_meta.over_tasks import ClassifiesTasks, RegressesTasks
from sk_meta.row_heads import apply_head, fit_head
from sk_meta.task_by_task import TaskByTask
from sk_meta.transfer.encoder import TorchEncoder
from sk_meta.transfer.fine_tuning import FineTuning
from sk_meta.transfer.parts import (
    as_table,
    check_gaps,
    check_scores,
    drop_unweighted,
    own_generator,
    say,
    seeded_clone,
    split_network,
    takes_images,
    two_seeds,
)
from sk_meta.transfer.pooling import pool


class _Transfer(TaskByTask):
    """What the classifier and the regressor share."""

    _parameter_constraints: ClassVar[dict] = {
        **TaskByTask._parameter_constraints,
        "encoder": "no_validation",  # by _make_encoder and _make_head
        "head": "no_validation",
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        encoder=None,
        head=None,
        *,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
    ):
        self.encoder = encoder
        self.head = head
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state

    def fit(self, tasks, y=None):
        """Fit the encoder on the labelled rows of all source tasks.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored; tasks hold their own.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If `encoder` is no transformer, or `head` of the wrong kind.
        ValueError
            If the tasks are empty or disagree, or the encoder cannot use them.
        """
        tasks, schema = self._check_fit(tasks)
        seeds = two_seeds(self.random_state)
        encoder = self._make_encoder(seeds[0])
        head = self._make_head(seeds[1])
        rows = pool(tasks, schema, self._draws(tasks, schema))
        as_images = len(schema.shape) > 1 and takes_images(encoder)
        X = as_table(rows.X, as_images)
        options = {}
        if rows.weight is not None and has_fit_parameter(encoder, "sample_weight"):
            options["sample_weight"] = rows.weight
        encoder.fit(X, rows.y, **options)
        check_gaps(encoder, head, X)
        self.encoder_, self._head = encoder, head
        self._as_images, self._on_frames = as_images, hasattr(X, "iloc")
        self._take_tasks(tasks, schema)
        return self

    def set_params(self, **params):
        """Set parameters, ``encoder__...`` and ``head__...`` included.

        Returns
        -------
        self
        """
        for part in ("encoder", "head"):
            inner = [name for name in params if name.startswith(f"{part}__")]
            value = params.get(part, getattr(self, part))
            if inner and not hasattr(value, "set_params"):
                raise ValueError(
                    f"Cannot set {inner[0]}: {part} is {value!r}. Pass an estimator as "
                    f"{part} to the {type(self).__name__} first."
                )
        return super().set_params(**params)

    def embed(self, X):
        """Encoded rows: what heads work on.

        Parameters
        ----------
        X : array of shape (n_rows, ...) or DataFrame

        Returns
        -------
        array of shape (n_rows, n_encoded), or DataFrame
        """
        Z = self.encoder_.transform(self._encoder_input(self._check_rows(X)))
        Z = Z.toarray() if hasattr(Z, "toarray") else Z
        return as_table(Z)

    def _encoder_input(self, X):
        """Rows as the encoder had them in `fit`."""
        is_frame = hasattr(X, "iloc")
        if is_frame and not self._on_frames:
            X = X.to_numpy()
        elif self._on_frames and not is_frame:
            import pandas as pd

            names = self.schema_.names
            X = pd.DataFrame(X, columns=None if names is None else list(names))
        return as_table(X, self._as_images)

    def _network_input(self, X):
        """The TorchEncoder to fine-tune, and rows as they come to it."""
        before, network = split_network(self.encoder_)
        X = self._encoder_input(X)
        return network, X if before is None else before.transform(X)

    def _adapt_to(self, support):
        support = drop_unweighted(support)
        self._check_classes(support)
        if isinstance(self._head, FineTuning):
            network, X = self._network_input(support.X)
            return self._head.tune(network, X, support)
        Z, head = self.embed(support.X), self._head_for(support)
        try:
            with own_generator():
                return fit_head(head, Z, support)
        except ValueError as error:
            n_classes = len(np.unique(support.y))
            of = f" of {n_classes} classes" if self._classification else ""
            raise ValueError(
                f"The head {head!r} cannot be fitted to a support set of {len(Z)} rows"
                f"{of}: {error}"
            ) from error

    def apply_state(self, state, X, n_classes):
        """See `TaskByTask.apply_state`."""
        if isinstance(self._head, FineTuning):
            network, X = self._network_input(self._check_rows(X))
            values, std = state.predict(network.check_rows(X)), None
        else:
            values, std = apply_head(state, self.embed(X))
        if not self._classification and not self.schema_.multi_output:
            values = np.reshape(values, len(values))
        return values, std

    def portable_state(self, state):
        """A state as it is pickled: on the CPU, so that it loads anywhere."""
        return state.on_cpu() if isinstance(self._head, FineTuning) else state

    def _check_classes(self, support):
        """Raise where there is nothing to tell apart."""
        if not self._classification:
            return
        classes = np.unique(support.y)
        if len(classes) < 2:
            raise ValueError(
                f"The support set has one class ({classes[0]!r}); a head needs two at "
                "least. Add a row of another class."
            )

    def _head_for(self, support):
        """The head, for a support set of its own."""
        return self._head

    def _make_encoder(self, seed):
        encoder = self.encoder
        if encoder is None:
            encoder = StandardScaler()
        elif isinstance(encoder, str) and encoder == "passthrough":
            encoder = FunctionTransformer()
        complete = hasattr(encoder, "fit") and hasattr(encoder, "transform")
        if not complete or isinstance(encoder, type):
            raise TypeError(
                "encoder must be a transformer, with fit and transform, 'passthrough' "
                f"or None; got {say(self.encoder)}. An estimator that predicts is a "
                "head."
            )
        return seeded_clone(encoder, seed)

    def _make_head(self, seed):
        head = self._default_head() if self.head is None else self.head
        if isinstance(head, FineTuning):
            _, encoder = split_network(self.encoder)
            if not isinstance(encoder, TorchEncoder):
                raise TypeError(
                    "FineTuning trains a network, so that encoder must be a "
                    f"TorchEncoder, or a Pipeline that ends in one; got {say(encoder)}."
                    " Pass encoder=TorchEncoder(), or an sklearn estimator as head."
                )
        elif isinstance(head, type | str) or not self._is_head(head):
            kind = "classifier" if self._classification else "regressor"
            raise TypeError(
                f"head of a {type(self).__name__} must be a {kind}, FineTuning or "
                f"None; got {say(head)}."
            )
        elif self._classification:
            check_scores(head)
        return seeded_clone(head, seed)


class TransferClassifier(ClassifiesTasks, _Transfer):
    """Features from the source tasks, and any sklearn classifier on top of them.

    `fit` fits a transformer on the rows of all source tasks together; `adapt` fits a
    clone of an sklearn classifier on the encoded support set.

    Parameters
    ----------
    encoder : transformer, "passthrough" or None, default=None
        Any of sklearn's: PCA, a ColumnTransformer of DataFrame columns, a Pipeline of
        transformers; one that uses classes, such as LinearDiscriminantAnalysis; a
        :class:`~sk_meta.TorchEncoder`; or FrozenEstimator of a fitted one, which is
        used as it is. "passthrough" leaves rows as they are, None means
        StandardScaler.
    head : classifier or FineTuning, default=None
        Any classifier of sklearn, :class:`~sk_meta.CosineClassifier`, or
        :class:`~sk_meta.FineTuning` of a TorchEncoder. None means
        LogisticRegression.
    support_size : int, float or tuple, default=5
        Rows per class of the support set of a task that has none: a number, a fraction,
        or a range (low, high) to draw it from.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of encoder and head where they have a `random_state` of None.

    Attributes
    ----------
    encoder_ : transformer
        Fitted on the source rows.
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Notes
    -----
    The encoder sees labelled rows alone, each once. Labels that tasks share reach it
    by value; where labels are local, classes are numbered over the tasks. Weights of
    source rows count in encoders whose `fit` takes `sample_weight`.

    Images and other rows of more than one axis are flattened, but for an encoder (or
    first step of a Pipeline) with sklearn's tag ``input_tags.three_d_array``, such as
    TorchEncoder.

    Labels are those that the head predicts. A head without `predict_proba` (SVC,
    RidgeClassifier) gives the softmax of its decision function for probabilities: good
    for the order of classes, not calibrated; where SVC has a tie of votes, its decision
    function breaks it, as with ``SVC(break_ties=True)``. Where a head's probabilities
    are largest for another class than it predicts (Platt's of SVC, with few rows), the
    two are exchanged.

    References
    ----------
    Chen, Liu, Kira, Wang, Huang (2019), A Closer Look at Few-shot Classification.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.svm import SVC
    >>> from sk_meta import TransferClassifier
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = TransferClassifier(PCA(8), SVC(), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict(new.X_query[:3]).shape
    (3,)
    """

    def _default_head(self):
        return LogisticRegression(max_iter=1000)

    def _is_head(self, head):
        return is_classifier(head)


class TransferRegressor(RegressesTasks, _Transfer):
    """Features from the source tasks, and any sklearn regressor on top of them.

    `fit` fits a transformer on the rows of all source tasks together; `adapt` fits a
    clone of an sklearn regressor on the encoded support set.

    Parameters
    ----------
    encoder : transformer, "passthrough" or None, default=None
        Any of sklearn's: PCA, a ColumnTransformer of DataFrame columns, a Pipeline of
        transformers; one that uses targets, such as PLSRegression; a
        :class:`~sk_meta.TorchEncoder`; or FrozenEstimator of a fitted one, which is
        used as it is. "passthrough" leaves rows as they are, None means
        StandardScaler.
    head : regressor or FineTuning, default=None
        Any regressor of sklearn, or :class:`~sk_meta.FineTuning` of a TorchEncoder.
        None means RidgeCV, which chooses its penalty by leaving out one row; of a
        single support row, Ridge.
    support_size : int, float or tuple, default=5
        Rows of the support set of a task that has none: a number, a fraction,
        or a range (low, high) to draw it from.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of encoder and head where they have a `random_state` of None.

    Attributes
    ----------
    encoder_ : transformer
        Fitted on the source rows.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Notes
    -----
    The head gets targets in the user's units; TransformedTargetRegressor scales them.
    Heads whose `predict` takes `return_std`, such as GaussianProcessRegressor and
    BayesianRidge, give standard deviations. For the rest, see
    :class:`~sk_meta.TransferClassifier`.

    References
    ----------
    Caruana (1997), Multitask Learning.

    Examples
    --------
    >>> from sklearn.linear_model import BayesianRidge
    >>> from sk_meta import TransferRegressor
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = TransferRegressor(head=BayesianRidge()).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> mean, std = few_shot.predict(new.X_query, return_std=True)
    >>> mean.shape, std.shape
    ((10,), (10,))
    """

    def _default_head(self):
        return RidgeCV(alphas=np.logspace(-3, 3, 13))

    def _is_head(self, head):
        return is_regressor(head)

    def _head_for(self, support):
        # The default cannot leave out the only row.
        alone = self.head is None and len(support.y) == 1
        return Ridge() if alone else self._head
