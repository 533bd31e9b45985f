"""Prototypical networks."""

from typing import NamedTuple

from torch import Tensor

from sk_meta.base import MetaClassifier
from sk_meta.heads import prototypes, squared_distances, weight_of_known
from sk_meta.learner import EmbeddingLearner, weighted_mean


class PrototypeState(NamedTuple):
    """Prototypes.

    Attributes
    ----------
    means : tensor of shape (n_classes, d)
    mass : tensor of shape (n_classes,)
        Summed weight of the support rows of each class.
    """

    means: Tensor
    mass: Tensor


class Prototypes(EmbeddingLearner):
    """Nearest class mean in a learned embedding.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.

    References
    ----------
    Snell, Swersky, Zemel (2017), Prototypical Networks for Few-shot Learning,
    equations 1 and 2.
    """

    uses_weight = True

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        return PrototypeState(
            *prototypes(Z, support.y, support.weight, support.n_classes)
        )

    def apply_head(self, state, Z):
        """Minus the squared distances; far below them for a class without rows."""
        scores = -squared_distances(Z, state.means)
        return scores.masked_fill(state.mass == 0, -1e9)

    def loss(self, scores, query, support):
        """Mean over the query rows whose class has a support row."""
        rows = self.loss_of_rows(scores, query.y)
        return weighted_mean(rows, weight_of_known(query, support))


class PrototypicalClassifier(MetaClassifier):
    """Prototypical networks: nearest class mean in a learned embedding.

    Takes any number of classes at adapt time, also with local labels.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
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
    Snell, Swersky, Zemel (2017), Prototypical Networks for Few-shot Learning.

    Examples
    --------
    >>> from sk_meta import PrototypicalClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = PrototypicalClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    def __init__(
        self,
        net=None,
        *,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return _make_prototypes


def _make_prototypes(module, n_outputs):
    return Prototypes(module)
