"""The denoisers: called as ``model(noisy)``, (B, 3, H, W) in and out, pictures in [0, 1].

Sources: autoencoders that denoise, Vincent et al., "Extracting and composing robust features with denoising
autoencoders" (ICML 2008); U-Net, Ronneberger et al. (MICCAI 2015, arXiv:1505.04597); predicting the noise instead of
the picture, Zhang et al., "Beyond a Gaussian denoiser" (DnCNN, arXiv:1608.03981).
"""

from itertools import pairwise

import torch
from torch import nn


def check_size(noisy, multiple=8, exact=None):
    """Raise ValueError unless `noisy` is (B, 3, H, W) with H and W multiples of `multiple` (or both `exact`)."""
    if noisy.ndim != 4 or noisy.shape[1] != 3:
        raise ValueError(f"a denoiser takes pictures of shape (B, 3, H, W), got {tuple(noisy.shape)}")
    height, width = noisy.shape[-2:]
    if exact and (height, width) != (exact, exact):
        raise ValueError(f"height and width must both be {exact}, got {height} x {width}; "
                         "denoise(model, image) takes any size")
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height} x {width}; "
                         "denoise(model, image) takes any size")


def _check_predict(predict):
    if predict not in ("image", "noise"):
        raise ValueError(f'predict must be "image" or "noise", got {predict!r}')


def double_conv(channels, out_channels):
    """Two 3 x 3 convolutions, each followed by a ReLU: the stage of the original U-Net."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True),
                         nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))


class DenseDAE(nn.Module):
    """A fully connected denoising autoencoder for 56 x 56 pictures.

    Args:
        bottleneck: numbers that the whole picture is squeezed through, at most 256.
        skip: mix the noisy picture into the output, (1 - g) of what the layers paint and g of what came in; the
            gate g, one number, is learned. Simply added, the noisy picture would bring all of its noise along.

    Raises:
        ValueError: `bottleneck` outside 1..256; in ``forward`` a size other than 56 x 56.

    Example:
        >>> DenseDAE(bottleneck=8)(torch.zeros(2, 3, 56, 56)).shape
        torch.Size([2, 3, 56, 56])
    """

    size = 56  # the one size it takes; denoise() reads this

    def __init__(self, bottleneck=64, skip=False):
        super().__init__()
        if not 1 <= bottleneck <= 256:
            raise ValueError(f"bottleneck must be in 1..256, got {bottleneck}")
        pixels = 3 * self.size * self.size
        self.skip = skip
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, bottleneck), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(nn.Linear(bottleneck, pixels), nn.Unflatten(1, (3, self.size, self.size)))
        if skip:
            self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy):
        check_size(noisy, exact=self.size)
        output = self.decoder(self.encoder(noisy - 0.5)) + 0.5  # centred, so that zero weights mean mid grey
        return (1 - self.gate) * output + self.gate * noisy if self.skip else output


class ConvDAE(nn.Module):
    """A convolutional denoising autoencoder without skip connections: three stages down, three up.

    Args:
        width: channels of the first stage (then 2 and 4 times as many).
        predict: "image" or "noise" (the output is then the noisy picture minus what the network predicts).

    Raises:
        ValueError: another `predict`; in ``forward`` a height or width that is no multiple of 8.

    Example:
        >>> ConvDAE(width=4)(torch.zeros(1, 3, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """

    def __init__(self, width=32, predict="image"):
        super().__init__()
        _check_predict(predict)
        self.predict = predict
        w = width
        self.encoder = nn.Sequential(double_conv(3, w), nn.MaxPool2d(2), double_conv(w, 2 * w), nn.MaxPool2d(2),
                                     double_conv(2 * w, 4 * w), nn.MaxPool2d(2))  # (B, 4w, H/8, W/8)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4 * w, 4 * w, 2, stride=2), double_conv(4 * w, 2 * w),
                                     nn.ConvTranspose2d(2 * w, 2 * w, 2, stride=2), double_conv(2 * w, w),
                                     nn.ConvTranspose2d(w, w, 2, stride=2), double_conv(w, w), nn.Conv2d(w, 3, 1))

    def forward(self, noisy):
        check_size(noisy)
        output = self.decoder(self.encoder(noisy))
        return noisy - output if self.predict == "noise" else output


class UNet(nn.Module):
    """U-Net of the original experiments: stages of w, 2w, 4w channels and a bottleneck of 8w.

    Args:
        width: w, channels of the first stage: 64 in the original, 32 in the shipped checkpoints.
        predict: "noise" (the output is the noisy picture minus the network's) or "image".
        upsample: "transpose" (2 x 2 transposed convolutions, the original) or "bilinear" (then a 1 x 1 convolution).
        stages: number of times the picture is halved, at least 1; H and W must be multiples of 2 ** `stages`.

    Raises:
        ValueError: another `predict` or `upsample`, no stage; in ``forward`` a size that is no such multiple.

    Example:
        >>> UNet(width=4)(torch.zeros(1, 3, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """

    def __init__(self, width=64, predict="noise", upsample="transpose", stages=3):
        super().__init__()
        _check_predict(predict)
        if upsample not in ("transpose", "bilinear"):
            raise ValueError(f'upsample must be "transpose" or "bilinear", got {upsample!r}')
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        self.predict, self.multiple = predict, 2**stages
        widths = [width * 2**stage for stage in range(stages + 1)]  # w, 2w, 4w and the bottleneck's 8w
        self.encoder = nn.ModuleList(double_conv(a, b) for a, b in pairwise([3, *widths[:-1]]))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList(self._up(b, a, upsample) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(double_conv(2 * channels, channels) for channels in widths[:-1])
        self.head = nn.Conv2d(width, 3, 1)
        if predict == "noise":
            nn.init.zeros_(self.head.weight)  # start as the identity: "there is no noise"
            nn.init.zeros_(self.head.bias)

    @staticmethod
    def _up(channels, out_channels, upsample):
        if upsample == "transpose":
            return nn.ConvTranspose2d(channels, out_channels, 2, stride=2)
        return nn.Sequential(nn.Conv2d(channels, out_channels, 1),
                             nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))

    def encode(self, noisy):
        """Return the skip connections, from fine to coarse, and the pooled last stage (B, 4w, H/8, W/8)."""
        skips, features = [], noisy
        for stage in self.encoder:
            skips.append(stage(features))
            features = self.pool(skips[-1])
        return skips, features

    def decode(self, features, skips):
        """Return the network's output (B, 3, H, W) from the bottleneck's features (B, 8w, H/8, W/8)."""
        for up, stage, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            features = stage(torch.cat([up(features), skip], dim=1))
        return self.head(features)

    def forward(self, noisy):
        check_size(noisy, self.multiple)
        skips, features = self.encode(noisy)
        output = self.decode(self.bottleneck(features), skips)
        return noisy - output if self.predict == "noise" else output


class CrackSegmenter(UNet):
    """A small U-Net that reads cracks, the judge of crack legibility: (B, 3, H, W) to logits (B, 1, H, W) of "crack".

    Trained once on clean train pictures, never on denoised ones; how well it still finds a crack in a denoised
    picture says how much of the crack is left.

    Example:
        >>> CrackSegmenter(width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, width=16, stages=3):
        super().__init__(width, predict="image", upsample="bilinear", stages=stages)
        self.head = nn.Conv2d(width, 1, 1)


def __getattr__(name):  # the hybrid builds on UNet above, and transformers is slow to import
    if name == "HybridViTUNet":
        from helpers.hybrid import HybridViTUNet
        return HybridViTUNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
