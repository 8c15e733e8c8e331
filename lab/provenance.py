"""Where a result comes from: command, git revision, seed and machine."""

import json
import os
import platform
import subprocess
from datetime import date

import torch

from helpers.project import ROOT, data_dir, pick_device, plain
from surfaces.files import atomic_path


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
        temporary.write_text(lines(plain(results), 2) + "\n", encoding="utf-8")
