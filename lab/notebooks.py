"""Execute the notebooks, clean them for git, and make pages of them.

    python -m lab.notebooks run          # all of notebooks/ into build/, then the results table
    python -m lab.notebooks run 01       # one of them, by the beginning of its name or by its path
    python -m lab.notebooks run --record # and write the seconds to the table `seconds`, for the README
    python -m lab.notebooks save         # execute the committed notebooks in place and clean them
    python -m lab.notebooks html         # pages only, from what was executed last or else from what is committed

A notebook runs top to bottom in a fresh kernel of this interpreter, in its own folder. One that fails says which cell
and why, the others still run, and the exit status is 1 (130 after Ctrl-C, which ends the kernel too). Every file
appears whole under its name or not at all.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import nbformat
import zmq
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets import default

from helpers.project import ROOT, live_seconds
from lab.pages import WIDGET_VIEW, latest, without_widgets, write_pages
from lab.provenance import provenance
from lab.readme import print_results
from lab.tables import save_tables
from surfaces.files import atomic_path

MAX_BYTES = 1_500_000  # a committed notebook; GitHub stops showing much larger ones
CELL_SECONDS = 600
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
MACHINE_PATH = re.compile(r"(?<![\w.:+=/-])/(?:home|Users|root|tmp|var|opt|mnt|media|private)/"
                          r"|\bfile:/|\b[A-Z]:\\+Users\b")


class ThisInterpreter(AsyncKernelManager):
    """Kernels of the Python that runs this script, whatever other kernels the user has installed under its name."""

    @default("kernel_spec_manager")
    def _native_only(self):
        return KernelSpecManager(parent=self, kernel_dirs=[])

    @default("transport_encryption")
    def _encrypt_where_possible(self):  # kernels warn about plain text on every start otherwise
        return "auto" if zmq.has("curve") else "disabled"


class NotebookFailed(Exception):
    """A notebook that did not run to its end; the message holds the failing cell's traceback."""


def find_notebooks(names, folder):
    """Return the paths of all notebooks in `folder`, or of those named by path or by the beginning of their name.

    Raises:
        FileNotFoundError: a name fits no notebook, or the folder holds none.
    """
    there = sorted(Path(folder).glob("*.ipynb"))
    if not names:
        if not there:
            raise FileNotFoundError(f"no notebooks (*.ipynb) in {folder}")
        return there
    found = []
    for name in names:
        fitting = [Path(name)] if Path(name).is_file() else [path for path in there if path.name.startswith(name)]
        if not fitting:
            raise FileNotFoundError(f"no notebook {name!r}; there are: {', '.join(p.stem for p in there) or 'none'}")
        found += fitting
    return found


def execute(nb, folder):
    """Run every cell of `nb` in place, in a fresh kernel whose working directory is `folder`.

    Raises:
        NotebookFailed: a cell raised, took longer than `CELL_SECONDS`, or the kernel died.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the kernel was ended first.
    """
    interrupts = []
    os.environ["TQDM_DISABLE"] = "1"  # nobody watches: a progress bar would only stay behind in the output

    async def end_kernel_on_signals(notebook):
        # nbclient's own handlers kill the kernel and report it as dead, as if that were the notebook's fault.
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def interrupt():
            interrupts.append(notebook)
            task.cancel()

        with contextlib.suppress(RuntimeError):  # on Windows, and where this is not the main thread
            loop.add_signal_handler(signal.SIGINT, interrupt)
            loop.add_signal_handler(signal.SIGTERM, interrupt)

    client = NotebookClient(nb, kernel_name=NATIVE_KERNEL_NAME, kernel_manager_class=ThisInterpreter,
                            timeout=CELL_SECONDS, record_timing=False, on_notebook_start=end_kernel_on_signals,
                            resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, asyncio.CancelledError) as error:
        if interrupts:
            raise KeyboardInterrupt from None
        raise NotebookFailed(str(error).strip()) from None
    for model in nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {}).values():
        for output in model["state"].get("outputs", ()):  # interactive_output hides what its function raises
            if output["output_type"] == "error":
                raise NotebookFailed("A widget's callback failed:\n" + "\n".join(output["traceback"]))


def clean(nb):
    """Keep of `nb` what belongs in git: sources, outputs, counts and tags."""
    without_widgets(nb)
    nb.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": NATIVE_KERNEL_NAME},
        "language_info": {"name": "python"},
    })
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
    return nb


def texts(cell):
    """Yield a cell's source and the text of its outputs, pictures left out."""
    yield cell.source
    for output in cell.get("outputs", ()):
        yield output.get("text", "")
        yield "\n".join(output.get("traceback", ()))
        for mime, content in output.get("data", {}).items():
            if mime not in ("image/png", "image/jpeg", "image/gif"):
                content = content if isinstance(content, str) else json.dumps(content)
                yield re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", content)


def problems(nb, size):
    """Return what must not be committed in notebook `nb`, a file of `size` bytes, as a list of sentences."""
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"not run once from top to bottom: wanted counts 1 to {len(code)}, got {counts}")
    found += [f"error output: {o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    found += [f"stderr output: {o.text.strip()[:300]}" for o in outputs if o.get("name") == "stderr"]
    if "widgets" in nb.metadata or any(WIDGET_VIEW in o.get("data", {}) for o in outputs):
        found.append("widget state or views")
    for number, cell in enumerate(nb.cells, 1):
        for text in texts(cell):
            hit = MACHINE_PATH.search(text)
            place = hit.start() if hit else max(text.find(path) for path in (str(ROOT), sys.prefix))
            if place >= 0:
                line = text[text.rfind("\n", 0, place) + 1:].split("\n", 1)[0]
                found.append(f"a path of one machine in cell {number}: {line.strip()[:200]}")
    if size > MAX_BYTES:
        found.append(f"{size / 1e6:.2f} MB, wanted at most {MAX_BYTES / 1e6:.1f} MB")
    return found


def write_notebook(nb, path):
    """Write `nb` as the current notebook format to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(nbformat.writes(nb) + "\n", encoding="utf-8", newline="\n")


def run(paths, build):
    """Execute `paths` into `build`/notebooks and `build`/html; return how many failed, and {name: seconds}."""
    failed, executed, seconds = 0, [], {}
    for path in paths:
        nb, start, outcome = nbformat.read(path, as_version=4), time.monotonic(), ""
        try:
            execute(nb, path.parent)
        except NotebookFailed as error:
            failed, outcome = failed + 1, "  FAILED"
            print(f"\n{path.name} failed:\n{error}\n", file=sys.stderr, flush=True)
        cells = sum(cell.cell_type == "code" for cell in nb.cells)
        seconds[path.stem] = round(time.monotonic() - start, 1)
        print(f"{path.stem:24s} {seconds[path.stem]:6.1f} s {cells:4d} code cells{outcome}", flush=True)
        write_notebook(clean(nb), build / "notebooks" / path.name)
        executed.append((nb, path))
    write_pages(executed, build)
    return failed, seconds


def save(paths):
    """Execute `paths` in place and clean them; one that fails or holds what must not be committed stays as it was."""
    failed = 0
    for path in paths:
        nb, start = nbformat.read(path, as_version=4), time.monotonic()
        nb.nbformat_minor = max(nb.nbformat_minor, 5)
        try:
            execute(nb, path.parent)
            clean(nb)
            found = problems(nb, len(nbformat.writes(nb).encode()))
        except NotebookFailed as error:
            found = [str(error)]
        if found:
            failed += 1
            print("\n  ".join([f"{path.name} was not saved:", *found]), file=sys.stderr, flush=True)
            continue
        write_notebook(nb, path)
        print(f"{path.stem:24s} {time.monotonic() - start:6.1f} s {path.stat().st_size / 1e6:5.2f} MB", flush=True)
    return failed


def main(arguments=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["run", "save", "html"])
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, or paths (default: all)")
    parser.add_argument("--record", action="store_true", help="with run: write the seconds to data/results/")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks", help="where the notebooks are")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where executed notebooks and pages go")
    options = parser.parse_args(arguments)
    failed = 0
    try:
        paths = find_notebooks(options.names, options.folder)
        if options.command == "save":
            failed = save(paths)
        elif options.command == "html":
            write_pages([(latest(path, options.build), path) for path in paths], options.build)
        else:
            failed, seconds = run(paths, options.build)
            print_results()
            if options.record and not failed:
                save_tables({"seconds": [{"notebook": name, "seconds": value} for name, value in seconds.items()]},
                            provenance("python -m lab.notebooks run --record", 0),
                            seconds={"live_seconds": live_seconds()})
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
