"""Networks that judge an output and are no denoisers; importing this module lets `load` build them."""

from torch import nn

from helpers.models import UNet


class CrackSegmenter(UNet):
    """A small U-Net that reads cracks, trained on clean images: (B, 3, H, W) to logits (B, 1, H, W) of "crack".

    How well it finds a crack in a denoised image says how much of it is left. `denoise` refuses it: it is no denoiser.

    >>> import torch
    >>> CrackSegmenter(width=4)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 1, 32, 32])
    """

    def __init__(self, width: int = 16, stages: int = 3) -> None:
        super().__init__(width, predict="image", upsample="bilinear", stages=stages)
        self.head = nn.Conv2d(width, 1, 1)
