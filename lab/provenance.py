"""Where a result comes from: command, git revision, seed and machine; and JSON files that are whole or not there."""

import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from helpers.project import ROOT, pick_device, plain
from surfaces.files import atomic_path


def provenance(command, seed):
    """Return what every table and every card says of its origin: command, git revision, seed, date, machine."""
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


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write `content` as JSON to `path` through `atomic_path`; NaN becomes null, as strict readers want."""
    text = json.dumps(plain(content), indent=indent, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
