"""A widget that slides the threshold of an activation map over an image, with numbers beside it.

    CamExplorer(models_here(), samples)    # the last line of a cell, or of app/explorer.ipynb

What takes time (a map, its area under the curve and the control's) is computed once and kept. Moving the slider only
thresholds, blends, counts and encodes a PNG for `ipywidgets.Image`: no network is run and no figure is drawn.
"""

import contextlib
import html
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from helpers.cam import ActivationMap, activation_map, in_band, keep, layers_of, overlay
from helpers.cam_methods import GRADIENT_FREE, METHODS, SIGN_RULES, TARGETS, Signed
from helpers.checkpoints import OtherViTError, checkpoint_names, load
from helpers.data import Sample, renoised
from helpers.metrics import as_mask, crack_auc, crack_zone, darkness_map
from helpers.plots import show_images
from helpers.project import ROOT, data_dir
from helpers.vit import BUILT_IN, open_vit
from surfaces.files import write_new

CYAN = (0, 255, 255)
FIGURES = {  # heading -> what it is, its tooltip
    "pixels kept": "share of the picture that lies inside the band",
    "crack covered": "share of the crack's pixels that are kept",
    "precision": "share of the kept pixels that are crack",
    "IoU": "intersection over union of the kept pixels and the crack",
    "AUC": "of the whole map, before any threshold: how often a crack pixel is higher than another; 0.5 is chance",
    "AUC, darkness": "the same of the control: how much darker than its surroundings a pixel is, without any network",
}
SIGMAS = (0, 15, 25, 50, 75)
KEPT_MAPS, KEPT_IMAGES = 64, 16  # a map of 224 x 224 takes 0.2 MB, an image with what follows from it 1 MB
BANDS = {"values": "value", "quantiles": "quantile", "Otsu's threshold": "otsu"}
STYLE = """<style>
.cam-explorer .widget-readout { min-width: 90px }
.cam-explorer td, .cam-explorer th { padding: 0 12px 0 0; line-height: 20px; text-align: left; vertical-align: bottom }
.cam-explorer td { white-space: nowrap }
</style>"""

# What is computed, without any widget -------------------------------------------------------------------------------


class NoisyImage(NamedTuple):
    """An image at one noise level, with its mask and what follows from it."""

    noisy: torch.Tensor  # (3, H, W)
    shown: np.ndarray  # (H, W, 3) uint8, the same to look at
    mask: np.ndarray | None  # (H, W) bool
    outline: np.ndarray  # numbers of the pixels around the crack, row by row
    darkness: float  # AUC of the control


class NamedMap(NamedTuple):
    """A map with its name and the AUC of the whole of it, NaN without a mask."""

    cam: ActivationMap
    name: str
    auc: float


def models_here() -> dict[str, nn.Module]:
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
    for name, checkpoint in {"U-Net": "unet_start", "hybrid": "hybrid_attention"}.items():
        if checkpoint in there:
            with suppress(OtherViTError):
                models[name] = load(checkpoint)
    if not models:
        raise FileNotFoundError("no network to explore: neither a ViT in data/models nor a U-Net in data/checkpoints")
    return models


def noisy_image(sample: Sample, sigma: float) -> NoisyImage:
    """A `Sample` at a noise level on the 0..255 scale; another one than its own as `renoised` draws it."""
    noisy = renoised(sample, sigma)
    shown = overlay(noisy, np.zeros(noisy.shape[-2:], np.float32))
    if not sample.has_mask:
        return NoisyImage(noisy, shown, None, np.empty(0, int), float("nan"))
    mask = sample.mask.numpy()
    outline = np.flatnonzero(crack_zone(mask, 1) & ~mask)
    return NoisyImage(noisy, shown, mask, outline, crack_auc(darkness_map(noisy.movedim(0, -1)), mask))


def has_effect(method: str, control: str) -> bool:
    """Whether "target" or "sign" can change the maps of a method."""
    return method not in GRADIENT_FREE if control == "target" else issubclass(METHODS[method], Signed)


def named_map(model: nn.Module, image: NoisyImage, layer: str, method: str, target: str, sign: str,
              name: str) -> NamedMap:
    """A `NamedMap` of an image; arguments as in `activation_map`."""
    cam = activation_map(model, image.noisy, layer, method, target, sign)
    return NamedMap(cam, name, float("nan") if image.mask is None else crack_auc(cam.raw, image.mask))


def band_scores(kept: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """What a thresholded map keeps, as a dict of floats in [0, 1], NaN where nothing can be said.

    Args:
        kept: (H, W) bool. mask: (H, W) bool, or None where there is none.

    Returns:
        `kept`: share of the image's pixels; `covered`: share of the crack's pixels that are kept (recall);
        `precision`: share of the kept pixels that are crack; `iou`: intersection over union.

    >>> band_scores(np.array([[True, True], [False, False]]), np.eye(2, dtype=bool))["covered"]
    0.5
    """
    kept, nan = as_mask(kept), float("nan")
    count = int(np.count_nonzero(kept))
    scores = {"kept": count / kept.size, "covered": nan, "precision": nan, "iou": nan}
    # without a crack only the first can be said; an explorer asks at every move, so counts are taken once
    if mask is not None and (crack := int(np.count_nonzero(as_mask(mask)))):
        hits = int(np.count_nonzero(kept & as_mask(mask)))
        scores |= {"covered": hits / crack, "precision": hits / count if count else nan,
                   "iou": hits / (count + crack - hits)}
    return scores


def thresholded(image: NoisyImage, shown: NamedMap, lower: float, upper: float, by: str = "value",
                opacity: float = 0.5, outline: bool = False) -> tuple[np.ndarray, dict[str, float]]:
    """A map under a band, laid over its image: (H, W, 3) uint8, and its `band_scores`."""
    kept = in_band(shown.cam.map, lower, upper, by)
    blended = overlay(image.shown, keep(shown.cam.map, kept), opacity)
    if outline:
        blended.reshape(-1, 3)[image.outline] = CYAN
    return blended, band_scores(kept, image.mask)


def encode_png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as PNG, by OpenCV: three times as fast as Pillow, and no larger."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def numbers_table(image: NoisyImage, maps: Sequence[NamedMap], scores: Sequence[Mapping[str, float]]) -> str:
    """An HTML table, a row of `FIGURES` per map; `scores` as `thresholded` gives them. What is undefined is a dash."""
    headings = [f'<th title="{tip}">{name}</th>' for name, tip in FIGURES.items()]
    rows = ["<th></th>" + "".join(headings)]
    for shown, score in zip(maps, scores, strict=True):
        cells = [html.escape(shown.name), f"{100 * score['kept']:.1f} %"]
        if image.mask is not None and image.mask.any():
            cells += [f"{100 * score['covered']:.1f} %", *(f"{x:.2f}".replace("nan", "–") for x in
                      (score["precision"], score["iou"], shown.auc, image.darkness))]
        else:
            cells.append(f"there is no {'mask' if image.mask is None else 'crack'} to compare with")
        # the words that stand in for the missing figures take the width of all their columns
        spans = ["1"] * len(cells[1:]) + [str(1 + len(FIGURES) - len(cells[1:]))]
        rows.append("".join(f'<td colspan="{n}">{cell}</td>' for n, cell in zip(spans, cells, strict=True)))
    return "<table><tr>" + "</tr><tr>".join(rows) + "</tr></table>"


# The widget ---------------------------------------------------------------------------------------------------------


class CamExplorer(widgets.VBox):
    """Look at activation maps of several networks under a threshold slider.

    Every control is an attribute with a `value`, for code as for a hand: `picture` (number of the sample), `branch`,
    `layer`, `method`, `band` (lower, upper); folded away `second` (a method beside the first, or None), `by`, `target`,
    `sign`, `sigma`, `opacity`, `outline`. Numbers stand in `line`, what went wrong in `message`.

    Args:
        models: dict from a name to a network that `layers_of` knows.
        samples: list of `Sample`; those without a mask are shown without numbers that need one. A noise level other
            than their own is drawn as `open_dataset` would (seed 0).
        lower, upper: the band at the start, 0 <= lower <= upper <= 1.
        folder: where images are saved; None: `pictures/` in the clone.

    Raises:
        ValueError: no networks or no samples, or a network without ViT blocks and U-Net stages.

    >>> from helpers.data import open_dataset
    >>> from helpers.models import UNet
    >>> explorer = CamExplorer({"U-Net": UNet(4)}, [open_dataset("test", photos=False, length=1)[0]])
    >>> explorer.band.value = (0.6, 1.0)
    >>> bytes(explorer.maps[0].value[:4])
    b'\\x89PNG'
    """

    def __init__(self, models: Mapping[str, nn.Module], samples: Sequence[Sample], lower: float = 0.4,
                 upper: float = 0.9, folder: str | Path | None = None) -> None:
        if not models or not samples:
            raise ValueError(f"an explorer needs networks and samples, got {len(models)} and {len(samples)}")
        self.models, self.samples = dict(models), list(samples)
        self.folder = Path(folder or ROOT / "pictures")
        self._layers = {name: list(layers_of(model)) for name, model in self.models.items()}
        self._image_of = lru_cache(KEPT_IMAGES)(lambda index, sigma: noisy_image(self.samples[index], sigma))
        self._map_of = lru_cache(KEPT_MAPS)(self._compute_map)
        self._image, self._maps, self._shown = None, [], []  # what is shown: input, maps, maps as drawn
        self._held = False  # whether controls change without anything following
        self._make_controls(lower, upper)
        super().__init__([widgets.HTML(STYLE, layout={"display": "none"}), self._arrange()])
        self.add_class("cam-explorer")
        self._list_layers()
        self._start = {control: control.value for control in (*self._choices, *self._views)}
        self.branch.observe(self._list_layers, "value")
        self._listen(self._choices, self._update)
        self._listen(self._views, self._redraw)
        self._attempt(self._update)

    # Controls ---------------------------------------------------------------------------------------------------------

    def _make_controls(self, lower, upper):
        def control(kind, label, tooltip, **options):
            return kind(description=label, tooltip=tooltip, style={"description_width": "68px"},
                        layout={"width": "auto"}, **options)

        names = [(f"{sample.name} ({sample.source})", i) for i, sample in enumerate(self.samples)]
        sigmas = sorted({*SIGMAS, float(self.samples[0].sigma)})
        self.picture = control(widgets.Dropdown, "Picture", "which picture the networks see", options=names, value=0)
        self.branch = control(widgets.Dropdown, "Branch", "which network", options=list(self.models))
        self.layer = control(widgets.Dropdown, "Layer", "in the order in which a picture passes them")
        self.method = control(widgets.Dropdown, "Method", "how a layer's features become a map", options=list(METHODS))
        self.band = control(widgets.FloatRangeSlider, "Threshold", "what lies between both ends is kept; with the "
                            "keyboard: arrows, Page Up, Page Down", min=0, max=1, step=0.01, value=(lower, upper))
        self.second = control(widgets.Dropdown, "Beside it", "a second method under the same threshold",
                              options=[("nothing", None), *((name, name) for name in METHODS)])
        self.by = control(widgets.Dropdown, "Band of", "values of the map (scaled per picture), its quantiles "
                          "(comparable between pictures), or Otsu's threshold instead of the slider", options=BANDS)
        self.target = control(widgets.Dropdown, "Target", "what the gradient is taken of; methods without a gradient "
                              "ignore it\n" + "\n".join(f"{name}: {text}" for name, text in TARGETS.items()),
                              options=list(TARGETS))
        self.sign = control(widgets.Dropdown, "Sign", "which end of a principal component is up",
                            options=["auto", *SIGN_RULES, "library"])
        self.sigma = control(widgets.Dropdown, "Noise", "standard deviation of the noise in what the networks see",
                             options=[(f"{s:g}/255" if s else "none", s) for s in sigmas], value=self.samples[0].sigma)
        self.opacity = control(widgets.FloatSlider, "Opacity", "of the map over the picture", min=0, max=1, step=0.05,
                               value=0.5)
        self.outline = control(widgets.Checkbox, "Outline of the crack", "from the mask, in cyan", value=False)
        self.outline.style.description_width = "initial"
        self._choices = (self.picture, self.branch, self.layer, self.method, self.second, self.target, self.sign,
                         self.sigma)
        self._views = (self.band, self.by, self.opacity, self.outline)

    def _arrange(self):
        more = widgets.ToggleButton(description="More settings", tooltip="show or hide the rest")
        reset = widgets.Button(description="Reset", tooltip="all settings as they were at the start")
        save = widgets.Button(description="Save picture", tooltip="the maps shown, as a PNG file")
        reset.on_click(lambda _: self.reset())
        save.on_click(lambda _: self._attempt(self._save_and_say))
        for button in (more, reset, save):
            button.layout = {"width": "auto", "flex": "1 1 auto"}
        folded = widgets.VBox([self.second, self.by, self.target, self.sign, self.sigma, self.opacity, self.outline],
                              layout={"display": "none"})
        more.observe(lambda change: folded.layout.set_trait("display", "flex" if change.new else "none"), "value")

        self.line, self.message = widgets.HTML(), widgets.HTML()
        self.plain, *self.maps = (widgets.Image(format="png", layout={"width": "100%"}) for _ in range(3))
        self._titles = [widgets.HTML() for _ in range(3)]
        frame = {"flex": "1 1 200px", "max_width": "310px", "overflow": "hidden", "padding": "0 8px 0 0"}
        self._frames = [widgets.VBox([title, image], layout=frame)
                        for title, image in zip(self._titles, (self.plain, *self.maps), strict=True)]
        for part, name in ((self.maps[0], "map"), (self.line, "line"), (self.message, "message")):
            part.add_class(f"cam-{name}")
        front = [self.picture, self.branch, self.layer, self.method, self.band]
        controls = widgets.VBox([*front, widgets.HBox([reset, save, more]), folded],
                                layout={"flex": "0 0 310px", "margin": "0 16px 0 0"})
        frames = widgets.HBox(self._frames, layout={"flex_flow": "row wrap"})
        pictures = widgets.VBox([frames, self.line, self.message], layout={"flex": "1 1 600px", "min_height": "420px"})
        return widgets.HBox([controls, pictures], layout={"flex_flow": "row wrap"})

    def _listen(self, controls, work):
        for control in controls:
            control.observe(lambda _: self._held or self._attempt(work), "value")

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Let controls change without anything following."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def _attempt(self, work):
        """Do something; should it fail, say why in words and leave the picture as it is."""
        try:
            work()
        except Exception as error:  # of whatever kind: nobody would see it in a kernel's log
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self._say(f"{kind}{error}{' (The last picture stays.)' if self._maps else ''}", "#b00020")

    def _say(self, words, colour="inherit"):
        self.message.value = f'<span role="status" style="color:{colour}">{html.escape(words)}</span>'

    def _list_layers(self, _=None):
        names = self._layers[self.branch.value]
        blocks = [name for name in names if name.startswith("block")]
        with self._hold():
            self.layer.options = names
            self.layer.value = blocks[5 * len(blocks) // 12] if blocks else "bottleneck"  # later maps: bright corners

    def reset(self) -> None:
        """Set every control as it was at the start."""
        with self._hold():
            for control, value in self._start.items():
                control.value = value
        self._attempt(self._update)

    # What takes time, and is kept -------------------------------------------------------------------------------------

    def _compute_map(self, branch, layer, method, target, sign, *index_and_sigma):
        name = f"{method}, {branch}, {layer}"
        self._say(f"Computing {name} …")
        return named_map(self.models[branch], self._image_of(*index_and_sigma), layer, method, target, sign, name)

    def _chosen_map(self, method):
        """The map by `method` as the controls say; what has no effect on it makes no second one."""
        target = self.target.value if has_effect(method, "target") else "mean"
        sign = self.sign.value if has_effect(method, "sign") else "auto"
        return self._map_of(self.branch.value, self.layer.value, method, target, sign, self.picture.value,
                            self.sigma.value)

    def _update(self):
        """Show the maps that the controls ask for, computing those that are not there yet."""
        methods = [method for method in (self.method.value, self.second.value) if method]
        self.target.disabled = not any(has_effect(method, "target") for method in methods)
        self.sign.disabled = not any(has_effect(method, "sign") for method in methods)
        maps = [self._chosen_map(method) for method in methods]
        self._image, self._maps = self._image_of(self.picture.value, self.sigma.value), maps
        titles = (f"input, noise {self.sigma.value:g}/255", *(shown.name for shown in maps), "")
        for title, text in zip(self._titles, titles, strict=False):
            title.value = html.escape(text)
        self.plain.value = encode_png(self._image.shown)
        self._frames[2].layout.display = "flex" if len(maps) > 1 else "none"
        self._redraw()
        self._say("")

    # What a slider move does ------------------------------------------------------------------------------------------

    def _redraw(self):
        """Threshold, blend, count and encode every map shown."""
        self.band.disabled = self.by.value == "otsu"
        views = [self._view(shown, *self.band.value) for shown in self._maps]
        self._shown = [blended for blended, _ in views]
        for widget, blended in zip(self.maps, self._shown, strict=False):
            widget.value = encode_png(blended)
        self.line.value = numbers_table(self._image, self._maps, [scores for _, scores in views])

    def _view(self, shown, lower, upper):
        return thresholded(self._image, shown, lower, upper, self.by.value, self.opacity.value, self.outline.value)

    # To keep ----------------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write the maps as they are shown, side by side, to a new PNG file in `folder`; return its path."""
        self._want_maps()
        lower, upper = self.band.value
        name = f"{self.samples[self.picture.value].name}-{self._maps[0].name}-{lower:.2f}-{upper:.2f}"
        return write_new(self.folder / (re.sub(r"[^\w.]+", "-", name) + ".png"), encode_png(np.hstack(self._shown)))

    def _save_and_say(self):
        self._say(f"Saved as {self.save()}")

    def grid(self, thresholds: Sequence[float | tuple[float, float]] = (0.2, 0.4, 0.6, 0.8)) -> Figure:
        """The explorer on paper: what it shows, under several thresholds, a row per map.

        Args:
            thresholds: bands (lower, upper), or lower ends alone, the upper one then being the slider's.

        Raises:
            ValueError: no such band; no map could be computed yet.
        """
        self._want_maps()
        images, titles = [], []
        for shown in self._maps:
            images.append(self._image.shown)
            titles.append(shown.name.replace(", ", "\n", 1))
            for band in thresholds:
                lower, upper = band if np.ndim(band) else (band, self.band.value[1])
                blended, scores = self._view(shown, lower, upper)
                images.append(blended)
                iou = "" if np.isnan(scores["iou"]) else f", IoU {scores['iou']:.2f}"
                titles.append(f"{lower:.2f} to {upper:.2f}\nkept {100 * scores['kept']:.1f} %{iou}")
        return show_images([image / 255 for image in images], titles, columns=1 + len(thresholds))

    def _want_maps(self):
        if not self._maps:
            raise ValueError("there is no map to show yet")
