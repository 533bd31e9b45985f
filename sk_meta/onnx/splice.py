"""Putting a finished ONNX graph into the graph that skl2onnx builds."""

import onnx


def splice(scope, container, model, inputs):
    """Put the nodes of a model into a container of skl2onnx, under fresh names.

    Unlike skl2onnx's own way, this keeps absent optional inputs, and subgraphs that use
    names from outside.

    Parameters
    ----------
    scope : skl2onnx.common._topology.Scope
    container : skl2onnx.common._container.ModelComponentContainer
    model : onnx.ModelProto
        Without local functions.
    inputs : list of str
        What the model's inputs are called in the container.

    Returns
    -------
    list of str
        What its outputs are called there.
    """
    graph = model.graph
    renamed = {"": ""}
    renamed.update(zip([v.name for v in graph.input], inputs, strict=True))
    for tensor in graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = _rename(tensor.name, renamed, scope)
        container.initializers.append(copy)
    for node in graph.node:
        container.nodes.append(_renamed_node(node, renamed, scope))
    for used in model.opset_import:
        container.node_domain_version_pair_sets.add((used.domain, used.version))
    _sort_by_all_inputs(container)
    return [renamed[variable.name] for variable in graph.output]


def _rename(name, renamed, scope):
    if name not in renamed:
        renamed[name] = scope.get_unique_variable_name(name)
    return renamed[name]


def _renamed_node(node, renamed, scope):
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("metadata_props")
    copy.ClearField("doc_string")
    copy.name = scope.get_unique_operator_name(node.name or node.op_type)
    copy.input[:] = [_rename(name, renamed, scope) for name in node.input]
    # skl2onnx takes two absent outputs for one; a name that nobody uses is as good.
    copy.output[:] = [
        _rename(name, renamed, scope) if name else scope.get_unique_variable_name("no")
        for name in node.output
    ]
    for graph in _subgraphs(copy):
        nodes = [_renamed_node(inner, renamed, scope) for inner in graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = _rename(value.name, renamed, scope)
        graph.ClearField("value_info")
    return copy


def _subgraphs(node):
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _sort_by_all_inputs(container):
    """Let the container sort nodes by what subgraphs use, and not by absent inputs."""
    if "ensure_topological_order" in vars(container):
        return
    sort = container.ensure_topological_order

    def ensure_topological_order():
        nodes = list(container.nodes)
        inputs = [list(node.input) for node in nodes]
        produced = {name for node in nodes for name in node.output}
        for node in nodes:
            node.input[:] = [name for name in node.input if name] + sorted(
                _used_inside(node) & produced
            )
        sort()
        for node, names in zip(nodes, inputs, strict=True):
            node.input[:] = names

    container.ensure_topological_order = ensure_topological_order


def _used_inside(node):
    """Names that the subgraphs of a node use."""
    return {
        name
        for graph in _subgraphs(node)
        for inner in graph.node
        for name in {*inner.input, *_used_inside(inner)}
    }
