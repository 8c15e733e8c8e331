"""Where things are, which device to use, how files are written: what every module needs and no notebook explains."""

import itertools
import json
import os
import platform
import random
import subprocess
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


def env_path(name):
    """Return the folder or file that environment variable `name` holds, or None where it is unset or empty.

    Relative paths are taken from the current folder; the Makefile makes them absolute first, so that a path typed
    beside ``make`` means what it says although notebooks run in ``notebooks/``.
    """
    value = os.environ.get(name, "").strip()
    return Path(value).expanduser().resolve() if value else None


def data_dir():
    """Return the project's ``data/`` folder: `DENOISE_DATA`, or the one beside the package (editable install).

    Raises:
        FileNotFoundError: neither is a folder.
    """
    folder = env_path("DENOISE_DATA") or ROOT / "data"
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}: install the project with `pip install -e .` from its "
                                "clone, or set DENOISE_DATA to a folder that holds models/, checkpoints/ and results/")
    return folder


def pick_device():
    """Return the torch device to work on: `DENOISE_DEVICE` where it is set, else cuda, else mps, else cpu.

    Raises:
        ValueError: `DENOISE_DEVICE` names a device that torch does not know or that is not there.
    """
    name = os.environ.get("DENOISE_DEVICE", "").strip()
    if not name:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"DENOISE_DEVICE must name a device of this machine (cpu, mps, cuda, cuda:1), "
                         f"got {name!r}: {error}") from error
    return device


def live_seconds(default=60):
    """Return how many seconds a notebook's live training may take: `LIVE_SECONDS`, or `default` for a reader."""
    value = os.environ.get("LIVE_SECONDS", "").strip() or str(default)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"LIVE_SECONDS must be a positive number of seconds, got {value!r}")
    return seconds


def set_seed(seed):
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions(*packages):
    """Return "name version" of the given packages in one line, for the first cell of a notebook."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    A reader therefore sees the old file or the new one, never half of one, also after Ctrl-C or on a full disk.
    The temporary name keeps the suffix, since libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path, content):
    """Write bytes as `path`, or as the first free of "name-2", "name-3", ... where that is taken; return where.

    Nothing is ever overwritten, and the content appears in one piece.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))):
        try:
            target.touch(exist_ok=False)  # takes the name, so that no other process can
            break
        except FileExistsError:
            continue
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target


def write_json(path, content, indent=1):
    """Write `content` as JSON to `path` through `atomic_path`; NaN becomes null, as strict readers want."""
    text = json.dumps(_plain(content), indent=indent, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def provenance(command, seed):
    """Return what every results file and card says of its origin: command, git revision, seed, date and machine."""
    device = pick_device()
    name = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"command": command, "revision": git_revision(), "seed": seed, "date": date.today().isoformat(),
            "machine": f"{platform.system()}, {name}, Python {platform.python_version()}, torch {torch.__version__}"}


def git_revision():
    """Return the clone's short git revision, with "+" where tracked files were changed, or "unknown" outside git."""
    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load_results(name):
    """Return the results `data/results/<name>.json`.

    Raises:
        FileNotFoundError: there are none of that name; the message lists what there is.
    """
    path = data_dir() / "results" / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("[!.]*.json"))) or "none"
        raise FileNotFoundError(f"no results {name!r} (wanted {path.name} in data/results; there: {there})")
    return json.loads(path.read_text(encoding="utf-8"))


def save_results(name, results):
    """Write `results` (a dict) as `data/results/<name>.json`: one line per row, per method's figures and per entry."""
    def lines(value, depth):
        named = isinstance(value, dict)
        if depth and value and (named or (isinstance(value, list) and isinstance(value[0], dict))):
            keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value] if named else [""] * len(value)
            items = value.values() if named else value
            inside = ",\n".join(key + lines(item, depth - 1) for key, item in zip(keys, items, strict=True))
            return f"{{\n{inside}\n}}" if named else f"[\n{inside}\n]"
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    with atomic_path(data_dir() / "results" / f"{name}.json") as temporary:
        temporary.write_text(lines(_plain(results), 2) + "\n", encoding="utf-8")
