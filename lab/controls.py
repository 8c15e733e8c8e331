"""Controls of the CAM-weighted loss: the values of the same maps at other places. Does the *place* matter?

    MovedCamLoss(vit, "block 5", control="shuffled")(denoised, clean)
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from helpers.losses import CamWeightedLoss

CONTROLS = ("shuffled", "random", "contrast")


def local_contrast(images: Tensor, window: int = 17) -> Tensor:
    """Return each image's local contrast (B, H, W), [0, 1]: standard deviation of grey in a window, largest = 1."""
    grey = images.mean(1, keepdim=True)
    grey = grey - grey.mean((-2, -1), keepdim=True)  # small numbers: their squares lose less
    options = dict(kernel_size=window, stride=1, padding=window // 2, count_include_pad=False)  # no dark frame
    contrast = (avg_pool2d(grey**2, **options) - avg_pool2d(grey, **options) ** 2).clamp(min=0).sqrt()[:, 0]
    return contrast / contrast.amax((-2, -1), keepdim=True).clamp(min=1e-6)


def smooth_noise(images: Tensor, seed: int, patch: int = 16) -> Tensor:
    """Return random smooth maps (B, H, W); an image always gets the same one, so that a resumed run repeats itself."""
    grid = [math.ceil(side / patch) + 1 for side in images.shape[-2:]]  # as coarse as the grid of a ViT's patches
    totals = images.double().sum((1, 2, 3)).tolist()  # an image has no name here: its values stand for it
    generators = [torch.Generator().manual_seed(hash((seed, total)) % 2**63) for total in totals]
    noise = torch.stack([torch.randn(1, *grid, generator=generator) for generator in generators]).to(images)
    return interpolate(noise, images.shape[-2:], mode="bicubic", align_corners=False)[:, 0]


class MovedCamLoss(CamWeightedLoss):
    """`CamWeightedLoss` with the maps' values moved before the band is cut, so that as many pixels are kept.

    Args:
        control: "shuffled": the map of the batch's next image (at least two); "random": a smooth random map with the
            map's histogram, of `seed`; "contrast": the map's histogram put where the local contrast is highest.
        words, options: of `CamWeightedLoss`.

    Raises:
        ValueError: another control; "shuffled" with a single image in the batch.
    """

    def __init__(self, *words: Any, control: str, seed: int = 0, **options: Any):
        super().__init__(*words, **options)
        if control not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}, got {control!r}")
        self.control, self.seed = control, seed

    def place(self, maps: Tensor, clean: Tensor) -> Tensor:
        if self.control == "shuffled":
            if len(maps) < 2:
                raise ValueError("the shuffled control needs at least 2 images in a batch, got 1")
            return maps.roll(1, 0)
        # the map's values, sorted, at other places: the largest at the largest
        places = smooth_noise(clean, self.seed) if self.control == "random" else local_contrast(clean)
        values, order = maps.flatten(1).sort(dim=1).values, places.flatten(1).argsort(dim=1, stable=True)
        return torch.zeros_like(values).scatter(1, order, values).view_as(maps)
