"""TaskNet: meta-training as skorch users know it."""

import warnings
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from torch.utils.data import DataLoader

from sk_meta.checkpoint import ResumableCheckpoint
from sk_meta.engine.allocator import kept_memory
from sk_meta.engine.batching import settle, task_losses
from sk_meta.engine.compiled import CompiledSteps
from sk_meta.engine.each_task import can_pad, fall_back, preferred_way
from sk_meta.engine.meta_step import MetaStep
from sk_meta.learner import RowLoss
from sk_meta.network_builder import NetworkBuilder
from sk_meta.networks import exact_normalization, pool_first
from sk_meta.tasks.stacking import MetaBatches, TaskDataset

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
_CONSTRAINTS = {
    "way": [StrOptions({"auto", "layers", "vmap", "loop"})],
    "precision": [StrOptions(set(_PRECISIONS))],
    "max_memory": [Interval(Real, 0, None, closed="neither"), None],
    "compile": ["boolean"],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "max_epochs": [Interval(Integral, 0, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="left")],
}


class TaskNet(NetworkBuilder, NeuralNet):
    """A network, and how it is meta-trained: a skorch net whose samples are tasks.

    Handed to a meta-learner as its `net`. Module, optimizer, criterion, callbacks and
    their parameters are those of skorch's NeuralNet, with other defaults; what belongs
    to data loading (iterators, `dataset`) and `warm_start` has no effect, and callbacks
    that look at rows, such as EpochScoring, do not apply.

    Parameters
    ----------
    module : class or instance of torch.nn.Module, default=None
        The network; None means `MLP` for rows of features and `Conv4` for images. Of
        its parameters `n_features`, `input_shape` and `n_outputs`, those that it has
        and that are not set are inferred from the tasks; `n_outputs` only for methods
        whose network ends in a head, such as MAML.
    criterion : class of torch.nn.Module, default=RowLoss
        Loss of rows; one of torch's losses is used without its reduction.
    optimizer : class of torch.optim.Optimizer, default=torch.optim.Adam
        Outer-loop optimizer.
    lr : float, default=3e-3
        Outer-loop learning rate: the first thing to tune.
    max_epochs : int, default=100
        Passes over the tasks.
    batch_size : int, default=8
        Tasks per meta-batch.
    train_split : callable or None, default=None
        For example ``skorch.dataset.ValidSplit(5)``: which tasks are for validation.
        Their loss is `valid_loss` in the history, for callbacks such as
        ``skorch.callbacks.EarlyStopping(load_best=True)``.
    callbacks : list of skorch callbacks, default=None
    device : str, default="cpu"
        Where meta-training runs, such as "cuda".
    verbose : int, default=0
        1 prints a line per epoch, and how meta-batches are computed.
    compile : bool, default=False
        Compile the whole meta-step, both loops and the gradient: for long runs, since
        a size of a meta-batch that comes the third time then waits for the compiler.
        The network must do the same operations whatever the data, and nothing
        besides, as for torch.export.
    way : {"auto", "layers", "vmap", "loop"}, default="auto"
        How the tasks of a meta-batch are computed: layer by layer, the rows of all
        tasks in one call; by torch.func.vmap; or one after the other. All give the
        same gradients. "auto" chooses by the method, the network and the device, and
        changes its mind where the network does not allow it.
    precision : {"float32", "bfloat16"}, default="float32"
        Of the network's products and convolutions in meta-training; heads, losses,
        parameters and everything after `fit` stay in float32.
    max_memory : float, default=None
        Megabytes that a meta-step may take, besides tasks and parameters: as many
        tasks are computed at once as fit, at least one. None for no bound.
    iterator_train, iterator_valid, dataset, predict_nonlinearity, warm_start, \
    use_caching, torch_load_kwargs
        As in skorch. Iterators have no effect: tasks are stacked on the device.
    **kwargs
        Parameters of the parts: ``module__hidden=(40, 40)``, ``optimizer__betas``.

    Attributes
    ----------
    module_ : Learner
        The method, which holds the network.
    history_ : skorch.history.History

    Examples
    --------
    >>> from sk_meta import TaskNet
    >>> TaskNet(module__hidden=(40, 40), lr=1e-2).get_params()["lr"]
    0.01
    """

    def __init__(
        self,
        module=None,
        criterion=RowLoss,
        optimizer=torch.optim.Adam,
        lr=3e-3,
        max_epochs=100,
        batch_size=8,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        dataset=Dataset,
        train_split=None,
        callbacks=None,
        predict_nonlinearity="auto",
        warm_start=False,
        verbose=0,
        device="cpu",
        compile=False,
        use_caching="auto",
        torch_load_kwargs=None,
        way="auto",
        precision="float32",
        max_memory=None,
        **kwargs,
    ):
        self.way = way
        self.precision = precision
        self.max_memory = max_memory
        super().__init__(
            module,
            criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            dataset=dataset,
            train_split=train_split,
            callbacks=callbacks,
            predict_nonlinearity=predict_nonlinearity,
            warm_start=warm_start,
            verbose=verbose,
            device=device,
            compile=compile,
            use_caching=use_caching,
            torch_load_kwargs=torch_load_kwargs,
            **kwargs,
        )

    def meta_fit(self, dataset, make_learner, n_outputs, seed):
        """Initialize, and train on a TaskDataset.

        Parameters
        ----------
        dataset : TaskDataset
        make_learner : callable
            (network, length of its output) -> Learner.
        n_outputs : int or None
            Length of the network's output that the method needs; None leaves it to
            the network.
        seed : int or None
            None draws one.

        Returns
        -------
        self
        """
        self.seed_ = seed
        seed = self.fresh_seed() if seed is None else seed
        self.make_learner_ = make_learner
        self.n_outputs_ = n_outputs
        self.input_shape_ = dataset.schema.shape
        self.rng_ = np.random.default_rng(seed)
        with seeded(seed, self.device), self._allocator():
            self.fit(dataset)
        self._warn_of_divergence()
        return self

    def meta_partial_fit(self, dataset):
        """Train on: `max_epochs` more passes, over other tasks."""
        seed = int(self.rng_.integers(2**31))
        with seeded(seed, self.device), self._allocator():
            self.partial_fit(dataset)
        self._warn_of_divergence()
        return self

    def _warn_of_divergence(self):
        # An epoch that was interrupted has no loss.
        loss = self.history[-1].get("train_loss", 0.0) if len(self.history) else 0.0
        if not np.isfinite(loss):
            warnings.warn(
                "Meta-training has diverged: the training loss of the last epoch is "
                f"{loss}. Lower the net's lr, or inner_lr.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _allocator(self):
        on_cpu = torch.device(self.device).type == "cpu"
        return kept_memory() if on_cpu and len(self.input_shape_) > 1 else nullcontext()

    def initialize_module(self):
        """Build the network for the tasks, and wrap it in the learner."""
        network = exact_normalization(self._build_network())
        if torch.device(self.device).type == "cpu":
            # Convolutions are fastest so.
            network = pool_first(network).to(memory_format=torch.channels_last)
        n_outputs = self._check_output(network)
        self.module_ = self.make_learner_(network, n_outputs)
        self._choose_way(self.module_)
        return self

    def torch_compile(self, module, name):
        """The network as it is: `compile` is for the whole meta-step."""
        return module

    def _choose_way(self, learner):
        learner.way, learner.why = preferred_way(learner, self.device)
        if self.way != "auto":
            learner.way, learner.why, learner.forced = self.way, "asked for", True
            reason = learner.why_apart() if self.way == "layers" else None
            if reason is not None:
                fall_back(learner, "vmap", reason)
        learner.precision = _PRECISIONS[self.precision]

    def check_parameters(self):
        """Raise a ValueError for values that `fit` could do nothing with."""
        given = {name: getattr(self, name) for name in _CONSTRAINTS}
        validate_parameter_constraints(_CONSTRAINTS, given, type(self).__name__)
        cuda = torch.device(self.device).type == "cuda"
        if cuda and not torch.cuda.is_available():
            raise ValueError(
                f"device={self.device!r}, but torch finds no such device. Set "
                "device='cpu', or install a build of torch for your GPU."
            )

    def fresh_seed(self):
        """A seed where the user gives none; the global generators stay untouched."""
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)

    def initialize_callbacks(self):
        """As in skorch; a checkpoint comes last, and sees what the others did."""
        super().initialize_callbacks()
        self.callbacks_.sort(key=lambda cb: isinstance(cb[1], ResumableCheckpoint))
        return self

    def fit_loop(self, X, y=None, epochs=None, **kwargs):
        """As in skorch, without the epochs that a checkpoint has brought."""
        epochs = self.max_epochs if epochs is None else epochs
        for _, callback in self.callbacks_:
            if isinstance(callback, ResumableCheckpoint):
                epochs -= callback.n_resumed_
        return super().fit_loop(X, y, epochs, **kwargs)

    def _get_param_names(self):
        # skorch counts its own bookkeeping among the parameters: not in a repr.
        return [name for name in super()._get_param_names() if name[0] != "_"]

    def get_params_for_optimizer(self, prefix, named_parameters):
        """As in skorch; torch's own optimizers run fused, as one operation."""
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if getattr(self, prefix) in (torch.optim.Adam, torch.optim.AdamW):
            kwargs.setdefault("fused", not kwargs.get("foreach"))
        return args, kwargs

    def initialize(self):
        """Initialize all parts; the learner gets the loss of rows."""
        super().initialize()
        self.module_.row_loss = self.criterion_
        compiled = CompiledSteps(verbose=self.verbose) if self.compile else None
        self.meta_step_ = MetaStep(self.max_memory, compiled)
        self.told_ = not self.verbose
        return self

    def get_iterator(self, dataset, training=False):
        """Meta-batches of tasks, stacked on the device."""
        rng = self.rng_ if training else None
        batches = MetaBatches(dataset, self.batch_size, rng)
        if training:
            first = batches.dataset.batch(batches.indices[:2])
            settle(self.module_, next(iter(first)))
        batches.pad = can_pad(self.module_)
        return batches

    def get_dataset(self, X, y=None):
        """The TaskDataset itself."""
        if not isinstance(X, TaskDataset):
            raise TypeError(
                "A TaskNet learns from tasks through a meta-learner: pass it as `net`, "
                f"as in MAMLClassifier(net=TaskNet()); got {type(X).__name__}."
            )
        return X

    def on_epoch_begin(self, net, **kwargs):
        """As in skorch; the learner is told how many epochs are finished."""
        super().on_epoch_begin(net, **kwargs)
        self.module_.begin_epoch(len(self.history) - 1)

    def train_step_single(self, batch, **fit_params):
        """Mean loss of the tasks of a meta-batch, and its gradient."""
        self._set_training(True)
        plain = type(self).reduce_losses is TaskNet.reduce_losses
        reduce = None if plain else self.reduce_losses
        loss, losses, seen = self.meta_step_(self.module_, batch, reduce)
        if seen:
            self.module_.update_running(seen)
        if not self.told_:
            self.told_ = True
            print(self.how())
        return {"loss": loss, "y_pred": losses}

    def validation_step(self, batch, **fit_params):
        """Mean loss of validation tasks, each adapted to its support set."""
        self._set_training(False)
        with torch.no_grad():
            losses, _ = task_losses(self.module_, batch, training=False)
        return {"loss": losses.mean(), "y_pred": losses}

    def how(self):
        """How meta-batches are computed, and why, in words."""
        learner = self.module_
        compiled = f", {self.meta_step_.compiled.how()}" if self.compile else ""
        n_tasks = self.meta_step_.at_once
        pieces = f", {n_tasks} at a time" if n_tasks and learner.way != "loop" else ""
        return f"Meta-batches: {learner.way}{compiled}{pieces} ({learner.why})"

    def reduce_losses(self, losses):
        """(n_tasks,) -> scalar. A subclass may weigh the tasks."""
        return losses.mean()


@contextmanager
def seeded(seed, device):
    """Torch's generators seeded inside, and as they were afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Progress(Callback):
    """A progress bar over the epochs, with the latest losses."""

    def on_train_begin(self, net, **kwargs):
        """Open the bar."""
        from tqdm.auto import tqdm

        self.bar_ = tqdm(total=net.max_epochs, unit="epoch")

    def on_epoch_end(self, net, **kwargs):
        """Advance it."""
        last = net.history[-1]
        if len(net.history) == 1:
            self.bar_.write(net.how())
        losses = {k: last[k] for k in ("train_loss", "valid_loss") if k in last}
        self.bar_.set_postfix({k: f"{v:.4g}" for k, v in losses.items()})
        self.bar_.update()

    def on_train_end(self, net, **kwargs):
        """Close it."""
        self.bar_.close()
        del self.bar_
