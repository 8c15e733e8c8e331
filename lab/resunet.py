"""The coming networks while they are trained: `ResUNet` and `HybridResUNet`; `load` builds them once this is imported.

    python -m lab.train --only trunk            # its first legs are data/runs/trunk_leg1 and trunk_leg2
    load("trunk_leg2")                          # once lab.resunet is imported

They move to `helpers.models` when they are shipped.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, relu

from helpers.models import Denoiser
from helpers.vit import BesideViT, ViT


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions without biases and a ReLU between, added to their input; starts as the identity.

    >>> import torch
    >>> features = torch.rand(1, 4, 6, 6)
    >>> torch.equal(ResidualBlock(4)(features), features)
    True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)  # so that a deep stack of them trains from the first step on

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, C, H, W) with what the two convolutions make of them added."""
        return features + self.second(relu(self.first(features)))


class ResUNet(Denoiser):
    """A residual U-Net that does its work from half resolution on; predicts the noise, which is subtracted.

    One thin convolution sees the full resolution. Its features are rearranged to half resolution (pixel unshuffle: four
    times the channels, nothing is lost), pass residual blocks at 1/2, 1/4, 1/8 and back, each scale added to what it
    had on the way down, and meet the thin features again. The last convolution starts at zero: "there is no noise".

    No layer has a bias, so that ``model(a * noisy) == a * model(noisy)`` for a > 0, and with J the Jacobian of the
    output by the input ``J @ noisy == model(noisy)``: an output pixel is a weighted sum of input pixels.

    Args:
        widths: channels at 1/2, 1/4, ... of the resolution; the last is the bottleneck's. The first is a multiple of 4,
            and a quarter of it is the number of channels at full resolution.
        blocks: residual blocks per stage.

    Sources: residual blocks without biases, Zhang et al. (DRUNet, arXiv:2008.13751); why no biases, Mohan et al.
    (arXiv:1906.05478); pixel unshuffle, Zhang et al. (FFDNet, arXiv:1710.04026); branches that start at zero, Zhang et
    al. ("Fixup initialization", arXiv:1901.09321).

    >>> import torch
    >>> model = ResUNet(widths=(8, 12, 16), blocks=1)
    >>> model(torch.zeros(1, 3, 24, 40)).shape, model.multiple, ResUNet().radius
    (torch.Size([1, 3, 24, 40]), 8, 91)
    """

    def __init__(self, widths: Sequence[int] = (64, 96, 128), blocks: int = 2) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1 or widths[0] % 4:
            raise ValueError("widths must be at least two positive numbers, the first a multiple of 4, "
                             f"got {tuple(widths)}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        thin, pairs = widths[0] // 4, list(pairwise(widths))
        stages = [nn.Sequential(*(ResidualBlock(w) for _ in range(blocks))) for w in [*widths, *widths[:-1]]]
        self.multiple = 2 ** len(widths)
        self.stem = nn.Conv2d(3, thin, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(stages[:len(pairs)])  # from fine to coarse, as the decoder
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in pairs)
        self.bottleneck = stages[len(pairs)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(stages[len(pairs) + 1:])
        self.thin = ResidualBlock(thin)
        self.head = nn.Conv2d(thin, 3, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)
        # each 3 x 3 convolution adds the pixel size of its scale: stem, thin block and head 4 pixels, a stage at 1/s
        # 2 * blocks * s, all but the coarsest twice (down and up); the grids of the scales add 1 + 2 + 4 + ...
        scales = [2**i for i in range(1, len(widths) + 1)]
        self.radius = 4 + 2 * blocks * (2 * sum(scales) - scales[-1]) + self.multiple - 1

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W), H and W multiples of `multiple`."""
        self.check_size(noisy)
        return noisy - self.predict_noise(self.stem(noisy))

    def predict_noise(self, thin: Tensor, joins: Sequence[Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Return the noise (B, 3, H, W) in an image whose features at full resolution are `thin` (B, w / 4, H, W).

        `joins`: a function for each stage, encoder, bottleneck and decoder, that its input goes through first.
        """
        joins = iter(joins or [nn.Identity()] * (2 * len(self.encoder) + 1))
        features, skips = pixel_unshuffle(thin, 2), []  # (B, w, H/2, W/2)
        for stage, down in zip(self.encoder, self.down, strict=True):
            skips.append(stage(next(joins)(features)))  # (B, widths[i], H / 2 ** (i + 1), W / 2 ** (i + 1))
            features = down(skips[-1])
        features = self.bottleneck(next(joins)(features))  # (B, widths[-1], H / multiple, W / multiple)
        for stage, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips), strict=True):
            features = stage(next(joins)(up(features) + skip))
        return self.head(self.thin(thin + pixel_shuffle(features, 2)))  # (B, w / 4, H, W) to (B, 3, H, W)


class FiLM(nn.Module):
    """Modulate features (B, F, h, w) by tokens (B, C, g, g): a factor and a summand per channel and place.

    It starts as the identity. Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer" (2018,
    arXiv:1709.07871), there for a whole image at once.
    """

    def __init__(self, channels: int, tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(tokens, hidden, 1)
        self.modulation = nn.Conv2d(hidden, 2 * channels, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        hidden = relu(self.hidden(tokens))  # (B, hidden, g, g): at 1 / 16 of the resolution, where it costs little
        hidden = interpolate(hidden, features.shape[-2:], mode="bilinear", align_corners=False)  # (B, hidden, h, w)
        scale, shift = self.modulation(hidden).chunk(2, dim=1)  # (B, F, h, w) each
        return features * (1 + scale) + shift


class HybridResUNet(BesideViT, ResUNet):
    """A `ResUNet` that denoises twice: what a frozen ViT sees in its first output steers its second pass.

    Under noise a ViT sees little, on the first output it sees more. Its tokens modulate what enters each stage of the
    second pass, which sees the first output too. At first both change nothing: the output is the first one.

    Args:
        widths, residual_blocks: `widths` and `blocks` of `ResUNet`.
        vit, resize, seed: what `open_vit` takes; `vit` may also be a `ViT` that is open.
        blocks: numbers of the ViT's blocks whose tokens are joined, each normalised on its own.
        freeze_trunk: whether the weights of the `ResUNet` stay as they are, so that the joins alone are trained.

    >>> HybridResUNet()(torch.rand(1, 3, 224, 224)).shape                  # doctest: +SKIP
    torch.Size([1, 3, 224, 224])
    """

    tile = 224

    def __init__(self, widths: Sequence[int] = (64, 96, 128), residual_blocks: int = 2, vit: ViT | str | None = None,
                 blocks: Sequence[int] = (3, 7), resize: str = "positions", seed: int | None = None,
                 freeze_trunk: bool = True) -> None:
        super().__init__(widths, residual_blocks)
        self.requires_grad_(not freeze_trunk)
        self.radius = math.inf  # a token knows of the whole image
        self.put_beside(vit, resize, seed, True, blocks)
        self.again = nn.Conv2d(3, widths[0] // 4, 3, padding=1, bias=False)
        nn.init.zeros_(self.again.weight)
        self.joins = nn.ModuleList(FiLM(width, self.vit.channels * len(blocks)) for width in [*widths, *widths[-2::-1]])

    def forward(self, noisy: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Denoise (B, 3, H, W) in [0, 1]; `tokens`, where given, replaces what the ViT sees (an intervention)."""
        first = super().forward(noisy)  # (B, 3, H, W), without the ViT
        tokens = self.token_grid(first.clamp(0, 1)) if tokens is None else tokens  # (B, C, h, w), one per patch
        joins = [partial(join, tokens=tokens) for join in self.joins]
        return noisy - self.predict_noise(self.stem(noisy) + self.again(first), joins)

    def _fitting(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a `ResUNet`, with joins that change nothing until they are trained."""
        return weights if "again.weight" in weights else {**self.state_dict(), **weights}
