"""Loss terms that compare an output with its clean image, beside the mean squared error.

    loss = CombinedLoss({"regional": (RegionalSharpnessLoss(), 0.2)})    # 0.8 MSE + 0.2 regional sharpness
    loss(model(noisy), clean).backward()

Every term is called as ``loss(denoised, clean)`` with images (B, C, H, W) of any size, in [0, 1], and gives a scalar,
zero where both are equal, in float32 (also inside autocast; float64 stays). Gradients flow to `denoised` only. A NaN or
an infinity in an image makes the value NaN (on which `helpers.training.fit` stops) and all gradients zero, never NaN.

Scales: ``"matched"`` is the mean per pair, coefficient or pixel times the term's constant in `MATCHED`; ``"original"``
replicates the original experiments (sums per window, unnormalised spectra, divided by 1000); a number takes the
constant's place.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import ptwt
import pywt
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from helpers.cam import find_layer, layer_features, layers_of
from helpers.cam_methods import principal_map, token_norm

Scale = Literal["matched", "original"] | float
# What makes a term's gradient (norm with respect to the output) as long as MSE's, on validation images at sigma 50
# from the MSE checkpoint: printed by `python -m lab.match_losses --checkpoint hybrid`.
MATCHED = {"regional_sorted": 0.1004, "regional_aligned": 0.1006, "regional_pixel": 0.09006, "frequency": 0.1058,
           "frequency_hf": 0.04989, "frequency_phase": 0.1058, "wavelet": 0.05506, "cam": 0.8583,
           "charbonnier": 0.1074, "ms_ssim": 0.01879}


class Term(nn.Module):
    """What all terms share: checks, float32, NaN, scale. A subclass has `key`, its name in `MATCHED`, and `value`."""

    key = ""

    def __init__(self, scale: Scale = "matched"):
        super().__init__()
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if scale not in ("matched", "original") and not (number and 0 < scale < math.inf):
            raise ValueError(f'scale must be "matched", "original" or a positive number, got {scale!r}')
        self.scale, self.original = scale, scale == "original"

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        """The term itself, a scalar, of checked and finite images."""
        raise NotImplementedError

    def forward(self, denoised: Tensor, clean: Tensor, **context: Any) -> Tensor:
        if denoised.ndim != 4 or denoised.shape != clean.shape or not denoised.numel():
            raise ValueError("denoised and clean must be images of one shape (B, C, H, W), "
                             f"got {tuple(denoised.shape)} and {tuple(clean.shape)}")
        with torch.autocast(denoised.device.type, enabled=False):
            # sums over windows and spectra of half precision would lose the small differences that count here
            denoised, clean = (x if x.dtype == torch.float64 else x.float() for x in (denoised, clean.detach()))
            # A sum is finite only if all its values are; zeros in their place keep the backward pass free of NaN.
            finite = torch.isfinite(denoised.detach().sum() + clean.sum())
            denoised, clean = torch.where(finite, denoised, 0.0), torch.where(finite, clean, 0.0)
            factor = 1.0 if self.original else MATCHED[self.key] if self.scale == "matched" else self.scale
            return torch.where(finite, factor * self.value(denoised, clean, **context), math.nan)


NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right) of a pixel: right, below, both diagonals


def pair_count(height: int, width: int) -> int:
    """Return how many pairs of neighbours lie wholly inside height x width, in all four directions."""
    return sum((height - down) * (width - abs(right)) for down, right in NEIGHBOURS)


def neighbour_differences(images: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield (down, right) and neighbour minus pixel (B, C, H - down, W - |right|) of images (B, C, H, W)."""
    for down, right in NEIGHBOURS:
        rows, columns, left = images.shape[-2] - down, images.shape[-1] - abs(right), max(-right, 0)
        if rows > 0 and columns > 0:  # a row of pixels has neighbours on its right only
            there = images[..., down:, left + right:left + right + columns]
            yield (down, right), there - images[..., :rows, left:left + columns]


def window_scores(images: Tensor, window: int = 32, step: int | None = None) -> Tensor:
    """Return the sharpness (B, rows, columns) in [0, 1] of the windows wholly inside images (B, C, H, W) in [0, 1].

    It is the mean absolute difference of all neighbours in a window, over channels too; `window` and `step` as in
    `RegionalSharpnessLoss`.
    """
    height, width = (min(window, side) for side in images.shape[-2:])
    if height * width == 1:  # no pairs: 0 with a gradient of 0, as a loss must have
        return images.mean(1) * 0
    total = 0  # a sum of sums: the directions have different numbers of pairs
    # The difference maps of the whole image are summed over each window's pairs: no window is ever copied.
    for (down, right), difference in neighbour_differences(images):
        strength, extent = difference.abs().mean(1), (height - down, width - abs(right))  # (B, H - down, W - |right|)
        total = total + avg_pool2d(strength, extent, step or max(window // 2, 1), divisor_override=1)
    return total / pair_count(height, width)


class RegionalSharpnessLoss(Term):
    """Are the windows of the output as sharp as the clean image's?

    Args:
        window, step: side of a window in pixels (2 or more; an image's where it is smaller), and pixels from one to
            the next, half a window where None.
        match: "sorted" (the original): the scores of each image, largest first, are compared rank by rank;
            "aligned": window by window; "pixel": no windows, the signed differences of neighbours are compared pair by
            pair. Neither of the first two says *where* in a window, "sorted" not even in which.
        scale: see the module; on the original scale a score is the sum over a window's pairs, divided by 1000.

    >>> clean = torch.rand(1, 3, 64, 64)
    >>> [bool(RegionalSharpnessLoss(scale=1.0)(image, clean) < 0.1) for image in (clean.flip(-1), clean / 2)]
    [True, False]
    """

    def __init__(self, window: int = 32, step: int | None = None, match: str = "sorted", scale: Scale = "matched"):
        super().__init__(scale)
        if match not in ("sorted", "aligned", "pixel"):
            raise ValueError(f'match must be "sorted", "aligned" or "pixel", got {match!r}')
        if window < 2 or (step is not None and step < 1):
            raise ValueError(f"window must be at least 2 pixels and step at least 1, got {window} and {step}")
        self.window, self.step, self.match, self.key = window, step, match, f"regional_{match}"

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        height, width = denoised.shape[-2:]
        scale = pair_count(min(self.window, height), min(self.window, width)) / 1000 if self.original else 1.0
        if self.match == "pixel":
            error = denoised - clean  # differences are linear: those of the error are the errors of the differences
            zero = error.sum() * 0  # with a gradient, for an image of one pixel, which has no pairs
            total = sum((difference.abs().sum() for _, difference in neighbour_differences(error)), zero)
            return scale * total / (max(pair_count(height, width), 1) * error.shape[0] * error.shape[1])
        scores, wanted = (window_scores(x, self.window, self.step).flatten(1) for x in (denoised, clean))
        if self.match == "sorted":  # which window was how sharp is forgotten here, for both
            scores, wanted = (x.sort(dim=1, descending=True).values for x in (scores, wanted))
        return scale * (scores - wanted).abs().mean()


class FrequencyLoss(Term):
    """Mean absolute difference of the magnitudes of the 2-D Fourier transforms: a (cyclically) shifted image costs 0.

    Args:
        high_freq_weight: k of the weight 1 + k * d / d_max, d the distance from the zero frequency in cycles per pixel.
        phase: compare the complex coefficients instead, |F(denoised) - F(clean)|: this one says where.
        scale: see the module. The original scale is the unnormalised transform, divided by 1000.

    >>> clean = torch.rand(1, 3, 15, 20)
    >>> shifted = clean.roll(5, -1)
    >>> [bool(FrequencyLoss(phase=phase)(shifted, clean) < 1e-5) for phase in (False, True)]
    [True, False]
    """

    def __init__(self, high_freq_weight: float = 0.0, phase: bool = False, scale: Scale = "matched"):
        super().__init__(scale)
        if not 0 <= high_freq_weight < math.inf:
            raise ValueError(f"high_freq_weight must be 0 or more, got {high_freq_weight}")
        self.high_freq_weight, self.phase = float(high_freq_weight), bool(phase)
        self.key = "frequency_phase" if phase else "frequency_hf" if high_freq_weight else "frequency"

    def weights(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Return the weights (H, W // 2 + 1) of the half of the spectrum that rfft2 gives."""
        rows, columns = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
        distance = torch.hypot(rows[:, None], columns)
        return 1 + self.high_freq_weight * distance / distance.max().clamp(min=1e-12)  # one pixel: d = d_max = 0

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        height, width = denoised.shape[-2:]
        norm = "backward" if self.original else "ortho"  # "ortho" coefficients are as large as pixels, at any size
        if self.phase:  # the transform is linear
            difference = torch.fft.rfft2(denoised - clean, norm=norm).abs()  # (B, C, H, W // 2 + 1)
        else:
            difference = (torch.fft.rfft2(denoised, norm=norm).abs() - torch.fft.rfft2(clean, norm=norm).abs()).abs()
        weights = self.weights(height, width, denoised.device)
        # A real image's spectrum is mirrored: all columns but the first and, in even widths, the last count twice.
        weights[:, 1:(width + 1) // 2] *= 2
        mean = (difference * weights).sum((-2, -1)).mean() / (height * width)
        return mean / 1000 if self.original else mean


class WaveletLoss(Term):
    """Mean absolute difference of the wavelet detail coefficients: which scale, and where. On `ptwt`.

    Args:
        wavelet: name of an orthogonal wavelet of pywt.
        levels: number of scales; fewer where the image is too small for them, always at least one.
        level_weights: one weight per level, the **finest first**; all 1 where None. A level's mean over its three bands
            is weighted, so that coarse levels count although they have fewer coefficients.
        scale: see the module; "original" is the sum over a channel's coefficients, divided by 1000.

    >>> clean = torch.rand(1, 3, 32, 32)
    >>> bool(WaveletLoss()(clean + 0.1, clean) < 1e-6)  # a change of brightness is no detail
    True
    """

    key = "wavelet"

    def __init__(self, wavelet: str = "db2", levels: int = 3, level_weights: Sequence[float] | None = None,
                 scale: Scale = "matched"):
        super().__init__(scale)
        weights = [1.0] * levels if level_weights is None else [float(weight) for weight in level_weights]
        if levels < 1 or len(weights) != levels or min(weights) < 0 or not any(weights):
            raise ValueError("levels must be at least 1, with one weight each, none negative and not all 0; "
                             f"got levels={levels}, level_weights={level_weights}")
        self.wavelet, self.levels, self.level_weights = pywt.Wavelet(wavelet), levels, weights

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        levels = min(self.levels, max(1, pywt.dwt_max_level(min(denoised.shape[-2:]), self.wavelet)))
        error = (denoised - clean).flatten(0, 1)  # (B * C, H, W); the transform is linear
        _, *details = ptwt.wavedec2(error, self.wavelet, mode="symmetric", level=levels)  # without the coarse rest
        details = [torch.stack(bands).abs() for bands in reversed(details)]  # (3, B * C, h, w), the finest first
        total = max(sum(self.level_weights[:levels]), 1e-12)
        parts = [bands.sum() / (1000 * len(error)) if self.original else bands.mean() / total for bands in details]
        return sum(weight * part for weight, part in zip(self.level_weights, parts, strict=False))


IN_A_LOSS = {  # the methods that need no gradients
    "EigenCAM": principal_map,
    "TokenNorm": lambda features, sign: token_norm(features, centred=False),
    "CentredTokenNorm": lambda features, sign: token_norm(features),
}


class BatchAttention(nn.Module):
    """Maps for a whole batch on its own device, for use inside a loss: images (B, 3, H, W) to (B, h, w) in [0, 1].

    The same maps as ``activation_map(...)``, on the layer's grid: oriented, cut at zero, scaled per image.

    Args:
        model, sign: as in `activation_map`. The model is frozen for good: in eval mode, its weights never trained.
        layer: a name from `layers_of(model)` or a module; default the block two thirds of the way through the ViT.
        method: a name from `IN_A_LOSS`.

    >>> from helpers.models import UNet
    >>> BatchAttention(UNet(4), "bottleneck")(torch.rand(2, 3, 16, 24)).shape
    torch.Size([2, 2, 3])
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module | None = None, method: str = "EigenCAM",
                 sign: str = "auto"):
        super().__init__()
        if method not in IN_A_LOSS:
            raise ValueError(f"inside a loss the method must be one of {', '.join(IN_A_LOSS)}, got {method!r}")
        if layer is None:
            names = list(layers_of(model))
            layer = names[2 * len(names) // 3]
        self.model, self.method, self.sign = model.eval().requires_grad_(False), method, sign
        _, self.layer = find_layer(model, layer)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features, = layer_features(self.model, images, [self.layer]).values()
        maps = IN_A_LOSS[self.method](features, self.sign).clamp_min(0)  # (B, h, w), cut as the library does
        maps = maps - maps.amin((-2, -1), keepdim=True)
        return maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)  # a map without contrast stays 0


class CamWeightedLoss(Term):
    """MSE weighted by 1 + strength * m, m the thresholded activation map of the **clean** image, divided by its mean.

    An empty map leaves plain MSE. Whether the *place* matters, `lab.controls` says: there the same maps lie elsewhere.

    Args:
        vit, layer, method: a ViT and what `BatchAttention` makes maps of; or
        attention: instead of the three, a function (or module) from clean images (B, C, H, W) to maps (B, h, w) in
            [0, 1] on any grid.
        lower, upper: the band of the map that is kept and stretched to 0..1, 0 <= lower <= upper <= 1; all else is 0.
        strength: k >= 0, how much more a pixel with m = 1 counts.
        scale: see the module; on the original scale the weights are not divided by their mean.
    """

    key = "cam"

    def __init__(self, vit: nn.Module | None = None, layer: str | nn.Module | None = None, method: str = "EigenCAM",
                 lower: float = 0.4, upper: float = 0.9, strength: float = 4.0, *,
                 attention: Callable[[Tensor], Tensor] | None = None, scale: Scale = "matched"):
        super().__init__(scale)
        if (vit is None) == (attention is None):
            raise ValueError("CamWeightedLoss takes either vit (with layer and method) or attention")
        if not 0 <= lower <= upper <= 1 or not 0 <= strength < math.inf:
            raise ValueError("thresholds must be 0 <= lower <= upper <= 1 and strength 0 or more, "
                             f"got {lower}, {upper} and {strength}")
        self.lower, self.upper, self.strength = lower, upper, strength
        self.attention = attention or BatchAttention(vit, layer, method)  # a part of the loss: `.to` moves it along

    def place(self, maps: Tensor, clean: Tensor) -> Tensor:
        """Return the maps (B, H, W) where they belong, on what they point at; a control overrides this."""
        return maps

    @torch.no_grad()
    def maps(self, clean: Tensor) -> Tensor:
        """Return the thresholded maps (B, H, W) in [0, 1] of clean images (B, C, H, W)."""
        if isinstance(self.attention, nn.Module):
            self.attention.to(clean.device).eval()  # whoever calls train() on the loss does not mean this network
        maps = self.attention(clean)
        if maps.ndim != 3 or len(maps) != len(clean):
            raise ValueError(f"attention must give maps (B, h, w) for {len(clean)} images, got {tuple(maps.shape)}")
        maps = interpolate(maps.to(clean)[:, None], clean.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        maps = self.place(maps, clean)
        # `helpers.cam.threshold_cam` for a batch: values inside the band are stretched to 0..1 per map, all else is 0
        kept = ~((maps < self.lower) | (maps > self.upper))  # NaN stays, to be found by `value`
        low = maps.masked_fill(~kept, math.inf).amin((-2, -1), keepdim=True)
        high = maps.masked_fill(~kept, -math.inf).amax((-2, -1), keepdim=True)
        constant = high - low <= 1e-5  # as good as: interpolation rounds; a band of one value keeps it as 1
        stretched = torch.where(constant, 1.0, (maps - low) / (high - low).clamp(min=1e-5))
        return torch.where(kept, stretched, 0.0)

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        maps = self.maps(clean)  # (B, H, W)
        finite = torch.isfinite(maps.sum())
        weights = 1 + self.strength * torch.where(finite, maps, 0.0)
        if not self.original:  # of mean 1, so that a large map is no larger step
            weights = weights / weights.mean((-2, -1), keepdim=True)
        return torch.where(finite, (weights * ((denoised - clean) ** 2).mean(1)).mean(), math.nan)


RESERVED = ("mse", "loss", "step", "lr", "seconds", "psnr")  # columns of fit's history


class SquaredError(Term):
    """The mean squared error, with a term's checks. It has no constant: its scale is 1."""

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        return ((denoised - clean) ** 2).mean()


class CombinedLoss(nn.Module):
    """(1 - sum of the weights) * MSE + the terms ``{"name": (term, weight), ...}``, weights in [0, 1], at most 1.

    After each call `parts` holds the unweighted values of "mse" and of every name, which `helpers.training.fit` logs.
    Keyword arguments of the call go to every term.

    >>> loss = CombinedLoss({"regional": (RegionalSharpnessLoss(), 0.2)})
    >>> value = loss(torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40))
    >>> sorted(loss.parts)
    ['mse', 'regional']
    """

    def __init__(self, terms: dict[str, tuple[Term, float]]):
        super().__init__()
        weights = {name: float(weight) for name, (_, weight) in terms.items()}
        if any(not name or "." in name or name in RESERVED for name in weights):  # "." is refused by ModuleDict
            raise ValueError(f"names must have no dot and be none of {', '.join(RESERVED)}, got {', '.join(weights)}")
        if not all(0 <= weight <= 1 for weight in weights.values()) or sum(weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights must lie in [0, 1] and sum to at most 1 (MSE takes the rest), got {weights}")
        self.terms = nn.ModuleDict({"mse": SquaredError(1.0), **{name: term for name, (term, _) in terms.items()}})
        self.weights = {"mse": max(0.0, 1 - sum(weights.values())), **weights}  # a sum of floats may be 1 + 1e-16
        self.parts = {}

    def forward(self, denoised: Tensor, clean: Tensor, **context: Any) -> Tensor:
        values = {name: term(denoised, clean, **context) for name, term in self.terms.items()}
        self.parts = {name: value.detach() for name, value in values.items()}  # kept values must not keep the graph
        return sum(self.weights[name] * value for name, value in values.items())
