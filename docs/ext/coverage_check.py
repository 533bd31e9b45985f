"""Fail the build when a public name is missing from the API page.

Every name in the ``__all__`` of the modules in ``coverage_check_modules`` has to be
documented, under that module or under another one that exports the same object.
"""

import inspect
from importlib import import_module

from sphinx.errors import ExtensionError


def public_objects(module_name):
    """(full name, object) of what a module exports, submodules left out."""
    module = import_module(module_name)
    if not hasattr(module, "__all__"):
        raise ExtensionError(f"{module_name} has no __all__. Say what is public in it.")
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.ismodule(value):
            yield f"{module_name}.{name}", value


def undocumented(documented, module_names):
    """Public names of modules of which no alias is among the `documented` names."""
    public = [pair for name in module_names for pair in public_objects(name)]
    seen = {id(value) for name, value in public if name in documented}
    return [name for name, value in public if id(value) not in seen]


def check(app, env):
    documented = set(env.get_domain("py").objects)
    missing = undocumented(documented, app.config.coverage_check_modules)
    if missing:
        raise ExtensionError(
            "Public names that no page documents: "
            + ", ".join(missing)
            + ". Add them to docs/api.rst, or take them out of __all__."
        )


def setup(app):
    app.add_config_value("coverage_check_modules", [], "env")
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
