"""Where things are, which device to use, results as tables: what every module needs and no notebook explains.

    data_dir() / "checkpoints"       # the clone's, or the folder in DENOISE_DATA
    model.to(pick_device())          # the best there is, or the one in DENOISE_DEVICE
    results("photos")                # a table of data/results/ as a DataFrame
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas

ROOT = Path(__file__).resolve().parent.parent  # the clone, of an editable install


def env_path(name: str) -> Path | None:
    """Return the folder or file that environment variable `name` holds, or None where it is unset or empty.

    Relative paths are taken from the current folder (the Makefile makes them absolute: notebooks run in another one).
    """
    value = os.environ.get(name, "").strip()  # NAME= in a shell means "without", not "the current folder"
    return Path(value).expanduser().resolve() if value else None


def data_dir() -> Path:
    """Return the folder ``data/``: `DENOISE_DATA`, or the clone's; FileNotFoundError where it is no folder."""
    folder = env_path("DENOISE_DATA") or ROOT / "data"
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}: install the project with `pip install -e .` from its "
                                "clone, or set DENOISE_DATA to a folder that holds models/, checkpoints/ and results/")
    return folder


def pick_device() -> torch.device:
    """Return the device of `DENOISE_DEVICE` (ValueError where it is not there), else cuda, else mps, else cpu."""
    name = os.environ.get("DENOISE_DEVICE", "").strip()
    if not name:  # the fastest there is: a reader with a GPU need not ask for it
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # torch takes any index as a name: only memory there shows that it is there
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without that device
        raise ValueError(f"DENOISE_DEVICE must name a device of this machine (cpu, mps, cuda, cuda:1), "
                         f"got {name!r}: {error}") from error
    return device


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 in hardware; without it mixed precision is slower than none."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        return any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def live_seconds(default: float = 60) -> float:
    """Return a live training's seconds: `LIVE_SECONDS` (ValueError where it is no positive number), or `default`."""
    value = os.environ.get("LIVE_SECONDS", "").strip() or str(default)
    with suppress(ValueError):  # no number is refused with those that make no sense
        if 0 < (seconds := float(value)) < float("inf"):
            return seconds
    raise ValueError(f"LIVE_SECONDS must be a positive number of seconds, got {value!r}")


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # what scikit-learn and scikit-image draw from
    torch.manual_seed(seed)  # weights and batches, on all devices


def versions(*packages: str) -> str:
    """Return "name version" of the given packages in one line, for the first cell of a notebook."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def plain(value: Any) -> Any:
    """Return dicts, lists, arrays and numbers as JSON has them: numpy's as Python's, NaN and infinity as None.

    >>> plain({"psnr": np.float32(26.25), 50: (np.nan, np.arange(2))})
    {'psnr': 26.25, '50': [None, [0, 1]]}
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()  # np.int64 and np.bool_, which json refuses, become int and bool
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def results(name: str) -> pandas.DataFrame:
    """Return a table of data/results/, such as "photos": one row per measurement; README.md there explains them all.

    Missing text and missing numbers are NaN; whole numbers of which some are missing are floats. FileNotFoundError,
    with the names that there are, where there is no such table.

    >>> photos = results("photos").query("sigma == 50 and source == 'mean'").set_index("method")
    >>> bool(photos.at["unet", "psnr"] > photos.at["bm3d", "psnr"])
    True
    """
    # files that somebody is writing at this moment start with a dot
    tables = {path.name.split(".")[0]: path for path in (data_dir() / "results").glob("[!.]*.csv*")}
    if name not in tables:
        there = ", ".join(sorted(tables)) or "none"
        raise FileNotFoundError(f"no table of results {name!r} in data/results; there: {there}")
    import pandas  # half a second, which only those who read results should wait

    # "None" and "NA" may be somebody's method: only an empty cell is a missing value
    return pandas.read_csv(tables[name], keep_default_na=False, na_values=[""], low_memory=False)
