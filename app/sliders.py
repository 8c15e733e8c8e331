"""Two widgets with one slider each: walk between two networks' weights, and drag a divider between two outputs.

Like the explorer's, the slider only cuts and encodes what is there already; networks run when the picture, the noise or
a network changes, or, on the walk, once for every step that the slider visits.
"""

import html
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from app.explorer import encode_png
from helpers.metrics import aligned_sharpness, as_image, psnr, ssim
from helpers.noise import add_noise, noise_generator
from helpers.plots import crack_inset
from surfaces.photos import read_photo

SIGMAS = (15, 25, 50, 75)


def interpolated(start, end, share):
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
    model.load_state_dict({key: torch.lerp(first[key], last[key], share) if first[key].is_floating_point()
                           else first[key] for key in first})
    return model.eval()


class Shown(widgets.VBox):
    """Controls, and below them a picture, a line of words and a place for what went wrong; see `make`."""

    def __init__(self, controls):
        self.image = widgets.Image(format="png", layout={"width": "100%", "max_width": "900px"})
        self.line, self.message = widgets.HTML(), widgets.HTML()
        self.image.add_class("shown-picture")
        self.line.add_class("shown-line")
        self.message.add_class("shown-message")
        super().__init__([*controls, self.image, self.line, self.message])

    def make(self):
        """Return the picture (H, W, 3) uint8 and the words that the controls ask for."""
        raise NotImplementedError

    def attempt(self):
        """Show what the controls ask for; should it fail, say why in words and leave the picture as it is."""
        try:
            picture, words = self.make()
            self.image.value, self.line.value, self.message.value = encode_png(picture), html.escape(words), ""
        except Exception as error:  # of whatever kind: nobody would see it in a kernel's log
            self.message.value = f'<span role="status" style="color:#b00020">{html.escape(str(error))}</span>'


class _PictureSlider(Shown):
    """A picture to choose and a slider."""

    def __init__(self, samples, controls, slider):
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

    def make(self):
        return self.view(self.slider.value)

    def grid(self, values=(0, 0.5, 1), width=5.0):
        """The widget on paper: what it shows at some positions of the slider, below each other.

        `width` is in inches. Returns the matplotlib figure.
        """
        views = [self.view(value) for value in values]
        height, wide, _ = views[0][0].shape
        figure, axes = plt.subplots(len(values), 1, squeeze=False, layout="constrained",
                                    figsize=(width, len(values) * (width * height / wide + 0.45)))
        for axis, value, (picture, words) in zip(axes.flat, values, views, strict=True):
            axis.imshow(picture)
            axis.set_title(f"{value:g}\n{words}", fontsize=8)
            axis.axis("off")
        return figure


def as_uint8(picture):
    """Return a picture in [0, 1], (H, W, 3) or torch (3, H, W), as (H, W, 3) uint8; what lies outside is clipped."""
    return np.uint8(as_image(picture, clip=True) * 255 + 0.5)


class WeightWalk(_PictureSlider):
    """Walk from one network's weights to another's: noisy, output and clean, the crack enlarged below each.

    Args:
        start, end: denoisers of one architecture.
        samples: list of `Sample`.
        steps: positions of the slider between 0 (start) and 1 (end).

    Controls for code as for a hand: `picture`, `slider`. Numbers stand in `line`, what went wrong in `message`.
    """

    def __init__(self, start, end, samples, steps=10):
        interpolated(start, end, 0)  # refused at once rather than at the first move
        self._model = lru_cache(steps + 1)(lambda share: interpolated(start, end, share))
        self._output = lru_cache(64)(self._run)
        super().__init__(samples, (), widgets.FloatSlider(
            description="Weights", min=0, max=1, step=1 / steps, value=0, readout_format=".2f",
            tooltip="0: the network trained on MSE; 1: the one trained with the loss term"))

    @torch.inference_mode()
    def _run(self, index, share):
        return self._model(share)(self.samples[index].noisy[None])[0]

    def view(self, share):
        """The picture (H, W, 3) uint8 at `share`, and its numbers in words."""
        sample, share = self.samples[self.picture.value], round(share, 4)
        output = self._output(self.picture.value, share)
        y, x, side = crack_inset(sample.mask.numpy())
        zoom = sample.clean.shape[-1] // side
        columns = []
        for picture in map(as_uint8, (sample.noisy, output, sample.clean)):
            inset = picture[y:y + side, x:x + side].repeat(zoom, 0).repeat(zoom, 1)
            wide = np.full((inset.shape[0], picture.shape[1], 3), 255, np.uint8)
            wide[:, :inset.shape[1]] = inset
            columns.append(np.pad(np.vstack([picture, wide]), ((0, 0), (0, 6), (0, 0)), constant_values=255))
        sharp = aligned_sharpness(output, sample.clean).ratio
        return np.hstack(columns), (f"PSNR {psnr(output, sample.clean):.2f} dB, SSIM {ssim(output, sample.clean):.3f}, "
                                    f"aligned sharpness {sharp:.2f} (clean 1.00)")


class Divider(_PictureSlider):
    """Drag a divider between the outputs of two denoisers; noisy and clean stand beside.

    Args:
        models: dict from a name to a denoiser; two at least.
        samples: list of `Sample`.
        left, right: names to start with; the first and the last where None.

    Controls for code as for a hand: `picture`, `sigma`, `left`, `right`, `slider`.
    """

    def __init__(self, models, samples, left=None, right=None):
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

    def _noisy(self, index, sigma):
        sample = self.samples[index]
        return sample.noisy if sigma == sample.sigma else add_noise(sample.clean, sigma,
                                                                     noise_generator(sample.name, sigma))

    @torch.inference_mode()
    def _run(self, name, index, sigma):
        output = self.models[name](self._noisy(index, sigma)[None])[0]
        return as_uint8(output), psnr(output, self.samples[index].clean)

    def view(self, place):
        """The picture (H, W, 3) uint8 with the divider at `place` in [0, 1], and its numbers in words."""
        index, sigma = self.picture.value, self.sigma.value
        (left, left_db), (right, right_db) = (self._output(name.value, index, sigma)
                                              for name in (self.left, self.right))
        cut = round(place * left.shape[1])
        both = np.hstack([left[:, :cut], right[:, cut:]])
        both[:, max(0, cut - 1):cut + 1] = 255
        noisy, clean = as_uint8(self._noisy(index, sigma)), as_uint8(self.samples[index].clean)
        gap = np.full((both.shape[0], 6, 3), 255, np.uint8)
        words = f"left {self.left.value} {left_db:.2f} dB, right {self.right.value} {right_db:.2f} dB"
        return np.hstack([noisy, gap, both, gap, clean]), words
WIDEST = 1800  # pixels of what is sent back to the browser


class Upload(Shown):
    """Take a photograph from the reader's machine and show what becomes of it.

    Args:
        treat: a function of a photograph (3, H, W), float32 in [0, 1], and its file name. It returns a picture
            (H, W, 3) in [0, 1] to show, and a sentence. What it raises is shown in words.

    Controls for code as for a hand: `button`. The sentence stands in `line`, what went wrong in `message`.
    """

    def __init__(self, treat):
        self.treat = treat
        self.button = widgets.FileUpload(accept="image/*", description="Photograph",
                                         tooltip="a picture on this machine; it goes to the kernel and nowhere else")
        super().__init__([self.button])
        self.add_class("upload")
        self.button.observe(lambda _: self.attempt(), "value")

    def make(self):
        """The picture (H, W, 3) uint8 of the last file, at most `WIDEST` wide, and the sentence."""
        *_, file = self.button.value
        name = Path(file["name"]).name
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(file["content"])
            try:
                photo = read_photo(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), name)) from None
        picture, words = self.treat(torch.from_numpy(photo).permute(2, 0, 1), name)
        picture = as_uint8(picture)
        if picture.shape[1] > WIDEST:
            height = max(1, round(picture.shape[0] * WIDEST / picture.shape[1]))
            picture = cv2.resize(picture, (WIDEST, height), interpolation=cv2.INTER_AREA)
        return picture, f"{name}: {words}"
