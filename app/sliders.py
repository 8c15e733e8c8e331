"""Widgets with one control each: walk between the weights of two networks, drag a divider, upload a photograph.

    WeightWalk(load("hybrid_attention"), load("hybrid_regional"), samples)
    Divider({"filter": blur, "U-Net": load("unet")}, samples)
    Upload(treat)

Like the explorer's, a slider only cuts and encodes what is there already; networks run when the image, the noise or a
network changes, or, on the walk, once for every step that the slider visits.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from app.explorer import encode_png
from helpers.data import Sample, renoised
from helpers.metrics import Image, aligned_sharpness, as_image, psnr, ssim
from helpers.plots import crack_inset
from surfaces.photos import read_photo, to_uint8

SIGMAS = (15, 25, 50, 75)
WIDEST = 1800  # pixels of what is sent back to the browser
View = tuple[np.ndarray, str]  # an image (H, W, 3) uint8, and words or numbers about it


def interpolated(start: nn.Module, end: nn.Module, share: float) -> nn.Module:
    """A network with the weights (1 - share) * start + share * end; both must be of one architecture.

    Source: linear interpolation between fine-tuned networks, Wang et al., "Deep network interpolation" (CVPR 2019,
    arXiv:1811.10515).

    Raises:
        ValueError: `share` outside [0, 1]; networks with other weights than each other.

    >>> from helpers.models import UNet
    >>> a, b = UNet(4), UNet(4)
    >>> torch.equal(interpolated(a, b, 1.0).head.bias, b.head.bias)
    True
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    first, last = start.state_dict(), end.state_dict()
    if first.keys() != last.keys() or any(first[key].shape != last[key].shape for key in first):
        raise ValueError("interpolation needs two networks of one architecture")
    model = deepcopy(start)
    # counters and the like are no weights: half a step has no meaning
    model.load_state_dict({key: torch.lerp(first[key], last[key], share) if first[key].is_floating_point()
                           else first[key] for key in first})
    return model.eval()


class ImageBelowControls(widgets.VBox):
    """Controls, and below them an image, a line of words and a place for what went wrong; a subclass has `make`."""

    def __init__(self, controls: Sequence[widgets.Widget]) -> None:
        self.image = widgets.Image(format="png", layout={"width": "100%", "max_width": "900px"})
        self.line, self.message = widgets.HTML(), widgets.HTML()
        self.image.add_class("shown-picture")
        self.line.add_class("shown-line")
        self.message.add_class("shown-message")
        super().__init__([*controls, self.image, self.line, self.message])

    def make(self) -> View:
        """Return the image and the words that the controls ask for."""
        raise NotImplementedError

    def attempt(self) -> None:
        """Show what the controls ask for; should it fail, say why in words and leave the image as it is."""
        try:
            image, words = self.make()
            self.image.value, self.line.value, self.message.value = encode_png(image), html.escape(words), ""
        except Exception as error:  # of whatever kind: nobody would see it in a kernel's log
            self.message.value = f'<span role="status" style="color:#b00020">{html.escape(str(error))}</span>'


class ImageSlider(ImageBelowControls):
    """An image to choose and a slider; a subclass has `view`."""

    def __init__(self, samples: Sequence[Sample], controls: Sequence[widgets.Widget],
                 slider: widgets.FloatSlider) -> None:
        if not samples:
            raise ValueError("at least one sample is wanted, got none")
        self.samples, self.slider = list(samples), slider
        names = [(f"{sample.name} ({sample.source})", i) for i, sample in enumerate(self.samples)]
        self.picture = widgets.Dropdown(description="Picture", options=names, value=0,
                                        tooltip="which picture the networks see")
        controls = (self.picture, *controls)
        for control in (*controls, slider):
            control.style.description_width = "68px"
            control.observe(lambda _: self.attempt(), "value")
        super().__init__([widgets.HBox(controls, layout={"flex_flow": "row wrap"}), slider])
        self.add_class("picture-slider")
        self.attempt()

    def view(self, value: float) -> View:
        """The image at a position of the slider, and its numbers in words."""
        raise NotImplementedError

    def make(self) -> View:
        return self.view(self.slider.value)

    def grid(self, values: Sequence[float] = (0, 0.5, 1), width: float = 5.0) -> Figure:
        """The widget on paper: what it shows at some positions of the slider, below each other; `width` in inches."""
        views = [self.view(value) for value in values]
        height, wide, _ = views[0][0].shape
        figure, axes = plt.subplots(len(values), 1, squeeze=False, layout="constrained",
                                    figsize=(width, len(values) * (width * height / wide + 0.45)))
        for axis, value, (image, words) in zip(axes.flat, values, views, strict=True):
            axis.imshow(image)
            axis.set_title(f"{value:g}\n{words}", fontsize=8)
            axis.axis("off")
        return figure


def uint8_image(image: Image) -> np.ndarray:
    """An image in [0, 1] as bytes to look at, (H, W, 3) uint8; what lies outside is clipped."""
    return to_uint8(as_image(image, clip=True))


class WeightWalk(ImageSlider):
    """Walk from one network's weights to another's: noisy, output and clean, the crack enlarged below each.

    Args:
        start, end: denoisers of one architecture.
        samples: list of `Sample`.
        steps: positions of the slider between 0 (start) and 1 (end).

    Controls for code as for a hand: `picture`, `slider`. Numbers stand in `line`, what went wrong in `message`.
    """

    def __init__(self, start: nn.Module, end: nn.Module, samples: Sequence[Sample], steps: int = 10) -> None:
        interpolated(start, end, 0)  # refused at once rather than at the first move
        self._model = lru_cache(steps + 1)(lambda share: interpolated(start, end, share))
        self._output = lru_cache(64)(self._run)
        super().__init__(samples, (), widgets.FloatSlider(
            description="Weights", min=0, max=1, step=1 / steps, value=0, readout_format=".2f",
            tooltip="0: the network trained on MSE; 1: the one trained with the loss term"))

    @torch.inference_mode()
    def _run(self, index, share):
        return self._model(share)(self.samples[index].noisy[None])[0]

    def view(self, share: float) -> View:
        """The three images at `share` of the way, and their numbers in words."""
        sample, share = self.samples[self.picture.value], round(share, 4)
        output = self._output(self.picture.value, share)
        y, x, side = crack_inset(sample.mask.numpy())
        zoom = sample.clean.shape[-1] // side
        columns = []
        for image in map(uint8_image, (sample.noisy, output, sample.clean)):
            # below each image its window with the most crack, whole pixels enlarged, on white of the image's width
            inset = image[y:y + side, x:x + side].repeat(zoom, 0).repeat(zoom, 1)
            wide = np.full((inset.shape[0], image.shape[1], 3), 255, np.uint8)
            wide[:, :inset.shape[1]] = inset
            columns.append(np.pad(np.vstack([image, wide]), ((0, 0), (0, 6), (0, 0)), constant_values=255))
        sharp = aligned_sharpness(output, sample.clean).ratio
        return np.hstack(columns), (f"PSNR {psnr(output, sample.clean):.2f} dB, SSIM {ssim(output, sample.clean):.3f}, "
                                    f"aligned sharpness {sharp:.2f} (clean 1.00)")


class Divider(ImageSlider):
    """Drag a divider between the outputs of two denoisers; noisy and clean stand beside.

    Args:
        models: dict from a name to a denoiser; two at least.
        samples: list of `Sample`.
        left, right: names to start with; the first and the last where None.

    Controls for code as for a hand: `picture`, `sigma`, `left`, `right`, `slider`.
    """

    def __init__(self, models: Mapping[str, nn.Module], samples: Sequence[Sample], left: str | None = None,
                 right: str | None = None) -> None:
        if len(models) < 2:
            raise ValueError(f"a divider needs at least two networks, got {', '.join(models) or 'none'}")
        self.models, names = dict(models), list(models)
        self._output = lru_cache(64)(self._run)
        self.left = widgets.Dropdown(description="Left", options=names, value=left or names[0],
                                     tooltip="the network left of the divider")
        self.right = widgets.Dropdown(description="Right", options=names, value=right or names[-1],
                                      tooltip="the network right of the divider")
        self.sigma = widgets.Dropdown(description="Noise", options=[(f"{s}/255", s) for s in SIGMAS], value=50,
                                      tooltip="standard deviation of the noise; 75 was never trained on")
        super().__init__(samples, (self.sigma, self.left, self.right), widgets.FloatSlider(
            description="Divider", min=0, max=1, step=0.01, value=0.5, readout_format=".2f",
            tooltip="where the left output ends and the right one begins"))

    @torch.inference_mode()
    def _run(self, name, index, sigma):
        sample = self.samples[index]
        output = self.models[name](renoised(sample, sigma)[None])[0]
        return uint8_image(output), psnr(output, sample.clean)

    def view(self, place: float) -> View:
        """The images with the divider at `place` in [0, 1], and their numbers in words."""
        index, sigma = self.picture.value, self.sigma.value
        (left, left_db), (right, right_db) = (self._output(name.value, index, sigma)
                                              for name in (self.left, self.right))
        cut = round(place * left.shape[1])
        both = np.hstack([left[:, :cut], right[:, cut:]])
        both[:, max(0, cut - 1):cut + 1] = 255  # the divider itself, in white
        sample = self.samples[index]
        noisy, clean = uint8_image(renoised(sample, sigma)), uint8_image(sample.clean)
        gap = np.full((both.shape[0], 6, 3), 255, np.uint8)
        words = f"left {self.left.value} {left_db:.2f} dB, right {self.right.value} {right_db:.2f} dB"
        return np.hstack([noisy, gap, both, gap, clean]), words


class Upload(ImageBelowControls):
    """Take a photograph from the reader's machine and show what becomes of it.

    Args:
        treat: a function of a photograph (3, H, W), float32 in [0, 1], and its file name. It returns an image
            (H, W, 3) in [0, 1] to show, and a sentence. What it raises is shown in words.

    Controls for code as for a hand: `button`. The sentence stands in `line`, what went wrong in `message`.
    """

    def __init__(self, treat: Callable[[torch.Tensor, str], tuple[Image, str]]) -> None:
        self.treat = treat
        self.button = widgets.FileUpload(accept="image/*", description="Photograph",
                                         tooltip="a picture on this machine; it goes to the kernel and nowhere else")
        super().__init__([self.button])
        self.add_class("upload")
        self.button.observe(lambda _: self.attempt(), "value")

    def make(self) -> View:
        """The image of the last file, at most `WIDEST` wide, and the sentence."""
        *_, file = self.button.value
        name = Path(file["name"]).name
        # a reader of files knows all formats and says what is wrong; its folder's name is nobody's concern
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(file["content"])
            try:
                photo = read_photo(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), name)) from None
        image, words = self.treat(torch.from_numpy(photo).permute(2, 0, 1), name)
        image = uint8_image(image)
        if image.shape[1] > WIDEST:
            height = max(1, round(image.shape[0] * WIDEST / image.shape[1]))
            image = cv2.resize(image, (WIDEST, height), interpolation=cv2.INTER_AREA)
        return image, f"{name}: {words}"
