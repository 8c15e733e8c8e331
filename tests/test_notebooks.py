"""`lab/notebooks.py`: what it runs, what it refuses to save, and how its pages look in a browser."""

import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.project import results
from lab import notebooks
from lab.pages import WIDGET_NOTE
from lab.readme import results_table

TITLE = "# 07 · Does it run?\n\nA small notebook, with `code` and a [link](08_other.ipynb)."


def write(folder, *sources, title=TITLE, name="07_small"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(title), *map(new_code_cell, sources)]), path)
    return path


def call(command, folder, *more):
    return notebooks.main([command, *more, "--folder", str(folder / "notebooks"), "--build", str(folder / "build")])


def test_run_executes_into_build_and_leaves_the_notebook_alone(tmp_path, capsys):
    path = write(tmp_path / "notebooks", "import os, sys\nprint(os.path.basename(os.getcwd()))",
                 "print(sys.executable)")
    before = path.read_bytes()
    assert call("run", tmp_path) == 0
    assert path.read_bytes() == before
    executed = nbformat.read(tmp_path / "build" / "notebooks" / path.name, as_version=4)
    assert [cell.get("execution_count") for cell in executed.cells] == [None, 1, 2]
    assert executed.cells[1].outputs[0].text == "notebooks\n"  # notebooks run in their own folder
    assert executed.cells[2].outputs[0].text == sys.executable + "\n"  # and in this Python
    assert "07_small" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "build" / "html").iterdir()} == {"07_small.html", "index.html"}


def test_seconds_are_recorded_for_the_readme(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    monkeypatch.setenv("LIVE_SECONDS", "7")
    write(tmp_path / "notebooks", "print(1)")
    assert call("run", tmp_path) == 0 and not list((tmp_path / "results").iterdir())
    assert call("run", tmp_path, "--record") == 0
    seconds, chosen, origin = (results(name) for name in ("seconds", "settings", "provenance"))
    assert list(seconds["notebook"]) == ["07_small"] and 0 < seconds["seconds"].item() < 60
    assert chosen.to_numpy().tolist() == [["seconds", "live_seconds", 7.0]]
    assert origin[["table", "command"]].to_numpy().tolist() == [["seconds", "python -m lab.notebooks run --record"]]


def test_a_failing_cell_is_shown_and_the_others_still_run(tmp_path, capsys):
    write(tmp_path / "notebooks", "left = 1", "assert left == 2, 'these should be two'", name="01_bad")
    write(tmp_path / "notebooks", "print('fine')", name="02_good")
    assert call("run", tmp_path) == 1
    printed = capsys.readouterr()
    assert "01_bad.ipynb failed" in printed.err and "these should be two" in printed.err and "left == 2" in printed.err
    assert "2 code cells  FAILED" in printed.out
    assert "fine" in (tmp_path / "build" / "html" / "02_good.html").read_text(encoding="utf-8")


def test_an_error_inside_a_widget_callback_counts(tmp_path, capsys):
    path = write(tmp_path / "notebooks", "import ipywidgets\nslider = ipywidgets.IntSlider()\n"
                 "ipywidgets.interactive_output(lambda x: 1 / x, {'x': slider})")
    assert call("save", tmp_path) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert nbformat.read(path, as_version=4).cells[1].execution_count is None


def test_save_keeps_outputs_and_drops_widgets_and_timings(tmp_path):
    path = write(tmp_path / "notebooks", "import ipywidgets\nipywidgets.IntSlider()", "6 * 7")
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].metadata = {"tags": ["nbval-check-output"], "execution": {"iopub.execute_input": "2020-01-01"}}
    nbformat.write(nb, path)
    assert call("save", tmp_path) == 0
    saved = nbformat.read(path, as_version=4)
    assert "widgets" not in saved.metadata
    assert saved.cells[1].metadata == {"tags": ["nbval-check-output"]}
    assert saved.cells[1].outputs[0].data == {"text/plain": WIDGET_NOTE}
    assert saved.cells[2].outputs[0].data == {"text/plain": "42"}
    assert notebooks.problems(saved, path.stat().st_size) == []
    first = path.read_bytes()
    assert call("save", tmp_path) == 0
    assert path.read_bytes() == first  # the same outputs give the same file


@pytest.mark.parametrize("source, complaint", [
    ("import sys\nprint('oops', file=sys.stderr)", "stderr output: oops"),
    ("import os\nprint(os.path.join(os.sep, 'home', 'someone', 'photos'))", "a path of one machine"),
    ("import sys\nsys.prefix", "a path of one machine"),
    ("import os\nprint(os.urandom(800_000).hex())", "MB, wanted at most 1.5 MB"),
    ("1 / 0", "ZeroDivisionError"),
])
def test_save_refuses(tmp_path, capsys, source, complaint):
    path = write(tmp_path / "notebooks", source)
    before = path.read_bytes()
    assert call("save", tmp_path) == 1
    assert complaint in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text, wanted", [
    ("see /home/ann/x.png", True), ("'/tmp/ipykernel_12/3.py'", True), ("C:\\Users\\ann", True), ("file:///x", True),
    ("https://example.org/home/page", False), ("../data/models", False), ("and/or/tmp", False), ("1 / 2 / 3", False),
])
def test_paths_of_one_machine(text, wanted):
    nb = new_notebook(cells=[new_markdown_cell(text)])
    assert bool(notebooks.problems(nb, 0)) is wanted


def test_counts_must_run_from_one():
    nb = new_notebook(cells=[new_code_cell("1", execution_count=1), new_code_cell("2", execution_count=3)])
    assert "wanted counts 1 to 2, got [1, 3]" in notebooks.problems(nb, 0)[0]


def test_unknown_name_is_an_error(tmp_path, capsys):
    write(tmp_path / "notebooks", "1")
    assert call("run", tmp_path, "09") == 1
    assert "no notebook '09'; there are: 07_small" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_interrupt_ends_the_kernel_and_writes_nothing(tmp_path):
    write(tmp_path / "notebooks", "import os, time\nopen('../pid', 'w').write(str(os.getpid()))", "time.sleep(100)")
    script = subprocess.Popen(
        [sys.executable, notebooks.__file__, "run", "--folder", tmp_path / "notebooks", "--build", tmp_path / "build"])
    pid, waited_until = tmp_path / "pid", time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()):
        assert script.poll() is None and time.monotonic() < waited_until
        time.sleep(0.1)
    script.send_signal(signal.SIGINT)
    assert script.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "build").exists()


def test_html_shows_the_last_run_only_while_its_cells_are_the_same(tmp_path):
    path, page = write(tmp_path / "notebooks", "print(6 * 7)"), tmp_path / "build" / "html" / "07_small.html"
    assert call("run", tmp_path) == 0
    assert call("html", tmp_path) == 0
    assert ">42\n" in page.read_text(encoding="utf-8")
    write(path.parent, "print(6 * 8)")
    assert call("html", tmp_path) == 0
    assert ">42\n" not in page.read_text(encoding="utf-8")


def test_results_table_has_no_mean_over_fewer_sources():
    numbers = [("a", "s", 50, 20.0), ("b", "s", 50, 21.0), ("b", "t", 50, 23.0), ("b", "t", 15, 30.0)]
    rows = pd.DataFrame(numbers, columns=["method", "source", "sigma", "psnr"])
    lines = [line.split() for line in results_table(rows).splitlines()]
    assert lines[1:] == [["a", "20.00", "-", "-"], ["b", "21.00", "23.00", "22.00"]]
    assert results_table(rows, sigma=25) == ""


def tables(nb):
    """Everything that `nb` says in words and numbers, a string per output."""
    return ["".join(output.get("text", "")) + output.get("data", {}).get("text/markdown", "")
            for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]


def test_two_runs_say_the_same_to_the_last_digit(monkeypatch):
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)
    path, = (notebooks.ROOT / "notebooks").glob("05*.ipynb")  # nothing in it is trained for so and so many seconds
    first, second = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    for nb in (first, second):
        notebooks.execute(nb, path.parent)
    assert sum("|" in text for text in tables(first)) >= 5
    assert tables(first) == tables(second)


def test_pages_say_what_a_figure_shows(tmp_path):
    write(tmp_path / "notebooks", "import matplotlib.pyplot as plt\nfrom helpers.plots import use_small_figures\n"
          "use_small_figures()\nplt.plot([1, 2])\nplt.xlabel('steps \"so far\"'); plt.ylabel('loss');")
    assert call("run", tmp_path) == 0
    page = (tmp_path / "build" / "html" / "07_small.html").read_text(encoding="utf-8")
    found = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tag == "img" and found.append(dict(attributes)["alt"])
    reader.feed(page)
    assert found == ['loss over steps "so far"']


def test_page_opens_in_a_browser_without_a_network(tmp_path, browser):
    write(tmp_path / "notebooks", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
          "import ipywidgets\nipywidgets.IntSlider()")
    assert call("run", tmp_path) == 0
    page, errors, asked = browser.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "build" / "html" / "index.html").as_uri())
    page.get_by_role("link", name="07 · Does it run?").click()
    assert page.get_by_role("heading", level=1).inner_text().startswith("07 · Does it run?")
    assert page.locator("img").evaluate("image => image.naturalWidth") > 100
    assert WIDGET_NOTE in page.inner_text("body")
    assert page.get_by_role("link", name="link").get_attribute("href") == "08_other.html"
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
