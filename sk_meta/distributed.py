"""Meta-training over several processes and machines: each takes some of the tasks."""

from copy import deepcopy

import numpy as np
import torch
from sklearn.base import clone
from skorch.hf import AccelerateMixin
from skorch.utils import to_device
from torch.utils._pytree import tree_map

from sk_meta.checkpoint import some_tasks_digest
from sk_meta.engine.batching import task_losses
from sk_meta.tasks.stacking import MetaBatch
from sk_meta.training import TaskNet

__all__ = ["AcceleratedTaskNet"]


class AcceleratedTaskNet(AccelerateMixin, TaskNet):
    """A TaskNet that is trained by several processes, on one machine or many.

    Every process runs the same script, under ``torchrun`` or ``accelerate launch``,
    with the same tasks. All draw the same meta-batches; each computes its share of the
    tasks, and the gradients are summed. The result is that of one process with the
    same `batch_size`, up to rounding, whatever the number of processes, also where
    they do not divide the meta-batch. Weights, running statistics and history,
    validation losses included, are the same in all processes.

    Parameters
    ----------
    module, ..., **kwargs
        As in `TaskNet`. `batch_size` counts the tasks of all processes together.
    accelerator : accelerate.Accelerator, default=None
        None makes one at the start of training. It belongs to the process: clones share
        it, pickles leave it out. Its mixed precision and gradient accumulation are not
        supported: see `precision` and `max_memory`.
    device : str, default="cpu"
        Where each process keeps the tasks until it takes its share of a meta-batch to
        the accelerator's device, which the fitted net is on.

    Raises
    ------
    ValueError
        If the processes were given different tasks.

    Notes
    -----
    Random layers, such as dropout, draw other numbers in each process; then the result
    is not that of one process, but is the same again with as many processes.

    A fitted net predicts in each process by itself.

    Examples
    --------
    Without a launcher there is one process, and the result is that of a TaskNet:

    >>> from accelerate import Accelerator
    >>> from sk_meta import MAMLRegressor
    >>> from sk_meta.distributed import AcceleratedTaskNet
    >>> from sk_meta.tasks import make_sinusoids
    >>> net = AcceleratedTaskNet(max_epochs=2, accelerator=Accelerator(cpu=True))
    >>> meta = MAMLRegressor(net, random_state=0)
    >>> meta = meta.fit(make_sinusoids(16, random_state=0))
    """

    def __init__(
        self,
        module=None,
        *,
        accelerator=None,
        device="cpu",
        callbacks__print_log__sink=print,
        **kwargs,
    ):
        super().__init__(
            module,
            accelerator=accelerator,
            device=device,
            callbacks__print_log__sink=callbacks__print_log__sink,
            **kwargs,
        )

    def meta_fit(self, dataset, make_learner, n_outputs, seed):
        """See `TaskNet.meta_fit`."""
        self._begin(dataset)
        return super().meta_fit(dataset, make_learner, n_outputs, seed)

    def meta_partial_fit(self, dataset):
        """See `TaskNet.meta_partial_fit`."""
        self._begin(dataset)
        to_device(self.module_, self.device)
        # What an optimizer loads goes to where the parameters are.
        self.optimizer_.load_state_dict(self.optimizer_.state_dict())
        return super().meta_partial_fit(dataset)

    def fresh_seed(self):
        """See `TaskNet.fresh_seed`: the first process's, in all of them."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([super().fresh_seed()])[0]

    def initialize(self):
        """See `TaskNet.initialize`; all begin with the first process's weights."""
        from accelerate.utils import broadcast

        # Not the mixin's: it would wrap the learner for calls of its forward, but
        # adaptation runs outside of that.
        TaskNet.initialize(self)
        with torch.no_grad():
            for tensor in self.module_.state_dict().values():
                tensor.copy_(broadcast(tensor.clone()))
        return self

    def on_epoch_begin(self, net, **kwargs):
        """Random layers differ between the processes, whichever tasks came before."""
        super().on_epoch_begin(net, **kwargs)
        rank, n_processes = self._place()
        if n_processes > 1:
            common = self.rng_.bit_generator.state["state"]["state"]
            seed = np.random.SeedSequence((common, rank)).generate_state(1)[0]
            torch.manual_seed(int(seed))

    def train_step_single(self, batch, **fit_params):
        """Mean loss of all tasks of a meta-batch, and its gradient."""
        self._set_training(True)
        part, own = self._share(batch)
        reduce, weight = None, own / len(batch)
        if type(self).reduce_losses is not TaskNet.reduce_losses:
            weights, weight = self._weights(part, len(batch)), min(own, 1)

            def reduce(losses):
                return (losses[:own] * weights).sum()

        _, losses, seen = self.meta_step_(self.module_, part, reduce)
        self._sum_gradients(weight)
        losses, seen = self._gather((losses, seen), len(batch))
        if seen:
            self.module_.update_running(seen)
        return {"loss": self.reduce_losses(losses), "y_pred": losses}

    def validation_step(self, batch, **fit_params):
        """Mean loss of validation tasks, each adapted to its support set."""
        self._set_training(False)
        part, _ = self._share(batch)
        with torch.no_grad():
            losses, _ = task_losses(self.module_, part, training=False)
        losses = self._gather(losses, len(batch))
        return {"loss": losses.mean(), "y_pred": losses}

    def _share(self, batch):
        """This process's part of a meta-batch, and the number of tasks in it."""
        rank, n_processes = self._place()
        own = len(range(rank, len(batch), n_processes))
        return share(batch, rank, n_processes, self.device), own

    def _gather(self, tree, n_tasks):
        """Tensors (own tasks, ...) of each process -> (n_tasks, ...) in all."""
        rank, n_processes = self._place()
        own, longest = (len(range(start, n_tasks, n_processes)) for start in (rank, 0))

        def gather(values):
            padded = values.new_zeros(longest, *values.shape[1:])
            padded[:own] = values[:own]
            together = self.accelerator.gather(padded)
            together = together.unflatten(0, (n_processes, longest))
            return together.transpose(0, 1).flatten(0, 1)[:n_tasks]

        return tree_map(gather, tree)

    def _weights(self, part, n_tasks):
        """How much the loss of each own task counts: a pass without a graph."""
        rank, n_processes = self._place()
        with torch.no_grad():
            losses, _ = task_losses(self.module_, part)
        losses = self._gather(losses, n_tasks).requires_grad_()
        return torch.autograd.grad(self.reduce_losses(losses), losses)[0][
            rank::n_processes
        ]

    def _sum_gradients(self, weight):
        """Weigh and sum over the processes; None where no process has a gradient."""
        parameters = [p for p in self.module_.parameters() if p.requires_grad]
        present = [weight > 0 and p.grad is not None for p in parameters]
        parts = [
            p.grad * weight if here else torch.zeros_like(p)
            for p, here in zip(parameters, present, strict=True)
        ]
        parts.append(torch.tensor(present).to(parts[0]))
        flat = torch.cat([part.flatten() for part in parts])
        flat = self.accelerator.reduce(flat, "sum")
        *sums, present = flat.split([part.numel() for part in parts])
        for p, total, n_present in zip(parameters, sums, present.tolist(), strict=True):
            p.grad = total.view_as(p).to(p.dtype) if n_present else None

    def _begin(self, dataset):
        from accelerate import Accelerator
        from accelerate.utils import gather_object

        if self.accelerator is None:
            self.accelerator = Accelerator()
        precision = self.accelerator.mixed_precision
        n_steps = self.accelerator.gradient_accumulation_steps
        if precision != "no" or n_steps != 1:
            raise ValueError(
                f"The accelerator has mixed_precision={precision!r} and "
                f"gradient_accumulation_steps={n_steps}, which are not supported here. "
                "Set the net's precision='bfloat16', and batch_size and max_memory."
            )
        n_different = len(set(gather_object([some_tasks_digest(dataset)])))
        if n_different > 1:
            raise ValueError(
                f"{n_different} different lists of tasks were given to the "
                f"{self.accelerator.num_processes} processes. Give all tasks to each: "
                "they share them out themselves."
            )
        device = self.accelerator.device  # cpu:0 would not load from a pickle
        self.device = "cpu" if device.type == "cpu" else str(device)
        if not self.accelerator.is_main_process:  # one of them speaks
            self.verbose = 0
            if "callbacks__progress" in self.get_params():
                self.set_params(callbacks__progress=None)

    def _place(self):
        return self.accelerator.process_index, self.accelerator.num_processes

    def _validate_params(self):
        # The mixin asks for device=None, but a fitted net has one.
        super(AccelerateMixin, self)._validate_params()

    def __sklearn_clone__(self):
        params = self.get_params(deep=False)
        shared = {"accelerator": params.pop("accelerator")}
        params = {name: clone(value, safe=False) for name, value in params.items()}
        return type(self)(**params, **shared)

    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        new.__setstate__(deepcopy(self.__getstate__(), memo))
        new.accelerator = self.accelerator
        return new

    def __getstate__(self):
        return {**super().__getstate__(), "accelerator": None}


def share(batch, rank, n_processes, device=None):
    """The tasks of a meta-batch that are one process's: every n-th, group by group.

    Parameters
    ----------
    batch : MetaBatch
    rank : int
        Which process.
    n_processes : int
    device : str, default=None
        Where to; None leaves the tensors where they are.

    Returns
    -------
    MetaBatch
        Where there are fewer tasks than processes, one that stands for none.
    """
    groups, n_before = [], 0
    for group in batch:
        n_tasks = len(group.positions)
        rows = slice((rank - n_before) % n_processes, None, n_processes)
        n_before += n_tasks
        if len(range(n_tasks)[rows]):
            groups.append(_take(group, rows, device))
    return MetaBatch(groups or [_take(next(iter(batch)), slice(1), device)])


def _take(group, rows, device):
    """Some of the tasks of a group."""

    def of(part):
        return type(part)(
            *(
                value[rows].to(device) if torch.is_tensor(value) else value
                for value in part
            )
        )

    return group._replace(
        positions=group.positions[rows],
        support=of(group.support),
        query=of(group.query),
        draws=(),
    )
