"""pyproject.toml, environment.yml and constraints.txt say the same; what is required is used, all code is checked."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_house import files, imported, package_of, source_of

from helpers.project import ROOT

# What conda-forge calls otherwise than the Python package index does, and what a package is called in an import.
CONDA = {"torch": "pytorch", "opencv-python-headless": "py-opencv", "playwright": "playwright-python"}
MODULES = {"grad-cam": "pytorch_grad_cam", "opencv-python-headless": "cv2", "pillow": "PIL", "scikit-image": "skimage",
           "scikit-learn": "sklearn"}
# Imported, and brought by a package that is listed; and listed, but started by name in a file instead of imported.
COMPANIONS = {"IPython": "jupyterlab", "matplotlib_inline": "jupyterlab", "nbformat": "nbconvert", "zmq": "nbclient",
              "jupyter_client": "nbclient", "traitlets": "nbclient", "huggingface_hub": "transformers",
              "yaml": "transformers", "pywt": "ptwt", "packaging": "pytest"}
STARTED = {"jupyterlab": ("Makefile", "-m jupyterlab"), "voila": ("Makefile", "-m voila"),
           "nbval": ("Makefile", "--nbval-lax"), "ruff": ("tests/test_environment.py", '"ruff"')}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def requirements(extra=None):
    """The requirements of the project, or of one of its extras, by name."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def conda_lines():
    """The packages in environment.yml: {name: (bounds, reason)}."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    lines = re.findall(r"^  - ([\w-]+) *([^#\n]*?) *(?:# *(.*))?$", text.split("dependencies:")[1], flags=re.M)
    return {name: (bounds, reason) for name, bounds, reason in lines}


def pins():
    """The versions in constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert [str(r) for r in found if not re.fullmatch(r"==[^*,]+", str(r.specifier))] == []
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in found}


def test_environment_yml_says_what_pyproject_says():
    wanted = {CONDA.get(name, name): r.specifier for name, r in (requirements() | requirements("dev")).items()}
    listed = {name: Requirement(f"x{bounds}").specifier for name, (bounds, _) in conda_lines().items()}
    pip_and_python = {"pip", "python"}
    assert {name: bounds for name, bounds in listed.items() if name not in pip_and_python} == wanted
    assert str(listed["python"]) == PROJECT["requires-python"]


def test_environment_yml_gives_a_reason_per_line():
    assert [name for name, (_, reason) in conda_lines().items() if len(reason) < 5] == []


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_requirement_has_a_lower_and_an_upper_bound(extra):
    operators = {name: {bound.operator for bound in r.specifier} for name, r in requirements(extra).items()}
    assert {name: found for name, found in operators.items() if found != {">=", "<"}} == {}


def test_constraints_lie_within_the_bounds():
    pinned, installed = pins(), requirements() | requirements("dev")
    assert sorted(installed.keys() - pinned.keys()) == []
    known = {name: r.specifier for name, r in (installed | requirements("bm3d")).items() if name in pinned}
    assert {name: str(pinned[name]) for name, bounds in known.items() if pinned[name] not in bounds} == {}


def test_this_version_is_named_where_people_look():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert newest == PROJECT["version"]


def imports_of(*rooms):
    """The packages of other people that the modules and notebooks of `rooms` import, as names of modules."""
    found = {name.split(".")[0] for room, path in [*files(), *(("tests", p) for p in (ROOT / "tests").glob("*.py"))]
             if room in rooms for name in imported(source_of(path), package_of(path))}
    ours = {path.stem for path in (ROOT / "tests").glob("*.py")} | set(PYPROJECT["tool"]["setuptools"]["packages"])
    return found - ours - set(sys.stdlib_module_names)


@pytest.mark.parametrize(("rooms", "extras"), [
    (("surfaces", "helpers", "app", "notebooks"), ()), (("lab", "tests"), ("dev", "bm3d"))])
def test_what_is_imported_is_required(rooms, extras):
    """Notebooks and what they import live on the dependencies alone, the laboratory and the tests on the extras too."""
    listed = set(requirements()).union(*map(requirements, extras))
    there = {MODULES.get(name, name) for name in listed} | {name for name, by in COMPANIONS.items() if by in listed}
    assert imports_of(*rooms) - there == set()


def test_what_is_required_is_used():
    rooms = ("surfaces", "helpers", "app", "notebooks", "lab")
    used, used_by_tests = imports_of(*rooms), imports_of(*rooms, "tests")
    needed = {None: used, "dev": used_by_tests, "bm3d": used}
    idle = {name for extra, modules in needed.items() for name in requirements(extra)
            if MODULES.get(name, name) not in modules and name not in STARTED}
    assert idle == set()
    assert {name: place for name, (place, words) in STARTED.items()
            if words not in (ROOT / place).read_text(encoding="utf-8")} == {}


def code_of_ours():
    """Every module and notebook that git tracks, as a path from the root; the test is skipped outside a clone."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.py", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone: git does not know the files")
    return {Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def ruff(*arguments):
    return subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", *arguments], cwd=ROOT,
                          capture_output=True, text=True)


def test_all_code_passes_the_linter():
    checked = ruff("--output-format=concise")  # no folder is named, so that none can be forgotten
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_linter_sees_all_code():
    seen = {Path(line).relative_to(ROOT) for line in ruff("--show-files").stdout.splitlines()}
    assert sorted(code_of_ours() - seen) == []


def test_packages_tests_and_notebooks_are_all_the_code_there_is():
    packages = {".".join(path.parent.parts) for path in code_of_ours() if path.parts[0] not in ("tests", "notebooks")}
    assert sorted(packages) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])


def commands(name):
    """The folders and options of each command in file `name` that runs all tests: `pytest tests ...` without a path."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if variable := re.search(r"^NOTEBOOKS := (.*)$", text, re.M):  # in the Makefile
        text = text.replace("$(NOTEBOOKS)", variable[1].replace("$(wildcard notebooks)", "notebooks"))
    return [set(line.split()) for line in re.findall(r"-m pytest (tests [^/\n]*)$", text, re.M)]


@pytest.mark.parametrize(("name", "how_many"), [
    ("Makefile", 1), ("README.md", 2), (".github/workflows/tests.yml", 1)])
def test_commands_that_run_all_tests_name_every_folder_of_code(name, how_many):
    folders = {path.parts[0] for path in code_of_ours()}
    assert len(commands(name)) == how_many
    assert [(folders - words, "--nbval-lax" in words) for words in commands(name)] == [(set(), True)] * how_many


def test_docstring_examples_of_every_package_run():
    pytest_options = PYPROJECT["tool"]["pytest"]["ini_options"]
    folders = {path.parts[0] for path in code_of_ours() if path.suffix == ".py"}
    assert folders == set(pytest_options["testpaths"])
    assert "--doctest-modules" in pytest_options["addopts"].split()
    # What would leave modules out: options and hooks that ignore some, and the names that pytest takes no examples of.
    assert not re.search("ignore|deselect|norecurse", " ".join([*pytest_options, pytest_options["addopts"]]))
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in code_of_ours() if path.suffix == ".py"}
    assert [path for path, source in sources.items() if path.name == "conftest.py" and "ignore" in source] == []
    assert [path for path, source in sources.items()
            if path.name in ("__main__.py", "setup.py") and ">>> " in source] == []
