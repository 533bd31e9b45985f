"""One meta-step, in each peer's own idiom: task by task, backward, optimizer.

Each function takes (network, loss, workload, optimizer) and returns a step: a
meta-batch -> its mean loss. `workload` holds inner_lr, n_inner_steps and first_order.
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap


def plain_loop(network, loss_of, workload, optimizer):
    """By hand, in plain torch."""
    start = dict(network.named_parameters())
    second_order = not workload["first_order"]

    def adapted(X, y):
        fast = start
        for _ in range(workload["n_inner_steps"]):
            loss = loss_of(functional_call(network, fast, (X,)), y)
            gradients = torch.autograd.grad(
                loss, tuple(fast.values()), create_graph=second_order
            )
            pairs = zip(fast.items(), gradients, strict=True)
            fast = {k: p - workload["inner_lr"] * g for (k, p), g in pairs}
        return fast

    def step(X_support, y_support, X_query, y_query):
        optimizer.zero_grad()
        total, n_tasks = 0.0, len(X_support)
        for i in range(n_tasks):
            fast = adapted(X_support[i], y_support[i])
            scores = functional_call(network, fast, (X_query[i],))
            loss = loss_of(scores, y_query[i]) / n_tasks
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    return step


def with_higher(network, loss_of, workload, optimizer):
    """As in higher's own MAML example.

    It has no switch for the first order: the inner gradients are cut loose by its
    `grad_callback`.
    """
    import higher

    inner = torch.optim.SGD(network.parameters(), lr=workload["inner_lr"])
    cut = None
    if workload["first_order"]:

        def cut(gradients):
            return [gradient.detach() for gradient in gradients]

    def step(X_support, y_support, X_query, y_query):
        optimizer.zero_grad()
        total, n_tasks = 0.0, len(X_support)
        for i in range(n_tasks):
            with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (
                fast,
                inner_step,
            ):
                for _ in range(workload["n_inner_steps"]):
                    loss = loss_of(fast(X_support[i]), y_support[i])
                    inner_step.step(loss, grad_callback=cut)
                loss = loss_of(fast(X_query[i]), y_query[i]) / n_tasks
                loss.backward()
                total += loss.item()
        optimizer.step()
        return total

    return step


def with_torchopt(network, loss_of, workload, optimizer):
    """As in torchopt's own MAML examples: MetaSGD, and its state put back.

    MetaSGD has no first order; there, the functional `torchopt.sgd` is used.
    """
    import torchopt

    if workload["first_order"]:
        return _torchopt_functional(torchopt, network, loss_of, workload, optimizer)
    inner = torchopt.MetaSGD(network, lr=workload["inner_lr"])

    def step(X_support, y_support, X_query, y_query):
        optimizer.zero_grad()
        weights = torchopt.extract_state_dict(
            network, by="reference", detach_buffers=True
        )
        state = torchopt.extract_state_dict(inner, by="reference")
        losses = []
        for i in range(len(X_support)):
            for _ in range(workload["n_inner_steps"]):
                inner.step(loss_of(network(X_support[i]), y_support[i]))
            losses.append(loss_of(network(X_query[i]), y_query[i]))
            torchopt.recover_state_dict(network, weights)
            torchopt.recover_state_dict(inner, state)
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _torchopt_functional(torchopt, network, loss_of, workload, optimizer):
    start = dict(network.named_parameters())
    inner = torchopt.sgd(lr=workload["inner_lr"])

    def step(X_support, y_support, X_query, y_query):
        optimizer.zero_grad()
        total, n_tasks = 0.0, len(X_support)
        for i in range(n_tasks):
            fast, state = start, inner.init(start)
            for _ in range(workload["n_inner_steps"]):
                loss = loss_of(
                    functional_call(network, fast, (X_support[i],)), y_support[i]
                )
                gradients = torch.autograd.grad(loss, tuple(fast.values()))
                gradients = dict(zip(fast, gradients, strict=True))
                updates, state = inner.update(gradients, state, inplace=False)
                fast = torchopt.apply_updates(fast, updates, inplace=False)
            scores = functional_call(network, fast, (X_query[i],))
            loss = loss_of(scores, y_query[i]) / n_tasks
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    return step


def by_vmap(network, loss_of, workload, optimizer):
    """By hand, all tasks at once: right only for networks without normalisation."""
    start = dict(network.named_parameters())

    def support_loss(fast, X, y):
        return loss_of(functional_call(network, fast, (X,)), y)

    def task_loss(X_support, y_support, X_query, y_query):
        fast = start
        for _ in range(workload["n_inner_steps"]):
            gradients = grad(support_loss)(fast, X_support, y_support)
            fast = {k: p - workload["inner_lr"] * gradients[k] for k, p in fast.items()}
        return support_loss(fast, X_query, y_query)

    def step(*batch):
        optimizer.zero_grad()
        loss = vmap(task_loss)(*batch).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def joint_prototypes(network, loss_of, workload, optimizer):
    """Prototypes as learn2learn's example has them: one embedding, broadcast."""

    def scores(X_support, y_support, X_query):
        Z = network(torch.cat([X_support, X_query]))
        support, query = Z[: len(X_support)], Z[len(X_support) :]
        means = support.reshape(int(y_support.max()) + 1, -1, Z.shape[1]).mean(1)
        return -((query[:, None] - means[None]) ** 2).sum(2)

    return _one_episode(scores, loss_of, optimizer)


def separate_prototypes(network, loss_of, workload, optimizer):
    """As easyfsl has them: support and query apart, Euclidean distances.

    Other mathematics than the paper's, so its loss is another one.
    """

    def scores(X_support, y_support, X_query):
        Z = network(X_support)
        labels = range(int(y_support.max()) + 1)
        means = torch.stack([Z[y_support == label].mean(0) for label in labels])
        return -torch.cdist(network(X_query), means)

    return _one_episode(scores, loss_of, optimizer)


def _one_episode(scores, loss_of, optimizer):
    def step(X_support, y_support, X_query, y_query):
        optimizer.zero_grad()
        loss = loss_of(scores(X_support[0], y_support[0], X_query[0]), y_query[0])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def loss_for(y):
    """Mean squared error for numbers, cross-entropy for classes."""
    return F.mse_loss if y.is_floating_point() else F.cross_entropy


STEPS = {
    "loop": plain_loop,
    "higher": with_higher,
    "torchopt": with_torchopt,
    "vmap": by_vmap,
    "joint": joint_prototypes,
    "separate": separate_prototypes,
}
