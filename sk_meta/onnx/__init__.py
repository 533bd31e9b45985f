"""Adapted models as ONNX files.

Importing this module also registers converters with skl2onnx, where that is installed,
so that plain ``skl2onnx.to_onnx(model, X[:1])`` works.
"""

from importlib.util import find_spec

from sk_meta.onnx.export import to_onnx

__all__ = ["to_onnx"]

if find_spec("skl2onnx"):
    from sk_meta.onnx.converters import register

    register()
