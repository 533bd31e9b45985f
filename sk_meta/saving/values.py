"""Values as JSON and tensors, and back."""

import math
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_meta.base import MetaEstimator
from sk_meta.saving import known
from sk_meta.saving.learners import fitted_state, restore
from sk_meta.task_by_task import TaskByTask
from sk_meta.training import Progress, TaskNet
from sk_meta.wrapped import WrappedLearner

_WIDEST = 2**24  # characters of an array of strings, all of them together
_PARTS = ("module__", "criterion__", "optimizer__")
# Of a TaskNet: they matter to training alone, and may hold any code.
_TRAINING = {"callbacks", "dataset", "iterator_train", "iterator_valid"}
_TRAINING |= {"predict_nonlinearity", "torch_load_kwargs", "train_split"}


class Writer:
    """Turns values into JSON; large ones go to `tensors`.

    Attributes
    ----------
    tensors : dict of tensors
    own : dict of classes
        That a reader must be given.
    left_out : set of str
        Parameters that matter to training alone and cannot be written.
    """

    def __init__(self):
        self.tensors, self.own, self.left_out = {}, {}, set()
        self._classes = {}

    def write(self, value, where):
        """A value as JSON.

        Parameters
        ----------
        value : object
        where : str
            How messages and tensors call it.

        Raises
        ------
        TypeError
            If it cannot be written.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) in (list, tuple):
            items = [self.write(v, f"{where}.{i}") for i, v in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if type(value) is dict:
            return {"dict": [[self.write(k, where), self.write(v, f"{where}.{k}")]
                             for k, v in value.items()]}  # fmt: skip
        if known.named_tuples().get(type(value).__name__) is type(value):
            fields = self._named(value._asdict(), where)
            return {"named_tuple": [type(value).__name__, fields]}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(value, where)}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value), where)
        return self._object(value, where)

    def _object(self, value, where):
        if isinstance(value, TaskNet):
            return {"net": self._net(value, where)}
        if isinstance(value, BaseEstimator):
            return {"estimator": self._estimator(value, where)}
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop, value.step]}
        if isinstance(value, np.dtype) and value.name in known.TYPES:
            return {"dtype": value.name}
        if isinstance(value, type) and issubclass(value, np.generic):
            return {"type": np.dtype(value).name}
        name = known.name_of(value, self._classes)
        if name in self._classes:
            return {"class": name}
        if self._classes and isinstance(value, type):
            self.own[name] = value
            return {"class": name}
        advice = "Set it to a number, a string, an array, or a list of these"
        if isinstance(value, nn.Module):
            advice = "Pass the class of the network, and its arguments as module__..."
        raise TypeError(
            f"{where} is {value!r:.80} ({type(value).__name__}), which cannot be "
            f"saved without pickle. {advice}; or use joblib.dump."
        )

    def _named(self, values, where):
        return {name: self.write(v, f"{where}.{name}") for name, v in values.items()}

    def _tensor(self, value, where):
        """Name, and order of axes in memory, which decides on the last bits."""
        if value.layout is not torch.strided or value.is_quantized:
            raise TypeError(f"{where} is a sparse or quantised tensor: densify it.")
        value, shape = value.detach().cpu(), value.shape
        axes = range(value.ndim)
        order = sorted(axes, key=lambda i: (-value.stride(i), shape[i] == 1, i))
        if not value.permute(order).is_contiguous():
            order = list(axes)
        name = where
        while name in self.tensors:
            name += "_"
        value = value.permute(order)
        self.tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return [name, order]

    def _array(self, value, where):
        if value.dtype.kind in "UO":
            width = value.dtype.itemsize // 4 if value.dtype.kind == "U" else None
            items = self.write(value.ravel().tolist(), where)
            return {"objects": [items, list(value.shape), width]}
        native = value.astype(value.dtype.newbyteorder("="), order="K")
        try:
            tensor = torch.from_numpy(native)
        except TypeError as error:
            raise TypeError(
                f"{where} is an array of {value.dtype}, which cannot be saved."
            ) from error
        return {"array": self._tensor(tensor, where)}

    def _estimator(self, value, where):
        kind, params = type(value), value.get_params(deep=False)
        if hasattr(value, "onnx_model_"):
            raise TypeError(
                f"{where} is a {kind.__name__}, which is an ONNX file already. Write "
                "it with sk_meta.onnx.to_onnx(model, path), and read it with "
                "sk_meta.onnx.OnnxMetaLearner(path)."
            )
        if isinstance(value, TaskByTask):
            raise TypeError(
                f"{where} holds estimators of any kind, which cannot be saved without "
                "pickle. Use joblib.dump."
            )
        name = known.name_of(kind, known.estimators())
        if name not in known.estimators():
            self.own[name] = kind
        if isinstance(value, MetaEstimator):
            fitted = fitted_state(value, where) if hasattr(value, "net_") else {}
        else:
            fitted = {k: v for k, v in vars(value).items() if k not in params}
        if isinstance(value, WrappedLearner):
            params = {k: _unfitted(v) for k, v in params.items()}
        if not isinstance(params.get("random_state"), int | np.integer | None):
            self._leave_out(params, "random_state", "an object")
        score = params.get("score_func")
        if score not in (None, *known.classes_for("score_func").values()):
            # A selector that is fitted asks it no more.
            self._leave_out(params, "score_func", getattr(score, "__name__", None))
        self.left_out |= {
            p for p in params.keys() & known.NEVER if params[p] is not None
        }
        written = {}
        for parameter in params.keys() - known.NEVER:
            with self._allowing(known.classes_for(parameter)):
                at = f"{where}.{parameter}"
                written[parameter] = self.write(params[parameter], at)
        return [name, written, self._named(fitted, where)]

    def _leave_out(self, params, name, what):
        del params[name]
        if what is not None:
            self.left_out.add(f"{name} ({what})")

    def _net(self, net, where):
        if type(net) is not TaskNet:
            self.left_out.add(f"the subclass {type(net).__name__} of TaskNet")
        written, default = {}, TaskNet().get_params(deep=False)
        for name, value in net.get_params(deep=False).items():
            if name in default.keys() - _TRAINING or name.startswith(_PARTS):
                with self._allowing(known.classes_for(name)):
                    written[name] = self.write(value, f"{where}.{name}")
            elif value is not default.get(name):
                if name != "callbacks" or not _is_progress(value):
                    self.left_out.add(name)
        return written

    @contextmanager
    def _allowing(self, classes):
        before, self._classes = self._classes, classes
        try:
            yield
        finally:
            self._classes = before


class Reader:
    """Turns JSON and tensors back into values.

    Parameters
    ----------
    tensors : dict of tensors
    own : dict of classes
        The user's, by their names.
    """

    def __init__(self, tensors, own):
        self.tensors, self.own = dict(tensors), own
        self._classes = {}

    def read(self, node):
        """The value of a piece of JSON."""
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, list):
            return [self.read(item) for item in node]
        ((tag, content),) = node.items()
        return _READERS[tag](self, content)

    def finish(self):
        """Raise if there are tensors that belong to nothing."""
        if self.tensors:
            raise ValueError(f"Nothing uses the tensors {sorted(self.tensors)!r:.60}.")

    def _dict(self, pairs):
        return {self.read(key): self.read(value) for key, value in pairs}

    def _named_tuple(self, content):
        name, fields = content
        kind = known.find(name, known.named_tuples(), {})
        return kind(**{field: self.read(value) for field, value in fields.items()})

    def _tensor(self, content):
        name, order = content
        # Each is there once: no file makes many of few.
        value = self.tensors.pop(name).clone()
        return value.permute(np.argsort(order).tolist())

    def _array(self, content):
        return self._tensor(content).numpy()[()]

    def _objects(self, content):
        items, shape, width = content
        values = np.empty(len(items), dtype=object)
        for position, item in enumerate(items):
            values[position] = self.read(item)
        if width is not None:
            longest = max((len(item) for item in values), default=1)
            if not longest <= width <= max(1, _WIDEST // max(1, len(values))):
                raise ValueError(f"Strings of {width!r:.20} characters.")
            values = values.astype(f"<U{width:d}")
        return values.reshape(shape)[()]

    def _estimator(self, content):
        name, params, fitted = content
        kind = known.find(name, known.estimators(), self.own)
        unknown = params.keys() - (set(kind._get_param_names()) - known.NEVER)
        if unknown:
            raise ValueError(f"{kind.__name__} has no parameter {min(unknown)!r:.60}.")
        made = {}
        for parameter, node in params.items():
            self._classes = known.classes_for(parameter)
            made[parameter] = self.read(node)
            self._classes = {}
        estimator = kind(**made)
        values = {attribute: self.read(node) for attribute, node in fitted.items()}
        if isinstance(estimator, MetaEstimator):
            if values:
                restore(estimator, values)
            return estimator
        for attribute in values:
            if attribute.startswith("__") or hasattr(kind, attribute):
                raise ValueError(f"{attribute!r:.60} is no attribute of a fitted one.")
        vars(estimator).update(values)
        return estimator

    def _net(self, content):
        params = {}
        names = set(TaskNet._get_param_names(TaskNet())) - _TRAINING
        for name, node in content.items():
            if name not in names and not name.startswith(_PARTS):
                raise ValueError(f"TaskNet has no parameter {name!r:.60}.")
            self._classes = known.classes_for(name)
            params[name] = self.read(node)
            self._classes = {}
        return TaskNet(**params)

    def _dtype(self, name):
        if name not in known.TYPES:
            raise ValueError(f"{name!r:.60} is no type of numbers.")
        return np.dtype(name)


_READERS = {
    "float": lambda reader, text: float(text),
    "tuple": lambda reader, items: tuple(map(reader.read, items)),
    "dict": Reader._dict,
    "named_tuple": Reader._named_tuple,
    "tensor": Reader._tensor,
    "array": Reader._array,
    "objects": Reader._objects,
    "estimator": Reader._estimator,
    "net": Reader._net,
    "slice": lambda reader, bounds: slice(*bounds),
    "dtype": Reader._dtype,
    "type": lambda reader, name: reader._dtype(name).type,
    "class": lambda reader, name: known.find(
        name, reader._classes, reader.own if reader._classes else {}
    ),
}


def _unfitted(value):
    """A parameter without what it has learned: a teacher is large."""
    if isinstance(value, FrozenEstimator):
        return FrozenEstimator(clone(value.estimator))
    if isinstance(value, list | tuple):
        return type(value)(map(_unfitted, value))
    return clone(value) if isinstance(value, BaseEstimator) else value


def _is_progress(callbacks):
    """Whether callbacks are the bar that `verbose` brings, or none."""
    if callbacks == "disable":
        return True
    parts = [part[1] if isinstance(part, tuple) else part for part in callbacks]
    return all(isinstance(part, Progress) for part in parts)
