"""A learner that adapts, as a graph of torch operators: its inner loop as a loop."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._higher_order_ops.while_loop import while_loop_op
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from sk_meta.onnx.backward import BACKWARD
from sk_meta.updates import loops_done_by


class _Recorder:
    """Does one step of the inner loop, with a carry that comes from outside."""

    def __init__(self, number=None, leaves=None):
        self.number, self.leaves = number, leaves
        self.start = self.after = ()
        self.n_steps = None

    def __call__(self, step, carry, n_steps):
        if self.n_steps is not None:
            raise ValueError(
                "The learner has two inner loops; at most one can be written."
            )
        start, structure = tree_flatten(carry)
        self.start, self.n_steps = tuple(start), n_steps
        if self.leaves is None:  # only looking
            return carry
        carry = tree_unflatten(list(self.leaves), structure)
        self.after = tuple(tree_flatten(step(self.number, carry))[0])
        return carry


class LearnerGraph(nn.Module):
    """What a function of a learner computes; its inner loop, if any, a `while_loop`.

    Parameters
    ----------
    learner : Learner
        In evaluation mode.
    function : callable
        (learner, *inputs) -> tuple of tensors. Calls the learner's `adapt`.
    inputs : tuple of tensors
        Examples. The length of the first axis may change.

    Attributes
    ----------
    n_steps : int or None
        Steps of the inner loop in `adapt`; None where there is no inner loop. With
        one, their number is the last argument of `forward`.
    """

    def __init__(self, learner, function: Callable, inputs: tuple[Tensor, ...]):
        super().__init__()
        tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
        for position, value in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{position}", value.detach().clone())
        self.n_tensors, self.n_inputs = len(tensors), len(inputs)
        graph, self.n_carried, self.n_steps = _trace(learner, function, tensors, inputs)
        self.pieces = _cut(graph, self.n_carried)
        self.before = self.pieces.before
        self.step = self.pieces.step
        self.after = self.pieces.after

    def forward(self, *inputs):
        """Tensors as `inputs`, then the number of steps where there is a loop."""
        given = (*(getattr(self, f"tensor_{i}") for i in range(self.n_tensors)),)
        given += inputs[: self.n_inputs]
        n_start, n_step = self.n_carried, self.pieces.n_of_step
        found = self.before(*given)
        if self.n_steps is None:
            return self.after(*found[n_start:])
        start, rest = found[:n_start], found[n_start:]
        of_step, of_after = rest[:n_step], rest[n_step:]

        def going(number, *others):
            return number < others[self.n_carried]

        def body(number, *others):
            carried, others = others[:n_start], others[n_start + 1 :]
            moved = self.step(number, *carried, *others)
            return (number + 1, *(value.clone() for value in moved))

        # The operator refuses inputs that share memory, such as a weight and its view.
        start, of_step = (
            [value.clone() for value in part] for part in (start, of_step)
        )
        carried = (torch.zeros((), dtype=torch.int64), *start)
        _, *last = while_loop_op(going, body, carried, (inputs[-1], *of_step))
        return self.after(*last, *of_after)


class _Pieces(NamedTuple):
    """Modules that together compute a traced graph, and what they hand on."""

    before: GraphModule
    step: GraphModule
    after: GraphModule
    n_of_step: int


@contextmanager
def _as_written():
    """No fused attention or recurrence: their parts have operators."""
    fused = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # the public switch warns of other devices
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(fused)


def _trace(learner, function, tensors, inputs):
    """The graph of (start of the loop, carry after a step, outputs), and its sizes."""
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    n_tensors, n_inputs = len(tensors), len(inputs)
    whole = _Whole(learner, function)

    def run(recorder, own, inputs):
        named = {
            f"learner.{name}": value.requires_grad_() if name in trained else value
            for name, value in zip(tensors, own, strict=True)
        }
        with loops_done_by(recorder):
            return functional_call(whole, named, inputs)

    def flat(*values):
        own, rest = values[:n_tensors], values[n_tensors:]
        recorder = _Recorder(rest[n_inputs], rest[n_inputs + 1 :])
        outputs = run(recorder, own, rest[:n_inputs])
        return [*recorder.start], [*recorder.after], [*outputs]

    mode = FakeTensorMode(
        allow_non_fake_inputs=True, shape_env=ShapeEnv(duck_shape=False)
    )
    own = [mode.from_tensor(v.detach(), static_shapes=True) for v in tensors.values()]
    given = tuple(_of_any_length(mode, value) for value in inputs)
    with _as_written(), mode, enable_python_dispatcher():
        looked = _Recorder()
        run(looked, own, given)
        carry = [torch.empty_like(value.detach()) for value in looked.start]
        number = torch.zeros((), dtype=torch.int64)
        own = [value.detach() for value in own]
        table = {**core_aten_decompositions(), **BACKWARD}
        traced = make_fx(flat, decomposition_table=table)(*own, *given, number, *carry)
    traced.graph.eliminate_dead_code()
    return traced, len(carry), looked.n_steps


def _of_any_length(mode, value):
    """A tensor without numbers, whose first axis may have any length."""
    others = value.ndim - 1
    context = StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * others],
        constraint_sizes=[None] * value.ndim,
    )
    return mode.from_tensor(value, symbolic_context=context)


class _Whole(nn.Module):
    """A function of a learner, as a module that holds the learner."""

    def __init__(self, learner, function):
        super().__init__()
        self.learner, self.function = learner, function

    def forward(self, *inputs):
        """See `function`."""
        return self.function(self.learner, *inputs)


def _cut(traced, n_carried):
    """Cut a traced graph where the loop begins and ends."""
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    (output,) = (n for n in traced.graph.nodes if n.op == "output")
    start, moved, outputs = output.args[0]
    looped = placeholders[len(placeholders) - n_carried - 1 :]
    given = placeholders[: len(placeholders) - n_carried - 1]
    inside = _depending_on(traced.graph, looped)
    of_step = _needed(moved, inside)
    of_after = _needed(outputs, inside)
    return _Pieces(
        _module(traced, given, [*start, *of_step, *of_after]),
        _module(traced, [*looped, *of_step], moved),
        _module(traced, [*looped[1:], *of_after], outputs),
        len(of_step),
    )


def _depending_on(graph, nodes):
    """The nodes given and all those computed from them."""
    found = set(nodes)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _is_number(node):
    """Whether a node stands for a size, and is computed again rather than handed on."""
    return not isinstance(node.meta.get("val"), Tensor) and node.op == "call_function"


def _needed(results, inside):
    """Tensors from outside of the loop that some nodes in it are computed from."""
    found, seen = {}, set()
    waiting = [node for node in results if isinstance(node, Node)]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in inside or _is_number(node):
            waiting += node.all_input_nodes
        elif node.op != "get_attr":
            found[node] = None
    return list(found)


def _module(traced, inputs, results):
    """The part of a graph that computes some nodes from others."""
    graph, copies, needed = Graph(), {}, set()
    waiting = [node for node in results if isinstance(node, Node)]
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in inputs:
            needed.add(node)
            waiting += node.all_input_nodes
    for position, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{position}")
        copies[node].meta = dict(node.meta)
    for node in traced.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    return GraphModule(traced, graph)
