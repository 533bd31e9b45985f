"""Which parameters the inner loop changes, and learning rates that are learned."""

import torch
from torch import nn

KINDS = {"layer", "layer_and_step", "parameter"}
PARTS = {"all", "body", "head"}


def adapted_parameters(module, part="all"):
    """Names of the parameters that the inner loop changes.

    Parameters
    ----------
    module : torch.nn.Module
    part : {"all", "body", "head"}, default="all"
        The head are the parameters of the last layer that has any, in the order of
        ``module.named_parameters()``; the body are those of the others.

    Returns
    -------
    tuple of str
        Frozen ones are not among them.
    """
    parameters = dict(module.named_parameters())
    last = _layer([*parameters][-1]) if parameters else None
    names = tuple(
        name
        for name, value in parameters.items()
        if value.requires_grad
        and (part == "all" or (_layer(name) == last) == (part == "head"))
    )
    if not names:
        raise ValueError(
            f"adapts={part!r} leaves the inner loop nothing to change: of the network's"
            f" {len(parameters)} parameter tensors, none is in this part and free. "
            "Unfreeze some, add a layer, or set adapts='all'."
        )
    return names


def _layer(name):
    """Name of the layer that owns a parameter."""
    return name.rpartition(".")[0]


class InnerRates(nn.Module):
    """Learning rates of the inner loop as meta-parameters; of either sign.

    Parameters
    ----------
    module : torch.nn.Module
    names : tuple of str
        Parameters of it that the inner loop changes.
    kind : {"layer", "layer_and_step", "parameter"}
        One rate for each layer, for each layer and step, or for each number.
    start : float
        What all of them are at first.
    n_steps : int

    References
    ----------
    Antoniou, Edwards, Storkey (2019), How to train your MAML, section 4: rates of each
    layer and step. Li, Zhou, Chen, Li (2017), Meta-SGD, equation 1: of each number.
    """

    def __init__(self, module, names, kind, start, n_steps):
        super().__init__()
        self.kind = kind
        layers = [*dict.fromkeys(map(_layer, names))]
        self.layers = {name: layers.index(_layer(name)) for name in names}
        parameters = dict(module.named_parameters())
        shapes = {
            "layer": [(1, len(layers))],
            "layer_and_step": [(n_steps, len(layers))],
            "parameter": [parameters[name].shape for name in names],
        }
        self.values = nn.ParameterList(
            nn.Parameter(torch.full(shape, float(start))) for shape in shapes[kind]
        )

    def forward(self, step):
        """Rates by the names of parameters; steps beyond the last have those of it.

        `step` is an int, or in a traced graph an int tensor of no dimension.
        """
        if self.kind == "parameter":
            return dict(zip(self.layers, self.values, strict=True))
        (rates,) = self.values
        last = len(rates) - 1
        step = step.clamp(max=last) if torch.is_tensor(step) else min(step, last)
        rates = rates[step].unbind()
        return {name: rates[layer] for name, layer in self.layers.items()}
