"""The denoisers, on one base class: called as ``model(noisy)``, (B, 3, H, W) in and out, images in [0, 1].

    model = UNet(width=32)              # untrained; load("unet") is trained
    denoised = model(noisy)             # H and W multiples of model.multiple; denoise(model, image) takes any size

Sources: autoencoders that denoise, Vincent et al., "Extracting and composing robust features with denoising
autoencoders" (ICML 2008); U-Net, Ronneberger et al. (MICCAI 2015, arXiv:1505.04597); predicting the noise instead of
the image, Zhang et al., "Beyond a Gaussian denoiser" (DnCNN, arXiv:1608.03981).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

from helpers.vit import JOINS, BesideViT, FiLM, ViT


class Denoiser(nn.Module):
    """What a denoiser is: a network called as ``model(noisy)``, (B, 3, H, W) in [0, 1] in and, not clipped, out.

    `arguments` is the dict of what its constructor was called with.

    >>> UNet(8, stages=2).arguments
    {'width': 8, 'stages': 2}
    """

    multiple: int = 8  # height and width must be multiples of it
    size: int | None = None  # the one height and width that it takes, in pixels; None: every multiple
    tile: int | None = None  # side in pixels of the tiles that `denoise` cuts for it; None: as large as is quick
    radius: float = 51  # how far an output pixel sees, in pixels: a U-Net of three stages; infinite: the whole image

    kinds: dict[str, type["Denoiser"]] = {}  # every class by its name, as cards have it; lab's when it is imported

    def __init_subclass__(cls) -> None:
        Denoiser.kinds[cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls)
        # remembered here, before any __init__ runs, so that no subclass has to think of it
        model.arguments = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs).arguments
        del model.arguments["self"]
        return model

    def check_size(self, noisy: Tensor) -> None:
        """Raise ValueError, with what was wanted and what came, unless `noisy` is (B, 3, H, W) of a size it takes."""
        if noisy.ndim != 4 or noisy.shape[1] != 3:
            raise ValueError(f"a denoiser takes images of shape (B, 3, H, W), got {tuple(noisy.shape)}")
        height, width = noisy.shape[-2:]
        # pooling halves the image, and what is left over would be lost
        fits = height and width and height % self.multiple == width % self.multiple == 0
        if not fits or self.size and (height, width) != (self.size, self.size):
            rule = f"both be {self.size}" if self.size else f"be multiples of {self.multiple}"
            raise ValueError(f"height and width must {rule}, got {height} x {width}; "
                             "denoise(model, image) takes any size")

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Self:
        """Return an untrained network by a checkpoint's card; ValueError where it names a ViT, maybe one to fetch."""
        if (vit := card["arguments"].get("vit")) is not None:
            raise ValueError(f"a card's arguments must not name a ViT, got {vit!r}: it is that of DENOISE_VIT")
        return cls(**card["arguments"])

    def card(self) -> dict[str, Any]:
        """Return what a checkpoint's card says of the network: "architecture" and "arguments"."""
        return {"architecture": type(self).__name__, "arguments": dict(self.arguments)}

    def check_card(self, card: dict[str, Any]) -> None:
        """Raise ValueError where weights with this `card` would be wrong in the network though they fit: here never."""

    def start_from(self, other: nn.Module) -> Self:
        """Take the weights of a trained network and return the model; raise ValueError where they do not fit."""
        weights = self._fitting(other.state_dict())
        # compared before anything is taken: torch would stop half way
        came, own = ({key: value.shape for key, value in state.items()} for state in (weights, self.state_dict()))
        if wrong := [key for key in {**came, **own} if came.get(key) != own.get(key)]:
            raise ValueError(f"wanted weights for {type(self).__name__}({self.arguments}), got a network with another "
                             f"{', '.join(wrong[:3])}")
        self.load_state_dict(weights)
        return self

    def _fitting(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a network's weights as this one can take them: here as they are."""
        return weights


@torch.no_grad()
def check_finite_weights(model: nn.Module) -> None:
    """Raise ValueError, naming the first such tensor, where a weight or a buffer holds NaN or infinity."""
    named = [*model.named_parameters(), *model.named_buffers()]
    largest = nn.utils.get_total_norm([tensor for _, tensor in named if tensor.is_floating_point()], math.inf)
    for name, tensor in [] if largest.isfinite() else named:  # one quick pass, since `denoise` asks every time
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(f"wanted finite weights in {type(model).__name__}, got {bad} of {tensor.numel()} values "
                             f"that are NaN or infinite in {name}")


def _check(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `allowed`, strings or a range of whole numbers from 1."""
    if type(value) is not type(allowed[0]) or value not in allowed:
        which = f"in 1..{allowed[-1]}" if isinstance(allowed, range) else f"one of {', '.join(allowed)}"
        raise ValueError(f"{name} must be {which}, got {value!r}")


def double_conv(channels: int, out_channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each followed by a ReLU: the stage of the original U-Net."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True),
                         nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))


class DenseDAE(Denoiser):
    """A fully connected autoencoder for 56 x 56 images, squeezed through `bottleneck` numbers, 1 to 256.

    `skip` mixes the noisy image into the output, (1 - g) of what the layers paint and g of what came in; the gate g,
    one number, is learned. Simply added, the noisy image would bring all of its noise along.

    >>> DenseDAE(bottleneck=8)(torch.zeros(2, 3, 56, 56)).shape
    torch.Size([2, 3, 56, 56])
    """

    size = 56
    radius = math.inf

    def __init__(self, bottleneck: int = 64, skip: bool = False) -> None:
        super().__init__()
        _check("bottleneck", bottleneck, range(1, 257))
        pixels = 3 * self.size * self.size
        self.skip = skip
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, bottleneck), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(nn.Linear(bottleneck, pixels), nn.Unflatten(1, (3, self.size, self.size)))
        if skip:
            self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, 56, 56); raise ValueError at another size."""
        self.check_size(noisy)
        code = self.encoder(noisy - 0.5)  # (B, bottleneck); centred, so that zero weights mean mid grey
        output = self.decoder(code) + 0.5  # (B, 3, 56, 56)
        return (1 - self.gate) * output + self.gate * noisy if self.skip else output


class ConvDAE(Denoiser):
    """A convolutional autoencoder without skip connections: three stages down, of `width` = w, 2w and 4w channels.

    `predict`: "image" or "noise" (the output is then the noisy image minus what the network predicts).

    >>> ConvDAE(width=4)(torch.zeros(1, 3, 24, 40)).shape
    torch.Size([1, 3, 24, 40])
    """

    radius = 35  # four 3 x 3 convolutions at each scale, 4 * (1 + 2 + 4), and the pooling grids, 1 + 2 + 4

    def __init__(self, width: int = 32, predict: str = "image") -> None:
        super().__init__()
        _check("width", width, range(1, 4097))
        _check("predict", predict, ("image", "noise"))
        self.predict = predict
        w = width
        self.encoder = nn.Sequential(double_conv(3, w), nn.MaxPool2d(2), double_conv(w, 2 * w), nn.MaxPool2d(2),
                                     double_conv(2 * w, 4 * w), nn.MaxPool2d(2))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4 * w, 4 * w, 2, stride=2), double_conv(4 * w, 2 * w),
                                     nn.ConvTranspose2d(2 * w, 2 * w, 2, stride=2), double_conv(2 * w, w),
                                     nn.ConvTranspose2d(w, w, 2, stride=2), double_conv(w, w), nn.Conv2d(w, 3, 1))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W), H and W multiples of 8."""
        self.check_size(noisy)
        code = self.encoder(noisy)  # (B, 4w, H/8, W/8), all that is left of the image
        output = self.decoder(code)  # (B, 3, H, W)
        return noisy - output if self.predict == "noise" else output


class UNet(Denoiser):
    """U-Net of the original experiments: stages of w, 2w, 4w channels and a bottleneck of 8w.

    Args:
        width: w, channels of the first stage: 64 in the original, 32 in the shipped checkpoints.
        predict: "noise" (the output is the noisy image minus the network's) or "image".
        upsample: "transpose" (2 x 2 transposed convolutions, the original) or "bilinear" (then a 1 x 1 convolution).
        stages: number of times the image is halved, 1 to 8; H and W must be multiples of 2 ** `stages`.

    >>> UNet(width=4)(torch.zeros(1, 3, 24, 40)).shape
    torch.Size([1, 3, 24, 40])
    """

    def __init__(self, width: int = 64, predict: str = "noise", upsample: str = "transpose", stages: int = 3) -> None:
        super().__init__()
        _check("width", width, range(1, 4097))
        _check("predict", predict, ("image", "noise"))
        _check("upsample", upsample, ("transpose", "bilinear"))
        _check("stages", stages, range(1, 9))
        self.predict, self.multiple = predict, 2**stages
        # two 3 x 3 convolutions in each stage down and up, 4 * (1 + 2 + 4) pixels, and in the bottleneck, 2 * 8; the
        # pooling grids add 1 + 2 + 4, and as much again does bilinear upsampling, which looks at neighbours
        self.radius = 7 * 2**stages - 5 + (upsample == "bilinear") * (2**stages - 1)
        widths = [width * 2**stage for stage in range(stages + 1)]  # w, 2w, 4w and the bottleneck's 8w
        self.encoder = nn.ModuleList(double_conv(a, b) for a, b in pairwise([3, *widths[:-1]]))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = double_conv(widths[-2], widths[-1])
        if upsample == "transpose":
            ups = [nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths)]
        else:  # the convolution first: at half the size it costs a quarter
            ups = [nn.Sequential(nn.Conv2d(b, a, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
                   for a, b in pairwise(widths)]
        self.up = nn.ModuleList(ups)
        self.decoder = nn.ModuleList(double_conv(2 * channels, channels) for channels in widths[:-1])
        self.head = nn.Conv2d(width, 3, 1)
        if predict == "noise":
            nn.init.zeros_(self.head.weight)  # start as the identity: "there is no noise"
            nn.init.zeros_(self.head.bias)

    def encode(self, noisy: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the skip connections, from fine to coarse, and the pooled last stage (B, 4w, H/8, W/8)."""
        skips, features = [], noisy
        for stage in self.encoder:
            skips.append(stage(features))  # (B, w, H, W), then (B, 2w, H/2, W/2), then (B, 4w, H/4, W/4)
            features = self.pool(skips[-1])  # the same at half the size
        return skips, features

    def decode(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Return the network's output (B, 3, H, W) from the bottleneck's features (B, 8w, H/8, W/8)."""
        for up, stage, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            features = up(features)  # (B, 4w, H/4, W/4): half the channels at twice the size
            features = stage(torch.cat([features, skip], dim=1))  # (B, 4w + 4w, H/4, W/4) to (B, 4w, H/4, W/4)
        return self.head(features)  # (B, w, H, W) to (B, 3, H, W)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W), H and W multiples of `multiple`."""
        self.check_size(noisy)
        skips, features = self.encode(noisy)  # one skip per stage; features (B, 4w, H/8, W/8)
        features = self.bottleneck(features)  # (B, 8w, H/8, W/8)
        output = self.decode(features, skips)  # (B, 3, H, W)
        return noisy - output if self.predict == "noise" else output


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions without biases and a ReLU between, added to their input; starts as the identity.

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


class HybridViTUNet(BesideViT, UNet):
    """A U-Net with a ViT's tokens joined to its bottleneck; called as ``model(noisy)`` like the other denoisers.

    The ViT sees the whole noisy image, at any size; `denoise` works in tiles of 224 x 224, as in training.

    Args:
        width, predict, upsample: as in `UNet`, of three stages.
        vit, resize, seed: what `open_vit` takes; `vit` may also be a `ViT` that is open.
        freeze_vit: True: the ViT is not trained and not in the state dict; False: all of it is; a number n: all but
            the embeddings and the first n blocks.
        join: "concat" (the original) or "attention" (every pixel of the pooled stage asks all tokens; the answer is
            added), which starts as a U-Net that ignores the ViT.
        blocks: numbers of the blocks whose tokens are joined, each normalised on its own; None: the ViT's last tokens.

    >>> HybridViTUNet(width=32)(torch.rand(1, 3, 224, 224)).shape          # doctest: +SKIP
    torch.Size([1, 3, 224, 224])
    """

    tile = 224

    def __init__(self, width: int = 32, vit: ViT | str | None = None, freeze_vit: bool | int = True,
                 predict: str = "noise", join: str = "concat", blocks: Sequence[int] | None = None,
                 resize: str = "positions", seed: int | None = None, upsample: str = "transpose") -> None:
        super().__init__(width, predict, upsample)
        _check("join", join, list(JOINS))
        self.radius = math.inf  # a token knows of the whole image
        self.put_beside(vit, resize, seed, freeze_vit, blocks)
        self.join = join
        self.project = JOINS[join](4 * width, self.vit.channels * len(self.blocks or (0,)))
        if join == "concat":
            self.bottleneck = double_conv(4 * width + 8 * width, 8 * width)

    def forward(self, noisy: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Denoise (B, 3, H, W) in [0, 1]; `tokens`, where given, replaces what `token_grid` gives (an intervention)."""
        self.check_size(noisy)
        skips, features = self.encode(noisy)  # one skip per stage; features (B, 4w, H/8, W/8)
        tokens = self.token_grid(noisy) if tokens is None else tokens  # (B, C, h, w), one per patch of 16 x 16 pixels
        features = self.project(features, tokens)  # (B, 4w, H/8, W/8) and the tokens added, or "concat": (B, 12w, ...)
        features = self.bottleneck(features)  # (B, 8w, H/8, W/8)
        output = self.decode(features, skips)  # (B, 3, H, W)
        return noisy - output if self.predict == "noise" else output

    def _fitting(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a `UNet`, with a ViT that has no say until it is trained to have one."""
        key, own = "bottleneck.0.weight", self.state_dict()
        if self.join == "concat" and key in weights and "project.0.weight" not in weights:
            kernel = weights[key]  # (8w, 4w, 3, 3), and zeros for the channels of the tokens
            weights[key] = torch.cat([kernel, kernel.new_zeros(len(kernel), self.project[-1].out_channels, 3, 3)], 1)
        return {**own, **weights} if key in weights else weights  # what a U-Net has not stays


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
