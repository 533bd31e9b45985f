"""PrunedLearner: fewer weights, or fewer neurons and channels."""

from numbers import Integral, Real
from typing import ClassVar

from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions

from sk_meta.base import MetaEstimator
from sk_meta.compression.masking import mask_smallest
from sk_meta.compression.slimming import hidden_layers, slim
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.meta_step import MetaStep
from sk_meta.tasks.validation import check_tasks
from sk_meta.wrapped import (
    WrappedLearner,
    check_learner,
    renew_optimizer,
    start_from,
)


class PrunedLearner(WrappedLearner):
    """A meta-learner whose network loses weights, or neurons and channels.

    The network is pruned little by little; after each round it is meta-trained on, with
    what is left. In the inner loop, too, a pruned weight stays 0.

    With ``amount=0`` nothing is pruned and the training is the same, with the same
    draws of tasks: this is the dense model to compare a pruned one with.

    Parameters
    ----------
    meta_learner : meta-learner, or FrozenEstimator of a fitted one
        What is pruned: a clone, fitted on the tasks, or a copy of the frozen one.
    amount : float, default=0.5
        Share that is pruned, from 0 to below 1.
    how : {"magnitude", "slim"}, default="magnitude"
        "magnitude": the smallest of all weights of the network's linear and convolution
        layers become 0. The file compresses well, see
        `sk_meta.compression.masking.sparse_size`; the model is no faster, and methods
        that compute layer by layer what the inner loop changes use vmap instead.
        "slim": of each hidden layer, this share of neurons or channels leaves, at least
        one stays. They are ranked by the scale of the batch normalisation behind the
        layer, where there is one, else by the norm of their incoming weights. Less
        memory and time everywhere. For MLP, Conv4 and nn.Sequential.
    n_rounds : int, default=3
        Rounds of pruning, each followed by training. The first ones take most.
    max_epochs : int, default=10
        Passes over the tasks after each round; 0 for no training.
    lr : float, default=None
        Outer-loop learning rate after pruning; None for that of the meta-learner.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws in the training after pruning, and of an unfitted meta-learner
        without a `random_state`. None goes on with the meta-learner's own draws.

    Attributes
    ----------
    meta_learner_ : meta-learner
        Fitted and pruned.
    kept_ : float
        Share of the network's parameters that are left.
    net_ : TaskNet
    learner_ : Learner
    history_ : skorch.history.History
        Of all its training.
    schema_ : Schema
        What the tasks have in common.
    classes_ : array of shape (n_classes,)
        All labels, where they are shared.
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for DataFrames with string column names.

    Raises
    ------
    ValueError
        If the network has nothing to prune, or with ``how="slim"`` holds a layer that
        neurons cannot leave; before any training.
    TypeError
        If `meta_learner` is no meta-learner.

    References
    ----------
    Han, Pool, Tran, Dally (2015), Learning both Weights and Connections for Efficient
    Neural Networks, section 3: pruning by magnitude, with training between the rounds.

    Zhu, Gupta (2017), To Prune, or Not to Prune, equation 1: how much in which round.

    Liu, Li, Shen, Huang, Yan, Zhang (2017), Learning Efficient Convolutional Networks
    through Network Slimming, section 3; here each layer loses the same share.

    Li, Kadav, Durdanovic, Samet, Graf (2017), Pruning Filters for Efficient ConvNets,
    section 3.1; here by the Euclidean norm.

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sk_meta import MAMLClassifier, PrunedLearner, TaskNet
    >>> from sk_meta.tasks import make_blob_tasks
    >>> *old, new = make_blob_tasks(20, n_classes=2, random_state=0)
    >>> meta = MAMLClassifier(TaskNet(max_epochs=2), random_state=0).fit(old)
    >>> pruned = PrunedLearner(FrozenEstimator(meta), 0.5, how="slim", max_epochs=1)
    >>> pruned.fit(old).learner_.module.layers[0]
    Linear(in_features=10, out_features=32, bias=True)
    >>> pruned.adapt(new.X_support, new.y_support).predict(new.X_query[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "meta_learner": "no_validation",  # by check_learner
        "amount": [Interval(Real, 0, 1, closed="left")],
        "how": [StrOptions({"magnitude", "slim"})],
        "n_rounds": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        meta_learner,
        amount=0.5,
        *,
        how="magnitude",
        n_rounds=3,
        max_epochs=10,
        lr=None,
        random_state=None,
    ):
        self.meta_learner = meta_learner
        self.amount = amount
        self.how = how
        self.n_rounds = n_rounds
        self.max_epochs = max_epochs
        self.lr = lr
        self.random_state = random_state

    def fit(self, tasks, y=None):
        """Meta-train where the meta-learner is not frozen, then prune and train on.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._validate_params()
        frozen = check_learner(self.meta_learner)
        if not frozen and isinstance(self.meta_learner, MetaEstimator):
            self._run_rounds(_untrained(self.meta_learner, tasks).net_)
        meta = start_from(self.meta_learner, tasks, self.random_state)
        dataset = meta._later_dataset(check_tasks(tasks, meta.unlabeled))
        dataset.check_draws()
        n_before = _n_parameters(meta.learner_.module)
        self._run_rounds(meta.net_, dataset)
        meta._take(meta.net_, meta.schema_)
        self.meta_learner_ = meta
        self.kept_ = _n_parameters(meta.learner_.module) / n_before
        return self

    def partial_fit(self, tasks, y=None):
        """Meta-train on, over other tasks; what is pruned stays so.

        Parameters
        ----------
        tasks : list of Task, list of (X, y), or EpisodeSampler
        y : None
            Ignored.

        Returns
        -------
        self
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(tasks)
        self.meta_learner_.partial_fit(tasks)
        return self

    def _run_rounds(self, net, dataset=None):
        """Prune in place; without a data set there is no training."""
        learner, max_epochs = net.module_, net.max_epochs
        widths = {}
        if self.how == "slim":
            widths = {h.name: h.width for h in hidden_layers(learner.module)}
        net.lr = net.lr if self.lr is None else self.lr
        net.max_epochs = self.max_epochs
        for done in range(1, self.n_rounds + 1):
            share = self.amount * (1 - (1 - done / self.n_rounds) ** 3)
            if self.how == "slim":
                left = {k: max(1, n - round(share * n)) for k, n in widths.items()}
                slim(learner, left)
            else:
                mask_smallest(learner.module, share)
            _renew(net)
            if self.max_epochs and dataset is not None:
                net.meta_partial_fit(dataset)
        net.max_epochs = max_epochs


def _untrained(meta_learner, tasks):
    """A meta-learner with its network, before training: what is wrong shows here."""
    meta = clone(meta_learner)
    net = meta._make_net().set_params(max_epochs=0, callbacks=None, compile=False)
    return meta.set_params(net=net, random_state=0).fit(tasks)


def _renew(net):
    """What depends on the network's parameters, after these have changed."""
    net.module_.checked = False
    net._choose_way(net.module_)
    renew_optimizer(net)
    compiled = CompiledSteps(verbose=net.verbose) if net.compile else None
    net.meta_step_ = MetaStep(net.max_memory, compiled)


def _n_parameters(network):
    """Numbers in a network, without those that are masked."""
    n = sum(parameter.numel() for parameter in network.parameters())
    masks = (getattr(layer, "mask", None) for layer in network.modules())
    return n - sum(int((~mask).sum()) for mask in masks if mask is not None)
