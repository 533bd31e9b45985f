"""Imports run one way, and the heavy ones stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sk_meta"
LAYERS = [
    {"tasks", "datasets", "networks", "learner", "engine"}
    | {"attention", "batch_norm", "heads", "updates"},
    {"checkpoint", "training", "distributed", "network_builder", "row_training"},
    {"base", "few_shot", "over_tasks", "pipeline", "predictions", "metrics"}
    | {"row_heads", "seeds", "task_by_task", "wrapped"},
    {"gradient_based", "metric_based", "closed_form", "model_based", "transfer"},
    {"ensemble", "compression", "selection", "onnx", "inspection", "checks"}
    | {"calibration", "lockstep", "saving", "search"},
]
METHODS = LAYERS[3]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(nodes):
    """Modules that nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def everywhere(path):
    return set(imports(ast.walk(ast.parse(path.read_text()))))


def at_module_level(path):
    tree = ast.parse(path.read_text())
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    return set(imports(node for node in ast.walk(tree) if id(node) not in inside))


def part(module):
    return module.split(".")[1] if module.startswith("sk_meta.") else None


def roots(modules):
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    layer = next((i for i, names in enumerate(LAYERS) if own in names), None)
    above = set().union(*LAYERS[layer + 1 :]) if layer is not None else set()
    if own in METHODS or own in LAYERS[4]:
        above |= METHODS - {own}
    wrong = above & {part(module) for module in everywhere(path)}
    assert not wrong, f"{path.name} imports {wrong}, which lie above it or beside it"
    assert "sk_meta" not in everywhere(path), "the root hides what is imported"
    if own not in LAYERS[1]:
        assert "skorch" not in roots(everywhere(path)), "skorch, outside of its layer"
    if own != "onnx":
        onnx = {"onnx", "onnxruntime", "onnxscript", "skl2onnx"}
        assert not onnx & roots(everywhere(path)), "onnx, outside of onnx/"
    late = {"matplotlib", "pandas", "PIL", "tqdm", "accelerate", "pyarrow"}
    assert not late & roots(at_module_level(path)), "optional, at the top of a module"


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - set().union(*LAYERS) == {"__init__"}


def test_import_is_light_and_lazy():
    code = (
        "import sys, sk_meta; "
        "heavy = {'torch', 'skorch', 'sklearn', 'onnx', 'pandas', 'matplotlib'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert set(sk_meta.__all__) <= set(dir(sk_meta)); "
        "assert all(callable(getattr(sk_meta, name)) for name in sk_meta.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
