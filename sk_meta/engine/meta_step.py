"""The gradient of a meta-batch: at once, in pieces that fit in memory, or compiled."""

import torch
from torch.utils._pytree import tree_map

from sk_meta.engine.batching import joined, settle, task_losses
from sk_meta.engine.memory import peak_bytes

_MEGABYTE = 2**20


class MetaStep:
    """Computes the gradient of a meta-batch, and leaves it in the parameters.

    Parameters
    ----------
    max_memory : float, default=None
        Megabytes that a step may hold, besides the data and the parameters. Tasks are
        computed so many at a time that they fit, at least one. None for no bound.
    compiled : CompiledSteps, default=None
        Compiles what it can.
    """

    def __init__(self, max_memory=None, compiled=None):
        self.max_memory = max_memory
        self.compiled = compiled
        self.bytes, self.at_once = {}, None  # in each phase of the learner

    def __call__(self, learner, batch, reduce=None):
        """The gradient of the reduced losses is added to that of the parameters.

        Parameters
        ----------
        learner : Learner
        batch : iterable of TaskGroup
        reduce : callable, default=None
            Losses of the tasks (n_tasks,) -> scalar; None for their mean.

        Returns
        -------
        loss : scalar tensor
        losses : tensor of shape (n_tasks,)
        seen : tuple of tuples of (mean, variance)
            See `task_losses`.
        """
        groups = list(batch)
        for group in groups:
            settle(learner, group)
        most = self._most_tasks(learner, groups[0])
        self.at_once = most
        if most is not None:
            groups = [piece for group in groups for piece in pieces(group, most)]
        if len(groups) == 1 or (most is None and self.compiled is None):
            return self._at_once(learner, groups, reduce or torch.mean)
        return self._in_pieces(learner, groups, reduce)

    def _at_once(self, learner, groups, reduce):
        if self.compiled is not None and len(groups) == 1:
            found = self.compiled(learner, groups[0], reduce)
            if found is not None:
                return found
        losses, seen = task_losses(learner, groups)
        loss = reduce(losses)
        loss.backward()
        return loss.detach(), losses.detach(), detached(seen)

    def _in_pieces(self, learner, groups, reduce):
        n_tasks = sum(len(group.positions) for group in groups)
        if reduce is None:
            weights = groups[0].query.X.new_full((n_tasks,), 1 / n_tasks)
        else:
            weights = _weights(learner, groups, reduce)
        found, start = [], 0
        for group in groups:
            stop = start + len(group.positions)
            found.append(self._piece(learner, group, weights[start:stop]))
            start = stop
        losses, seen = zip(*found, strict=True)
        losses = torch.cat(losses)
        loss = (reduce or torch.mean)(losses).detach()
        return loss, losses, joined(seen)

    def _piece(self, learner, group, weights):
        def reduce(losses):
            return (losses * weights).sum()

        if self.compiled is not None:
            found = self.compiled(learner, group, reduce, weights)
            if found is not None:
                return found[1:]
        losses, seen = task_losses(learner, [group])
        reduce(losses).backward()
        return losses.detach(), detached(seen)

    def _most_tasks(self, learner, group):
        """Tasks to compute at once; None for all."""
        if learner.way == "loop":
            return 1  # nothing is gained by keeping the graphs of all tasks
        if self.max_memory is None:
            return None
        if learner.phase not in self.bytes:
            self.bytes[learner.phase] = _measure(learner, group)
        fixed, each = self.bytes[learner.phase]
        rows = group.support.X.shape[1] + group.query.X.shape[1]
        left = self.max_memory * _MEGABYTE - fixed
        return max(1, int(left // (each * rows)))


def _weights(learner, groups, reduce):
    """How much the loss of each task counts: a pass of its own, without a graph."""
    with torch.no_grad():
        losses = [task_losses(learner, [group])[0] for group in groups]
    losses = torch.cat(losses).requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(reduce(losses), losses)[0]


def _measure(learner, group):
    """Bytes of a step: those of no task, and those of one row of a task."""
    parameters = [p for p in learner.parameters() if p.requires_grad]

    def step(n_tasks):
        losses, _ = task_losses(learner, [next(pieces(group, n_tasks))])
        torch.autograd.grad(losses.mean(), parameters, allow_unused=True)

    n = min(len(group.positions), 8)
    most = peak_bytes(step, n)
    least = peak_bytes(step, max(n // 2, 1))
    rows = group.support.X.shape[1] + group.query.X.shape[1]
    each = max(most - least, 1) / max(n - n // 2, 1) if n > 1 else most
    return max(most - n * each, 0), each / rows


def pieces(group, n_tasks: int):
    """Cut a group into such of at most `n_tasks` tasks."""
    for start in range(0, len(group.positions), n_tasks):
        part = slice(start, start + n_tasks)

        def cut(values, part=part):
            return values[part] if torch.is_tensor(values) else values

        yield group._replace(
            positions=group.positions[part],
            support=tree_map(cut, group.support),
            query=tree_map(cut, group.query),
            draws=(),
        )


def detached(seen):
    """Nested tensors without their graph."""
    return tree_map(torch.Tensor.detach, seen)
