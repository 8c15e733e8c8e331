"""The README's numbers are those of data/results/; commands, files and names in all documents are those that exist."""

import pkgutil
import re
import tomllib

import pytest
import yaml

from helpers.project import ROOT
from lab import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_regenerated_from_the_results():
    assert readme.written(TEXT) == TEXT, "run `make readme`"


def test_costs_are_regenerated_from_the_cards():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert readme.written(text, {"cost": readme.cost_part}) == text, "run `make readme`"
    assert "crops of" in text


def test_regeneration_notices_a_changed_number():
    changed = re.sub(r"\| unet \| \d", "| unet | 9", TEXT)
    assert changed != TEXT and readme.written(changed) == TEXT


def test_missing_marks_are_named():
    with pytest.raises(ValueError, match="marks <!-- results -->"):
        readme.written("# no marks here")


# Documents and their code: make targets, modules, files, links


DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md",
                                    "data/results/README.md")]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def code_in(text):
    """The code in Markdown `text`: its blocks, and the words between backticks, one to a line."""
    parts = re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL)
    return "\n".join(block or words for block, words in parts)


def targets_in(text):
    return set(re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", code_in(text), re.MULTILINE))


def missing_in(text):
    """What `text` names and is not there: modules after ``-m``, and files of our folders; NAME stands for any name."""
    code = code_in(text)
    modules = re.findall(r"-m ((?:surfaces|helpers|app|lab)\.\w+)", code)
    files = re.findall(r"(?<![\w./\\-])((?:surfaces|helpers|app|lab|tests|notebooks|data)/[\w./-]*\w)", code)
    wanted = {*(f"{module.replace('.', '/')}.py" for module in modules), *files}
    never_committed = re.compile("data/(cache|runs)")
    return sorted(path for path in wanted if not never_committed.match(path) and "NAME" not in path
                  and not (ROOT / path).exists())


@each_document
def test_make_targets_that_are_named_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets_in(path.read_text(encoding="utf-8")) <= targets


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],
                         ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_files_that_are_named_exist(path):
    assert missing_in(path.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found():
    text = "`python -m lab.nothing`, `helpers/nothing.py`, `lab/NAME.py`, `data/runs`\n```bash\nA=b make nothing\n```\n"
    assert missing_in(text) == ["helpers/nothing.py", "lab/nothing.py"]
    assert targets_in(text) == {"nothing"}


@pytest.mark.parametrize(("path", "link"), [(path, link) for path in DOCUMENTS for link in
                                            re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))],
                         ids=lambda part: part.name if hasattr(part, "name") else part)
def test_links_lead_somewhere(path, link):
    assert link.startswith("http") or (path.parent / link).exists()


def new_names(changes, version):
    """The names of ours in the last column of the tables in a changelog's section about `version`."""
    section = re.search(rf"^## \[{re.escape(version)}\].*?(?=^## \[|\Z)", changes, re.MULTILINE | re.DOTALL)[0]
    columns = re.findall(r"^\|.*\| (.*) \|$", section, re.MULTILINE)
    ours = re.compile(r"`((?:surfaces|helpers|app|lab)\.[\w.]+)`")
    return sorted({name for column in columns for name in ours.findall(column)})


def test_the_changelog_names_what_is_there():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for name in new_names((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version):
        pkgutil.resolve_name(name)  # a module, or a name in one


def test_new_names_are_found_in_one_section_only():
    changes = "## [2]\n| a | b |\n| `helpers.a` | `lab.b`, `lab.c.d` |\n## [1]\n| `helpers.e` | `lab.f` |\n"
    assert new_names(changes, "2") == ["lab.b", "lab.c.d"]
    assert new_names(changes, "1") == ["lab.f"]


def test_the_workflow_runs_the_commands_of_the_readme():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    lines = [line for step in steps for line in step["run"].strip().splitlines()]
    commands = [line.split("  #")[0].strip() for line in code_in(TEXT).splitlines()]
    assert sorted(set(lines) - set(commands)) == []
    assert {"make run", "make test"} < set(lines)
    assert workflow["permissions"] == {"contents": "read"} and "secrets." not in str(workflow)
