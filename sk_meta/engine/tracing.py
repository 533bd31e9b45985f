"""A function as the list of its operations, without the Python around them."""

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

_aten = torch.ops.aten
_VIEWS = _aten.view.default, _aten._unsafe_view.default, _aten.expand.default


def operations(function, given):
    """Trace a function of tensors, transforms such as vmap and grad included.

    Parameters
    ----------
    function : callable
        Does the same operations whatever the data.
    given : tuple of nested tensors
        Arguments; their shapes are those of every later call.

    Returns
    -------
    torch.fx.GraphModule
        Gives the same bits as the function.

    Raises
    ------
    RuntimeError
        If what it does depends on the data.

    Examples
    --------
    >>> import torch
    >>> from sk_meta.engine.tracing import operations
    >>> x = torch.arange(3.0)
    >>> operations(lambda x: x.view(3) + torch.zeros_like(x) + x, (x,))(x)
    tensor([0., 2., 4.])
    """
    # Fake tensors: nothing is computed, and no stack is recorded for each operation.
    traced = make_fx(function, None, "fake", _allow_non_fake_inputs=True)(*given)
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    if any(call.target._schema.is_mutable for call in calls):
        return traced  # what is only passed on may change later
    for call in calls:
        source = _passed_on(call)
        if isinstance(source, Node) and _form(source) == _form(call):
            call.replace_all_uses_with(source)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _passed_on(call):
    """What a view is of, or what zeros are added to, as a ReLU's derivatives do."""
    if call.target in _VIEWS:
        return call.args[0]
    if call.target is _aten.add.Tensor and not call.kwargs:
        for zeros, term in (call.args, call.args[::-1]):
            if getattr(zeros, "target", None) is _aten.zeros_like.default:
                return term
    return None


def _form(node):
    return node.meta["val"].shape, node.meta["val"].dtype
