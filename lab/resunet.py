"""The trunk of the coming networks, while it is trained: `ResUNet`. Importing this module lets `load` build it.

    python -m lab.train --only trunk_leg1       # then load("trunk_leg1"), once lab.resunet is imported

Its trainings are legs: each starts from the averaged weights of the one before, which are kept in data/runs/.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

from helpers.models import Denoiser


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a ReLU between them, added to their input; no biases; (B, C, H, W) in and out.

    The second convolution starts at zero, so that the block starts as the identity and a deep stack of them trains
    from the first step on.

    >>> features = torch.rand(1, 4, 6, 6)
    >>> torch.equal(ResidualBlock(4)(features), features)
    True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features with what the two convolutions make of them added."""
        return features + self.second(relu(self.first(features)))


def residual_stage(channels: int, blocks: int) -> nn.Sequential:
    """Return `blocks` residual blocks in a row: a stage of `ResUNet`."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


class ResUNet(Denoiser):
    """A residual U-Net that does its work from half resolution on: (B, 3, H, W) in and out, images in [0, 1].

    One thin convolution looks at the full resolution. Its features are rearranged to half resolution (pixel unshuffle:
    four times the channels, nothing is lost), pass stages of residual blocks at 1/2, 1/4 and 1/8 and back, and are
    added to what each scale had on the way down. Rearranged back to full resolution they meet the thin features again,
    and the last convolution predicts the noise, which is subtracted. That convolution starts at zero, so that the
    untrained network is the identity: "there is no noise".

    No layer has a bias, so that the network is homogeneous: ``model(a * noisy) == a * model(noisy)`` for every a > 0,
    and with J the Jacobian of the output by the input ``J @ noisy == model(noisy)``: each output pixel is a weighted
    sum of input pixels, and the weights can be looked at.

    Args:
        widths: channels at 1/2, 1/4, ... of the resolution, at least two scales; the last is the bottleneck's. The
            first is a multiple of 4, and a quarter of it is the number of channels at full resolution.
        blocks: residual blocks per stage.

    Attributes:
        encoder: stages from fine to coarse; stage i gives (B, widths[i], H / 2 ** (i + 1), W / 2 ** (i + 1)).
        bottleneck: the stage of the coarsest scale.
        decoder: stages from fine to coarse; stage i gives the shape that encoder stage i gives.
        multiple: H and W must be multiples of this, 2 ** len(widths).
        radius: pixels. An output pixel depends on no input pixel whose row or column is farther away, and on some that
            are as far: what tiles must overlap for.

    Raises:
        ValueError: fewer than two scales, widths that are not positive or whose first is no multiple of 4, no block.

    Sources: residual blocks in a U-Net for denoising, without biases, Zhang et al., "Plug-and-play image restoration
    with deep denoiser prior" (DRUNet, arXiv:2008.13751); why no biases, Mohan et al., "Robust and interpretable blind
    image denoising via bias-free convolutional neural networks" (arXiv:1906.05478); pixel unshuffle, Zhang et al.,
    FFDNet (arXiv:1710.04026); residual branches that start at zero, Zhang et al., "Fixup initialization"
    (arXiv:1901.09321).

    >>> model = ResUNet(widths=(8, 12, 16), blocks=1)
    >>> model(torch.zeros(1, 3, 24, 40)).shape, model.multiple, ResUNet().radius
    (torch.Size([1, 3, 24, 40]), 8, 91)
    """

    def __init__(self, widths: tuple[int, ...] = (64, 96, 128), blocks: int = 2) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1 or widths[0] % 4:
            raise ValueError("widths must be at least two positive numbers, the first a multiple of 4, "
                             f"got {tuple(widths)}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        thin = widths[0] // 4
        self.multiple = 2 ** len(widths)
        self.stem = nn.Conv2d(3, thin, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(residual_stage(width, blocks) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in pairwise(widths))
        self.bottleneck = residual_stage(widths[-1], blocks)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False)
                                for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList(residual_stage(width, blocks) for width in widths[:-1])
        self.thin = ResidualBlock(thin)
        self.head = nn.Conv2d(thin, 3, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)
        # Each 3 x 3 convolution adds the pixel size of its scale: stem, thin block and head 4 pixels, a stage at 1/s
        # 2 * blocks * s, all but the coarsest twice (down and up). The grids of the scales add 1 + 2 + 4 + ...
        scales = [2**i for i in range(1, len(widths) + 1)]
        self.radius = 4 + 2 * blocks * (2 * sum(scales) - scales[-1]) + self.multiple - 1

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        """Denoise (B, 3, H, W), H and W multiples of `multiple`."""
        self.check_size(noisy)
        return noisy - self.predict_noise(self.stem(noisy))

    def predict_noise(self, thin: torch.Tensor, joins: Sequence[Callable] | None = None) -> torch.Tensor:
        """Return the noise (B, 3, H, W) that the stem's features `thin` (B, w / 4, H, W) come to.

        `joins`: one function per stage, from fine to coarse and back, through which its input goes first.
        """
        joins = iter(joins or [nn.Identity()] * (2 * len(self.encoder) + 1))
        features = pixel_unshuffle(thin, 2)  # (B, w, H/2, W/2)
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            skips.append(stage(next(joins)(features)))  # (B, widths[i], H / 2 ** (i + 1), W / 2 ** (i + 1))
            features = down(skips[-1])
        features = self.bottleneck(next(joins)(features))  # (B, widths[-1], H / multiple, W / multiple)
        for stage, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips), strict=True):
            features = stage(next(joins)(up(features) + skip))
        return self.head(self.thin(thin + pixel_shuffle(features, 2)))  # (B, w / 4, H, W) to (B, 3, H, W)
