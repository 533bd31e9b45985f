"""Sphinx configuration. The build needs no network and fails on any warning (-W)."""

import sys
import warnings
from importlib.metadata import version as _version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "ext"))

project = "sk_meta"
author = "The sk_meta developers"
copyright = f"2026, {author}"
version = release = _version("sk_meta")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "coverage_check",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "literal"

html_theme = "furo"
html_title = f"sk_meta {release}"

autosummary_generate = True
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_typehints = "none"
numpydoc_show_class_members = False
# A docstring may list a reference that its text does not point to.
suppress_warnings = ["ref.citation", "ref.footnote"]

coverage_check_modules = [
    "sk_meta",
    "sk_meta.tasks",
    "sk_meta.datasets",
    "sk_meta.networks",
    "sk_meta.learner",
    "sk_meta.metrics",
    "sk_meta.checkpoint",
    "sk_meta.distributed",
    "sk_meta.onnx",
    "sk_meta.inspection",
]

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",  # what the examples import
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
}
# Matplotlib's Agg backend says that it cannot show figures; the gallery saves them.
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")


def skip_foreign_members(app, what, name, obj, skip, options):
    """Leave out what sklearn, skorch and torch define: they document it."""
    if what not in ("class", "exception"):
        return None
    obj = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    home = getattr(obj, "__module__", None) or ""
    return None if home.startswith("sk_meta") else True


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign_members)
