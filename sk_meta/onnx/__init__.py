"""ONNX files of adapted models and of meta-learners, and a runtime without torch.

The names load on first use: `OnnxMetaLearner` needs numpy, onnxruntime and
scikit-learn alone. Importing `to_onnx`, or calling `register`, makes skl2onnx know the
estimators that `adapt` returns, so that plain ``skl2onnx.to_onnx(model, X[:1])`` works.
"""

from importlib import import_module
from importlib.util import find_spec

_HOME = {
    "OnnxFewShotClassifier": "runtime",
    "OnnxFewShotRegressor": "runtime",
    "OnnxMetaLearner": "runtime",
    "to_onnx": "export",
}

__all__ = [*_HOME, "register"]


def register():
    """Make skl2onnx know what `adapt` returns, and FrozenEstimator.

    ``from sk_meta.onnx import to_onnx`` does it too, where skl2onnx is installed.

    Raises
    ------
    ImportError
        If skl2onnx is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import skl2onnx
    >>> import sk_meta.onnx
    >>> from sk_meta import FewShotClassifier
    >>> sk_meta.onnx.register()
    >>> model = FewShotClassifier().fit([[0.0], [1.0]], ["low", "high"])
    >>> onnx_model = skl2onnx.to_onnx(model, np.zeros((1, 1), np.float32))
    """
    if not find_spec("skl2onnx"):
        raise ImportError('Converting needs skl2onnx. Run pip install "sk_meta[onnx]".')
    import_module("sk_meta.onnx.converters").register()


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'sk_meta.onnx' has no attribute {name!r}")
    if name == "to_onnx" and find_spec("skl2onnx"):
        register()
    if _HOME[name] == "runtime" and not find_spec("onnxruntime"):
        raise ImportError(f"{name} needs onnxruntime. Run pip install onnxruntime.")
    try:
        return getattr(import_module(f"sk_meta.onnx.{_HOME[name]}"), name)
    except AttributeError as error:  # which Python would take for a missing name
        raise ImportError(f"{name} cannot be imported: {error}") from error


def __dir__():
    return sorted([*globals(), *_HOME])
