"""Meta-SGD: MAML with a learned learning rate for every number of the network."""

from typing import ClassVar

from sk_meta.base import MetaClassifier, MetaRegressor
from sk_meta.gradient_based.variants import MAMLVariant


class MetaSGDClassifier(MAMLVariant, MetaClassifier):
    """Meta-SGD, for classification.

    Both an initialisation of the network and, for each of its numbers, how far one goes
    along the gradient from there: ``theta' = theta - alpha * gradient``, number by
    number, with `alpha` learned. One step is often enough.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each class.
    inner_lr : float, default=0.01
        Where all learned rates start. They are free to become negative.
    n_inner_steps : int, default=1
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants: cheaper, nearly as good.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, as the papers
        do, so that a prediction depends on its neighbours; else the support set's.
    gradient_checkpointing : bool, default=False
        Compute inner steps anew in the backward pass instead of keeping what they
        leave: see `MAMLClassifier`.
    support_size : int, float or tuple, default=5
        Rows per class of the support set of a task that has none: a number, a fraction,
        or a range (low, high) drawn anew at each visit.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation and of the draws in meta-training.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    net_ : TaskNet
        Trained.
    learner_ : Learner
    history_ : skorch.history.History
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    Li, Zhou, Chen, Li (2017), Meta-SGD: Learning to Learn Quickly for Few-Shot
    Learning, equation 1 and algorithms 1 and 2.

    Examples
    --------
    >>> from sk_meta import MetaSGDClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = MetaSGDClassifier(TaskNet(max_epochs=2), inner_lr=0.1, random_state=0)
    >>> few_shot = meta.fit(old).adapt(new.X_support, new.y_support)
    >>> few_shot.predict(new.X_query[:3]).shape
    (3,)
    """

    _settled: ClassVar[dict] = {"inner_rates": "parameter"}


class MetaSGDRegressor(MAMLVariant, MetaRegressor):
    """Meta-SGD, for regression.

    Both an initialisation of the network and, for each of its numbers, how far one goes
    along the gradient from there: ``theta' = theta - alpha * gradient``, number by
    number, with `alpha` learned. One step is often enough.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network has one output for each target.
    inner_lr : float, default=0.01
        Where all learned rates start. They are free to become negative.
    n_inner_steps : int, default=1
        Gradient steps on the support set in meta-training.
    n_adapt_steps : int, default=None
        Gradient steps in `adapt`, `predict` and validation; None means `n_inner_steps`.
    first_order : bool, default=False
        Treat the inner gradients as constants: cheaper, nearly as good.
    transductive : bool, default=False
        Whether batch normalisation uses the statistics of the query rows, as the papers
        do, so that a prediction depends on its neighbours; else the support set's.
    gradient_checkpointing : bool, default=False
        Compute inner steps anew in the backward pass instead of keeping what they
        leave: see `MAMLRegressor`.
    support_size : int, float or tuple, default=5
        Rows of the support set of a task that has none: a number, a fraction,
        or a range (low, high) drawn anew at each visit.
    evaluation_seed : int, default=0
        Seed of that draw in `predict` and `score`.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation and of the draws in meta-training.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    net_ : TaskNet
        Trained.
    learner_ : Learner
    history_ : skorch.history.History
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    References
    ----------
    Li, Zhou, Chen, Li (2017), Meta-SGD: Learning to Learn Quickly for Few-Shot
    Learning, equation 1 and algorithms 1 and 2.

    Examples
    --------
    >>> from sk_meta import MetaSGDRegressor, TaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> *old, new = make_sinusoids(20, random_state=0)
    >>> meta = MetaSGDRegressor(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> meta.adapt(new.X_support, new.y_support).predict(new.X_query).shape
    (10,)
    """

    _settled: ClassVar[dict] = {"inner_rates": "parameter"}
