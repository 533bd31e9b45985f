"""Relation networks: the metric is learned too."""

from functools import partial
from numbers import Integral
from typing import ClassVar

import torch
from sklearn.utils._param_validation import StrOptions
from torch import nn

from sk_meta.base import MetaClassifier, MetaEstimator
from sk_meta.heads import prototypes, weight_of_known
from sk_meta.learner import EmbeddingLearner, weighted_mean
from sk_meta.metric_based.prototypes import PrototypeState


class Relations(EmbeddingLearner):
    """A learned score of how a row relates to a class.

    The paper concatenates feature maps of a row and a class and convolves them. Here an
    embedding is a vector, and a multilayer perceptron takes the class mean (the paper
    has the sum, whose scale depends on the number of shots), the row, and the squares
    of their differences, from which a metric is one layer away.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.
    n_outputs : int
        Its length.
    relation_hidden : tuple of int
        Widths of the relation module's hidden layers.
    objective : {"cross_entropy", "squared_error"}

    References
    ----------
    Sung et al. (2018), Learning to Compare: Relation Network for Few-Shot Learning,
    section 3.2 (relation scores) and equation 2 (squared error).
    """

    uses_weight = True

    def __init__(self, module, n_outputs, relation_hidden, objective):
        super().__init__(module)
        self.objective = objective
        layers, width = [], 3 * n_outputs
        for n_hidden in relation_hidden:
            layers += [nn.Linear(width, n_hidden), nn.ReLU()]
            width = n_hidden
        self.relation = nn.Sequential(*layers, nn.Linear(width, 1))

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        return PrototypeState(
            *prototypes(Z, support.y, support.weight, support.n_classes)
        )

    def apply_head(self, state, Z):
        """Logits of the relation scores; far below for a class without rows."""
        means, rows = torch.broadcast_tensors(state.means, Z[:, None])
        pairs = torch.cat([means, rows, (means - rows) ** 2], -1)
        scores = self.relation(pairs)[..., 0]
        return scores.masked_fill(state.mass == 0, -1e9)

    def loss(self, scores, query, support):
        """Mean over the query rows whose class has a support row."""
        if self.objective == "cross_entropy":
            rows = self.loss_of_rows(scores, query.y)
        else:
            classes = torch.arange(scores.shape[1], device=scores.device)
            target = (query.y[:, None] == classes).to(scores.dtype)
            rows = ((scores.sigmoid() - target) ** 2).sum(1)
        return weighted_mean(rows, weight_of_known(query, support))


class RelationClassifier(MetaClassifier):
    """Relation networks: a network scores how a row relates to each class.

    Where prototypical networks compare by a fixed distance, a small network learns the
    comparison, together with the embedding. Takes any number of classes at adapt time,
    also with local labels.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
    relation_hidden : tuple of int, default=(64, 64)
        Widths of the hidden layers of the relation module.
    loss : {"cross_entropy", "squared_error"}, default="cross_entropy"
        "cross_entropy": of the scores' softmax over the classes, or the net's criterion
        if it has another. "squared_error": as in the paper, between the sigmoid of each
        score and 1 for the row's class, 0 for others; summed over classes.
        Probabilities are the softmax in both cases.
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
    Sung, Yang, Zhang, Xiang, Torr, Hospedales (2018), Learning to Compare: Relation
    Network for Few-Shot Learning, section 3.

    Examples
    --------
    >>> from sk_meta import RelationClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = RelationClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "relation_hidden": [tuple, list],
        "loss": [StrOptions({"cross_entropy", "squared_error"})],
    }

    def __init__(
        self,
        net=None,
        *,
        relation_hidden=(64, 64),
        loss="cross_entropy",
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.relation_hidden = relation_hidden
        self.loss = loss
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self):
        super()._check_parameters()
        widths = self.relation_hidden
        if not all(isinstance(width, Integral) and width > 0 for width in widths):
            raise ValueError(
                "relation_hidden must be widths of layers, whole numbers of at least "
                f"1, got {widths!r}."
            )

    def _learner_maker(self, schema):
        return partial(
            Relations, relation_hidden=tuple(self.relation_hidden), objective=self.loss
        )
