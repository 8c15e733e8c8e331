"""What the explorer shows, as functions: a picture and a map with all that does not change while a threshold moves.

`make_scene` and `make_map` take time; `view`, `numbers` and `encode_png` are what a slider move costs.
"""

import html
import os
from contextlib import suppress
from typing import NamedTuple

import cv2
import numpy as np
import torch

from helpers.cam import GRADIENT_FREE, METHODS, ActivationMap, activation_map, overlay
from helpers.cam_methods import Signed
from helpers.cam_view import in_band, keep
from helpers.checkpoints import OtherViTError, checkpoint_names, load
from helpers.map_metrics import band_scores, crack_auc, crack_zone, darkness_map
from helpers.project import data_dir
from helpers.samples import add_noise, noise_generator
from helpers.vit import BUILT_IN, open_vit

CYAN = (0, 255, 255)
FIGURES = {  # heading -> what it is, its tooltip
    "pixels kept": "share of the picture that lies inside the band",
    "crack covered": "share of the crack's pixels that are kept",
    "precision": "share of the kept pixels that are crack",
    "IoU": "intersection over union of the kept pixels and the crack",
    "AUC": "of the whole map, before any threshold: how often a crack pixel is higher than another; 0.5 is chance",
    "AUC, darkness": "the same of the control: how much darker than its surroundings a pixel is, without any network",
}


class Scene(NamedTuple):
    """A picture at one noise level, with its mask and what follows from it."""

    noisy: torch.Tensor  # (3, H, W)
    picture: np.ndarray  # (H, W, 3) uint8, the same to look at
    mask: np.ndarray | None  # (H, W) bool
    outline: np.ndarray  # numbers of the pixels around the crack, row by row
    darkness: float  # AUC of the control


class Map(NamedTuple):
    """A map with its name and the AUC of the whole of it."""

    cam: ActivationMap
    name: str
    auc: float


def models_here():
    """The networks to explore whose weights are there: {"ViT": ..., "U-Net": ..., "hybrid": ...}, one at least.

    The U-Net is the one that the hybrid started from, `unet_start`: its half before the ViT joined it.

    The ViT is the one in `DENOISE_VIT` or the built-in one; a hybrid that was trained beside another is left out.

    Raises:
        FileNotFoundError: there is none.
    """
    models = {}
    if os.environ.get("DENOISE_VIT", "").strip() or (data_dir() / "models" / BUILT_IN / "config.json").is_file():
        models["ViT"] = open_vit()
    there = checkpoint_names()
    for name, file in {"U-Net": "unet_start", "hybrid": "hybrid"}.items():
        with suppress(OtherViTError):
            models |= {name: load(file)} if file in there else {}
    if not models:
        raise FileNotFoundError("no network to explore: neither a ViT in data/models nor a U-Net in data/checkpoints")
    return models


def make_scene(sample, sigma):
    """A `Scene` of a `Sample`; noise of another level than its own is drawn as `open_dataset` draws it (seed 0)."""
    noisy = sample.noisy if sigma == sample.sigma else add_noise(sample.clean, sigma,
                                                                 noise_generator(sample.name, sigma))
    picture = overlay(noisy, np.zeros(noisy.shape[-2:], np.float32))
    if not sample.has_mask:
        return Scene(noisy, picture, None, np.empty(0, int), float("nan"))
    mask = sample.mask.numpy()
    outline = np.flatnonzero(crack_zone(mask, 1) & ~mask)
    return Scene(noisy, picture, mask, outline, crack_auc(darkness_map(noisy.movedim(0, -1)), mask))


def has_effect(method, control):
    """Whether "target" or "sign" can change the maps of a method."""
    return method not in GRADIENT_FREE if control == "target" else issubclass(METHODS[method], Signed)


def make_map(model, scene, layer, method, target, sign, name):
    """A `Map` of a scene; arguments as in `activation_map`."""
    cam = activation_map(model, scene.noisy, layer, method, target, sign)
    return Map(cam, name, float("nan") if scene.mask is None else crack_auc(cam.raw, scene.mask))


def view(scene, shown, lower, upper, by="value", opacity=0.5, outline=False):
    """A map under a band: the blended picture (H, W, 3) uint8, and its `band_scores`."""
    kept = in_band(shown.cam.map, lower, upper, by)
    picture = overlay(scene.picture, keep(shown.cam.map, kept), opacity)
    if outline:
        picture.reshape(-1, 3)[scene.outline] = CYAN
    return picture, band_scores(kept, scene.mask)


def encode_png(picture):
    """A picture (H, W, 3) uint8 as PNG bytes, by OpenCV: three times as fast as Pillow, and no larger."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def numbers(scene, maps, scores):
    """An HTML table with a row of `FIGURES` per map; `scores` as `view` gives them. What is not defined is a dash."""
    headings = [f'<th title="{tip}">{name}</th>' for name, tip in FIGURES.items()]
    rows = ["<th></th>" + "".join(headings)]
    for shown, score in zip(maps, scores, strict=True):
        cells = [html.escape(shown.name), f"{100 * score['kept']:.1f} %"]
        if scene.mask is not None and scene.mask.any():
            cells += [f"{100 * score['covered']:.1f} %", *(f"{x:.2f}".replace("nan", "–") for x in
                      (score["precision"], score["iou"], shown.auc, scene.darkness))]
        else:
            cells.append(f"there is no {'mask' if scene.mask is None else 'crack'} to compare with")
        spans = ["1"] * len(cells[1:]) + [str(1 + len(FIGURES) - len(cells[1:]))]
        rows.append("".join(f'<td colspan="{n}">{cell}</td>' for n, cell in zip(spans, cells, strict=True)))
    return "<table><tr>" + "</tr><tr>".join(rows) + "</tr></table>"
