"""Matching networks: attention over the support rows."""

import math
from functools import partial
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_meta.base import MetaClassifier, MetaEstimator
from sk_meta.heads import weight_of_known
from sk_meta.learner import EmbeddingLearner, weighted_mean


class MatchingState(NamedTuple):
    """The embedded support set.

    Attributes
    ----------
    rows : tensor of shape (n, d)
    log_weight : tensor of shape (n,)
        Of each row; far below 0 for one that does not count.
    outside : bool tensor of shape (n, n_classes)
        Whether a row belongs to another class, or to none.
    """

    rows: Tensor
    log_weight: Tensor
    outside: Tensor


class Matching(EmbeddingLearner):
    """A class's score is the log of the attention that a row pays to its support rows.

    Attention is a softmax over cosine similarities. The paper takes them as they are;
    here they are divided by a learned temperature, since with similarities of at most 1
    no class could ever be likely.

    Parameters
    ----------
    module : torch.nn.Module
        Network whose output is the embedding.
    n_outputs : int
        Its length.
    temperature : float
        To begin with.
    full_context : bool
        Whether an embedding depends on the support set.
    n_reads : int
        Steps in which a row reads the support set, with `full_context`.

    References
    ----------
    Vinyals et al. (2016), Matching Networks for One Shot Learning, equations 1 and 2;
    full context: section 2.1.2, equations 3 to 6, where support rows are embedded by a
    bidirectional LSTM. Its result depends on the order of a set. Self-attention takes
    its place here: order does not matter, and a row of weight 2 is two rows.
    """

    uses_weight = True

    def __init__(self, module, n_outputs, temperature, full_context, n_reads):
        super().__init__(module)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.full_context = full_context
        self.n_reads = n_reads
        if full_context:
            d = n_outputs
            self.queries, self.values = nn.Linear(d, d), nn.Linear(d, d)
            self.keys = nn.Linear(d, d, bias=False)  # it would add to all alike
            self.gates_of_row = nn.Linear(d, 4 * d)
            self.gates_of_read = nn.Linear(2 * d, 4 * d, bias=False)

    def fit_head(self, Z, support):
        """See `EmbeddingLearner.fit_head`."""
        classes = torch.arange(support.n_classes, device=Z.device)
        outside = support.y[:, None] != classes
        counts = ~outside.all(1)
        log_weight = torch.zeros_like(Z[:, 0])
        if support.weight is not None:
            counts = counts & (support.weight > 0)
            log_weight = support.weight.to(Z.dtype).clamp_min(1e-30).log()
        log_weight = log_weight.masked_fill(~counts, -1e9)
        outside = outside | ~counts[:, None]
        if self.full_context:
            Z = self._of_support(Z, log_weight)
        return MatchingState(Z, log_weight, outside)

    def apply_head(self, state, Z):
        """Logs of attention; far below them for a class without rows."""
        if self.full_context:
            Z = self._of_query(Z, state)
        cosine = F.normalize(Z, dim=1) @ F.normalize(state.rows, dim=1).T
        logits = cosine * (-self.log_temperature).exp() + state.log_weight
        attention = logits.log_softmax(1)[:, :, None]
        scores = attention.masked_fill(state.outside, -1e9).logsumexp(1)
        return scores.masked_fill(state.outside.all(0), -1e9)

    def loss(self, scores, query, support):
        """Mean over the query rows whose class has a support row."""
        rows = self.loss_of_rows(scores, query.y)
        return weighted_mean(rows, weight_of_known(query, support))

    def _of_support(self, Z, log_weight):
        """Support rows that have looked at one another."""
        logits = self.queries(Z) @ self.keys(Z).T / math.sqrt(Z.shape[1]) + log_weight
        return Z + logits.softmax(1) @ self.values(Z)

    def _of_query(self, Z, state):
        """Rows after some steps of an LSTM that reads the support set by attention."""
        row = self.gates_of_row(Z)
        hidden, cell, read = Z, torch.zeros_like(Z), torch.zeros_like(Z)
        for _ in range(self.n_reads):
            gates = row + self.gates_of_read(torch.cat([hidden, read], 1))
            enter, keep, new, leave = gates.chunk(4, 1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh() + Z
            logits = hidden @ state.rows.T / math.sqrt(Z.shape[1]) + state.log_weight
            read = logits.softmax(1) @ state.rows
        return hidden


class MatchingClassifier(MetaClassifier):
    """Matching networks: a weighted vote of the support rows, by learned similarity.

    Takes any number of classes at adapt time, also with local labels. Unlike
    prototypes it keeps every support row, so a class may have several modes.

    Parameters
    ----------
    net : TaskNet, default=None
        Network and meta-training; the network's output is the embedding.
    temperature : float, default=0.1
        What cosine similarities are divided by, to begin with; learned. The paper has a
        constant 1, with which training is slow.
    full_context : bool, default=False
        Whether embeddings depend on the whole support set: support rows by
        self-attention (in the paper, by an LSTM that depends on their order), the
        others by an LSTM that reads the support set.
    n_reads : int, default=3
        Steps of that LSTM; at least 2, since the first one has nothing read yet.
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
    Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra (2016), Matching Networks for
    One Shot Learning.

    Examples
    --------
    >>> from sk_meta import MatchingClassifier, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=3, labels="local", random_state=0)
    >>> meta = MatchingClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> few_shot = meta.adapt(new.X_support, new.y_support)
    >>> few_shot.predict_proba(new.X_query).shape[1]
    3
    """

    _parameter_constraints: ClassVar[dict] = {
        **MetaEstimator._parameter_constraints,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "full_context": ["boolean"],
        "n_reads": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(
        self,
        net=None,
        *,
        temperature=0.1,
        full_context=False,
        n_reads=3,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.temperature = temperature
        self.full_context = full_context
        self.n_reads = n_reads
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose

    def _learner_maker(self, schema):
        return partial(
            Matching,
            temperature=self.temperature,
            full_context=self.full_context,
            n_reads=self.n_reads,
        )
