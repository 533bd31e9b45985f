"""What nets over tasks and nets over rows share: a network that suits the data."""

import inspect

import numpy as np
import torch

from sk_meta.networks import MLP, Conv4


class NetworkBuilder:
    """Builds the user's network for rows of some shape; for a skorch net.

    It knows `input_shape_`, and `n_outputs_` or None where the network decides.
    """

    def initialize_criterion(self):
        """Keep the loss of each row; the learner averages over the rows of a task."""
        params = self.get_params_for("criterion")
        if isinstance(self.criterion, type) and (
            "reduction" in inspect.signature(self.criterion.__init__).parameters
        ):
            params = {**params, "reduction": "none"}
        self.criterion_ = self.initialized_instance(self.criterion, params)
        return self

    def _build_network(self):
        module, given = self.module, self.get_params_for("module")
        if module is None:
            module = Conv4 if len(self.input_shape_) == 3 else MLP
        if not isinstance(module, type):
            return self.initialized_instance(module, given)
        wanted = inspect.signature(module.__init__).parameters
        inferred = {
            "n_features": int(np.prod(self.input_shape_)),
            "input_shape": self.input_shape_,
            "n_outputs": self.n_outputs_,
        }
        inferred = {k: v for k, v in inferred.items() if k in wanted and v is not None}
        try:
            return module(**{**inferred, **given})
        except TypeError as error:
            raise TypeError(
                f"{module.__name__} cannot be made with {given}: {error}. It takes "
                f"{', '.join(name for name in wanted if name != 'self')}."
            ) from error

    def _check_output(self, network):
        """Length of the network's output, on two rows of zeros."""
        was_training = network.training
        network.eval()
        name = type(network).__name__
        try:
            with torch.no_grad():
                output = network(torch.zeros(2, *self.input_shape_))
        except RuntimeError as error:
            advice = "Name the parameter for the number of features `n_features` (or "
            advice += "`input_shape`) and leave it unset."
            if len(self.input_shape_) == 2:
                advice = "Images need an axis of channels: X[:, None]."
            raise ValueError(
                f"{name} does not take rows of shape {self.input_shape_}, which these "
                f"tasks have: {error}. {advice}"
            ) from error
        network.train(was_training)
        if not torch.is_tensor(output) or output.ndim != 2 or len(output) != 2:
            found = tuple(output.shape) if torch.is_tensor(output) else type(output)
            raise ValueError(
                f"{name} turned 2 rows into {found}; expected a tensor of shape "
                "(2, n_outputs)."
            )
        if self.n_outputs_ is not None and output.shape[1] != self.n_outputs_:
            raise ValueError(
                f"{name} gives {output.shape[1]} outputs; these tasks need "
                f"{self.n_outputs_}. Name the parameter for the number of outputs "
                "`n_outputs` and leave it unset, or set it to that number."
            )
        return output.shape[1]
