"""Which package may import which: every file and notebook cell is read, lazy and relative imports included."""

import ast
import json
import re
from pathlib import Path

import pytest

from helpers.project import ROOT

ROOMS = ("surfaces", "helpers", "app", "lab")
MAY = {"surfaces": {"surfaces"}, "helpers": {"surfaces", "helpers"}, "app": {"surfaces", "helpers", "app"},
       "lab": set(ROOMS), "notebooks": {"surfaces", "helpers", "app"}}
NEVER = {"surfaces": {"torch"}, "helpers": {"ipywidgets", "anywidget"}}
# What still breaks the rule, as (file, module): this list only shrinks, and a line that is no longer true fails too.
STILL = set()


def source_of(path):
    """The Python code of a module, or of all code cells of a notebook without their magic lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(re.sub(r"^\s*[%!].*$", "", cell, flags=re.M) for cell in cells)


def imported(source, package=""):
    """Yield the full name of every module that `source` imports anywhere; `package` is where relative ones start."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module",
                                                                       "importlib.import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def files():
    """Every module of the packages and every notebook, with the room whose rule it follows."""
    for room in ROOMS:
        yield from ((room, path) for path in sorted((ROOT / room).rglob("*.py")))
        yield from ((room, path) for path in sorted((ROOT / room).rglob("*.ipynb"))
                    if ".ipynb_checkpoints" not in path.parts)
    yield from (("notebooks", path) for path in sorted((ROOT / "notebooks").glob("*.ipynb")))


def violations(room, source, package):
    tops = {name.split(".")[0] for name in imported(source, package)}
    return sorted((tops & set(ROOMS)) - MAY[room] | tops & NEVER.get(room, set()))


def package_of(path):
    return ".".join(path.relative_to(ROOT).parts[:-1])


def test_the_packages_import_only_what_they_may():
    found = {(path.relative_to(ROOT).as_posix(), bad)
             for room, path in files() for bad in violations(room, source_of(path), package_of(path))}
    assert found - STILL == set()
    assert STILL - found == set(), "mended: take these lines out of STILL"


@pytest.mark.parametrize(("room", "source", "bad"), [
    ("surfaces", "def f():\n    import torch.nn", ["torch"]),
    ("helpers", "try:\n    from ipywidgets import VBox\nexcept ImportError:\n    pass", ["ipywidgets"]),
    ("helpers", "import importlib\nimportlib.import_module('lab.train')", ["lab"]),
    ("notebooks", "from lab.intervals import holm", ["lab"]),
    ("lab", "import app.explorer, helpers.cam, surfaces", []),
    ("helpers", "from .models import UNet\nfrom surfaces import draw_surface", []),
])  # fmt: skip
def test_the_rule_sees_imports_wherever_they_stand(room, source, bad):
    assert violations(room, source, room) == bad


def test_relative_imports_are_resolved():
    assert "helpers.models" in set(imported("from . import models", "helpers"))
    assert "helpers.vit" in set(imported("from ..vit import open_vit", "helpers.inner"))


def test_no_module_reaches_itself():
    arrows = {}
    for _, path in files():
        if path.suffix == ".py":
            own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            arrows[own] = set(imported(source_of(path), package_of(path))) - {own}
    arrows = {own: {name for name in names if name in arrows and "." in name} for own, names in arrows.items()}

    def reached(start):
        seen, todo = set(), list(arrows[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += arrows[name]
        return seen

    assert [name for name in arrows if name in reached(name)] == []


def test_no_module_hides_a_name():
    hiding = [path.name for _, path in files() if path.suffix == ".py" and re.search(r"^def __getattr__",
                                                                                   path.read_text(), re.M)]
    assert hiding == []


def test_helpers_are_thin():
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines())
             for path in sorted((ROOT / "helpers").glob("*.py"))}
    assert len(set(sizes) - {"__init__.py"}) <= 13, sorted(sizes)
    assert not list((ROOT / "helpers").glob("*/*.py"))
    assert sum(sizes.values()) <= 3400
    assert max(sizes.values()) <= 450, sizes


def test_every_package_is_installed():
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(ROOMS)
    assert {path.parent.name for path in Path(ROOT).glob("*/__init__.py")} == set(ROOMS)


def public_functions(tree):
    """The functions and methods of a module that others may call."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_have_types():
    untyped = []
    for room, path in files():
        if room in ("surfaces", "helpers", "app") and path.suffix == ".py":
            for function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
                words = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                if function.returns is None or any(word.annotation is None for word in words
                                                   if word.arg not in ("self", "cls")):
                    untyped.append(f"{path.name}: {function.name}")
    assert untyped == []
    made = ast.parse("class A:\n    def f(self, x: int): ...\n    def _g(x): ...\ndef h(x) -> int: ...")
    assert [function.name for function in public_functions(made)] == ["f", "h"]  # what is looked at
