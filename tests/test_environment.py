"""pyproject.toml, environment.yml and constraints.txt say the same, and CITATION.cff names the same version."""

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers.project import ROOT

# What conda-forge calls otherwise than the Python package index does.
CONDA = {"torch": "pytorch", "opencv-python-headless": "py-opencv", "playwright": "playwright-python"}
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


def test_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation


def test_all_code_passes_the_linter():
    folders = ("surfaces", "helpers", "app", "lab", "tests", "notebooks")
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", *folders],
                          cwd=ROOT, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
