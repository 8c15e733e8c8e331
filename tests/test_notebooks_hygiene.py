"""The committed notebooks: executed once from top to bottom, small, the same for every reader, and with checks."""

import ast
import re

import nbformat
import pytest

from lab import notebooks

PATHS = sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def python(cell):
    """A code cell as Python: without the lines that only IPython understands."""
    return ast.parse(re.sub(r"^\s*[%!].*$", "pass", cell.source, flags=re.M))


def checks(nb):
    """How much in `nb` can fail: asserts, and cells whose output the tests compare with the committed one."""
    asserts = sum(isinstance(node, ast.Assert) for cell in code_cells(nb) for node in ast.walk(python(cell)))
    compared = sum("nbval-check-output" in cell.metadata.get("tags", ()) or "NBVAL_CHECK_OUTPUT" in cell.source
                   for cell in code_cells(nb))
    return asserts + compared


def unexplained(nb):
    """The code cells of `nb` that do not follow a sentence: a Markdown cell with more in it than a heading."""
    found = []
    for before, cell in zip([None, *nb.cells], nb.cells, strict=False):
        if cell.cell_type == "code":
            prose = re.sub(r"^#.*$", "", before.source, flags=re.M) if before and before.cell_type == "markdown" else ""
            if not re.search(r"\w[^\n]*[.:?!]", prose):
                found.append(cell.source.split("\n")[0])
    return found


def silenced(nb):
    """Calls in `nb` that ignore every warning, whatever its message, category or module."""
    calls = [node for cell in code_cells(nb) for node in ast.walk(python(cell)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls
            if ast.unparse(call.func).split(".")[-1] in ("filterwarnings", "simplefilter")
            and len(call.args) + len(call.keywords) == 1 and "ignore" in ast.unparse(call)]


@each_notebook
def test_is_clean(path):
    assert notebooks.problems(nbformat.read(path, as_version=4), path.stat().st_size) == []


@each_notebook
def test_is_valid_and_holds_nothing_that_changes_with_every_run(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert nb.metadata == notebooks.clean(nb).metadata
    assert [set(cell.metadata) - {"tags"} for cell in nb.cells] == [set()] * len(nb.cells)


@each_notebook
def test_title_is_a_numbered_question(path):
    title = nbformat.read(path, as_version=4).cells[0].source.split("\n")[0]
    assert re.fullmatch(rf"# {path.name[:2]} · \w.*\?", title), title


@each_notebook
def test_code_cells_are_short_and_explained(path):
    nb = nbformat.read(path, as_version=4)
    lengths = {cell.source.split("\n")[0]: len(cell.source.strip().split("\n")) for cell in code_cells(nb)}
    assert {first: length for first, length in lengths.items() if length > 25} == {}
    assert unexplained(nb) == []


@each_notebook
def test_has_checks_and_hears_its_warnings(path):
    nb = nbformat.read(path, as_version=4)
    assert checks(nb) >= 3
    assert silenced(nb) == []


def test_these_rules_can_fail():
    cells = [nbformat.v4.new_markdown_cell("## Only a heading"), nbformat.v4.new_code_cell("%matplotlib inline\nx = 1"),
             nbformat.v4.new_markdown_cell("Why not?"), nbformat.v4.new_code_cell("assert x == 1"),
             nbformat.v4.new_code_cell("import warnings\nwarnings.filterwarnings('ignore')"),
             nbformat.v4.new_markdown_cell("One message:"),
             nbformat.v4.new_code_cell("warnings.filterwarnings('ignore', message='x')  # NBVAL_CHECK_OUTPUT")]
    nb = nbformat.v4.new_notebook(cells=cells)
    assert unexplained(nb) == ["%matplotlib inline", "import warnings"]
    assert checks(nb) == 2
    assert silenced(nb) == ["warnings.filterwarnings('ignore')"]
