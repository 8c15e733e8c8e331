"""The checks in the notebooks can fail: with a broken helper they do, in the cell that is meant to notice."""

import importlib
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from helpers import cam, data, vit
from helpers.project import ROOT

matplotlib.use("Agg")
activation_map, patch_grid = cam.activation_map, vit.patch_grid  # the real ones


def shifted_map(*arguments, **options):
    """Maps moved by a quarter of their width."""
    maps = activation_map(*arguments, **options)
    moved = [m._replace(map=_roll(m.map), raw=_roll(m.raw)) for m in (maps if isinstance(maps, list) else [maps])]
    return moved if isinstance(maps, list) else moved[0]


def _roll(array):
    return np.roll(array, array.shape[-1] // 4, -1)


BROKEN = {
    "a threshold that keeps everything": ("03", "helpers.cam.threshold_cam", lambda cam, *_, **__: cam,
                                          "threshold_cam"),
    "a grid of tokens that is turned": ("02", "helpers.vit.patch_grid", lambda *arguments: patch_grid(*arguments).mT,
                                        "patch_grid"),
    "a map that is shifted": ("03", "helpers.cam.activation_map", shifted_map, "activation_map"),
    "a model that returns its input": ("04", "helpers.checkpoints.load", lambda name: lambda noisy: noisy, "sharp"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_helper_stops_the_notebook(case, monkeypatch):
    number, target, broken, noticed = case
    module, name = target.rsplit(".", 1)
    monkeypatch.setattr(importlib.import_module(module), name, broken)
    monkeypatch.setattr(data, "open_dataset", partial(data.open_dataset, length=12))  # enough, and quick
    path, = (ROOT / "notebooks").glob(f"{number}*.ipynb")
    monkeypatch.chdir(path.parent)
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    # a notebook may switch gradients off for good: the tests that follow must not inherit that
    with torch.enable_grad(), pytest.raises(AssertionError):
        for source in cells:
            exec(source, names)
    plt.close("all")
    assert noticed in source  # the cell that was running
